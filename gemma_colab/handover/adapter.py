"""What notebook 04 leaves: an adapter trained on the rows of the workspace, and the record of its run."""

import dataclasses
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

import pandas as pd

from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import TrainingError, WorkspaceError, say
from gemma_colab.core.rows import answer, prompt
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import SPLIT_FILES, Workspace
from gemma_colab.handover.killed import killed_run
from gemma_colab.handover.rows import ensure_rows, saved_source
from gemma_colab.handover.settings import settings_for
from gemma_colab.model.choice import TEXT_ONLY, sees_images, shown_name
from gemma_colab.model.hub import refuse_another_base, weights_mark
from gemma_colab.model.lengths import token_lengths
from gemma_colab.model.lent import describe_machine
from gemma_colab.training.replay import REPLAY_ROWS, general_rows, mix_in

ASKED = 3  # validation rows that are answered at each validation


def ensure_adapter(workspace: Workspace, chosen: ModelSettings) -> dict:
    """Return what notebook 04 recorded of its training; train with the starting point if it didn't run.

    Raises `WorkspaceError` when the adapter there was trained on another model, or on other rows than those in the workspace,
    some of which might now be in the test.
    """
    if not (workspace.has("adapter") and workspace.has("training.json")):
        say("Notebook 04 has not run in this workspace: training an adapter from the starting point.")
        train_adapter(workspace, chosen)
    record = workspace.read_json("training.json")
    trained = ModelSettings(model=record["model"], load_in_4bit=record.get("load_in_4bit", True))
    if trained != chosen:
        its, ours = (f"{s.model!r} in {'4' if s.load_in_4bit else '16'} bit" for s in (trained, chosen))
        remedy = f"choose {its} in notebook 02, or run notebook 04_train again"
        raise WorkspaceError(f"the adapter in {workspace.path} was trained on {its}, not on {ours}; {remedy}")
    if record.get("rows") != workspace.fingerprint(*SPLIT_FILES):
        others = f"the adapter in {workspace.path} was trained on other rows than those now in rows/"
        raise WorkspaceError(f"{others}; run notebook 04_train again")
    refuse_another_base(record)
    return record


