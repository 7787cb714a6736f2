"""The dataset report as a page in a notebook: verdict, counts, lengths, findings that open to their rows. All text is escaped."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML

from gemma_colab.core.html import ENVIRONMENT, pieces
from gemma_colab.core.rows import answer, answer_field, place, question, texts
from gemma_colab.data.finding import Finding, Hit
from gemma_colab.data.report import Report
from gemma_colab.ui.plots import length_histogram

COLOURS = {"ready": "#2e7d32", "fix first": "#b26a00", "blocked": "#c62828"}
SEVERITIES = {"E": ("error", "#c62828"), "W": ("warning", "#b26a00"), "I": ("for your information", "#546e7a")}
CONTEXT = 90  # characters shown on each side of a marked span

_PAGE = ENVIRONMENT.from_string(
    """<div style="max-width:60em; line-height:1.45">
<div style="border-left:6px solid {{ colour }}; padding:2px 12px; font-size:115%"><b>{{ verdict }}</b>{{ reason }}</div>
<p>{% for name, value in counts.items() %}<span style="display:inline-block; margin-right:1.6em"><b>{{ '{:,}'.format(value) }}</b> {{ name }}</span>{% endfor %}</p>
{% if picture %}<img alt="lengths" style="max-width:100%; background:white" src="data:image/png;base64,{{ picture }}">{% endif %}
{% for f in findings %}
<details style="border-top:1px solid #8884; padding:3px 0">
<summary style="cursor:pointer"><b style="color:{{ f.colour }}" title="{{ f.word }}">{{ f.severity }}</b>&ensp;<b>{{ f.check }}</b>{% if f.count %} · {{ f.count }} row{{ 's' if f.count > 1 }}{% endif %}: {{ f.advice }}</summary>
<table style="border-collapse:collapse; margin:4px 0 8px 1.2em; text-align:left">
{% for row in f.rows %}<tr><td style="text-align:left; vertical-align:top; padding:2px 10px; white-space:nowrap">{{ row.place }}</td>
<td style="text-align:left; vertical-align:top; padding:2px 10px; white-space:pre-wrap">
{%- if row.note %}<i>{{ row.note }}</i>
{% endif %}{% for label, pieces in row.parts %}<span style="opacity:.6">{{ label }}:</span> {% for text, marked in pieces %}{% if marked %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}{% endfor %}

{% endfor %}</td></tr>{% endfor %}
</table>{% if f.more %}<p style="margin-left:1.2em">and {{ f.more }} more rows</p>{% endif %}
</details>
{% endfor %}
</div>"""
)


class _Row(NamedTuple):
    place: str
    note: str
    parts: list[tuple[str, list[tuple[str, bool]]]]  # field, and its text in pieces: (text, marked?)


def report_page(report: Report, most: int = 20) -> HTML:
    """The whole report; each finding opens to at most `most` of its rows."""
    findings = []
    for f in report.findings:
        word, colour = SEVERITIES[f.severity]
        rows = _unreadable(report, f, most) if f.lines else [_row(report, f, row) for row in f.rows[:most]]
        findings.append(
            dict(severity=f.severity, word=word, colour=colour, check=f.check, advice=f.what_to_do, count=f.count, rows=rows)
            | {"more": max(0, f.count - len(rows))}
        )
    verdict, _, reason = report.reason.partition(":")
    return HTML(
        _PAGE.render(
            verdict=verdict,
            reason=":" + reason,
            colour=COLOURS[report.verdict],
            counts={name: value for name, value in report.counts().items() if value},
            picture=_picture(report),
            findings=findings,
        )
    )


def _row(report: Report, finding: Finding, row: int) -> _Row:
    hits = [hit for hit in finding.hits if hit.row == row]
    one = report.rows[row]
    notes = "; ".join(dict.fromkeys(hit.note for hit in hits if hit.note))
    fields = texts(one)
    marked = [
        (name, _marked(fields[name], spans)) for name in fields if (spans := [h for h in hits if h.field == name and h.end])
    ]
    whole = [("question", _short(question(one))), (answer_field(one), _short(answer(one)))]
    return _Row(place(one, row), notes, marked or whole)


def _marked(text: str, hits: list[Hit]) -> list[tuple[str, bool]]:
    """The text in pieces, cut to what is near the hits if it is long."""
    spans = [(hit.start, hit.end) for hit in hits]
    start, stop = 0, len(text)
    if len(text) > 500:
        start, stop = max(0, min(spans)[0] - CONTEXT), min(len(text), min(spans)[1] + 4 * CONTEXT)
    shown = [(_seen(piece), True) if marked else (piece, False) for piece, marked in pieces(text, spans, start, stop)]
    return [("…" * (start > 0), False), *shown, ("…" * (stop < len(text)), False)]


def _seen(span: str) -> str:
    """What is marked must be visible: a hidden character is shown by its number."""
    return "".join(c if c.isprintable() and c != "\xad" else f"U+{ord(c):04X}" for c in span[:200])


def _short(text: str, most: int = 300) -> list[tuple[str, bool]]:
    return [(text[:most] + "…" * (len(text) > most), False)] if text.strip() else [("(empty)", True)]


def _unreadable(report: Report, finding: Finding, most: int) -> list[_Row]:
    bad = [one for one in report.aside if one["line"] in set(finding.lines)][:most]
    return [_Row(f"line {b['line']}", b["problem"], [(b.get("field") or "content", _short(str(b["content"])))]) for b in bad]


def _picture(report: Report) -> str:
    """Histogram of the tokens, with `max_length`; without a tokenizer of the characters in an answer. As base64 PNG."""
    if not report.rows:
        return ""
    figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
    if report.lengths is not None:
        length_histogram(report.lengths["total"], report.max_length, ax)
    else:
        pd.Series([len(answer(row)) for row in report.rows]).plot.hist(bins=30, ax=ax)
        ax.set(xlabel="characters in an answer", ylabel="rows")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    plt.close(figure)
    return base64.b64encode(picture.getvalue()).decode()
