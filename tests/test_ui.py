"""Pictures show what they are given, and no text of a dataset is ever run."""

import pandas as pd
from matplotlib.axes import Axes

from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.html import text_table, trained_tokens
from gemma_colab.core.parameters import lora_parameters
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.memory import memory_plan
from gemma_colab.ui import plots

HISTORY = pd.DataFrame({"step": [1, 2, 3], "epoch": [0.3, 0.6, 1], "loss": [3, 2, 1.5], "eval_loss": [None, 2.5, 2.2]})


def test_pictures_return_axes_and_show_their_data():
    ax = plots.loss_curve(HISTORY)
    assert isinstance(ax, Axes)
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[1, 2, 3], [2, 3]]
    assert "best 2.20" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert plots.length_histogram(pd.Series([10, 20, 700]), 512).get_title().startswith("1 of 3")
    ax = plots.frozen_and_trained("1B", CATALOG["google/gemma-3-1b-it"], LoraSettings(target_modules="attention"))
    assert ax.get_title().startswith("1B, block 1 of 26")
    assert len(ax.patches) == 7 + 2 * 4  # seven frozen matrices, and A and B beside those of attention
    assert f"{lora_parameters(CATALOG['google/gemma-3-1b-it'], LoraSettings(target_modules='attention')):,}" in ax.get_title()
    plan = memory_plan(CATALOG["google/gemma-3-1b-it"], LoraSettings(), TrainSettings(), tokens=512)
    assert isinstance(plots.memory_bar({"1B": plan}, 14.74), Axes)


EVIL = "</td><script>alert(1)</script>"


def test_texts_of_a_dataset_are_escaped(tokenizer):
    shown = text_table(pd.DataFrame({"a": [EVIL]})).data
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    ids = tokenizer(EVIL)["input_ids"]
    tokens = trained_tokens(ids, [-100, *ids[1:]], tokenizer).data
    assert "<script>" not in tokens
    assert tokens.count("#f6c08a") == len(ids)  # all but the first, and the legend
