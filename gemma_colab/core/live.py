"""Show a run while it runs, for less than 2 % of its time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gemma_colab.core.history import GrowingHistory
from gemma_colab.core.machine import GIB
from gemma_colab.training.verdict import Verdict, training_verdict

OFTEN = 0.5  # seconds: nothing is shown more often than this
SHARE = 100  # times as long as showing took, until it is shown again: at most 1 % of the time, for a line and a figure each
RECENT = 20  # steps behind what is said of the pace


@dataclass(frozen=True)
class Progress:
    """A run at one moment.

    doing: "preparing", "training", "validating 3 of 7", or how it ended. seconds: in this process. seconds_left: at the recent
    pace, with the validations to come; None before there is one. tokens_per_second: read, padding not counted; None likewise.
    memory_gib: a GPU's, reserved by torch at most; on a CPU what this process holds. best_step, best_eval_loss: None before the
    first validation. history: `history_table`. done: whether this is the last moment.
    """

    doing: str
    step: int
    max_steps: int
    epoch: float
    num_train_epochs: float
    seconds: float
    seconds_left: float | None
    tokens_per_second: float | None
    learning_rate: float | None
    memory_gib: float
    best_step: int | None
    best_eval_loss: float | None
    history: pd.DataFrame
    done: bool = False

    @property
    def verdict(self) -> Verdict:
        return training_verdict(self.history, finished=self.done)


class LiveHistory(TrainerCallback):
    """Calls `show(progress)`, and `show.draw(progress)` where there is one, while training.

    Each is called at most every half second, and not before 100 times as long as it took has gone by: both together cost at most
    2 % of the time, however slow they are. Both are called at the end. `spent` counts the seconds that showing took.
    """

    def __init__(self, show: Callable[[Progress], None], clock: Callable[[], float] = time.monotonic):
        self.clock, self.spent, self.learning_rate, self.tokens, self.running = clock, 0.0, None, 0, False
        self.due = dict.fromkeys(filter(None, (show, getattr(show, "draw", None))), 0.0)
        self.last_pace = deque()
        self.log, self.pace, self.validation, self.validated = GrowingHistory(), deque(maxlen=RECENT + 1), 0.0, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self.start, self.running = self.clock(), True
        self._show(args, state, "preparing")
        # The first figure waits for fonts, before the first step: that is no measure of the next.
        self.due = {function: self.clock() for function in self.due}

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if not self.pace:
            self.pace.append((self.clock(), state.global_step, self.tokens))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs):
        if "loss" not in logs:
            return
        self.learning_rate = logs.get("learning_rate")
        self.tokens = logs.get("num_tokens")  # trl counts from the start of this process
        self.pace.append((self.clock(), state.global_step, self.tokens))
        self._show(args, state, "training")

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, eval_dataloader=None, **kwargs
    ):
        if not self.validated:  # its first batch is done: it began right after the last log
            self.validation_start = self.pace[-1][0] if self.pace else self.clock()
        self.validated += 1
        self._show(args, state, f"validating {self.validated} of {len(eval_dataloader)}")

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.validated:
            self.validation, self.validated = self.clock() - self.validation_start, 0
        self._pause()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._pause()

    def _pause(self) -> None:
        """What has just been done is not the pace of a step."""
        if len(self.pace) > 1:
            self.last_pace = self.pace
        self.pace = deque(maxlen=RECENT + 1)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        self._show(args, state, "done", done=True)
        self.running = False  # whoever validates by hand afterwards doesn't move the line again

    def _show(self, args: TrainingArguments, state: TrainerState, doing: str, done: bool = False) -> None:
        if not (self.running and state.is_world_process_zero):
            return
        for function, due in self.due.items():
            if (begin := self.clock()) < due and not done:
                continue
            function(self._progress(args, state, doing, done))
            took = self.clock() - begin
            self.spent += took
            self.due[function] = begin + took + max(OFTEN, SHARE * took)

    def _progress(self, args: TrainingArguments, state: TrainerState, doing: str, done: bool) -> Progress:
        seconds_left, tokens_per_second = self._paces(args, state)
        history = self.log.table(state.log_history)
        # `state` knows the best step only of runs that save checkpoints.
        best = history.loc[history["eval_loss"].idxmin()] if history["eval_loss"].notna().any() else None
        return Progress(
            doing=doing,
            step=state.global_step,
            max_steps=state.max_steps,
            epoch=state.epoch or 0.0,
            num_train_epochs=args.num_train_epochs,
            seconds=self.clock() - self.start,
            seconds_left=None if done else seconds_left,
            tokens_per_second=tokens_per_second,
            learning_rate=self.learning_rate,
            memory_gib=torch.cuda.max_memory_reserved() / GIB
            if torch.cuda.is_available()
            else psutil.Process().memory_info().rss / GIB,
            best_step=None if best is None else int(best["step"]),
            best_eval_loss=None if best is None else float(best["eval_loss"]),
            history=history,
            done=done,
        )

    def _paces(self, args: TrainingArguments, state: TrainerState) -> tuple[float | None, float | None]:
        """Seconds left, tokens a second: of the recent steps of this process, since a resumed one may run on another machine."""
        pace = self.pace if len(self.pace) > 2 or len(self.last_pace) < 2 else self.last_pace
        if len(pace) < 2 or pace[-1][0] <= pace[0][0]:
            return None, None
        (begin, first, before), (end, last, tokens) = pace[0], pace[-1]
        to_go = state.max_steps - state.global_step
        validations = -(-to_go // state.eval_steps) if args.eval_strategy != "no" and state.eval_steps else 0
        left = to_go * (end - begin) / (last - first) + validations * self.validation
        return left, None if None in (before, tokens) else (tokens - before) / (end - begin)
