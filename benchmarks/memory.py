"""Predicted against measured peak memory of training, for random weights of given shapes, through the real SFTTrainer.

    python benchmarks/memory.py [--sizes small,270m,1b,4b] [--keep FOLDER]

On a GPU: all that the process takes of it (torch.cuda.max_memory_reserved and the CUDA context). Without one: the peak of torch's
CPU allocator. Prints a Markdown table. Checkpoints of random weights are made in FOLDER, 2 bytes a weight (4b: 8 GB of disk).
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from checkpoints import TOKENIZER_FILES
from datasets import disable_progress_bars
from steps import training_peak
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from gemma_colab import describe_machine
from gemma_colab.core.catalog import CATALOG, Dimensions
from gemma_colab.core.loading import load_model, quantization_config
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.workspace import samples
from gemma_colab.model.libraries import quiet_libraries, stack_versions
from gemma_colab.model.memory import memory_plan

GPU = torch.cuda.is_available()
SHAPES = {
    "small": Dimensions(320, 3, 4, 4, 64, 1536, 4096),
    "wide": Dimensions(256, 2, 4, 1, 64, 16_384, 2048),
    **{size: CATALOG[f"google/gemma-3-{size}-it"] for size in ("270m", "1b", "4b", "12b")},
}
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# size, dtype, batch, tokens, checkpointing, 4 bit, LoRA
ON_CPU = [
    ("small", FP32, 4, 256, False, True, {}),
    ("small", BF16, 4, 256, True, True, {}),
    ("small", FP32, 4, 256, False, True, {"use_dora": True}),
    ("wide", FP32, 2, 256, True, True, {}),
    ("wide", BF16, 2, 256, False, True, {}),
    ("wide", FP16, 1, 128, True, True, {}),
    ("wide", BF16, 1, 256, True, False, {}),
    ("wide", BF16, 1, 256, False, True, {"target_modules": "attention"}),
    ("wide", FP32, 1, 256, True, True, {"r": 64}),
    ("wide", BF16, 1, 256, True, True, {"lora_dropout": 0.1}),
    ("wide", BF16, 1, 256, True, True, {"use_dora": True}),
    ("270m", FP32, 1, 256, True, True, {}),
    ("270m", BF16, 2, 256, True, True, {}),
    ("270m", BF16, 1, 256, False, True, {}),
    ("270m", BF16, 1, 256, True, False, {}),
    ("270m", BF16, 2, 1024, True, True, {}),
    ("270m", BF16, 1, 1024, False, True, {}),
    ("1b", FP32, 1, 256, True, True, {}),
    ("1b", BF16, 1, 256, True, True, {}),
    ("1b", BF16, 2, 128, False, True, {}),
    ("1b", BF16, 1, 1024, True, True, {}),
    ("4b", BF16, 1, 128, True, True, {}),
]
ON_GPU = [
    (size, dtype, batch, tokens, checkpointing, four_bit, {})
    for size in ("270m", "1b", "4b", "12b")
    for dtype in (BF16, FP16)
    for batch, tokens, checkpointing, four_bit in (
        (1, 1024, True, True), (4, 1024, True, True), (2, 2048, True, True), (2, 512, False, True), (1, 1024, True, False),
    )
]  # fmt: skip


def random_checkpoint(name: str, folder: Path) -> str:
    """A checkpoint of this shape with random weights and the tokenizer of the tiny Gemma 3, made once."""
    folder, shape = folder / name, SHAPES[name]
    if not (folder / "tokenizer.json").exists():
        fields = {field: getattr(shape, field) for field in Dimensions.__dataclass_fields__}
        torch.set_default_dtype(torch.bfloat16)
        try:
            Gemma3ForCausalLM(Gemma3TextConfig(**fields, query_pre_attn_scalar=256)).save_pretrained(folder)
        finally:
            torch.set_default_dtype(torch.float32)
        for file in TOKENIZER_FILES:
            shutil.copy(samples() / "tiny-gemma3" / file, folder)
    return str(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="small,wide,270m,1b", help="of {}".format(", ".join(SHAPES)))
    parser.add_argument("--keep", type=Path, help="a folder for the checkpoints, kept (default: a temporary one)")
    args = parser.parse_args()
    quiet_libraries()
    disable_progress_bars()
    machine = describe_machine()
    print(
        ", ".join(f"{name} {version}" for name, version in stack_versions().items()),
        "|",
        machine.gpu or f"CPU, {machine.cores} cores",
    )
    print(
        "| shape | dtype | batch x tokens | checkpointing | weights | LoRA | predicted GiB | measured GiB | off by |\n"
        + "| --- " * 9
        + "|"
    )
    worst, start = 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for size, dtype, batch, tokens, checkpointing, four_bit, changes in ON_GPU if GPU else ON_CPU:
            if size not in args.sizes.split(","):
                continue
            lora = LoraSettings(**changes)
            folder = random_checkpoint(size, args.keep or Path(temporary))
            train = TrainSettings(
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=1,
                max_length=tokens,
                gradient_checkpointing=checkpointing,
            )
            nf4 = quantization_config(dtype) if four_bit else None
            found = training_peak(
                load_model(folder, dtype, nf4), dtype, lora, train, tokens
            )  # no name keeps the model for the next case
            plan = memory_plan(SHAPES[size], lora, train, tokens=tokens, dtype=dtype, load_in_4bit=four_bit, gpu=GPU).sum()
            off = plan / found - 1
            worst = max(worst, abs(off))
            said = ", ".join(f"{k}={v}" for k, v in changes.items()) or "r=16"
            print(
                f"| {size} | {str(dtype)[6:]} | {batch} x {tokens} | {'on' if checkpointing else 'off'} | {'4' if four_bit else '16'} bit "
                f"| {said} | {plan:.3f} | {found:.3f} | {off:+.1%} |",
                flush=True,
            )
    print(f"\nworst {worst:.1%}, bar 15 %; {time.monotonic() - start:.0f} s")
    return 0 if worst <= 0.15 else 1


if __name__ == "__main__":
    sys.exit(main())
