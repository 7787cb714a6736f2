"""Short runs on a fresh adapter: something is learned about the settings, nothing is saved, and the model stays as it was."""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.utils import are_progress_bars_disabled
from peft import LoraConfig, PeftModel
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import ModelError
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.training.replay import general_rows, mix_in


class MovingBar(TrainerCallback):
    """Moves a tqdm bar by one at each step. One without a length gets the run's."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):
        if self.bar.total is None:
            self.bar.reset(state.max_steps)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.refresh()  # the last steps may have come too fast to be shown


def remember(model: PreTrainedModel) -> Callable[[], None]:
    """Make a function that makes the model what it is now: no adapter, or that of an earlier run; hooks, the trainer's own
    `forward`, checkpointing, mode, what needs a gradient, the fields of its configurations.

    No weight is copied: those of the model itself are frozen while an adapter learns.
    """
    gc.collect()  # the trainer of an earlier run still holds its adapter and optimizer: it goes round in circles
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    # The fields of each object, with a copy of what lies in those that are dicts: modules, weights and hooks do.
    before = [
        (vars(o), {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in vars(o).items()})
        for o in (*model.modules(), *filter(None, configs))
    ]
    needs_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for fields, then in before:
            fields.clear()
            for name, (value, inside) in then.items():
                if isinstance(value, dict):  # emptied and filled, not exchanged: a handle of a hook points to it
                    value.clear()
                    value.update(inside)
                fields[name] = value
        for parameter, needed in needs_grad:
            parameter.requires_grad_(needed)

    return restore


@contextmanager
def fresh_adapter(model: PreTrainedModel) -> Iterator[None]:
    """Make the model what it was after this block, also after an error in it: see `remember`. Raises `ModelError` for peft's
    wrapper, which holds the model that is meant."""
    if isinstance(model, PeftModel):
        raise ModelError("the model is wrapped in a PeftModel, and needs to be given without; pass model.get_base_model()")
    restore = remember(model)
    try:
        yield
    finally:
        restore()


@contextmanager
def short_trainer(
    model, tokenizer, rows, settings, lora, dtype, *, eval_rows=None, max_steps=None, callbacks=()
) -> Iterator[SFTTrainer]:
    """Give a real `SFTTrainer` with a fresh adapter that logs each step, saves nothing, and has no bars. See `short_run`, and
    `fresh_adapter` for what is left of it."""
    # peft writes into a config that it is given
    peft_config = lora_config(lora) if isinstance(lora, LoraSettings) else copy.deepcopy(lora)
    with no_bars(), tempfile.TemporaryDirectory() as folder, fresh_adapter(model):
        args = sft_config(settings, folder, len(rows), dtype)
        args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", False, True
        args.max_steps = max_steps or -1
        args.eval_strategy = args.eval_strategy if eval_rows else "no"
        train, validation = ([{"messages": row["messages"]} for row in part or ()] for part in (rows, eval_rows))
        train, validation = Dataset.from_list(train), Dataset.from_list(validation) if validation else None
        yield build_trainer(model, tokenizer, train, validation, args, peft_config, list(callbacks))


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
    general: Sequence[dict] | None = None,
    max_steps: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    schedule: Callable[[int], float] | None = None,
) -> pd.DataFrame | Any:
    """Train a fresh adapter on a model and unload it again; the model stays as it was, an adapter of an earlier run included.

    eval_rows: give `evals_per_epoch` validation points. dtype: what the model computes in. measure: a function of the trained
    model, called before the adapter is unloaded. general: what `settings.replay` mixes in, the sample's `general_rows` unless given.
    max_steps: updates in all, instead of the epochs of the settings. schedule: step, from 0 -> what the learning rate is multiplied
    by, instead of the scheduler of the settings. Early stopping is left out.

    Returns what `measure` returned, without one the `history_table`: one line a step. Raises `ModelError` for a `PeftModel`.
    """
    if settings.replay:
        rows = mix_in(rows, general_rows() if general is None else general, settings.replay, settings.seed)
    with tqdm(desc="short run", unit="step", leave=False) as bar:
        how = {"eval_rows": eval_rows, "max_steps": max_steps, "callbacks": [MovingBar(bar), *callbacks]}
        with short_trainer(model, tokenizer, rows, settings, lora, dtype, **how) as trainer:
            if schedule:  # Trainer keeps an optimizer and a scheduler that are there already
                trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), schedule)
            trainer.train()
            return measure(trainer.model) if measure else history_table(trainer.state.log_history)
