"""Does it fit, what to change first if not, and which settings are fastest on this GPU. From the memory plan; nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from gemma_colab.core.catalog import CATALOG, GPUS, Shape, shape_of
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.settings import LoraSettings, TrainSettings, starting_point
from gemma_colab.model.memory import memory_plan

IN_HAND = 0.15  # share of the GPU that a plan leaves free
BATCHES = (1, 2, 4, 8, 16, 32, 64)
# A micro-batch reads and unpacks all weights, however few tokens it has. From the data sheets of T4 and A100 (memory bandwidth
# against float16 rate) that takes as long as computing some 200 tokens. Not measured on a GPU.
TOKENS_OF_A_PASS = 200


def light(gib: float, limit: float) -> str:
    """ "fits" with 15 % of `limit` in hand, "tight" within it, else "no"."""
    return "fits" if gib <= (1 - IN_HAND) * limit else "tight" if gib <= limit else "no"


def smallest_peak(name: str, machine: Machine, load_in_4bit: bool, *, tokens: int) -> float:
    """GiB that the smallest training of this model takes on this machine: its starting point, one row of `tokens` at a time."""
    lora, train = starting_point(name)
    train = train.replace(per_device_train_batch_size=1, gradient_checkpointing=True)
    shape = shape_of(name)
    dtype, _ = dtype_name(machine, shape)
    return memory_plan(shape, lora, train, tokens=tokens, dtype=dtype, load_in_4bit=load_in_4bit).sum()


def fit_table(*, tokens: int = 1024, batches: tuple[int, ...] = (1, 4), lora: LoraSettings | None = None) -> pd.DataFrame:
    """Predicted peak GiB for each Gemma 3 (rows) on each GPU (columns, with what torch can use) at each batch size, with the
    word of `light`."""
    lora, lines = lora or LoraSettings(), {}
    for name, shape in CATALOG.items():
        if not name.endswith("-it"):
            continue
        lines[name] = {}
        for gpu, (limit, dtype) in GPUS.items():
            trains = [TrainSettings(per_device_train_batch_size=b) for b in batches]
            gib = [memory_plan(shape, lora, train, tokens=tokens, dtype=dtype).sum() for train in trains]
            lines[name][f"{gpu}, {limit:.1f} GiB"] = " / ".join(f"{g:.1f} {light(g, limit)}" for g in gib)
    return pd.DataFrame(lines).T


def largest_batch(shape: Shape, lora: LoraSettings, train: TrainSettings, limit: float, **plan) -> int:
    """The largest `per_device_train_batch_size` that leaves 15 % of `limit` GiB in hand; 0 if not even 1 does.

    plan: the other arguments of `memory.memory_plan`.
    """
    fits = 0
    for batch in BATCHES:
        now = train.replace(per_device_train_batch_size=batch)
        if light(memory_plan(shape, lora, now, **plan).sum(), limit) != "fits":
            break
        fits = batch
    return fits


def ladder(
    shape: Shape, lora: LoraSettings, train: TrainSettings, limit: float, *, tokens: int, load_in_4bit: bool = True, **plan
) -> pd.DataFrame:
    """What to change first when it doesn't fit: one rung after the other, until it does. Columns: change, GiB, fits.

    The first rungs cost time only, the later ones quality. The arguments are those of `memory.memory_plan`.
    """
    lines = []

    def rung(change: str) -> bool:
        gib = memory_plan(shape, lora, train, tokens=tokens, load_in_4bit=load_in_4bit, **plan).sum()
        lines.append({"change": change, "GiB": round(gib, 2), "fits": light(gib, limit)})
        return lines[-1]["fits"] == "fits"

    done = rung("as it is")
    if not done and not load_in_4bit:
        load_in_4bit = True
        done = rung("load_in_4bit=True: weights take a quarter")
    if not done and not train.gradient_checkpointing:
        train = train.replace(gradient_checkpointing=True)
        done = rung("gradient_checkpointing=True: a step takes about half as long again")
    while not done and train.per_device_train_batch_size > 1:
        half = train.per_device_train_batch_size // 2
        accumulation = min(256, -(-train.effective_batch // half))
        train = train.replace(per_device_train_batch_size=half, gradient_accumulation_steps=accumulation)
        done = rung(
            f"per_device_train_batch_size={half}, gradient_accumulation_steps={accumulation}: the same update in smaller pieces"
        )
    if not done and train.optim == "adamw_torch_fused":
        train = train.replace(optim="adamw_8bit")
        done = rung('optim="adamw_8bit": Adam remembers in 8 bit')
    if not done and train.packing:
        train = train.replace(packing=False)
        done = rung("packing=False: sequences as long as the rows, not as max_length")
    while not done and min(train.max_length, tokens) > 256:
        train = train.replace(max_length=min(train.max_length, tokens) // 2)
        done = rung(f"max_length={train.max_length}: longer rows are cut; see what notebook 01 says of them")
    while not done and lora.r > 8:
        lora = lora.replace(r=lora.r // 2, lora_alpha=max(1, lora.lora_alpha / 2))
        done = rung(f"r={lora.r}, lora_alpha={lora.lora_alpha:g}: less room to learn")
    if not done:
        lines.append({"change": "a smaller model, or a larger GPU", "GiB": np.nan, "fits": ""})
    return pd.DataFrame(lines)


def plan_training(
    shape: Shape,
    lora: LoraSettings,
    train: TrainSettings,
    lengths: Sequence[int],
    limit: float,
    *,
    fixed: Sequence[str] = (),
    **plan,
) -> tuple[TrainSettings, dict[str, str]]:
    """The settings that should train fastest with 15 % of `limit` GiB in hand, and why: a sentence for each.

    lengths: tokens of each training row. fixed: names of settings that stay as they are in `train`, such as "packing". plan: the
    other arguments of `memory.memory_plan`. The rows behind one update stay as `train` has them. max_length only falls, to the
    longest row of `lengths`: give it those of the validation rows too. Raises `SettingsError` if nothing fits.
    """
    if not len(lengths):
        raise SettingsError("lengths is empty: there is no row to plan for; take the lengths of the training rows")
    wanted, rows, longest = train, train.effective_batch, int(min(max(lengths), train.max_length))
    lengths = np.minimum(np.asarray(lengths), train.max_length)
    if "max_length" not in fixed:
        train = train.replace(max_length=max(16, longest))
    free = {
        "optim": ["adamw_torch_fused", "adamw_8bit"],
        "packing": [False, True],
        "gradient_checkpointing": [False, True],
        "per_device_train_batch_size": range(1, min(rows, BATCHES[-1]) + 1),
    }
    free = {name: [getattr(train, name)] if name in fixed else values for name, values in free.items()}
    best = None
    for values in product(*free.values()):
        now = _candidate(train, dict(zip(free, values, strict=True)), rows, lengths, wanted, fixed)
        if now is None:
            continue
        gib = memory_plan(shape, lora, now, tokens=longest, **plan).sum()
        # A later candidate must be clearly faster: the earlier ones are simpler.
        if light(gib, limit) == "fits" and (best is None or cost(now, lengths) < 0.98 * cost(best[0], lengths)):
            best = now, gib
    if best is None:
        kept = f" with {', '.join(fixed)} as fixed" if fixed else ""
        raise SettingsError(
            f"limit={limit:g} GiB is too small for this model{kept}, 15 % in hand; see planner.ladder for what to change first"
        )
    reasons = _reasons(*best, shape, lora, lengths, limit, plan)
    return best[0], reasons | {name: f"{getattr(train, name)}: fixed by you" for name in fixed if name in reasons}


def cost(train: TrainSettings, lengths: Sequence[int]) -> float:
    """How long one epoch takes, in tokens computed: padding counts, each micro-batch costs `TOKENS_OF_A_PASS` more, and
    checkpointing makes three passes through the model out of two (forward, backward to the adapters, and forward again).
    """
    lengths = np.minimum(np.asarray(lengths), train.max_length)
    batch = train.per_device_train_batch_size
    if train.packing:
        sequences = -(-int(lengths.sum()) // train.max_length)
        tokens, passes = sequences * train.max_length, -(-sequences // batch)
    else:
        shuffled = np.random.default_rng(0).permutation(lengths)
        batches = [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]
        tokens, passes = sum(int(b.max()) * len(b) for b in batches), len(batches)
    return (tokens + TOKENS_OF_A_PASS * passes) * (1.5 if train.gradient_checkpointing else 1.0)


def _candidate(
    train: TrainSettings, values: dict, rows: int, lengths: np.ndarray, wanted: TrainSettings, fixed: Sequence[str]
) -> TrainSettings | None:
    """These values, with the accumulation and max_length that keep `rows` rows behind an update; None if that can't be."""
    per_sequence = 1.0
    if values["packing"]:  # a sequence as long as allowed, but of no more rows than one update has
        length = train.max_length
        if "max_length" not in fixed:
            length = max(length, min(wanted.max_length, int(rows * lengths.mean())))
        values = values | {"max_length": length}
        per_sequence = max(1.0, length / lengths.mean())
    at_once, free = values["per_device_train_batch_size"] * per_sequence, True
    accumulation = max(1, min(256, round(rows / at_once)))
    if "gradient_accumulation_steps" in fixed:
        accumulation, free = train.gradient_accumulation_steps, "per_device_train_batch_size" not in fixed
    # Packed sequences hold a row more or less; unpacked, the count must be right.
    if free and abs(at_once * accumulation - rows) > (0.25 * rows if values["packing"] else 0):
        return None
    return train.replace(**values, gradient_accumulation_steps=accumulation)


