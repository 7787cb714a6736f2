"""A folder with a merged model, looked over before it is handed to another program."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gemma_colab.errors import ModelError, SettingsError
from gemma_colab.export.stored import Tensor, stored_tensors

KINDS = ("gemma3", "gemma3_text")  # with eyes, and without
TURNS = ("<start_of_turn>", "<end_of_turn>")


def check_merged(merged: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """(config, name -> tensor) of a merged model: whole, in bfloat16 or float32, and with the tokenizer that other programs read.

    Raises `ModelError` that names what is missing or wrong.
    """
    merged = Path(merged)
    if (merged / "adapter_config.json").is_file():
        raise ModelError(f"{merged} is an adapter, not a whole model; merge it into its base first, and name the merged folder")
    config = read_json(merged, "config.json")
    if config.get("model_type") not in KINDS:
        raise ModelError(
            f"{merged} is a {config.get('model_type')!r}, and this project exports Gemma 3 only; name a merged Gemma 3"
        )
    if "quantization_config" in config:
        raise ModelError(
            f"{merged} holds quantised weights, which other programs can't read; merge the adapter into the 16-bit base"
        )
    if "model.safetensors.index.json" in (names := {path.name for path in merged.iterdir()}):
        files = set(read_json(merged, "model.safetensors.index.json").get("weight_map", {}).values())
        if absent := sorted(files - names):
            raise ModelError(f"{merged} is half written: {absent[0]} is missing; delete the folder and merge again")
    elif "model.safetensors" not in names and any(name.startswith("model-00001-of-") for name in names):
        raise ModelError(f"{merged} is half written: model.safetensors.index.json is missing; delete the folder and merge again")
    tensors = stored_tensors(str(merged), merged)
    if half := sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.float16):
        raise ModelError(
            f"{merged} stores {half[0]} in float16, in which Gemma 3 overflows; merge again, which saves in bfloat16"
        )
    if "tokenizer.model" not in names:
        raise ModelError(
            f"tokenizer.model is missing in {merged}, and llama.cpp and Ollama need it; copy it there from the base model"
        )
    added = {token["content"] for token in read_json(merged, "tokenizer.json").get("added_tokens", [])}
    if missing := [token for token in TURNS if token not in added]:
        raise ModelError(
            f"tokenizer.json in {merged} doesn't mark {missing[0]} as a token of its own; copy it from the base model"
        )
    return config, tensors


def read_json(merged: Path, name: str) -> dict:
    """One of its JSON files."""
    try:
        return json.loads((merged / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{merged} is no merged model: {name} is missing; merge the adapter into its base first") from None
    except ValueError:
        raise ModelError(f"{merged} is half written: {name} is not valid JSON; delete the folder and merge again") from None
    except OSError as e:
        raise ModelError(f"{merged / name} can't be read ({e.strerror}); name the folder of a merged model") from None


def refuse_to_overwrite(out: Path, sources: Path, own: str) -> None:
    """`out` is replaced as a whole: so it must be new, empty, or an earlier export, which has a file `own`; and not the source."""
    out, sources = out.absolute().resolve(), sources.absolute().resolve()
    if out == sources or out in sources.parents or sources in out.parents:
        raise SettingsError(f"out={str(out)!r} and the model it is made from, {sources}, lie in one another; name another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / own).is_file():
        raise SettingsError(f"out={str(out)!r} holds other files, which would be lost; name a new folder")
