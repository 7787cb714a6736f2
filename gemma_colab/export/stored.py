"""A base model as it lies on disk, in 16 or 32 bit: its files, its tensors one at a time, and whether they suffice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, is_offline_mode, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from gemma_colab.core.catalog import known_shape, refuse_other_models, source_of
from gemma_colab.core.errors import ModelError
from gemma_colab.core.hub import explain, from_hub
from gemma_colab.core.machine import GIB, free_gib

FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# How a checkpoint that sees images names its text part: as on the Hub, and as transformers 5 may save it.
TEXT_PART = re.compile(r"^(?:language_model\.model|model\.language_model)\.")
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies, and what it is."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, in a mapping of its own: opened once for all, a file would fill the memory as its tensors are read."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def config_of(base: str) -> PretrainedConfig:
    """The config of a base that weights can be merged into. Raises `ModelError` if it can't be had, is no Gemma 3, or is quantised."""
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ModelError(f"the base {base} is no longer there; put that folder back, it holds the 16-bit weights to merge into")
    config = from_hub(AutoConfig, base, source_of(base))
    refuse_other_models(base, config.model_type)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{base} is stored quantised, and merging into rounded weights would round them again; name the 16-bit checkpoint it "
            "was made from, such as google/gemma-3-1b-it"
        )
    return config


def sees_images(base: str) -> bool:
    """Whether the base is a multimodal one, of 4B and more; of Google's own this is known without the network."""
    if shape := known_shape(source_of(base)):
        return shape.vocab_size > 262_144  # these have 64 tokens more
    return from_hub(AutoConfig, base, source_of(base)).model_type == "gemma3"


def base_folder(base: str) -> Path:
    """The folder of the base's files, downloaded if they are not in the cache; that there is room for it is checked before.

    The weights a 4-bit model was made from are in the cache already, where it was loaded on this machine.
    """
    source = source_of(base)
    if Path(source).is_dir():
        return Path(source)
    where = {"allow_patterns": FILES, "local_files_only": is_offline_mode()}
    try:
        if not is_offline_mode():
            _refuse_full_disk(base, snapshot_download(source, dry_run=True, **where))
        return Path(snapshot_download(source, **where))
    except ModelError:
        raise
    except Exception as e:  # several libraries may raise here
        error = e
    raise ModelError("; ".join(filter(None, explain(base, error))))


def _refuse_full_disk(base: str, files: list) -> None:
    need = sum(file.file_size or 0 for file in files if file.will_download) / GIB
    free = free_gib(constants.HF_HUB_CACHE)
    if need and free < need + 0.5:
        raise ModelError(
            f"the 16-bit weights of {base} take {need:.1f} GiB more, and {free:.1f} GiB are free in {constants.HF_HUB_CACHE}; make "
            "room there (`hf cache ls` lists what it holds), or set HF_HOME to a folder on a larger disk and restart"
        )


def stored_tensors(base: str, folder: Path) -> dict[str, Tensor]:
    """Name in the checkpoint -> tensor, read from the heads of its files. Raises `ModelError` where a file is not whole."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{base} has no weights in the safetensors format in {folder}; download it again, or save it in that format"
        )
    found = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - the file is no dict
                    view = file.get_slice(name)
                    if view.get_dtype() not in DTYPES:
                        raise ModelError(
                            f"{base} stores {name} as {view.get_dtype()}; merging needs its 16-bit or 32-bit checkpoint"
                        )
                    found[name] = Tensor(path, name, tuple(view.get_shape()), DTYPES[view.get_dtype()])
        except SafetensorError as e:
            raise ModelError(f"{path} is not whole ({e}); delete it and download or save {base} again") from None
    return found


def text_name(name: str) -> str | None:
    """What `Gemma3ForCausalLM` calls a tensor of a checkpoint; None for one of the vision part."""
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", TEXT_PART.sub("model.", name))
    return name if re.match(r"model\.(embed_tokens|layers|norm)\.|lm_head\.", name) else None
