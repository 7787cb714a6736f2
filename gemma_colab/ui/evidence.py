"""Comparisons and answers to look at: intervals as bars, answers side by side with what they share marked. Texts are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from gemma_colab.core.html import ENVIRONMENT

GOOD, BAD, UNCLEAR = "#2e9d4e", "#d64545", "#8a8f98"
ORDERS = ("worst", "random", "best", "as they come")

_COMPARISON = ENVIRONMENT.from_string(
    """<table class="evidence" style="text-align:left; border-collapse:collapse">
<tr>{% for name in ("", "rows", before, after, "difference", "95 % interval", "", "better / same / worse", "clear?") %}
<th style="text-align:left; padding:4px 10px; border-bottom:1px solid #8888">{{ name }}</th>{% endfor %}</tr>
{% for line in lines %}<tr>
<td style="text-align:left; padding:4px 10px">{{ line.metric }}{% if line.better == "lower" %} <span style="opacity:.6">(lower is better)</span>{% endif %}</td>
{% for text in (line.rows, "%.3f" | format(line.before), "%.3f" | format(line.after), "%+.3f" | format(line.difference), "%+.3f to %+.3f" | format(line.low, line.high)) %}
<td style="text-align:right; padding:4px 10px; white-space:nowrap; font-variant-numeric:tabular-nums">{{ text }}</td>{% endfor %}
<td style="padding:4px 10px"><svg width="122" height="14" viewBox="-61 0 122 14" role="img" aria-label="interval against zero">
<line x1="0" x2="0" y1="0" y2="14" stroke="currentColor" opacity=".4"/><line x1="{{ line.x1 }}" x2="{{ line.x2 }}" y1="7" y2="7" stroke="{{ line.colour }}" stroke-width="4"/>
<circle cx="{{ line.x }}" cy="7" r="4" fill="{{ line.colour }}"/></svg></td>
<td style="text-align:right; padding:4px 10px; white-space:nowrap">{{ line.wins }} / {{ line.ties }} / {{ line.losses }}</td>
<td style="text-align:left; padding:4px 10px; color:{{ line.colour }}; white-space:nowrap">{{ line.word }}</td></tr>
{% endfor %}</table>"""
)

_ANSWERS = ENVIRONMENT.from_string(
    """<table class="answers" style="text-align:left; border-collapse:collapse; width:100%">
