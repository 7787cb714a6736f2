"""Tables and coloured tokens for a notebook. Every text of a dataset is escaped."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment

ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

_TABLE = ENVIRONMENT.from_string(
    """<table style="text-align:left; border-collapse:collapse">
<tr>{% for name in columns %}<th style="text-align:left; padding:4px 10px; border-bottom:1px solid #888">{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}
<td style="text-align:left; vertical-align:top; padding:4px 10px; white-space:pre-wrap; max-width:36em">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}
</table>"""
)

_TOKENS = ENVIRONMENT.from_string(
    """<div style="line-height:2; font-family:monospace">
{%- for text, trained in tokens -%}
<span style="display:inline-block; line-height:1.4; padding:0 1px; margin:1px; border-radius:3px; color:#111; background:{{ '#f6c08a' if trained else '#dfe3e8' }}">{{ text }}</span>
{%- if '⏎' in text %}<br>{% endif -%}
{%- endfor -%}
</div><p><span style="background:#f6c08a; color:#111">&nbsp;trained&nbsp;</span> <span style="background:#dfe3e8; color:#111">&nbsp;only read&nbsp;</span></p>"""
)


def text_table(table: pd.DataFrame) -> HTML:
    """A table whose long texts wrap and are left-aligned. Whatever the cells hold is shown, never run."""
    return HTML(_TABLE.render(columns=list(table.columns), rows=table.itertuples(index=False)))


def trained_tokens(input_ids: list[int], labels: list[int], tokenizer) -> HTML:
    """The tokens of one row in colour: trained where the label is not -100."""
    pieces = [tokenizer.decode([i]).replace("\n", "⏎").replace(" ", "·") for i in input_ids]
    return HTML(_TOKENS.render(tokens=[(piece, label != -100) for piece, label in zip(pieces, labels, strict=True)]))


def pieces(text: str, spans: list[tuple[int, int]], start: int, stop: int) -> list[tuple[str, bool]]:
    """text[start:stop] cut at the spans: (text, in a span?)."""
    cuts = sorted({start, stop, *(place for span in spans for place in span if start < place < stop)})
    return [(text[a:b], any(s <= a and b <= e for s, e in spans)) for a, b in pairwise(cuts)]
