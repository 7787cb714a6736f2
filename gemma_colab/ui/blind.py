"""A panel to compare two answers without knowing whose they are. Every choice is saved at once.

Only widgets that ipywidgets 7.7 (Colab) and 8 share are used, no JavaScript, and texts of rows are escaped. Names reach the
browser only when the mapping is opened.
"""

from __future__ import annotations

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from gemma_colab.core.errors import GemmaColabError
from gemma_colab.core.html import ENVIRONMENT
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation.blind import CHOICES, BlindReview, percent
from gemma_colab.ui.entry import entry_line

BUTTONS = dict(zip(CHOICES, ("1  Left is better", "2  Right is better", "3  The same", "4  Both bad"), strict=True))
SAID = dict(zip(CHOICES, ("left is better", "right is better", "the same", "both bad"), strict=True))
KEYS = {str(i): choice for i, choice in enumerate(CHOICES, 1)}
HINT = "1 to 4 and Enter chooses, Enter alone goes on, 0 and Enter goes back"
MEANT = {"correct": "what it says is right", "tone": "it sounds as it should", "format": "length and form are as wanted"}
COLOURS = {"wins": "#2e9d4e", "ties": "#9a9fa6", "both_bad": "#6d5a7a", "losses": "#d9822b"}

_LINE = ENVIRONMENT.from_string('<div style="line-height:1.5">{% if bold %}<b>{{ bold }}</b> {% endif %}{{ text }}</div>')
_PLACE = ENVIRONMENT.from_string(
    """<div style="line-height:1.5"><b>{{ place }}</b> <span style="opacity:.7">{{ done }}</span>
{% if chosen %} <span style="background:#1565c0; color:#fff; border-radius:3px; padding:1px 6px">{{ chosen }}</span>{% endif %}</div>"""
)
_TEXT = ENVIRONMENT.from_string(
    """<div style="line-height:1.45">{% for name, text in parts %}
<div style="opacity:.65; margin-top:{{ 0 if loop.first else 6 }}px">{{ name }}</div>
<div style="white-space:pre-wrap; overflow-wrap:anywhere; max-height:{{ height }}; overflow:auto">
{%- if text %}{{ text }}{% else %}<i style="opacity:.65">(empty)</i>{% endif -%}
</div>{% endfor %}</div>"""
)
_MARK = ENVIRONMENT.from_string('<div style="line-height:1.4">{{ name }} <span style="opacity:.65">{{ meant }}</span></div>')
_RESULT = ENVIRONMENT.from_string(
    """<div style="line-height:1.5; margin-bottom:8px; border-bottom:1px solid #8886; padding-bottom:8px">
<div><b>Verdict: {{ s.verdict }}.</b> {{ s.sentence }}</div>
<div style="display:flex; height:22px; border-radius:4px; overflow:hidden; margin:8px 0 4px" role="img" aria-label="{{ label }}">
{% for name, text, count in parts %}{% if count %}<span style="flex:{{ count }} 0 0; background:{{ colours[name] }}" title="{{ text }}: {{ count }}"></span>{% endif %}{% endfor %}
</div>
<div>{% for name, text, count in parts %}<span style="margin-right:16px; white-space:nowrap"><span style="display:inline-block; width:11px; height:11px; border-radius:2px; background:{{ colours[name] }}"></span> {{ text }} {{ count }}</span> {% endfor %}</div>
{% if s.rubric %}<table style="border-collapse:collapse; margin-top:8px"><tr>
{% for head in ['marked “yes”'] + s.pair + ['rows'] %}<th style="text-align:left; padding:2px 14px 2px 0; border-bottom:1px solid #888">{{ head }}</th>{% endfor %}</tr>
{% for name, line in s.rubric.items() %}<tr><td style="text-align:left; padding:2px 14px 2px 0">{{ name }}</td>
{% for who in s.pair %}<td style="text-align:left; padding:2px 14px 2px 0">{{ percent(line[who]) }}</td>{% endfor %}
<td style="text-align:left; padding:2px 14px 2px 0">{{ line.rows }}</td></tr>{% endfor %}</table>{% endif %}
<div style="opacity:.7; margin-top:6px">The left answer was preferred in {{ s.left_chosen }} of {{ s.wins + s.losses }} rows.{% if below %} Below, the rows with the names.{% endif %}</div>
</div>"""
)


