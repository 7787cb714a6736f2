"""The loss curve of a run, and a view to watch it: a figure that updates in place in a notebook, one line in a terminal.

Only `display` and its updates are used, which Colab, JupyterLab and VS Code share; no widget.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from IPython import get_ipython
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from gemma_colab.core.history import history_table, smoothed
from gemma_colab.core.html import LIGHTS, render

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from gemma_colab.core.live import Progress

TRAIN, VALIDATION, BEST = "#1f6fb2", "#c8552b", "#5b8c3a"
LIGHT_OF = dict(learning="fits", settled="fits", finished="fits", overfitting="tight", unstable="no") | {"not learning": "tight"}


def loss_curve(history: pd.DataFrame, ax: Axes | None = None, title: str = "loss") -> Axes:
    """Plot training and validation loss over steps, the best validation point marked. history: of `history_table`.

    Beyond 20 steps the training loss is drawn thin, and its mean over neighbors thick. The axis ends at 1.5 times the loss at
    the start: one broken step must not press the rest flat.
    """
    ax = ax or new_axes(7, 3.2)
    train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    many = len(train) > 20
    ax.plot(
        train["step"], train["loss"], color=TRAIN, label=None if many else "train", **dict(alpha=0.35, lw=0.8) if many else {}
    )
    if many:
        ax.plot(train["step"], smoothed(train["loss"]), color=TRAIN, linewidth=2, label="train, smoothed")
    if len(validation):
        ax.plot(validation["step"], validation["eval_loss"], "o-", color=VALIDATION, label="validation")
        step, loss = validation.loc[validation["eval_loss"].idxmin(), ["step", "eval_loss"]]
        ring = dict(markersize=11, fillstyle="none", markeredgewidth=2, color=BEST, label=f"best {loss:.2f}")
        ax.plot(step, loss, "o", **ring)
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    start = train["loss"].iloc[:3].max() if len(train) else float("nan")
    ax.set_ylim(bottom=0, top=1.5 * start if train["loss"].max() > 1.5 * start else None)
    if len(history):
        ax.legend()
    ax.grid(alpha=0.3)
    return ax


def new_axes(width: float, height: float) -> Axes:
    """Axes on a new figure of pyplot's, which a notebook shows. width, height: in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def save_loss_curve(log_history: list[dict], file: str | Path | BinaryIO, dpi: int = 100) -> None:
    """Write the loss curve of a run's log as a PNG, without showing it: the figure is not pyplot's."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    loss_curve(history_table(log_history), figure.subplots(), title="")
    figure.savefig(file, format="png", dpi=dpi)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")


def facts(progress: Progress) -> list[str]:
    """What a line says of a run, and the figure to those who can't see it: step, epoch, losses, time, tokens per second, memory."""
    said = [f"step {progress.step} of {progress.max_steps}", f"epoch {progress.epoch:.1f} of {progress.num_train_epochs:g}"]
    if progress.doing not in ("training", "done"):
        said.append(progress.doing)
    if len(loss := progress.history["loss"].dropna()):
        said.append(f"loss {loss.iloc[-1]:.2f}")
    if progress.best_step:
        said.append(f"best validation {progress.best_eval_loss:.2f} at step {progress.best_step}")
    if progress.done:
        said.append(f"{clock(progress.seconds)} in all")
    elif progress.seconds_left is not None:
        said.append(f"about {clock(progress.seconds_left)} left")
    if progress.tokens_per_second:
        said.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return [*said, f"{progress.memory_gib:.1f} GiB"]


