"""A panel to compare two answers without knowing whose they are. Every choice is saved at once; texts are escaped.

Names reach the browser only when the mapping is opened.
"""

from __future__ import annotations

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML

from gemma_colab.core.errors import GemmaColabError
from gemma_colab.core.html import render
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation.blind import CHOICES, BlindReview, percent
from gemma_colab.ui.common import Panel, button, entry_line, text_area

BUTTONS = dict(zip(CHOICES, ("1  Left is better", "2  Right is better", "3  The same", "4  Both bad"), strict=True))
SAID = dict(zip(CHOICES, ("left is better", "right is better", "the same", "both bad"), strict=True))
KEYS = {str(i): choice for i, choice in enumerate(CHOICES, 1)}
HINT = "1 to 4 and Enter chooses, Enter alone goes on, 0 and Enter goes back"
MEANT = {"correct": "what it says is right", "tone": "it sounds as it should", "format": "length and form are as wanted"}
TEMPLATE = "ui/blind"


def blind_result(summary: dict, *, below: bool = False) -> HTML:
    """What a review came to, from `BlindReview.summary()`: the sentence, a bar of the counts, and the rubric.

    below: whether the rows with the names are shown under it.
    """
    base, tuned = summary["pair"]
    if not summary["opened"]:
        return HTML(render("ui/common", "line", "", summary["sentence"]))
    named = {"wins": (f"{tuned} better", "#2e9d4e"), "ties": ("the same", "#9a9fa6"), "both_bad": ("both bad", "#6d5a7a")}
    named["losses"] = (f"{base} better", "#d9822b")
    parts = [(text, summary[name], color) for name, (text, color) in named.items()]
    label = ", ".join(f"{text}: {count}" for text, count, _ in parts)
    return HTML(render(TEMPLATE, "result", summary, parts, label, percent, below))


class _Side:
    """One answer, left or right, with its marks."""

    def __init__(self, side: str, mark):
        self.side, self.text, self.marks, lines = side, widgets.HTML(), {}, []
        for name, meant in MEANT.items():
            label = widgets.HTML(render(TEMPLATE, "mark", name, meant), layout={"flex": "1 1 auto", "margin": "0"})
            layout = {"flex": "0 0 auto", "width": "auto", "margin": "0"}
            self.marks[name] = widgets.ToggleButtons(options=["yes", "no"], value=None, layout=layout)
            self.marks[name].style.button_width = "46px"
            self.marks[name].observe(lambda change, name=name: mark(f"{side}_{name}", change["new"] or ""), names="value")
            lines.append(widgets.HBox([label, self.marks[name]], layout={"align_items": "center", "margin": "0"}))
        layout = {"flex": "1 1 340px", "border": "1px solid #8886", "padding": "8px", "margin": "4px"}
        rubric = widgets.VBox(lines, layout={"margin": "10px 0 0"})
        self.widget = widgets.VBox([self.text, rubric], layout=layout | {"justify_content": "space-between"})

    def fill(self, text: str, said: dict[str, str], name: str) -> None:
        self.text.value = render(TEMPLATE, "text", [(name, text)], "22em")
        for mark, buttons in self.marks.items():
            buttons.value = said[f"{self.side}_{mark}"] or None


class BlindPanel(Panel):
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
        self.previous, self.next = button("Previous", lambda: self.go(self.at - 1)), button("Next", lambda: self.go(self.at + 1))
        self.sides = {side: _Side(side, self._save) for side in ("left", "right")}
        self.notes = text_area(2, "Notes (optional)", margin="4px")
        self.notes.observe(lambda change: self._save("notes", change["new"]), names="value")
        self.buttons = {
            choice: button(text, lambda choice=choice: self.choose(choice), flex="1 1 130px") for choice, text in BUTTONS.items()
        }
        self.keys = entry_line(self._typed, HINT, width="auto", margin="4px")
        self.show = button("Show the names", self._open, align_self="flex-start", margin="4px")
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
            self.say("Nothing to compare:", self.review.summary()["sentence"])

    def go(self, at: int) -> None:
        """Show this row (from 0); beyond the ends, the first or last one."""
        self.at = min(max(at, 0), len(self.review.rows) - 1)
        self._fill()
        self.say("")

    def _fill(self) -> None:
        review, row = self.review, self.review.rows[self.at]
        said, names = review.of(self.at), {"left": "left", "right": "right"}
        if review.opened:
            left = review.left(self.at)
            names = {"left": f"left: {left}", "right": f"right: {review.pair[left == review.pair[0]]}"}
        self._filling = True  # what is set here came from the file
        try:
            parts = [("question", row.question)] + [("the right answer", row.wanted)] * bool(row.wanted)
            self.question.value = render(TEMPLATE, "text", parts, "12em")
            for side, card in self.sides.items():
                card.fill(getattr(row, side), said, names[side])
            self.notes.value = said["notes"]
        finally:
            self._filling = False
        for choice, one in self.buttons.items():
            one.button_style = "info" if said["choice"] == choice else ""
        self.previous.disabled, self.next.disabled = self.at == 0, self.at == len(review.rows) - 1
        chosen = f"you chose: {SAID[said['choice']]}" if said["choice"] else ""
        self.place.value = render(
            TEMPLATE, "place", f"Row {self.at + 1} of {len(review.rows)}", f"{review.decided} decided", chosen
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
            self.say("All decided.", "Show the names to see who won.")
        else:
            self.say("Changed to:", f"{SAID[choice]}.")

    def _save(self, name: str, value: str) -> bool:
        if self._filling:
            return False
        try:
            self.review.decide(self.at, **{name: value})
        except (GemmaColabError, OSError) as e:  # raised in a click it would only reach the log
            if name != "notes":  # what somebody wrote stays; a button goes back to what is saved
                self._fill()
            self.say("Not saved:", str(e))
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
            return self.say("Not known:", f"{text[:20]!r}; {HINT}.")
        self.choose(KEYS[key])

    def _open(self) -> None:
        review = self.review
        left = len(review.rows) - review.decided
        if left and review.decided and not self._sure and not review.opened:
            self._sure = True
            some = f"{left} row{'s are' if left > 1 else ' is'} undecided. Who knows the names is not blind any more"
            return self.say("Sure?", f"{some}, so this ends the review. Click once more to do it.")
        try:
            review.open_mapping()
        except (GemmaColabError, OSError) as e:
            return self.say("Still hidden:", str(e))
        self._fill()
        self._show_result()
        self.say("")

    def _show_result(self) -> None:
        if not self.review.opened:
            return
        self.result.value = blind_result(self.review.summary(), below=True).data
        for buttons in (buttons for side in self.sides.values() for buttons in side.marks.values()):
            buttons.disabled = True
        self.notes.disabled = True
        # Nothing more to decide: the result on top, the rows below to read.
        self.widget.children = [self.result, self._bar, self.question, self._cards, self.notes]
