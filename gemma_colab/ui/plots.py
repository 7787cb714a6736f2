"""The pictures of the series. Each takes plain tables and returns `matplotlib.axes.Axes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, BinaryIO

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gemma_colab.core.catalog import Shape
from gemma_colab.core.history import history_table, smoothed
from gemma_colab.core.html import PART_COLOURS
from gemma_colab.core.parameters import adapted_layers, lora_parameters
from gemma_colab.core.settings import LoraSettings
from gemma_colab.training.records import histories, runs_table

if TYPE_CHECKING:
    from gemma_colab.training.learning_rate import LearningRates

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


def confusion_picture(counts: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Right values (rows) against answered ones (columns), as `fields.confusions` counts them. What is right stands on the diagonal."""
    ax = _axes(ax, (7, 0.32 * len(counts) + 1.6))
    ax.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
    for y, row in enumerate(counts.to_numpy()):
        for x, count in enumerate(row):
            if count:
                ax.text(x, y, count, ha="center", va="center", color="white" if count > counts.to_numpy().max() / 2 else "black")
    ax.set_xticks(range(counts.shape[1]), counts.columns, rotation=45, ha="right")
    ax.set_yticks(range(counts.shape[0]), counts.index)
    ax.set(xlabel=counts.columns.name, ylabel=counts.index.name)
    return ax


def loss_curve(history: pd.DataFrame, ax: Axes | None = None, title: str = "loss") -> Axes:
    """Training and validation loss over steps, the best validation point marked. history: from `training.history`.

    With many steps the training loss is drawn thin, and its mean over neighbours thick. What lies far above the losses at the
    start is cut off.
    """
    ax = _axes(ax)
    train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    many = len(train) > 20
    ax.plot(
        train["step"], train["loss"], color=TRAIN, label=None if many else "train", **({"alpha": 0.35, "lw": 0.8} if many else {})
    )
    if many:
        ax.plot(train["step"], smoothed(train["loss"]), color=TRAIN, linewidth=2, label="train, smoothed")
    if len(validation):
        ax.plot(validation["step"], validation["eval_loss"], "o-", color=VALIDATION, label="validation")
        best = validation.loc[validation["eval_loss"].idxmin()]
        ax.plot(
            best["step"],
            best["eval_loss"],
            "o",
            markersize=11,
            fillstyle="none",
            markeredgewidth=2,
            color=MARK,
            label=f"best {best['eval_loss']:.2f}",
        )
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    start = train["loss"].iloc[:3].max() if len(train) else float("nan")
    ax.set_ylim(bottom=0, top=1.5 * start if train["loss"].max() > 1.5 * start else None)
    if len(history):
        ax.legend()
    ax.grid(alpha=0.3)
    return ax


def save_loss_curve(log_history: list[dict], file: str | Path | BinaryIO, dpi: int = 100) -> None:
    """The loss curve of a run's log as a PNG, without showing it: the figure is not pyplot's."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    loss_curve(history_table(log_history), figure.subplots(), title="")
    figure.savefig(file, format="png", dpi=dpi)


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
    for layer, (inputs, outputs) in shape.linear_layers.items():
        ax.add_patch(Rectangle((left, 0), inputs, outputs, color="#c9ccd1"))
        if layer in adapted:
            thick = max(settings.r, line)
            ax.add_patch(Rectangle((left, -2 * line - thick), inputs, thick, color=VALIDATION))
            ax.add_patch(Rectangle((left + inputs + 2 * line, 0), thick, outputs, color=VALIDATION))
        ax.text(left + inputs / 2, outputs + line, layer.removesuffix("_proj"), ha="center", va="bottom", fontsize=8)
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
