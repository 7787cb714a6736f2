"""How many weights LoRA adds, by formula. Imports nothing heavy, so that panels and plans start in a second."""

from __future__ import annotations

import re

from gemma_colab.core.catalog import Shape
from gemma_colab.core.settings import ATTENTION, LINEAR, LoraSettings


def adapted_layers(shape: Shape, settings: LoraSettings) -> list[list[str]]:
    """For each block, the names of its linear layers that get an adapter."""
    names = [path.split(".")[1] for path in LINEAR]
    if settings.target_modules in ("all-linear", "attention"):
        chosen = ATTENTION if settings.target_modules == "attention" else names
        return [chosen] * shape.num_hidden_layers
    return [  # a full match over the module's whole name, as peft does it
        [
            name
            for name, path in zip(names, LINEAR, strict=True)
            if re.fullmatch(settings.target_modules, f"model.layers.{i}.{path}")
        ]
        for i in range(shape.num_hidden_layers)
    ]


def lora_parameters(shape: Shape, settings: LoraSettings) -> int:
    """Trainable weights: r * (in_features + out_features) for each adapted layer (LoRA, arXiv 2106.09685, section 4.2);
    DoRA adds the length of each row of the matrix, out_features (arXiv 2402.09353, section 4)."""
    sizes = [shape.linear_layers[name] for block in adapted_layers(shape, settings) for name in block]
    return sum(settings.r * (i + o) + (o if settings.use_dora else 0) for i, o in sizes)
