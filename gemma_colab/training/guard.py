"""What stops a run, keeps it from stopping, or makes it fast: a loss that is no number, an interrupt, no progress, too little memory."""

import math
import signal
import threading
from collections.abc import Callable

from transformers import TrainerCallback
from trl.trainer import utils as trl_utils

from gemma_colab.core.settings import CPU_TILE, TrainSettings
from gemma_colab.training.checkpoints import agreed

SCALER_SKIPS = 12  # steps in a row that a GradScaler may skip: it starts at 65,536 and halves
ZEROS = 3  # in a row
_USE_TRITON = getattr(trl_utils, "_use_triton", None)  # TRL's own, before `score_answers_only`


class StopOnNonFiniteLoss(TrainerCallback):
    """Stops a run whose loss or gradient is no number, or whose loss stays exactly 0; `reason` then says why.

    skipped: steps in a row whose gradient may be no number: 0, but in float16 the scaler tries which scale fits, skips such steps
    and changes no weight in them. Nothing that was computed from then on is saved.
    """

    def __init__(self, skipped: int = 0):
        self.skipped, self.reason, self.what, self.since = skipped, "", "", 0

    def on_log(self, args, state, control, logs=None, **kwargs):
        what, tolerated = "", 0
        if "loss" not in logs:
            if math.isfinite(logs.get("eval_loss", 0.0)):
                return
            what = "the validation loss is no number"
        elif not math.isfinite(logs["loss"]):
            what = "the loss is no number"
        elif not math.isfinite(float(logs.get("grad_norm", 0.0))):
            what, tolerated = "the gradient is no number", self.skipped
        elif logs["loss"] == 0:
            what, tolerated = "the loss is exactly 0", ZEROS - 1
        if what != self.what:
            self.what, self.since = what, state.global_step
        if what and state.global_step - self.since >= tolerated:
            self.reason = f"{what} since step {self.since}; likely cause: {_likely_cause(what, args, state.log_history)}"
            control.should_training_stop, control.should_save, control.should_evaluate = True, False, False


def _likely_cause(what: str, args, log_history: list[dict]) -> str:
    losses = [line["loss"] for line in log_history if "loss" in line and math.isfinite(line["loss"])]
    rate = f"the learning rate {args.learning_rate:g} is too high"
    if len(losses) > 1 and max(losses[-20:]) > 1.2 * losses[0]:
        return f"{rate}, the loss rose before; try a third of it"
    if args.fp16 or what.endswith("exactly 0"):
        return "float16 overflowed; load the model with load_model, which keeps the residual stream in float32"
    return f"{rate}, or a row is broken; try a third of it, check the rows"


class StopEarly(TrainerCallback):
    """Stops after `patience` validation points without a new best; never for 0. transformers' own counts in memory, and this one in
    the log, which a checkpoint brings back."""

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluate(self, args, state, control, **kwargs):
        losses = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
        if self.patience and len(losses) - 1 - losses.index(min(losses)) >= self.patience:
            control.should_training_stop = True


class Interrupt(TrainerCallback):
    """Inside its `with` block, an interrupt (of the kernel, Ctrl+C, SIGTERM) ends the run after the step at hand, with a
    checkpoint. A second one stops at once."""

    def __init__(self, say: Callable[[str], None]):
        self.asked, self.stopped, self.say, self.old = False, False, say, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            self.old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *error):
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
        smaller = max(n for n in range(1, batch // 2 + 1) if rows % n == 0)
        now = settings.replace(per_device_train_batch_size=smaller, gradient_accumulation_steps=rows // smaller)
        steps = f"{settings.gradient_accumulation_steps} -> {now.gradient_accumulation_steps}: the same {rows} rows behind each update"
        return now, f"per_device_train_batch_size {batch} -> {smaller}, gradient_accumulation_steps {steps}"
    if not settings.gradient_checkpointing:
        what = "gradient_checkpointing on: the same result, a step takes about half as long again"
        return settings.replace(gradient_checkpointing=True), what
    length = min(settings.max_length, longest) // 2
    if settings.packing or length < 64:
        return None, "choose a smaller model, a GPU with more memory, or packing=False with a smaller max_length"
    if not shorter_rows:
        what = f"what is left is to cut rows to max_length={length} tokens: allow that with shorter_rows=True (--shorter-rows), or take a smaller model"
        return None, what
    return settings.replace(max_length=length), f"max_length -> {length}: longer rows lose their end"


def score_answers_only() -> bool:
    """On a CPU, let TRL's loss look at the answers only, in pieces that fit the processor's cache; returns whether it can be done.

    Without Triton, TRL 1.16 scores every position against the whole vocabulary, 32,768 words at once, and leaves out afterwards what
    doesn't count. Loss and gradients stay the same, and a step of 270M takes a third of the time (benchmarks/README.md).
    """
    if _USE_TRITON is None or not hasattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE"):
        return False
    trl_utils._use_triton = lambda device: device.type == "cpu" or _USE_TRITON(device)
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = CPU_TILE
    return True
