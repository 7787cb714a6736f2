"""What only a person can decide about rows, case by case, and what was decided: keep, edit or drop.

A decision is saved at once, and found again by the text of its row as it was read, whatever steps cleaned it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.core.workspace import Workspace
from gemma_colab.data.cleaning import DROPPED, LOG_COLUMNS
from gemma_colab.data.finding import CheckContext, Finding
from gemma_colab.data.likeness import clusters
from gemma_colab.data.looking import fingerprint, fingerprint_of, texts, with_texts
from gemma_colab.data.report import Report

FILE = "review.json"
ACTIONS = ("keep", "edit", "drop")
# What only a person can judge. A name stands for its variants too: "style" for "style: address".
REVIEW_CHECKS = ("contradiction", "near duplicate", "look-alike", "style", "language", "mixed script", "refusal", "repetition")
REVIEW_CHECKS += ("merged examples", "placeholder")
SIDE_BY_SIDE = 12  # rows in one case at most: a template asked 500 times must not become 500 text fields


class Case(NamedTuple):
    """Rows to decide about side by side, by their numbers from 0, and the checks that hit them."""

    rows: list[int]
    checks: list[str]


def find_cases(rows: list[Row], report: Report, checks: Iterable[str] = REVIEW_CHECKS) -> tuple[list[Case], dict[int, list]]:
    """The cases, in the report's order, and what was said of each row: number -> [(check, hit), ...].

    Rows that contradict or nearly repeat each other are one case. Of rows with the very same text only the first is in it.
    """
    first: dict[str, int] = {}
    own = [first.setdefault(fingerprint(row), i) for i, row in enumerate(rows)]
    chosen = [(f.check, hit) for f in report.findings if {f.check, f.check.split(":")[0]} & {*checks} for hit in f.hits]
    said, questions = defaultdict(list), CheckContext(rows).same_questions
    for check, hit in chosen:
        said[own[hit.row]].append((check, hit))
    # All rows with a contradicted question, also those that were kept earlier, and so are no longer hit.
    asked = {questions[hit.row]: own[hit.row] for check, hit in chosen if check == "contradiction"}
    pairs = [(own[row], asked[text]) for row, text in enumerate(questions) if text in asked]
    pairs += [(own[hit.row], own[hit.twin]) for _, hit in chosen if hit.twin is not None]
    order = {row: n for n, row in enumerate(said)}
    groups = [[row for row in group if own[row] == row] for group in clusters(len(rows), pairs)]
    groups = sorted((g for g in groups if order.keys() & g), key=lambda g: min(order.get(row, len(rows)) for row in g))
    parts = [group[i : i + SIDE_BY_SIDE] for group in groups for i in range(0, len(group), SIDE_BY_SIDE)]
    return [Case(part, list(dict.fromkeys(check for row in part for check, _ in said.get(row, [])))) for part in parts], said


def _decisions(text: str) -> dict[str, dict]:
    """Parse `review.json`; raises where a decision lacks a part, or a text in it is none."""
    found = json.loads(text)
    for one in found.values():
        "".join([one["why"], *one["checks"], *one.get("new", {}).values()])
        if one["action"] not in ACTIONS:
            raise ValueError(f"action={one['action']!r}")
    return found


class Review:
    """Decisions about rows, in `review.json` of the workspace. An interrupted review goes on where it stopped."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.decisions: dict[str, dict] = workspace.read_json(FILE, _decisions) if workspace.has(FILE) else {}
        self._old = any("line" not in one for one in self.decisions.values())  # version 1 did not write it

    def decide(self, row: Row, action: str, new: dict[str, str] | None = None, why: str = "", checks: Iterable[str] = ()) -> None:
        """Save a decision about this row. new: field -> text, for "edit". why: for the log. checks: the findings it is about;
        a row that is kept is no longer warned of for those. Raises `SettingsError` for another action or field."""
        if action not in ACTIONS:
            raise SettingsError(f"action={action!r} must be one of {', '.join(ACTIONS)}; try 'drop'")
        if (action == "edit") != bool(new):
            raise SettingsError(f"action={action!r} with new={new!r}; an edit names the fields it changes, nothing else does")
        if unknown := sorted(set(new or {}) - set(texts(row))):
            raise SettingsError(f"new={unknown[0]!r} is not a field of this row; it has {', '.join(texts(row))}")
        before = (self.of(row) or {}).get("new", {})
        if action != "drop" and before and with_texts(row, before) == row:  # it was edited before, and is meant as it is now
            new = before | (new or {})
        decision = {"action": action, "why": why, "checks": list(checks), "line": row.get("line")} | ({"new": new} if new else {})
        together = Review(self.workspace).decisions | {fingerprint(row): decision}  # a second panel may have decided since
        self.workspace.write_json(FILE, together)
        self.decisions = together

    def of(self, row: Row) -> dict | None:
        """Return the decision on this row, or None."""
        return self._found(row)[1]

    def _found(self, row: Row) -> tuple[str, dict | None]:
        """Return the key and the decision on this row; a decision of before rows knew how they were read was kept by their text."""
        keys = [fingerprint(row), fingerprint(row, now=True)] if self.decisions else []
        if key := next((key for key in keys if key in self.decisions), ""):
            return key, self.decisions[key]
        if not self._old or len(row["messages"]) != 2:
            return "", None
        # Version 1 had instruction, input and output in a row of two turns: one of the first blank lines may have parted the first two.
        asked, said = (turn["content"] for turn in row["messages"])
        for i in [len(asked), *(m.start() for m in re.finditer("\n\n", asked))][:50]:
            old = {"instruction": asked[:i], "input": asked[i + 2 :], "output": said}
            if one := self.decisions.get(key := fingerprint_of(old)):
                old |= one.get("new", {})
                new = {"question": "\n\n".join(filter(None, (old["instruction"], old["input"]))), "answer": old["output"]}
                return key, one | ({"new": new} if "new" in one else {})
        return "", None

    def unused(self, rows: list[Row], read: list[Row]) -> list[Finding]:
        """Return a finding of the decisions that fit none of these rows, if any. read: the rows before cleaning, which may have
        dropped a row that you dropped too."""
        fit, there = ({self._found(row)[0] for row in some} for some in (rows, read))
        lost = [one for key, one in self.decisions.items() if key not in fit and (one["action"] != "drop" or key not in there)]
        advice = f"{len(lost)} in review.json fit no row, as its text changed, it was dropped, or this is another file; look at"
        advice += " those rows again, then accept 'unused decision', or delete review.json to forget all decisions"
        return [Finding("unused decision", "W", advice, lines=[one["line"] for one in lost if one.get("line")])] * bool(lost)

    @property
    def kept(self) -> dict[str, set[str]]:
        """Fingerprint of each row that was kept -> the findings it was kept in spite of: for `check_rows(..., kept=review.kept)`."""
        return {key: set(one["checks"]) for key, one in self.decisions.items() if one["action"] == "keep"}

    def apply(self, rows: list[Row], typed: Callable[[str], str] = str) -> tuple[list[Row], pd.DataFrame]:
        """The rows with edits made and drops left out, and a log in the form of `cleaning.clean`. typed: what changes the text of an
        edit, which was typed from a row as it was then."""
        done, log = [], []
        for i, row in enumerate(rows):
            one = self.of(row) or {"action": "keep"}
            if one["action"] == "drop":
                log.append(("review", i, row.get("line"), "", json.dumps(row, ensure_ascii=False), f"{DROPPED} {one['why']}"))
                continue
            new = with_texts(row, {field: typed(text) for field, text in one.get("new", {}).items()})
            changes = zip(texts(row).items(), texts(new).values(), strict=True)
            log += [("review", i, row.get("line"), field, old, text) for (field, old), text in changes if text != old]
            done.append(new)
        return done, pd.DataFrame(log, columns=LOG_COLUMNS)
