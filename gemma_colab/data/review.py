"""What a person decided about single rows: keep, edit or drop. Saved at once, found again by the text of the row."""

from __future__ import annotations

import json

import pandas as pd

from gemma_colab.data.cleaning import COLUMNS, DROPPED
from gemma_colab.errors import SettingsError
from gemma_colab.rows import Row, fingerprint, texts, with_texts
from gemma_colab.workspace import Workspace

FILE = "review.json"
ACTIONS = ("keep", "edit", "drop")


class Review:
    """Decisions about rows, in `review.json` of the workspace. An interrupted review goes on where it stopped."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.decisions: dict[str, dict] = workspace.read_json(FILE) if workspace.has(FILE) else {}

    def decide(self, row: Row, action: str, new: dict[str, str] | None = None, why: str = "") -> None:
        """Save a decision about this row. new: field -> text, for "edit". Raises `SettingsError` for another action or field."""
        if action not in ACTIONS:
            raise SettingsError(f"action={action!r} must be one of {', '.join(ACTIONS)}; try 'drop'")
        if (action == "edit") != bool(new):
            raise SettingsError(f"action={action!r} with new={new!r}; an edit names the fields it changes, nothing else does")
        if unknown := sorted(set(new or {}) - set(texts(row))):
            raise SettingsError(f"new={unknown[0]!r} is not a field of this row; it has {', '.join(texts(row))}")
        self.decisions[fingerprint(row)] = {"action": action, "why": why} | ({"new": new} if new else {})
        self.workspace.write_json(FILE, self.decisions)

    def of(self, row: Row) -> dict | None:
        return self.decisions.get(fingerprint(row))

    @property
    def kept(self) -> set[str]:
        """Fingerprints of rows that were kept: for `check_rows(..., kept=review.kept)`."""
        return {key for key, one in self.decisions.items() if one["action"] == "keep"}

    def apply(self, rows: list[Row]) -> tuple[list[Row], pd.DataFrame]:
        """The rows with edits made and drops left out, and a log in the form of `cleaning.clean`."""
        done, log = [], []
        for i, row in enumerate(rows):
            one = self.of(row) or {"action": "keep"}
            if one["action"] == "drop":
                log.append(("review", i, row.get("line"), "", json.dumps(row, ensure_ascii=False), f"{DROPPED} {one['why']}"))
                continue
            new = one.get("new", {})
            log += [("review", i, row.get("line"), field, texts(row)[field], text) for field, text in new.items()]
            done.append(with_texts(row, new))
        return done, pd.DataFrame(log, columns=COLUMNS)
