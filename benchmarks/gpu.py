"""What only a GPU can tell: attention kernels, padding, Liger's layers, torch.compile and offloading, each beside a starting point.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 480] [--keep FOLDER] [--dry]

Each recipe trains in a process of its own, so that one that crashes, hangs or runs out of memory costs its own line only. What tells
most comes first; the starting points come again in between and at the end. Results go to FOLDER as they come, the table is printed
last. --dry: on the CPU, with tiny shapes and two steps, where what only a GPU has is left out and named. Needs no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from shutil import which
from statistics import mean

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

# Nothing here may import torch or bitsandbytes: this process must not hold memory of the GPU while the recipes' are measured.
from gemma_colab.core.catalog import PACKAGED, TINY, dimensions_of, source_of
from gemma_colab.model.choice import installed, packaged_here
from gemma_colab.model.libraries import stack_versions

NEEDED = ("torch", "transformers", "peft", "trl", "datasets")
# FlashAttention 2 as its own package, or as the kernel that the package "kernels" fetches from the Hub, offline from a copy.
FLASH_PACKAGE = "flash_attn" if installed("flash_attn") else "kernels"
FLASH = "flash_attention_2" if FLASH_PACKAGE == "flash_attn" else "kernels-community/flash-attn2"
FLEX = "flex_attention"
# What a dry run leaves out, and why.
NOT_DRY = dict.fromkeys((FLASH, FLEX, "use_liger_kernel", "activation_offloading"), "needs CUDA")
NOT_DRY |= {"torch_compile": "takes a CPU minutes"}
SMALLER = 16  # times shorter are the rows of a dry run
LEAST = 20  # seconds that a recipe needs to begin with: imports, and the model
PATIENCE = 20  # seconds of timed steps after which a slow recipe stops


@dataclass(frozen=True)
class Recipe:
    """One line of the table: how it differs from `starting_point` of its model, and beside which line its speed is told.

    model: "1b" with random weights, or the real 270M. rows: least and most tokens of a row. train: changes of `TrainSettings`; sft: of
    `SFTConfig`. needs: packages that must be there. warm: steps before the clock starts. limit: seconds it may take.
    """

    name: str
    beside: str
    model: str = "1b"
    rows: tuple[int, int] = (64, 1024)
    four_bit: bool = False
    dtype: str = "bfloat16"
    attention: str = "sdpa"
    train: dict = field(default_factory=dict)
    sft: dict = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    warm: int = 3
    limit: float = 90


ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}  # as many rows an update as 4 x 2
PADDING_FREE = {"padding_free": True, "max_length": None}  # TRL takes both or none; no row here is longer than max_length
PACKING = {"packing": True}
FLASH_2 = {"attention": FLASH, "needs": (FLASH_PACKAGE,)}
TODAY = Recipe("starting point", "starting point", four_bit=True, needs=("bitsandbytes",))
BASE = Recipe("16 bit", "starting point")
LONG = Recipe("2,048 tokens", "2,048 tokens", rows=(2040, 2048), train={"max_length": 2048})
SHORT = Recipe("to 500 tokens", "to 500 tokens", rows=(64, 500))  # within the 512 tokens that most layers look back
REAL = Recipe("real 270M", "real 270M", model=PACKAGED, limit=180)  # it is unpacked the first time


def like(recipe: Recipe, name: str, **changes) -> Recipe:
    """That recipe with changes, told beside it."""
    return dataclasses.replace(recipe, name=f"{recipe.name}, {name}", beside=recipe.name, **changes)


RECIPES = [
    BASE,
    like(BASE, "unpadded 1 x 8", train=ONE_BY_ONE),
    like(BASE, "flash-attn2, padding_free", sft=PADDING_FREE, **FLASH_2),
    like(BASE, "flash-attn2, packing", train=PACKING, **FLASH_2),
    like(BASE, "packing", train=PACKING),
    like(BASE, "Liger's layers", sft={"use_liger_kernel": True}, needs=("liger_kernel",)),
    TODAY,
    like(TODAY, "unpadded 1 x 8", train=ONE_BY_ONE),
    BASE,
    LONG,
    like(LONG, "unpadded 1 x 8", train=LONG.train | ONE_BY_ONE),
    like(LONG, "flash-attn2, padding_free", sft=PADDING_FREE, **FLASH_2),
    REAL,
    like(REAL, "float16 as on a T4", dtype="float16"),
    like(BASE, "flex attention", attention=FLEX, warm=6),
    like(BASE, "flex attention, packing", attention=FLEX, train=PACKING, warm=6),
    like(BASE, "activation offloading", sft={"activation_offloading": True}),
    SHORT,
    like(SHORT, "unpadded 1 x 8", train=ONE_BY_ONE),
    LONG,
    TODAY,
    BASE,
    REAL,
    # The slowest to begin, so the last one. Rows of one length, since each other length would be compiled anew.
    like(LONG, "torch_compile", sft={"torch_compile": True, "pad_to_multiple_of": 2048}, warm=6, limit=200),
]


def measure(recipe: Recipe, folder: Path, dry: bool) -> dict:
    """Train as the recipe says; returns what was measured. Runs in a process of its own."""
    import torch
    from checkpoints import save_random_gemma
    from datasets import Dataset, disable_progress_bars
    from memory import random_checkpoint
    from steps import emulate_fp16
    from transformers import TrainerCallback

    from gemma_colab.core.chat import load_tokenizer, tokenize_row
    from gemma_colab.core.loading import load_model, quantization_config
    from gemma_colab.core.rows import to_messages
    from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
    from gemma_colab.core.workspace import read_sample
    from gemma_colab.model.choice import starting_point
    from gemma_colab.model.libraries import quiet_libraries
    from gemma_colab.model.measure import model_bytes, peak_memory
    from gemma_colab.model.memory import memory_plan

    quiet_libraries()
    disable_progress_bars()
    gpu, dtype = torch.cuda.is_available(), getattr(torch, recipe.dtype)
    if not (gpu or dry):
        raise RuntimeError("torch finds no GPU")
    lora, train = starting_point(recipe.model)
    train, sft, lengths = train.replace(**recipe.train), dict(recipe.sft), recipe.rows
    warm, steps, left_out = recipe.warm, recipe.warm + 12, {}
    if dry:
        few = min(2, train.gradient_accumulation_steps)
        train = train.replace(max_length=train.max_length // SMALLER, gradient_accumulation_steps=few)
        sft |= {name: value // SMALLER for name, value in sft.items() if name == "pad_to_multiple_of"}
        warm, steps, lengths = 1, 2, [n // SMALLER for n in lengths]
        left_out = {name: why for name, why in NOT_DRY.items() if name in (*sft, recipe.attention)}

    if dry:
        name = str(save_random_gemma(folder / "dry"))
    elif recipe.model == PACKAGED:
        name = source_of(PACKAGED)
    else:
        with torch.device("cuda"):  # a billion random numbers take a CPU half a minute
            name = random_checkpoint(recipe.model, folder)
    if recipe.model == PACKAGED and not dry:
        tokenizer = load_tokenizer(PACKAGED)
        rows = [tokenize_row(to_messages(row), tokenizer) for row in read_sample("tickets_ru")[: steps * train.effective_batch]]
    else:
        tokenizer, rows = load_tokenizer(TINY), random_rows(*lengths, steps * train.effective_batch)

    emulated = dtype == torch.float16 and not gpu
    args = sft_config(train, folder / "trainer", len(rows), torch.float32 if emulated else dtype)
    alone = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True}
    bare = dataclasses.replace(args, max_steps=steps, **alone)
    args = dataclasses.replace(bare, **sft)  # a wrong name is an error, in a dry run too
    if left_out:
        args = dataclasses.replace(bare, **{name: value for name, value in sft.items() if name not in left_out})
    model = load_model(name, dtype, quantization_config(dtype) if recipe.four_bit else None)
    if recipe.attention not in left_out:
        model.set_attn_implementation(recipe.attention)

    class Clock(TrainerCallback):
        def __init__(self):
            self.ends = []  # of each step, in seconds

        def on_step_end(self, args, state, control, **kwargs):
            if gpu:
                torch.cuda.synchronize()
            self.ends.append(time.monotonic())
            if len(self.ends) >= warm + 3 and self.ends[-1] - self.ends[warm - 1] > PATIENCE:
                control.should_training_stop = True

    trainer = build_trainer(model, tokenizer, Dataset.from_list(rows), None, args, lora_config(lora), [clock := Clock()])
    if emulated:
        emulate_fp16(trainer)
    start = time.monotonic()
    with peak_memory(model_bytes(trainer.model)) as peak:
        trainer.train()
    logs, ends = [line for line in trainer.state.log_history if "num_tokens" in line and "loss" in line], clock.ends
    tokens = logs[-1]["num_tokens"] - logs[warm - 1]["num_tokens"]  # padding doesn't count
    scored = sum(label != -100 for row in rows for label in row["labels"]) / sum(len(row["labels"]) for row in rows)
    how = {"tokens": max(len(row["input_ids"]) for row in rows), "dtype": recipe.dtype, "load_in_4bit": recipe.four_bit}
    plan = memory_plan(dimensions_of(name), lora, train, **how, gpu=gpu, scored=scored, overhead_gib=0).sum()
    notes = [f"first {warm} steps {ends[warm - 1] - start:.0f} s"] if ends[warm - 1] - start > 10 else []
    notes += [f"stopped after {len(ends)} of {steps} steps"] if len(ends) < steps else []
    notes += [f"dry: without {name}, which {why}" for name, why in left_out.items()]
    return {
        "model": "tiny" if dry else recipe.model,
        "gpu": torch.cuda.get_device_name() if gpu else "CPU",
        "speed": tokens / (ends[-1] - ends[warm - 1]),
        "peak_gib": peak.gib - peak.overhead_gib,
        "plan_gib": plan,
        "overhead_gib": peak.overhead_gib,
        "loss": mean(line["loss"] for line in logs[-4:]),
        "note": "; ".join(notes),
    }


def random_rows(least: int, most: int, n: int) -> list[dict]:
    """Random ids, the same each time, in lengths evenly spread; the second half of each row is the answer."""
    import numpy as np

    generator = np.random.default_rng(0)
    lengths = generator.permutation(np.linspace(least, most, n).astype(int))
    rows = [generator.integers(110, 2000, length).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]


def child(pipe, recipe: Recipe, folder: Path, dry: bool, log: Path) -> None:
    sys.stdout = sys.stderr = file = log.open("a", buffering=1)  # line by line: this process is killed in the end
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    print(f"--- {recipe.name}")
    try:
        pipe.send(measure(recipe, folder, dry))
    except Exception as e:
        traceback.print_exc()
        first = (str(e).strip().splitlines() or [""])[0].replace("|", "/")[:140]
        pipe.send({"note": f"not run: {type(e).__name__}: {first}"})


def run(recipe: Recipe, folder: Path, dry: bool, log: Path, left: float) -> dict:
    """What `measure` returns, from a fresh process; or why there is nothing to return."""
    if missing := [name for name in recipe.needs if not (installed(name) or (dry and name != "bitsandbytes"))]:
        return {"note": f"not run: {' and '.join(missing)} is not installed"}
    if recipe.model == PACKAGED and not (dry or packaged_here()):
        return {"note": "not run: the package of the real 270M is not installed"}
    if left < (1 if dry else LEAST):
        return {"note": "not run: no time left"}
    # A fork shares what is imported already, which CUDA does not allow.
    context, limit = get_context("fork" if dry else "spawn"), min(left, recipe.limit)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(theirs, recipe, folder, dry, log), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process ends the waiting
    try:
        if ours.poll(limit):
            return ours.recv()
        return {"note": f"not run: not ready after {limit:.0f} s"}
    except EOFError:
        process.join()
        return {"note": f"not run: its process ended with {process.exitcode}"}
    finally:
        process.kill()  # it has nothing more to say
        process.join()


def table(recipes: list[Recipe], results: list[dict]) -> str:
    """One line a recipe. Its speed is told beside the mean of the nearest runs, before and after it, of the line it is compared with."""
    columns = ["recipe", "model", "GPU", "tokens/s", "times as fast", "peak GiB", "predicted", "overhead", "loss", "note"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for i, (recipe, found) in enumerate(zip(recipes, results, strict=False)):
        cells = [recipe.name, found.get("model", recipe.model), found.get("gpu", ""), "", "", "", "", "", "", found["note"]]
        if "speed" in found:
            others = [j for j, r in enumerate(recipes[: len(results)]) if r.name == recipe.beside and "speed" in results[j]]
            near = [j for j in others if j < i][-1:] + [j for j in others if j > i][:1]
            base = [results[j]["speed"] for j in (others[:1] if recipe.name == recipe.beside else near)]
            cells[3:9] = [
                f"{found['speed']:,.0f}",
                f"{found['speed'] / mean(base):.2f} x {recipe.beside}" if base else "",
                *(f"{found[name]:.2f}" for name in ("peak_gib", "plan_gib", "overhead_gib")),
                f"{found['loss']:.3f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """The GPU and its driver, without touching it."""
    if not which("nvidia-smi"):
        return "no nvidia-smi"
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "no GPU"


def main(argv: list[str] | None = None) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the table, the results as they come, and what the recipes print")
    parser.add_argument("--seconds", type=float, default=480, help="for all recipes together")
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints, kept (default: a temporary one)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny, two steps: does every line start?")
    args = parser.parse_args(argv)
    if missing := [name for name in NEEDED if not installed(name)]:
        sys.exit(f"{' and '.join(missing)} must be installed to train; pip install {' '.join(missing)}")
    if args.dry:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        import memory  # noqa: F401  # all that is slow to import, once: each recipe is then a fork of this process

        gc.freeze()
    # Twice the same tells nothing in a dry run.
    recipes = [recipe for i, recipe in enumerate(RECIPES) if not (args.dry and recipe in RECIPES[:i])]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        out, folder = args.out or Path(temporary), args.keep or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for name in ("gpu.jsonl", "gpu.log"):
            (out / name).unlink(missing_ok=True)
        head = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
        head += " | " + ("dry run: CPU, tiny shapes, two steps" if args.dry else machine())
        for recipe in recipes:
            results.append(run(recipe, folder, args.dry, out / "gpu.log", args.seconds - (time.monotonic() - start)))
            with (out / "gpu.jsonl").open("a") as file:
                file.write(json.dumps({"recipe": recipe.name, "model": recipe.model} | results[-1]) + "\n")
            (out / "gpu_table.md").write_text(f"{head}\n\n{table(recipes, results)}\n")
            said = f"{results[-1]['speed']:,.0f} tokens/s" if "speed" in results[-1] else ""
            print(f"{time.monotonic() - start:4.0f} s, {recipe.name}: {said} {results[-1]['note']}", file=sys.stderr, flush=True)
    print(f"{head}\n\n{table(recipes, results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
