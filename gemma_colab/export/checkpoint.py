"""Checkpoints on disk, tensor by tensor: the 16-bit base that is merged into, and the merged model; and whether they are whole."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import is_offline_mode, snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, Gemma3ForCausalLM, PretrainedConfig

from gemma_colab.core.catalog import from_hub, refuse_other_models, source_of
from gemma_colab.core.errors import ModelError
from gemma_colab.model.hub import explain, refuse_links, weights_of

FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
SAMPLING = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}  # Google's for Gemma 3


class Stored(NamedTuple):
    """A tensor in a file. like: an empty one of its shape and dtype."""

    file: Path
    name: str
    like: torch.Tensor

    def read(self) -> torch.Tensor:
        """Read the tensor, in a mapping of its own: one mapping for all would fill the memory as tensors are read."""
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.name)


def stored_tensors(name: str, folder: Path, config: PretrainedConfig) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Find all tensors of a checkpoint, by name, from the headers of its files; and those of its text model, by `text_name`. What lies
    beside, and transformers doesn't load, is left alone: `model.safetensors` comes before an index, and this names its files.

    Raises `ModelError` where a file is not whole, or a tensor of the text model is absent or not of its shape.
    """
    files, found = weights_of(name, folder), {}
    if not files:
        raise ModelError(f"{name} has no weights in the safetensors format in {folder}; download it again, or save it so")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - the file is no dict
                    if key in found:
                        raise ModelError(f"{name} has {key} in {found[key].file.name} and {path.name}; take a sound checkpoint")
                    view = file.get_slice(key)
                    found[key] = Stored(path, key, torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta"))
        except (OSError, SafetensorError, KeyError) as e:
            whole = f"{path} is not whole, or not in 16 or 32 bit ({e})"
            raise ModelError(f"{whole}; delete it and download or save {name} again") from None
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config.get_text_config())
    wanted = {key: parameter.shape for key, parameter in model.named_parameters()}  # a tied head is not among them
    mine = {text_name(key): tensor for key, tensor in found.items()}
    if wrong := sorted(key for key, shape in wanted.items() if key not in mine or mine[key].like.shape != shape):
        raise ModelError(f"{name} lacks {len(wrong)} of its weights in their shape, such as {wrong[0]}; take a whole checkpoint")
    return found, {key: mine[key] for key in wanted}


def text_name(name: str) -> str | None:
    """Return what `Gemma3ForCausalLM` calls a tensor of a checkpoint; None for one of the vision part."""
    # as on the Hub, and as transformers 5 may save it
    name = re.sub(r"^(language_model\.model|model\.language_model)\.", "model.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return name if re.match(r"model\.(embed_tokens|layers|norm)\.|lm_head\.", name) else None


def config_of(name: str) -> PretrainedConfig:
    """Load the config of a base or of a merged model. Raises `ModelError` if it can't be had, is no Gemma 3, or is quantized."""
    config = from_hub(AutoConfig, name, source_of(name))
    refuse_other_models(name, config.model_type)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name} is stored quantized; name the 16-bit checkpoint it was made from, such as google/gemma-3-1b-it")
    return config


def base_folder(base: str) -> Path:
    """Return the folder of the base's files, downloaded if they are not in the cache: they are where its 4-bit form was loaded."""
    source = source_of(base)
    if Path(source).is_dir():
        return Path(source)
    try:
        folder = Path(snapshot_download(source, allow_patterns=FILES, local_files_only=is_offline_mode()))
    except Exception as e:  # several libraries may raise here
        raise ModelError("; ".join(filter(None, explain(base, e)))) from None
    refuse_links(folder)
    return folder


def check_merged(merged: str | Path, llama_cpp: bool = True) -> tuple[PretrainedConfig, dict[str, Stored]]:
    """Return config and text tensors of a merged model that is whole, in bfloat16 or float32.

    llama_cpp: whether it must have the tokenizer that llama.cpp and Ollama read. Raises `ModelError` that names what is wrong.
    """
    merged = Path(merged).absolute()
    config = config_of(str(merged))
    _, tensors = stored_tensors(str(merged), merged, config)
    if half := next((name for name, tensor in tensors.items() if tensor.like.dtype == torch.float16), None):
        raise ModelError(f"{merged} stores {half} in float16, in which Gemma 3 overflows; merge again, in bfloat16")
    if llama_cpp and not (merged / "tokenizer.model").is_file():
        raise ModelError(f"tokenizer.model is missing in {merged}, and llama.cpp and Ollama need it; copy it from the base model")
    return config, tensors


def with_added_tokens(folder: Path) -> str:
    """Return tokenizer_config.json with the list of special tokens, which transformers 5 keeps in tokenizer.json only.

    tokenizer.model doesn't say which they are. Without this list llama.cpp's converter cuts <start_of_turn> into letters, silently,
    and the model talks nonsense: the tiny one answered 45 of 120 questions as it should.
    """
    try:
        tokenizer, settings = (json.loads((folder / f"tokenizer{name}.json").read_text("utf-8")) for name in ("", "_config"))
        added = {str(token.pop("id")): token for token in tokenizer["added_tokens"]}
        return json.dumps(settings | {"added_tokens_decoder": added}, ensure_ascii=False, indent=2) + "\n"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        files = f"tokenizer.json and tokenizer_config.json in {folder} can't be read ({e})"
        raise ModelError(f"{files}; copy them from the base model") from None
