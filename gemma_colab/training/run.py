"""One training run, from settings to the best adapter, that loses nothing on the way."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import pandas as pd
import torch
from datasets import Dataset
from matplotlib.axes import Axes
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import SFTTrainer

from gemma_colab.core.curve import history_table, loss_curve
from gemma_colab.core.errors import TrainingError, WorkspaceError, first_line
from gemma_colab.core.settings import TrainSettings
from gemma_colab.core.trainer import build_trainer, sft_config, unload_adapters
from gemma_colab.training.checkpoints import KeepCheckpoints, check_ours, checkpoint_to_resume, hold, put_aside, whole_checkpoints
from gemma_colab.training.guard import SCALER_SKIPS, Interrupt, StopEarly, StopOnNonFiniteLoss, save_memory
from gemma_colab.training.kept import Lost, compare_held, fit_rows
from gemma_colab.training.sharding import prepare_sharding
from gemma_colab.training.short import no_bars, remember
from gemma_colab.training.verdict import TrainingVerdict, training_verdict
from gemma_colab.training.watch import answers_table


@dataclass(frozen=True)
class Run:
    """How a run ended. trainer: with the best adapter on its model. settings: as they were at the end; saving memory may have
    changed them. status: "finished", "stopped early" or "interrupted". seconds: of training, earlier parts of a resumed run
    included. notes: what happened on the way, each a sentence. lost: where the rows are that were "left_out" or "cut", by split.
    adapter_step: which the adapter is of; the best on the validation rows, unless that could not be saved."""

    trainer: SFTTrainer
    settings: TrainSettings
    status: str
    seconds: float
    notes: tuple[str, ...]
    lost: Lost
    adapter_step: int

    @property
    def history(self) -> pd.DataFrame:
        return history_table(self.trainer.state.log_history)

    @property
    def verdict(self) -> TrainingVerdict:
        return training_verdict(self.history, finished=self.status != "interrupted")

    @property
    def answers(self) -> pd.DataFrame:
        """What the fixed questions were answered at each validation: one line a step, one column a question."""
        return answers_table(self.trainer.state.log_history)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot training and validation loss over the steps, the best validation point marked."""
        return loss_curve(self.history, ax)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    eval_dataset: Dataset,
    settings: TrainSettings,
    peft_config: LoraConfig,
    dtype: torch.dtype,
    folder: str | Path,
    *,
    made_with: dict | None = None,
    resume: bool = False,
    anyway: bool = False,
    longer: bool = False,
    shorter_rows: bool = False,
    begin: Callable[[], None] = lambda: None,
    show: TrainerCallback | None = None,
    plan: Callable[[TrainSettings], pd.Series] | None = None,
    report_to: str = "none",
) -> Run:
    """Train an adapter on `model` with a real `SFTTrainer`; the best checkpoint is loaded at the end.

    folder: of the checkpoints. Those of an earlier run there are put aside, or with `resume` gone on from: same optimizer, schedule,
    random state and order of the rows. made_with: what else a checkpoint depends on, such as the model and a fingerprint of the
    rows; one made with other settings or data is refused, unless `anyway`. longer: it may be one of fewer epochs: the run goes on where
    the schedule of so many epochs would be, without another warm-up. shorter_rows: rows may be cut when nothing else saves
    memory. begin: called when nothing is left that could refuse the run. show: watches in place of the library's bars, such as
    `watch.live_view()`. plan: `memory_plan` of settings, to explain what took the memory.

    An interrupt keeps a checkpoint. When the GPU's memory runs out, the run goes on from the newest one with the next step of
    `save_memory`. Rows of which max_length leaves nothing to learn are left out and named, and those that lose the end of an answer.
    Raises `TrainingError` when the loss is no number, or nothing is left to save memory with; `SettingsError` when no row is left;
    `WorkspaceError` when it can't be resumed, there is no room for checkpoints, another run writes to the folder, or it is somebody else's.
    """
    folder, notes, start, say = Path(folder), [], None, getattr(show, "say", TrainingError.say)
    processes, first = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0

    def now_made_with() -> dict:
        rows = settings.effective_batch * processes
        return {**(made_with or {}), "rows_per_update": rows, "train": dataclasses.asdict(settings)}

    def note(sentence: str) -> None:
        notes.append(sentence)
        if first:
            say(sentence)

    def started() -> None:
        if start is None and (before := put_aside(folder)):
            notes.append(f"the checkpoints of the run before are in {before.name}")
        begin()

    check_ours(folder)
    if resume:
        start = checkpoint_to_resume(folder, now_made_with(), anyway, longer)
        notes.append(f"resumed from step {start.step}" + f", now for {settings.num_train_epochs:g} epochs" * longer)
    while True:
        kept, lost = fit_rows({"train": train_dataset, "validation": eval_dataset}, tokenizer, settings, note)
        fitting = train_dataset.select(kept["train"]), eval_dataset.select(kept["validation"])
        unload_adapters(model)
        with hold(folder) if first else nullcontext(), ExitStack() as undo:
            undo.callback(remember(model))  # whatever goes wrong in here, the model is as it was
            args = sft_config(settings, folder, len(fitting[0]), dtype, report_to=report_to)
            args.disable_tqdm = show is not None
            keep = KeepCheckpoints(folder, now_made_with(), settings.save_minutes, start.seconds if start else 0.0, say, started)
            broken, interrupt = StopOnNonFiniteLoss(SCALER_SKIPS if dtype == torch.float16 else 0), Interrupt(say)
            callbacks = [broken, interrupt, keep, StopEarly(settings.early_stopping_patience), *filter(None, [show])]
            with no_bars() if show and len(train_dataset) < 2000 else nullcontext():  # so many are tokenized in a second or two
                trainer = build_trainer(model, tokenizer, *fitting, args, peft_config, callbacks)
            compare_held(trainer, len(fitting[0]))
            keep.watch(trainer)
            prepare_sharding(trainer)
            full = ""
            try:
                with interrupt:
                    trainer.train(resume_from_checkpoint=str(start.path) if start else None)
            except UnpicklingError as e:  # torch's own message says how to run what is in there
                what = f"{start.path.name} holds a file that is not of this training ({str(e).split('.')[0]})"
                raise WorkspaceError(f"{what}; start anew, with resume=False (no --resume)") from None
            except torch.OutOfMemoryError as e:
                full = first_line(e)
            # Out here the error is gone, and with it the frames that held the step's tensors.
            state, kept = trainer.state, whole_checkpoints(folder)
            if broken.reason:
                where = f"; the checkpoint of step {kept[-1].step} is from before" if kept else ""
                raise TrainingError(broken.reason + where, state.log_history)
            if not full:
                undo.pop_all()
                ended = "stopped early" if state.global_step < state.max_steps else "finished"
                step = state.best_global_step if state.best_model_checkpoint else state.global_step
                validated = {line["eval_loss"]: line["step"] for line in state.log_history[::-1] if "eval_loss" in line}
                if validated and (best := validated[min(validated)]) != step:
                    note(f"step {best}, the best on the validation rows, could not be saved: the adapter is that of step {step}")
                status = "interrupted" if interrupt.stopped else ended
                return Run(trainer, settings, status, keep.seconds, tuple(notes), lost, step)
            if plan is not None:
                parts = plan(settings).sort_values(ascending=False)
                largest = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.head(3).items())
                full = f"{full.rstrip('.')}; predicted for these settings {parts.sum():.1f} GiB, most of it {largest}"
            lower, what = save_memory(settings, max(map(len, trainer.train_dataset["input_ids"])), shorter_rows)
            if processes > 1:
                lower, what = None, "with several processes nothing is changed by itself: choose a smaller batch"
            said = f"the GPU's memory ran out at step {state.global_step + 1} ({full}); {what}"
            if lower is None:
                raise TrainingError(said, state.log_history)
        settings, start = lower, kept[-1] if kept else None
        note(said)
        del trainer  # and with it the optimizer
