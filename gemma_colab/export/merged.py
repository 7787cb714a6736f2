"""Merge an adapter into its 16-bit base, tensor by tensor, without ever holding the model in memory.

Never into 4 bit, whose steps are coarser than what an adapter changes; and never saved in float16, in which Gemma 3 overflows.
The sums are those of peft, in float32, to the last digit.
"""

import ctypes
import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

import psutil
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import Gemma3ForCausalLM, GenerationConfig, PretrainedConfig

from gemma_colab.core.catalog import source_of
from gemma_colab.core.chat import load_tokenizer, stop_token_ids
from gemma_colab.core.errors import ModelError, WorkspaceError, say
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.export.adapter import WEIGHTS, check_adapter
from gemma_colab.export.checkpoint import SAMPLING, Stored, base_folder, config_of, stored_tensors, text_name, with_added_tokens
from gemma_colab.export.folders import BELONGS, VISION_FILES, refuse_overlap, refuse_strangers
from gemma_colab.model.choice import is_hub_id
from gemma_colab.model.memory import readable

SMALLEST_SHARD = 2**28  # bytes; a shard is as large as the largest tensor, which sets the peak anyway, but no smaller than this
# What peft calls its tensors in a layer of a block; the last one of DoRA only. A head that is also the embedding can't take a change.
LORA_TENSOR = re.compile(r"base_model\.model\.(.+\.layers\..+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")


def merge(base: str, adapter: str | Path, out: str | Path, *, text_only=True, max_shard_bytes: int | None = None) -> float:
    """Write base + adapter to the folder `out` as a checkpoint of plain transformers; return the memory it takes at its peak, in GiB.

    base: a Hub id or a folder, in 16 or 32 bit; saved in bfloat16, or in float32 if it is stored so. adapter: a folder with LoRA,
    rsLoRA or DoRA. text_only: of a multimodal base, write the text part, as `Gemma3ForCausalLM`: nothing else was trained, it is
    0.8 GB smaller, and every program that reads Gemma 3 reads it. False keeps the whole model and the base's names.
    Raises `ModelError`, `SettingsError` or `WorkspaceError` before anything is written if the adapter is not whole or of another base,
    if the base can't be had, if `out` is, holds or lies in one of the two, or holds what no merge writes, or if memory or disk don't
    suffice. Write to a folder of `Workspace.writing`, which removes what is half done.
    """
    out, adapter = Path(out), Path(adapter)
    check_adapter(adapter)
    settings, config = LoraConfig.from_pretrained(adapter), config_of(base)
    trained_on, wanted = settings.base_model_name_or_path or "", source_of(base)
    # By name: an adapter of -it fits -pt by its shapes, and talks nonsense there.
    if is_hub_id(trained_on) and is_hub_id(wanted) and trained_on != wanted:
        raise WorkspaceError(f"{adapter} was trained on {trained_on}, not on {wanted}; name {trained_on} as the base")
    folder = base_folder(base)
    stored, plan = stored_tensors(base, folder, config)
    refuse_overlap(out, folder, adapter, adapter / WEIGHTS, *{tensor.file for tensor in stored.values()})  # weights may be links
    refuse_strangers(out, BELONGS["merged"])
    changes = _changes(base, adapter, settings, plan)
    sees = config.model_type == "gemma3"  # gemma3_text sees no images
    if sees and text_only:
        config = config.get_text_config()
        config.architectures = [Gemma3ForCausalLM.__name__]
    elif sees:
        plan = stored
    # Never float16, whatever the base has.
    config.dtype = torch.float32 if all(tensor.like.dtype == torch.float32 for tensor in stored.values()) else torch.bfloat16
    written = {name: tensor.like.to(config.dtype) for name, tensor in plan.items()}
    largest = max(SMALLEST_SHARD, *(tensor.nbytes for tensor in written.values()))
    shards = split_torch_state_dict_into_shards(written, max_shard_size=max_shard_bytes or largest)
    memory = _peak(plan, written, shards.filename_to_tensors.values(), changes)
    disk = (sum(tensor.nbytes for tensor in written.values()) + 32 * 2**20) / GIB  # with the tokenizer
    needs = f"merging takes {readable(memory)} of memory and {readable(disk)} on the disk"
    room = "make room there, or name a workspace on a larger disk"
    if (free := psutil.virtual_memory().available / GIB) < memory:
        remedy = "close other notebooks, or delete the model you have loaded"
        raise ModelError(f"{needs}, and {readable(free)} of memory is free; {remedy}")
    if (free := free_gib(out)) < disk:
        raise ModelError(f"{needs}, and {readable(free)} is free in {out.parent}; {room}")
    say(needs)
    try:
        _save_the_rest(base, folder, config, out)  # first: what is wrong with small files shows at once
        _give_back_memory()
        for file, names in tqdm(shards.filename_to_tensors.items(), desc="merging", unit=" files", leave=False):
            shard = {name: _merged(plan[name], changes.get(text_name(plan[name].name)), settings, config.dtype) for name in names}
            save_file(shard, out / file, metadata={"format": "pt"})
            del shard  # before the next: one file's worth is in memory
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as e:  # the disk, which others fill too
        raise WorkspaceError(f"{out.parent} can't be written ({str(e)[:120]}); {room}") from None
    return memory


