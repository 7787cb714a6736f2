"""What the commands do, all but `train`: each is given the parsed arguments, and returns what `main` says of it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

import pandas as pd

from gemma_colab import BlockedError, GemmaColabError, evaluation, open_workspace, preflight, quiet_libraries
from gemma_colab.data import check_rows, prepare_rows, read_rows
from gemma_colab.model import LoraSettings, dimensions_of, load_tokenizer, memory_plan, plan_training
from gemma_colab.training import TrainSettings

Result = tuple[int, dict, str]  # exit status, for JSON, in words
EXIT_CODES = {"ready": 0, "fix first": 1, "blocked": 2}


def given(args: Namespace, *names: str) -> dict:
    return {name: getattr(args, name) for name in names}


def workspace_with(args: Namespace, **needed: str):
    """Open the workspace. needed: a file in it -> the command that makes it; raises `GemmaColabError` where one is missing."""
    workspace = open_workspace(args.workspace)
    for name, command in needed.items():
        if not workspace.has(name):
            raise GemmaColabError(
                f"{name} is missing in {workspace.path}; make it with gemma-colab {command} --workspace {args.workspace}"
            )
    return workspace


def _reading(args: Namespace) -> dict:
    return given(args, "sheet", "split", "limit") | {"mapping": dict(args.map) or None}


def _counting(args: Namespace) -> dict:
    if args.model:
        quiet_libraries()  # transformers warns of rows longer than its own limit; the report says more
    return {"tokenizer": load_tokenizer(args.model) if args.model else None, "max_length": args.max_length}


def check(args: Namespace) -> Result:
    found = read_rows(args.file, on_bad="aside", **_reading(args))
    report = check_rows(found.rows, aside=found.aside, accept=args.accept, **_counting(args))
    about = {"file": found.name, "form": found.schema, "details": found.details}
    return EXIT_CODES[report.verdict], report.to_dict() | about, f"{found}\n\n{report}"


def prepare(args: Namespace) -> Result:
    workspace = open_workspace(args.workspace)
    options = given(args, "accept", "too_long", "validation_size", "test_size", "seed", "groups")
    options |= {"steps": tuple(args.steps)} if args.steps else {}
    try:
        report, how = prepare_rows(args.file, workspace, **options, **_counting(args), **_reading(args))
    except BlockedError as e:
        print(e, file=sys.stderr)
        return EXIT_CODES["blocked"], e.report.to_dict(), str(e.report)  # also where the rows are ready, and only can't be split
    said = f"{report}\n\n{how}\nsaved in {workspace.path / 'rows'}, with cleaning_log.jsonl: every change, before and after"
    return EXIT_CODES[report.verdict], report.to_dict() | {"split": how}, said


def doctor(args: Namespace) -> Result:
    checks = preflight(args.model, args.workspace)
    return {"ok": 0, "warn": 1, "fail": 2}[checks.status], checks.to_dict(), str(checks)


def plan(args: Namespace) -> Result:
    dimensions, lora = dimensions_of(args.model), LoraSettings(r=args.r, lora_alpha=args.r)
    train = TrainSettings(
        per_device_train_batch_size=args.batch, max_length=args.tokens, gradient_checkpointing=args.checkpointing
    )
    how = {"load_in_4bit": args.load_in_4bit}

    def tried(batch: int) -> pd.DataFrame:
        changed = train.replace(per_device_train_batch_size=batch)
        return plan_training(dimensions, lora, changed, [args.tokens], args.gpu, **how)[1]

    steps = tried(args.batch)
    light, gpu, limit, dtype = steps["fits"][0], *(steps.attrs[name] for name in ("gpu", "limit_gib", "dtype"))
    parts = memory_plan(dimensions, lora, train, tokens=args.tokens, dtype=dtype, **how)
    largest = next((n for n in (64, 32, 16, 8, 4, 2, 1) if tried(n)["fits"][0] == "fits"), 0)
    found = given(args, "model") | {"gpu": gpu, "limit_gib": limit, "dtype": dtype, "predicted_gib": parts.round(3).to_dict()}
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


def evaluate(args: Namespace) -> Result:
    workspace = workspace_with(args, **{"rows/test.jsonl": "prepare FILE", "adapter": "train"})
    quiet_libraries()
    how = given(args, "anyway", "test_rows", "examples", "max_new_tokens", "batch_size")
    summary = evaluation.assess(workspace, bars=dict(args.bar) or None, **how)
    said = summary["verdict"]
    lines = [f"{said['word']}; ship it: {said['ship']}", *(f"- {line}" for line in said["lines"])]
    lines += ["next:", *(f"- {line}" for line in said["next"])] if said["next"] else []
    lines.append(f"report: {workspace.path / 'report.html'}")
    return {"no": 2, "not yet": 1}.get(said["ship"], 0), summary, "\n".join(lines)


def export(args: Namespace) -> Result:
    workspace = open_workspace(args.workspace)
    quiet_libraries()
    from gemma_colab.export import export_workspace

    how = given(args, "rows", "text_only", "outtype", "repo_id", "form", "private", "exist_ok", "system")
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
        lines.append(f"next: cd {folder} && ollama create my-model && ollama run my-model")
    if "not_compared" in about:
        lines.append(f"not compared: {about['not_compared']}")
    return int(about.get("same") is False), found, "\n".join(lines)
