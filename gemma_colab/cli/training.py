"""`gemma-colab train`: notebook 04 without a browser, on one GPU or, started by `accelerate launch`, on many."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

from gemma_colab import GemmaColabError, data, describe_machine, model, open_workspace, quiet_libraries, training
from gemma_colab.training import TrainSettings

TRAINED, WARNS, STOPPED = 0, 1, 2
WARNING_VERDICTS = ("not learning", "overfitting", "unstable")
REPORTERS = ("none", "tensorboard", "trackio", "wandb")


def add_commands(commands) -> None:
    """Declare the command; it sets `run`, a function of the parsed arguments that returns the exit status."""
    train = commands.add_parser("train", help="train an adapter on the rows and with the settings of a workspace")
    train.set_defaults(run=_train)
    option = train.add_argument
    option("--workspace", required=True, metavar="DIR", help="where prepare, or notebook 01, put the rows")
    option("--settings", metavar="FILE.json", help="training settings instead of the workspace's")
    option("--set", action="append", type=_setting, default=[], metavar="NAME=VALUE", help="such as learning_rate=1e-4")
    option("--model", metavar="NAME", help="instead of the workspace's; tiny-gemma3, gemma-3-1b-it, auto, a folder")
    option("--16bit", dest="load_in_4bit", action="store_false", help="keep the weights of --model in 16 bit")
    option("--resume", action="store_true", help="go on from the newest whole checkpoint")
    option("--anyway", action="store_true", help="also from one of other settings; also a model that looks too large")
    option("--shorter-rows", action="store_true", help="rows may be cut if nothing else saves enough memory")
    option("--report-to", choices=REPORTERS, default="none", help="where else to log (default %(default)s)")
    option("--json", action="store_true", help="how it ended, as JSON; everything else goes to the error output")


def _setting(text: str) -> tuple[str, object]:
    """A name and its value as JSON would read it, True and None as Python does; else a text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as learning_rate=1e-4")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return name, value


def _train(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    if missing := [name for name in ("rows/train.jsonl", "rows/validation.jsonl") if not workspace.has(name)]:
        raise GemmaColabError(
            f"{missing[0]} is missing in {workspace.path}; make it with gemma-colab prepare FILE --workspace {args.workspace}"
        )
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise GemmaColabError(f"--report-to {args.report_to!r} is not installed; pip install {args.report_to}, or leave it out")
    processes, first = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0
    with _one_voice(first, args.json):
        machine = _own_gpu()
        chosen, why = model.choose_model(
            workspace, machine, model=args.model, load_in_4bit=args.load_in_4bit if args.model else None, anyway=args.anyway
        )
        settings = _settings(args, workspace, chosen, machine)
        bits = "4" if chosen.load_in_4bit else "16"
        print(f"{chosen.model} in {bits} bit ({why})" + (f", {processes} processes" if processes > 1 else ""))
        how = {"resume": args.resume, "anyway": args.anyway, "shorter_rows": args.shorter_rows, "report_to": args.report_to}
        run = training.train_adapter(workspace, chosen, settings, **how)
    _wait_for_all()
    if first:
        _show(args, workspace, chosen, run)
    if run.status == "interrupted":
        return STOPPED
    # accelerate knows success and failure only: a warning would look like a crash.
    return WARNS if run.verdict.word in WARNING_VERDICTS and processes == 1 else TRAINED


def _show(args: argparse.Namespace, workspace, chosen, run) -> None:
    state, adapter = run.trainer.state, workspace.path / "adapter"
    if not args.json:
        print(*run.notes, f"{run.status} after {state.global_step} steps, {run.seconds:.0f} s", run.verdict, sep="\n")
        print(f"the adapter is in {adapter}" + ("; go on with --resume" if run.status == "interrupted" else ""))
        return
    found = {
        "status": run.status, "verdict": dataclasses.asdict(run.verdict), "notes": list(run.notes),
        "seconds": round(run.seconds, 1), "steps": state.global_step, "best_eval_loss": state.best_metric,
        "model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "settings": dataclasses.asdict(run.settings),
        "processes": int(os.environ.get("WORLD_SIZE", 1)), "adapter": str(adapter),
    }  # fmt: skip
    print(json.dumps(found, ensure_ascii=False, indent=1))


@contextmanager
def _one_voice(first: bool, as_json: bool):
    """Only the first process prints, in JSON mode to the error output; no bars and no warnings of libraries."""
    quiet_libraries()
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: "loading weights"; that of a download stays
    datasets.disable_progress_bars()  # eight for each process
    with ExitStack() as stack:
        if not first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            warnings.simplefilter("ignore")
        elif as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _own_gpu():
    """This machine, each process asking its own GPU: a question to another one takes half a GiB of memory there."""
    machine = describe_machine()
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return machine


def _wait_for_all() -> None:
    """With several processes: until the first has written everything; accelerate ends all when one of them fails."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _settings(args: argparse.Namespace, workspace, chosen, machine) -> TrainSettings | None:
    """What the command line says; None leaves them to `train_adapter`."""
    if args.settings:
        settings = _read_settings(Path(args.settings))
    elif not args.set:
        return None
    elif args.resume:
        settings = TrainSettings.load(workspace)
    else:
        rows, tokenizer = data.ensure_rows(workspace), model.load_tokenizer(chosen.model)
        lengths = training.token_lengths(rows["train"] + rows["validation"], tokenizer, 2**17)["total"]
        settings = training.settings_for(workspace, chosen, machine, lengths).train
    changes, known = dict(args.set), [field.name for field in dataclasses.fields(TrainSettings)]
    if unknown := sorted(set(changes) - set(known)):
        raise GemmaColabError(f"--set has unknown settings {unknown}; known are {known}")
    return settings.replace(**changes)


def _read_settings(path: Path) -> TrainSettings:
    try:
        return TrainSettings.from_dict(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as e:
        raise GemmaColabError(f"--settings {path} can't be read as JSON ({e}); name a file like train_settings.json") from None
