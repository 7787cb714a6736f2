"""The dataset report as a page in a notebook: verdict, counts, lengths, findings that open to their rows. All text is escaped, and
personal data are masked, as a notebook is saved with what it shows."""

import numpy as np

from gemma_colab.core.html import ENVIRONMENT
from gemma_colab.core.rows import answer, place
from gemma_colab.data.finding import Finding
from gemma_colab.data.looking import beside, pieces, question, texts
from gemma_colab.data.personal import hidden, redact
from gemma_colab.data.report import Report, put_aside

VERDICT_COLORS = {"ready": "#2e7d32", "fix first": "#b26a00", "blocked": "#c62828"}
SEVERITIES = {"E": ("error", "#c62828"), "W": ("warning", "#b26a00"), "I": ("for your information", "#546e7a")}
CONTEXT, LONGEST = 90, 4000  # characters shown on each side of a marked span, and of it at most
Pieces = list[tuple[str, bool]]  # (text, marked?)


def report_page(report: Report, most: int) -> str:
    """HTML of the whole report; each finding opens to at most `most` of its rows."""
    histogram, findings = _histogram(report) if report.rows else None, [(f, _rows(report, f, most)) for f in report.findings]
    how = {"color": VERDICT_COLORS[report.verdict], "severities": SEVERITIES, "histogram": histogram, "findings": findings}
    return ENVIRONMENT.get_template("data/templates/report.html").render(report=report, **how)


def _rows(report: Report, finding: Finding, most: int) -> list[tuple[str, str, list[tuple[str, Pieces]]]]:
    """(place, note, [(field, its text in pieces)]) of each row that is shown."""
    if bad := put_aside(report.aside, finding.check)[:most]:
        said = [[(one.get("field") or "content", _short(str(one["content"])))] for one in bad]
        return [(f"line {one['line']}", redact(one["problem"]), it) for one, it in zip(bad, said, strict=True)]
    rows = []
    for number in finding.rows[:most]:
        row, hits = report.rows[number], [hit for hit in finding.hits if hit.row == number]
        marked = []
        for field, text in (texts(row) | {name: str(value) for name, value in beside(row).items()}).items():
            if spans := [(hit.start, hit.end) for hit in hits if hit.field == field and hit.end]:
                marked.append((field, _marked(text, spans)))
        whole = [("question", _short(question(row))), ("answer", _short(answer(row)))]
        rows.append((place(row, number), redact("; ".join(dict.fromkeys(hit.note for hit in hits if hit.note))), marked or whole))
    return rows


def _marked(text: str, spans: list[tuple[int, int]]) -> Pieces:
    """The text in pieces, cut to what is near the hits if it is long. A hidden character that is marked is shown by its number."""
    start, stop = 0, len(text)
    if len(text) > 500:
        start, stop = max(0, min(spans)[0] - CONTEXT), min(len(text), min(spans)[1] + 4 * CONTEXT, min(spans)[0] + LONGEST)
    masks = [one for one in hidden(text) if one[1] < stop and start < one[2]]
    start, stop = min([start, *(a for _, a, _ in masks)]), max([stop, *(b for *_, b in masks)])  # never half of one
    spans = [(s, e) for s, e in spans if s < stop and start < e]  # each mask is compared with them
    shown, at = [], start
    for word, a, b in [*masks, ("", stop, stop)]:
        for piece, marked in pieces(text, spans, at, a):
            seen = (c if c.isprintable() and c != "\xad" else f"U+{ord(c):04X}" for c in piece[:200])
            shown.append(("".join(seen) if marked else piece, marked))
        shown.append((word, any(s < b and a < e for s, e in spans)))
        at = b
    return [("…" * (start > 0), False), *shown, ("…" * (stop < len(text)), False)]


def _short(text: str, most: int = 300) -> Pieces:
    text = redact(text)
    return [(text[:most] + "…" * (len(text) > most), False)] if text.strip() else [("(empty)", True)]


def _histogram(report: Report) -> dict:
    """Count rows by tokens, and mark what `max_length` would cut; without a tokenizer, by the characters of the answer."""
    if report.lengths is not None:
        values, unit, limit = report.lengths["total"].to_numpy(), "tokens in a row", report.max_length
    else:
        values, unit, limit = np.array([len(answer(row)) for row in report.rows]), "characters in an answer", None
    counts, edges = np.histogram(values, bins=30)
    bars = list(zip(100 * counts / counts.max(), counts, edges[:-1], edges[1:], strict=True))
    return {"bars": bars, "unit": unit, "limit": limit, "cut": (values > limit).sum() if limit else 0}
