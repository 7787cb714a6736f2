"""Watch a run, for at most 2 % of the time; `training.watch` shows what is seen, in a notebook or a terminal."""

import time
from collections.abc import Callable
from datetime import timedelta

import pandas as pd
import psutil
import torch
from transformers import TrainerCallback

from gemma_colab.core.curve import history_table
from gemma_colab.core.machine import GIB

PAUSE = 0.5  # seconds: nothing is shown more often than this
FACTOR = 100  # times as long as showing took, until it is shown again: at most 1 % of the time, for a line and a figure each


class LiveView(TrainerCallback):
    """Calls its `views` with facts, `history_table` so far, percent done and whether the run is over; `spent` counts their seconds.

    verdict: (history, finished=bool) -> what the losses say, with `word`, `sentence` and `next_step`, such as `training_verdict`.
    """

    views = ("line",)

    def __init__(self, verdict: Callable | None = None, clock: Callable[[], float] = time.monotonic):
        self.verdict, self.clock, self.running, self.spent = verdict, clock, False, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.running, self.start, self.first, self.validated = True, self.clock(), state.global_step, 0
        self.due = dict.fromkeys(self.views, self.start)
        self._show(args, state, "preparing")
        # The first figure waits for fonts, before the first step: that is no measure of the next.
        self.due = dict.fromkeys(self.views, self.clock())

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.validated = 0
            self._show(args, state)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.running:
            self.validated += 1
            self._show(args, state, f"validating {self.validated} of {len(eval_dataloader)}")

    def on_train_end(self, args, state, control, **kwargs):
        self._show(args, state, done=True)
        self.running = False  # a validation by hand afterwards doesn't move the line again

    def _show(self, args, state, doing: str = "", done: bool = False) -> None:
        if not state.is_world_process_zero:
            return
        for view, due in self.due.items():
            if (begin := self.clock()) >= due or done:
                history = history_table(state.log_history)
                percent = round(100 * state.global_step / max(1, state.max_steps), 1)
                getattr(self, view)(self._facts(args, state, history, doing, done), history, percent, done)
                took = self.clock() - begin
                self.spent += took
                self.due[view] = begin + took + max(PAUSE, FACTOR * took)

    def _facts(self, args, state, history: pd.DataFrame, doing: str, done: bool) -> list[str]:
        epoch = f"epoch {state.epoch or 0:.1f} of {args.num_train_epochs:g}"
        said = [f"step {state.global_step} of {state.max_steps}", epoch, *filter(None, [doing])]
        if len(loss := history["loss"].dropna()):
            said.append(f"loss {loss.iloc[-1]:.2f}")
        if len(validation := history.set_index("step")["eval_loss"].dropna()):  # `state` knows the best only of runs that save
            said.append(f"best validation {validation.min():.2f} at step {validation.idxmin()}")
        seconds, steps = self.clock() - self.start, state.global_step - self.first  # of this process: another had another pace
        if done:
            said.append(f"{clock(seconds)} in all")
        elif steps:
            said.append(f"about {clock(seconds / steps * (state.max_steps - state.global_step))} left")
        memory = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else psutil.Process().memory_info().rss
        return [*said, f"{memory / GIB:.1f} GiB"]


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
