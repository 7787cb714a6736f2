"""Watch a run where it is: with a figure in a notebook, with one line in a terminal."""

import io
import shutil
import sys
from collections.abc import Callable

import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import HTML, Image, display

from gemma_colab.core.errors import plain, say
from gemma_colab.core.html import LIGHTS, render
from gemma_colab.core.live import LiveView
from gemma_colab.training.records import save_curve

ASKING = 0.045  # share of the time so far; with the token that is on its way when the time is up, 5 %
TO_READ = [{"selector": "th, td", "props": "text-align: left; vertical-align: top; white-space: pre-wrap"}]
LIGHT_OF = dict(learning="fits", settled="fits", finished="fits", overfitting="tight", unstable="no") | {"not learning": "tight"}


def answers_table(log_history: list[dict]) -> pd.DataFrame:
    """Tabulate the answers that a run noted at its validations: one line a step, one column a question, as last asked."""
    lines = [line for line in log_history if "answers" in line]
    said = {int(line["step"]): {q: str(a) for q, a in line["answers"].items()} for line in lines}  # only texts are escaped
    order = [*max(said.items(), default=(0, ()))[1]]  # a checkpoint sorts its keys
    return pd.DataFrame.from_dict(said, orient="index").reindex(columns=order).rename_axis("step")


class LiveCurve(LiveView):
    """For notebooks: facts and verdict in a line, and below it the curve, which change in place. Only `display` and its updates are
    used, which Colab, JupyterLab and VS Code share; no widget.

    ask: (model, seconds) -> {question: answer}, for at most so long. It is called at each validation; the answers are shown below the
    curve, and in the log, where checkpoints and the record of the run keep them. All of it takes at most `ASKING` of the time.
    """

    views = ("line", "draw")
    shown, asked = None, 0.0

    def __init__(self, verdict: Callable | None = None, ask: Callable | None = None, **more):
        super().__init__(verdict, **more)
        self.ask = ask

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:  # a run that goes on after the memory ran out keeps its place
            self.shown = self.shown or [display(HTML(""), display_id=True) for _ in (*self.views, *["answers"] * bool(self.ask))]
        super().on_train_begin(args, state, control)
        self.asked = 0.0
        self._tell(state)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        seconds = ASKING * (self.clock() - self.start) - self.asked if self.running else 0.0
        if self.ask is None or args.world_size > 1 or seconds <= 0:
            return
        begin = self.clock()
        try:
            state.log_history[-1]["answers"] = self.ask(model, seconds)
        except torch.OutOfMemoryError:  # the room is needed for training
            self.ask = None
        self.asked += self.clock() - begin  # a token too many is taken off the next time
        self._tell(state)

    def _tell(self, state) -> None:
        # Of a resumed run, those from before too: the first, and the newest four.
        if self.ask and state.is_world_process_zero and len(table := answers_table(state.log_history)):
            few = table.iloc[[0, *range(max(1, len(table) - 4), len(table))]]
            page = few.style.set_uuid("answers").format(escape="html").format_index(escape="html", axis=1)
            self.shown[2].update(HTML(page.set_table_styles(TO_READ).to_html()))

    def line(self, facts: list[str], history: pd.DataFrame, percent: float, done: bool) -> None:
        verdict = self.verdict and self.verdict(history, finished=done)
        color = LIGHTS.get(LIGHT_OF.get(verdict.word), "#888") if verdict else ""
        self.shown[0].update(HTML(render("core/panel", "run", percent, facts, verdict, color)))

    def draw(self, facts: list[str], history: pd.DataFrame, percent: float, done: bool) -> None:
        png = io.BytesIO()
        save_curve(history, png, dpi=144 if done else 80)
        if len(history):  # before, it only loads the fonts
            # Of one size in the page, however many dots it has: nothing below it jumps. IPython 7, Colab's, takes `alt` only so.
            how = {"format": "png", "width": 700, "height": 400, "metadata": {"alt": "losses: " + ", ".join(facts)}}
            self.shown[1].update(Image(png.getvalue(), **how))


class TextProgress(LiveView):
    """For terminals: one line that moves; where the output goes to a file, a line every 10 seconds."""

    last = -1e9

    def line(self, facts: list[str], history: pd.DataFrame, percent: float, done: bool) -> None:
        verdict = str(self.verdict(history, finished=done)) if self.verdict else ""
        line = " · ".join(filter(None, [*facts, verdict]))
        if sys.stderr.isatty():
            line = line[: shutil.get_terminal_size().columns - 1]  # a longer one would go on in the next row, and stay there
            print(f"\r\x1b[K{plain(line)}", end=f"\n{verdict}\n" if done else "", file=sys.stderr, flush=True)
        elif done or self.clock() - self.last >= 10:
            self.last = self.clock()
            say(line, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        say("\n" * sys.stderr.isatty() + sentence, file=sys.stderr, flush=True)


def live_view(verdict: Callable | None = None, ask: Callable | None = None) -> LiveView:
    """The view that suits where this runs: give it to `train_adapter` as `show`. verdict: as for `LiveView`. ask: as for `LiveCurve`."""
    return LiveCurve(verdict, ask) if hasattr(get_ipython(), "kernel") else TextProgress(verdict)