def train_adapter(
    workspace: Workspace,
    chosen: ModelSettings,
    settings: TrainSettings | None = None,
    *,
    loaded: tuple | None = None,
    resume: bool = False,
    anyway: bool = False,
    shorter_rows: bool = False,
    rounds: int = 0,
    more: float | None = None,
    rehearse: dict | None = None,
    show="live",
    report_to: str = "none",
):
    """Train on the rows of this workspace, as notebook 04 does it; returns the `training.run.Run`.

    settings: left out, those saved here, or the starting point. loaded: the model of `chosen` and its tokenizer, if they are in memory
    already. rounds: so often at most a run goes on that ended with the advice to train for more epochs, each time for `more` epochs, as many
    as it had unless given: with the same optimizer, and the learning rate that a run of so many epochs would have by then, so that it
    rises once more; the adapter is the best of all rounds. With `resume` a finished run goes on like that. rehearse: {"train", "validation"} -> rows, for a rehearsal of a
    lost session: a second process trains on them, elsewhere, and is killed at its first checkpoint; the run goes on here. show: "live" for a curve in a notebook, with the
    answers to three validation rows below it, and a line in a terminal, None for the library's own bars, or a `TrainerCallback`. The
    other arguments are those of `training.run.train`. Saves model and settings when the run begins; at the end `adapter/`, in
    `training.json` the model, a checksum of the rows, which of them were left out or cut, the verdict, the step that the adapter is of
    and the whole log, and in `history/` a record of the run, also of one that broke.
    """
    from datasets import Dataset

    if rehearse:
        from gemma_colab.training.short import remember

        lora = [LoraSettings.load(workspace)] if workspace.has(LoraSettings.file) else []  # else the starting point, there too
        left = killed_run(rehearse, saved_source(workspace), chosen, settings, *lora)
        with ExitStack() as undo:
            if loaded:
                undo.callback(remember(loaded[0]))  # what it learns in a rehearsal doesn't stay on it
            return train_adapter(left, chosen, loaded=loaded, resume=True, show=show)

    from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.core.machine import pick_dtype
    from gemma_colab.core.trainer import lora_config
    from gemma_colab.evaluation.generation import GREEDY, generate
    from gemma_colab.export.adapter import save_adapter
    from gemma_colab.training.checkpoints import whole_checkpoints
    from gemma_colab.training.records import record_run
    from gemma_colab.training.run import train
    from gemma_colab.training.sharding import whole_adapter
    from gemma_colab.training.verdict import MORE_EPOCHS, training_verdict
    from gemma_colab.training.watch import live_view

    rows, split = ensure_rows(workspace), workspace.fingerprint(*SPLIT_FILES)  # at once: notebook 01 may write others
    machine, dimensions = describe_machine(str(workspace.path)), dimensions_of(chosen.model)
    dtype, _ = pick_dtype(machine, dimensions)
    if loaded is None:
        nf4 = quantization_config(dtype) if chosen.load_in_4bit else None
        loaded = load_model(chosen.model, dtype, nf4), load_tokenizer(chosen.model)
    lengths = token_lengths(rows["train"] + rows["validation"], loaded[1], 2**17)
    saved = settings_for(workspace, chosen, machine, lengths["total"])
    if settings is None:
        settings = TrainSettings.load(workspace) if resume else saved.train
    first_process = int(os.environ.get("RANK", 0)) == 0  # the one that writes; with `accelerate launch` there are several
    if sees_images(chosen.model):
        say(f"{shown_name(chosen.model)} {TEXT_ONLY}.")
    base = {"model": chosen.model, "load_in_4bit": chosen.load_in_4bit}
    made_with = base | {"weights": weights_mark(chosen.model, dated=False), "lora": dataclasses.asdict(saved.lora)}
    replayed = settings.replay and workspace.has(REPLAY_ROWS)
    made_with["rows"] = workspace.fingerprint(*SPLIT_FILES, REPLAY_ROWS) if replayed else split
    training_rows = mix_in(rows["train"], general_rows(workspace), settings.replay, settings.seed)

    def plan(settings: TrainSettings) -> pd.Series:
        how = {"tokens": int(lengths["total"].max()), "scored": lengths["answer"].sum() / lengths["total"].sum()}
        how |= {"dtype": dtype, "load_in_4bit": chosen.load_in_4bit, "gpu": machine.gpu is not None}
        return saved.plan(settings, **how)

    def ask(model, seconds: float) -> dict[str, str]:
        some, how = rows["validation"][:ASKED], {"max_new_tokens": 96, "sampling": GREEDY | {"max_time": seconds}}
        table = generate(model, loaded[1], [prompt(row) for row in some], description=None, **how)
        said = [text + " …" * (not finished) for text, finished in zip(table["answer"], table["finished"], strict=True)]
        named = [f"{prompt(row)[-1]['content']}\nRight answer: {answer(row)}" for row in some]
        return dict(zip(named, said, strict=True))

    def begin() -> None:
        chosen.save(workspace)
        saved.save(train=settings)

    def record(train: TrainSettings, log_history: list[dict], left_out: Sequence[str] = (), **how) -> None:
        about = {"data": made_with["rows"], "rows": len(training_rows) - len(left_out), "gpu": machine.gpu}
        about["history"] = history_table(log_history)
        record_run(workspace, model=chosen, lora=saved.lora, train=train, **about, **how)

    datasets, start = (Dataset.from_list(training_rows), Dataset.from_list(rows["validation"])), time.monotonic()
    how = {"made_with": made_with, "resume": resume, "anyway": anyway, "shorter_rows": shorter_rows, "report_to": report_to}
    how |= {"begin": begin, "plan": plan, "show": live_view(training_verdict, ask) if show == "live" else show}
    checkpoints, longer = workspace.path / "checkpoints", False
    if resume and rounds and workspace.has("training.json"):
        ended, newest = workspace.read_json("training.json"), [whole.step for whole in whole_checkpoints(checkpoints)][-1:]
        if ended["status"] == "finished" and ended["verdict"].endswith(MORE_EPOCHS) and newest == [ended["steps"]]:
            more, longer = more or settings.num_train_epochs, True
            settings = settings.replace(num_train_epochs=settings.num_train_epochs + more)
    try:
        run = train(*loaded, *datasets, settings, lora_config(saved.lora), dtype, checkpoints, longer=longer, **how)
    except TrainingError as e:
        if first_process:
            record(settings, e.log_history, status="broken", verdict=f"broken: {e}", seconds=time.monotonic() - start)
        raise
    weights, state = whole_adapter(run.trainer), run.trainer.state
    if first_process:
        ended = {"status": run.status, "verdict": str(run.verdict), "seconds": run.seconds}
        # validation and checkpoints included
        saved.save(train=run.settings, seconds_per_step=run.seconds / max(1, state.global_step))
        try:
            save_adapter(run.trainer.model, run.trainer.processing_class, workspace, weights)
        except Exception as e:  # each library has an error of its own
            what = f"the adapter could not be written to {workspace.path}, {type(e).__name__}: {e}"
            whole = whole_checkpoints(checkpoints)
            then = "go on with resume=True (--resume)" if whole else "train again: there is no checkpoint to go on from"
            raise WorkspaceError(f"{what}; make room there, and {then}") from e
        best = {"steps": state.global_step, "best_step": state.best_global_step, "best_eval_loss": state.best_metric}
        best |= {"adapter_step": run.adapter_step, "notes": run.notes} | run.lost
        left = base | {"weights": made_with["weights"], "rows": split} | ended | {"seconds": round(run.seconds, 1)} | best
        workspace.write_json("training.json", left | {"log_history": state.log_history})
        record(run.settings, state.log_history, run.lost["left_out"]["train"], **ended)
    if rounds and run.status == "finished" and run.verdict.next_step == MORE_EPOCHS:
        if left := rounds - longer:
            given = {"loaded": loaded, "shorter_rows": shorter_rows, "show": show, "report_to": report_to}
            return train_adapter(workspace, chosen, run.settings, resume=True, rounds=left, more=more, **given)
        told = f"The last round is over, at {run.settings.num_train_epochs:g} epochs, and the verdict still is: {MORE_EPOCHS}"
        say(f"{told}; run this again, or raise rounds.")
    return run
