"""The dataset report as a page in a notebook: verdict, counts, lengths, findings that open to their rows. All text is escaped."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import HTML

from gemma_colab.core.html import ENVIRONMENT, pieces
from gemma_colab.core.rows import answer, place, question, texts
from gemma_colab.data.finding import Finding
from gemma_colab.data.report import Report

VERDICT_COLORS = {"ready": "#2e7d32", "fix first": "#b26a00", "blocked": "#c62828"}
SEVERITIES = {"E": ("error", "#c62828"), "W": ("warning", "#b26a00"), "I": ("for your information", "#546e7a")}
CONTEXT = 90  # characters shown on each side of a marked span
Pieces = list[tuple[str, bool]]  # (text, marked?)


def report_page(report: Report, most: int = 20) -> HTML:
    """Show the whole report; each finding opens to at most `most` of its rows."""
    verdict, _, reason = report.reason.partition(":")
    page = ENVIRONMENT.get_template("data/templates/report.html").render(
        verdict=verdict,
        reason=":" + reason,
        color=VERDICT_COLORS[verdict],
        severities=SEVERITIES,
        counts=report.counts(),
        histogram=_histogram(report) if report.rows else None,
        findings=[(f, _rows(report, f, most)) for f in report.findings],
    )
    return HTML(page)


def _rows(report: Report, finding: Finding, most: int) -> list[tuple[str, str, list[tuple[str, Pieces]]]]:
    """(place, note, [(field, its text in pieces)]) of each row that is shown."""
    if finding.lines:
        bad = [one for one in report.aside if one["line"] in finding.lines][:most]
        return [(f"line {b['line']}", b["problem"], [(b.get("field") or "content", _short(str(b["content"])))]) for b in bad]
    rows = []
    for number in finding.rows[:most]:
        row, hits = report.rows[number], [hit for hit in finding.hits if hit.row == number]
        spans = {field: [(hit.start, hit.end) for hit in hits if hit.field == field and hit.end] for field in texts(row)}
        marked = [(field, _marked(text, spans[field])) for field, text in texts(row).items() if spans[field]]
        whole = [("question", _short(question(row))), ("answer", _short(answer(row)))]
        note = "; ".join(dict.fromkeys(hit.note for hit in hits if hit.note))
        rows.append((place(row, number), note, marked or whole))
    return rows


def _marked(text: str, spans: list[tuple[int, int]]) -> Pieces:
    """The text in pieces, cut to what is near the hits if it is long."""
    start, stop = 0, len(text)
    if len(text) > 500:
        start, stop = max(0, min(spans)[0] - CONTEXT), min(len(text), min(spans)[1] + 4 * CONTEXT)
    shown = [(_seen(piece), True) if marked else (piece, False) for piece, marked in pieces(text, spans, start, stop)]
    return [("…" * (start > 0), False), *shown, ("…" * (stop < len(text)), False)]


def _seen(span: str) -> str:
    """What is marked must be visible: a hidden character is shown by its number."""
    return "".join(c if c.isprintable() and c != "\xad" else f"U+{ord(c):04X}" for c in span[:200])


def _short(text: str, most: int = 300) -> Pieces:
    return [(text[:most] + "…" * (len(text) > most), False)] if text.strip() else [("(empty)", True)]


def _histogram(report: Report) -> dict:
    """Count rows by tokens, and mark what `max_length` would cut; without a tokenizer, by the characters of the answer."""
    if report.lengths is not None:
        values, unit, limit = report.lengths["total"], "tokens in a row", report.max_length
    else:
        values, unit, limit = pd.Series([len(answer(row)) for row in report.rows]), "characters in an answer", None
    counts, edges = np.histogram(values, bins=30)
    bars = [(100 * n / counts.max(), n, low, high) for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)]
    return {"bars": bars, "unit": unit, "limit": limit, "cut": (values > limit).sum() if limit else 0, "rows": len(values)}
