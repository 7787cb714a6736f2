"""What stops a run, or keeps it from stopping: a loss that is no number, an interrupt, no more progress, too little memory."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable

import pandas as pd
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from gemma_colab.core.machine import GIB
from gemma_colab.core.settings import TrainSettings
from gemma_colab.training.checkpoints import Checkpoint, agreed

SCALER_SKIPS = 12  # steps in a row that a GradScaler may skip: it starts at 65,536 and halves
ZEROS = 3  # one batch may hold rows whose answers were cut off altogether


class StopOnNonFiniteLoss(TrainerCallback):
    """Stops a run whose loss or gradient is no number, or whose loss stays exactly 0; `reason` then says why.

    skipped: steps in a row whose gradient may be no number: 0, but in float16 the scaler tries which scale fits, skips such steps
    and changes no weight in them. Nothing that was computed from then on is saved.
    """

    def __init__(self, skipped: int = 0):
        self.skipped, self.reason, self.bad, self.zeros, self.first = skipped, "", 0, 0, None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            if not math.isfinite(logs.get("eval_loss", 0.0)):
                self._stop("the validation loss is no number", args, state, control)
            return
        loss, gradient = logs["loss"], float(logs.get("grad_norm", 0.0))
        no_number = not (math.isfinite(loss) and math.isfinite(gradient))
        self.bad = self.bad + 1 if no_number else 0
        self.zeros = self.zeros + 1 if loss == 0 else 0
        self.first = (self.first or state.global_step) if self.bad or self.zeros else None
        if self.bad > (self.skipped if math.isfinite(loss) else 0):
            self._stop(f"the {'gradient' if math.isfinite(loss) else 'loss'} is no number", args, state, control)
        elif self.zeros >= ZEROS:
            self._stop("the loss is exactly 0", args, state, control)

    def _stop(self, what: str, args, state, control) -> None:
        losses = [line["loss"] for line in state.log_history if "loss" in line and math.isfinite(line["loss"])]
        rate = f"the learning rate {args.learning_rate:g} is too high"
        if self.zeros:
            cause = (
                "no answer token was left to learn from, because max_length cuts the answers off, or float16 overflowed; look at "
                "the lengths in notebook 01, and load the model with load_model"
            )
        elif len(losses) > 1 and max(losses[-20:]) > 1.2 * losses[0]:
            cause = f"{rate}, the loss rose before; try a third of it"
        elif args.fp16:
            cause = "float16 overflowed; load the model with load_model, which keeps the residual stream in float32"
        else:
            cause = f"{rate}, or a row is broken; try a third of it, check the rows"
        self.reason = f"{what} since step {self.first or state.global_step}; likely cause: {cause}"
        control.should_training_stop, control.should_save, control.should_evaluate = True, False, False


def early_stopping(patience: int, start: Checkpoint | None) -> list[EarlyStoppingCallback]:
    """Make transformers' own callback, which stops after `patience` validation points without a new best; none for 0.

    It counts in memory, so a resumed run gets its count from the log of the checkpoint it starts from.
    """
    callback = EarlyStoppingCallback(patience)
    if losses := [line["eval_loss"] for line in (start.log_history if start else []) if "eval_loss" in line]:
        callback.early_stopping_patience_counter = len(losses) - 1 - losses.index(min(losses))
    return [callback] if patience else []


class Interrupt(TrainerCallback):
    """Inside its `with` block, an interrupt (of the kernel, Ctrl+C, SIGTERM) ends the run after the step at hand, with a
    checkpoint. A second one stops at once."""

    def __init__(self, say: Callable[[str], None] = print):
        self.asked, self.stopped, self.say, self.old = False, False, say, {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self.old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step, with a checkpoint; interrupt again to stop at once")

    def on_step_end(self, args, state, control, **kwargs):
        if agreed(self.asked, args):
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True


def save_memory(settings: TrainSettings, longest: int, shorter_rows: bool) -> tuple[TrainSettings | None, str]:
    """Choose the next memory-saving step after the memory ran out: the settings, None if nothing is left, and what it means.

    First what changes nothing but the time: a smaller micro-batch with more accumulation, then checkpointing. Rows are cut (to half
    of the `longest`, in tokens) by consent only.
    """
    rows, batch = settings.effective_batch, settings.per_device_train_batch_size
    if batch > 1:
        smaller = max(n for n in range(1, batch // 2 + 1) if (rows % n == 0 and rows // n <= 256) or n == 1)
        now = settings.replace(per_device_train_batch_size=smaller, gradient_accumulation_steps=min(256, rows // smaller))
        return now, (
            f"per_device_train_batch_size {batch} -> {smaller}, gradient_accumulation_steps "
            f"{settings.gradient_accumulation_steps} -> {now.gradient_accumulation_steps}: the same {rows} rows behind each update"
        )
    if not settings.gradient_checkpointing:
        what = "gradient_checkpointing on: the same result, a step takes about half as long again"
        return settings.replace(gradient_checkpointing=True), what
    length = min(settings.max_length, longest) // 2
    if settings.packing or length < 64:
        return None, "choose a smaller model, a GPU with more memory, or packing=False with a smaller max_length"
    if not shorter_rows:
        return None, (
            f"what is left is to cut rows to max_length={length} tokens: allow that with shorter_rows=True (notebook 01 shows how "
            "many answers lose their end), or choose a smaller model"
        )
    return settings.replace(max_length=length), f"max_length -> {length}: longer rows lose their end"


def what_took_memory(settings: TrainSettings, plan: Callable[[TrainSettings], pd.Series] | None) -> str:
    """Say what the GPU's memory was spent on: measured where there is one, and by the plan's parts."""
    said = []
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        said.append(f"{(total - free) / GIB:.1f} of {total / GIB:.1f} GiB were taken, {free / GIB:.1f} free")
    if plan is not None:
        parts = plan(settings).sort_values(ascending=False)
        largest = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.head(3).items())
        said.append(f"predicted for these settings {parts.sum():.1f} GiB, most of it {largest}")
    return "; ".join(said)