class LiveCurve:
    """For notebooks: a line that moves, and a figure below it. verdict: as for `live_view`."""

    def __init__(self, verdict: Callable | None = None):
        self.verdict, self.line, self.picture, self.axes = verdict, None, None, None

    def __call__(self, progress: Progress) -> None:
        verdict = self.verdict and self.verdict(progress.history, finished=progress.done)
        color = LIGHTS.get(LIGHT_OF.get(verdict.word), "#888") if verdict else ""
        percent = round(100 * progress.step / max(1, progress.max_steps), 1)
        self.line = _update(self.line, HTML(render("core/panel", "run", percent, facts(progress), verdict, color)))

    def draw(self, progress: Progress) -> None:
        if self.axes is None:
            self.axes = curve_axes()
        png = curve_png(progress.history, dpi=144 if progress.done else 80, axes=self.axes)
        if len(progress.history):  # before, it only loads the fonts
            # Of one size in the page, however many dots it has: nothing below it jumps. IPython 7, Colab's, takes `alt` only so.
            shown = Image(png, format="png", width=700, height=400, metadata={"alt": "losses: " + ", ".join(facts(progress))})
            self.picture = _update(self.picture, shown)

    def say(self, sentence: str) -> None:
        """A note that stays below the figure."""
        print(sentence)


def _update(handle, shown):
    """Show something in place of what `handle` shows, or, without one, anew; returns the handle."""
    if handle is None:
        return display(shown, display_id=True)
    handle.update(shown)
    return handle


def curve_axes() -> tuple[Axes, Axes]:
    """Empty axes for the losses, and below them for the learning rate, on a figure of 7 x 4 inches that pyplot knows nothing of."""
    figure = Figure(figsize=(7, 4), facecolor="white")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.12, hspace=0.12)  # a layout engine takes as long again
    return tuple(figure.subplots(2, sharex=True, height_ratios=(4, 1)))


def curve_png(history: pd.DataFrame, dpi: int = 80, axes: tuple[Axes, Axes] | None = None) -> bytes:
    """The losses, and below them the learning rate, as a PNG. axes: of an earlier picture, to draw this one in two thirds of the
    time."""
    above, below = axes or curve_axes()
    for ax in (above, below):
        for line in list(ax.lines):
            line.remove()
        ax.relim()
        ax.autoscale()
    loss_curve(history, above, title="").set_xlabel("")
    rate = history.dropna(subset=["learning_rate"])
    below.plot(rate["step"], rate["learning_rate"], color=VALIDATION, linewidth=1)
    below.set(xlabel="step", ylabel="rate")
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useOffset=False)
    below.grid(alpha=0.3)
    with io.BytesIO() as buffer:
        above.figure.savefig(buffer, format="png", dpi=dpi)
        return buffer.getvalue()


class TextProgress:
    """For terminals: one line that moves; where the output goes to a file, a line every 10 seconds. verdict: as for `live_view`."""

    def __init__(self, stream=None, verdict: Callable | None = None):
        self.stream, self.verdict, self.width, self.last = stream or sys.stderr, verdict, 0, -1e9
        self.moves = self.stream.isatty()

    def __call__(self, progress: Progress) -> None:
        verdict = str(self.verdict(progress.history, finished=progress.done)) if self.verdict else ""
        line = " · ".join(filter(None, [*facts(progress), verdict]))
        if self.moves:
            line = line[: shutil.get_terminal_size().columns - 1]  # a longer one would go on in the next row, and stay there
            self.stream.write(f"\r{line:<{self.width}}" + f"\n{verdict}\n" * progress.done)
            self.width = len(line)
        elif progress.done or time.monotonic() - self.last >= 10:
            self.stream.write(line + "\n")
            self.last = time.monotonic()
        self.stream.flush()

    def say(self, sentence: str) -> None:
        self.stream.write(f"{chr(10) * self.moves}{sentence}\n")
        self.stream.flush()


def live_view(verdict: Callable | None = None) -> LiveCurve | TextProgress:
    """The view that suits where this runs: give it to `train_adapter` as `show`.

    verdict: (history, finished=bool) -> what the losses say, with `word`, `sentence` and `next_step`, as
    `training.verdict.training_verdict`; None says nothing.
    """
    return LiveCurve(verdict) if hasattr(get_ipython(), "kernel") else TextProgress(verdict=verdict)
