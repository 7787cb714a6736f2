"""Merge an adapter into its 16-bit base, tensor by tensor, without ever holding the model in memory.

Never into 4 bit, whose steps are coarser than what an adapter changes; and never saved in float16, in which Gemma 3 overflows.
The sums are peft's own, in float32; only how the weights come and go is ours.
"""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import sys
from pathlib import Path

import psutil
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, GenerationConfig, PretrainedConfig

from gemma_colab.core.catalog import source_of
from gemma_colab.core.chat import load_tokenizer, stop_token_ids
from gemma_colab.core.errors import ModelError, WorkspaceError
from gemma_colab.core.machine import GIB, free_gib, pass_over_old_torchao, readable
from gemma_colab.export.adapter import WEIGHTS, check_adapter, is_hub_id
from gemma_colab.export.checkpoint import (
    SAMPLING,
    Stored,
    base_folder,
    config_of,
    stored_tensors,
    text_name,
    text_tensors,
    with_added_tokens,
)
from gemma_colab.model.memory import readable

SMALLEST_SHARD = 2**28  # bytes; a shard is as large as the largest tensor, which sets the peak anyway, but no smaller than this
KIND = r"(lora_A|lora_B|lora_magnitude_vector)(\.weight)?$"  # the tensors of LoRA; the last one of DoRA only
# What peft calls them in its file, in a layer of a block. A head that is also the embedding can't take a change of its own.
LORA_TENSOR = re.compile(rf"base_model\.model\.model\.(?:language_model\.)?layers\..+\.{KIND}")
VISION_FILES = ("preprocessor_config.json", "processor_config.json")


