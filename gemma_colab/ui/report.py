"""The report on a tuned model: one HTML file that works offline, prints, and follows the reader's light or dark setting."""

import base64
import io
import json
from pathlib import Path

import pandas as pd

from gemma_colab.core.curve import history_table
from gemma_colab.core.html import ENVIRONMENT
from gemma_colab.core.workspace import Workspace
from gemma_colab.export.record import exported
from gemma_colab.training.records import save_curve
from gemma_colab.ui.blind import blind_result
from gemma_colab.ui.evidence import comparison_table, in_order, side_by_side

SHIP = {"no": ("Do not ship it", "#c62828"), "not yet": ("Do not ship it yet", "#b26a00")}
SHIP |= {"yes": ("Ship it", "#2e7d32"), "ask a reader": ("The figures allow it; now read", "#2e7d32")}
SAID = {
    "better": "By the measures below, its answers got better.",
    "closer": "Its answers came closer to the right ones, and most are still no more like them than an answer to another question.",
    "worse": "By the measures below, it got worse.",
    "mixed": "By the measures below, it got better in some ways and worse in others.",
    "no clear difference": "By the measures below, its answers did not change clearly.",
    "too few rows": "There are too few test rows to tell whether it got better.",
}
EXAMPLES = 4  # rows of each kind


def write_report(workspace: Workspace) -> Path:
    """Write `report.html` from `summary.json` and the rows in `evaluation/rows.jsonl`, with the loss curve of
    `training.json`, and what `export.json` says of exports of this adapter; returns its path."""
    summary, curve = workspace.read_json("summary.json", _worded), io.BytesIO()
    if workspace.has("training.json") and (log := workspace.read_json("training.json").get("log_history")):
        save_curve(history_table(log), curve)
    page = ENVIRONMENT.get_template("ui/templates/report.html").render(
        s=summary,
        review=blind_result(summary["review"]) if summary["review"] else None,
        **summary["said"],
        examples=_examples(pd.DataFrame(workspace.read_jsonl("evaluation/rows.jsonl")), summary.get("sorted_by", "token F1")),
        export=exported(workspace),
        curve=base64.b64encode(curve.getvalue()).decode(),
        comparison=lambda lines, other: comparison_table(pd.DataFrame(lines), other),
        number=_number,
    )
    return workspace.write_text("report.html", page)


def _worded(text: str) -> dict:
    """The summary, and its verdict in words."""
    summary = json.loads(text)
    return summary | {"said": {"word": SAID[summary["verdict"]["word"]], "ship": SHIP[summary["verdict"]["ship"]]}}


def _examples(rows: pd.DataFrame, score: str) -> dict:
    """Title -> some of the test rows, side by side; none is shown twice."""
    worst = in_order(rows, "worst", score).head(EXAMPLES)
    best = in_order(rows.drop(index=worst.index), "best", score).head(EXAMPLES)
    rest = in_order(rows.drop(index=[*worst.index, *best.index]), "random").head(EXAMPLES)
    tables = {f"Worst by {score}": worst, "At random, of the rest": rest, f"Best by {score}": best}
    return {title: side_by_side(table) for title, table in tables.items() if len(table)}


def _number(value: float | None, form: str = "{:.2f}") -> str:
    if value is None:
        return "no number"
    return f"{value:.1e}" if abs(value) > 1e6 else form.format(value)
