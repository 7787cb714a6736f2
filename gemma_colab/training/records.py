"""Every run leaves a record, so that runs of different days and machines can be compared. Imports without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from gemma_colab.core.curve import HISTORY_COLUMNS, new_axes
from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.model.choice import shown_name
from gemma_colab.model.hub import TOKEN
from gemma_colab.model.libraries import stack_versions
from gemma_colab.training.verdict import training_verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RECORDS = "history"  # their folder in the workspace
NEEDED = {"status", "verdict", "seconds", "data", "rows", "machine", "model", "lora", "train", "curves"}
LAST_STEPS = 5  # behind a run's last training loss: that of a single batch is noise
# The colors of Okabe and Ito that people who see few colors can tell apart, and a shape for those who see none.
RUN_STYLES = list(zip(("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#56b4e9", "#e69f00"), "os^DvPX", strict=True))


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
        **_best(history),
        "seconds": round(seconds, 1),
        "steps": int(history["step"].max()) if len(history) else 0,
        "data": data,
        "rows": rows,
        "machine": gpu or "CPU",
        "model": dataclasses.asdict(model) | {"model": shown_name(model.model)},
        "lora": dataclasses.asdict(lora),
        "train": dataclasses.asdict(train),
        "versions": stack_versions(),
        "curves": {name: history[name].tolist() for name in HISTORY_COLUMNS},
    }
    return workspace.write_json(f"{RECORDS}/{now:%Y-%m-%dT%H%M%S.%f}.json", _clean(record))


def list_runs(workspace: Workspace) -> list[dict]:
    """Read the records in the workspace, newest last. One that can't be read is left out, and said so."""
    runs = []
    for path in sorted((workspace.path / RECORDS).glob("*.json")):
        try:
            run = workspace.read_json(f"{RECORDS}/{path.name}")
            if not isinstance(run, dict) or not run.keys() >= NEEDED:
                raise ValueError
            run_history(run)
        except (WorkspaceError, OSError, LookupError, TypeError, ValueError):
            print(f"{RECORDS}/{path.name} is no readable record of a run and is left out; delete it")
            continue
        runs.append(run)
    return runs


def run_history(run: dict) -> pd.DataFrame:
    """Return the `history_table` of a record."""
    curves = {name: [math.nan if v is None else float(v) for v in run["curves"][name]] for name in HISTORY_COLUMNS}
    return pd.DataFrame(curves, dtype=float).astype({"step": int})


def compare_runs(
    runs: Workspace | Sequence[dict] | dict[str, pd.DataFrame],
    names: Sequence[str] | None = None,
    x: str = "step",
    ax: Axes | None = None,
) -> tuple[pd.DataFrame, Axes]:
    """Compare runs in a table and a picture: train thin, validation with points. What lies far above the losses at the start is cut off.

    runs: a workspace with its records, records, or short runs by their names. names: one for each; without them a record is named by
    the settings in which it differs from the others. x: "step" or "epoch". The table has one line a run: the settings that differ,
    best_eval_loss and best_step, train_loss (the mean of the last five steps), seconds, status, verdict. Losses: nats per token.

    Raises `SettingsError` when there are no runs, or another number of names.
    """
    runs = list_runs(runs) if isinstance(runs, Workspace) else runs
    if not len(runs):
        raise SettingsError("runs=[] must hold one run at least; train first, compare_runs(workspace) then finds it")
    named = isinstance(runs, dict)
    curves = list(runs.values()) if named else [run_history(run) for run in runs]
    names = list(names or (runs if named else _names(runs)))
    if len(names) != len(curves) or len(set(names)) < len(names):
        raise SettingsError(f"names={names!r} must be {len(curves)} different ones, one for each run")
    lines, ax = [], ax or new_axes(8, 4)
    for name, history, run, (color, marker) in zip(names, curves, [{}] * len(runs) if named else runs, cycle(RUN_STYLES)):
        line = {name: _settings(run).get(name) for name in ([] if named else _differing(runs))}
        line |= _best(history) | {"train_loss": history["loss"].dropna().tail(LAST_STEPS).mean()}
        line |= {key: run[key] for key in ("seconds", "status") if run}
        line["verdict"] = run["verdict"].split(":")[0] if run else training_verdict(history, finished=True).word
        lines.append(line)
        train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
        ax.plot(train[x], train["loss"], color=color, linewidth=0.8, alpha=0.6)
        label = f"{name}: best {line['best_eval_loss']:.2f}" if len(validation) else name
        ax.plot(validation[x], validation["eval_loss"], marker=marker, markersize=6, linewidth=1.6, color=color, label=label)
    ax.set(xlabel=x, ylabel="loss (nats per token)", title="thin: train; points: validation")
    cut_above_the_start(ax, pd.concat([history["loss"].dropna().head(1) for history in curves]))
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return pd.DataFrame(lines, index=pd.Index(names, name="run")).astype({"best_step": "Int64"}), ax


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


def _best(history: pd.DataFrame) -> dict:
    validation = history.set_index("step")["eval_loss"].dropna()
    if validation.empty:
        return {"best_eval_loss": None, "best_step": None}
    return {"best_eval_loss": float(validation.min()), "best_step": int(validation.idxmin())}


def cut_above_the_start(ax: Axes, start: pd.Series) -> None:
    """One broken run must not press all others flat: show no more than 1.3 times the highest loss at the start."""
    finite = start[start < float("inf")]
    if len(finite) and ax.get_ylim()[1] > 1.3 * finite.max():
        ax.set_ylim(top=1.3 * finite.max())


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
