"""Several steps in a row: preparing any dataset; and the earlier steps of a notebook that starts alone, each of which says
what is missing, makes it from the samples, and goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from gemma_colab.catalog import CATALOG, pick_model
from gemma_colab.chat import to_chat
from gemma_colab.data.cleaning import STEPS, clean
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import Report, check_rows, with_split
from gemma_colab.data.review import Review
from gemma_colab.data.splitting import PARTS, check_split, split_rows
from gemma_colab.data.turns import fit, one_row_per_answer
from gemma_colab.errors import BlockedError, DatasetError, SettingsError, WorkspaceError
from gemma_colab.hardware import Machine, dtype_name
from gemma_colab.model.memory import memory_plan
from gemma_colab.rows import EXTRAS, Row
from gemma_colab.settings import LoraSettings, ModelSettings, SplitSettings, TrainSettings, starting_point
from gemma_colab.workspace import Workspace, samples

ROW_FILES = [f"rows/{part}.jsonl" for part in PARTS]


def prepare_rows(
    source: str | Path,
    workspace: Workspace,
    *,
    steps: tuple[str, ...] = STEPS,
    split_settings: SplitSettings | None = None,
    accept: Iterable[str] = (),
    tokenizer=None,
    max_length: int = 1024,
    every_answer: bool = False,
    too_long: str = "keep",
    **reading,
) -> tuple[Report, str]:
    """Read, clean, apply the decisions of an earlier review, check, split and save. Returns the report after cleaning, and
    a sentence on the split.

    source and reading: as for `data.reading.read_rows`; rows that can't be read are put aside, and are an error of the report.
    accept: findings you overrule, see `data.report.check_rows`. every_answer: train all answers of a
    conversation, each as a row, and not only the last. too_long: "keep" rows beyond max_length (they will be cut), or
    "drop" or "split" them as `data.turns.fit` does; that needs the tokenizer. Writes `rows/train.jsonl`, `rows/validation.jsonl`,
    `rows/test.jsonl`, `rows/report.json`, and what was changed or left out: `rows/cleaning_log.jsonl`, `rows/review_log.jsonl`,
    `rows/aside.jsonl`, `rows/too_long.jsonl`.
    Raises `DatasetError` when the file can't be read, and `BlockedError` when the report is blocked or the rows can't be split:
    then no rows are written, and the other files go to `blocked/`.
    """
    own = workspace.path / "rows"
    if own in [path := Path(source).absolute().resolve(), *path.parents]:
        raise SettingsError(f"source={str(source)!r} lies in {own}, which would be overwritten; copy it elsewhere first")
    found = read_rows(source, on_bad="aside", **reading)
    rows, log = clean(found.rows, steps)
    review = Review(workspace)
    rows, decided = review.apply(rows)
    logs = {
        "cleaning_log": log.to_dict("records"),
        "review_log": decided.to_dict("records"),
        "aside": json.loads(json.dumps(found.aside, default=str)),  # a bad row may hold dates
        "too_long": [],
    }
    if every_answer and too_long != "split":  # pieces of a conversation are taken apart after it was cut
        rows = one_row_per_answer(rows)
    if too_long != "keep":
        rows, fitted = fit(rows, tokenizer, max_length, too_long)
        logs["too_long"] = fitted.to_dict("records")
    rows = one_row_per_answer(rows) if every_answer and too_long == "split" else rows
    report = check_rows(rows, tokenizer=tokenizer, max_length=max_length, aside=found.aside, accept=accept, kept=review.kept)
    split_settings, parts, how = split_settings or SplitSettings(), None, report.reason
    if report.verdict != "blocked":
        try:
            parts, how = split_rows(rows, split_settings)
            report = with_split(report, check_split(parts), accept)
        except DatasetError as e:
            how = str(e)
    folder = "rows" if parts else "blocked"  # never a report of one file beside the rows of another
    workspace.write_json(f"{folder}/report.json", report.to_dict())
    for name, lines in logs.items():
        workspace.write_jsonl(f"{folder}/{name}.jsonl", lines)
    if not parts:
        remedy = f"mend that, or accept a finding by its name; {workspace.path / folder} lists what was put aside and changed"
        raise BlockedError(f"{found.name}: {how}; {remedy}", report)
    save_rows(parts, workspace)
    split_settings.save(workspace)
    return report, how


def save_rows(parts: dict[str, list[Row]], workspace: Workspace) -> None:
    """`rows/<part>.jsonl`: chat rows as TRL reads them, with the line of your file that each came from."""
    for part, rows in parts.items():
        lines = [to_chat(row) | {key: row[key] for key in EXTRAS if key in row} for row in rows]
        workspace.write_jsonl(f"rows/{part}.jsonl", lines)


def ensure_rows(workspace: Workspace) -> dict[str, list[dict]]:
    """{"train", "validation", "test"} -> chat rows, as notebook 01 saved them; from `support_ru.jsonl` if it didn't run."""
    if not any(map(workspace.has, ROW_FILES)):  # where one is there, the others must be too: never overwrite somebody's rows
        print("Notebook 01 has not run in this workspace: making the rows from the sample support_ru.jsonl.")
        prepare_rows(samples() / "support_ru.jsonl", workspace)
    saved = {part: workspace.read_jsonl(f"rows/{part}.jsonl") for part in PARTS}
    return {part: [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows] for part, rows in saved.items()}


