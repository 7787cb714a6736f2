"""Several steps in a row: preparing any dataset; and the earlier steps of a notebook that starts alone, each of which says
what is missing, makes it from the samples, and goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gemma_colab.catalog import ON_A_CPU, known_shape, pick_model, shape_of
from gemma_colab.chat import to_chat, token_lengths
from gemma_colab.data.cleaning import STEPS, clean
from gemma_colab.data.reading import read_rows
from gemma_colab.data.replay import OWN, general_chats, mix_in
from gemma_colab.data.report import Report, check_rows, with_split
from gemma_colab.data.review import Review
from gemma_colab.data.splitting import PARTS, check_split, split_rows
from gemma_colab.data.turns import fit, one_row_per_answer
from gemma_colab.errors import BlockedError, DatasetError, ModelError, SettingsError, TrainingError, WorkspaceError
from gemma_colab.hardware import Machine, dtype_name
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import plan_training, smallest_peak
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


def chosen_model(workspace: Workspace, machine: Machine, *, anyway: bool = False) -> tuple[ModelSettings, str]:
    """The model that was chosen in this workspace, or the one that suits this machine, which is then saved; and why.

    A choice outlives the machine it was made on: raises `ModelError` when a known model is too large for this one, before it is
    downloaded, unless `anyway`.
    """
    if not workspace.has(ModelSettings.file):
        name, why = pick_model("auto", machine)
        print("Notebook 02 has not run in this workspace: taking the model that suits this machine.")
        ModelSettings(model=name).save(workspace)
        return ModelSettings.load(workspace), why
    chosen = ModelSettings.load(workspace)
    if known_shape(chosen.model) and not anyway and not (machine.gpu is None and chosen.model in ON_A_CPU):
        gib, there = smallest_peak(chosen.model, machine, chosen.load_in_4bit, tokens=256), machine.gpu_gib
        if machine.gpu is None or gib > there:
            has = f"a GPU of {there:.1f} GiB, and training takes {gib:.1f} at least" if machine.gpu else "no GPU"
            raise ModelError(
                f"{chosen.model} was chosen in this workspace, but this machine has {has}; choose another in notebook 02, or "
                "change the machine (Colab: Runtime -> Change runtime type)"
            )
    return chosen, "it is the choice saved in this workspace"


def save_settings(
    workspace: Workspace,
    chosen: ModelSettings,
    machine: Machine,
    lora: LoraSettings,
    train: TrainSettings,
    trial: dict | None = None,
    *,
    seconds_per_step: float | None = None,
) -> None:
    """Save both kinds of settings, and what they were made for. trial: what `model.memory.correction` found, for later plans;
    without it an earlier one is kept, if it was for the same model and GPU. seconds_per_step: measured with these settings; without
    it an earlier figure is kept, if it was for the same settings."""
    made_for, pace = _made_for(workspace, chosen, machine), pace_of(workspace, chosen, machine)
    same = workspace.has(TrainSettings.file) and TrainSettings.load(workspace) == train
    made_for |= {"correction": trial or _correction(workspace, made_for)}
    made_for |= {"seconds_per_step": seconds_per_step or (pace if same else None)}
    lora.save(workspace), train.save(workspace)
    workspace.write_json("settings_for.json", made_for)


def pace_of(workspace: Workspace, chosen: ModelSettings, machine: Machine) -> float | None:
    """Seconds a step, as measured on this machine's GPU with the training settings saved here; None if they were not."""
    saved = _saved_for(workspace)
    return saved.get("seconds_per_step") if _same_place(saved, _made_for(workspace, chosen, machine)) else None


def _correction(workspace: Workspace, made_for: dict) -> dict:
    """What was measured for this model on this GPU, whatever the rows."""
    saved = _saved_for(workspace)
    return saved["correction"] if _same_place(saved, made_for) else {}


def _same_place(saved: dict, made_for: dict) -> bool:
    return all(saved.get(key) == made_for[key] for key in ("model", "load_in_4bit", "gpu"))


def _made_for(workspace: Workspace, chosen: ModelSettings, machine: Machine) -> dict:
    return {
        "model": chosen.model,
        "load_in_4bit": chosen.load_in_4bit,
        "gpu": machine.gpu,
        "rows": workspace.fingerprint(*ROW_FILES),
    }


def _saved_for(workspace: Workspace) -> dict:
    """What the settings in this workspace were made for; {} where that was not saved."""
    return workspace.read_json("settings_for.json") if workspace.has("settings_for.json") else {}


def ensure_lora(workspace: Workspace, chosen: ModelSettings) -> LoraSettings:
    """The settings for LoRA that were saved for this model, or the starting point for it."""
    made_for = _saved_for(workspace)
    if workspace.has(LoraSettings.file) and made_for.get("model", chosen.model) == chosen.model:
        return LoraSettings.load(workspace)
    print(f"No settings for LoRA on {chosen.model} in this workspace yet: taking the starting point.")
    return starting_point(chosen.model)[0]


def ensure_train(workspace: Workspace, chosen: ModelSettings, machine: Machine, lengths: Sequence[int]) -> TrainSettings:
    """The settings for training that were saved for this model, GPU and rows; else the starting point, on a GPU planned for it.

    lengths: tokens of each training and validation row.
    """
    made_for = _saved_for(workspace)
    now = _made_for(workspace, chosen, machine)
    if workspace.has(TrainSettings.file) and all(made_for.get(key, value) == value for key, value in now.items()):
        return TrainSettings.load(workspace)
    if made_for:
        print("The settings saved here were made for another model, GPU or other rows: planning anew.")
    lora, train = ensure_lora(workspace, chosen), starting_point(chosen.model)[1]
    if machine.gpu is None:
        return train
    how = {"dtype": dtype_name(machine, shape_of(chosen.model))[0], "load_in_4bit": chosen.load_in_4bit}
    how |= _correction(workspace, now)
    return plan_training(shape_of(chosen.model), lora, train, lengths, machine.gpu_gib, fixed=["packing"], **how)[0]


def ensure_adapter(workspace: Workspace, chosen: ModelSettings) -> dict:
    """What notebook 04 recorded of its training; trains with the starting point if it didn't run.

    Raises `WorkspaceError` when the adapter there was trained on another model, or on other rows than those in the workspace,
    some of which might now be in the test.
    """
    if not (workspace.has("adapter") and workspace.has("training.json")):
        from gemma_colab.ui.live import live_view

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

    from gemma_colab.hardware import describe_machine, pick_dtype
    from gemma_colab.model.loading import load_model, load_tokenizer, quantization_config
    from gemma_colab.model.lora import lora_config
    from gemma_colab.training.history import history_table
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
