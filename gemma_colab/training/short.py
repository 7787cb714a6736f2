"""Short runs on a fresh adapter: something is learned about the settings, nothing is saved, and the model stays as it was.

`short_run` is one of them; `find_learning_rate` lets the rate rise while it trains, and looks where the loss falls and where it
breaks; `trial_run` measures how much memory the steps of a long run will take, and how long they last.
"""

import copy
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.utils import are_progress_bars_disabled
from matplotlib.axes import Axes
from peft import LoraConfig, PeftModel
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.curve import BEST, TRAIN, history_table, new_axes, smoothed
from gemma_colab.core.errors import ModelError, SettingsError, say
from gemma_colab.core.settings import LoraSettings, TrainSettings, check_number
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.model.lengths import token_lengths
from gemma_colab.model.measure import model_bytes, peak_memory
from gemma_colab.model.memory import readable
from gemma_colab.training.kept import fit_rows
from gemma_colab.training.records import cut_above_the_start
from gemma_colab.training.replay import general_rows, mix_in

BROKEN = 1.5  # times the lowest smoothed loss: a range test's run has broken
VALIDATED = 4  # rows at once, of any short run: it is compared with others of its kind, and single rows take twice as long
FALL = 0.8  # share of the whole fall that was made at the suggestion; see `suggest`


def remember(model: PreTrainedModel) -> Callable[[], None]:
    """Make a function that makes the model what it is now: adapter or none, hooks, the trainer's own `forward`, checkpointing, mode,
    what needs a gradient, the fields of its configurations. No weight is copied: they are frozen while an adapter learns."""
    if torch.cuda.is_available():  # a trainer that the caller has dropped may still hold memory, in circles
        gc.collect()
        torch.cuda.empty_cache()
    configs = filter(None, [model.config, model.config.get_text_config(), model.generation_config])
    fields = [vars(o) for o in (*model.modules(), *configs)]
    fields += [value for inside in fields for value in inside.values() if isinstance(value, dict)]  # modules, weights, hooks
    before = [(inside, dict(inside)) for inside in fields]
    needs_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for inside, then in before:  # emptied and filled, not exchanged: a handle of a hook points to it
            inside.clear()
            inside.update(then)
        for parameter, needed in needs_grad:
            parameter.requires_grad_(needed)

    return restore


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars of datasets in this block: eight for a few dozen rows."""
    bars = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not bars:
            enable_progress_bars()


class _Bar(TrainerCallback):
    """A tqdm bar of all steps."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc="short run", unit="step", leave=False)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.refresh()  # the last steps may have come too fast to be shown
        self.bar.close()


