"""Load Gemma 3 in 4 bit: native objects of transformers and bitsandbytes, right on a CPU, a T4 and newer GPUs."""

from __future__ import annotations

import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    Gemma3ForCausalLM,
    PreTrainedModel,
)

from gemma_colab.catalog import refuse_other_models, source_of
from gemma_colab.chat import load_tokenizer as load_tokenizer  # a model is loaded with its tokenizer
from gemma_colab.hub import from_hub
from gemma_colab.model.float16 import keep_residual_in_float32


def quantization_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv 2305.14314): 0.516 byte per weight. `dtype` is what it computes in."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_4bit(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """The text part of a Gemma 3 in 4 bit, on the GPU if there is one. Embeddings and norms stay in `dtype`.

    name: a Hub id or a local folder. dtype: from `hardware.pick_dtype`; with float16 the residual stream is kept in float32.
    Raises `ModelError` when the model can't be had or is no Gemma 3.
    """
    config = from_hub(AutoConfig, name, source_of(name))
    refuse_other_models(name, config.model_type)
    options = {}
    if config.model_type == "gemma3":
        # Checkpoints of 4B and more hold a vision model too. Its keys must be mapped, or every weight starts at random.
        config, options["key_mapping"] = config.text_config, {r"^language_model.model": "model"}
    model = from_hub(
        Gemma3ForCausalLM,
        name,
        source_of(name),
        config=config,
        dtype=dtype,
        quantization_config=quantization_config(dtype),
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        use_safetensors=True,
        **options,
    )
    if options:
        model._weight_conversions = None  # else saving writes keys that reload at random
    if dtype == torch.float16:
        keep_residual_in_float32(model)
    if model.device.type == "cpu":
        keep_cpu_weights_unpacked(model)
    return model.eval()


def keep_cpu_weights_unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Switch off bitsandbytes' packed weights on CPUs with bf16 instructions; returns the model.

    There, the first pass in eval mode repacks each layer for good and computes it in bf16 through a kernel without a backward
    pass (bitsandbytes 0.50, `Linear4bit.forward`): whoever evaluates before training then trains on wrong gradients, silently.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model
