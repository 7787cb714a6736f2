"""What the commands do: each is given the parsed arguments, and returns what `main` says of it."""

import dataclasses
import importlib.util
import json
import os
import shlex
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import pandas as pd

from gemma_colab import BlockedError, GemmaColabError, data, describe_machine, open_workspace, preflight, quiet_libraries
from gemma_colab.model import LoraSettings, choose_model, dimensions_of, load_tokenizer, memory_plan, plan_training
from gemma_colab.training import TrainSettings, settings_for, token_lengths

Result = tuple[int, dict, str]  # exit status, for JSON, in words
EXIT_CODES = {"ready": 0, "fix first": 1, "blocked": 2}


def _given(args: Namespace, *names: str) -> dict:
    return {name: getattr(args, name) for name in names}


def _workspace_with(args: Namespace, **needed: str):
    """Open the workspace. needed: a file in it -> the command that makes it; raises `GemmaColabError` where one is missing."""
    make, where = "make it with gemma-colab {} --workspace " + shlex.quote(args.workspace), Path(args.workspace).expanduser()
    if not where.is_dir():  # a typo makes no folder
        raise GemmaColabError(f"there is no folder {where}; check the name, or {make.format('prepare FILE')}")
    workspace = open_workspace(where)
    for name, command in needed.items():
        if not workspace.has(name):
            raise GemmaColabError(f"{name} is missing in {workspace.path}; {make.format(command)}")
    return workspace


def _reading(args: Namespace) -> dict:
    return _given(args, "sheet", "split", "limit") | {"mapping": dict(args.map) or None}


def _counting(args: Namespace) -> dict:
    if args.model:
        quiet_libraries()  # transformers warns of rows longer than its own limit; the report says more
    return {"tokenizer": load_tokenizer(args.model) if args.model else None, "max_length": args.max_length}


def check(args: Namespace) -> Result:
    found = data.read_rows(args.file, on_bad="aside", **_reading(args))
    report = data.check_rows(found.rows, aside=found.aside, accept=args.accept, personal={"keep": args.keep}, **_counting(args))
    about = {"file": found.name, "form": found.schema, "details": found.details}
    return EXIT_CODES[report.verdict], report.to_dict() | about, f"{found}\n\n{report}"


def prepare(args: Namespace) -> Result:
    workspace = open_workspace(args.workspace)
    options = _given(args, "also", "accept", "keep", "too_long", "validation_size", "test_size", "seed", "groups", "originals")
    options |= {"steps": tuple(args.steps)} if args.steps else {}
    try:
        report, how = data.prepare_rows(args.file, workspace, **options, **_counting(args), **_reading(args))
    except BlockedError as e:
        GemmaColabError.say(e, file=sys.stderr)
        return EXIT_CODES["blocked"], e.report.to_dict(), str(e.report)  # also where the rows are ready, and only can't be split
    said = f"{report}\n\n{how}\nsaved in {workspace.path / 'rows'}, with cleaning_log.jsonl: every change, before and after"
    return EXIT_CODES[report.verdict], report.to_dict() | {"split": how}, said


def doctor(args: Namespace) -> Result:
    checks = preflight(args.model, args.workspace)
    return {"ok": 0, "warn": 1, "fail": 2}[checks.status], checks.to_dict(), str(checks)


def plan(args: Namespace) -> Result:
    dimensions, lora = dimensions_of(args.model), LoraSettings(r=args.r, lora_alpha=args.r)
    size = {"per_device_train_batch_size": args.batch, "max_length": args.tokens}
    train = TrainSettings(**size, gradient_checkpointing=args.checkpointing)
    how = {"load_in_4bit": args.load_in_4bit}

    def tried(batch: int) -> pd.DataFrame:
        changed = train.replace(per_device_train_batch_size=batch)
        return plan_training(dimensions, lora, changed, [args.tokens], args.gpu, **how)[1]

    steps = tried(args.batch)
    light, gpu, limit, dtype = steps["fits"][0], *(steps.attrs[name] for name in ("gpu", "limit_gib", "dtype"))
    parts = memory_plan(dimensions, lora, train, tokens=args.tokens, dtype=dtype, **how)
    largest = next((n for n in (64, 32, 16, 8, 4, 2, 1) if tried(n)["fits"][0] == "fits"), 0)
    found = _given(args, "model") | {"gpu": gpu, "limit_gib": limit, "dtype": dtype, "predicted_gib": parts.round(3).to_dict()}
    found |= {"total_gib": round(parts.sum(), 3), "light": light, "largest_batch": largest}
    found["savings"] = json.loads(steps.to_json(orient="records"))
    bits = "4" if args.load_in_4bit else "16"
    lines = [f"{args.model} on {gpu}, {dtype}, {bits} bit; batch {args.batch} of {args.tokens:,} tokens, r={args.r}", ""]
    lines += [f"  {part:<16} {gib:>8.2f} GiB" for part, gib in {**parts, "together": parts.sum()}.items()]
    lines += [f"  of {limit:g} GiB, predicted: {light}", "", f"largest batch with 15 % to spare: {largest or 'none'}"]
    if light != "fits":
        lines += ["", "what to change first:"]
        for step in found["savings"][1:]:
            then = f" -> {step['GiB']:.2f} GiB, {step['fits']}" if step["GiB"] else ""
            lines.append(f"  {step['change']}: {step['why']}{then}")
    return {"fits": 0, "tight": 1, "no": 2}[light], found, "\n".join(lines)


