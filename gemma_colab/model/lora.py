"""LoRA: what is added to the frozen model, and how many weights that is."""

from __future__ import annotations

import re

from peft import LoraConfig

from gemma_colab.catalog import Shape
from gemma_colab.settings import LINEAR, LoraSettings

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora_config(settings: LoraSettings) -> LoraConfig:
    """The `peft.LoraConfig` of these settings. "all-linear" leaves the head out: peft skips output layers."""
    targets = ATTENTION if settings.target_modules == "attention" else settings.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
    )


def lora_parameters(shape: Shape, settings: LoraSettings) -> int:
    """Trainable weights: r * (in_features + out_features) for each adapted layer (LoRA, arXiv 2106.09685, section 4.2)."""
    total = 0
    for path in LINEAR:
        name = path.split(".")[1]
        for layer in range(shape.num_hidden_layers):
            if _is_target(f"model.layers.{layer}.{path}", name, settings.target_modules):
                total += settings.r * sum(shape.linear_layers[name])
    return total


def _is_target(full_name: str, name: str, target_modules: str) -> bool:
    if target_modules == "all-linear":
        return True
    if target_modules == "attention":
        return name in ATTENTION
    return re.fullmatch(target_modules, full_name) is not None  # as peft matches
