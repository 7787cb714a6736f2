"""Every run leaves a record, so that runs of different days and machines can be compared. Imports without torch."""

import dataclasses
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle, repeat
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gemma_colab.core.curve import HISTORY_COLUMNS, VALIDATION, loss_curve, new_axes
from gemma_colab.core.errors import SPOILT, SettingsError, WorkspaceError, plain, say
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.model.choice import shown_name
from gemma_colab.model.libraries import stack_versions
from gemma_colab.training.verdict import training_verdict

RECORDS = "history"  # their folder in the workspace
NEEDED = ("status", "verdict", "seconds", "data", "rows", "machine", "model", "lora", "train", "curves")
# The colors of Okabe and Ito that people who see few colors can tell apart, and a shape for those who see none.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#56b4e9", "#e69f00", "#000000")
SHAPES = "os^DvPX*<"


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
    gpu: str | None,
    status: str,
    verdict: str,
) -> Path:
    """Write one run to `history/<time>.json` in the workspace; returns the path. Names sort by time (UTC).

    data: fingerprint of the rows; rows: how many were trained on. gpu: None is a CPU. Model folders are named without the way
    there, and tokens and the home folder are masked.
    """
    now = datetime.now(UTC)
    record = {
        "time": now.isoformat(timespec="seconds"),
        "status": _masked(status),
        "verdict": _masked(verdict),
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
    finite = json.loads(json.dumps(record), parse_constant={"NaN": None, "Infinity": "inf"}.get)  # JSON has no such numbers
    return workspace.write_json(f"{RECORDS}/{now:%Y-%m-%dT%H%M%S.%f}.json", finite)


def _masked(text: str) -> str:
    """The text with no token and no home folder in it."""
    home = str(Path.home())
    return plain(text.replace(home, "~") if len(home) > 1 else text)


def list_runs(workspace: Workspace) -> list[dict]:
    """Read the records in the workspace, newest last. One that can't be read is left out, and said so."""
    runs = []
    for path in sorted((workspace.path / RECORDS).glob("*.json")):
        try:
            run = workspace.read_json(f"{RECORDS}/{path.name}")
            run_history({name: run[name] for name in NEEDED}), _differing([run]), run["verdict"].split
            runs.append(run)
        except (WorkspaceError, OSError, *SPOILT):
            say(f"{RECORDS}/{path.name} is no readable record of a run and is left out; delete it")
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
    """Compare runs in a table and a picture: train thin, validation with points. What is far above the losses at the start is cut off.

    runs: a workspace with its records, records, or short runs by their names. names: one for each; without them a record is named by
    the settings in which it differs from the others. x: "step" or "epoch". The table has one line a run: the settings that differ,
    best_eval_loss and best_step, train_loss (the mean of the last five steps), seconds, status, verdict. Losses: nats per token.

    Raises `SettingsError` when there are no runs, or another number of names.
    """
    runs = list_runs(runs) if isinstance(runs, Workspace) else runs
    if not len(runs):
        raise SettingsError("runs=[] must hold one run at least; train first, compare_runs(workspace) then finds it")
    records = [] if isinstance(runs, dict) else runs
    curves, differing = [run_history(run) for run in records] or list(runs.values()), _differing(records)
    names = list(names or (_names(differing) if records else runs))
    if len(names) != len(curves) or len(set(names)) < len(names):
        raise SettingsError(f"names={names!r} must be {len(curves)} different ones, one for each run")
    lines, ax = [], ax or new_axes(8, 4)
    found = zip(names, curves, records or repeat({}), differing or repeat({}), cycle(COLORS), cycle(SHAPES))
    for name, history, run, settings, color, marker in found:
        line = settings | _best(history) | {"train_loss": history["loss"].dropna().tail(5).mean()}
        line |= {key: run[key] for key in ("seconds", "status") if run}
        line["verdict"] = run["verdict"].split(":")[0] if run else training_verdict(history, finished=True).word
        lines.append(line)
        train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
        ax.plot(train[x], train["loss"], color=color, linewidth=0.8, alpha=0.6)
        label = f"{name}: best {line['best_eval_loss']:.2f}" if len(validation) else name
        label = label.replace("$", r"\$")  # matplotlib reads mathematics between two
        ax.plot(validation[x], validation["eval_loss"], marker=marker, markersize=6, linewidth=1.6, color=color, label=label)
    ax.set(xlabel=x, ylabel="loss (nats per token)", title="thin: train; points: validation")
    validated = pd.concat([history["eval_loss"].dropna() for history in curves])
    start = pd.concat([history["loss"].dropna().head(1) for history in curves])
    # Validations that rose are in the picture too, unless they are of a broken run: they are what is compared.
    cut_above_the_start(ax, pd.concat([start, validated[validated < 2 * start.max()] / 1.25]))
    ax.legend(fontsize=8)
    ax.grid(alpha=0.3)
    return pd.DataFrame(lines, index=pd.Index(names, name="run")).astype({"best_step": "Int64"}), ax


def _differing(records: Sequence[dict]) -> list[dict]:
    """Of each run all in which it differs from another on purpose."""
    about = ("data", "rows", "machine")
    settings = [run["train"] | run["lora"] | run["model"] | {name: run[name] for name in about} for run in records]
    names = dict.fromkeys(name for line in settings for name in line)
    differing = [name for name in names if len({repr(line.get(name)) for line in settings}) > 1]
    return [{name: line.get(name) for name in differing} for line in settings]


def _names(differing: Sequence[dict]) -> list[str]:
    """By what differs, three settings at most; where nothing does, or two are alike, by a number."""
    names = []
    for i, settings in enumerate(differing, 1):
        values = list(settings.items())[:3]
        name = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values)
        names.append(name if name and name not in names else f"{name} (run {i})".strip())
    return names


def _best(history: pd.DataFrame) -> dict:
    validation = history.set_index("step")["eval_loss"].dropna()
    if validation.empty:
        return {"best_eval_loss": None, "best_step": None}
    return {"best_eval_loss": float(validation.min()), "best_step": int(validation.idxmin())}


def cut_above_the_start(ax: Axes, start: pd.Series) -> None:
    """One broken run must not press all others flat: show no more than 1.3 times the highest of these losses."""
    finite = start[start < float("inf")]
    if len(finite) and ax.get_ylim()[1] > 1.3 * finite.max():
        ax.set_ylim(top=1.3 * finite.max())


def save_curve(history: pd.DataFrame, file: str | Path | BinaryIO, dpi: int = 100) -> None:
    """Write the losses, and below them the learning rate, as a PNG. The figure isn't pyplot's, so no notebook shows it."""
    figure = Figure(figsize=(7, 4), facecolor="white")
    figure.subplots_adjust(left=0.09, right=0.98, top=0.97, bottom=0.12, hspace=0.12)  # a layout engine takes as long again
    above, below = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    loss_curve(history, above, title="").set_xlabel("")
    rate = history.dropna(subset=["learning_rate"])
    below.plot(rate["step"], rate["learning_rate"], color=VALIDATION, linewidth=1)
    below.set(xlabel="step", ylabel="rate", ylim=(0, None))
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useOffset=False)
    below.grid(alpha=0.3)
    figure.savefig(file, format="png", dpi=dpi)
