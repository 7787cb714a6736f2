"""Tables and coloured tokens for a notebook. Every text of a dataset is escaped."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
from IPython.display import HTML
from jinja2 import Environment

from gemma_colab.core.machine import readable

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


# --------------------------------------------------------------------------------------------- memory
LIGHTS = {"fits": "#2e9d4e", "tight": "#d99a00", "no": "#d64545"}  # the words of `planner.light`; read on white and on black
PART_COLOURS = {  # of `memory_plan`: what is frozen in blue, what is trained in green, what passes through in orange
    "weights": "#3f78b5",
    "embeddings": "#8ab8e6",
    "adapters": "#1f7a4d",
    "gradients": "#4fb380",
    "optimizer": "#a0d9b4",
    "activations": "#e08a3c",
    "working memory": "#f2c185",
    "overhead": "#9a9fa6",
}
_MEMORY_BAR = ENVIRONMENT.from_string(
    """<div style="max-width:860px; line-height:1.5">
<div style="margin:6px 0 4px"><span style="color:{{ light }}; font-size:1.3em; vertical-align:-1px">●</span> <b>{{ word }}</b>:
 {{ '%.2f' | format(total) }} of {{ '%.2f' | format(limit) }} GiB predicted,
 <b>{{ '%.2f GiB' | format((limit - total) | abs) }}</b> {{ 'left' if total <= limit else 'too much' }}</div>
<div style="position:relative">
<div style="display:flex; height:24px; border:1px solid #888; border-radius:4px; overflow:hidden" role="img" aria-label="{{ word }}">
{% for name, gib, colour in parts %}
<span style="flex:0 0 {{ '%.2f' | format(100 * gib / scale) }}%; background:{{ colour }}" title="{{ name }}: {{ readable(gib) }}"></span>
{% endfor %}
</div>
{% if not small %}<div style="position:absolute; top:-3px; height:32px; border-left:3px solid {{ light }}; left:calc({{ '%.2f' | format(100 * limit / scale) }}% - 3px)"></div>{% endif %}

</div>
<div style="display:flex; flex-wrap:wrap; margin-top:6px">
{% for name, gib, colour in parts %}
<span style="margin-right:16px; white-space:nowrap"><span style="display:inline-block; width:11px; height:11px; border-radius:2px; background:{{ colour }}"></span>
 {{ name }} {{ readable(gib) }}</span>
{% endfor %}
<span style="white-space:nowrap">{% if small %}(the bar shows {{ '%.1f' | format(100 * total / limit) }} % of {{ device }}){% else %}<b style="color:{{ light }}">|</b> {{ device }} {{ '%.2f' | format(limit) }} GiB{% endif %}</span>
</div></div>"""
)


def memory_bar(plan: pd.Series, limit: float, device: str, word: str) -> HTML:
    """A `memory_plan` as one stacked bar against the `limit` in GiB of a device, with a legend; word: of `planner.light`.

    A plan that takes less than a twentieth of the limit would be a thin line: its bar shows the plan alone.
    """
    total = float(plan.sum())
    small = total < limit / 20
    return HTML(
        _MEMORY_BAR.render(
            parts=[(name, gib, PART_COLOURS[name]) for name, gib in plan.items() if gib],
            total=total,
            limit=limit,
            scale=1.05 * total if small else max(total, limit),
            small=small,
            device=device,
            word=word,
            light=LIGHTS[word],
            readable=readable,
        )
    )
