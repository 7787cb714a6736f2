"""The before/after report: one HTML file that works offline, prints, and follows the reader's light or dark setting."""

from __future__ import annotations

import base64
from pathlib import Path

import pandas as pd

from gemma_colab.hardware import stack_versions
from gemma_colab.ui.html import ENVIRONMENT
from gemma_colab.workspace import Workspace

_PAGE = ENVIRONMENT.from_string("""{% macro scores(lines, first) %}
<table><tr><th>{{ first }}</th><th>rows</th><th>before</th><th>after</th><th>difference</th><th>95&nbsp;% interval</th><th>clear of zero</th></tr>
{% for line in lines %}<tr><td>{{ line[first] }}</td><td class="number">{{ line.rows }}</td>
{% for name in ("before", "after") %}<td class="number">{{ "%.2f" | format(line[name]) }}</td>{% endfor %}
<td class="number">{{ "%+.2f" | format(line.difference) }}</td>
<td class="number">{{ "%+.2f" | format(line.low) }} to {{ "%+.2f" | format(line.high) }}</td><td>{{ line["clear"] }}</td></tr>
{% endfor %}</table>
{% endmacro %}
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Before and after: {{ e.model }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
td.number { white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem; border-bottom: 1px solid #8884; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.rows td { white-space: pre-wrap; font-size: .9rem; width: 25%; }
img { max-width: 100%; background: white; }
.small { color: #777; font-size: .85rem; }
</style>
<h1>Before and after</h1>
<p>{{ e.model }}, tuned on {{ e.rows.train }} rows, checked on {{ e.rows.validation }} while training, tested on
{{ e.rows.test }} rows that it never saw.</p>
<h2>Loss on the right answers</h2>
<p>Nats per answer token; lower is better. On the test rows it changed by {{ "%+.2f" | format(e.test_loss_difference.difference) }},
95&nbsp;% interval {{ "%+.2f" | format(e.test_loss_difference.low) }} to {{ "%+.2f" | format(e.test_loss_difference.high) }}.</p>
<table><tr><th>rows</th><th>before</th><th>after</th><th>change</th></tr>
{% for part, loss in e.loss.items() %}
<tr><td>{{ part }}</td><td class="number">{{ "%.2f" | format(loss.before) }}</td><td class="number">{{ "%.2f" | format(loss.after) }}</td>
<td class="number">{{ "%+.0f" | format(100 * (loss.after / loss.before - 1)) }}&nbsp;%</td></tr>
{% endfor %}</table>
<h2>Answers to the test rows</h2>
{{ scores(e.metrics, "metric") }}
<h2>General questions: what was forgotten</h2>
<p>Share of right answers to questions that have nothing to do with the shop.</p>
{{ scores(e.forgetting, "language") }}
{% if curve %}<h2>Training</h2>
<p>{{ training.steps }} steps in {{ "%.0f" | format(training.seconds) }} s, best validation loss {{ "%.2f" | format(training.best_eval_loss) }}.</p>
<img alt="loss curve" src="data:image/png;base64,{{ curve }}">{% endif %}
<h2>Read for yourself</h2>
<table class="rows"><tr>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in answers %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="small">Greedy answers, at most 144 tokens. Intervals: paired bootstrap over rows, 2,000 resamples. "Clear of zero" says whether
the interval leaves out zero. Settings: {{ settings }}. Versions: {{ versions }}.</p>
</html>""")


def write_report(workspace: Workspace, answers: pd.DataFrame) -> Path:
    """Write `report.html` from `evaluation.json`, `training.json` and the answers (one column each is shown); returns its path."""
    curve = workspace.path / "loss_curve.png"
    settings = {n: workspace.read_json(f"{n}_settings.json") for n in ("lora", "train") if workspace.has(f"{n}_settings.json")}
    shown = answers.drop(columns="overlap", errors="ignore")
    page = _PAGE.render(
        e=workspace.read_json("evaluation.json"),
        training=workspace.read_json("training.json"),
        curve=base64.b64encode(curve.read_bytes()).decode() if curve.exists() else None,
        names=list(shown.columns),
        answers=list(shown.itertuples(index=False)),
        settings=settings,
        versions=stack_versions(),
    )
    return workspace.write_text("report.html", page)
