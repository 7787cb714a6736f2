"""Small real things for the tests: a two-layer Gemma 3 with random weights, and the tiny one that ships with the project."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network
os.environ.setdefault("MPLBACKEND", "Agg")

import shutil
from pathlib import Path

import pytest

from gemma_colab.data.reading import read_jsonl
from gemma_colab.workspace import Workspace, samples

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def support_rows():
    return read_jsonl(samples() / "support_ru.jsonl")


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
