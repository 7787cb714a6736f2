"""What training takes of a machine's memory, below the panels of notebooks 03 and 04."""

from __future__ import annotations

import pandas as pd
from IPython.display import HTML

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.html import PART_COLORS, render
from gemma_colab.core.machine import Machine, dtype_name, readable
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import fits, plan_training


def memory_note(
    dimensions: Dimensions, machine: Machine, lora: LoraSettings, train: TrainSettings, *, tokens: int, **plan
) -> HTML:
    """The memory that training takes as a bar, what that was predicted for, and what to change first if it is too much.

    machine: whose memory is the limit, a GPU's or, without one, the CPU's. tokens: length of the longest row. plan: other
    arguments of `memory_plan`; dtype and gpu are those of the machine unless given. A plan that takes less than a twentieth of
    the limit would be a thin line: its bar shows the plan alone.
    """
    plan = {"tokens": tokens, "dtype": dtype_name(machine, dimensions)[0], "gpu": machine.gpu is not None} | plan
    parts, limit = memory_plan(dimensions, lora, train, **plan), machine.gpu_gib if machine.gpu else machine.ram_gib
    total = float(parts.sum())
    small, word = total < limit / 20, fits(total, limit)
    shown = render(
        "ui/panels",
        "memory",
        parts=[(f"{name} {readable(gib)}", gib, PART_COLORS[name]) for name, gib in parts.items() if gib],
        total=total,
        limit=limit,
        scale=1.05 * total if small else max(total, limit),
        small=small,
        device=machine.gpu or "this machine's memory",
        word=word,
        task=task(train, tokens),
        first="" if word == "fits" else _first(plan_training(dimensions, lora, train, [plan.pop("tokens")], limit, **plan)[1]),
    )
    return HTML(shown)


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
