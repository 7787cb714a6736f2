"""Small random checkpoints of Gemma 3, for tests and benchmarks. Needs no pytest, which a machine lent for a benchmark may lack."""

import shutil
from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from gemma_colab.workspace import samples

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


def save_random_gemma(folder: Path, **changes) -> Path:
    """A checkpoint of a small random Gemma 3 with the tiny one's tokenizer."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
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
    Gemma3ForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(samples() / "tiny-gemma3" / name, folder)
    return folder


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
