"""Does it fit, what to change first if not, and what would be faster if so. From the memory plan; nothing heavy is imported."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gemma_colab.core.catalog import CATALOG, PACKAGED, TINY, Dimensions, dimensions_of, known_dimensions
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.machine import GIB, Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.choice import sees_images, starting_point
from gemma_colab.model.memory import memory_plan

HEADROOM = 0.15  # share of the GPU that a plan leaves free
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# GPUs that Colab and clouds lend: GiB that torch can use, and the dtype to compute in (see `machine.pick_dtype`).
GPUS = {"T4": (14.74, "float16"), "L4": (22.16, "bfloat16"), "A100": (39.4, "bfloat16")}


def fits(gib: float, limit_gib: float) -> str:
    """Return "fits" with 15 % of `limit_gib` to spare, "tight" within it, else "no"."""
    return "fits" if gib <= (1 - HEADROOM) * limit_gib else "tight" if gib <= limit_gib else "no"


def smallest_peak(name: str, machine: Machine, load_in_4bit: bool, *, tokens: int) -> float:
    """Predict the GiB of the smallest training of this model on this machine: its starting point, one row of `tokens` at a time."""
    (lora, train), dimensions = starting_point(name), dimensions_of(name)
    train = train.replace(per_device_train_batch_size=1, gradient_checkpointing=True)
    how = {"dtype": dtype_name(machine, dimensions)[0], "load_in_4bit": load_in_4bit}
    return memory_plan(dimensions, lora, train, tokens=tokens, **how).sum()


def fit_table(*, tokens: int = 1024, batches: tuple[int, ...] = (1, 4), lora: LoraSettings | None = None) -> pd.DataFrame:
    """Predict the peak in GiB for each Gemma 3 (rows) on each GPU (columns) at each batch size, and whether it fits."""
    trains, table = [TrainSettings(per_device_train_batch_size=batch) for batch in batches], {}
    for gpu, (limit, dtype) in GPUS.items():
        for name in filter(lambda name: name.endswith("-it"), CATALOG):
            gib = [memory_plan(CATALOG[name], lora or LoraSettings(), t, tokens=tokens, dtype=dtype).sum() for t in trains]
            table.setdefault(f"{gpu}, {limit:.1f} GiB", {})[name] = " / ".join(f"{g:.1f} {fits(g, limit)}" for g in gib)
    return pd.DataFrame(table)


def largest_batch(dimensions: Dimensions, lora: LoraSettings, train: TrainSettings, limit_gib: float, **plan) -> int:
    """Return the largest `per_device_train_batch_size` of `BATCHES` that fits; 0 if not even 1 does. plan: as for `memory_plan`."""
    trains = {batch: train.replace(per_device_train_batch_size=batch) for batch in BATCHES}
    gib = {batch: memory_plan(dimensions, lora, train, **plan).sum() for batch, train in trains.items()}
    return max((batch for batch in BATCHES if fits(gib[batch], limit_gib) == "fits"), default=0)


def plan_training(
    dimensions: Dimensions,
    lora: LoraSettings,
    train: TrainSettings,
    lengths: Sequence[int],
    limit: str | float,
    *,
    dtype: str | None = None,
    load_in_4bit: bool = True,
    fixed: Sequence[str] = (),
    **correction,
) -> tuple[TrainSettings, pd.DataFrame]:
    """Change `train` until it fits into a GPU with 15 % to spare; or, where it fits, until it would no longer.

    limit: "T4", "L4", "A100", or GiB that torch can use. dtype: what to compute in, the GPU's own unless given.
    lengths: tokens of each row; the longest decides. fixed: names of settings that stay, such as "packing". correction: the other
    arguments of `memory_plan`. The rows behind one update stay as many as they are.
    Returns the settings, and a table of what was tried in this order: change, GiB, fits, why. Savings of time come first, those
    of quality last. Where the last row has no GiB nothing fits, and the settings are the smallest. The settings can't hold two of
    the savings: `load_in_4bit` and `r`, which the table then asks for. Raises `SettingsError` for empty `lengths`.
    """
    name, (limit_gib, own_dtype) = find_gpu(limit)
    if not len(lengths):
        raise SettingsError("lengths is empty: there is no row to plan for; take the lengths of the training rows")
    how = {"tokens": int(max(lengths)), "dtype": dtype or own_dtype, "load_in_4bit": load_in_4bit} | correction
    taken, closed, tried = {}, {*fixed}, []

    def attempt(changes: dict, why: str) -> bool:
        now = taken | changes
        settings = [s.replace(**{k: v for k, v in now.items() if hasattr(s, k)}) for s in (lora, train)]
        gib = memory_plan(dimensions, *settings, **how | {k: v for k, v in now.items() if k in how}).sum()
        change, word = ", ".join(f"{k}={v!r}" for k, v in changes.items()), fits(gib, limit_gib)
        tried.append({"change": change or "as it is", "GiB": round(gib, 2), "fits": word, "why": why})
        return word == "fits"

    roomy = attempt({}, f"{train.effective_batch} rows make each update, the longest has {how['tokens']:,} tokens")
    for changes, why in _faster(train) if roomy else _smaller(lora, train, how["tokens"], load_in_4bit):
        if not changes.keys().isdisjoint(closed):
            continue
        fitting = attempt(changes, why)
        if roomy and not fitting:
            closed |= changes.keys()
            tried[-1]["why"] = "not taken: less than 15 % would be left"
            continue
        taken |= changes
        if fitting and not roomy:
            break
    else:
        if not roomy:
            why = f"all that can be changed here is not enough for {limit_gib:g} GiB, 15 % to spare"
            tried.append({"change": "a smaller model, or a larger GPU", "GiB": np.nan, "fits": "", "why": why})
    steps = pd.DataFrame(tried)
    steps.attrs |= {"gpu": name, "limit_gib": limit_gib, "dtype": how["dtype"]}
    return train.replace(**{k: v for k, v in taken.items() if hasattr(train, k)}), steps


def find_gpu(gpu: str | float) -> tuple[str, tuple[float, str]]:
    """Return name, and usable GiB with dtype, of a GPU, named or described by its memory, such as "16" or 16."""
    for name in GPUS:
        if name.lower() == str(gpu).lower():
            return name, GPUS[name]
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b)?", str(gpu).lower())
    if not amount or not float(amount[1]):
        raise SettingsError(f"gpu={gpu!r} must be one of {', '.join(GPUS)}, or its memory in GiB; try gpu=16")
    return f"a GPU of {float(amount[1]):g} GiB from Ampere on", (float(amount[1]), "bfloat16")


def _smaller(lora: LoraSettings, train: TrainSettings, tokens: int, load_in_4bit: bool) -> Iterator[tuple[dict, str]]:
    """What saves memory: changes of settings, and what they cost; the first ones time only, the last ones quality."""
    if not load_in_4bit:
        yield {"load_in_4bit": True}, "weights take a quarter"
    if not train.gradient_checkpointing:
        yield {"gradient_checkpointing": True}, "activations are computed twice: a step takes about half as long again"
    for batch, changes in reversed(_batches(train)):
        if batch < train.per_device_train_batch_size:
            yield changes, "the same update in smaller pieces"
    if train.optim == "adamw_torch_fused":
        yield {"optim": "adamw_8bit"}, "Adam remembers in 8 bit"
    if train.packing:
        yield {"packing": False}, "sequences as long as the rows, not as max_length"
    length = min(train.max_length, tokens)
    while length > 256:
        length //= 2
        yield {"max_length": length}, "longer rows are cut; see what notebook 01 says of them"
    r, alpha = lora.r, lora.lora_alpha
    while r > 8:
        r, alpha = r // 2, max(1, alpha / 2)
        yield {"r": r, "lora_alpha": alpha}, "less room to learn"


def _faster(train: TrainSettings) -> Iterator[tuple[dict, str]]:
    """What saves time where there is room: no GPU has measured which saves most, on a CPU it is the first."""
    if train.gradient_checkpointing:
        yield {"gradient_checkpointing": False}, "no activation is computed twice: a step takes about a third less time"
    for batch, changes in _batches(train):
        if batch > train.per_device_train_batch_size:
            yield changes, "the same update in fewer pieces: each one reads and unpacks all weights"


def _batches(train: TrainSettings) -> list[tuple[int, dict]]:
    """Micro-batches that leave as many rows behind each update as there are, and the settings that they are."""
    rows = train.effective_batch
    sizes = [n for n in range(1, min(rows, 256) + 1) if rows % n == 0]
    return [(n, {"per_device_train_batch_size": n, "gradient_accumulation_steps": rows // n}) for n in sizes]


def download_gib(name: str) -> float | None:
    """GiB that a model's weights take to download, 2 bytes each; 0 if it is on this machine, None if its size is not known.

    Checkpoints of 4B and more hold a vision model too: it comes along, though this project doesn't use it.
    """
    if name in (TINY, PACKAGED) or Path(name).exists():
        return 0.0
    if not (dimensions := known_dimensions(name)):
        return None
    vision = 417_000_000 if sees_images(name) else 0  # parameters of the SigLIP tower
    return 2 * (dimensions.linear_parameters + dimensions.embedding_parameters + vision) / GIB
