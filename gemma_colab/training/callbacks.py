"""Show a run while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pandas as pd
from transformers import TrainerCallback

from gemma_colab.training.history import history_table


class LiveHistory(TrainerCallback):
    """Calls `show(history, message)` after each log, at most every `every` seconds, and at the end."""

    def __init__(self, show: Callable[[pd.DataFrame, str], None], every: float = 0.5):
        self.show, self.every, self.last, self.start = show, every, 0.0, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()

    def on_log(self, args, state, control, **kwargs):
        if time.monotonic() - self.last >= self.every:
            self._show(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._show(state)

    def _show(self, state):
        seconds = time.monotonic() - self.start
        left = seconds / max(1, state.global_step) * (state.max_steps - state.global_step)
        self.show(history_table(state.log_history), f"step {state.global_step} of {state.max_steps}, {left:.0f} s left")
        self.last = time.monotonic()
