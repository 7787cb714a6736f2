"""`gemma-colab train`: notebook 04 without a browser, on one GPU or, started by `accelerate launch`, on many."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import warnings
from argparse import Namespace

from gemma_colab import GemmaColabError, data, describe_machine, model, quiet_libraries, training
from gemma_colab.cli.commands import Result, given, workspace_with
from gemma_colab.training import TrainSettings

WARNING_VERDICTS = ("not learning", "overfitting", "unstable")


def train(args: Namespace) -> Result:
    workspace = workspace_with(args, **dict.fromkeys(("rows/train.jsonl", "rows/validation.jsonl"), "prepare FILE"))
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise GemmaColabError(f"--report-to {args.report_to!r} is not installed; pip install {args.report_to}, or leave it out")
    _quiet()
    machine, processes = _own_gpu(), int(os.environ.get("WORLD_SIZE", 1))
    chosen, why = model.choose_model(workspace, machine, **given(args, "model", "load_in_4bit", "anyway"))
    settings = _settings(args, workspace, chosen, machine)
    bits = "4" if chosen.load_in_4bit else "16"
    print(f"{chosen.model} in {bits} bit ({why})" + (f", {processes} processes" if processes > 1 else ""))
    how = given(args, "resume", "anyway", "shorter_rows", "report_to")
    run = training.train_adapter(workspace, chosen, settings, **how)
    _wait_for_all()
    state, adapter, stopped = run.trainer.state, workspace.path / "adapter", run.status == "interrupted"
    found = {
        "status": run.status, "verdict": dataclasses.asdict(run.verdict), "notes": list(run.notes),
        "seconds": round(run.seconds, 1), "steps": state.global_step, "best_eval_loss": state.best_metric,
        "model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "settings": dataclasses.asdict(run.settings),
        "processes": processes, "adapter": str(adapter),
    }  # fmt: skip
    said = [*run.notes, f"{run.status} after {state.global_step} steps, {run.seconds:.0f} s", str(run.verdict)]
    said.append(f"the adapter is in {adapter}" + "; go on with --resume" * stopped)
    # accelerate knows success and failure only: a warning would look like a crash.
    warns = run.verdict.word in WARNING_VERDICTS and processes == 1
    return 2 if stopped else int(warns), found, "\n".join(said)


def _quiet() -> None:
    """No bars and no warnings of libraries, but the bar of a download."""
    quiet_libraries()
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: "loading weights"
    datasets.disable_progress_bars()  # eight for each process
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")


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


def _settings(args: Namespace, workspace, chosen, machine) -> TrainSettings | None:
    """What the command line says; None leaves them to `train_adapter`."""
    if not args.set:
        return None
    if args.resume:
        settings = TrainSettings.load(workspace)
    else:
        rows, tokenizer = data.ensure_rows(workspace), model.load_tokenizer(chosen.model)
        lengths = training.token_lengths(rows["train"] + rows["validation"], tokenizer, 2**17)["total"]
        settings = training.settings_for(workspace, chosen, machine, lengths).train
    changes, known = dict(args.set), [field.name for field in dataclasses.fields(TrainSettings)]
    if unknown := sorted(set(changes) - set(known)):
        raise GemmaColabError(f"--set has unknown settings {unknown}; known are {known}")
    return settings.replace(**changes)
