"""The pictures of the series. Each takes plain tables and returns `matplotlib.axes.Axes`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from gemma_colab.catalog import Shape
from gemma_colab.model.parameters import adapted_layers, lora_parameters
from gemma_colab.settings import LoraSettings
from gemma_colab.ui.html import PART_COLOURS

TRAIN, VALIDATION, MARK = "#1f6fb2", "#c8552b", "#5b8c3a"


def _axes(ax: Axes | None, size=(7, 3.2)) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def length_histogram(total: pd.Series, max_length: int, ax: Axes | None = None) -> Axes:
    """Tokens per row, with the line beyond which a row would be cut."""
    ax = _axes(ax)
    ax.hist(total, bins=30, color=TRAIN)
    ax.axvline(max_length, color=VALIDATION, linestyle="--", label=f"max_length = {max_length}")
    ax.set(xlabel="tokens in a row", ylabel="rows", title=f"{(total > max_length).sum()} of {len(total)} rows would be cut")
    ax.legend()
    return ax


def loss_curve(history: pd.DataFrame, ax: Axes | None = None, title: str = "loss") -> Axes:
    """Training and validation loss over steps, the best validation point marked. history: from `training.history`."""
    ax = _axes(ax)
    train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    ax.plot(train["step"], train["loss"], color=TRAIN, label="train")
    if len(validation):
        ax.plot(validation["step"], validation["eval_loss"], "o-", color=VALIDATION, label="validation")
        best = validation.loc[validation["eval_loss"].idxmin()]
        ax.plot(
            best["step"],
            best["eval_loss"],
            "o",
            markersize=11,
            fillstyle="none",
            color=MARK,
            label=f"best {best['eval_loss']:.2f}",
        )
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    ax.set_ylim(bottom=0)
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def compare_curves(
    histories: dict[str, pd.DataFrame], column: str = "loss", x: str = "step", ax: Axes | None = None, title: str = ""
) -> Axes:
    """The same column of several runs in one picture."""
    ax = _axes(ax)
    for label, history in histories.items():
        points = history.dropna(subset=[column])
        ax.plot(points[x], points[column], "o-", markersize=3, label=label)
    ax.set(xlabel=x, ylabel=f"{column} (nats per token)", title=title)
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


def memory_bar(plans: dict[str, pd.Series], limit_gib: float | None = None, gpu: str = "GPU", ax: Axes | None = None) -> Axes:
    """Stacked bars of `model.memory.memory_plan`, with the line of what a GPU has."""
    ax = _axes(ax, (7, 0.9 + 0.55 * len(plans)))
    table = pd.DataFrame(plans).T.iloc[::-1]
    table.plot.barh(stacked=True, ax=ax, width=0.6, color=[PART_COLOURS[name] for name in table.columns])
    if limit_gib:
        ax.axvline(limit_gib, color=VALIDATION, linestyle="--", label=f"{gpu}: {limit_gib:g} GiB")
    ax.set(xlabel="GiB, predicted")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def frozen_and_trained(name: str, shape: Shape, settings: LoraSettings, ax: Axes | None = None) -> Axes:
    """The linear layers of the first block, to scale, as wide as their inputs and as high as their outputs: frozen in grey, and beside
    each its two thin trained matrices, A below and B on the right (never thinner than a line)."""
    ax = _axes(ax, (9, 3.2))
    adapted, unit = adapted_layers(shape, settings)[0], max(max(size) for size in shape.linear_layers.values())
    left, line, gap = 0.0, unit / 150, unit / 18
    for name, (inputs, outputs) in shape.linear_layers.items():
        ax.add_patch(Rectangle((left, 0), inputs, outputs, color="#c9ccd1"))
        if name in adapted:
            thick = max(settings.r, line)
            ax.add_patch(Rectangle((left, -2 * line - thick), inputs, thick, color=VALIDATION))
            ax.add_patch(Rectangle((left + inputs + 2 * line, 0), thick, outputs, color=VALIDATION))
        ax.text(left + inputs / 2, outputs + line, name.removesuffix("_proj"), ha="center", va="bottom", fontsize=8)
        left += inputs + gap + max(settings.r, line)
    trained = lora_parameters(shape, settings)
    frozen = shape.linear_parameters + shape.embedding_parameters
    ax.set(xlim=(-gap, left), ylim=(-gap, unit * 1.1), aspect="equal")
    ax.set_title(
        f"{name}, block 1 of {shape.num_hidden_layers}. In all {frozen:,} frozen (grey, and the embedding), "
        f"{trained:,} trained (red): {trained / (frozen + trained):.2%}",
        fontsize=9,
    )
    ax.axis("off")
    return ax


class LiveCurve:
    """A loss curve that updates in place. Give the object to `training.callbacks.LiveHistory`; needs no widget."""

    def __init__(self):
        self.handle = None

    def __call__(self, history: pd.DataFrame, message: str) -> None:
        if history.empty:
            return
        ax = loss_curve(history, title=message)
        if self.handle is None:
            self.handle = display(ax.figure, display_id=True)
        else:
            self.handle.update(ax.figure)
        plt.close(ax.figure)