def blind_result(summary: dict, *, below: bool = False) -> HTML:
    """What a review came to, from `BlindReview.summary()`: the sentence, a bar of the counts, and the rubric.

    below: whether the rows with the names are shown under it.
    """
    base, tuned = summary["pair"]
    if not summary["opened"]:
        return HTML(_LINE.render(text=summary["sentence"]))
    parts = [("wins", f"{tuned} better", summary["wins"]), ("ties", "the same", summary["ties"])]
    parts += [("both_bad", "both bad", summary["both_bad"]), ("losses", f"{base} better", summary["losses"])]
    label = ", ".join(f"{text}: {count}" for _, text, count in parts)
    return HTML(_RESULT.render(s=summary, parts=parts, label=label, colours=COLOURS, percent=percent, below=below))


class _Side:
    """One answer, left or right, with its marks."""

    def __init__(self, side: str, mark):
        self.side, self.text, self.marks, lines = side, widgets.HTML(), {}, []
        for name, meant in MEANT.items():
            label = widgets.HTML(_MARK.render(name=name, meant=meant), layout={"flex": "1 1 auto", "margin": "0"})
            buttons = widgets.ToggleButtons(options=["yes", "no"], value=None)
            buttons.layout = {"flex": "0 0 auto", "width": "auto", "margin": "0"}
            buttons.style.button_width = "46px"
            buttons.observe(lambda change, name=name: mark(f"{side}_{name}", change["new"] or ""), names="value")
            self.marks[name] = buttons
            lines.append(widgets.HBox([label, buttons], layout={"align_items": "center", "margin": "0"}))
        rubric = widgets.VBox(lines, layout={"margin": "10px 0 0"})
        layout = {
            "flex": "1 1 340px",
            "border": "1px solid #8886",
            "padding": "8px",
            "margin": "4px",
            "justify_content": "space-between",
        }
        self.widget = widgets.VBox([self.text, rubric], layout=layout)

    def fill(self, text: str, said: dict[str, str], name: str) -> None:
        self.text.value = _TEXT.render(parts=[(name, text)], height="22em")
        for mark, buttons in self.marks.items():
            buttons.value = said[f"{self.side}_{mark}"] or None


