"""What a training run's losses say, in plain words, while it runs and after.

The loss of one step is that of a few rows, easy ones or hard ones, so it jumps. Every rule about the training loss therefore
compares means over several steps, as ratios, and believes a difference only if it is several times what the noise alone would
make of it. A validation loss is of the same rows each time: its differences are believed as they are. All this is tested on
synthetic curves of every kind and on real runs that were made to go wrong.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

VERDICT_WORDS = ("starting", "learning", "settled", "finished", "not learning", "overfitting", "unstable", "unclear")
ENOUGH_STEPS = 40  # at the full learning rate, in which a healthy run shows that it learns
MORE_EPOCHS = "train for more epochs"
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
    """Judge a run by its losses: the first rule that holds speaks.

    history: a `history_table`. finished: whether the run is over, which also decides what is advised.
    """
    logged, validated = history[history["loss"].notna()], history[history["eval_loss"].notna()]
    evaluated, validation = validated["step"].to_numpy(), validated["eval_loss"].to_numpy(float)
    best = int(np.argmin(validation)) if np.isfinite(validation).any() else None

    def says(word: str, sentence: str, next_step: str, since: int | None = None) -> TrainingVerdict:
        best_step = None if best is None else int(evaluated[best])
        return TrainingVerdict(word, sentence, next_step, best_step, None if since is None else int(since))

    # A loss is no number, or exactly 0. One batch may hold rows whose answers were cut off altogether: three in a row count, or all.
    zero = logged["loss"] == 0
    in_a_row = zero & zero.shift(-1, fill_value=zero.all()) & zero.shift(-2, fill_value=zero.all())
    if in_a_row.any():
        since = logged["step"][in_a_row].min()
        seen = f"the loss is exactly 0 from step {since} on, which is what an overflow in float16 looks like"
        return says("unstable", seen, "load the model with load_model", since)
    steps, loss = logged["step"][~zero].to_numpy(), logged["loss"][~zero].to_numpy(float)
    for what, where, losses in (("loss", steps, loss), ("validation loss", evaluated, validation)):
        if len(broken := where[~np.isfinite(losses)]):
            return says("unstable", f"the {what} is not a finite number at step {broken[0]}", LOWER_RATE, broken[0])
    n, log = len(loss), np.log(loss)
    if not n:
        return says("starting", "no loss was logged yet", "train for at least one step")
    rate = logged["learning_rate"][~zero].to_numpy(float)
    peak = 0 if np.isnan(rate).all() else int(np.nanargmax(rate))  # steps until the rate was highest
    # Standard deviation of a single loss's log, from differences between neighbors, which outliers don't move.
    noise = float(1.4826 * np.median(np.abs(np.diff(log))) / np.sqrt(2)) if n > 1 else 0.0
    start = min(loss[0], np.median(loss[:3]))  # before training changed it
    now = np.exp(log[-min(max(5, n // 5), 50) :].mean())  # the geometric mean over a fifth of all steps

    def clearly_above(these: np.ndarray, those: np.ndarray, times: float) -> bool:
        """Whether their mean is above the others' by 5 %, and by so many times what noise makes of a difference of two means."""
        return these.mean() - those.mean() > max(0.05, times * noise * np.sqrt(1 / len(these) + 1 / len(those)))

    # Above the start: a rate that is too high throws the loss up as soon as it is reached; a healthy loss never rises like that.
    if n > 2:
        above = log[: peak + 20] - np.log(start)
        pairs = (above[1:] + above[:-1]) / 2
        top = int(np.argmax(pairs))
        limit = max(np.log(1.15), (4.5 + 30 / n) * noise)
        # Both of a pair: one outlier alone doesn't count.
        if pairs[top] > limit and above[top : top + 2].min() > limit / 2 and now > start / 2:
            worst = top + int(np.argmax(above[top : top + 2]))
            seen = f"the loss jumped from {_number(start)} to {_number(loss[worst])} at step {steps[worst]}"
            return says("unstable", seen, LOWER_RATE, steps[top])
    if n > 7 and np.log(now / start) > max(np.log(1.15), 3 * noise):
        return says("unstable", f"the loss went up from {_number(start)} to {_number(now)}", LOWER_RATE, steps[0])

    # Above the lowest part of the curve, and by a seventh of the first loss.
    for window in _doubled(max(5, n // 40), n // 2)[:4]:
        means = np.convolve(log, np.ones(window) / window, "valid")
        lowest = int(np.argmin(means))
        low, high = np.exp(means[lowest]), np.exp(means[-1])
        if np.log(high / low) > max(np.log(1.2), 7 * noise / np.sqrt(window)) and high - low > start / 7:
            since = steps[lowest + window - 1]
            return says("unstable", f"the loss rose from {_number(low)} at step {since} to {_number(high)}", LOWER_RATE, since)

    # The last validation loss is 5 % above the best one, or the last two are 3 % above it; and the training loss?
    if len(validation) > 1:
        low, last = validation[best], validation[-1]
        twice = len(validation) > best + 2 and validation[-2:].min() > 1.03 * low
        if last > 1.05 * low or twice:
            step, since = evaluated[best], evaluated[best + 1]
            after, before = log[steps > step], log[steps <= step][-min(max(5, n // 10), 50) :]
            if len(after) and len(before) and clearly_above(after, before, 2):
                seen = f"since step {since} both losses are higher, validation {_number(last)} where {_number(low)} was the best"
                return says("unstable", seen, LOWER_RATE, since)
            seen = f"since step {since} the validation loss is above its best, {_number(low)} at step {step}, and now {_number(last)}"
            advice = "train for fewer epochs, or add rows" if finished else "and stop: more steps make it worse"
            return says("overfitting", seen, f"keep the checkpoint of step {step}, {advice}", since)

    # The training loss fell by 5 %, compared over 4 steps, 8, 16, and so on: it may fall fast and then stay flat, or slowly all the
    # time; in short runs, whose noise is hardly known, by more of that. Or the validation loss fell by 2 %.
    third = max(1, n // 3)
    fall = log[:third].mean() - log[-third:].mean()
    windows = [(first, max(first, min(n // 5, 50))) for first in _doubled(4, n // 2)]
    fell = any(clearly_above(log[:first], log[-last:], 3.5 + 30 / n) for first, last in windows)
    if n < 8:
        fell = finished and n > 1 and fall > 0.05
    if fell or (len(validation) > 1 and validation.min() < 0.98 * validation[0]):
        seen = f"the loss fell from {_number(start)} to {_number(now)}"
        if best is None and finished:
            return says("finished", seen, "add validation rows to see whether it overfits")
        if best is None:
            return says("learning", seen, "let it run")
        last, lowest = validation[-1], f"the best validation loss is {_number(validation[best])}, at step {evaluated[best]}"
        seen = f"{seen}, and {lowest}" if fell else f"{lowest}, and was {_number(validation[0])} before"
        if finished:
            earlier = validation[evaluated <= evaluated[-1] * 2 / 3][-1:]
            if len(earlier) and last == validation[best] and last < 0.98 * earlier[0]:
                return says("learning", f"{seen}: it was still falling at the end", MORE_EPOCHS)
            return says("finished", seen, "test it on rows it has not seen")
        quarter = validation[-max(3, len(validation) // 4) :]
        if len(quarter) > 2 and quarter.max() < 1.01 * quarter.min():
            since = evaluated[-len(quarter)]
            seen = f"the validation loss has stayed near {_number(last)} since step {since}"
            return says("settled", seen, "let it run, or stop: the best checkpoint is kept", since)
        return says("learning", seen, "let it run")

    # Neither. Not learning when a fall of 7 % in the training loss is ruled out.
    early = n - peak < ENOUGH_STEPS and not finished
    if n > 1 and not early and (fall + 2 * noise * np.sqrt(2 / third) < 0.07 or len(validation) > 1):
        return says("not learning", f"the loss stays near {_number(now)}", HIGHER_RATE)
    if early:
        return says("starting", f"after {n} step{'s' * (n > 1)} it is too early to tell", "let it run")
    advice = "train for more steps, or validate on more rows" if finished else "let it run"
    return says("unclear", f"the loss jumps too much from step to step to see a fall in {n} step{'s' * (n > 1)}", advice)


def _doubled(shortest: int, longest: int) -> list[int]:
    return [shortest * 2**i for i in range(32) if shortest * 2**i <= longest]


def _number(loss: float) -> str:
    return f"{loss:.2f}" if loss >= 0.1 else f"{loss:.2g}"
