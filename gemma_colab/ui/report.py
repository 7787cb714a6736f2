"""The report on a tuned model: one HTML file that works offline, prints, and follows the reader's light or dark setting."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd

from gemma_colab.core.html import ENVIRONMENT
from gemma_colab.core.workspace import Workspace
from gemma_colab.export.record import exported
from gemma_colab.ui.blind import blind_result
from gemma_colab.ui.evidence import comparison_table, pick, side_by_side
from gemma_colab.ui.plots import save_loss_curve

SHIP = {
    "no": ("Do not ship it", "#c62828"),
    "not yet": ("Do not ship it yet", "#b26a00"),
    "yes": ("Ship it", "#2e7d32"),
    "ask a reader": ("The figures allow it; now read", "#2e7d32"),
}
SAID = {
    "better": "By the measures below, its answers got better.",
    "worse": "By the measures below, it got worse.",
    "mixed": "By the measures below, it got better in some ways and worse in others.",
    "no clear difference": "By the measures below, its answers did not change clearly.",
    "too few rows": "There are too few test rows to tell whether it got better.",
}
EXAMPLES = 4  # rows of each kind

_PAGE = ENVIRONMENT.from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Is {{ s.model }} better after tuning?</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: .3rem; } h2 { margin: 2.2rem 0 .4rem; border-bottom: 1px solid #8884; } h3 { margin: 1.2rem 0 .3rem; }
table { margin: .4rem 0 1rem; border-collapse: collapse; }
table.plain th, table.plain td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #8884; }
table.plain td.number { text-align: right; font-variant-numeric: tabular-nums; }
.verdict { border-left: 8px solid {{ ship[1] }}; padding: .2rem 1rem; margin: 1rem 0; background: #8881; }
.verdict b { font-size: 1.3em; color: {{ ship[1] }}; }
.wide { overflow-x: auto; } .small { opacity: .75; font-size: .85rem; overflow-wrap: anywhere; }
.answers td { font-size: .9rem; }
img { max-width: 100%; background: white; }
@media print { body { max-width: none; margin: 0; font-size: 11pt; } tr, img, svg { break-inside: avoid; } h2, h3 { break-after: avoid; } .wide { overflow: visible; } }
</style></head><body>
<h1>Is it better after tuning? Can it be shipped?</h1>
<p>{{ s.model }}{{ " in 4 bit" if s.load_in_4bit }}, tuned on {{ s.rows.train }} rows, watched on {{ s.rows.validation }}, asked {{ s.rows.test }} questions that it never saw.</p>
<div class="verdict"><b>{{ ship[0] }}.</b> {{ word }}
{% if s.verdict.against %}<p>What speaks against it:</p><ul>{% for line in s.verdict.against %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
{% if s.verdict.next %}<p>What to do next:</p><ul>{% for line in s.verdict.next %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<p>What was seen:</p><ul>{% for line in s.verdict.lines %}<li>{{ line }}</li>{% endfor %}</ul></div>

<h2>The same questions, before and after</h2>
<p>All contestants got the same test rows and answered without chance. The interval holds the mean difference over all rows of this kind, with 95&nbsp;% confidence. Where it reaches over zero, nothing has been shown. The dot is the difference, the bar its interval, the thin line zero. p says how often a fair coin would split the changed rows so unevenly (McNemar's exact test). The more measures one looks at, the likelier one of them moves by chance: "perhaps" is clear of zero by itself, but not if that is counted in (Bonferroni), or not by p; the verdict leaves it out.
None of these figures knows whether an answer is true.</p>
{% if s.measures %}<ul class="small">{% for name, text in s.measures.items() if text %}<li><b>{{ name }}</b>: {{ text }}</li>{% endfor %}</ul>{% endif %}
<h3>Tuned against the base model</h3>
<div class="wide">{{ base | safe }}</div>
{% if few_shot %}<h3>Tuned against the base model with {{ s.settings.generation.examples }} solved examples in the prompt</h3>
<p>Examples cost no training. Where they do as well, tuning was not worth it.</p>
<div class="wide">{{ few_shot | safe }}</div>{% endif %}

<h2>Loss, and learning by heart</h2>
<p>Nats per token of the right answers; lower is better. Where rows it never saw are harder for it than rows it trained on, and are not for the base, it fits its training rows better than the rest. Some of that is usual; it is overfitting where the validation loss rises while the training loss falls.</p>
<table class="plain"><tr><th>rows</th><th>base</th><th>tuned</th><th>change</th><th>perplexity, base</th><th>tuned</th></tr>
{% for part, loss in s.loss.items() %}<tr><td>{{ part }}</td>{% for name in ("base", "tuned") %}<td class="number">{{ number(loss[name]) }}</td>{% endfor %}
<td class="number">{% if loss.base and loss.tuned is not none %}{{ "%+.0f" | format(100 * (loss.tuned / loss.base - 1)) }}&nbsp;%{% endif %}</td>{% for name in ("base", "tuned") %}<td class="number">{{ number(loss[name + "_perplexity"], "{:,.1f}") }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if s.gap %}<p>Test minus training loss of the tuned model: {{ number(s.gap.difference, "{:+.2f}") }} ({{ number(s.gap.low, "{:+.2f}") }} to {{ number(s.gap.high, "{:+.2f}") }}); of the base model, which saw neither: {{ number(s.gap.base, "{:+.2f}") }}.</p>{% endif %}
{% if s.memorisation %}<table class="plain"><tr><th>tuned model asked</th><th>rows</th><th>answers word for word</th><th>same from the start, mean</th><th>longest</th></tr>
{% for line in s.memorisation %}<tr><td>its {{ line.part }} rows</td><td class="number">{{ line.rows }}</td>{% for name in ("word for word", "common prefix", "longest prefix") %}<td class="number">{{ "%.0f" | format(100 * line[name]) }}&nbsp;%</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% if curve %}<img alt="loss curve of the training" src="data:image/png;base64,{{ curve }}">{% endif %}
{% if s.training %}<p>Training: {{ s.training.verdict.rsplit("; ", 1)[0] }}.{% if s.training.steps %} {{ s.training.steps }} steps, {{ s.training.status }}.{% endif %}</p>{% endif %}

{% if forgetting %}<h2>What was forgotten</h2>
<p>Questions and texts that have nothing to do with the training rows, before and after.</p>
<div class="wide">{{ forgetting | safe }}</div>{% endif %}

{% if s.health %}<h2>Is it an answer at all?</h2>
<table class="plain"><tr><th>share of answers</th>{% for name in s.health[0] if name != "contestant" %}<th>{{ "tokens, mean" if name == "tokens" else name }}</th>{% endfor %}</tr>
{% for line in s.health %}<tr><td>{{ line.contestant }}</td>{% for name, value in line.items() if name != "contestant" %}<td class="number">{% if name == "tokens" %}{{ "%.0f" | format(value) }}{% else %}{{ "%.0f" | format(100 * value) }}&nbsp;%{% endif %}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}

<h2>Read for yourself</h2>
{% for title, table in examples %}<h3>{{ title }}</h3>{{ table | safe }}{% endfor %}

<h2>Judged blind</h2>
{% if review %}{{ review | safe }}{% endif %}{% if not (s.review and s.review.opened) %}<p>Notebook 05 has a panel for it.</p>{% endif %}

{% if export.parity %}<h2>Taken home</h2>
<p>Each form was asked the same questions again. The figures above are of the first line; "answers equal" is the share of answers that are word for word those of the first line. {{ export.sentence }}</p>
<div class="wide"><table class="plain"><tr>{% for name in export.parity[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for line in export.parity %}<tr>{% for value in line.values() %}<td{% if value is number %} class="number"{% endif %}>{{ "%.4g" | format(value) if value is float else "" if value is none else value }}</td>{% endfor %}</tr>{% endfor %}</table></div>{% endif %}

<h2>What this was made with</h2>
<p class="small">Rows: fingerprint {{ s.fingerprint }}. Generation: greedy, at most {{ s.settings.generation.max_new_tokens }} tokens. Seed of the statistics and of the examples: {{ s.seed }}; 2,000 resamples. Computed in {{ s.dtype }} on {{ s.machine }}.</p>
{% for name, values in s.settings.items() %}<p class="small"><b>{{ name }}</b>: {% for key, value in values.items() %}{{ key }} = {{ value }}{{ ", " if not loop.last }}{% endfor %}</p>{% endfor %}
<p class="small"><b>versions</b>: {% for key, value in s.versions.items() %}{{ key }} {{ value }}{{ ", " if not loop.last }}{% endfor %}</p>
</body></html>
""")


