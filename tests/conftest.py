"""Small real things for the tests: a two-layer Gemma 3 with random weights, and the tiny one that ships with the project."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
from pathlib import Path

import pytest

from gemma_colab.data.reading import read_rows
from gemma_colab.workspace import Workspace, samples

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def support_rows():
    return read_rows(samples() / "support_ru.jsonl").rows


@pytest.fixture(scope="session")
def tokenizer():
    from gemma_colab.model.loading import load_tokenizer

    return load_tokenizer("tiny-gemma3")


def save_random_gemma(folder: Path, **changes) -> Path:
    """A checkpoint of a small random Gemma 3 with the tiny one's tokenizer."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

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


@pytest.fixture(scope="session")
def random_gemma(tmp_path_factory):
    """The folder of a random two-layer Gemma 3."""
    return str(save_random_gemma(tmp_path_factory.mktemp("random")))


@pytest.fixture(scope="session")
def hot_gemma(tmp_path_factory):
    """A Gemma 3 whose residual stream passes 65,504, as that of the real ones does: large weights in the post-norms."""
    import torch
    from transformers import Gemma3ForCausalLM

    folder = save_random_gemma(tmp_path_factory.mktemp("hot"))
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) * 200)
                norm.weight[:4] = 60_000.0
    model.save_pretrained(folder)
    return str(folder)