def short_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    settings: TrainSettings,
    lora: LoraSettings | LoraConfig,
    dtype: torch.dtype,
    *,
    eval_rows: Sequence[dict] | None = None,
    measure: Callable[[PreTrainedModel], Any] | None = None,
    max_steps: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    schedule: Callable[[int], float] | None = None,
    say: Callable[[str], None] = say,
) -> pd.DataFrame | Any:
    """Train a fresh adapter on a model and unload it again; the model stays as it was, an adapter of an earlier run included.

    eval_rows: give `evals_per_epoch` validation points. dtype: what the model computes in. measure: a function of the trained
    model, called before the adapter is unloaded. `settings.replay` mixes the sample's `general_rows` in.
    max_steps: updates in all, instead of the epochs of the settings. schedule: step, from 0 -> what the learning rate is multiplied
    by, instead of the scheduler of the settings. say: told which rows max_length cuts or leaves out. Early stopping is left out.

    Returns what `measure` returned, without one the `history_table`: one line a step. Raises `ModelError` for a `PeftModel`,
    `SettingsError` where max_length leaves nothing to learn.
    """
    if isinstance(model, PeftModel):
        raise ModelError("the model is wrapped in a PeftModel, and needs to be given without; pass model.get_base_model()")
    # peft writes into a config that it is given
    peft_config = lora_config(lora) if isinstance(lora, LoraSettings) else copy.deepcopy(lora)
    peft_config.inference_mode = False  # that of an adapter that was loaded to be asked trains nothing
    if settings.replay:
        rows = mix_in(rows, general_rows(), settings.replay, settings.seed)
    given = {"train": rows} | ({"validation": eval_rows} if eval_rows else {})
    kept, _ = fit_rows(given, tokenizer, settings, say)
    # As tokens: TRL would take a second to make the same of a few rows.
    parts = [
        Dataset.from_list([tokenize_row(given[s][i], tokenizer, settings.last_answer_only) for i in numbers])
        for s, numbers in kept.items()
    ]
    train, validation = [*parts, None][:2]
    with no_bars(), tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        gc.freeze()  # all that is there now: to look through it for garbage takes as long as a few steps, and accelerate does so too
        undo.callback(gc.unfreeze)
        undo.callback(gc.collect)  # the trainer, which goes round in circles with its adapter and optimizer
        undo.callback(remember(model))
        args = sft_config(settings, folder, len(train), dtype)
        args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", False, True
        args.per_device_eval_batch_size = VALIDATED
        args.max_steps = max_steps or -1
        args.eval_strategy = args.eval_strategy if eval_rows else "no"
        trainer = build_trainer(model, tokenizer, train, validation, args, peft_config, [_Bar(), *callbacks])
        if schedule:  # Trainer keeps an optimizer and a scheduler that are there already
            trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), schedule)
        trainer.train()
        found = measure(trainer.model) if measure else history_table(trainer.state.log_history)
        del trainer
        return found


@dataclass(frozen=True, eq=False)
class LearningRates:
    """A finished range test. table: learning_rate, loss, smoothed (`curve.smoothed`), one line a step. suggestion: a rate, and why."""

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
    check_number("steps", steps, 20, 1000, hint=60, whole=True)
    rising = {"max_steps": steps, "schedule": lambda step: (highest / lowest) ** (step / (steps - 1))}
    first, watch = settings.replace(learning_rate=lowest, warmup_steps=0, replay=0.0), _StopWhenBroken(_window(steps))
    table = short_run(model, tokenizer, rows, first, lora, dtype, callbacks=[watch], **rising)[["learning_rate", "loss"]]
    return LearningRates(table.assign(smoothed=smoothed(table["loss"])), *suggest(table, settings.learning_rate))