def train(args: Namespace) -> Result:
    """Notebook 04 on one GPU or, started by `accelerate launch`, on many."""
    workspace = _workspace_with(args, **dict.fromkeys(("rows/train.jsonl", "rows/validation.jsonl"), "prepare FILE"))
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise GemmaColabError(f"--report-to {args.report_to!r} is not installed; pip install {args.report_to}, or leave it out")
    _no_bars()
    machine, processes = describe_machine(), int(os.environ.get("WORLD_SIZE", 1))
    import torch

    from gemma_colab.training import train_adapter

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # a question to another's GPU takes half a GiB of memory there
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    chosen, why = choose_model(workspace, machine, **_given(args, "model", "load_in_4bit", "anyway"), save=False)
    settings = _settings(args, workspace, chosen, machine)
    bits = "4" if chosen.load_in_4bit else "16"
    GemmaColabError.say(f"{chosen.model} in {bits} bit ({why})" + (f", {processes} processes" if processes > 1 else ""))
    run = train_adapter(workspace, chosen, settings, **_given(args, "resume", "anyway", "shorter_rows", "report_to"))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()  # until the first has written everything: accelerate ends all when one of them fails
        torch.distributed.destroy_process_group()
    state, adapter, stopped = run.trainer.state, workspace.path / "adapter", run.status == "interrupted"
    found = {
        "status": run.status, "verdict": dataclasses.asdict(run.verdict), "notes": list(run.notes),
        "seconds": round(run.seconds, 1), "steps": state.global_step, "best_eval_loss": state.best_metric,
        "model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "settings": dataclasses.asdict(run.settings),
        "processes": processes, "adapter": str(adapter), "adapter_step": run.adapter_step, **run.lost,
    }  # fmt: skip
    said = [*run.notes, f"{run.status} after {state.global_step} steps, {run.seconds:.0f} s", str(run.verdict)]
    go_on = f"; go on with gemma-colab train --workspace {shlex.quote(args.workspace)} --resume" * stopped
    said.append(f"the adapter is in {adapter}{go_on}")
    # accelerate knows success and failure only: a warning would look like a crash.
    lost = any(places for splits in run.lost.values() for places in splits.values())
    warns = (run.verdict.word in ("not learning", "overfitting", "unstable") or lost) and processes == 1
    return 2 if stopped else int(warns), found, "\n".join(said)


def _no_bars() -> None:
    """No bars and no warnings of libraries, but the bar of a download."""
    quiet_libraries()
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of transformers: "loading weights"
    datasets.disable_progress_bars()  # eight for each process
    if os.environ.get("RANK", "0") != "0":
        warnings.simplefilter("ignore")


def _settings(args: Namespace, workspace, chosen, machine) -> TrainSettings | None:
    """What the command line says; None leaves them to `train_adapter`."""
    if not args.set:
        return None
    if args.resume:
        settings = TrainSettings.load(workspace)
    else:
        rows, tokenizer = data.ensure_rows(workspace), load_tokenizer(chosen.model)
        lengths = token_lengths(rows["train"] + rows["validation"], tokenizer, 2**17)["total"]
        settings = settings_for(workspace, chosen, machine, lengths).train
    changes, known = dict(args.set), [field.name for field in dataclasses.fields(TrainSettings)]
    if unknown := sorted(set(changes) - set(known)):
        raise GemmaColabError(f"--set has unknown settings {unknown}; known are {known}")
    return settings.replace(**changes)


def evaluate(args: Namespace) -> Result:
    workspace = _workspace_with(args, **{"rows/test.jsonl": "prepare FILE", "adapter": "train"})
    quiet_libraries()
    from gemma_colab.evaluation import assess

    how = _given(args, "anyway", "test_rows", "examples", "max_new_tokens", "batch_size")
    summary = assess(workspace, bars=dict(args.bar) or None, **how)
    said = summary["verdict"]
    lines = [f"{said['word']}; ship it: {said['ship']}", *(f"- {line}" for line in said["lines"])]
    lines += ["next:", *(f"- {line}" for line in said["next"])] if said["next"] else []
    lines.append(f"report: {workspace.path / 'report.html'}")
    return {"no": 2, "not yet": 1}.get(said["ship"], 0), summary, "\n".join(lines)


def export(args: Namespace) -> Result:
    workspace = _workspace_with(args, **{"training.json": "train"})
    quiet_libraries()
    from gemma_colab.export import export_workspace

    how = _given(args, "rows", "text_only", "outtype", "repo_id", "form", "private", "exist_ok", "system", "also")
    found = export_workspace(workspace, args.to, **how)
    about, folder = found if args.to == "merged" else found[args.to], workspace.path / args.to
    if args.to == "hub":
        return 0, found, f"pushed the {about['form']} to {about['repo']}"
    lines = [f"{found[args.to]['MiB']:,.1f} MiB in {folder}"]
    if "parity" in about:
        lines += ["", pd.DataFrame(about["parity"]).round(3).to_string(index=False), ""]
    if "sentence" in about:
        lines.append(about["sentence"])
    if args.to == "ollama":
        lines.append(f"next: cd {shlex.quote(str(folder))} && ollama create my-model && ollama run my-model")
    if "not_compared" in about:
        lines.append(f"not compared: {about['not_compared']}")
    return int(about.get("same") is False), found, "\n".join(lines)
