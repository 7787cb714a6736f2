"""How much GPU memory QLoRA training will take, from the shape alone. A prediction: keep a quarter in hand."""

from __future__ import annotations

import pandas as pd

from gemma_colab.catalog import CATALOG, Shape
from gemma_colab.hardware import GIB
from gemma_colab.model.lora import lora_parameters
from gemma_colab.settings import LoraSettings, TrainSettings

NF4_BYTES = 0.51587  # per weight, with double quantisation (measured with bitsandbytes 0.50)
OVERHEAD = 0.8 * GIB  # CUDA context, workspaces, fragmentation
HEAD_TILE = 4096 * 32768  # tokens x vocabulary that TRL's fused loss computes at once


def memory_plan(
    shape: Shape, lora: LoraSettings, train: TrainSettings, *, tokens: int, bits16: bool = True, float16: bool = False
):
    """Predicted peak in GiB by part, as a `pandas.Series`.

    tokens: length of the longest row, at most `max_length`. bits16: embeddings and activations in 16 bit (False: float32).
    float16: the T4 recipe, whose residual stream is in float32. Gradient checkpointing is taken as on.
    """
    bytes_ = 2 if bits16 else 4
    n = train.per_device_train_batch_size * min(tokens, train.max_length)
    attention = shape.num_attention_heads * shape.head_dim
    adapters = lora_parameters(shape, lora)
    residual = 4 if float16 or not bits16 else 2
    layer = 4.1 * 4 if residual == 4 else 2.6 * 4  # bytes per token and unit of width kept while one layer is recomputed
    widths = shape.hidden_size + attention + shape.intermediate_size
    biggest = max(i * o for i, o in shape.linear_layers.values())
    inside = 1.5 * n * layer * widths + bytes_ * biggest  # activations of one layer, and its largest matrix unpacked
    head = min(n * shape.vocab_size, HEAD_TILE) * 2 * 2
    parts = {
        "4-bit weights": NF4_BYTES * shape.linear_parameters,
        "embeddings": bytes_ * shape.embedding_parameters,
        "adapters, gradients, Adam": 16 * adapters,
        "kept activations": n * shape.num_hidden_layers * shape.hidden_size * residual,
        "one layer or the loss": max(inside, head),
        "overhead": OVERHEAD,
    }
    return pd.Series({name: round(value / GIB, 3) for name, value in parts.items()}, name="GiB")


# Usable GiB, and whether it needs the float16 recipe.
GPUS = {"T4": (14.74, True), "L4": (22.16, False), "A100 40 GB": (39.4, False)}


def fit_table(*, tokens: int = 1024, batches: tuple[int, ...] = (1, 4), lora: LoraSettings | None = None) -> pd.DataFrame:
    """Predicted peak GiB for each Gemma 3 (rows) on each GPU (columns) at each batch size, with a word.

    "fits": at most three quarters of the GPU's memory at the largest batch; "tight": at most all of it; else "no".
    """
    lora, lines = lora or LoraSettings(), {}
    for name, shape in CATALOG.items():
        cells = {}
        for gpu, (limit, float16) in GPUS.items():
            plans = [
                memory_plan(shape, lora, TrainSettings(per_device_train_batch_size=b), tokens=tokens, float16=float16).sum()
                for b in batches
            ]
            word = "fits" if plans[-1] <= 0.75 * limit else "tight" if plans[0] <= limit else "no"
            cells[gpu] = f"{' / '.join(f'{p:.1f}' for p in plans)} {word}"
        lines[name] = cells
    return pd.DataFrame(lines).T
