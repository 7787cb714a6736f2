"""Which learning rate? Let it rise while training, and look where the loss falls and where it breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from gemma_colab.core.curve import BEST, TRAIN, new_axes, smoothed
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.training.records import cut_above_the_start
from gemma_colab.training.short import short_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BROKEN = 1.5  # times the lowest smoothed loss: the run has broken
FALL = 0.8  # share of the whole fall that was made at the suggestion; see `suggest`


@dataclass(frozen=True, eq=False)
class LearningRates:
    """A finished range test. table: learning_rate, loss, smoothed (`history.smoothed`), one line a step. suggestion: a rate.
    why: one sentence on it."""

    table: pd.DataFrame
    suggestion: float
    why: str

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the loss of each step over its learning rate, smoothed too, and the suggestion; the title says why."""
        ax, table = ax or new_axes(7, 3.2), self.table
        ax.plot(table["learning_rate"], table["loss"], ".", color=TRAIN, alpha=0.5, label="each step")
        ax.plot(table["learning_rate"], table["smoothed"], color=TRAIN, label="smoothed")
        ax.axvline(self.suggestion, color=BEST, linestyle="--", label=f"suggestion {self.suggestion:.1e}")
        ax.set(xscale="log", xlabel="learning rate, higher at each step", ylabel="loss (nats per token)")
        ax.set_title("\n".join(wrap(self.why, 80)), fontsize=9)
        cut_above_the_start(ax, table["loss"].head(5))
        ax.legend()
        ax.grid(alpha=0.3)
        return ax


class _StopWhenBroken(TrainerCallback):
    """Ends a run whose smoothed loss has passed `BROKEN` times its minimum, or is no number."""

    def __init__(self, window: int):
        self.window, self.losses, self.lowest = window, [], math.inf

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        if len(self.losses) >= self.window:
            mean = sum(self.losses[-self.window :]) / self.window
            self.lowest = min(self.lowest, mean)
            control.should_training_stop |= not mean <= BROKEN * self.lowest  # true for NaN too


def find_learning_rate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    settings: TrainSettings,
    lora: LoraSettings | LoraConfig,
    dtype: torch.dtype,
    *,
    lowest: float = 1e-6,
    highest: float = 0.1,
    steps: int = 60,
) -> LearningRates:
    """Run the learning rate range test (L. N. Smith, arXiv 1506.01186, section 3.3), with a rate that rises by the same factor at
    each of `steps` steps, from `lowest` to `highest`, on a fresh adapter, which is then unloaded; the model stays as it was.

    It ends early when the smoothed loss exceeds 1.5 x its minimum. Batch, accumulation, optimizer and seed are those of the
    settings; there is no warm-up, and no replay. lowest < highest, both 1e-6 to 0.1. steps: 20-1000. How a rate is chosen: `suggest`.
    Raises `SettingsError` when these are out of range, and `ModelError` for a `PeftModel`.
    """
    if not 1e-6 <= lowest < highest <= 0.1:
        raise SettingsError(f"lowest={lowest!r} and highest={highest!r} must rise from 1e-6 to 0.1; try 1e-6 and 0.1")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 20 <= steps <= 1000:
        raise SettingsError(f"steps={steps!r} must be a whole number from 20 to 1000; try 60")
    history = short_run(
        model,
        tokenizer,
        rows,
        settings.replace(learning_rate=lowest, warmup_steps=0, replay=0.0),
        lora,
        dtype,
        max_steps=steps,
        callbacks=[_StopWhenBroken(_window(steps))],
        schedule=lambda step: (highest / lowest) ** (step / (steps - 1)),
    )
    table = history[["learning_rate", "loss"]].reset_index(drop=True)
    return LearningRates(table.assign(smoothed=smoothed(table["loss"])), *suggest(table, settings.learning_rate))


def _window(steps: int) -> int:
    """Steps in a mean of `history.smoothed`, of a run of so many."""
    return max(5, steps // 15) | 1


def suggest(table: pd.DataFrame, otherwise: float) -> tuple[float, str]:
    """Choose a learning rate, and say why. table: learning_rate and loss of a range test, one line a step. otherwise: what is returned when
    there is no answer.

    The rule: the lowest rate at which the smoothed loss had made four fifths of its way from the first rates down to its minimum.
    At the minimum itself a step is as long as it can be at all, and a run of many steps needs a margin. Measured on the tiny
    Gemma 3 and support_ru: 2.5e-3 to 3e-3 with batches of 8 rows, 2e-3 to 3e-3 with batches of 2 (three seeds each). Validation
    loss after one epoch at 3e-3: 4.15; at a tenth 5.54, at three times 3.68, at ten times 5.72. After three epochs three times as
    much is no better any more: 3.00 and 2.98.

    The first loss is the mean of a sixth of the steps. A fall or a rise counts when it is more than 2 % of that, and more than
    3.5 times what the noise of single batches leaves in the difference of two means: of 2,000 flat curves, fewer than 1 % passed.
    """
    if not np.isfinite(table["loss"]).any():
        return otherwise, "no loss was a number: look at the rows and at how the model is loaded; your settings' rate stands"
    rates, loss, means, window = table["learning_rate"], table["loss"], smoothed(table["loss"]), _window(len(table))
    first, best = loss.head(max(window, len(table) // 6)).mean(), means.idxmin()
    noise = loss.diff().abs().median() / 0.954  # the median of these is 0.954 for normal noise with a deviation of 1
    enough = max(0.02 * first, 3.5 * noise * math.sqrt(2 / window))
    fall = first - means[best]
    rose = not np.isfinite(loss).all() or means.iloc[-1] - means[best] > enough
    span = f"from {rates.iloc[0]:.1e} to {rates.iloc[-1]:.1e}"
    if not fall > enough:
        if rose:
            return otherwise, f"the loss never fell {span}, it only rose: look lower; until then your settings' rate stands"
        return otherwise, f"the loss never fell {span}: nothing can be said, and your settings' rate stands"
    at = rates[(means <= first - FALL * fall).idxmax()]
    what = f"four fifths of the fall were made at {at:.1e}; the loss was lowest at {rates[best]:.1e} and"
    if not rose:
        return float(f"{at:.1e}"), f"{what} never rose up to {rates.iloc[-1]:.1e}: a higher rate may do as well"
    return float(f"{at:.1e}"), f"{what} rose behind it"