def _changes(base: str, adapter: Path, settings: LoraConfig, text: dict[str, Stored]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the adapter's tensors, by weight and kind. Raises `WorkspaceError` unless they are pairs that fit weights of this base."""
    changes = defaultdict(dict)
    # others change the base too, or scale each layer by itself
    other = settings.alpha_pattern or settings.alora_invocation_tokens
    for name, tensor in load_file(adapter / WEIGHTS).items():
        found = LORA_TENSOR.fullmatch(name)
        weight = text_name(f"{found[1]}.weight") if found else None
        if weight is None or other:
            more = f"changes more than linear layers of the text model by LoRA, rsLoRA or DoRA, such as {name}"
            raise WorkspaceError(f"{adapter} {more}; merge it with peft's merge_and_unload")
        changes[weight][found[2]] = tensor.float()
    kinds = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if settings.use_dora else set())
    for weight, change in changes.items():
        shapes = tuple(tuple(change[kind].shape) for kind in sorted(change))  # of A, of B and, with DoRA, of the lengths
        mine, rank = shapes if change.keys() == kinds else f"only {', '.join(change)}", shapes[0][:1]
        its = tuple(text[weight].like.shape) if weight in text else "absent"
        if its == "absent" or rank == (0,) or mine != (rank + its[1:], its[:1] + rank, its[:1])[: len(kinds)]:
            wrong = f"{weight} is {mine} in the adapter, {its} in the base"
            raise WorkspaceError(f"{adapter} doesn't fit {base} ({wrong}); merge it into the base it was trained on")
    return changes


def _peak(plan: dict[str, Stored], written: dict[str, torch.Tensor], shards, changes: dict) -> float:
    """Return the memory that merging takes at its peak, in GiB, beside what this program holds already."""
    shard = max(sum(written[name].nbytes for name in names) for names in shards)
    # Beside them a tensor that is read and changes its type; or a weight in float32, as read and with its change, alone and scaled.
    read = max((like.nbytes for name, (_, _, like) in plan.items() if like.dtype != written[name].dtype), default=0)
    layer = max(4 * 4 * len(change["lora_B"]) * change["lora_A"].shape[1] for change in changes.values())
    return (shard + max(read, layer) + 128 * 2**20) / GIB  # and what Python and the libraries take along the way


def _merged(tensor: Stored, change: dict | None, settings: LoraConfig, dtype: torch.dtype) -> torch.Tensor:
    """Read one weight and add its change: W + B·A·α/r (LoRA, arXiv 2106.09685; rsLoRA: α/√r; DoRA: each row brought to its length)."""
    weight = tensor.read()
    if change:
        rank = len(change["lora_A"])
        scale = settings.lora_alpha / (rank**0.5 if settings.use_rslora else rank)
        weight = weight.float() + change["lora_B"] @ change["lora_A"] * scale
        if settings.use_dora:
            weight *= (change["lora_magnitude_vector"] / weight.norm(dim=1))[:, None]
        if not weight.isfinite().all():
            raise WorkspaceError(f"the adapter makes {tensor.name} infinite or not a number; train with a lower learning rate")
    weight = weight.to(dtype)  # rounded once
    _give_back_memory()
    return weight


def _give_back_memory() -> None:
    """glibc keeps what was freed, and can't use it again for weights of this size: without this the peak is that of the whole model."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _save_the_rest(base: str, folder: Path, config: PretrainedConfig, out: Path) -> None:
    """Write config, generation config, tokenizer and chat template, with both stop tokens wherever a program may look for them."""
    tokenizer = load_tokenizer(base)
    ids = {"eos_token_id": stop_token_ids(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    out.mkdir(parents=True, exist_ok=True)
    config.eos_token_id, config.get_text_config().dtype = ids["eos_token_id"], config.dtype
    config.save_pretrained(out)
    GenerationConfig(do_sample=True, bos_token_id=tokenizer.bos_token_id, **SAMPLING, **ids).save_pretrained(out)
    for name in ("is_local", "local_files_only"):  # true of this machine only
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(out)
    (out / "tokenizer_config.json").write_text(with_added_tokens(out), encoding="utf-8")
    # transformers no longer writes tokenizer.model, and llama.cpp prefers it
    for name in ("tokenizer.model", *(VISION_FILES if config.model_type == "gemma3" else ())):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
