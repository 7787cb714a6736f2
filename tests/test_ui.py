"""The picture of LoRA shows what it is given, and no text of a dataset is ever run."""

import io

import pandas as pd

from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.settings import LoraSettings
from gemma_colab.model.memory import lora_parameters
from gemma_colab.ui import frozen_and_trained, text_table, trained_tokens

EVIL = "</td><script>alert(1)</script>"


def test_frozen_and_trained_are_drawn_and_counted():
    dimensions, lora = CATALOG["google/gemma-3-1b-it"], LoraSettings(target_modules="attention")
    ax = frozen_and_trained("1B", dimensions, lora)
    assert ax.get_title().startswith("1B, block 1 of 26")
    assert f"{lora_parameters(dimensions, lora):,}" in ax.get_title()
    assert len(ax.patches) == 7 + 2 * 4  # seven frozen matrices, and A and B beside those of attention


def test_a_dollar_in_a_name_begins_no_mathematics():
    ax = frozen_and_trained("a $^ model$", CATALOG["google/gemma-3-1b-it"], LoraSettings())
    assert ax.get_title().startswith("a $^ model$, block 1")
    ax.figure.savefig(io.BytesIO())  # where mathematics was read, its error came here


def test_texts_of_a_dataset_are_escaped(tokenizer):
    shown = text_table(pd.DataFrame({EVIL: [EVIL, 7]})).data
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 2
    assert "7</td>" in shown
    ids = tokenizer(EVIL)["input_ids"]
    tokens = trained_tokens(ids, [-100, *ids[1:]], tokenizer).data
    assert "<script>" not in tokens
    assert tokens.count("#f6c08a") == len(ids)  # all but the first, and the legend
