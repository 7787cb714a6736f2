"""Checkpoints on disk, tensor by tensor: the 16-bit base that is merged into, and the merged model; and whether they are whole."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, is_offline_mode, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from gemma_colab.core.catalog import from_hub, known_dimensions, refuse_other_models, source_of
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.model.hub import explain

FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
INDEX = "model.safetensors.index.json"  # says which shard holds which tensor
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
# How a multimodal checkpoint names its text part: as on the Hub, and as transformers 5 may save it.
TEXT_PART = re.compile(r"^(?:language_model\.model|model\.language_model)\.")
STOPS = {"<end_of_turn>": 106, "<eos>": 1}  # ids: the same in every Gemma 3
SAMPLING = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}  # Google's for Gemma 3


@dataclass(frozen=True)
class Tensor:
    """Where one tensor is stored, and what it is."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def read(self) -> torch.Tensor:
        """Read the tensor, in a mapping of its own: one mapping for all would fill the memory as tensors are read."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def is_hub_id(name: str) -> bool:
    """Whether a base is named by its id on the Hub, and not by a folder of this machine."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def stored_tensors(name: str, folder: Path) -> dict[str, Tensor]:
    """Find all tensors of a checkpoint, by name, from the headers of its files. Raises `ModelError` where a file is not whole."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{name} has no weights in the safetensors format in {folder}; download it again, or save it so")
    found = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - the file is no dict
                    view = file.get_slice(key)
                    if view.get_dtype() not in DTYPES:
                        raise ModelError(f"{name} stores {key} as {view.get_dtype()}; take its 16-bit or 32-bit checkpoint")
                    found[key] = Tensor(path, key, tuple(view.get_shape()), DTYPES[view.get_dtype()])
        except SafetensorError as e:
            raise ModelError(f"{path} is not whole ({e}); delete it and download or save {name} again") from None
    return found


def text_name(name: str) -> str | None:
    """Return what `Gemma3ForCausalLM` calls a tensor of a checkpoint; None for one of the vision part."""
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", TEXT_PART.sub("model.", name))
    return name if re.match(r"model\.(embed_tokens|layers|norm)\.|lm_head\.", name) else None


# --------------------------------------------------------------------------------------------- the base
def config_of(base: str) -> PretrainedConfig:
    """Load the config of a base to merge into. Raises `ModelError` if it can't be had, is no Gemma 3, or is quantized."""
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ModelError(f"the base {base} is no longer there; put that folder back, it holds the weights to merge into")
    config = from_hub(AutoConfig, base, source_of(base))
    refuse_other_models(base, config.model_type)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{base} is stored quantized; name the 16-bit checkpoint it was made from, such as google/gemma-3-1b-it")
    return config


def is_multimodal(base: str) -> bool:
    """Whether the base sees images, as those of 4B and more do; known without the network for Google's own."""
    if known := known_dimensions(source_of(base)):
        return known.vocab_size > 262_144  # these have 64 tokens more
    return from_hub(AutoConfig, base, source_of(base)).model_type == "gemma3"


def base_folder(base: str) -> Path:
    """Return the folder of the base's files, downloaded if they are not in the cache; whether there is room is checked before.

    The weights a 4-bit model was quantized from are in the cache already, where it was loaded on this machine.
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
    need, free = sum(file.file_size or 0 for file in files if file.will_download) / GIB, free_gib(constants.HF_HUB_CACHE)
    if need and free < need + 0.5:
        short = f"{base} take {need:.1f} GiB more, and {free:.1f} GiB are free in {constants.HF_HUB_CACHE}"
        room = "make room there (`hf cache ls` lists what it holds), or set HF_HOME to a folder on a larger disk and restart"
        raise ModelError(f"the 16-bit weights of {short}; {room}")


# --------------------------------------------------------------------------------------------- the merged model
def check_merged(merged: str | Path, llama_cpp: bool = True) -> tuple[dict, dict[str, Tensor]]:
    """Return config and tensors of a merged model that is whole, in bfloat16 or float32.

    llama_cpp: whether it must have the tokenizer that llama.cpp and Ollama read. Raises `ModelError` that names what is wrong.
    """
    merged, again = Path(merged), "delete the folder and merge again"
    if (merged / "adapter_config.json").is_file():
        raise ModelError(f"{merged} is an adapter, not a whole model; merge it into its base first, and name the merged folder")
    config = read_json(merged, "config.json")
    refuse_other_models(str(merged), config.get("model_type", "?"))
    if "quantization_config" in config:
        raise ModelError(f"{merged} holds quantized weights, which other programs can't read; merge into the 16-bit base")
    names = {path.name for path in merged.iterdir()}
    sharded = any(name.startswith("model-00001-of-") for name in names)
    needed = {INDEX} if sharded else {"model.safetensors"}
    if INDEX in names:
        needed = set(read_json(merged, INDEX).get("weight_map", {}).values())
    if absent := sorted(needed - names):
        raise ModelError(f"{merged} is half written: {absent[0]} is missing; {again}")
    tensors = stored_tensors(str(merged), merged)
    if half := sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.float16):
        raise ModelError(f"{merged} stores {half[0]} in float16, in which Gemma 3 overflows; merge again, in bfloat16")
    if llama_cpp:
        if "tokenizer.model" not in names:
            raise ModelError(
                f"tokenizer.model is missing in {merged}, and llama.cpp and Ollama need it; copy it from the base model"
            )
        added = {token["content"] for token in read_json(merged, "tokenizer.json").get("added_tokens", [])}
        if absent := [token for token in ("<start_of_turn>", "<end_of_turn>") if token not in added]:
            raise ModelError(f"tokenizer.json in {merged} doesn't mark {absent[0]} as a token; copy it from the base model")
    return config, tensors


def missing_stops(merged: Path) -> list[str]:
    """Return which of Gemma's two stop tokens generation_config.json lacks: plain transformers ends an answer at those it names."""
    try:
        named = GenerationConfig.from_pretrained(merged).eos_token_id
    except OSError:  # there is none, and transformers then asks config.json
        named = read_json(merged, "config.json").get("eos_token_id")
    named = named if isinstance(named, list) else [named]
    return [token for token, number in STOPS.items() if number not in named]


def with_added_tokens(folder: Path) -> dict:
    """Return tokenizer_config.json with the list of special tokens, which transformers 5 keeps in tokenizer.json only.

    tokenizer.model doesn't say which they are. Without this list llama.cpp's converter cuts <start_of_turn> into letters, silently,
    and the model talks nonsense: the tiny one answered 45 of 120 questions as it should.
    """
    added = read_json(folder, "tokenizer.json")["added_tokens"]
    listed = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    return read_json(folder, "tokenizer_config.json") | {"added_tokens_decoder": listed}


def read_json(merged: Path, name: str) -> dict:
    """Read one of the JSON files of a merged model."""
    try:
        return json.loads((merged / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{merged} is no merged model: {name} is missing; merge the adapter into its base first") from None
    except ValueError:
        raise ModelError(f"{merged} is half written: {name} is not valid JSON; delete the folder and merge again") from None


def refuse_to_overwrite(out: Path, source: Path, own: str) -> None:
    """Raise `SettingsError` unless `out` is new, empty, or an earlier export (with a file `own`), and neither in `source` nor around it."""
    out, source = out.absolute().resolve(), source.absolute().resolve()
    if out == source or out in source.parents or source in out.parents:
        raise SettingsError(f"out={str(out)!r} and the model it is made from, {source}, lie in one another; name another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / own).is_file():
        raise SettingsError(f"out={str(out)!r} holds other files, which would be lost; name a new folder")
