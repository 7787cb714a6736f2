"""The earlier steps, for a notebook that starts alone: each says what is missing, makes it from the samples, and goes on."""

from __future__ import annotations

import shutil
import time

from gemma_colab.chat import to_chat
from gemma_colab.data.cleaning import clean
from gemma_colab.data.reading import read_jsonl
from gemma_colab.data.splitting import split_rows
from gemma_colab.errors import WorkspaceError
from gemma_colab.settings import LoraSettings, SplitSettings, TrainSettings, starting_point
from gemma_colab.workspace import Workspace, samples

PARTS = ("train", "validation", "test")
ROW_FILES = [f"rows/{part}.jsonl" for part in PARTS]


def ensure_rows(workspace: Workspace) -> dict[str, list[dict]]:
    """{"train", "validation", "test"} -> chat rows, as notebook 01 saved them; from `support_ru.jsonl` if it didn't run."""
    if not any(map(workspace.has, ROW_FILES)):  # where one is there, the others must be too: never overwrite somebody's rows
        print("Notebook 01 has not run in this workspace: making the rows from the sample support_ru.jsonl.")
        rows, _ = clean(read_jsonl(samples() / "support_ru.jsonl"))
        for part, some in split_rows(rows, SplitSettings()).items():
            workspace.write_jsonl(f"rows/{part}.jsonl", some)
    return {part: [to_chat(row) for row in workspace.read_jsonl(f"rows/{part}.jsonl")] for part in PARTS}


def ensure_lora(workspace: Workspace, model_name: str) -> LoraSettings:
    """The settings notebook 03 saved, or the starting point for this model."""
    if not workspace.has(LoraSettings.file):
        print("Notebook 03 has not run in this workspace: taking the starting point for LoRA.")
        starting_point(model_name)[0].save(workspace)
    return LoraSettings.load(workspace)


def ensure_adapter(workspace: Workspace, model_name: str) -> dict:
    """What notebook 04 recorded of its training; trains with the starting point if it didn't run.

    Raises `WorkspaceError` when the adapter there was trained on another model, or on other rows than those in the workspace,
    some of which might now be in the test.
    """
    if not (workspace.has("adapter") and workspace.has("training.json")):
        print("Notebook 04 has not run in this workspace: training an adapter from the starting point.")
        train_adapter(workspace, model_name)
    record = workspace.read_json("training.json")
    if record["model"] != model_name:
        raise WorkspaceError(
            f"the adapter in {workspace.path} was trained on {record['model']!r}, not on {model_name!r}; set MODEL = {record['model']!r}"
        )
    if record["rows"] != workspace.fingerprint(*ROW_FILES):
        raise WorkspaceError(
            f"the adapter in {workspace.path} was trained on other rows than those now in rows/; run notebook 04_train again"
        )
    return record


def train_adapter(workspace: Workspace, model_name: str, settings: TrainSettings | None = None, callbacks: list | None = None):
    """Load, train, save the adapter and `training.json`, as notebook 04 does it; returns the trainer."""
    from datasets import Dataset

    from gemma_colab.export.adapter import save_adapter
    from gemma_colab.hardware import describe_machine, pick_dtype
    from gemma_colab.model.loading import load_4bit, load_tokenizer
    from gemma_colab.model.lora import lora_config
    from gemma_colab.training.trainer import build_trainer, sft_config

    rows = ensure_rows(workspace)
    lora, settings = ensure_lora(workspace, model_name), settings or starting_point(model_name)[1]
    dtype, _ = pick_dtype(describe_machine())
    tokenizer, model = load_tokenizer(model_name), load_4bit(model_name, dtype)
    train, validation = Dataset.from_list(rows["train"]), Dataset.from_list(rows["validation"])
    args = sft_config(settings, workspace.path / "checkpoints", len(train), dtype)
    trainer = build_trainer(model, tokenizer, train, validation, args, lora_config(lora), callbacks)
    shutil.rmtree(args.output_dir, ignore_errors=True)  # checkpoints of an older run would be taken for this one's
    start = time.monotonic()
    trainer.train()
    settings.save(workspace)
    save_adapter(trainer.model, tokenizer, workspace)
    save_training_record(workspace, model_name, trainer, time.monotonic() - start)
    return trainer


def save_training_record(workspace: Workspace, model_name: str, trainer, seconds: float) -> None:
    """`training.json`: the model, a checksum of the rows, the time, the best loss and the whole log of a finished run."""
    state = trainer.state
    record = {
        "model": model_name,
        "rows": workspace.fingerprint(*ROW_FILES),
        "seconds": round(seconds, 1),
        "steps": state.global_step,
        "best_eval_loss": state.best_metric,
    }
    workspace.write_json("training.json", record | {"log_history": state.log_history})
