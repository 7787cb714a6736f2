"""Frozen settings with upstream names, checked when they are made and saved as JSON in the workspace."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import ClassVar

from gemma_colab.core.errors import SettingsError, say
from gemma_colab.core.workspace import Workspace

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
# The linear layers of one block, named from the block on.
LINEAR = [f"self_attn.{name}" for name in ATTENTION] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
NOT_LINEAR = "model.norm lm_head model.embed_tokens model.layers.0.self_attn model.layers.0.self_attn.q_norm".split()
# Of regular expressions what can't take for ever, no matter who wrote it: names, lists, `.*` and `\d+`; at most two of * and +, and four lists.
PLAIN = r"(?:\.[*+]?|\\[.d]\+?|[\w|]|\[[\d-]+\]\+?|\((?:\?:)?(?:[\w|.-]|\\[.d]\+?|\[[\d-]+\])+\))++"
PLAIN = re.compile(r"(?!.{301})(?!(?:[^*+]*[*+]){3})(?!(?:[^(]*\(){5})" + PLAIN)
SCHEDULERS = ("linear", "cosine", "constant", "constant_with_warmup")
# Words of the vocabulary that TRL's fused loss scores at once on a CPU, see `guard.score_answers_only`: so many fit its cache.
CPU_TILE = 4096


def within(default, low, high):  # declares a number from low to high
    return field(default=default, metadata={"limits": (low, high)})


def one_of(*choices):  # declares a choice; the first is the default
    return field(default=choices[0], metadata={"choices": choices})


def check_number(name: str, value, low: float, high: float, hint, whole: bool = False) -> None:
    """Raise `SettingsError` unless `value` is a number, or a whole one, from `low` to `high`. hint: what to try instead."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise SettingsError(f"{name}={value!r} must be {what} from {low:g} to {high:g}; try {name}={hint}")


