"""What machine this is, and which precision Gemma 3 can be trained in on it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from gemma_colab.core.catalog import Dimensions

GIB = 2**30
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive
KAGGLE = Path("/kaggle/working")  # the only folder there that "Save Version" keeps
LARGE = 50_000_000  # weights in linear layers from which bfloat16 is worth it on a CPU: 270M has twice as many


@dataclass(frozen=True)
class Machine:
    """One machine. Memory and disk in GiB; no GPU: None."""

    colab: bool
    gpu: str | None
    capability: tuple[int, int] | None  # as CUDA counts it, (7, 5) for a T4
    gpu_gib: float  # what torch can use of the first GPU were it alone
    ram_gib: float
    disk_gib: float
    cores: int
    gpu_free_gib: float | None = None  # what others leave of `gpu_gib` now
    gpus: int = 1  # that this process sees
    cpu_bf16: bool = False  # whether the processor multiplies bfloat16 itself


def existing(path: str | Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    path = Path(path).expanduser().resolve()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def free_gib(path: str | Path) -> float:
    """GiB that are free where `path` is, or would be."""
    return shutil.disk_usage(existing(path)).free / GIB


def on_kaggle() -> bool:
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def dtype_name(machine: Machine, dimensions: Dimensions | None = None) -> tuple[str, str]:
    """The name of the torch dtype to compute in, and why. Needs no torch.

    On a CPU the model's dimensions count: 270M takes two thirds of the time in bfloat16, and its loss before training is the same to
    0.1 % (benchmarks/README.md). On a GPU, `torch.cuda.is_bf16_supported()` also says True where bf16 is only emulated.
    """
    if machine.capability is None:
        if machine.cpu_bf16 and dimensions is not None and dimensions.linear_parameters >= LARGE:
            return "bfloat16", "no GPU, and this CPU has bf16 instructions, which are faster for a model of this size"
        return "float32", "no GPU: a CPU computes Gemma 3 safely in float32"
    gpu = f"{machine.gpu} (capability {'.'.join(map(str, machine.capability))})"
    if machine.capability >= (8, 0):
        return "bfloat16", f"{gpu} has bf16 tensor cores"
    if machine.capability < (7, 0):
        return "float16", f"{gpu} is too old for tensor cores: this will be slow, and newer torch may refuse it"
    overflow = "Gemma 3 overflows in plain float16, so its residual stream is kept in float32"
    return "float16", f"{gpu} has fp16 tensor cores only; {overflow}"


def pick_dtype(machine: Machine, dimensions: Dimensions | None = None) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why; see `dtype_name`."""
    import torch

    name, why = dtype_name(machine, dimensions)
    return getattr(torch, name), why
