"""Machines that are lent for an hour, Colab's and Kaggle's: their secrets, Kaggle's second GPU, and where the work is kept."""

import os
import subprocess
import sys
from contextlib import suppress
from importlib import invalidate_caches
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

import psutil

from gemma_colab.core.errors import say
from gemma_colab.core.machine import GIB, KAGGLE, Machine, free_gib, on_kaggle

# Only the standard library and psutil above: what `settle_in` imports must not look like a library in use before the install.
HIDDEN = "GEMMA_COLAB_HIDES_GPUS"  # set where `use_one_gpu` leaves one in sight


def describe_machine(path: str = ".") -> Machine:
    """Describe this machine (`disk_gib`: free where `path` is), once Kaggle's are settled: one GPU for this process, and the token."""
    use_one_gpu()
    if on_kaggle() and not os.environ.get("HF_TOKEN"):  # huggingface_hub looks into the environment, and asks Colab only
        with suppress(Exception):  # no such secret, or no access to it: Kaggle has errors of its own
            from kaggle_secrets import UserSecretsClient

            os.environ["HF_TOKEN"] = UserSecretsClient().get_secret("HF_TOKEN").strip()
    import torch

    gpu = torch.cuda.is_available()
    free, total = torch.cuda.mem_get_info() if gpu else (None, 0)
    cpu = Path("/proc/cpuinfo")  # of Linux; elsewhere nobody has measured whether bfloat16 would be faster
    flags = cpu.read_text(encoding="utf-8", errors="replace") if cpu.exists() else ""
    return Machine(
        colab="google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ,  # in a cell, or in a command
        gpu=torch.cuda.get_device_name() if gpu else None,
        capability=torch.cuda.get_device_capability() if gpu else None,
        gpu_gib=round(total / GIB, 2),
        ram_gib=round(psutil.virtual_memory().total / GIB, 1),
        disk_gib=round(free_gib(path), 1),
        cores=os.cpu_count() or 1,
        gpu_free_gib=round(free / GIB, 2) if gpu else None,
        gpus=torch.cuda.device_count(),
        cpu_bf16="avx512_bf16" in flags or "amx_bf16" in flags,
    )


def driver_gpus() -> int:
    """Count the GPUs that NVIDIA's driver sees; 0 without one. `nvidia-smi` may be there too, and fail, where no GPU is."""
    try:
        lines = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=3, check=False).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in lines)


def use_one_gpu() -> None:
    """Leave this process the first of several GPUs, as on Kaggle, unless somebody chose. Call it before torch looks for GPUs.

    Else transformers would share each batch out among them, which TRL 1.16 refuses. A process that `accelerate launch` starts
    sees all of them, also where a notebook started it that sees one.
    """
    if "LOCAL_RANK" in os.environ:
        if os.environ.pop(HIDDEN, None):
            del os.environ["CUDA_VISIBLE_DEVICES"]
    elif "CUDA_VISIBLE_DEVICES" not in os.environ and driver_gpus() > 1:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "0", HIDDEN: "1"}


def settle_in(before: dict[str, str]) -> None:
    """Say what the install in a notebook's first cell changed on Colab or Kaggle, and mount Google Drive, which keeps the work.

    before: name -> version of what was installed earlier.
    """
    invalidate_caches()
    changed = {d.name: d.version for d in distributions() if before.get(d.name) != d.version}
    lines = [f"{name} {before[name]} -> {new}" if name in before else f"{name} {new}" for name, new in changed.items()]
    if lines:
        say(f"Installed on this machine: {', '.join(sorted(lines, key=str.lower))}. Everything else is as it was.")
    replaced = changed.keys() & before.keys()
    if stale := [m for m, names in packages_distributions().items() if m in sys.modules and replaced & set(names)]:
        say(f"Restart the session now, and run from the top. Still in use are the old versions of: {', '.join(sorted(stale))}.")
    if on_kaggle():
        say(f"Your work is in {KAGGLE}. To keep it, press Save Version at the end.")
        return
    from google.colab import drive

    try:
        drive.mount("/content/drive")
    except Exception as e:  # refused, or no account: Colab raises several kinds
        say(f"No Drive ({e}): the work stays on this machine, and is lost with it.")