class Settings:
    """What all kinds of settings share: the check of each field, exact saving and loading."""

    file: ClassVar[str]
    of_then: ClassVar[dict] = {}  # what a file means that was written before these fields existed

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if limits := f.metadata.get("limits"):
                check_number(f.name, value, *limits, f.default, whole=f.type is int)
            elif (choices := f.metadata.get("choices")) and value not in choices:
                raise SettingsError(f"{f.name}={value!r} must be one of {', '.join(choices)}; try {f.name}={f.default!r}")
            elif isinstance(f.default, str) and not isinstance(value, str):
                raise SettingsError(f"{f.name}={value!r} must be a text; try {f.name}={f.default!r}")
            elif isinstance(f.default, bool) and not isinstance(value, bool):
                raise SettingsError(f"{f.name}={value!r} must be True or False; try {f.name}={bool(value)}")

    def save(self, workspace: Workspace):
        """Write these settings to the workspace; returns the path."""
        return workspace.write_json(self.file, dataclasses.asdict(self))

    @classmethod
    def load(cls, workspace: Workspace):
        """Read the settings saved earlier. Raises `WorkspaceError` if there are none, `SettingsError` if they are impossible."""
        return cls.from_dict(workspace.read_json(cls.file), cls.file)

    @classmethod
    def from_dict(cls, saved: dict, file: str):
        """Make settings of what `file` holds: a field that it lacks means what it meant then, one that is unknown is named and left out."""
        if not isinstance(saved, dict):
            raise SettingsError(f"{file} holds no settings; delete it and save them again")
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(saved) - known):
            say(f"{file} has settings that this version doesn't know, and they are left out: {', '.join(unknown)}.")
        return cls(**cls.of_then | {name: saved[name] for name in known & set(saved)})

    def replace(self, **changes):
        """Return a copy with some values changed, checked again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """Which model the series works on."""

    file: ClassVar[str] = "model_settings.json"
    model: str = "tiny-gemma3"  # or a Hub id, or the folder of a checkpoint; `pick_model` knows short names and "auto"
    load_in_4bit: bool = True  # the linear layers, as in `BitsAndBytesConfig`; False keeps 16 bit, on a CPU 32


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Settings):
    """What is added to the frozen model. The names are those of `peft.LoraConfig`."""

    file: ClassVar[str] = "lora_settings.json"
    r: int = within(16, 1, 256)  # rank of the two added matrices
    lora_alpha: float = within(16, 1, 1024)  # the update is scaled by lora_alpha / r
    lora_dropout: float = within(0.0, 0, 0.5)  # share of adapter inputs dropped in training; 0.05 may help with little data
    target_modules: str = "all-linear"  # attention and MLP; or "attention", or a regular expression over module names
    use_rslora: bool = False  # scale by lora_alpha / sqrt(r) instead, so that a higher rank keeps its weight (arXiv 2312.03732)
    use_dora: bool = False  # learn the length of each weight row apart from its direction (arXiv 2402.09353); slower

    def __post_init__(self):
        super().__post_init__()
        if self.target_modules in ("all-linear", "attention"):
            return
        told, said = str(self.target_modules), f"target_modules={repr(self.target_modules)[:300]} must"
        remedy = 'try "all-linear", "attention", or r".*\\.(q_proj|v_proj)"'
        try:
            if not PLAIN.fullmatch(told):
                raise re.error(r"names, lists such as (q_proj|v_proj), .* and \d+; at most two of * and +, and four lists")
            fits = re.compile(told).fullmatch  # as peft does it
        except re.error as e:
            raise SettingsError(f"{said} be a plain pattern ({e}); {remedy}") from None
        layers = (f"model.layers.{i}.{name}" for i in range(64) for name in LINEAR)  # the largest Gemma 3 has 62 blocks
        if any(map(fits, NOT_LINEAR)) or not any(map(fits, layers)):
            raise SettingsError(f"{said} match linear layers of a block by their whole name, and nothing else; {remedy}")

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """How the adapter is trained. The names are those of `trl.SFTConfig`; the last five are this project's."""

    file: ClassVar[str] = "train_settings.json"
    of_then: ClassVar[dict] = {"last_answer_only": True}
    learning_rate: float = within(2e-4, 1e-6, 0.1)
    per_device_train_batch_size: int = within(4, 1, 256)  # rows computed at once
    gradient_accumulation_steps: int = within(2, 1, 65_536)  # such batches added up before one update; 256 x 256, if one row fits
    num_train_epochs: float = within(3.0, 0.01, 100)  # passes over the training rows
    lr_scheduler_type: str = one_of(*SCHEDULERS)
    warmup_steps: int = within(5, 0, 10_000)  # updates until the full rate
    weight_decay: float = within(0.0, 0, 1)
    max_grad_norm: float = within(1.0, 0.01, 100)
    max_length: int = within(1024, 16, 131_072)  # tokens of a row that are kept
    gradient_checkpointing: bool = True  # keep less for the backward pass and compute it again, which takes longer
    packing: bool = False  # several rows in one sequence of max_length tokens instead of padding
    # Two numbers a trained weight in 32 bit; in 8 bit; in 8 bit, and moved to the CPU's memory when the GPU's runs out.
    optim: str = one_of("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")
    neftune_noise_alpha: float | None = None  # noise on the embeddings (arXiv 2310.05914)
    seed: int = within(0, 0, 2**32 - 1)
    last_answer_only: bool = False  # of a conversation learn the last answer, and not all
    replay: float = within(0.0, 0, 0.5)  # general rows mixed in against forgetting, as a share of all rows
    evals_per_epoch: int = within(2, 1, 100)  # validation points in an epoch; each also saves a checkpoint
    save_minutes: float = within(5.0, 0.02, 1440)  # the longest time between two checkpoints
    early_stopping_patience: int = within(3, 0, 100)  # stop after so many validation points without a new best; 0 never does

    def __post_init__(self):
        super().__post_init__()
        if self.neftune_noise_alpha is not None:
            check_number("neftune_noise_alpha", self.neftune_noise_alpha, 0.1, 50, 5.0)

    @property
    def effective_batch(self) -> int:
        """Rows behind one update on one device."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def steps_per_epoch(self, rows: int, processes: int = 1) -> int:
        """Count the updates in one pass, as `transformers.Trainer` does: a last, smaller batch is kept. processes: that train together."""
        return -(-rows // (self.effective_batch * processes))
