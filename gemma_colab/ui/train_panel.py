"""What training takes: the sliders of notebook 04, with steps, tokens, rate and time below them, and the memory. Nothing needs torch."""

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import render
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.sliders import Controls, SettingsPanel
from gemma_colab.model.memory import memory_plan, readable
from gemma_colab.model.planner import fits, plan_training

# Of the parts of `memory_plan`: what is frozen in blue, what is trained in green, what passes through in orange.
COLORS = "#3f78b5 #8ab8e6 #1f7a4d #4fb380 #a0d9b4 #e08a3c #f2c185 #9a9fa6".split()
FIRST = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs")
# Setting: values to choose from, where it is a number: what it does, and what too little and too much of it do.
TABLE = """
learning_rate: 1e-5 2e-5 5e-5 1e-4 2e-4 5e-4 1e-3 2e-3 5e-3 1e-2 2e-2: size of each step; too low: nothing is learned; too high: what was there is destroyed
per_device_train_batch_size: 1 2 4 8 16 32 64: rows computed at once; too low: a GPU has little to do; too high: it runs out of memory
gradient_accumulation_steps: 1 2 4 8 16 32 64: batches added up before a step; too low: shaky steps; too high: few steps, and little is learned
num_train_epochs: 0.5 1 2 3 4 5 8 10 15 20: passes over the rows; too few: little is learned; too many: it is learned by heart
lr_scheduler_type:: how the rate ends; linear and cosine: calmly, at 0; constant: still in motion, but good to go on from
warmup_steps: 0 2 5 10 20 50 100 200: steps up to the full rate; too few: the first ones may do damage; too many: the full rate comes too late
weight_decay: 0.0 0.001 0.01 0.05 0.1: pulls the adapter back to zero; 0: not at all; too high: it stays near the model you began with
max_grad_norm: 0.1 0.3 0.5 1.0 2.0 5.0 10.0: a longer gradient is cut to this; too low: all are cut alike; too high: one odd batch can throw it off
max_length: 64 128 256 512 768 1024 2048 4096 8192: tokens kept of a row; too low: answers lose their end; too high: a few long ones take all the memory
packing:: several rows in one sequence; off: padding is computed; on: no padding, and fewer, larger steps
last_answer_only:: of a conversation; off: every answer is learned; on: the last one alone, the earlier are only read
gradient_checkpointing:: computes again instead of keeping; off: faster; on: far less memory, about half as long again
optim:: how Adam remembers; torch: exactly, 8 bytes a weight; 8bit: rounded, 2 bytes; paged: and may move to RAM
neftune_noise_alpha: null 1.0 2.0 5.0 10.0 15.0: noise on the embeddings, against learning by heart; off: none; too high: the text drowns in it
seed: 0 1 2 3 4 5 6 7 8 9: which random order and start; none is better: two runs with different ones show what is chance
replay: 0.0 0.1 0.2 0.3 0.5: share of general rows mixed in; 0: the rest may be forgotten; too high: your own rows get lost among them
evals_per_epoch: 1 2 3 4 6 8 12: looks at the validation rows; too few: the turn is seen late; too many: they take longer than training
save_minutes: 0.5 1.0 2.0 5.0 10.0 20.0 60.0: longest time between checkpoints; too short: always writing; too long: much is lost with the machine
early_stopping_patience: 0 1 2 3 5 8 12: looks without a new best before it stops; 1: a chance bump ends it; too many: time wasted; 0: never stops
"""
CHOICES = {field.name: list(field.metadata.get("choices", ())) for field in dataclasses.fields(TrainSettings)}
# The table as controls: a slider for numbers, a list for choices, a box for yes and no.
CONTROLS: Controls = {
    field: ([json.loads(v) for v in values.split()] or CHOICES[field] or None, hint.strip())
    for field, values, hint in (line.split(":", 2) for line in TABLE.strip().splitlines())
}
# What a preset does to a starting point: (times the learning rate, times the epochs).
PRESETS = {"cautious": (0.25, 2 / 3), "normal": (1.0, 1.0), "strong": (2.5, 5 / 3)}
PRESETS_HINT = "for rate and epochs at once; cautious: forgets little, learns little; strong: learns fast, may overfit"
CURVE_POINTS = 200  # at most: more than the curve's pixels would show
TEMPLATE = "ui/panels"


