"""What a training run's losses say, in plain words, while it runs and after.

The loss of one step is that of a few rows, easy ones or hard ones, so it jumps. Every rule about the training loss therefore
compares means over several steps, as ratios, and believes a difference only if it is several times what the noise alone would
make of it. The noise is the spread of the logarithm of the loss from step to step (`_noise`). A validation loss is of the same
rows each time: its differences are believed as they are.

The rules, in this order; the first that holds speaks:

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

WORDS = ("starting", "learning", "settled", "finished", "not learning", "overfitting", "unstable", "unclear")
ENOUGH = 40  # steps at the full learning rate in which a healthy run shows that it learns
LOWER_RATE, HIGHER_RATE = "try a third of the learning rate", "try three times the learning rate"


@dataclass(frozen=True)
class Verdict:
    """word: one of `WORDS`. sentence: what was seen. next_step: what to try. best_step: the step with the lowest validation loss,
    None without one. since: the step from which on it is so, None if there is no such step."""

    word: str
    sentence: str
    next_step: str
    best_step: int | None = None
    since: int | None = None

    def __str__(self):
        return f"{self.word}: {self.sentence}; {self.next_step}"


def training_verdict(history: pd.DataFrame, finished: bool = False) -> Verdict:
    """What the losses of a run say. history: of `training.history`, one line a step. finished: whether the run is over, which also
    decides what can be advised. The rules are those at the top of this module."""
    run = _Run(history, finished)
    for rule in (_broken, _above_the_start, _rising, _overfitting, _falling, _flat):
        if verdict := rule(run):
            return verdict
    n = len(run.loss)
    if not n:
        return run.says("starting", "no loss was logged yet", "train for at least one step")
    if n - run.peak < ENOUGH and not finished:
        return run.says("starting", f"after {_steps(n)} it is too early to tell", "let it run")
    advice = "train for more steps, or validate on more rows" if finished else "let it run"
    return run.says("unclear", f"the loss jumps too much from step to step to see a fall in {_steps(n)}", advice)


class _Run:
    """The losses of a run as arrays, and what several rules ask of them."""

    def __init__(self, history: pd.DataFrame, finished: bool):
        self.finished = finished
        logged, validated = history[history["loss"].notna()], history[history["eval_loss"].notna()]
        zero = logged["loss"] == 0
        # Three in a row; fewer at the start of a run. One batch may hold rows whose answers were cut off altogether.
        in_a_row = zero if zero.all() else zero & zero.shift(-1, fill_value=False) & zero.shift(-2, fill_value=False)
        self.zero_since = int(logged["step"][in_a_row].iloc[0]) if in_a_row.any() else None
        logged = logged[~zero]
        self.steps, self.loss = logged["step"].to_numpy(), logged["loss"].to_numpy(float)
        self.rate = logged["learning_rate"].to_numpy(float)
        self.validation_steps, self.validation = validated["step"].to_numpy(), validated["eval_loss"].to_numpy(float)
        finite = np.isfinite(self.validation)
        self.best = int(np.argmin(self.validation)) if finite.any() else None
        self.log = np.log(self.loss) if np.isfinite(self.loss).all() else np.array([])
        self.noise = _noise(self.log)

    def says(self, word: str, sentence: str, next_step: str, since: int | None = None) -> Verdict:
        best = None if self.best is None else int(self.validation_steps[self.best])
        return Verdict(word, sentence, next_step, best, None if since is None else int(since))

    @property
    def now(self) -> float:
        """The training loss of the last steps: the geometric mean over a fifth of all, 5 to 50."""
        return float(np.exp(self.log[-_between(5, len(self.log) // 5, 50) :].mean()))

    @property
    def start(self) -> float:
        """The training loss before training changed it: the first, or the median of the first three if that is lower."""
        return float(min(self.loss[0], np.median(self.loss[:3])))

    @property
    def peak(self) -> int:
        """How many steps were made until the learning rate was highest; all of them while it still rises."""
        if np.isnan(self.rate).all():
            return 0
        return int(np.nanargmax(self.rate))

    def fell(self) -> bool:
        """Whether the first steps' mean is clearly above the last steps'. Compared over 5 steps, 10, 20, and so on up to half of
        the run: a loss may fall fast and then lie flat, or slowly all the time."""
        n = len(self.log)
        if n < 8:  # too few to estimate their noise
            ends = max(1, n // 3)
            return self.finished and n > 1 and self.log[:ends].mean() - self.log[-ends:].mean() > 0.05
        last = _between(4, n // 5, 50)
        for first in _spans(4, n // 2):
            fall = self.log[:first].mean() - self.log[-max(first, last) :].mean()
            # a few differences are a poor estimate of the noise: in short runs more is asked for
            if fall > max(0.05, (3.5 + 30 / n) * self.noise * np.sqrt(1 / first + 1 / max(first, last))):
                return True
        return False

    def rose_after(self, step: int) -> bool:
        """Whether the training loss is higher after a step than just before it."""
        after = self.log[self.steps > step]
        before = self.log[self.steps <= step][-_between(5, len(self.log) // 10, 50) :]
        if not (len(after) and len(before)):
            return False
        return after.mean() - before.mean() > max(0.05, 2 * self.noise * np.sqrt(1 / len(after) + 1 / len(before)))

    def validation_fell(self) -> bool:
        return len(self.validation) > 1 and self.validation.min() < 0.98 * self.validation[0]


def _noise(log: np.ndarray) -> float:
    """Standard deviation of the log of single losses around their curve: 1.4826 x the median of the absolute differences between
    neighbours (which a few outliers don't move), divided by the square root of 2, for a difference has the noise of both."""
    return float(1.4826 * np.median(np.abs(np.diff(log))) / np.sqrt(2)) if len(log) > 1 else 0.0


def _means(values: np.ndarray, window: int) -> np.ndarray:
    """Of each `window` neighbours."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[window:] - sums[:-window]) / window


def _spans(shortest: int, longest: int) -> list[int]:
    return [shortest * 2**i for i in range(32) if shortest * 2**i <= longest]


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))


def _number(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"


def _steps(n: int) -> str:
    return "1 step" if n == 1 else f"{n} steps"


def _broken(run: _Run) -> Verdict | None:
    if run.zero_since is not None:
        return run.says(
            "unstable",
            f"the loss is exactly 0 from step {run.zero_since} on, which is what an overflow in float16 looks like",
            "load the model with load_model",
            run.zero_since,
        )
    for what, steps, losses in (
        ("loss", run.steps, run.loss),
        ("validation loss", run.validation_steps, run.validation),
    ):
        if len(broken := steps[~np.isfinite(losses)]):
            return run.says("unstable", f"the {what} is not a finite number at step {broken[0]}", LOWER_RATE, broken[0])
    return None


def _above_the_start(run: _Run) -> Verdict | None:
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
        return run.says(
            "unstable",
            f"the loss jumped from {_number(run.start)} to {_number(run.loss[worst])} at step {run.steps[worst]}",
            LOWER_RATE,
            run.steps[top],
        )
    if len(run.log) > 7 and np.log(run.now / run.start) > max(np.log(1.15), 3 * run.noise):
        return run.says("unstable", f"the loss went up from {_number(run.start)} to {_number(run.now)}", LOWER_RATE, run.steps[0])
    return None


def _rising(run: _Run) -> Verdict | None:
    n = len(run.log)
    for window in _spans(max(5, n // 40), n // 2)[:4]:
        means = _means(run.log, window)
        lowest = int(np.argmin(means))
        low, now = np.exp(means[lowest]), np.exp(means[-1])
        if np.log(now / low) > max(np.log(1.2), 7 * run.noise / np.sqrt(window)) and now - low > run.start / 7:
            since = run.steps[lowest + window - 1]
            return run.says("unstable", f"the loss rose from {_number(low)} at step {since} to {_number(now)}", LOWER_RATE, since)
    return None


def _overfitting(run: _Run) -> Verdict | None:
    if len(run.validation) < 2:
        return None
    best, lowest, last = run.best, run.validation[run.best], run.validation[-1]
    twice = len(run.validation) > best + 2 and run.validation[-2:].min() > 1.03 * lowest
    if not (last > 1.05 * lowest or twice):
        return None
    step, since = run.validation_steps[best], run.validation_steps[best + 1]
    if run.rose_after(step):
        return run.says(
            "unstable",
            f"since step {since} both losses are higher, validation {_number(last)} where {_number(lowest)} was the best",
            LOWER_RATE,
            since,
        )
    return run.says(
        "overfitting",
        f"since step {since} the validation loss is above its best, {_number(lowest)} at step {step}, and now {_number(last)}",
        f"keep the checkpoint of step {step}, "
        + ("train for fewer epochs, or add rows" if run.finished else "and stop: more steps make it worse"),
        since,
    )


def _falling(run: _Run) -> Verdict | None:
    if not (run.fell() or run.validation_fell()):
        return None
    fell = f"the loss fell from {_number(run.start)} to {_number(run.now)}"
    if run.best is None:
        if run.finished:
            return run.says("finished", fell, "add validation rows to see whether it overfits")
        return run.says("learning", fell, "let it run")
    validation, last, lowest = run.validation, run.validation[-1], run.validation[run.best]
    best = f"the best validation loss is {_number(lowest)}, at step {run.validation_steps[run.best]}"
    seen = f"{fell}, and {best}" if run.fell() else f"{best}, and was {_number(validation[0])} before"
    if run.finished:
        two_thirds = np.flatnonzero(run.validation_steps <= run.validation_steps[-1] * 2 / 3)
        earlier = validation[two_thirds[-1]] if len(two_thirds) else np.nan
        if last == lowest and last < 0.98 * earlier:
            return run.says("learning", f"{seen}: it was still falling at the end", "train for more epochs")
        return run.says("finished", seen, "test it on rows it has not seen")
    quarter = max(3, len(validation) // 4)
    advice = "let it run, or stop: the best checkpoint is kept"
    if len(validation) > 2 and validation[-quarter:].max() < 1.01 * validation[-quarter:].min():
        since = run.validation_steps[-quarter]
        return run.says("settled", f"the validation loss has stayed near {_number(last)} since step {since}", advice, since)
    return run.says("learning", seen, "let it run")


def _flat(run: _Run) -> Verdict | None:
    n = len(run.log)
    if n < 2 or (not run.finished and n - run.peak < ENOUGH):  # the rate is warming up, or was reached just now
        return None
    third = max(1, n // 3)
    fall = run.log[:third].mean() - run.log[-third:].mean()
    sure = fall + 2 * run.noise * np.sqrt(2 / third) < 0.07
    if not sure and len(run.validation) < 2:
        return None
    return run.says("not learning", f"the loss stays near {_number(run.now)}", HIGHER_RATE)