def _window(steps: int) -> int:
    """Steps in a mean of `curve.smoothed`, of a run of so many."""
    return max(5, steps // 15) | 1


def suggest(table: pd.DataFrame, otherwise: float) -> tuple[float, str]:
    """Choose a learning rate, and say why. table: learning_rate and loss of a range test, one line a step. otherwise: where there is no answer.

    The rule: the lowest rate at which the smoothed loss had made four fifths of its way from the first rates down to its minimum. At
    the minimum itself a step is as long as it can be at all, and a run of many steps needs a margin. A fall or a rise counts when it
    is more than 2 % of the first loss, and more than 3.5 times what the noise of single batches leaves in the difference of two
    means: of 2,000 flat curves, fewer than 1 % passed.
    """
    if not np.isfinite(table["loss"]).any():
        return otherwise, "no loss was a number: look at the rows and at how the model is loaded; your settings' rate is kept"
    rates, loss, means, window = table["learning_rate"], table["loss"], smoothed(table["loss"]), _window(len(table))
    first, best = loss.head(max(window, len(table) // 6)).mean(), means.idxmin()
    noise = loss.diff().abs().median() / 0.954  # the median of these is 0.954 for normal noise with a deviation of 1
    enough = max(0.02 * first, 3.5 * noise * math.sqrt(2 / window))
    fall = first - means[best]
    rose = not np.isfinite(loss).all() or means.iloc[-1] - means[best] > enough
    if not fall > enough:
        what = ", it only rose: look lower; until then" if rose else ": nothing can be said, and"
        span = f"from {rates.iloc[0]:.1e} to {rates.iloc[-1]:.1e}"
        return otherwise, f"the loss never fell {span}{what} your settings' rate is kept"
    at = float(f"{rates[(means <= first - FALL * fall).idxmax()]:.1e}")
    what = "rose behind it" if rose else f"never rose up to {rates.iloc[-1]:.1e}: a higher rate may do as well"
    return at, f"four fifths of the fall were made at {at:.1e}; the loss was lowest at {rates[best]:.1e} and {what}"


@dataclass(frozen=True)
class Trial:
    """What a few steps took: peak memory in GiB on the longest rows, how much of it is no tensor of torch's, seconds a step (one
    update) on ordinary rows, and how many steps one pass over all rows has."""

    peak_gib: float
    overhead_gib: float
    seconds_per_step: float
    steps_per_epoch: int

    def minutes(self, num_train_epochs: float) -> float:
        """How long training will take at this pace, in minutes, without validation."""
        return self.seconds_per_step * self.steps_per_epoch * num_train_epochs / 60

    def table(self, plan: pd.Series) -> pd.DataFrame:
        """Lay the peak of a `memory_plan` for these steps beside the measured one."""
        line = {"predicted": readable(plan.sum()), "measured": readable(self.peak_gib)}
        line["prediction is off by"] = f"{plan.sum() / self.peak_gib - 1:+.1%}"
        return pd.DataFrame(line, index=["peak of training"])

    def correction(self, plan: pd.Series) -> dict[str, float]:
        """Find what `memory_plan` should be told from now on, as its arguments: `activation_factor` and `overhead_gib`.

        plan: made for these steps, uncorrected. Weights, adapters and optimizer are counted one by one and taken as right.
        """
        guessed = plan[["activations", "working memory"]].sum()
        factor = (self.peak_gib - self.overhead_gib - (plan.sum() - guessed - plan["overhead"])) / guessed
        return {"activation_factor": max(0.1, float(factor)), "overhead_gib": self.overhead_gib}


class _Clock(TrainerCallback):
    """When each step of a run ended."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())


def trial_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    settings: TrainSettings,
    lora: LoraSettings | LoraConfig,
    dtype: torch.dtype,
    *,
    steps: int = 3,
) -> Trial:
    """Train a fresh adapter for two steps on the longest rows, for the memory, and for `steps` + 1 on random ones, for the time (the
    first is not counted); then unload it and leave the model as it was.

    rows: those to train on. Raises `ModelError` when the GPU's memory does not suffice.
    """
    rows = [rows[i] for i in fit_rows({"train": rows}, tokenizer, settings, say)[0]["train"]]
    lengths = token_lengths(rows, tokenizer, settings.max_length)["total"].clip(upper=settings.max_length).to_numpy()
    sequences = math.ceil(lengths.sum() / settings.max_length) if settings.packing else len(rows)
    rows_per_step = len(rows) / sequences * settings.effective_batch
    once, clock = settings.replace(num_train_epochs=1, warmup_steps=0, replay=0.0), _Clock()

    def train(order: Sequence[int], steps: int) -> None:
        chosen = [rows[i] for i in np.resize(order, math.ceil(steps * rows_per_step))]  # from the front again where too few
        short_run(model, tokenizer, chosen, once, lora, dtype, max_steps=steps, callbacks=[clock], say=lambda sentence: None)

    try:
        with peak_memory(model_bytes(model)) as peak:
            train(np.argsort(lengths)[::-1], 2)
        train(np.random.default_rng(settings.seed).permutation(len(rows)), steps + 1)
    except torch.OutOfMemoryError:
        what = f"a batch of {settings.per_device_train_batch_size} rows does not fit into the GPU's memory"
        raise ModelError(f"{what}; restart the session, and choose what `plan_training` names first") from None
    seconds = (clock.ends[-1] - clock.ends[0]) / steps  # without the first: everything is warmed up in it
    return Trial(peak.gib, peak.overhead_gib, seconds, settings.steps_per_epoch(sequences))
