"""Every run leaves a record, so that runs of different days and machines can be laid side by side. Imports without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.core.history import COLUMNS
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.model.choice import shown_name
from gemma_colab.model.hub import TOKEN
from gemma_colab.model.libraries import stack_versions
from gemma_colab.training.verdict import training_verdict

FOLDER = "history"
NEEDED = {"status", "verdict", "seconds", "data", "rows", "machine", "model", "lora", "train", "curves"}
LAST = 5  # steps behind a run's last training loss: that of a single batch is noise


def record_run(
    workspace: Workspace,
    *,
    model: ModelSettings,
    lora: LoraSettings,
    train: TrainSettings,
    data: str,
    rows: int,
    history: pd.DataFrame,
    seconds: float,
    gpu: str | None = None,
    status: str = "finished",
    verdict: str | None = None,
) -> Path:
    """Write one run to `history/<time>.json` in the workspace; returns the path. Names sort by time (UTC).

    data: fingerprint of the rows (`workspace.fingerprint`); rows: how many were trained on. history: `history_table` of the run.
    seconds: how long it took. gpu: `Machine.gpu`; None is a CPU. status: "finished", or what ended it. verdict: without one,
    `training_verdict` of a history that ended. Model folders are named without the way there, and tokens and the home folder
    are masked.
    """
    now = datetime.now(UTC)
    record = {
        "time": now.isoformat(timespec="seconds"),
        "status": status,
        "verdict": verdict or str(training_verdict(history, finished=True)),
        **_result(history),
        "seconds": round(seconds, 1),
        "steps": int(history["step"].max()) if len(history) else 0,
        "data": data,
        "rows": rows,
        "machine": gpu or "CPU",
        "model": dataclasses.asdict(model) | {"model": shown_name(model.model)},
        "lora": dataclasses.asdict(lora),
        "train": dataclasses.asdict(train),
        "versions": stack_versions(),
        "curves": {name: history[name].tolist() for name in COLUMNS},
    }
    return workspace.write_json(f"{FOLDER}/{now:%Y-%m-%dT%H%M%S.%f}.json", _clean(record))


def list_runs(workspace: Workspace) -> list[dict]:
    """The records in the workspace, newest last. One that can't be read is left out, and said so."""
    runs = []
    for path in sorted((workspace.path / FOLDER).glob("*.json")):
        try:
            run = workspace.read_json(f"{FOLDER}/{path.name}")
            if not isinstance(run, dict) or not run.keys() >= NEEDED:
                raise ValueError
            run_history(run)
        except (WorkspaceError, OSError, LookupError, TypeError, ValueError):
            print(f"{FOLDER}/{path.name} is no readable record of a run and is left out; delete it")
            continue
        runs.append(run)
    return runs


def run_history(run: dict) -> pd.DataFrame:
    """The `history_table` of a record."""
    curves = {name: pd.Series(run["curves"][name], dtype=object).map(_float).astype(float) for name in COLUMNS}
    return pd.DataFrame(curves).astype({"step": int})


def histories(runs: Sequence[dict] | dict[str, pd.DataFrame], names: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """Name -> `history_table`. runs: records (`list_runs`), or what is already like that: short runs by their names.

    names: one for each; without them a record is named by the settings in which it differs from the others.
    Raises `SettingsError` when there are none, or another number of names.
    """
    if not len(runs):
        raise SettingsError("runs=[] must hold one run at least; train first, list_runs(workspace) then finds it")
    tables = list(runs.values()) if isinstance(runs, dict) else [run_history(run) for run in runs]
    if names is None:
        names = list(runs) if isinstance(runs, dict) else _names(runs)
    if len(names) != len(tables) or len(set(names)) < len(names):
        raise SettingsError(f"names={list(names)!r} must be {len(tables)} different ones, one for each run")
    return dict(zip(names, tables, strict=True))


def runs_table(runs: Sequence[dict] | dict[str, pd.DataFrame], names: Sequence[str] | None = None) -> pd.DataFrame:
    """One line a run: the settings that differ between them, and what came of it. runs, names: as for `histories`.

    best_eval_loss and best_step: of the lowest validation loss. train_loss: mean of the last five steps. Losses: nats per token.
    """
    lines, curves = [], histories(runs, names)
    records = [None] * len(curves) if isinstance(runs, dict) else runs
    differing = [] if isinstance(runs, dict) else _differing(runs)
    for history, run in zip(curves.values(), records, strict=True):
        loss = history["loss"].dropna()
        line = {name: _settings(run).get(name) for name in differing}
        line |= _result(history) | {"train_loss": loss.tail(LAST).mean()}
        line |= {"seconds": run["seconds"], "status": run["status"]} if run else {}
        line["verdict"] = run["verdict"].split(":")[0] if run else training_verdict(history, finished=True).word
        lines.append(line)
    return pd.DataFrame(lines, index=pd.Index(list(curves), name="run")).astype({"best_step": "Int64"})


def _settings(run: dict) -> dict:
    """All in which two runs may differ on purpose."""
    return {**run["train"], **run["lora"], **run["model"], **{name: run[name] for name in ("data", "rows", "machine")}}


def _differing(runs: Sequence[dict]) -> list[str]:
    settings = [_settings(run) for run in runs]
    return [name for name in dict.fromkeys(n for s in settings for n in s) if len({repr(s.get(name)) for s in settings}) > 1]


def _names(runs: Sequence[dict]) -> list[str]:
    """By what differs, three settings at most; where nothing does, or two are alike, by a number."""
    differing, names = _differing(runs)[:3], []
    for i, run in enumerate(runs, 1):
        values = ((name, _settings(run).get(name)) for name in differing)
        name = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
        names.append(name if name and name not in names else f"{name} (run {i})".strip())
    return names


def _result(history: pd.DataFrame) -> dict:
    validation = history.set_index("step")["eval_loss"].dropna()
    if validation.empty:
        return {"best_eval_loss": None, "best_step": None}
    return {"best_eval_loss": float(validation.min()), "best_step": int(validation.idxmin())}


def _float(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _clean(value):
    """The same value as JSON can hold it, with no token and no home folder in any text of it."""
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, str):
        home = str(Path.home())
        return TOKEN.sub("[token]", value.replace(home, "~") if len(home) > 1 else value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value