def write_report(workspace: Workspace) -> Path:
    """Write `report.html` from `summary.json` and the rows in `evaluation/rows.jsonl`, with the loss curve of
    `training.json`, and what `export.json` says of exports of this adapter; returns its path."""
    summary = workspace.read_json("summary.json")
    rows = pd.DataFrame(workspace.read_jsonl("evaluation/rows.jsonl"))
    by = summary.get("sorted_by", "token F1")
    worst = pick(rows, "worst", EXAMPLES, by)
    best = pick(rows.drop(index=worst.index), "best", EXAMPLES, by)
    rest = rows.drop(index=[*worst.index, *best.index], errors="ignore")
    examples = {f"Worst by {by}": worst, "At random, of the rest": pick(rest, "random", EXAMPLES), f"Best by {by}": best}
    few_shot = summary["tuned_against_few_shot"]
    page = _PAGE.render(
        s=summary,
        review=blind_result(summary["review"]).data if summary["review"] else None,
        word=SAID[summary["verdict"]["word"]],
        ship=SHIP[summary["verdict"]["ship"]],
        base=_table(summary["tuned_against_base"], "base"),
        few_shot=_table(few_shot, "few-shot") if few_shot else None,
        forgetting=_table(summary["forgetting"], "base") if summary["forgetting"] else None,
        examples=[(title, side_by_side(table).data) for title, table in examples.items() if len(table)],
        export=exported(workspace),
        curve=_curve(workspace),
        number=lambda value, form="{:.2f}": (
            "no number" if value is None else f"{value:.1e}" if abs(value) > 1e6 else form.format(value)
        ),
    )
    return workspace.write_text("report.html", page)


def _table(lines: list[dict], before: str) -> str:
    """Markup in which every text is escaped already."""
    return comparison_table(pd.DataFrame(lines), before).data


def _curve(workspace: Workspace) -> str | None:
    """The losses of the run, as a picture in base64."""
    log = workspace.read_json("training.json").get("log_history") if workspace.has("training.json") else None
    if not log:
        return None
    with io.BytesIO() as buffer:
        save_loss_curve(log, buffer)
        return base64.b64encode(buffer.getvalue()).decode()