def _reasons(
    best: TrainSettings, gib: float, shape: Shape, lora: LoraSettings, lengths: np.ndarray, limit: float, plan: dict
) -> dict[str, str]:
    """A sentence for each setting the planner chose."""

    def without(**changes) -> float:
        return memory_plan(shape, lora, best.replace(**changes), tokens=int(lengths.max()), **plan).sum()

    shuffled = np.random.default_rng(0).permutation(lengths)
    padding = 1 - lengths.sum() / sum(b.max() * len(b) for b in np.array_split(shuffled, -(-len(shuffled) // 8)))
    batch, accumulation = best.per_device_train_batch_size, best.gradient_accumulation_steps
    behind = f"{batch} x {accumulation} rows"
    if best.packing:
        rows = batch * accumulation * best.max_length / lengths.mean()
        behind = f"{batch} x {accumulation} sequence{'s' * (batch * accumulation > 1)}, about {rows:.0f} rows,"
    twice = without(per_device_train_batch_size=min(256, 2 * batch))
    return {
        "per_device_train_batch_size": (
            f"{batch}: {gib:.1f} of {limit:g} GiB predicted; "
            + (
                f"{2 * batch} would take {twice:.1f}"
                if light(twice, limit) != "fits"
                else "more rows than these don't stand behind an update"
            )
        ),
        "gradient_accumulation_steps": f"{accumulation}: {behind} stand behind each update",
        "max_length": f"{best.max_length}: {'so long is a packed sequence; ' if best.packing else ''}the longest row has {int(lengths.max())} tokens",
        "gradient_checkpointing": (
            f"on: without it {without(gradient_checkpointing=False):.1f} GiB; a step takes about half as long again"
            if best.gradient_checkpointing
            else f"off: it would save {gib - without(gradient_checkpointing=True):.1f} GiB, which is not needed, and slow each step down"
        ),
        "packing": (
            f"on: in batches of 8 rows {padding:.0%} of the tokens would be padding"
            if best.packing
            else f"off: in batches of 8 rows {padding:.0%} of the tokens are padding"
        ),
        "optim": (
            f"{best.optim}: Adam in 32 bit would take {without(optim='adamw_torch_fused') - gib:.1f} GiB more"
            if best.optim != "adamw_torch_fused"
            else f"{best.optim}: 8 bit would save only {gib - without(optim='adamw_8bit'):.2f} GiB"
        ),
    }
