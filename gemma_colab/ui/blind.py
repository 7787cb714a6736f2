"""A panel to compare two answers without knowing whose they are. Every choice is saved at once; texts are escaped.

Names reach the browser only when the mapping is opened.
"""

from functools import partial

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML

from gemma_colab.core.html import render
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation.blind import CHOICES, BlindReview
from gemma_colab.ui.common import Pages, button, entry_line, text_area

SAID = dict(zip(CHOICES, ("Left is better", "Right is better", "The same", "Both bad"), strict=True))
KEYS = {str(i): choice for i, choice in enumerate(CHOICES, 1)}
HINT = "1 to 4 and Enter chooses, Enter alone goes on, 0 and Enter goes back"
MEANT = {"correct": "what it says is right", "tone": "it sounds as it should", "format": "length and form are as wanted"}
WRAP = {"flex_flow": "row wrap", "align_items": "stretch"}


def blind_result(summary: dict, *, below: bool = False) -> HTML:
    """What a review came to, from `BlindReview.summary()`: the sentence, a bar of the counts, and the rubric.

    below: whether the rows with the names are shown under it.
    """
    base, tuned = summary["pair"]
    if not summary["opened"]:
        return HTML(render("ui/common", "line", "", summary["sentence"]))
    counts = {f"{tuned} better": ("wins", "#2e9d4e"), "the same": ("ties", "#9a9fa6"), "both bad": ("both_bad", "#6d5a7a")}
    counts[f"{base} better"] = ("losses", "#d9822b")
    parts = [(f"{text} {summary[name]}", summary[name], color) for text, (name, color) in counts.items()]
    return HTML(render("ui/blind", "result", summary, parts, below))


def _texts(parts: list[tuple[str, str]], height: str) -> str:
    return render("ui/common", "texts", [(name, [(text, False)] if text else []) for name, text in parts], height)


class BlindPanel(Pages):
    """Two answers to a question, left and right, without names; four choices, marks and notes. `review` holds what was decided.

    The arguments are those of `BlindReview`. A panel made again goes on at the first undecided row. Marks and notes are saved
    when they are made, the choice goes on to the next row. "Show the names" ends the review and shows the win rate.
    """

    def __init__(self, answers: pd.DataFrame, workspace: Workspace, pair: tuple[str, str] = ("base", "tuned"), **draw):
        self.review = BlindReview(answers, workspace, pair, **draw)
        super().__init__(len(self.review.rows))
        self._sure, self.marks = False, {}
        self.question = widgets.HTML(layout={"margin": "2px 6px"})
        self.texts = {side: widgets.HTML() for side in ("left", "right")}
        cards = widgets.HBox([self._card(side, text) for side, text in self.texts.items()], layout=WRAP)
        self.notes = text_area(2, "Notes (optional)", margin="4px")
        self.notes.observe(lambda change: self._save("notes", change["new"]), names="value")
        names = {choice: f"{key}  {SAID[choice]}" for key, choice in KEYS.items()}
        self.buttons = {one: button(name, partial(self.choose, one), flex="1 1 130px") for one, name in names.items()}
        choices = widgets.HBox(list(self.buttons.values()), layout=WRAP | {"margin": "2px"})
        self.keys = entry_line(self._typed, HINT, margin="4px")
        self.show = button("Show the names", self._open, align_self="flex-start", margin="4px")
        self._to_read = [self.bar, self.question, cards, self.notes]
        parts = [*self._to_read, choices, self.keys, self.message, self.show]
        self.widget = widgets.VBox(parts if self.count else [self.message], layout={"max_width": "1000px"})
        if self.count:
            self.go(self.review.undecided() or 0)
            self._show_result()
        else:
            self.say("Nothing to compare:", self.review.summary()["sentence"])

    def _card(self, side: str, text: widgets.HTML) -> widgets.VBox:
        """One answer and its marks."""
        lines = []
        for name, meant in MEANT.items():
            label = widgets.HTML(render("ui/common", "line", name, meant), layout={"flex": "1 1 auto", "margin": "0"})
            layout = {"flex": "0 0 auto", "width": "auto", "margin": "0"}
            mark = self.marks[f"{side}_{name}"] = widgets.ToggleButtons(options=["yes", "no"], value=None, layout=layout)
            mark.style.button_width = "46px"
            mark.observe(lambda change, field=f"{side}_{name}": self._save(field, change["new"] or ""), names="value")
            lines.append(widgets.HBox([label, mark], layout={"align_items": "center", "margin": "0"}))
        layout = {"flex": "1 1 340px", "border": "1px solid #8886", "padding": "8px", "margin": "4px"}
        rubric = widgets.VBox(lines, layout={"margin": "10px 0 0"})
        return widgets.VBox([text, rubric], layout=layout | {"justify_content": "space-between"})

    def fill(self) -> None:
        review, row, said = self.review, self.review.rows[self.at], self.review.of(self.at)
        names = review.names(self.at)
        parts = [("question", row.question)] + [("the right answer", row.wanted)] * bool(row.wanted)
        self.question.value = _texts(parts, "12em")
        for side, text in self.texts.items():
            text.value = _texts([(names[side], getattr(row, side))], "22em")
        for field, mark in self.marks.items():
            mark.value = said[field] or None
        self.notes.value = said["notes"]
        for choice, one in self.buttons.items():
            one.button_style = "info" if said["choice"] == choice else ""
        chosen = f"; you chose: {SAID[said['choice']].lower()}" if said["choice"] else ""
        self.place.value = render("ui/common", "line", f"Row {self.at + 1} of {self.count}:", f"{review.decided} decided{chosen}")

    def choose(self, choice: str) -> None:
        """Save this choice for the row shown, and go on to the next undecided one."""
        before = self.review.of(self.at)["choice"]
        if not self._save("choice", choice):
            return
        following = self.review.undecided(self.at)
        if not before and following is not None:
            return self.go(following)
        self.fill()
        if following is None:
            self.say("All decided.", "Show the names to see who won.")
        else:
            self.say("Changed to:", f"{SAID[choice].lower()}.")

    def _save(self, field: str, value: str) -> bool:
        if self.review.of(self.at)[field] == value:  # as `fill` shows it
            return True
        saved = self.done(self.review.decide, self.at, **{field: value})
        if saved:
            self._sure = False
        elif field != "notes":  # what somebody wrote stays; a button goes back to what is saved
            self.fill()
        return saved

    def _typed(self, text: str) -> None:
        key = text.split()[-1] if text else ""
        if key in ("", "0"):
            self.go(self.at + (1 if key == "" else -1))
        elif key in KEYS:
            self.choose(KEYS[key])
        else:
            self.say("Not known:", f"{text[:20]!r}; {HINT}.")

    def _open(self) -> None:
        review, left = self.review, self.count - self.review.decided
        if left and review.decided and not self._sure and not review.opened:
            self._sure = True
            some = f"{left} row{'s are' if left > 1 else ' is'} undecided. Who knows the names is not blind any more"
            return self.say("Sure?", f"{some}, so this ends the review. Click once more to do it.")
        if self.done(review.open_mapping, failed="Still hidden:"):
            self.go(self.at)
            self._show_result()

    def _show_result(self) -> None:
        """Once the names are known nothing can be decided any more: the result on top, the rows below to read."""
        if self.review.opened:
            result = widgets.HTML(blind_result(self.review.summary(), below=True).data)
            for one in (*self.marks.values(), self.notes):
                one.disabled = True
            self.widget.children = [result, *self._to_read]
