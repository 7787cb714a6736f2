"""`gemma-colab train` and `launch-config`: notebook 04 without a browser, on one GPU or on many."""

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

from gemma_colab.core.catalog import pick_model
from gemma_colab.core.chat import load_tokenizer, token_lengths
from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.core.lent import use_one_gpu
from gemma_colab.core.machine import describe_machine, quiet_libraries
from gemma_colab.core.settings import ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace, open_workspace
from gemma_colab.handover.adapter import train_adapter
from gemma_colab.handover.rows import ROW_FILES, ensure_rows
from gemma_colab.handover.settings import chosen_model, ensure_train
from gemma_colab.training.launch import KINDS, launch_config

TRAINED, WARNS, STOPPED = 0, 1, 2
WARNING_VERDICTS = ("not learning", "overfitting", "unstable")
REPORTERS = ("none", "tensorboard", "trackio", "wandb")


def add_commands(commands) -> None:
    """Declare both commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    train = commands.add_parser("train", help="train an adapter on the rows and with the settings of a workspace")
    train.set_defaults(run=_train)
    train.add_argument("--workspace", required=True, metavar="DIR", help="where prepare, or notebook 01, put the rows")
    train.add_argument("--settings", metavar="FILE.json", help="training settings instead of the workspace's")
    train.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="NAME=VALUE", help="such as learning_rate=1e-4"
    )
    train.add_argument("--model", metavar="NAME", help="instead of the workspace's; tiny-gemma3, gemma-3-1b-it, auto, a folder")
    train.add_argument("--16bit", dest="load_in_4bit", action="store_false", help="keep the weights of --model in 16 bit")
    train.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    train.add_argument("--anyway", action="store_true", help="also from one of other settings; also a model that looks too large")
    train.add_argument("--shorter-rows", action="store_true", help="rows may be cut if nothing else saves enough memory")
    train.add_argument("--report-to", choices=REPORTERS, default="none", help="where else to log (default %(default)s)")
    train.add_argument("--json", action="store_true", help="how it ended, as JSON; everything else goes to the error output")

    launch = commands.add_parser("launch-config", help="write the configuration that accelerate launch needs for several GPUs")
    launch.set_defaults(run=_launch_config)
    launch.add_argument("kind", choices=KINDS, help="ddp: the model fits on each GPU; fsdp: it doesn't, with room to train")
    launch.add_argument("--gpus", type=int, default=2, metavar="N", help="of each machine (default %(default)s)")
    launch.add_argument("--machines", type=int, default=1, metavar="N", help="that all see the workspace (default %(default)s)")
    launch.add_argument("--address", metavar="HOST", help="of the first machine, if there are several")
    launch.add_argument("--cpu", action="store_true", help="processes instead of GPUs, to try it out; ddp only")
    launch.add_argument("--out", metavar="FILE", help="instead of printing it")


def _setting(text: str) -> tuple[str, object]:
    """A name and its value as JSON would read it, True and None as Python does; else a text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as learning_rate=1e-4")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
    except ValueError:
        return name, value


def _launch_config(args: argparse.Namespace) -> int:
    text = launch_config(args.kind, args.gpus, machines=args.machines, address=args.address, cpu=args.cpu)
    if not args.out:
        print(text, end="")
        return 0
    Path(args.out).write_text(text, encoding="utf-8")
    print(f"start with: accelerate launch --config_file {args.out} -m gemma_colab train --workspace DIR")
    return 0


