"""Machines that are lent for an hour, Colab's and Kaggle's: how to know them, their secrets, and Kaggle's second GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive
KAGGLE = Path("/kaggle/working")  # the only folder there that "Save Version" keeps
HIDDEN = "GEMMA_COLAB_HIDES_GPUS"  # how many GPUs the machine has, where `use_one_gpu` leaves one in sight


def on_colab() -> bool:
    """Whether this runs on a Colab machine, in a cell or in a command."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def on_kaggle() -> bool:
    """Whether this runs on a Kaggle machine, in a cell or in a command."""
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def secret(name: str) -> str | None:
    """From the environment, else from the secrets of Colab or Kaggle; None if it is not there, or this notebook may not see it."""
    if value := os.environ.get(name, "").strip():
        return value
    try:
        if on_kaggle():
            from kaggle_secrets import UserSecretsClient

            return (UserSecretsClient().get_secret(name) or "").strip() or None
        from google.colab import userdata

        return (userdata.get(name) or "").strip() or None
    except Exception:  # neither machine, no such secret, or no access to it: each has errors of its own
        return None


def use_kaggles_token() -> None:
    """Let huggingface_hub find Kaggle's secret HF_TOKEN, as it finds Colab's: it looks into this process's environment only."""
    if on_kaggle() and (token := secret("HF_TOKEN")):
        os.environ["HF_TOKEN"] = token


def driver_gpus() -> int:
    """How many GPUs NVIDIA's driver sees; 0 without one. Machines without a GPU may have `nvidia-smi` too; it then fails."""
    if not shutil.which("nvidia-smi"):
        return 0
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
    elif "CUDA_VISIBLE_DEVICES" not in os.environ and (gpus := driver_gpus()) > 1:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "0", HIDDEN: str(gpus)}


def settle_in(before: dict[str, str]) -> None:
    """What the first cell of a notebook does on Colab and Kaggle once the package is there: say what that changed, and keep the work.

    before: name -> version of what was installed earlier.
    """
    invalidate_caches()
    changed = {d.name: d.version for d in distributions() if before.get(d.name) != d.version}
    if changed:
        lines = [f"{name} {before[name]} -> {new}" if name in before else f"{name} {new}" for name, new in changed.items()]
        print(f"Installed on this machine: {', '.join(sorted(lines, key=str.lower))}. Everything else is as it was.")
    replaced = changed.keys() & before.keys()
    if stale := [m for m, names in packages_distributions().items() if m in sys.modules and replaced & set(names)]:
        print(f"Restart the session now, and run from the top. Still in use are the old versions of: {', '.join(sorted(stale))}.")
    if on_kaggle():
        print(f"Your work is in {KAGGLE}. To keep it, press Save Version at the end.")
        return
    from google.colab import drive

    try:
        drive.mount("/content/drive")
    except Exception as e:  # refused, or no account: Colab raises several kinds
        print(f"No Drive ({e}): the work stays on this machine, and is lost with it.")
