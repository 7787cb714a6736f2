"""A few real training steps before the long run: how much memory they take, and how long."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.utils import are_progress_bars_disabled
from peft import LoraConfig
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from gemma_colab.chat import token_lengths
from gemma_colab.measure import PeakMemory, model_bytes
from gemma_colab.settings import TrainSettings
from gemma_colab.training.trainer import build_trainer, sft_config


@dataclass(frozen=True)
class Trial:
    """What a few steps took: peak memory in GiB on the longest rows, and seconds a step (one update) on ordinary rows."""

    peak_gib: float
    seconds_per_step: float

    def minutes(self, rows: int, settings: TrainSettings) -> float:
        """How long the whole training will take at this pace, in minutes, without validation. Needs settings of the same batch."""
        return self.seconds_per_step * settings.steps_per_epoch(rows) * settings.num_train_epochs / 60


class _Clock(TrainerCallback):
    """Seconds of each step, and a bar."""

    def __init__(self, bar: tqdm):
        self.bar, self.seconds = bar, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.monotonic() - self.start)
        self.bar.update()


def trial_run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[dict],
    settings: TrainSettings,
    peft_config: LoraConfig,
    dtype: torch.dtype,
    *,
    steps: int = 3,
) -> Trial:
    """Train a fresh adapter for two steps on the longest rows, for the memory, and for `steps` + 1 on random ones, for the time (the
    first is not counted); then take it off again. The model is as it was before.

    chats: the training rows, prompt and completion. Raises what training raises, such as `torch.OutOfMemoryError`.
    """
    lengths = token_lengths(chats, tokenizer, settings.max_length)["total"].to_numpy()
    longest, some = np.argsort(lengths)[::-1], np.random.default_rng(settings.seed).permutation(len(chats))
    with tqdm(total=2 + steps + 1, desc="trial steps", leave=False) as bar:

        def train(order: np.ndarray, n: int, meter: AbstractContextManager) -> list[float]:
            clock = _Clock(bar)
            rows = [chats[i] for i in np.resize(order, n * settings.effective_batch)]
            with tempfile.TemporaryDirectory() as folder:
                now = settings.replace(num_train_epochs=1, warmup_steps=0)
                args = sft_config(now, folder, len(rows), dtype)
                args.max_steps, args.eval_strategy, args.save_strategy, args.load_best_model_at_end = n, "no", "no", False
                args.disable_tqdm, args.logging_strategy = True, "no"
                trainer = build_trainer(model, tokenizer, Dataset.from_list(rows), None, args, peft_config, [clock])
                meter.before = model_bytes(trainer.model)
                with meter:
                    trainer.train()
            trainer.model.unload()
            return clock.seconds

        peak = PeakMemory()
        bars = are_progress_bars_disabled()
        disable_progress_bars()  # eight bars for a few dozen rows
        try:
            train(longest, 2, peak)
            seconds = train(some, steps + 1, nullcontext())[1:]  # the first is slower: everything is warmed up in it
        finally:
            if not bars:
                enable_progress_bars()
    return Trial(peak.gib, float(np.mean(seconds)))
