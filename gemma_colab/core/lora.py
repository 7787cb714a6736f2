"""LoRA: what is added to the frozen model, and how many weights that are. peft, which takes seconds to import, is loaded when needed."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.settings import ATTENTION, LINEAR, LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig


def lora_config(settings: LoraSettings) -> LoraConfig:
    """Make the `peft.LoraConfig` of these settings. "all-linear" leaves the head out: peft skips output layers."""
    from peft import LoraConfig

    named = dataclasses.asdict(settings)
    if settings.target_modules == "attention":
        named["target_modules"] = ATTENTION
    return LoraConfig(task_type="CAUSAL_LM", **named)


def adapted_layers(dimensions: Dimensions, settings: LoraSettings) -> list[list[str]]:
    """List for each block the names of its linear layers that get an adapter."""
    target = {"all-linear": r".*_proj", "attention": r".*self_attn\.._proj"}.get(settings.target_modules, settings.target_modules)
    adapted = re.compile(target).fullmatch  # over the module's whole name, as peft does it
    return [
        [path.split(".")[1] for path in LINEAR if adapted(f"model.layers.{block}.{path}")]
        for block in range(dimensions.num_hidden_layers)
    ]


def lora_parameters(dimensions: Dimensions, settings: LoraSettings) -> int:
    """Count the trainable weights: r * (in_features + out_features) for each adapted layer (LoRA, arXiv 2106.09685, section 4.2);
    DoRA adds the length of each row of the matrix, out_features (arXiv 2402.09353, section 4)."""
    sizes = [dimensions.linear_layers[name] for block in adapted_layers(dimensions, settings) for name in block]
    return sum(settings.r * (i + o) + (o if settings.use_dora else 0) for i, o in sizes)
