"""How much memory QLoRA training takes at its peak, from the dimensions and the settings alone: nothing is downloaded.

Counted from the graph: what each operation of a Gemma 3 block keeps for its backward pass, in bytes, as transformers 5.23,
peft 0.21, trl 1.16 and bitsandbytes 0.50 write it. Measured against the allocator in benchmarks/README.md.
"""

import re

import pandas as pd

from gemma_colab.core.catalog import Dimensions
from gemma_colab.core.machine import GIB
from gemma_colab.core.settings import CPU_TILE, LINEAR, LoraSettings, TrainSettings

NF4_BYTES = 0.51587  # per weight: 4 bits, an 8-bit scale for 64 of them, a 32-bit scale for 256 scales (bitsandbytes 0.50)
OVERHEAD = 1.0  # GiB of CUDA context, cuBLAS workspaces, fragmentation: 0.85 to 1.34 on an H200 (benchmarks/README.md); a T4 was never measured
TILE = 32_768  # vocabulary that TRL's fused loss computes at once, for up to 4,096 tokens
OPTIMIZER_BYTES = {"adamw_torch_fused": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # a trained weight: Adam's two numbers


def readable(gib: float) -> str:
    """An amount of memory for people: in MiB where GiB would be a small fraction."""
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{1024 * gib:.1f} MiB"


def adapted_layers(dimensions: Dimensions, settings: LoraSettings) -> list[list[str]]:
    """List for each block the names of its linear layers that get an adapter."""
    target = {"all-linear": r".*_proj", "attention": r".*self_attn\.._proj"}.get(settings.target_modules, settings.target_modules)
    adapted = re.compile(target).fullmatch  # over the module's whole name, as peft does it
    blocks = [f"model.layers.{i}." for i in range(dimensions.num_hidden_layers)]
    return [[path.split(".")[1] for path in LINEAR if adapted(block + path)] for block in blocks]


def lora_parameters(dimensions: Dimensions, settings: LoraSettings) -> int:
    """Count the trainable weights: r * (in_features + out_features) for each adapted layer (LoRA, arXiv 2106.09685, section 4.2);
    DoRA adds the length of each row of the matrix, out_features (arXiv 2402.09353, section 4)."""
    sizes = [dimensions.linear_layers[name] for block in adapted_layers(dimensions, settings) for name in block]
    return sum(settings.r * (i + o) + (o if settings.use_dora else 0) for i, o in sizes)


def memory_plan(
    dimensions: Dimensions,
    lora: LoraSettings | None = None,
    train: TrainSettings | None = None,
    *,
    tokens: int,
    dtype: str = "bfloat16",
    load_in_4bit: bool = True,
    gpu: bool = True,
    scored: float = 1.0,
    activation_factor: float = 1.0,
    overhead_gib: float = OVERHEAD,
) -> pd.Series:
    """Predict the peak in GiB, by what it is spent on; the sum is the peak.

    lora, train: those of a new `LoraSettings()` and `TrainSettings()`, unless given. tokens: length of the longest row, which `max_length` cuts. dtype: "bfloat16", "float16" (with a float32 residual stream) or
    "float32", as text or as a torch dtype. gpu: False for a CPU, where the fused loss keeps more and there is no overhead. scored:
    share of the tokens that the loss looks at. activation_factor, overhead_gib: what `Trial.correction` found in measured steps.
    """
    lora, train = lora or LoraSettings(), train or TrainSettings()
    c = 4 if str(dtype).endswith("float32") else 2  # bytes of a number inside a block
    stream = 2 if str(dtype).endswith("bfloat16") else 4  # and of one between the blocks
    row = train.max_length if train.packing else min(tokens, train.max_length)
    n, layers, h = train.per_device_train_batch_size * row, dimensions.num_hidden_layers, dimensions.hidden_size
    # Rows of different lengths need a mask, and so do rows longer than the window; one row alone doesn't.
    masked = train.per_device_train_batch_size > 1 or train.packing or row >= dimensions.sliding_window
    mask = c * (n if train.packing else row) if masked else 0  # a packed batch is one sequence, of all its tokens
    adapted = adapted_layers(dimensions, lora)
    blocks = [_kept_by_a_block(dimensions, lora, names, mask, c, gpu) for names in adapted]
    # At work in a block's backward pass: gradients of the MLP, or its largest matrix unpacked from 4 bit. DoRA, as peft 0.21 writes
    # it, multiplies its matrices by an identity of in_features x in_features to get their product, and in 16 bit a copy of it.
    names, i, sizes = {name for block in adapted for name in block}, dimensions.intermediate_size, dimensions.linear_layers
    mlp = (8 if c == 4 and "down_proj" in names else 3 * c) * n * i
    unpacked = c * max(a * b for a, b in sizes.values()) + c * n * i if load_in_4bit else 0
    dora = [(8 - c) * a * a + 8 * a * b for a, b in map(sizes.get, names) if lora.use_dora]
    backward = max(mlp, unpacked, *dora) + (10 if c == 2 else 4) * n * h
    # In TRL's fused loss (`chunked_logprob.py`): one tile of logits, and without Triton eight more of them in float32.
    tile, width = min(scored * n, 4096), TILE if gpu else CPU_TILE
    on_cpu = 0 if gpu else tile * min(dimensions.vocab_size, width) * 32
    loss = tile * width * c + on_cpu + n * 8 * h
    kept, again = (n * layers * h * stream, n * max(blocks)) if train.gradient_checkpointing else (n * sum(blocks), 0)
    adapters = lora_parameters(dimensions, lora)
    gradients, copies = 4 * adapters, 2 * adapters if c == 2 else 0  # autocast copies the adapters in 16 bit
    so_far = gradients if train.gradient_accumulation_steps > 1 else 0
    # Three moments can be the highest: the loss, with all that was kept; the last block, when its backward pass begins; the
    # first block, when all gradients are there and little else is left. Each: what is kept, at work, and gradients.
    moments = [(kept + n * 12 * h + copies, loss, so_far), (kept + again + copies, backward, so_far or gradients / layers)]
    moments.append((n * max(blocks), backward, gradients))
    held, work, gradients_then = max(moments, key=sum)
    parts = {
        "weights": (NF4_BYTES if load_in_4bit else c) * dimensions.linear_parameters,
        "embeddings": c * dimensions.embedding_parameters,
        "adapters": 4 * adapters,
        "gradients": gradients_then,
        "optimizer": OPTIMIZER_BYTES[train.optim] * adapters,
        "activations": activation_factor * held,
        "working memory": activation_factor * work,
        "overhead": overhead_gib * GIB * gpu,
    }
    return pd.Series(parts, name="GiB") / GIB


def _kept_by_a_block(dimensions: Dimensions, lora: LoraSettings, adapted: list[str], mask: int, c: int, gpu: bool) -> float:
    """Bytes a token that one decoder block keeps for its backward pass.

    The four norms keep their input in float32 (16 a unit of width). Attention keeps queries, keys and values before and after
    their norm, and its output; with a mask (bytes a token; 0 without), keys and values are repeated for each head, and the mask
    is kept. The MLP keeps gate, its activation, and up. An adapter keeps its input, in 16 bit a copy of its own, and r numbers.
    """
    h, i = dimensions.hidden_size, dimensions.intermediate_size
    q, kv = dimensions.num_attention_heads * dimensions.head_dim, dimensions.num_key_value_heads * dimensions.head_dim
    total = 16 * h + 3 * c * i + (8 if c == 2 else 12) * (q + kv) + (2 * c * (q - kv) + mask if mask else 0)
    for name in adapted:
        into, out = dimensions.linear_layers[name]
        total += c * lora.r + (2 * c * out if lora.use_dora else 0)
        if lora.lora_dropout:
            total += into * (c + (1 if gpu else 4))  # and which inputs were dropped
        elif c == 2:
            total += into * c
    if c == 4 and not lora.lora_dropout:  # not cast, so layers with the same input share it
        for width, names in ((h, {"q_proj", "k_proj", "v_proj"}), (h, {"gate_proj", "up_proj"}), (i, {"down_proj"})):
            total += c * width * (not names.isdisjoint(adapted))
    return total
