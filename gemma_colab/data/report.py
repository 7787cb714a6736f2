"""Checks of a dataset: each a small function that returns the numbers of the rows it hit, counted from 0."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from gemma_colab.data.text import INVISIBLE, TAG, jaccard, normalise, shingles

Row = dict[str, str]
ENTITY = re.compile(r"&(?:[a-z]+|#\d+);")
PLACEHOLDER = re.compile(r"\{\{?\w+\}?\}|\[(?:ссылка|link|имя|name)\]|\bTODO\b", re.IGNORECASE)
PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.\w+|(?:\+7|\b8)[\s(-]*\d{3}[\s)-]*\d{3}[\s-]*\d{2}[\s-]*\d{2}\b|\b(?:\d{4}[ -]?){3}\d{4}\b"
)


@dataclass(frozen=True)
class Finding:
    """What one check found. severity: "E" blocks training, "W" warns, "I" informs."""

    check: str
    severity: str
    rows: list[int]
    what_to_do: str


def empty_texts(rows: list[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if not all(_visible(row[f]) for f in ("instruction", "output"))]


def _visible(text: str) -> str:
    return text.translate(INVISIBLE).strip()


def exact_duplicates(rows: list[Row]) -> list[int]:
    """Rows that repeat an earlier row, punctuation and case aside."""
    seen, hits = set(), []
    for i, row in enumerate(rows):
        key = normalise(" ".join(row.values()))
        if key in seen:
            hits.append(i)
        seen.add(key)
    return hits


def near_duplicates(rows: list[Row], threshold: float = 0.72, most: int = 3000) -> list[int]:
    """Rows much like an earlier one: Jaccard of 5-character shingles, digits alike. Compares each pair, so at most `most` rows."""
    sets = [shingles(" ".join(row.values())) for row in rows[:most]]
    return [i for i, one in enumerate(sets) if any(jaccard(one, other) >= threshold for other in sets[:i])]


def contradictions(rows: list[Row]) -> list[int]:
    """Rows whose question stands elsewhere with another answer."""
    groups = defaultdict(list)
    for i, row in enumerate(rows):
        groups[normalise(row["instruction"] + " " + row["input"])].append(i)
    return sorted(i for g in groups.values() if len({normalise(rows[i]["output"]) for i in g}) > 1 for i in g)


def html_remains(rows: list[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if any(TAG.search(text) or ENTITY.search(text) for text in row.values())]


def placeholders(rows: list[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if PLACEHOLDER.search(row["output"])]


def personal_data(rows: list[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if any(PERSONAL.search(text) for text in row.values())]


def too_few(rows: list[Row], block: int = 10, warn: int = 50) -> Finding | None:
    if len(rows) >= warn:
        return None
    severity = "E" if len(rows) < block else "W"
    return Finding("too few rows", severity, [], f"{len(rows)} rows; {warn} are a start, a few hundred good ones are plenty")


CHECKS = [
    ("empty text", "E", empty_texts, "write the missing instruction or answer, or drop the row"),
    ("exact duplicate", "W", exact_duplicates, "drop it: a repeated row is learnt twice and tells nothing new"),
    ("near duplicate", "W", near_duplicates, "keep one, or make the situations really different"),
    ("contradiction", "W", contradictions, "decide which answer is right: the model can't"),
    ("HTML", "W", html_remains, "turn it into text, or the model will answer in HTML"),
    ("personal data", "W", personal_data, "mask it: a model may repeat what it was trained on"),
    ("placeholder", "I", placeholders, "fine if your program fills it in; otherwise write the text out"),
]


def check_rows(rows: list[Row]) -> list[Finding]:
    """All findings, worst first."""
    findings = [Finding(name, severity, hit, advice) for name, severity, check, advice in CHECKS if (hit := check(rows))]
    findings += [f for f in [too_few(rows)] if f]
    return sorted(findings, key=lambda f: "EWI".index(f.severity))


def findings_table(findings: list[Finding]) -> pd.DataFrame:
    """One line a finding: severity, check, count, first row numbers, what to do."""
    return pd.DataFrame(
        [(f.severity, f.check, len(f.rows), f.rows[:5], f.what_to_do) for f in findings],
        columns=["severity", "check", "rows", "first rows", "what to do"],
    )


def verdict(findings: list[Finding]) -> str:
    """ "blocked", "fix first" or "ready", with the reason."""
    for severity, word in (("E", "blocked"), ("W", "fix first")):
        if names := [f.check for f in findings if f.severity == severity]:
            return f"{word}: {', '.join(names)}"
    return "ready: no errors, no warnings"