def chosen_model(workspace: Workspace, machine: Machine) -> tuple[ModelSettings, str]:
    """The model that was chosen in this workspace, or the one that suits this machine, which is then saved; and why.

    Says aloud when the chosen one is too large for this machine: a choice outlives the machine it was made on.
    """
    if workspace.has(ModelSettings.file):
        chosen = ModelSettings.load(workspace)
        if chosen.model in CATALOG:  # nothing is downloaded to find out
            lora, train = starting_point(chosen.model)
            smallest = train.replace(per_device_train_batch_size=1)
            how = {"tokens": 256, "dtype": dtype_name(machine)[0], "load_in_4bit": chosen.load_in_4bit}
            gib, there = memory_plan(CATALOG[chosen.model], lora, smallest, **how).sum(), machine.gpu_gib
            lacks = "no GPU" if machine.gpu is None else f"a GPU of {there:.1f} GiB, and training takes {gib:.1f} at least"
            if machine.gpu is None or gib > there:
                print(f"{chosen.model} is chosen in this workspace, but this machine has {lacks}; choose again in notebook 02.")
        return chosen, "it is the choice saved in this workspace"
    name, why = pick_model("auto", machine)
    print("Notebook 02 has not run in this workspace: taking the model that suits this machine.")
    ModelSettings(model=name).save(workspace)
    return ModelSettings.load(workspace), why


def ensure_lora(workspace: Workspace, model_name: str) -> LoraSettings:
    """The settings notebook 03 saved, or the starting point for this model."""
    if not workspace.has(LoraSettings.file):
        print("Notebook 03 has not run in this workspace: taking the starting point for LoRA.")
        starting_point(model_name)[0].save(workspace)
    return LoraSettings.load(workspace)


def ensure_train(workspace: Workspace, model_name: str) -> TrainSettings:
    """The settings notebook 03 or 04 saved, or the starting point for this model."""
    return TrainSettings.load(workspace) if workspace.has(TrainSettings.file) else starting_point(model_name)[1]


def ensure_adapter(workspace: Workspace, chosen: ModelSettings) -> dict:
    """What notebook 04 recorded of its training; trains with the starting point if it didn't run.

    Raises `WorkspaceError` when the adapter there was trained on another model, or on other rows than those in the workspace,
    some of which might now be in the test.
    """
    if not (workspace.has("adapter") and workspace.has("training.json")):
        print("Notebook 04 has not run in this workspace: training an adapter from the starting point.")
        train_adapter(workspace, chosen)
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
    workspace: Workspace, chosen: ModelSettings, settings: TrainSettings | None = None, callbacks: list | None = None
):
    """Load, train, save the adapter and `training.json`, as notebook 04 does it; returns the trainer."""
    from datasets import Dataset

    from gemma_colab.export.adapter import save_adapter
    from gemma_colab.hardware import describe_machine, pick_dtype
    from gemma_colab.model.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.model.lora import lora_config
    from gemma_colab.training.trainer import build_trainer, sft_config

    rows = ensure_rows(workspace)
    lora, settings = ensure_lora(workspace, chosen.model), settings or ensure_train(workspace, chosen.model)
    dtype, _ = pick_dtype(describe_machine())
    nf4 = quantization_config(dtype) if chosen.load_in_4bit else None
    tokenizer, model = load_tokenizer(chosen.model), load_model(chosen.model, dtype, nf4)
    train, validation = Dataset.from_list(rows["train"]), Dataset.from_list(rows["validation"])
    args = sft_config(settings, workspace.path / "checkpoints", len(train), dtype)
    trainer = build_trainer(model, tokenizer, train, validation, args, lora_config(lora), callbacks)
    shutil.rmtree(args.output_dir, ignore_errors=True)  # checkpoints of an older run would be taken for this one's
    start = time.monotonic()
    trainer.train()
    settings.save(workspace)
    save_adapter(trainer.model, tokenizer, workspace)
    save_training_record(workspace, chosen, trainer, time.monotonic() - start)
    return trainer


def save_training_record(workspace: Workspace, chosen: ModelSettings, trainer, seconds: float) -> None:
    """`training.json`: the model, a checksum of the rows, the time, the best loss and the whole log of a finished run."""
    state = trainer.state
    record = {
        "model": chosen.model,
        "load_in_4bit": chosen.load_in_4bit,
        "rows": workspace.fingerprint(*ROW_FILES),
        "seconds": round(seconds, 1),
        "steps": state.global_step,
        "best_eval_loss": state.best_metric,
    }
    workspace.write_json("training.json", record | {"log_history": state.log_history})
