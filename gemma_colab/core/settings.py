"""Frozen settings with upstream names, checked when they are made and saved as JSON in the workspace."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gemma_colab.core.errors import SettingsError

if TYPE_CHECKING:
    from gemma_colab.core.workspace import Workspace


def _between(name: str, value, low, high, hint: str, kind: type = int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | kind) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(f"{name}={value!r} must be {what} from {low:g} to {high:g}; {hint}")


def _yes_or_no(name: str, value) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name}={value!r} must be True or False; try {name}={bool(value)}")


def _one_of(name: str, value, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{name}={value!r} must be one of {', '.join(known)}; try {known[0]!r}")


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# The linear layers of one block, named from the block on.
LINEAR = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def _check_targets(target_modules: str) -> None:
    """A string is a full-match regular expression over module names, as in peft; 64 blocks cover every Gemma 3."""
    if target_modules in ("all-linear", "attention"):
        return
    remedy = 'try "all-linear", "attention", or r".*\\.(q_proj|v_proj)"'
    try:
        pattern = re.compile(target_modules)  # a list, as peft takes it too, would not survive being frozen
    except (re.error, TypeError) as e:
        raise SettingsError(f"target_modules={target_modules!r} is not a regular expression ({e}); {remedy}") from None
    blocks = [f"{model}.layers.{i}" for model in ("model", "model.language_model") for i in range(64)]
    if not any(pattern.fullmatch(f"{block}.{name}") for block in blocks for name in LINEAR):
        raise SettingsError(f"target_modules={target_modules!r} matches no linear layer, by its whole name; {remedy}")
    others = [
        "model.norm",
        "lm_head",
        "model.embed_tokens",
        *(f"model.layers.0.{name}" for name in ("self_attn", "self_attn.q_norm")),
    ]
    if any(map(pattern.fullmatch, others)):
        raise SettingsError(f"target_modules={target_modules!r} matches more than linear layers; {remedy}")


class Settings:
    """What the kinds of settings share: exact saving and loading."""

    file: ClassVar[str]
    of_then: ClassVar[dict] = {}  # what a file means that was written before these settings existed

    def save(self, workspace: Workspace):
        """Write these settings to the workspace; returns the path."""
        return workspace.write_json(self.file, dataclasses.asdict(self))

    @classmethod
    def load(cls, workspace: Workspace):
        """The settings saved earlier. Raises `WorkspaceError` if there are none, `SettingsError` if they are impossible."""
        saved = workspace.read_json(cls.file)
        if not isinstance(saved, dict):
            raise SettingsError(f"{cls.file} holds no settings; delete it and save them again")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(saved) - known):
            print(f"{cls.file} has settings that this version doesn't know, and they are left out: {', '.join(unknown)}.")
        return cls(**cls.of_then | {name: saved[name] for name in known & set(saved)})

    def replace(self, **changes):
        """A copy with some values changed, checked again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """How rows are dealt out to train, validation and test.

    validation_size, test_size: shares of all rows, 0.02-0.4 each. seed: any whole number.
    """

    file: ClassVar[str] = "split_settings.json"
    validation_size: float = 0.1
    test_size: float = 0.15
    seed: int = 0

    def __post_init__(self):
        _between("validation_size", self.validation_size, 0.02, 0.4, "try 0.1", float)
        _between("test_size", self.test_size, 0.02, 0.4, "try 0.15", float)
        _between("seed", self.seed, 0, 2**32 - 1, "try 0")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which model the series works on.

    model: a Hub id, the folder of a checkpoint, or "tiny-gemma3"; `catalog.pick_model` knows short names and "auto".
    load_in_4bit: quantised linear layers (as in `transformers.BitsAndBytesConfig`); False keeps 16 bit, on a CPU 32.
    """

    file: ClassVar[str] = "model_settings.json"
    model: str = "tiny-gemma3"
    load_in_4bit: bool = True

    def __post_init__(self):
        if not isinstance(self.model, str) or not self.model.strip():
            raise SettingsError(f"model={self.model!r} must be the name of a model; try 'tiny-gemma3'")
        _yes_or_no("load_in_4bit", self.load_in_4bit)


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """What is added to the frozen model. The names are those of `peft.LoraConfig`.

    r: rank of the two added matrices, 1-256. lora_alpha: the update is scaled by lora_alpha / r, 1-1024.
    lora_dropout: share of adapter inputs dropped in training, 0-0.5.
    target_modules: "all-linear" (attention and MLP), "attention", or a regular expression over module names.
    use_rslora: scale by lora_alpha / sqrt(r) instead, so that a higher rank keeps its weight (arXiv 2312.03732).
    use_dora: learn the length of each weight row apart from its direction (arXiv 2402.09353); slower.
    """

    file: ClassVar[str] = "lora_settings.json"
    r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str = "all-linear"
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self):
        _between("r", self.r, 1, 256, "try r=16")
        _between("lora_alpha", self.lora_alpha, 1, 1024, "try lora_alpha=r", float)
        _between("lora_dropout", self.lora_dropout, 0, 0.5, "try 0.0, or 0.05 with little data", float)
        _check_targets(self.target_modules)
        _yes_or_no("use_rslora", self.use_rslora)
        _yes_or_no("use_dora", self.use_dora)

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
# Names that `SFTConfig` doesn't have: what is mixed in, how often this project looks and saves, and when it stops by itself.
OUR_OWN = ("last_answer_only", "replay", "evals_per_epoch", "save_minutes", "early_stopping_patience")
# Words of the vocabulary that TRL's fused loss scores at once on a CPU, see `trainer.score_answers_only`: so many fit its cache.
CPU_TILE = 4096
# Two numbers a trained weight in 32 bit; in 8 bit; in 8 bit, and moved to the CPU's memory when the GPU's runs out.
OPTIMIZERS = ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """How the adapter is trained. The names are those of `trl.SFTConfig`.

    learning_rate: 1e-6 to 0.1. per_device_train_batch_size: rows computed at once, 1-256.
    gradient_accumulation_steps: such batches added up before one update, 1-256.
    num_train_epochs: passes over the training rows, 0.01-100. warmup_steps: updates until the full rate, 0-10,000.
    weight_decay: 0-1. max_length: tokens of a row that are kept, 16-131,072. max_grad_norm: 0.01-100.
    gradient_checkpointing: keep less for the backward pass and compute it again, which takes longer. packing: several rows in one
    sequence of max_length tokens instead of padding. optim: one of `OPTIMIZERS`.
    lr_scheduler_type: one of `SCHEDULERS`. neftune_noise_alpha: noise on the embeddings in training (arXiv 2310.05914), 0.1-50,
    None for none. seed: any whole number.

    Five are this project's own (`OUR_OWN`). last_answer_only: of a conversation learn the last answer, and not all. replay: general rows mixed in against forgetting, as a share of all rows, 0-0.5. evals_per_epoch: validation points in an epoch, 1-100; each also saves a checkpoint.
    save_minutes: the longest time between two checkpoints, 0.02-1,440. early_stopping_patience: stop after so many validation
    points without a new best, 0-100; 0 never does.
    """

    file: ClassVar[str] = "train_settings.json"
    of_then: ClassVar[dict] = {"last_answer_only": True}
    learning_rate: float = 2e-4
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    num_train_epochs: float = 3.0
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 1024
    gradient_checkpointing: bool = True
    packing: bool = False
    last_answer_only: bool = False
    optim: str = "adamw_torch_fused"
    neftune_noise_alpha: float | None = None
    seed: int = 0
    replay: float = 0.0
    evals_per_epoch: int = 2
    save_minutes: float = 5.0
    early_stopping_patience: int = 3

    def __post_init__(self):
        _between("learning_rate", self.learning_rate, 1e-6, 0.1, "try 2e-4", float)
        _between("per_device_train_batch_size", self.per_device_train_batch_size, 1, 256, "try 4")
        _between("gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 256, "try 2")
        _between("num_train_epochs", self.num_train_epochs, 0.01, 100, "try 3", float)
        _between("warmup_steps", self.warmup_steps, 0, 10_000, "try 5")
        _between("weight_decay", self.weight_decay, 0, 1, "try 0", float)
        _between("max_grad_norm", self.max_grad_norm, 0.01, 100, "try 1", float)
        _between("max_length", self.max_length, 16, 131_072, "try 1024")
        _between("replay", self.replay, 0, 0.5, "try 0.2, or 0 for none", float)
        _between("evals_per_epoch", self.evals_per_epoch, 1, 100, "try 2")
        _between("save_minutes", self.save_minutes, 0.02, 1440, "try 5", float)
        _between("early_stopping_patience", self.early_stopping_patience, 0, 100, "try 3, or 0 for never")
        if self.neftune_noise_alpha is not None:
            _between("neftune_noise_alpha", self.neftune_noise_alpha, 0.1, 50, "try 5, or None for none", float)
        _between("seed", self.seed, 0, 2**32 - 1, "try 0")
        _yes_or_no("gradient_checkpointing", self.gradient_checkpointing)
        _yes_or_no("packing", self.packing)
        _yes_or_no("last_answer_only", self.last_answer_only)
        _one_of("optim", self.optim, OPTIMIZERS)
        _one_of("lr_scheduler_type", self.lr_scheduler_type, SCHEDULERS)

    @property
    def effective_batch(self) -> int:
        """Rows behind one update on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def steps_per_epoch(self, rows: int, processes: int = 1) -> int:
        """Updates in one pass over `rows` rows, counted as `transformers.Trainer` counts them: a last, smaller batch is kept.

        processes: that train together, each with its own micro-batches.
        """
        micro_batches = -(-rows // (self.per_device_train_batch_size * processes))
        return -(-micro_batches // self.gradient_accumulation_steps)


@dataclass(frozen=True, kw_only=True)
class ShipSettings(Settings):
    """When figures alone may say "ship it": where right and wrong can be counted, as in answers that fill in a form.

    bars: measure (as the report calls it) -> the least share of test rows, 0-1; none: a reader must judge. may_forget: whether what
    got worse elsewhere is only told. An adapter that does one job is switched on for that job alone.
    """

    file: ClassVar[str] = "ship_settings.json"
    bars: dict[str, float] = field(default_factory=dict)
    may_forget: bool = True

    def __post_init__(self):
        if not isinstance(self.bars, dict) or not all(isinstance(name, str) for name in self.bars):
            raise SettingsError(f"bars={self.bars!r} must name measures and shares; try bars={{'valid JSON': 0.95}}")
        for name, share in self.bars.items():
            _between(f"bars[{name!r}]", share, 0, 1, "try 0.95", float)
        _yes_or_no("may_forget", self.may_forget)


# What each does to a starting point: (times the learning rate, times the epochs).
PRESETS = {"cautious": (0.25, 2 / 3), "normal": (1.0, 1.0), "strong": (2.5, 5 / 3)}


def preset(settings: TrainSettings, name: str) -> TrainSettings:
    """`settings` with the learning rate and the epochs of a preset: "cautious" forgets little and learns little, "strong" learns
    fast and may overfit. Everything else stays. Raises `SettingsError` for another name."""
    _one_of("preset", name, tuple(PRESETS))
    rate, epochs = PRESETS[name]
    if rate == epochs == 1:
        return settings
    return settings.replace(
        learning_rate=float(f"{min(0.1, max(1e-6, settings.learning_rate * rate)):.3g}"),
        num_train_epochs=min(100.0, max(0.01, round(settings.num_train_epochs * epochs, 2))),
    )


def starting_point(model_name: str) -> tuple[LoraSettings, TrainSettings]:
    """Settings to begin with. Google and Unsloth start the real Gemma 3 at 2e-4. Measured were two: the tiny one, with a thousandth
    of the weights, needs larger steps (and would go on learning: two passes keep `make demo` short); 270M learns the tickets at
    4e-4, and its validation loss is lowest after two passes (README.md, the curve)."""
    small = dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, max_length=512, gradient_checkpointing=False)
    if model_name == "tiny-gemma3":
        return LoraSettings(r=32, lora_alpha=64), TrainSettings(learning_rate=3e-3, num_train_epochs=2, **small)
    if "270m" in model_name:
        return LoraSettings(r=16, lora_alpha=32), TrainSettings(learning_rate=4e-4, num_train_epochs=2, **small)
    return LoraSettings(), TrainSettings()