def train_panel(
    settings: TrainSettings,
    machine: Machine,
    *,
    dimensions: Dimensions,
    lora: LoraSettings,
    lengths: pd.DataFrame,
    seconds_per_step: float | None = None,
    start: TrainSettings | None = None,
    **plan,
) -> SettingsPanel:
    """Controls for training; see `settings_panel`.

    lengths: of `token_lengths` for each training row; `total` is taken uncut, `answer` is only told. plan: other arguments of
    `memory_plan`, tokens being the longest row unless given. Raises `SettingsError` if there are no rows.
    """
    if not len(lengths):
        raise SettingsError("lengths is empty: there is no row to train on; take token_lengths of the training rows")
    total, answers = lengths["total"].to_numpy(), int(lengths["answer"].sum())
    # Presets of the settings themselves would add up, each time the panel is opened again on what was saved.
    offered, controls = presets(start) if start else {}, dict(CONTROLS)
    for field, value in (pair for changes in offered.values() for pair in changes.items()):
        values, hint = controls[field]
        controls[field] = [*values, value], hint
    plan = {"tokens": int(total.max())} | plan
    epoch_seconds = (seconds_per_step or 0) * _steps(settings, total)[0]  # as it was measured

    def note(s: TrainSettings) -> HTML:
        per_epoch, steps = _steps(s, total)
        epochs = s.num_train_epochs
        seconds = epoch_seconds * epochs * _work(s, total) / _work(settings, total)
        about = {"s": s, "rows": len(total), "sequences": sequences(total, s.max_length), "per_epoch": per_epoch, "steps": steps}
        about |= {"tokens": np.minimum(total, s.max_length).sum() * epochs, "answers": answers * epochs}
        about |= {"cut": int((total > s.max_length).sum()), "time": _duration(seconds) if seconds else ""}
        about |= {"curve": schedule_curve(s, steps, per_epoch), "memory": memory_note(dimensions, machine, lora, s, **plan)}
        return HTML(render(TEMPLATE, "train", **about))

    first = {field: controls.pop(field) for field in FIRST}
    return SettingsPanel(settings, first, note, folded=controls, presets=offered, presets_hint=PRESETS_HINT)


def presets(start: TrainSettings) -> dict[str, dict]:
    """Learning rate and epochs of each preset, within their limits; "normal" are those of `start`."""
    made = {}
    for name, (rate, epochs) in PRESETS.items():
        rate = float(f"{min(0.1, max(1e-6, start.learning_rate * rate)):.3g}")
        made[name] = {"learning_rate": rate, "num_train_epochs": min(100.0, max(0.01, round(start.num_train_epochs * epochs, 2)))}
    return made | {"normal": {field: getattr(start, field) for field in made["normal"]}}


def learning_rates(settings: TrainSettings, steps: int) -> np.ndarray:
    """The learning rate of each of `steps` updates in all, shape (steps,), the first update first.

    The formulas are those of `transformers.get_scheduler`. With a warm-up the first update has the rate 0.
    """
    step, warmup = np.arange(steps), 0 if settings.lr_scheduler_type == "constant" else settings.warmup_steps
    left = (steps - step) / max(1, steps - warmup)  # of what comes after the warm-up: from 1 down to 0
    after = {"linear": left, "cosine": (1 - np.cos(np.pi * left)) / 2}.get(settings.lr_scheduler_type, np.ones(steps))
    return settings.learning_rate * np.where(step < warmup, step / max(1, warmup), after)


def schedule_curve(settings: TrainSettings, steps: int, per_epoch: int) -> HTML:
    """`learning_rates` as a small picture, with a line at the end of each epoch of `per_epoch` updates, if there are few."""
    rates, corner = learning_rates(settings, steps) / settings.learning_rate, min(settings.warmup_steps, steps - 1)
    shown = np.unique([*np.linspace(0, steps - 1, min(steps, CURVE_POINTS)).astype(int), max(0, corner - 1), corner])
    across = 332 / max(1, steps - 1)
    points = [f"{60 + across * i:.1f},{96 - 76 * rates[i]:.1f}" for i in shown]
    points += [f"392,{96 - 76 * rates[0]:.1f}"] * (steps == 1)
    ends = range(per_epoch, steps, per_epoch)
    epochs = [round(60 + across * end, 1) for end in ends] if len(ends) <= 20 else []
    return HTML(render(TEMPLATE, "curve", " ".join(points), epochs, settings.learning_rate, steps, COLORS[0]))


