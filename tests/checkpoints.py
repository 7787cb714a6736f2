"""Small random checkpoints of Gemma 3, for tests and benchmarks. Needs no pytest, which a machine lent for a benchmark may lack."""

import shutil
from pathlib import Path

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from gemma_colab.core.workspace import samples

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


def text_config(**changes) -> Gemma3TextConfig:
    """Of a small Gemma 3 with the tiny one's vocabulary."""
    return Gemma3TextConfig(
        **{
            "vocab_size": 2048,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 64,
            "query_pre_attn_scalar": 64,
            "sliding_window": 32,
            "max_position_embeddings": 1024,
            "layer_types": ["sliding_attention", "full_attention"],
            "eos_token_id": [1, 106],
        }
        | changes
    )


def save_random_gemma(folder: Path, **changes) -> Path:
    """A checkpoint of a small random Gemma 3 with the tiny one's tokenizer."""
    torch.manual_seed(0)
    Gemma3ForCausalLM(text_config(**changes)).save_pretrained(folder)
    _copy_tokenizer(folder)
    return folder


def _copy_tokenizer(folder: Path) -> None:
    for name in TOKENIZER_FILES:
        shutil.copy(samples() / "tiny-gemma3" / name, folder)


def save_random_multimodal(folder: Path) -> Gemma3ForConditionalGeneration:
    """A checkpoint of a tiny multimodal Gemma 3 with a SigLIP tower in `folder`, as transformers writes it, and the tokenizer;
    returns the model."""
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    torch.manual_seed(2)
    config = Gemma3Config(
        text_config=text_config().to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_index=2047
    )
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(folder)
    _copy_tokenizer(folder)
    return whole


def heat(folder: Path) -> Path:
    """Give a saved Gemma 3 post-norms so large that its residual stream passes 65,504, as that of the real ones does."""
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) * 200)
                norm.weight[:4] = 60_000.0
    # Rounded to float16, so that float32 and float16 quantise the same weights: only the recipe can make a difference.
    model.half().save_pretrained(folder)
    return folder
