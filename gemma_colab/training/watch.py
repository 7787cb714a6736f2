"""Watch a run where it is: with a figure in a notebook, with one line in a terminal."""

import shutil
import sys
from collections.abc import Callable

import pandas as pd
from IPython import get_ipython

from gemma_colab.core.live import LiveCurve, LiveView


class TextProgress(LiveView):
    """For terminals: one line that moves; where the output goes to a file, a line every 10 seconds."""

    last = -1e9

    def line(self, facts: list[str], history: pd.DataFrame, percent: float, done: bool) -> None:
        verdict = str(self.verdict(history, finished=done)) if self.verdict else ""
        line = " · ".join(filter(None, [*facts, verdict]))
        if sys.stderr.isatty():
            line = line[: shutil.get_terminal_size().columns - 1]  # a longer one would go on in the next row, and stay there
            print(f"\r\x1b[K{line}", end=f"\n{verdict}\n" if done else "", file=sys.stderr, flush=True)
        elif done or self.clock() - self.last >= 10:
            self.last = self.clock()
            print(line, file=sys.stderr, flush=True)

    def say(self, sentence: str) -> None:
        print("\n" * sys.stderr.isatty() + sentence, file=sys.stderr, flush=True)


def live_view(verdict: Callable | None = None) -> LiveView:
    """The view that suits where this runs: give it to `train_adapter` as `show`. verdict: as for `LiveView`."""
    return (LiveCurve if hasattr(get_ipython(), "kernel") else TextProgress)(verdict)