<tr>{% for name in names %}<th style="text-align:left; padding:4px 10px; border-bottom:1px solid #8888">{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}
<td style="text-align:left; vertical-align:top; padding:6px 10px; white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.4; border-bottom:1px solid #8883; width:{{ width }}%">
{%- for text, shared in cell %}{% if shared %}<span style="background:#2e9d4e55; border-radius:2px">{{ text }}</span>{% else %}{{ text }}{% endif %}{% endfor -%}
</td>{% endfor %}</tr>{% endfor %}</table>
<div style="opacity:.7; margin-top:4px"><span style="background:#2e9d4e55">marked</span>: words that stand in the right answer too, in this order</div>"""
)


def comparison_table(table: pd.DataFrame, before: str = "base", after: str = "tuned") -> HTML:
    """A table of `evaluation.compare`, each interval drawn as a bar beside zero: green is clearly better, red clearly worse, grey
    not clear, or only perhaps. The bars of one table share a scale, those of losses have their own."""
    lines, scales = table.to_dict("records"), {}
    for line in lines:
        kind = line["metric"].startswith("loss")
        ends = [abs(x) for x in (line["low"], line["high"]) if x == x]  # none where a score is no number
        scales[kind] = max(scales.get(kind, 1e-9), *ends, 1e-9)
    for line in lines:
        scale = 58 / scales[line["metric"].startswith("loss")]
        line["x1"], line["x"], line["x2"] = (
            round(line[name] * scale, 1) if line[name] == line[name] else 0 for name in ("low", "difference", "high")
        )
        good = (line["difference"] < 0) == (line["better"] == "lower")
        clear = line["clear"] == "yes"
        maybe = line["clear"] == "perhaps"
        line["colour"] = (GOOD if good else BAD) if clear else UNCLEAR
        line["word"] = f"{line['clear']}, {'better' if good else 'worse'}" if clear or maybe else line["clear"]
        if line["p"] is not None and line["p"] == line["p"]:  # McNemar's, for yes/no scores
            line["word"] += f" (p {line['p']:.2f})" if line["p"] >= 0.005 else " (p < 0.01)"
    return HTML(_COMPARISON.render(lines=lines, before=before, after=after))


def contestants_table(summary: dict) -> pd.DataFrame:
    """One line a measure: how each contestant did on the same test rows, and how far tuned is from few-shot with its 95 % interval
    (from base, where few-shot did not play). "always the same" is one answer to every question, each field's most frequent value.
    summary: of `assess.summarise`."""
    base = {line["metric"]: line for line in summary["tuned_against_base"]}
    few = {line["metric"]: line for line in summary["tuned_against_few_shot"]}
    same = summary.get("always_the_same") or {}
    lines = {}
    for name, line in base.items():
        against = few.get(name, line)
        lines[name] = {"always the same": same.get(name)} if same else {}
        lines[name] |= {"base": line["before"], **({"few-shot": against["before"]} if few else {}), "tuned": line["after"]}
        lines[name] = {who: "" if value is None else f"{value:.2f}" for who, value in lines[name].items()}
        lines[name][f"tuned − {'few-shot' if few else 'base'} (95 %)"] = (
            f"{against['difference']:+.2f} ({against['low']:+.2f} to {against['high']:+.2f})"
        )
    return pd.DataFrame(lines).T


def shared_words(text: str, reference: str) -> list[tuple[str, bool]]:
    """`text` cut into pieces: (piece, whether its words stand in the reference too, in the same order)."""
    parts = [re.findall(r"\w+|\W+", t) for t in (text, reference)]
    folded = [[p.lower().replace("ё", "е") for p in part] for part in parts]
    spans = SequenceMatcher(None, *folded, autojunk=False).get_matching_blocks()
    shared = {i for block in spans for i in range(block.a, block.a + block.size)}
    pieces: list[tuple[str, bool]] = []
    for i, part in enumerate(parts[0]):
        mark = i in shared and (part[0].isalnum() or bool(pieces and pieces[-1][1] and i + 1 in shared))
        if pieces and pieces[-1][1] == mark:
            pieces[-1] = (pieces[-1][0] + part, mark)
        else:
            pieces.append((part, mark))
    return pieces


def side_by_side(table: pd.DataFrame, columns: Sequence[str] = ("base", "few-shot", "tuned"), wanted: str = "wanted") -> HTML:
    """Question, right answer and the answers of each contestant in a row; the words that an answer shares with the right one are
    marked. table: columns "question", `wanted` and `columns` (those that are missing are left out)."""
    columns = [name for name in columns if name in table]
    rows = []
    for row in table.to_dict("records"):
        plain = [[(str(row[name]), False)] for name in ("question", wanted)]
        rows.append(plain + [shared_words(str(row[name]), str(row[wanted])) for name in columns])
    names = ["question", "right answer", *columns]
    return HTML(_ANSWERS.render(names=names, rows=rows, width=100 // len(names)))


def pick(table: pd.DataFrame, order: str, n: int = 5, by: str = "token F1", seed: int = 0) -> pd.DataFrame:
    """`n` rows: the worst or the best by the score in column `by`, some at random, or the first."""
    if order == "random":
        return table.sample(min(n, len(table)), random_state=seed)
    if order == "as they come" or by not in table:
        return table.head(n)
    return table.sort_values(by, ascending=order == "worst", kind="stable").head(n)


class ReadingPanel:
    """Choose which answers to read: worst, best, random; of one label; with one sign of ill health. Shows `n` at a time.

    table: as `side_by_side` takes it, with a column of scores `by`, and if there are any: "label", and "signs", the names of
    `evaluation.health.SIGNS` that the tuned answer shows, separated by commas.
    """

    def __init__(self, table: pd.DataFrame, by: str = "token F1", n: int = 4):
        self.table, self.by, self.n = table, by, n
        style = {"description_width": "initial"}
        labels = sorted(set(table.get("label", pd.Series(dtype=str)).dropna().astype(str)))
        signs = sorted({s for text in table.get("signs", pd.Series(dtype=str)).dropna() for s in str(text).split(", ") if s})
        self.order = widgets.Dropdown(options=ORDERS, description="show", style=style)
        self.label = widgets.Dropdown(options=["all", *labels], description="label", style=style)
        self.sign = widgets.Dropdown(options=["any", *signs], description="sign", style=style)
        self.more = widgets.Button(description=f"next {n}")
        self.count, self.shown = widgets.HTML(), widgets.HTML()
        self.at = 0
        for control in (self.order, self.label, self.sign):
            control.observe(lambda change: self.show(0), names="value")
        self.more.on_click(lambda button: self.show(self.at + self.n))
        used = [self.order, *[self.label] * bool(labels), *[self.sign] * bool(signs), self.more, self.count]
        self.widget = widgets.VBox([widgets.HBox(used, layout={"flex_flow": "row wrap"}), self.shown])
        self.show(0)

    def chosen(self) -> pd.DataFrame:
        """All rows that the controls let through, in their order."""
        table = self.table
        if self.label.value != "all":
            table = table[table["label"].astype(str) == self.label.value]
        if self.sign.value != "any":
            table = table[[self.sign.value in str(text).split(", ") for text in table["signs"]]]
        return pick(table, self.order.value, len(table), self.by)

    def show(self, at: int) -> None:
        rows = self.chosen()
        self.at = at if at < len(rows) else 0
        part = rows.iloc[self.at : self.at + self.n]
        first = self.at + 1 if len(rows) else 0
        self.count.value = f"&nbsp;{first}–{self.at + len(part)} of {len(rows)}"
        self.shown.value = side_by_side(part).data

    def _ipython_display_(self):
        display(self.widget)
