"""`gemma-colab doctor` and `plan`: what this machine is, and what will fit, before anything is downloaded."""

from __future__ import annotations

import argparse
import json

from gemma_colab import preflight
from gemma_colab.model import LoraSettings, dimensions_of, memory_plan, plan_training
from gemma_colab.training import TrainSettings


def add_commands(commands) -> None:
    """Declare both commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    doctor = commands.add_parser("doctor", help="what this machine is, what is missing, and the next step to take")
    doctor.set_defaults(run=_doctor)
    doctor.add_argument("model", nargs="?", help="also: may this model be downloaded, and is there room for it")
    doctor.add_argument("--workspace", default=".", metavar="DIR", help="also: is there room for the work (default: here)")
    doctor.add_argument("--json", action="store_true", help="the checks as JSON")

    plan = commands.add_parser("plan", help="how much GPU memory training will take, before anything is downloaded")
    plan.set_defaults(run=_plan)
    option, start = plan.add_argument, TrainSettings()
    option("model", help="such as gemma-3-4b-it, tiny-gemma3, a Hub id or a folder")
    option("--gpu", default="T4", metavar="GPU", help="T4, L4, A100, or its memory in GiB (default %(default)s)")
    option("--tokens", type=int, default=1024, metavar="N", help="length of the longest row (default %(default)s)")
    option(
        "--batch",
        type=int,
        default=start.per_device_train_batch_size,
        metavar="N",
        help="rows computed at once (default %(default)s)",
    )
    option("--r", type=int, default=LoraSettings().r, metavar="N", help="rank of LoRA (default %(default)s)")
    option("--16bit", dest="load_in_4bit", action="store_false", help="keep the weights in 16 bit")
    option("--no-checkpointing", dest="gradient_checkpointing", action="store_false", help="keep all activations")
    option("--json", action="store_true", help="the plan as JSON")


def _doctor(args: argparse.Namespace) -> int:
    checks = preflight(args.model, args.workspace)
    print(json.dumps(checks.to_dict(), ensure_ascii=False, indent=1) if args.json else checks)
    return {"ok": 0, "warn": 1, "fail": 2}[checks.status]


def _plan(args: argparse.Namespace) -> int:
    dimensions, lora = dimensions_of(args.model), LoraSettings(r=args.r, lora_alpha=args.r)
    train = TrainSettings(
        per_device_train_batch_size=args.batch, max_length=args.tokens, gradient_checkpointing=args.gradient_checkpointing
    )

    def steps_of(train: TrainSettings):
        return plan_training(dimensions, lora, train, [args.tokens], args.gpu, load_in_4bit=args.load_in_4bit)[1]

    steps = steps_of(train)
    word, limit, dtype = steps["fits"][0], steps.attrs["limit_gib"], steps.attrs["dtype"]
    plan = memory_plan(dimensions, lora, train, tokens=args.tokens, dtype=dtype, load_in_4bit=args.load_in_4bit)
    batches = (n for n in (64, 32, 16, 8, 4, 2, 1) if steps_of(train.replace(per_device_train_batch_size=n))["fits"][0] == "fits")
    batch, layers = next(batches, 0), dimensions.linear_layers.values()
    weights = sum(lora.r * (i + o) for i, o in layers) * dimensions.num_hidden_layers  # of LoRA, on all linear layers
    found = {
        "model": args.model, "gpu": steps.attrs["gpu"], "limit_gib": limit, "dtype": dtype, "predicted_gib": plan.round(3).to_dict(),
        "total_gib": round(plan.sum(), 3), "light": word, "largest_batch": batch, "trainable_weights": weights,
        "savings": json.loads(steps.to_json(orient="records")),
    }  # fmt: skip
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        _show(args, found)
    return {"fits": 0, "tight": 1, "no": 2}[word]


def _show(args: argparse.Namespace, found: dict) -> None:
    bits = "4" if args.load_in_4bit else "16"
    print(
        f"{args.model} on {found['gpu']}, {found['dtype']}, {bits} bit; batch {args.batch} of {args.tokens:,} tokens, r={args.r}\n"
    )
    for part, gib in {**found["predicted_gib"], "together": found["total_gib"]}.items():
        print(f"  {part:<16} {gib:>8.2f} GiB")
    print(f"  of {found['limit_gib']:g} GiB, predicted: {found['light']}\n")
    batch = found["largest_batch"] or "none"
    print(f"{found['trainable_weights']:,} trainable weights; largest batch with 15 % to spare: {batch}")
    if found["light"] != "fits":
        print("\nwhat to change first:")
        for step in found["savings"][1:]:
            print(f"  {step['change']}: {step['why']}" + (f" -> {step['GiB']:.2f} GiB, {step['fits']}" if step["GiB"] else ""))
