"""Show a run while it trains, for less than 2 % of its time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import psutil
import torch
from transformers import TrainerCallback

from gemma_colab.core.history import history_table
from gemma_colab.core.machine import GIB

PAUSE = 0.5  # seconds: nothing is shown more often than this
FACTOR = 100  # times as long as showing took, until it is shown again: at most 1 % of the time, for a line and a figure each
RECENT = 20  # steps behind what is said of the pace


@dataclass(frozen=True)
class Progress:
    """A run at one moment.

    doing: "preparing", "training", "validating 3 of 7" or "done". seconds: in this process. seconds_left: at the recent pace, with
    the validations to come; tokens_per_second: read, padding not counted; both None before the first step. memory_gib: a GPU's,
    reserved by torch at most; on a CPU what this process holds. best_step, best_eval_loss: None before the first validation.
    history: `history_table` so far. done: whether this is the last moment.
    """

    doing: str
    step: int
    max_steps: int
    epoch: float
    num_train_epochs: float
    seconds: float
    seconds_left: float | None
    tokens_per_second: float | None
    memory_gib: float
    best_step: int | None
    best_eval_loss: float | None
    history: pd.DataFrame
    done: bool


class LiveHistory(TrainerCallback):
    """Calls `show(progress)` and, if there is one, `show.draw(progress)` while training, and both once more at the end.

    Each is called at most every half second, and not before 100 times as long as it took has gone by: both together cost at most
    2 % of the time, however slow they are. `spent` counts the seconds that showing took.
    """

    def __init__(self, show: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic):
        self.clock, self.spent, self.running = clock, 0.0, False
        self.due = dict.fromkeys(filter(None, (show, getattr(show, "draw", None))), 0.0)
        self.paces = deque(maxlen=RECENT)  # (seconds, tokens) of each step of this process: another machine had another pace
        self.tokens, self.validation_seconds, self.validated = 0, 0.0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = self.logged = self.clock()
        self.running = True
        self._show(args, state, "preparing")
        # The first figure waits for fonts, before the first step: that is no measure of the next.
        self.due = dict.fromkeys(self.due, self.clock())

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = self.clock()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logged, tokens = self.clock(), logs.get("num_tokens", 0)  # trl counts from the start of this process
            self.paces.append((self.logged - self.began, tokens - self.tokens))
            self.tokens = tokens
            self._show(args, state, "training")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.validated += 1
        self._show(args, state, f"validating {self.validated} of {len(eval_dataloader)}")

    def on_evaluate(self, args, state, control, **kwargs):
        self.validated = 0
        if self.running:
            self.validation_seconds = self.clock() - self.logged  # it began right after the last log

    def on_train_end(self, args, state, control, **kwargs):
        self._show(args, state, "done", done=True)
        self.running = False  # whoever validates by hand afterwards doesn't move the line again

    def _show(self, args, state, doing: str, done: bool = False) -> None:
        if not (self.running and state.is_world_process_zero):
            return
        for view, due in self.due.items():
            if (begin := self.clock()) >= due or done:
                view(self._progress(args, state, doing, done))
                took = self.clock() - begin
                self.spent += took
                self.due[view] = begin + took + max(PAUSE, FACTOR * took)

    def _progress(self, args, state, doing: str, done: bool) -> Progress:
        history, steps_left = history_table(state.log_history), state.max_steps - state.global_step
        # `state` knows the best step only of runs that save checkpoints.
        best = history.loc[history["eval_loss"].idxmin()] if history["eval_loss"].notna().any() else None
        seconds, tokens = map(sum, zip(*self.paces, strict=True)) if self.paces else (0.0, 0)
        seconds_left = None
        if self.paces and not done:
            validations = -(-steps_left // state.eval_steps) if args.eval_strategy != "no" and state.eval_steps else 0
            seconds_left = steps_left * seconds / len(self.paces) + validations * self.validation_seconds
        memory = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else psutil.Process().memory_info().rss
        return Progress(
            doing=doing,
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=state.epoch or 0.0,
            num_train_epochs=args.num_train_epochs,
            seconds=self.clock() - self.start,
            seconds_left=seconds_left,
            tokens_per_second=tokens / seconds if seconds and tokens else None,
            memory_gib=memory / GIB,
            best_step=None if best is None else int(best["step"]),
            best_eval_loss=None if best is None else float(best["eval_loss"]),
            history=history,
            done=done,
        )
