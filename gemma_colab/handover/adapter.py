"""What notebook 04 leaves: an adapter trained on the rows of the workspace, and the record of its run."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

from gemma_colab.core.catalog import shape_of
from gemma_colab.core.chat import token_lengths
from gemma_colab.core.errors import TrainingError, WorkspaceError
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import ROW_FILES, ensure_rows
from gemma_colab.handover.settings import ensure_lora, ensure_train, save_settings
from gemma_colab.model.memory import memory_plan
from gemma_colab.training.replay import OWN, general_chats, mix_in


def ensure_adapter(workspace: Workspace, chosen: ModelSettings) -> dict:
    """What notebook 04 recorded of its training; trains with the starting point if it didn't run.

    Raises `WorkspaceError` when the adapter there was trained on another model, or on other rows than those in the workspace,
    some of which might now be in the test.
    """
    if not (workspace.has("adapter") and workspace.has("training.json")):
        from gemma_colab.core.live_curve import live_view

        print("Notebook 04 has not run in this workspace: training an adapter from the starting point.")
        train_adapter(workspace, chosen, show=live_view())
    record = workspace.read_json("training.json")
    trained = ModelSettings(model=record["model"], load_in_4bit=record.get("load_in_4bit", True))
    if trained != chosen:
        raise WorkspaceError(
            f"the adapter in {workspace.path} was trained on {_words(trained)}, not on {_words(chosen)}; choose {_words(trained)} "
            "in notebook 02, or run notebook 04_train again"
        )
    if record["rows"] != workspace.fingerprint(*ROW_FILES):
        raise WorkspaceError(
            f"the adapter in {workspace.path} was trained on other rows than those now in rows/; run notebook 04_train again"
        )
    return record


def _words(chosen: ModelSettings) -> str:
    return f"{chosen.model!r} in {'4' if chosen.load_in_4bit else '16'} bit"


def train_adapter(
    workspace: Workspace,
    chosen: ModelSettings,
    settings: TrainSettings | None = None,
    *,
    loaded: tuple | None = None,
    resume: bool = False,
    anyway: bool = False,
    shorter_rows: bool = False,
    show: Callable | None = None,
    report_to: str = "none",
):
    """Train on the rows of this workspace, as notebook 04 does it; returns the `training.run.Run`.

    loaded: the model of `chosen` and its tokenizer, if they are in memory already. settings: left out, those saved here, or the
    starting point. The other arguments are those of `training.run.train`. Saves the settings first; at the end `adapter/`,
    `training.json`, and in `history/` a record of the run, also of one that broke.
    """
    from datasets import Dataset

    from gemma_colab.core.history import history_table
    from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.core.lora import lora_config
    from gemma_colab.core.machine import describe_machine, pick_dtype
    from gemma_colab.training.launch import whole_adapter
    from gemma_colab.training.records import record_run
    from gemma_colab.training.run import train

    rows, machine = ensure_rows(workspace), describe_machine(str(workspace.path))
    dtype, _ = pick_dtype(machine, shape_of(chosen.model))
    if loaded is None:
        tokenizer = load_tokenizer(chosen.model)
        loaded = load_model(chosen.model, dtype, quantization_config(dtype) if chosen.load_in_4bit else None), tokenizer
    model, tokenizer = loaded
    counts = token_lengths(rows["train"] + rows["validation"], tokenizer, 2**17)
    lora, lengths = ensure_lora(workspace, chosen), counts["total"]
    if settings is None:
        settings = TrainSettings.load(workspace) if resume else ensure_train(workspace, chosen, machine, lengths)
    if _first_process():
        save_settings(workspace, chosen, machine, lora, settings)
    how = {"tokens": int(lengths.max()), "dtype": dtype, "load_in_4bit": chosen.load_in_4bit, "gpu": machine.gpu is not None}
    how["scored"] = counts["answer"].sum() / lengths.sum()

    def plan(s: TrainSettings):
        return memory_plan(shape_of(chosen.model), lora, s, **how)

    made_with = {"model": chosen.model, "load_in_4bit": chosen.load_in_4bit, "lora": dataclasses.asdict(lora)}
    made_with["rows"] = workspace.fingerprint(*ROW_FILES, *[OWN] * bool(settings.replay and workspace.has(OWN)))
    training_rows = mix_in(rows["train"], general_chats(workspace), settings.replay, settings.seed)
    about = {"model": chosen, "lora": lora, "data": made_with["rows"], "rows": len(training_rows), "gpu": machine.gpu}
    start = time.monotonic()
    try:
        run = train(
            model,
            tokenizer,
            Dataset.from_list(training_rows),
            Dataset.from_list(rows["validation"]),
            settings,
            lora_config(lora),
            dtype,
            workspace.path / "checkpoints",
            made_with=made_with,
            resume=resume,
            anyway=anyway,
            shorter_rows=shorter_rows,
            show=show,
            plan=plan,
            report_to=report_to,
        )
    except TrainingError as e:
        if _first_process():
            how = {"status": "broken", "verdict": f"broken: {e}", "seconds": time.monotonic() - start}
            record_run(workspace, train=settings, history=history_table(e.log_history), **about, **how)
        raise
    weights = whole_adapter(run.trainer)
    if _first_process():
        save_run(workspace, chosen, machine, lora, run, weights)
        how = {"status": run.status, "verdict": str(run.verdict), "seconds": run.seconds}
        record_run(workspace, train=run.settings, history=run.history, **about, **how)
    return run


def _first_process() -> bool:
    """Whether this process writes; with `torchrun` or `accelerate launch` there are several."""
    return int(os.environ.get("RANK", 0)) == 0


def save_run(
    workspace: Workspace, chosen: ModelSettings, machine: Machine, lora: LoraSettings, run, weights: dict | None = None
) -> None:
    """What a run leaves for notebook 05: its settings, `adapter/`, and `training.json` with the model, a checksum of the rows, the
    time, the best loss and the whole log. weights: of a model in pieces, from `training.launch.whole_adapter`."""
    from gemma_colab.export.adapter import save_adapter

    state = run.trainer.state
    pace = run.seconds / max(1, state.global_step)  # validation and checkpoints included
    save_settings(workspace, chosen, machine, lora, run.settings, seconds_per_step=pace)
    save_adapter(run.trainer.model, run.trainer.processing_class, workspace, weights)
    record = {
        "model": chosen.model,
        "load_in_4bit": chosen.load_in_4bit,
        "rows": workspace.fingerprint(*ROW_FILES),
        "status": run.status,
        "verdict": str(run.verdict),
        "seconds": round(run.seconds, 1),
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "best_eval_loss": state.best_metric,
    }
    workspace.write_json("training.json", record | {"log_history": state.log_history})
