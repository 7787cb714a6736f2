"""A few real training steps before the long run: how much memory they take, and how long."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from gemma_colab.core.errors import ModelError
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.lengths import token_lengths
from gemma_colab.model.measure import model_bytes, peak_memory
from gemma_colab.model.memory import readable
from gemma_colab.training.short import MovingBar, short_trainer


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
    """Seconds of each step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.monotonic() - self.start)


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
    lengths = token_lengths(rows, tokenizer, settings.max_length)["total"].clip(upper=settings.max_length).to_numpy()
    rows_per_step, steps_per_epoch = settings.effective_batch, settings.steps_per_epoch(len(rows))
    if settings.packing:
        sequences = math.ceil(lengths.sum() / settings.max_length)
        rows_per_step, steps_per_epoch = len(rows) / sequences * settings.effective_batch, settings.steps_per_epoch(sequences)
    longest, some = np.argsort(lengths)[::-1], np.random.default_rng(settings.seed).permutation(len(rows))
    one_pass, clock, peaks = settings.replace(num_train_epochs=1, warmup_steps=0), _Clock(), []
    try:
        with tqdm(total=2 + steps + 1, desc="trial steps", leave=False) as bar:
            for n, order, meter in ((2, longest, peak_memory), (steps + 1, some, nullcontext)):
                clock.seconds.clear()
                chosen = [rows[i] for i in np.resize(order, math.ceil(n * rows_per_step))]  # from the front again where too few
                watching = {"max_steps": n, "callbacks": [clock, MovingBar(bar)]}
                with short_trainer(model, tokenizer, chosen, one_pass, lora, dtype, **watching) as trainer:
                    with meter(model_bytes(trainer.model)) as peak:
                        trainer.train()
                    peaks.append(peak)
    except torch.OutOfMemoryError:
        raise ModelError(
            f"a batch of {settings.per_device_train_batch_size} rows does not fit into the GPU's memory; restart the session, and "
            "choose what `plan_training` names first"
        ) from None
    # the first step is slower: everything is warmed up in it
    return Trial(peaks[0].gib, peaks[0].overhead_gib, float(np.mean(clock.seconds[1:])), steps_per_epoch)
