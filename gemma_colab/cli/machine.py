"""`gemma-colab doctor` and `plan`: what this machine is, and what will fit, before anything is downloaded."""

from __future__ import annotations

import argparse
import json
import re

import pandas as pd

from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.lora import lora_parameters
from gemma_colab.core.machine import readable
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.choice import pick_model
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import GPUS, fits, largest_batch, plan_training
from gemma_colab.model.preflight import preflight


def add_commands(commands) -> None:
    """Declare both commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    doctor = commands.add_parser("doctor", help="what this machine is, what is missing, and the next step to take")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("model", nargs="?", help="also: may this model be downloaded, and is there room for it")
    doctor.add_argument("--workspace", default=".", metavar="DIR", help="also: is there room for the work (default: here)")
    doctor.add_argument("--json", action="store_true", help="the checks as JSON")

    plan = commands.add_parser("plan", help="how much GPU memory training will take, before anything is downloaded")
    plan.set_defaults(run=_plan)
    plan.add_argument("model", help="such as gemma-3-4b-it, tiny-gemma3, a Hub id or a folder")
    plan.add_argument("--gpu", default="T4", metavar="GPU", help=f"{', '.join(GPUS)}, or its memory in GiB (default %(default)s)")
    plan.add_argument("--tokens", type=int, default=1024, metavar="N", help="length of the longest row (default %(default)s)")
    plan.add_argument(
        "--batch",
        type=int,
        default=TrainSettings().per_device_train_batch_size,
        metavar="N",
        help="rows computed at once (default %(default)s)",
    )
    plan.add_argument("--r", type=int, default=LoraSettings().r, metavar="N", help="rank of LoRA (default %(default)s)")
    plan.add_argument("--16bit", dest="load_in_4bit", action="store_false", help="keep the weights in 16 bit")
    plan.add_argument("--no-checkpointing", dest="gradient_checkpointing", action="store_false", help="keep all activations")
    plan.add_argument("--json", action="store_true", help="the plan as JSON")


def _gpu(text: str) -> tuple[str, float, str]:
    """Name, usable GiB, dtype of what `--gpu` says."""
    known = {name.lower(): name for name in GPUS}
    if name := known.get(text.lower()):
        return name, *GPUS[name]
    try:
        gib = float(re.sub(r"\s*gi?b?$", "", text.lower()))
    except ValueError:
        gib = 0.0
    if not 0.1 <= gib <= 10_000:
        raise SettingsError(f"--gpu {text!r} must be one of {', '.join(GPUS)}, or its memory in GiB such as 16")
    return f"a GPU of {gib:g} GiB from Ampere on", gib, "bfloat16"


def _doctor(args: argparse.Namespace) -> int:
    checks = preflight(args.model, args.workspace)
    print(json.dumps(checks.to_dict(), ensure_ascii=False, indent=1) if args.json else checks)
    return {"ok": 0, "warn": 1, "fail": 2}[checks.status]


def _plan(args: argparse.Namespace) -> int:
    name, limit, dtype = _gpu(args.gpu)
    model = pick_model(args.model)[0]
    dimensions, lora = dimensions_of(model), LoraSettings(r=args.r, lora_alpha=args.r)
    train = TrainSettings(
        per_device_train_batch_size=args.batch, max_length=args.tokens, gradient_checkpointing=args.gradient_checkpointing
    )
    how = {"tokens": args.tokens, "dtype": dtype, "load_in_4bit": args.load_in_4bit}
    plan = memory_plan(dimensions, lora, train, **how)
    word = fits(plan.sum(), limit)
    batch = largest_batch(dimensions, lora, train, limit, **how)
    steps = plan_training(dimensions, lora, train, [how.pop("tokens")], limit, **how)[1]
    if args.json:
        found = {
            "model": model, "gpu": name, "limit_gib": limit, "dtype": dtype, "predicted_gib": plan.round(3).to_dict(),
            "total_gib": round(plan.sum(), 3), "light": word, "largest_batch": batch,
            "trainable_weights": lora_parameters(dimensions, lora), "savings": json.loads(steps.to_json(orient="records")),
        }  # fmt: skip
        print(json.dumps(found, indent=1))
    else:
        print(
            f"{model} on {name}, {dtype}, {'4' if args.load_in_4bit else '16'} bit; batch {args.batch} of {args.tokens:,} tokens, r={args.r}\n"
        )
        print("\n".join(f"  {part:<16} {readable(gib):>10}" for part, gib in plan.items()))
        print(f"  {'together':<16} {readable(plan.sum()):>10} of {limit:g} GiB, predicted: {word}")
        print(f"\n{lora_parameters(dimensions, lora):,} trainable weights; largest batch with 15 % to spare: {batch or 'none'}")
        if word != "fits":
            print(
                "\nwhat to change first:\n"
                + "\n".join(
                    f"  {r.change}: {r.why}{'' if pd.isna(r.GiB) else f' -> {r.GiB:.2f} GiB, {r.fits}'}"
                    for r in steps.iloc[1:].itertuples()
                )
            )
    return {"fits": 0, "tight": 1, "no": 2}[word]
