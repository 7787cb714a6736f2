"""Load Gemma 3 in 4 bit: native objects of transformers and bitsandbytes, right on a CPU, a T4 and newer GPUs."""

import os

import torch
from transformers import AutoConfig, BitsAndBytesConfig, Gemma3ForCausalLM, GenerationConfig, PreTrainedModel

from gemma_colab.core.catalog import from_hub, refuse_other_models, source_of
from gemma_colab.core.chat import load_tokenizer, stop_token_ids
from gemma_colab.core.door import plugged
from gemma_colab.core.errors import ModelError
from gemma_colab.core.float16 import keep_residual_in_float32


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization (QLoRA, arXiv 2305.14314): 0.516 byte per weight. `dtype` is what it computes in."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP cuts up weights of the type it computes in, and would leave bytes whole on every GPU.
        bnb_4bit_quant_storage=dtype if _in_pieces() else None,
    )


def _in_pieces() -> bool:  # whether `accelerate launch` was told to shard the model (FSDP)
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def load_model(name: str, dtype: torch.dtype, quantization_config: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """A `Gemma3ForCausalLM`, on the GPU if there is one, ready to generate; `build_trainer` makes it ready to train.

    name: a Hub id or a local folder; of a checkpoint that sees images (4B and more), the text part is loaded. dtype: from
    `machine.pick_dtype`; with float16 the residual stream is kept in float32. quantization_config: None keeps every weight in
    `dtype`; otherwise embeddings and norms do. Raises `ModelError` when the model can't be had, is no Gemma 3, or lacks weights.
    """
    if dtype == torch.float16 and _in_pieces():
        cause = "must be bfloat16 under FSDP, which would compute the residual stream in float16"
        raise ModelError(f"dtype={dtype} {cause}; take GPUs from Ampere on, or DDP (docs/recipes.md)")
    plugged("pass_over_old_torchao")()  # before somebody adds an adapter to what is loaded here
    config, renamed = from_hub(AutoConfig, name, source_of(name)), {}
    refuse_other_models(name, config.model_type)
    if config.model_type == "gemma3":
        # The keys of such a checkpoint must be mapped, or every weight starts at random, without an error.
        config, renamed = config.text_config, {"key_mapping": {r"^language_model.model": "model"}}
    model, found = from_hub(
        Gemma3ForCausalLM,
        name,
        source_of(name),
        config=config,
        dtype=dtype,
        quantization_config=quantization_config,
        # One GPU a process: the first, or with torchrun its own.
        device_map={"": int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"},
        attn_implementation="sdpa",
        use_safetensors=True,
        output_loading_info=True,
        **renamed,
    )
    if random := sorted(found["missing_keys"]):
        lacks = f"{len(random)} of its weights, such as {random[0]}, which would start at random"
        raise ModelError(f"{name} lacks {lacks}; take a whole checkpoint")
    if renamed:
        model._weight_conversions = None  # else saving writes keys that reload at random
        # peft reads this: adapters have the names of the class of the whole checkpoint, see `export.adapter.save_adapter`.
        model._checkpoint_conversion_mapping = {r"^model\.language_model\.": "model."}
    if dtype == torch.float16:
        keep_residual_in_float32(model)
    if model.device.type == "cpu" and quantization_config is not None:
        keep_cpu_weights_unpacked(model)
    tokenizer = load_tokenizer(name)
    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id  # of the folder's own settings `generate` would take 20,000 beams
    model.generation_config = GenerationConfig(pad_token_id=pad, bos_token_id=bos, eos_token_id=stop_token_ids(tokenizer))
    return model.eval()


def keep_cpu_weights_unpacked(model: PreTrainedModel) -> None:
    """Switch off bitsandbytes' packed weights on CPUs with bf16 instructions.

    There, the first pass in eval mode repacks each layer for good and computes it in bf16 through a kernel without a backward
    pass (bitsandbytes 0.50, `Linear4bit.forward`): who evaluates before training then trains on wrong gradients, silently.
    """
    from bitsandbytes.nn import Linear4bit  # 16 bit does without, also on a machine that lacks it

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
