"""A run to watch: a figure that updates in place in a notebook, one line in a terminal.

Only `display` and its updates are used, which Colab, JupyterLab and VS Code share; no widget.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from typing import TYPE_CHECKING

from IPython import get_ipython
from IPython.display import HTML, Image, display
from matplotlib.figure import Figure

from gemma_colab.core.html import ENVIRONMENT, LIGHTS
from gemma_colab.ui.plots import VALIDATION, loss_curve

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from gemma_colab.core.live import Progress

COLOURS = {  # of the words of `training.verdict`
    "learning": LIGHTS["fits"],
    "settled": LIGHTS["fits"],
    "finished": LIGHTS["fits"],
    "overfitting": LIGHTS["tight"],
    "not learning": LIGHTS["tight"],
    "unstable": LIGHTS["no"],
}
_LINE = ENVIRONMENT.from_string(
    """<div style="max-width:760px; line-height:1.5">
<div style="height:6px; border-radius:3px; background:#8884; overflow:hidden" role="progressbar" aria-valuenow="{{ percent }}" aria-valuemin="0" aria-valuemax="100">
<div style="width:{{ percent }}%; height:100%; background:#1f6fb2"></div></div>
<div style="font-variant-numeric:tabular-nums">{{ facts | join(' · ') }}</div>
<div><b style="color:{{ colour }}">{{ verdict.word }}</b>: {{ verdict.sentence }}. <b>Next:</b> {{ verdict.next_step }}.</div>
</div>"""
)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def facts(progress: Progress) -> list[str]:
    """What a line says of a run: step, epoch, losses, time, tokens per second, memory."""
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
    """For notebooks: a line that moves, and a figure below it. Give it to `train` as `show`."""

    def __init__(self):
        self.line = self.picture = self.axes = None

    def __call__(self, progress: Progress) -> None:
        verdict = progress.verdict
        page = HTML(
            _LINE.render(
                percent=round(100 * progress.step / max(1, progress.max_steps), 1),
                facts=facts(progress),
                verdict=verdict,
                colour=COLOURS.get(verdict.word, "#888"),
            )
        )
        self.line = _update(self.line, page)

    def draw(self, progress: Progress) -> None:
        if self.axes is None:
            self.axes = curve_axes()
        png = curve_png(progress.history, dpi=144 if progress.done else 80, axes=self.axes)
        if len(progress.history):  # before, it only loads the fonts
            about = {"alt": facts_of(progress.history)}
            # Of one size in the page, however many dots it has: nothing below it jumps. IPython 7, Colab's, takes `alt` only so.
            self.picture = _update(self.picture, Image(png, format="png", width=700, height=400, metadata=about))

    def say(self, sentence: str) -> None:
        """A note that stays below the figure."""
        print(sentence)


def _update(handle, shown):
    """Shows something in the place of what `handle` shows, or, without one, anew; returns the handle."""
    if handle is None:
        return display(shown, display_id=True)
    handle.update(shown)
    return handle


def facts_of(history: pd.DataFrame) -> str:
    """The curve in words, for those who can't see it."""
    loss, validation = history["loss"].dropna(), history["eval_loss"].dropna()
    said = f"training loss from {loss.iloc[0]:.2f} to {loss.iloc[-1]:.2f}" if len(loss) else "no training loss yet"
    return said + (f", validation loss from {validation.iloc[0]:.2f} to {validation.iloc[-1]:.2f}" if len(validation) else "")


def curve_axes() -> tuple[Axes, Axes]:
    """Empty axes for the losses, and below them for the learning rate, on a figure of 7 x 4 inches that pyplot knows nothing of."""
    figure = Figure(figsize=(7, 4), facecolor="white")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.12, hspace=0.12)  # a layout engine takes as long again
    above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    return above, below


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
    """For terminals: one line that moves; where the output goes to a file, a line every 10 seconds."""

    def __init__(self, stream=None):
        self.stream, self.width, self.last = stream or sys.stderr, 0, -1e9
        self.moves = self.stream.isatty()

    def __call__(self, progress: Progress) -> None:
        line = " · ".join([*facts(progress), str(progress.verdict)])
        if self.moves:
            line = line[: shutil.get_terminal_size().columns - 1]  # a longer one would go on in the next row, and stay there
            self.stream.write(f"\r{line:<{self.width}}" + f"\n{progress.verdict}\n" * progress.done)
            self.width = len(line)
        elif progress.done or time.monotonic() - self.last >= 10:
            self.stream.write(line + "\n")
            self.last = time.monotonic()
        self.stream.flush()

    def say(self, sentence: str) -> None:
        self.stream.write(f"{chr(10) * self.moves}{sentence}\n")
        self.stream.flush()


def live_view() -> LiveCurve | TextProgress:
    """The view that suits where this runs."""
    return LiveCurve() if hasattr(get_ipython(), "kernel") else TextProgress()
