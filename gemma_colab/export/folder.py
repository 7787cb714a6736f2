"""A folder with a merged model, looked over before it is handed to another program."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import GenerationConfig

from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.export.stored import Tensor, stored_tensors

KINDS = ("gemma3", "gemma3_text")  # with eyes, and without
TURNS = ("<start_of_turn>", "<end_of_turn>")
SAMPLING = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}  # Google's for Gemma 3
STOPS = {"<end_of_turn>": 106, "<eos>": 1}  # ids: the same in every Gemma 3


def check_weights(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """(config, name -> tensor) of a merged model whose weights are whole, in bfloat16 or float32.

    Raises `ModelError` that names what is missing or wrong.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} is an adapter, not a whole model; merge it into its base first, and name the merged folder")
    config = read_json(folder, "config.json")
    if config.get("model_type") not in KINDS:
        raise ModelError(
            f"{folder} is a {config.get('model_type')!r}, and this project exports Gemma 3 only; name a merged Gemma 3"
        )
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} holds quantised weights, which other programs can't read; merge the adapter into the 16-bit base"
        )
    again = "delete the folder and merge again"
    names = {path.name for path in folder.iterdir()}
    if "model.safetensors.index.json" in names:
        listed = read_json(folder, "model.safetensors.index.json").get("weight_map", {})
        if absent := sorted(set(listed.values()) - names):
            raise ModelError(f"{folder} is half written: {absent[0]} is missing; {again}")
    elif "model.safetensors" not in names:
        absent = "model.safetensors" + (".index.json" if any(name.startswith("model-00001-of-") for name in names) else "")
        raise ModelError(f"{folder} is half written: {absent} is missing; {again}")
    tensors = stored_tensors(str(folder), folder)
    if half := sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.float16):
        raise ModelError(
            f"{folder} stores {half[0]} in float16, in which Gemma 3 overflows; merge again, which saves in bfloat16"
        )
    return config, tensors


def check_merged(merged: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """The same, of one that also has the tokenizer which llama.cpp and Ollama read."""
    merged = Path(merged)
    config, tensors = check_weights(merged)
    if not (merged / "tokenizer.model").is_file():
        raise ModelError(
            f"tokenizer.model is missing in {merged}, and llama.cpp and Ollama need it; copy it there from the base model"
        )
    added = {token["content"] for token in read_json(merged, "tokenizer.json").get("added_tokens", [])}
    if missing := [token for token in TURNS if token not in added]:
        raise ModelError(
            f"tokenizer.json in {merged} doesn't mark {missing[0]} as a token of its own; copy it from the base model"
        )
    return config, tensors


def missing_stops(merged: str | Path) -> list[str]:
    """Which of Gemma's two stop tokens generation_config.json lacks: by default plain transformers ends an answer at those it names."""
    try:
        named = GenerationConfig.from_pretrained(merged).eos_token_id
    except OSError:  # there is none, and transformers then asks config.json
        named = read_json(Path(merged), "config.json").get("eos_token_id")
    named = named if isinstance(named, list) else [named]
    return [token for token, number in STOPS.items() if number not in named]


def with_added_tokens(folder: Path) -> dict:
    """Its tokenizer_config.json, with the list of special tokens, which transformers 5 keeps in tokenizer.json only.

    tokenizer.model doesn't say which they are. Without this list llama.cpp's converter cuts <start_of_turn> into letters, silently,
    and the model talks nonsense: the tiny one answered 45 of 120 questions as it should.
    """
    added = read_json(folder, "tokenizer.json")["added_tokens"]
    listed = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
    return read_json(folder, "tokenizer_config.json") | {"added_tokens_decoder": listed}


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
