"""LoRA: what is added to the frozen model, and how many weights that are. peft, which takes seconds to import, is loaded when needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.settings import ATTENTION, LINEAR, LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig

# Adapters belong to the language model only. In a whole multimodal model, "all-linear" would reach these two as well.
NOT_ADAPTED = r".*(vision_tower|multi_modal_projector).*"


def lora_config(settings: LoraSettings, *, text_only: bool = True) -> LoraConfig:
    """Make the `peft.LoraConfig` of these settings. "all-linear" leaves the head out: peft skips output layers.

    text_only: as for `loading.load_model`; False keeps adapters out of the vision part.
    """
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=ATTENTION if settings.target_modules == "attention" else settings.target_modules,
        exclude_modules=None if text_only else NOT_ADAPTED,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
    )


def adapted_layers(dimensions: Dimensions, settings: LoraSettings) -> list[list[str]]:
    """List for each block the names of its linear layers that get an adapter."""
    names = [path.split(".")[1] for path in LINEAR]
    if settings.target_modules in ("all-linear", "attention"):
        chosen = ATTENTION if settings.target_modules == "attention" else names
        return [chosen] * dimensions.num_hidden_layers
    pattern = re.compile(settings.target_modules)  # a full match over the module's whole name, as peft does it
    return [
        [name for name, path in zip(names, LINEAR, strict=True) if pattern.fullmatch(f"model.layers.{i}.{path}")]
        for i in range(dimensions.num_hidden_layers)
    ]


def lora_parameters(dimensions: Dimensions, settings: LoraSettings) -> int:
    """Count the trainable weights: r * (in_features + out_features) for each adapted layer (LoRA, arXiv 2106.09685, section 4.2);
    DoRA adds the length of each row of the matrix, out_features (arXiv 2402.09353, section 4)."""
    sizes = [dimensions.linear_layers[name] for block in adapted_layers(dimensions, settings) for name in block]
    return sum(settings.r * (i + o) + (o if settings.use_dora else 0) for i, o in sizes)