def sequences(lengths: Sequence[int], max_length: int) -> int:
    """About how many sequences of max_length tokens TRL packs rows of these lengths into: at least as many as all tokens fill, and
    one for each row longer than half of it, since two such don't go together."""
    kept = np.minimum(np.asarray(lengths), max_length)
    return max(math.ceil(kept.sum() / max_length), int((kept > max_length / 2).sum()))


def _steps(s: TrainSettings, total: np.ndarray) -> tuple[int, int]:
    """Updates in an epoch, and in all, counted as `transformers.Trainer` counts them."""
    rows = sequences(total, s.max_length) if s.packing else len(total)
    per_epoch = s.steps_per_epoch(round(rows / (1 - s.replay)))
    return per_epoch, math.ceil(s.num_train_epochs * per_epoch)


def _work(s: TrainSettings, total: np.ndarray) -> float:
    """Tokens computed in an epoch, padding too; with checkpointing a step makes three passes through the model, not two."""
    shuffled = np.random.default_rng(0).permutation(np.minimum(total, s.max_length))
    batches = np.array_split(shuffled, -(-len(shuffled) // s.per_device_train_batch_size))
    tokens = sequences(total, s.max_length) * s.max_length if s.packing else sum(b.max() * len(b) for b in batches)
    return tokens / (1 - s.replay) * (1.5 if s.gradient_checkpointing else 1)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {seconds / 60:.0f} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def memory_note(
    dimensions: Dimensions, machine: Machine, lora: LoraSettings, train: TrainSettings, *, tokens: int, **plan
) -> HTML:
    """The memory that training takes as a bar, what that was predicted for, and what to change first if it is too much.

    machine: whose memory is the limit, a GPU's or, without one, the CPU's. tokens: length of the longest row. plan: other
    arguments of `memory_plan`; dtype and gpu are those of the machine unless given. A plan that takes less than a twentieth of
    the limit would be a thin line: its bar shows the plan alone.
    """
    plan = {"dtype": dtype_name(machine, dimensions)[0], "gpu": machine.gpu is not None} | plan
    parts = memory_plan(dimensions, lora, train, tokens=tokens, **plan)
    limit, total = machine.gpu_gib if machine.gpu else machine.ram_gib, float(parts.sum())
    word = fits(total, limit)
    first = "" if word == "fits" else _first(plan_training(dimensions, lora, train, [tokens], limit, **plan)[1])
    shown = [(f"{name} {readable(gib)}", gib, color) for (name, gib), color in zip(parts.items(), COLORS, strict=True) if gib]
    device = machine.gpu or "this machine's memory"
    return HTML(render(TEMPLATE, "memory", shown, total, limit, total < limit / 20, device, word, task(train, tokens), first))


def task(train: TrainSettings, tokens: int) -> str:
    """What a prediction is made for, in words."""
    rows = f"{train.per_device_train_batch_size} row{'s' * (train.per_device_train_batch_size > 1)}"
    return f"batches of {rows} of {train.max_length if train.packing else min(tokens, train.max_length):,} tokens"


def _first(tried: pd.DataFrame) -> str:
    """The first change that saves something, and those after it until it fits. tried: of `plan_training`."""
    if tried["GiB"].isna().any():
        return f"{tried['change'].iloc[-1]}. With all that can be saved here, it still takes {tried['GiB'].min():.1f} GiB."
    helps = tried[tried["GiB"] < tried["GiB"].iloc[0] - 0.05]
    step = helps.iloc[0] if len(helps) else tried.iloc[-1]
    rest = "; ".join(tried["change"][step.name + 1 :])
    then = f" Then, until it fits: {rest}." if rest else ""
    return f"{step['change']}: {step['why']}. That makes {step['GiB']:.1f} GiB: {step['fits']}.{then}"