def merge(
    base: str, adapter: str | Path, out: str | Path, *, text_only: bool = True, max_shard_bytes: int | None = None
) -> float:
    """Write base + adapter to the folder `out` as a checkpoint of plain transformers; return the memory it takes at its peak, in GiB.

    base: a Hub id or a folder, in 16 or 32 bit; saved in bfloat16, or in float32 if it is stored so. adapter: a folder with LoRA,
    rsLoRA or DoRA. text_only: of a multimodal base, write the text part, as `Gemma3ForCausalLM`: nothing else was trained, it is
    0.8 GB smaller, and every program that reads Gemma 3 reads it. False keeps the whole model and the base's names.
    Raises `ModelError` or `WorkspaceError` before anything is written if the adapter is not whole or of another base, if the
    base can't be had, or if memory or disk don't suffice. Write to a folder of `Workspace.writing`, which removes what is half done.
    """
    out, adapter = Path(out), Path(adapter)
    check_adapter(adapter)
    config = config_of(base)
    layers = _adapted_layers(base, config, adapter)
    folder = base_folder(base)
    stored = stored_tensors(base, folder)
    plan = text_tensors(base, config, stored)
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
    memory = _peak(plan, written, shards.filename_to_tensors.values(), layers)
    disk = (sum(tensor.nbytes for tensor in written.values()) + 32 * 2**20) / GIB  # with the tokenizer
    needs = f"merging takes {readable(memory)} of memory and {readable(disk)} on the disk"
    room = "make room there, or name a workspace on a larger disk"
    if (free := psutil.virtual_memory().available / GIB) < memory:
        remedy = "close other notebooks, or delete the model you have loaded"
        raise ModelError(f"{needs}, and {readable(free)} of memory is free; {remedy}")
    if (free := free_gib(out)) < disk:
        raise ModelError(f"{needs}, and {readable(free)} is free in {out.parent}; {room}")
    print(needs)
    try:
        _save_the_rest(base, folder, config, out)  # first: what is wrong with small files shows at once
        _give_back_memory()
        with tqdm(total=len(plan), desc="merging", unit=" tensors", leave=False) as bar:
            for file, names in shards.filename_to_tensors.items():
                shard = {}  # one shard's worth is in memory
                for name in names:
                    shard[name] = _merged(plan[name], layers.get(text_name(plan[name].name)), config.dtype)
                    bar.update()
                save_file(shard, out / file, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as e:  # the disk, which others fill too
        reason = getattr(e, "strerror", None) or str(e)[:120]
        raise WorkspaceError(f"{out.parent} can't be written ({reason}); {room}") from None
    return memory


def _adapted_layers(base: str, config: PretrainedConfig, adapter: Path) -> dict[str, LoraLayer]:
    """Return peft's layer for each adapted weight, by `text_name`: with the adapter's tensors, and so far without the base's weight.

    The model around them is built without memory (on the "meta" device). Raises `WorkspaceError` unless every tensor of the
    adapter finds its place in this base, and every place its tensor.
    """
    pass_over_old_torchao()
    settings = LoraConfig.from_pretrained(adapter)
    trained_on, wanted = settings.base_model_name_or_path or "", source_of(base)
    # By name: an adapter of -it fits -pt by its shapes, and talks nonsense there.
    if is_hub_id(trained_on) and is_hub_id(wanted) and trained_on != wanted:
        raise WorkspaceError(f"{adapter} was trained on {trained_on}, not on {wanted}; name {trained_on} as the base")
    tensors = load_file(adapter / WEIGHTS)
    if other := sorted(name for name in tensors if not LORA_TENSOR.fullmatch(name)):
        more = f"changes more than linear layers of the text model, such as {other[0]}"
        raise WorkspaceError(f"{adapter} {more}; merge it with peft's merge_and_unload")
    # One that was trained on the whole of a multimodal model has other names: so the model around its layers is of that kind too.
    whole = config.model_type == "gemma3" and any(".language_model." in name for name in tensors)
    named = {re.sub(KIND, r"\1.default.weight", name): tensor.float() for name, tensor in tensors.items()}
    try:
        with torch.device("meta"):
            around = Gemma3ForConditionalGeneration(config) if whole else Gemma3ForCausalLM(config.get_text_config())
            model = PeftModel(around, settings, low_cpu_mem_usage=True)
        found = model.load_state_dict(named, strict=False, assign=True)
        wrong = [f"{name} is absent in the base" for name in found.unexpected_keys]
        wrong += [f"{name} is absent in the adapter" for name in found.missing_keys if "lora_" in name]
    except (RuntimeError, ValueError) as e:  # another shape; or peft found no layer of the name
        wrong = [line.strip() for line in str(e).splitlines()[-1:]]
    if wrong:
        raise WorkspaceError(f"{adapter} doesn't fit {base} ({wrong[0][:300]}); merge it into the base it was trained on")
    modules = model.get_base_model().named_modules()
    return {text_name(f"{name}.weight"): layer for name, layer in modules if isinstance(layer, LoraLayer)}


def _peak(plan: dict[str, Stored], written: dict[str, torch.Tensor], shards, layers: dict[str, LoraLayer]) -> float:
    """Return the memory that merging takes at its peak, in GiB, beside what this program holds already."""
    shard = max(sum(written[name].nbytes for name in names) for names in shards)
    # Beside them a tensor that is read and changes its type; or a layer in float32: weight, copy, change and their sum.
    read = max((like.nbytes for name, (_, _, like) in plan.items() if like.dtype != written[name].dtype), default=0)
    layer = max((4 * 4 * layer.get_base_layer().weight.numel() for layer in layers.values()), default=0)
    return (shard + max(read, layer) + 128 * 2**20) / GIB  # and what Python and the libraries take along the way


@torch.no_grad()
def _merged(tensor: Stored, layer: LoraLayer | None, dtype: torch.dtype) -> torch.Tensor:
    """Read one weight and add its change to it, in float32: the sum is rounded once, at the end."""
    if layer is None:
        return tensor.read().to(dtype)
    linear = layer.get_base_layer()
    empty, linear.weight = linear.weight, torch.nn.Parameter(tensor.read().float(), requires_grad=False)
    try:
        layer.merge(safe_merge=True)  # safe: raises if a number is not finite
    except ValueError:
        nan = f"the adapter makes {tensor.name} infinite or not a number"
        raise WorkspaceError(f"{nan}; train with a lower learning rate") from None
    merged, linear.weight = linear.weight.to(dtype), empty
    _give_back_memory()
    return merged


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