def _train(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    if missing := [name for name in ROW_FILES if not workspace.has(name)]:
        raise WorkspaceError(
            f"{missing[0]} is missing in {workspace.path}; make it with gemma-colab prepare FILE --workspace {args.workspace}"
        )
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise SettingsError(f"--report-to {args.report_to!r} is not installed; pip install {args.report_to}, or leave it out")
    processes, first = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0
    with _one_voice(first, args.json):
        from gemma_colab.core.live_curve import live_view

        _own_gpu()
        chosen, why = _chosen(args, workspace)
        settings = _settings(args, workspace, chosen)
        bits = "4" if chosen.load_in_4bit else "16"
        print(f"{chosen.model} in {bits} bit ({why})" + (f", {processes} processes" if processes > 1 else ""))
        how = {"resume": args.resume, "anyway": args.anyway, "shorter_rows": args.shorter_rows, "report_to": args.report_to}
        run = train_adapter(workspace, chosen, settings, show=live_view(), **how)
    _wait_for_all()
    if first:
        _show(args, workspace, chosen, run)
    if run.status == "interrupted":
        return STOPPED
    # accelerate knows success and failure only: a warning would look like a crash.
    return WARNS if run.verdict.word in WARNING_VERDICTS and processes == 1 else TRAINED


def _show(args: argparse.Namespace, workspace: Workspace, chosen: ModelSettings, run) -> None:
    state = run.trainer.state
    if not args.json:
        for note in run.notes:
            print(note)
        print(f"{run.status} after {state.global_step} steps, {run.seconds:.0f} s\n{run.verdict}")
        print(
            f"the adapter is in {workspace.path / 'adapter'}" + ("; go on with --resume" if run.status == "interrupted" else "")
        )
        return
    found = {
        "status": run.status, "verdict": dataclasses.asdict(run.verdict), "notes": list(run.notes),
        "seconds": round(run.seconds, 1), "steps": state.global_step, "best_eval_loss": state.best_metric,
        "model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "settings": dataclasses.asdict(run.settings),
        "processes": int(os.environ.get("WORLD_SIZE", 1)), "adapter": str(workspace.path / "adapter"),
    }  # fmt: skip
    print(json.dumps(found, ensure_ascii=False, indent=1))


@contextmanager
def _one_voice(first: bool, as_json: bool):
    """Only the first process prints, in JSON mode to the error output; no bars and no warnings of libraries."""
    quiet_libraries()
    from transformers.utils.logging import disable_progress_bar

    from gemma_colab.training.short import no_bars

    disable_progress_bar()  # of transformers: "loading weights"; that of a download stays
    with ExitStack() as stack:
        stack.enter_context(no_bars())  # of datasets: eight for each process
        if not first:
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            warnings.simplefilter("ignore")
        elif as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _own_gpu() -> None:
    """Each process asks its own GPU about itself: a question to another one takes half a GiB of memory there."""
    use_one_gpu()
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _wait_for_all() -> None:
    """With several processes: until the first has written everything; accelerate ends all when one of them fails."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _chosen(args: argparse.Namespace, workspace: Workspace) -> tuple[ModelSettings, str]:
    machine, why = describe_machine(), None
    if args.model:
        name, why = pick_model(args.model, machine)
        ModelSettings(model=name, load_in_4bit=args.load_in_4bit).save(workspace)
    chosen, saved = chosen_model(workspace, machine, anyway=args.anyway)
    return chosen, why or saved


def _settings(args: argparse.Namespace, workspace: Workspace, chosen: ModelSettings) -> TrainSettings | None:
    """What the command line says; None leaves them to `train_adapter`."""
    if args.settings:
        settings = _read_settings(Path(args.settings))
    elif not args.set:
        return None
    elif args.resume:
        settings = TrainSettings.load(workspace)
    else:
        rows, tokenizer = ensure_rows(workspace), load_tokenizer(chosen.model)
        lengths = token_lengths(rows["train"] + rows["validation"], tokenizer, 2**17)["total"]
        settings = ensure_train(workspace, chosen, describe_machine(), lengths)
    changes = dict(args.set)
    _refuse_unknown("--set", changes)
    return settings.replace(**changes)


def _read_settings(path: Path) -> TrainSettings:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise SettingsError(f"--settings {path} can't be read as JSON ({e}); name a file like train_settings.json") from None
    if not isinstance(saved, dict):
        raise SettingsError(f"--settings {path} holds no settings; name a file like train_settings.json")
    _refuse_unknown(str(path), saved)
    return TrainSettings(**saved)


def _refuse_unknown(where: str, names: dict) -> None:
    known = [field.name for field in dataclasses.fields(TrainSettings)]
    if unknown := sorted(set(names) - set(known)):
        raise SettingsError(f"{where} has unknown settings {unknown}; known are {known}")