class BlindPanel:
    """Two answers to a question, left and right, without names; four choices, marks and notes. `review` holds what was decided.

    The arguments are those of `BlindReview`. A panel made again goes on at the first undecided row. Marks and notes are saved
    when they are made, the choice goes on to the next row. "Show the names" ends the review and shows the win rate.
    """

    def __init__(
        self,
        answers: pd.DataFrame,
        workspace: Workspace,
        pair: tuple[str, str] = ("base", "tuned"),
        *,
        rows: int | None = None,
        seed: int | None = None,
    ):
        self.review = BlindReview(answers, workspace, pair, rows=rows, seed=seed)
        self.at, self._filling, self._sure = 0, False, False
        self.place, self.question, self.message, self.result = (widgets.HTML(layout={"margin": "2px 6px"}) for _ in range(4))
        auto = {"width": "auto"}
        self.previous, self.next = (widgets.Button(description=text, layout=auto) for text in ("Previous", "Next"))
        self.previous.on_click(lambda _: self.go(self.at - 1))
        self.next.on_click(lambda _: self.go(self.at + 1))
        self.sides = {side: _Side(side, self._save) for side in ("left", "right")}
        # Sent when the field is left: sent with every key, the last letters could arrive after the click on a button.
        self.notes = widgets.Textarea(
            placeholder="Notes (optional)", rows=2, continuous_update=False, layout={"width": "auto", "margin": "4px"}
        )
        self.notes.observe(lambda change: self._save("notes", change["new"]), names="value")
        self.buttons = {}
        for choice, text in BUTTONS.items():
            self.buttons[choice] = widgets.Button(description=text, layout={"width": "auto", "flex": "1 1 130px"})
            self.buttons[choice].on_click(lambda _, choice=choice: self.choose(choice))
        self.keys = entry_line(self._typed, HINT, width="auto", margin="4px")
        self.show = widgets.Button(description="Show the names", layout=auto | {"align_self": "flex-start", "margin": "4px"})
        self.show.on_click(lambda _: self._open())
        wrap = {"flex_flow": "row wrap", "align_items": "stretch"}
        self._bar = widgets.HBox([self.previous, self.next, self.place], layout={"align_items": "center"})
        self._cards = widgets.HBox([side.widget for side in self.sides.values()], layout=wrap)
        choices = widgets.HBox(list(self.buttons.values()), layout=wrap | {"margin": "2px"})
        parts = [self._bar, self.question, self._cards, self.notes, choices, self.keys, self.message, self.show]
        self.widget = widgets.VBox(parts if self.review.rows else [self.message], layout={"max_width": "1000px"})
        if self.review.rows:
            self.go(self.review.undecided() or 0)
            self._show_result()
        else:
            self._say("Nothing to compare:", self.review.summary()["sentence"])

    def go(self, at: int) -> None:
        """Show this row (from 0); beyond the ends, the first or last one."""
        self.at = min(max(at, 0), len(self.review.rows) - 1)
        self._fill()
        self._say("", "")

    def _fill(self) -> None:
        review, row = self.review, self.review.rows[self.at]
        said, texts = review.of(self.at), {"left": row.left, "right": row.right}
        names = {"left": "left", "right": "right"}
        if review.opened:
            left = review.left(self.at)
            names = {"left": f"left: {left}", "right": f"right: {review.pair[left == review.pair[0]]}"}
        self._filling = True  # what is set here came from the file
        try:
            parts = [("question", row.question)] + [("the wanted answer", row.wanted)] * bool(row.wanted)
            self.question.value = _TEXT.render(parts=parts, height="12em")
            for side, card in self.sides.items():
                card.fill(texts[side], said, names[side])
            self.notes.value = said["notes"]
        finally:
            self._filling = False
        for choice, button in self.buttons.items():
            button.button_style = "info" if said["choice"] == choice else ""
        self.previous.disabled, self.next.disabled = self.at == 0, self.at == len(review.rows) - 1
        self.place.value = _PLACE.render(
            place=f"Row {self.at + 1} of {len(review.rows)}",
            done=f"{review.decided} decided",
            chosen=f"you chose: {SAID[said['choice']]}" if said["choice"] else "",
        )

    def choose(self, choice: str) -> None:
        """Save this choice for the row shown, and go on to the next undecided one."""
        before = self.review.of(self.at)["choice"]
        if not self._save("choice", choice):
            return
        following = self.review.undecided(self.at)
        if not before and following is not None:
            return self.go(following)
        self._fill()
        if following is None:
            self._say("All decided.", "Show the names to see who won.")
        else:
            self._say("Changed to:", f"{SAID[choice]}.")

    def _save(self, name: str, value: str) -> bool:
        if self._filling:
            return False
        try:
            self.review.decide(self.at, **{name: value})
        except (GemmaColabError, OSError) as e:  # raised in a click it would only reach the log
            if name != "notes":  # what somebody wrote stays; a button goes back to what is saved
                self._fill()
            self._say("Not saved:", str(e))
            return False
        self._sure = False
        return True

    def _typed(self, text: str) -> None:
        if not text:
            return self.go(self.at + 1)
        key = text.split()[-1]
        if key == "0":
            return self.go(self.at - 1)
        if key not in KEYS:
            return self._say("Not known:", f"{text[:20]!r}; {HINT}.")
        self.choose(KEYS[key])

    def _open(self) -> None:
        review = self.review
        left = len(review.rows) - review.decided
        if left and review.decided and not self._sure and not review.opened:
            self._sure = True
            some = f"{left} row{'s are' if left > 1 else ' is'} undecided. Who knows the names is not blind any more"
            return self._say("Sure?", f"{some}, so this ends the review. Click once more to do it.")
        try:
            review.open_mapping()
        except (GemmaColabError, OSError) as e:
            return self._say("Still hidden:", str(e))
        self._fill()
        self._show_result()
        self._say("", "")

    def _show_result(self) -> None:
        if not self.review.opened:
            return
        self.result.value = blind_result(self.review.summary(), below=True).data
        for buttons in (buttons for side in self.sides.values() for buttons in side.marks.values()):
            buttons.disabled = True
        self.notes.disabled = True
        # Nothing more to decide: the result on top, the rows below to read.
        self.widget.children = [self.result, self._bar, self.question, self._cards, self.notes]

    def _say(self, bold: str, text: str) -> None:
        self.message.value = _LINE.render(bold=bold, text=text) if bold else ""

    def _ipython_display_(self):
        display(self.widget)
