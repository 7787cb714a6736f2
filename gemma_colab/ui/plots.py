"""A picture of what LoRA trains."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gemma_colab.core.catalog import Shape
from gemma_colab.core.lora import adapted_layers, lora_parameters
from gemma_colab.core.settings import LoraSettings
from gemma_colab.training.records import histories, runs_table

if TYPE_CHECKING:
    from gemma_colab.training.learning_rate import LearningRates

TRAIN, VALIDATION, MARK = "#1f6fb2", "#c8552b", "#5b8c3a"
FROZEN, TRAINED = "#c9ccd1", "#c8552b"


def frozen_and_trained(name: str, dimensions: Shape, lora: LoraSettings, ax: Axes | None = None) -> Axes:
    """Draw the linear layers of the first block to scale, as wide as their inputs and as high as their outputs: frozen in grey, and
    beside each its two thin trained matrices, A below and B on the right (never thinner than a line)."""
    ax = ax if ax is not None else plt.subplots(figsize=(9, 3.2), layout="constrained")[1]
    adapted, unit = adapted_layers(dimensions, lora)[0], max(max(size) for size in dimensions.linear_layers.values())
    left, line, gap = 0.0, unit / 150, unit / 18
    for layer, (inputs, outputs) in dimensions.linear_layers.items():
        ax.add_patch(Rectangle((left, 0), inputs, outputs, color=FROZEN))
        thick = max(lora.r, line)
        if layer in adapted:
            ax.add_patch(Rectangle((left, -2 * line - thick), inputs, thick, color=TRAINED))
            ax.add_patch(Rectangle((left + inputs + 2 * line, 0), thick, outputs, color=TRAINED))
        ax.text(left + inputs / 2, outputs + line, layer.removesuffix("_proj"), ha="center", va="bottom", fontsize=8)
        left += inputs + gap + thick
    trained = lora_parameters(dimensions, lora)
    frozen = dimensions.linear_parameters + dimensions.embedding_parameters
    ax.set(xlim=(-gap, left), ylim=(-gap, unit * 1.1), aspect="equal")
    ax.set_title(
        f"{name}, block 1 of {dimensions.num_hidden_layers}. In all {frozen:,} frozen (grey, and the embedding), "
        f"{trained:,} trained (red): {trained / (frozen + trained):.2%}",
        fontsize=9,
    )
    ax.axis("off")
    return ax


def _axes(ax: Axes | None, size=(7, 3.2)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


# The colours of Okabe and Ito that people who see few colours can tell apart, and a shape for those who see none.
RUNS = list(zip(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#56b4e9", "#e69f00"), "os^DvPX", strict=True))


def compare_runs(
    runs: Sequence[dict] | dict[str, pd.DataFrame],
    names: Sequence[str] | None = None,
    x: str = "step",
    ax: Axes | None = None,
    title: str = "",
) -> tuple[pd.DataFrame, Axes]:
    """The table of several runs (`training.records.runs_table`), and their curves in one picture: train thin, validation with
    points. runs, names: as for `training.records.histories`, records or short runs by their names. x: "step" or "epoch". What lies
    far above the losses at the start is cut off.
    """
    ax, table, curves = _axes(ax, (8, 4)), runs_table(runs, names), histories(runs, names)
    for i, (name, history) in enumerate(curves.items()):
        colour, marker = RUNS[i % len(RUNS)]
        train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
        ax.plot(train[x], train["loss"], color=colour, linewidth=0.8, alpha=0.6)
        best = table["best_eval_loss"].iloc[i]
        label = f"{name}: best {best:.2f}" if pd.notna(best) else name
        ax.plot(validation[x], validation["eval_loss"], marker=marker, markersize=6, linewidth=1.6, color=colour, label=label)
    ax.set(xlabel=x, ylabel="loss (nats per token)", title=title or "thin: train; points: validation")
    _cut_above_the_start(ax, pd.concat([history["loss"].dropna().head(1) for history in curves.values()]))
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return table, ax


def learning_rate_curve(found: LearningRates, ax: Axes | None = None) -> Axes:
    """The loss of each step of a range test over its learning rate, smoothed too, and the suggestion. The title says why."""
    ax, table = _axes(ax), found.table
    ax.plot(table["learning_rate"], table["loss"], ".", color=TRAIN, alpha=0.5, label="each step")
    ax.plot(table["learning_rate"], table["smoothed"], color=TRAIN, label="smoothed")
    ax.axvline(found.suggestion, color=MARK, linestyle="--", label=f"suggestion {found.suggestion:.1e}")
    ax.set(xscale="log", xlabel="learning rate, higher at each step", ylabel="loss (nats per token)")
    ax.set_title("\n".join(wrap(found.why, 80)), fontsize=9)
    _cut_above_the_start(ax, table["loss"].head(5))
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def _cut_above_the_start(ax: Axes, start: pd.Series) -> None:
    """One broken run must not press all others flat: show no more than 1.3 times the highest loss at the start."""
    finite = start[start < float("inf")]
    if len(finite) and ax.get_ylim()[1] > 1.3 * finite.max():
        ax.set_ylim(top=1.3 * finite.max())
