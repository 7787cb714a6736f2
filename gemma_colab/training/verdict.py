"""What a training run's losses say, in plain words, while it runs and after.

The loss of one step is that of a few rows, easy ones or hard ones, so it jumps. Every rule about the training loss therefore
compares means over several steps, as ratios, and believes a difference only if it is several times what the noise alone would
make of it. The noise is the spread of the logarithm of the loss from step to step (`_noise`). A validation loss is of the same
rows each time: its differences are believed as they are. The first rule that holds speaks:

| word | holds when |
| --- | --- |
| starting | no loss yet |
| unstable | a loss is not a finite number, or three in a row are exactly 0 |
| unstable | two losses in a row stand 15 % above the start, no later than 20 steps after the learning rate's peak, and the loss has not halved since; or the last steps stand that much above the start |
| unstable | the last steps stand 20 % above the lowest part of the curve, and that rise is a seventh of the first loss or more |
| overfitting | the last validation loss is 5 % above the best one, or the last two are 3 % above it (*unstable* if the training loss rose too) |
| learning | the training loss fell by 5 % or more, or the validation loss by 2 % or more |
| not learning | neither, after 40 steps at the full learning rate, and a fall of 7 % in the training loss is ruled out |
| starting, unclear | none of these: before 40 steps at the full learning rate, later |

*Learning* becomes *settled* while a run goes on when the validation losses of its last quarter, three at least, lie within 1 %.
At the end of a run it becomes *finished*, unless the validation loss was lowest at its last point and fell by 2 % in the last
third. All this is tested on synthetic curves of every kind and on real runs that were made to go wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

VERDICT_WORDS = ("starting", "learning", "settled", "finished", "not learning", "overfitting", "unstable", "unclear")
ENOUGH_STEPS = 40  # at the full learning rate, in which a healthy run shows that it learns
LOWER_RATE, HIGHER_RATE = "try a third of the learning rate", "try three times the learning rate"


@dataclass(frozen=True)
class TrainingVerdict:
    """word: one of `VERDICT_WORDS`. sentence: what was seen. next_step: what to try. best_step: the step with the lowest validation
    loss, None without one. since: the step from which on it is so, None if there is no such step."""

    word: str
    sentence: str
    next_step: str
    best_step: int | None = None
    since: int | None = None

    def __str__(self):
        return f"{self.word}: {self.sentence}; {self.next_step}"


def training_verdict(history: pd.DataFrame, finished: bool = False) -> TrainingVerdict:
    """Judge a run by its losses, with the rules at the top of this module.

    history: a `history_table`. finished: whether the run is over, which also decides what can be advised.
    """
    run = _Losses(history, finished)
    for rule in (_broken, _above_the_start, _rising, _overfitting, _falling, _flat):
        if verdict := rule(run):
            return verdict
    n = len(run.loss)
    if not n:
        return run.says("starting", "no loss was logged yet", "train for at least one step")
    steps = "1 step" if n == 1 else f"{n} steps"
    if n - run.peak < ENOUGH_STEPS and not finished:
        return run.says("starting", f"after {steps} it is too early to tell", "let it run")
    advice = "train for more steps, or validate on more rows" if finished else "let it run"
    return run.says("unclear", f"the loss jumps too much from step to step to see a fall in {steps}", advice)


class _Losses:
    """The losses of a run as arrays, and what several rules ask of them.

    `log`: of the training losses, empty if one is infinite. `now`: training loss of the last steps, the geometric mean over a fifth of
    all, 5 to 50. `start`: before training changed it, the first or the median of the first three if that is lower. `peak`: how many
    steps until the learning rate was highest. `best`: index of the lowest validation loss, None without a finite one.
    """

    def __init__(self, history: pd.DataFrame, finished: bool):
        self.finished = finished
        logged, validated = history[history["loss"].notna()], history[history["eval_loss"].notna()]
        zero = logged["loss"] == 0
        # Three in a row; fewer at the start of a run. One batch may hold rows whose answers were cut off altogether.
        in_a_row = zero if zero.all() else zero & zero.shift(-1, fill_value=False) & zero.shift(-2, fill_value=False)
        self.zero_since = int(logged["step"][in_a_row].iloc[0]) if in_a_row.any() else None
        logged = logged[~zero]
        self.steps, self.loss = logged["step"].to_numpy(), logged["loss"].to_numpy(float)
        self.validation_steps, self.validation = validated["step"].to_numpy(), validated["eval_loss"].to_numpy(float)
        rate = logged["learning_rate"].to_numpy(float)
        self.peak = 0 if np.isnan(rate).all() else int(np.nanargmax(rate))
        self.best = int(np.argmin(self.validation)) if np.isfinite(self.validation).any() else None
        self.log = np.log(self.loss) if np.isfinite(self.loss).all() else np.array([])
        self.noise = _noise(self.log)
        self.start = self.now = np.nan
        if len(self.log):
            self.start = float(min(self.loss[0], np.median(self.loss[:3])))
            self.now = float(np.exp(self.log[-min(max(5, len(self.log) // 5), 50) :].mean()))

    def says(self, word: str, sentence: str, next_step: str, since: int | None = None) -> TrainingVerdict:
        best = None if self.best is None else int(self.validation_steps[self.best])
        return TrainingVerdict(word, sentence, next_step, best, None if since is None else int(since))

    def fell(self) -> bool:
        """Whether the first steps' mean is clearly above the last steps'. Compared over 4 steps, 8, 16, and so on up to half of
        the run: a loss may fall fast and then lie flat, or slowly all the time."""
        n = len(self.log)
        if n < 8:  # too few to estimate their noise
            return self.finished and n > 1 and self.log[: max(1, n // 3)].mean() - self.log[-max(1, n // 3) :].mean() > 0.05
        for first in _doubled(4, n // 2):
            last = max(first, min(n // 5, 50))
            fall = self.log[:first].mean() - self.log[-last:].mean()
            # a few differences are a poor estimate of the noise: in short runs more is asked for
            if fall > max(0.05, (3.5 + 30 / n) * self.noise * np.sqrt(1 / first + 1 / last)):
                return True
        return False

    def rose_after(self, step: int) -> bool:
        """Whether the training loss is higher after a step than just before it."""
        after = self.log[self.steps > step]
        before = self.log[self.steps <= step][-min(max(5, len(self.log) // 10), 50) :]
        if not (len(after) and len(before)):
            return False
        return after.mean() - before.mean() > max(0.05, 2 * self.noise * np.sqrt(1 / len(after) + 1 / len(before)))


def _noise(log: np.ndarray) -> float:
    """Standard deviation of the log of single losses around their curve: 1.4826 x the median of the absolute differences between
    neighbors (which a few outliers don't move), divided by the square root of 2, for a difference has the noise of both."""
    return float(1.4826 * np.median(np.abs(np.diff(log))) / np.sqrt(2)) if len(log) > 1 else 0.0


def _doubled(shortest: int, longest: int) -> list[int]:
    return [shortest * 2**i for i in range(32) if shortest * 2**i <= longest]


def _number(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"


def _broken(run: _Losses) -> TrainingVerdict | None:
    if run.zero_since is not None:
        seen = f"the loss is exactly 0 from step {run.zero_since} on, which is what an overflow in float16 looks like"
        return run.says("unstable", seen, "load the model with load_model", run.zero_since)
    for what, steps, losses in (("loss", run.steps, run.loss), ("validation loss", run.validation_steps, run.validation)):
        if len(broken := steps[~np.isfinite(losses)]):
            return run.says("unstable", f"the {what} is not a finite number at step {broken[0]}", LOWER_RATE, broken[0])
    return None


def _above_the_start(run: _Losses) -> TrainingVerdict | None:
    """A rate that is too high throws the loss up as soon as it is reached. A healthy loss never rises clearly above its start."""
    if len(run.log) < 3:
        return None
    log = run.log[: run.peak + 20] - np.log(run.start)
    pairs = (log[1:] + log[:-1]) / 2
    top = int(np.argmax(pairs))
    limit = max(np.log(1.15), (4.5 + 30 / len(run.log)) * run.noise)
    jumped = pairs[top] > limit and log[top : top + 2].min() > limit / 2  # both: one outlier alone doesn't count
    if jumped and run.now > run.start / 2:
        worst = top + int(np.argmax(log[top : top + 2]))
        seen = f"the loss jumped from {_number(run.start)} to {_number(run.loss[worst])} at step {run.steps[worst]}"
        return run.says("unstable", seen, LOWER_RATE, run.steps[top])
    if len(run.log) > 7 and np.log(run.now / run.start) > max(np.log(1.15), 3 * run.noise):
        return run.says("unstable", f"the loss went up from {_number(run.start)} to {_number(run.now)}", LOWER_RATE, run.steps[0])
    return None


def _rising(run: _Losses) -> TrainingVerdict | None:
    n = len(run.log)
    for window in _doubled(max(5, n // 40), n // 2)[:4]:
        means = np.convolve(run.log, np.ones(window) / window, "valid")
        lowest = int(np.argmin(means))
        low, now = np.exp(means[lowest]), np.exp(means[-1])
        if np.log(now / low) > max(np.log(1.2), 7 * run.noise / np.sqrt(window)) and now - low > run.start / 7:
            since = run.steps[lowest + window - 1]
            return run.says("unstable", f"the loss rose from {_number(low)} at step {since} to {_number(now)}", LOWER_RATE, since)
    return None


def _overfitting(run: _Losses) -> TrainingVerdict | None:
    if len(run.validation) < 2:
        return None
    best, lowest, last = run.best, run.validation[run.best], run.validation[-1]
    twice = len(run.validation) > best + 2 and run.validation[-2:].min() > 1.03 * lowest
    if not (last > 1.05 * lowest or twice):
        return None
    step, since = run.validation_steps[best], run.validation_steps[best + 1]
    if run.rose_after(step):
        seen = f"since step {since} both losses are higher, validation {_number(last)} where {_number(lowest)} was the best"
        return run.says("unstable", seen, LOWER_RATE, since)
    seen = f"since step {since} the validation loss is above its best, {_number(lowest)} at step {step}, and now {_number(last)}"
    advice = "train for fewer epochs, or add rows" if run.finished else "and stop: more steps make it worse"
    return run.says("overfitting", seen, f"keep the checkpoint of step {step}, {advice}", since)


def _falling(run: _Losses) -> TrainingVerdict | None:
    validation, validation_fell = run.validation, len(run.validation) > 1 and run.validation.min() < 0.98 * run.validation[0]
    if not (run.fell() or validation_fell):
        return None
    fell = f"the loss fell from {_number(run.start)} to {_number(run.now)}"
    if run.best is None:
        if run.finished:
            return run.says("finished", fell, "add validation rows to see whether it overfits")
        return run.says("learning", fell, "let it run")
    last, lowest = validation[-1], validation[run.best]
    best = f"the best validation loss is {_number(lowest)}, at step {run.validation_steps[run.best]}"
    seen = f"{fell}, and {best}" if run.fell() else f"{best}, and was {_number(validation[0])} before"
    if run.finished:
        two_thirds = np.flatnonzero(run.validation_steps <= run.validation_steps[-1] * 2 / 3)
        earlier = validation[two_thirds[-1]] if len(two_thirds) else np.nan
        if last == lowest and last < 0.98 * earlier:
            return run.says("learning", f"{seen}: it was still falling at the end", "train for more epochs")
        return run.says("finished", seen, "test it on rows it has not seen")
    quarter = max(3, len(validation) // 4)
    if len(validation) > 2 and validation[-quarter:].max() < 1.01 * validation[-quarter:].min():
        since = run.validation_steps[-quarter]
        seen = f"the validation loss has stayed near {_number(last)} since step {since}"
        return run.says("settled", seen, "let it run, or stop: the best checkpoint is kept", since)
    return run.says("learning", seen, "let it run")


def _flat(run: _Losses) -> TrainingVerdict | None:
    n = len(run.log)
    if n < 2 or (not run.finished and n - run.peak < ENOUGH_STEPS):  # the rate is warming up, or was reached just now
        return None
    third = max(1, n // 3)
    fall = run.log[:third].mean() - run.log[-third:].mean()
    sure = fall + 2 * run.noise * np.sqrt(2 / third) < 0.07
    if not sure and len(run.validation) < 2:
        return None
    return run.says("not learning", f"the loss stays near {_number(run.now)}", HIGHER_RATE)
