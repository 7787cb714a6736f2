"""Checkpoints that are whole or don't count, saved by time as well as by step, and found again with what they were made with.

The Trainer writes `trainer_state.json` last (transformers 5.23), but it neither waits for the random states of other processes, nor
can it know that a machine went away, or a copy to a drive broke off, before every byte arrived. So `KeepCheckpoints` adds a mark,
`whole.json`, with the size of each file: without it, or with a file cut, a folder is no checkpoint.
"""

import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO, NamedTuple
from zipfile import BadZipFile, ZipFile

import torch
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from trl import SFTTrainer

from gemma_colab.core.errors import SPOILT, WorkspaceError, first_line
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.core.settings import LoraSettings, TrainSettings

MARK = "whole.json"
OURS = "made_by_gemma_colab.txt"  # the sign by which a folder of checkpoints is known; without it nothing in there is moved or deleted
KEPT = 2  # the newest ones; and the best
SHAPED = ("exp_avg", "exp_avg_sq", "state1", "state2")  # what Adam keeps for each weight, and what 8-bit Adam keeps beside it:
BESIDE = ("step", "qmap1", "qmap2", "absmax1", "absmax2", "unorm_vec")
# What may change between a checkpoint and the run that goes on from it: the same rows make each update.
MAY_DIFFER = {"per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
MAY_DIFFER |= {"save_minutes", "early_stopping_patience"}


class Checkpoint(NamedTuple):
    """A whole checkpoint: its step, its folder, what it was made with, and the seconds of training behind it."""

    step: int
    path: Path
    made_with: dict
    seconds: float


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Find those in `folder` whose every file is there in its full size, oldest first."""
    found = []
    for path in numbered(folder):
        try:
            mark = json.loads((path / MARK).read_text(encoding="utf-8") if (path / MARK).is_file() else "")  # no pipe
            sizes = mark["files"].items() if path.name == f"checkpoint-{mark['step']}" else ()
            if sizes and all((path / name).stat().st_size == size for name, size in sizes):
                found.append(Checkpoint(int(mark["step"]), path, dict(mark["made_with"]), float(mark["seconds"])))
        except (OSError, *SPOILT):  # a file is missing, or the mark was spoilt
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def checkpoint_to_resume(folder: Path, made_with: dict, anyway: bool = False, longer: bool = False) -> Checkpoint:
    """Find the newest whole checkpoint in `folder`. Raises `WorkspaceError` if there is none, or, unless `anyway`, if it was made with
    other data or settings, naming them. longer: the number of epochs may be another one."""
    if not (found := whole_checkpoints(folder)):
        raise WorkspaceError(f"{folder} holds no whole checkpoint to resume from; start anew, with resume=False (no --resume)")
    name = found[-1].path.name
    file = found[-1].path / "trainer_state.json"
    try:
        state = TrainerState.load_from_json(str(file)) if file.is_file() else TrainerState()
        kinds = (state.log_history, list), (state.best_global_step, int | None), (state.global_step, int)
        if not all(isinstance(value, kind) for value, kind in kinds):
            raise ValueError("it is not what the trainer writes")
    except SPOILT as e:
        raise WorkspaceError(f"{name}/trainer_state.json is spoilt ({first_line(e)}); start anew, with resume=False") from None
    if any(found[-1].path.glob("*/adapter_config.json")):  # the trainer would load each of them
        raise WorkspaceError(f"{name} holds folders with other adapters, which no run here writes; start anew, with resume=False")
    for file in filter(Path.is_file, found[-1].path.rglob("*")):
        if file.suffix in (".pt", ".pth", ".bin") and file.name != "training_args.bin":  # which nobody reads
            check_state(file)
    others = differences(found[-1].made_with, made_with, name)
    if (others := [other for other in others if not (longer and other.startswith("num_train_epochs:"))]) and not anyway:
        remedy = "set them back, start anew with resume=False (no --resume), or go on in spite of it with anyway=True (--anyway)"
        raise WorkspaceError(f"{name} was made with other settings or data ({'; '.join(others)}); {remedy}")
    return found[-1]


def check_state(file: Path) -> None:
    """Raise `WorkspaceError` for a state that is no plain tensors, or in which more is than the file is large: packed, on the same bytes,
    or lists that hold others again and again."""
    try:
        size, more = file.stat().st_size, ValueError("it says that it holds more than it does")
        with ZipFile(file) as records:
            parts = records.infolist()
        if any(part.compress_type for part in parts) or sum(part.file_size for part in parts) > size:
            raise more
        with safe_globals():  # of numpy's random state
            todo, known, held = [torch.load(file, map_location="cpu", weights_only=True, mmap=True)], set(), 0
        while todo:
            value = todo.pop()
            within = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
            held += len(within)
            if torch.is_tensor(value) and id(value) not in known:  # 8-bit optimizers have one table for all
                known.add(id(value))
                held += (takes := value.numel() * value.element_size())
                if takes > value.untyped_storage().nbytes():  # one number in place of all: torch writes beyond it
                    raise more
            if held > size:
                raise more
            todo += within
    except (BadZipFile, UnpicklingError, RuntimeError, *SPOILT) as e:
        what = f"{file.parent.name} holds a file that is not of this training ({file.name}: {first_line(e).split('.')[0]})"
        raise WorkspaceError(f"{what}; start anew, with resume=False (no --resume)") from None


def differences(then: dict, now: dict, file: str) -> list[str]:
    """List what is not as it was, each as "name: value then, value now". What a `file` of another version lacks means what it meant
    then (`Settings.from_dict`)."""
    lines = []
    for name, value in now.items():
        before = then.get(name, value)
        if isinstance(value, dict):
            if kind := {"train": TrainSettings, "lora": LoraSettings}.get(name):
                before = dataclasses.asdict(kind.from_dict(before, file))
            lines += differences(before, value, file)
        elif before != value and name not in MAY_DIFFER:
            lines.append(f"{name}: {before} then, {value} now")
    return lines


def numbered(folder: Path) -> list[Path]:
    """List what is named like a checkpoint, whole or not: nothing else in a folder is ever moved or deleted."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def check_ours(folder: Path) -> None:
    """Raise `WorkspaceError` where the folder, or that of the run before, is or holds a link, a pipe or what no run here wrote."""
    for place in (folder, _before(folder)):
        if odd := [p for p in (place, *place.rglob("*")) if p.is_symlink() or p.exists() > p.is_file() + p.is_dir()]:
            what = "a link" if odd[0].is_symlink() else "no plain file"
            raise WorkspaceError(f"{odd[0]} is {what}, and training moves and deletes only what is here; delete it")
        strange = [path.name for path in place.glob("*")]
        if strange and not (place / OURS).is_file() and not any((path / MARK).is_file() for path in numbered(place)):
            remedy = "name a new folder for the checkpoints, or move this one away"
            raise WorkspaceError(f"folder={str(place)!r} holds {min(strange)!r}, which no run of this project wrote; {remedy}")


def _before(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-before")


def claim(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # a drive may know no modes
        folder.chmod(0o700)  # the log in a checkpoint holds questions and answers
    (folder / OURS).write_text("Training moves and deletes the checkpoints in this folder, and nothing else.\n", encoding="utf-8")


def hold(folder: Path) -> BinaryIO:
    """Claim `folder` and hold it until what is returned is closed: a second run would delete checkpoints of the first. Raises
    `WorkspaceError` where one is on. Where the system or the drive knows no locks, nothing is held."""
    claim(folder)
    sign = (folder / OURS).open("rb")
    try:
        import fcntl  # not on Windows

        fcntl.flock(sign, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sign.close()
        what = f"another training writes checkpoints to {folder}"
        raise WorkspaceError(f"{what}; wait for its end, or restart its kernel") from None
    except (ImportError, OSError):
        pass
    return sign


def put_aside(folder: Path) -> Path | None:
    """Make room for a new run. What an older one left is kept in `<folder>-before` (one generation); where, or None."""
    if not whole_checkpoints(folder):  # half ones are removed when training begins
        return None
    before = _before(folder)
    for old in numbered(before):
        shutil.rmtree(old, ignore_errors=True)
    claim(before)
    for path in numbered(folder):
        path.rename(before / path.name)
    return before


def agreed(flag: bool, args: TrainingArguments) -> bool:
    """Whether any process says so: all must save, or stop, at the same step."""
    if args.world_size == 1:
        return flag
    said = torch.tensor(int(flag), device=args.device)
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return bool(said)


class KeepCheckpoints(TrainerCallback):
    """Saves after `minutes` without a checkpoint, marks each one that is whole, keeps the newest two and the best. One that can't be
    written ends no run, and never counts as the best.

    folder: the Trainer's output_dir. made_with: written into each. before: seconds of training in earlier processes. begin: called once,
    when nothing is left that could refuse the run.
    """

    def __init__(self, folder: Path, made_with: dict, minutes: float, before: float, say: Callable, begin: Callable[[], None]):
        self.folder, self.made_with, self.minutes, self.before = folder, made_with, minutes, before
        self.say, self.begin = say, begin

    @property
    def seconds(self) -> float:
        """Of training so far, earlier processes included."""
        return self.before + time.monotonic() - self.start

    def watch(self, trainer: SFTTrainer) -> None:
        """Let the trainer save through `_save`: an error in a callback behind it would come too late."""
        self.trainer, self.write, trainer._save_checkpoint = trainer, trainer._save_checkpoint, self._save
        trainer.create_model_card = lambda **_: None  # TRL's knows nothing of the model, and would replace a README.md

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        adam = optimizer.state if optimizer is not None else {}  # as the checkpoint had it: torch writes beyond what is smaller
        odd = any(kept[name].shape != w.shape for w, kept in adam.items() for name in kept if name in SHAPED)
        if odd or any({*kept} - {*SHAPED, *BESIDE} for kept in adam.values()):
            raise WorkspaceError("the checkpoint's optimizer.pt is of other weights; start anew, with resume=False (no --resume)")
        self.start = self.saved = time.monotonic()
        # The adapter and Adam's two numbers for each weight, at most in float32; a tokenizer of Gemma's size.
        self.gib = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad) / GIB + 0.04
        self._find_best(state)
        if state.is_world_process_zero:
            self._remove_half()  # of one, from a process that was killed
            if (there := free_gib(self.folder)) < (need := (KEPT + 2) * self.gib):
                short = f"{there:.2f} GiB are free for {self.folder}, and checkpoints need {need:.2f}"
                raise WorkspaceError(f"{short}; make room there, or take a workspace on a larger disk")
            self.begin()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= agreed(time.monotonic() - self.saved >= 60 * self.minutes, args)

    def _save(self, model: torch.nn.Module, trial: None) -> None:
        args, state, self.saved = self.trainer.args, self.trainer.state, time.monotonic()  # asks again after the same time
        full = agreed(state.is_world_process_zero and free_gib(self.folder) < 1.2 * self.gib, args)
        try:
            if full:
                raise OSError(f"no room for a checkpoint of {self.gib:.2f} GiB")
            self.write(model, trial)
            self._finish(args, state)
            self._find_best(state)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # where a disk or a quota is full each library has an error of its own; tokenizers' is a bare one
            why = e if full else f"{type(e).__name__}: {first_line(e)}"
            what = f"step {state.global_step}: no checkpoint was written to {self.folder}, {why}"
            if args.world_size > 1 and not full:  # the others wait for this one
                raise WorkspaceError(f"{what}; make room there, and go on with resume=True (--resume)") from e
            if state.is_world_process_zero:
                self._remove_half()
                self.say(f"{what}; training goes on, make room there")
            if state.best_global_step == state.global_step and self.trainer.control.should_training_stop:
                state.best_model_checkpoint = None  # it ends here, the best is in memory, and no older one must be loaded
            else:
                state.best_global_step, state.best_metric = self.best
                self._find_best(state)

    def _find_best(self, state: TrainerState) -> None:
        """Remember the best that was saved. The Trainer looks where it was then, and before the parts of a sharded model are written."""
        self.best = state.best_global_step, state.best_metric
        best = self.folder / f"checkpoint-{int(state.best_global_step or 0)}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _finish(self, args: TrainingArguments, state: TrainerState) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # each has written its own random state
        if not state.is_world_process_zero:
            return
        path, sizes = self.folder / f"checkpoint-{state.global_step}", {}
        (path / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads: the settings are in the mark
        for file in filter(Path.is_file, path.rglob("*")):
            sizes[str(file.relative_to(path))] = file.stat().st_size
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # on the disk before the mark is: a machine that is taken away loses what is not
        self.gib = sum(sizes.values()) / GIB
        mark = {"step": state.global_step, "seconds": round(self.seconds, 2), "made_with": self.made_with, "files": sizes}
        (path / MARK).write_text(json.dumps(mark, ensure_ascii=False, indent=1), encoding="utf-8")
        for old in whole_checkpoints(self.folder)[:-KEPT]:
            if old.step != state.best_global_step:
                shutil.rmtree(old.path, ignore_errors=True)
        self._remove_half()

    def _remove_half(self) -> None:
        for half in set(numbered(self.folder)) - {whole.path for whole in whole_checkpoints(self.folder)}:
            shutil.rmtree(half, ignore_errors=True)
