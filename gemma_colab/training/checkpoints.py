"""Checkpoints that are whole or not there, kept by time as well as by step, and found again with what they were made with.

The Trainer writes each checkpoint into `.writing`, beside its place. When it is complete, `KeepCheckpoints` adds a list of its
files and renames the folder; a process that is killed in between leaves nothing that could be taken for a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.core.workspace import swap_in

WRITING, WHOLE = ".writing", "whole.json"
KEPT = 2  # the newest ones; and the best
# What may change between a checkpoint and the run that goes on from it: the same rows stand behind each update.
MAY_DIFFER = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "save_minutes",
    "early_stopping_patience",
}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step, what it was made with, and the seconds of training behind it."""

    path: Path
    step: int
    made_with: dict
    seconds: float


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Those in `folder` whose every file is there in its full size, oldest first."""
    found = []
    for path in folder.glob("checkpoint-*"):
        try:
            listed = json.loads((path / WHOLE).read_text(encoding="utf-8"))
            complete = all((path / name).stat().st_size == size for name, size in listed["files"].items())
        except (OSError, ValueError):  # a file is missing, or was cut: half uploaded, half copied
            continue
        if complete:
            found.append(Checkpoint(path, listed["step"], listed["made_with"], listed["seconds"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def to_resume(folder: Path, made_with: dict, *, anyway: bool = False) -> Checkpoint:
    """The newest whole checkpoint in `folder`. Raises `WorkspaceError` if there is none, or, unless `anyway`, if it was made with
    other data or settings, naming them."""
    if not (found := whole_checkpoints(folder)):
        raise WorkspaceError(f"{folder} holds no whole checkpoint to resume from; start anew, with resume=False")
    newest = found[-1]
    if (others := differences(newest.made_with, made_with)) and not anyway:
        raise WorkspaceError(
            f"{newest.path.name} was made with other settings or data ({'; '.join(others)}); set them back, start anew with "
            "resume=False, or go on in spite of it with anyway=True"
        )
    return newest


def differences(then: dict, now: dict) -> list[str]:
    """What is not as it was, each as "name: value then, value now"; groups of settings are looked into."""
    lines = []
    for name in dict.fromkeys([*then, *now]):
        a, b = then.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b)
        elif a != b and name not in MAY_DIFFER:
            lines.append(f"{name}: {a} then, {b} now")
    return lines


def put_aside(folder: Path) -> Path | None:
    """Make room for a new run. What an older one left is kept as `<folder>-before` (one generation); where, or None."""
    before = folder.with_name(f"{folder.name}-before")
    if not whole_checkpoints(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    shutil.rmtree(before, ignore_errors=True)
    folder.rename(before)
    return before


def agreed(flag: bool, args: TrainingArguments) -> bool:
    """Whether any process says so: all must save, or stop, at the same step."""
    if args.world_size == 1:
        return flag
    said = torch.tensor(int(flag), device=args.device)
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
    return bool(said)


def _wait_for_others(args: TrainingArguments) -> None:
    if args.world_size > 1:
        torch.distributed.barrier()


class KeepCheckpoints(TrainerCallback):
    """Saves after `minutes` without a checkpoint, moves each one into place when it is whole, keeps the newest two and the best.

    folder: where they go; the Trainer's output_dir must be `folder/.writing`. made_with: settings and fingerprints, written into
    each. seconds: of training before this process. say: called with a sentence when one can't be saved.
    """

    def __init__(
        self,
        folder: Path,
        made_with: dict,
        minutes: float,
        seconds: float = 0.0,
        *,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
        free: Callable[[Path], float] = free_gib,
    ):
        self.folder, self.made_with, self.minutes, self.say, self.clock, self.free = folder, made_with, minutes, say, clock, free
        self.before, self.gib, self.full = seconds, 0.0, False

    @property
    def seconds(self) -> float:
        """Of training so far, earlier processes included."""
        return self.before + self.clock() - self.start

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs):
        self.start = self.saved = self.clock()
        # The adapter and Adam's two numbers for each weight, at most in float32; a tokenizer of Gemma's size.
        self.gib = 12 * sum(p.numel() for p in model.parameters() if p.requires_grad) / GIB + 0.04
        if state.best_global_step:  # the folder may have another name by now, on another machine
            best = self.folder / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None
        if not state.is_world_process_zero:
            return
        shutil.rmtree(args.output_dir, ignore_errors=True)  # half of one, from a process that was killed
        need, there = (KEPT + 2) * self.gib, self.free(self.folder)
        if there < need:
            raise WorkspaceError(
                f"{there:.2f} GiB are free where {self.folder} lies, and checkpoints need {need:.2f}; make room there, or take "
                "a workspace on a larger disk"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        due = self.clock() - self.saved >= 60 * self.minutes
        control.should_save = control.should_save or agreed(due, args)
        if control.should_save:
            self.full = agreed(state.is_world_process_zero and self.free(self.folder) < 1.2 * self.gib, args)
        if self.full and control.should_save:
            control.should_save = False
            self.saved = self.clock()  # asks again after the same time
            if state.is_world_process_zero:
                self.say(
                    f"step {state.global_step}: no room for a checkpoint of {self.gib:.2f} GiB where {self.folder} lies; "
                    "training goes on, make room there"
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        name = f"checkpoint-{state.global_step}"
        _wait_for_others(args)  # each has written its own random state
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(self.folder / name)
        if state.is_world_process_zero:
            self._move_into_place(Path(args.output_dir) / name, state)
        _wait_for_others(args)
        self.saved = self.clock()

    def _move_into_place(self, part: Path, state: TrainerState) -> None:
        state.save_to_json(str(part / "trainer_state.json"))  # again: it now names the best one by its final place
        (part / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads; the settings are in the list
        files = [path for path in part.rglob("*") if path.is_file()]
        listed = {
            "step": state.global_step,
            "seconds": round(self.seconds, 2),
            "made_with": self.made_with,
            "files": {str(path.relative_to(part)): path.stat().st_size for path in files},
        }
        (part / WHOLE).write_text(json.dumps(listed, ensure_ascii=False, indent=1), encoding="utf-8")
        for path in [*files, part / WHOLE]:  # on the disk before the name is: a machine that is taken away loses what is not
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.gib = sum(listed["files"].values()) / GIB
        swap_in(part, self.folder / part.name)
        kept = {c.path for c in whole_checkpoints(self.folder)[-KEPT:]} | {self.folder / f"checkpoint-{state.best_global_step}"}
        for old in [*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")]:
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if state.is_world_process_zero:
            shutil.rmtree(args.output_dir, ignore_errors=True)
