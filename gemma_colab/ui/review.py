"""A panel for what no check can decide: keep, edit or drop, one case at a time. Every click is saved at once; texts are escaped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

import ipywidgets as widgets

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import render
from gemma_colab.core.rows import Row, answer, place
from gemma_colab.core.workspace import Workspace
from gemma_colab.data.finding import Hit
from gemma_colab.data.looking import fingerprint, pieces, texts
from gemma_colab.data.report import FINDINGS, Report
from gemma_colab.data.review import REVIEW_CHECKS, Case, Review, find_cases
from gemma_colab.ui.common import Pages, button, text_area

CONTEXT = 60  # characters shown on each side of a span in the answer
BUTTONS = {"keep": ("Keep", "success"), "edit": ("Save edit", "info"), "drop": ("Drop", "danger")}
DONE = {"keep": ("kept", "#2e7d32"), "edit": ("edited", "#1565c0"), "drop": ("dropped", "#c62828")}
ALL_DECIDED = "Every click is saved; panel.review.apply(rows) makes the edits and leaves out what you dropped."


class _Card:
    """One row: what is said of it, its question, its answer, three buttons. Shown with row after row: no widget piles up."""

    def __init__(self, decide: Callable[[_Card, str], None]):
        self.row, self.shown = -1, ""
        self.head, self.question, self.answer = widgets.HTML(), widgets.HTML(), text_area(2)
        self.buttons = {action: button(text, partial(decide, self, action), style) for action, (text, style) in BUTTONS.items()}
        layout = {"flex": "1 1 360px", "max_width": "760px", "border": "1px solid #8886", "padding": "8px", "margin": "4px"}
        parts = [self.head, self.question, self.answer, widgets.HBox(list(self.buttons.values()))]
        self.widget = widgets.VBox(parts, layout=layout)


def _parts(row: Row, hits: list[Hit]):
    """Yield (name, pieces) of each turn of the question, and of what is hit in the answer; a piece is (text, marked?)."""
    for turn, (field, text) in zip(row["messages"], texts(row).items(), strict=True):
        spans = [(hit.start, hit.end or len(text)) for hit in hits if hit.field == field and (hit.end or field != "answer")]
        if field != "answer":
            yield turn["role"], pieces(text, spans, 0, len(text))
        elif spans:
            start, stop = max(0, min(spans)[0] - CONTEXT), max(end for _, end in spans) + CONTEXT
            near = pieces(text, spans, start, min(stop, len(text)))
            yield "in the answer", [("…" * (start > 0), False), *near, ("…" * (stop < len(text)), False)]


class ReviewPanel(Pages):
    """Rows that contradict, nearly repeat or stand out, one case at a time. `review` holds the decisions, in `review.json`.

    rows, report: from `check_rows(rows)`. checks: names of findings to look at, instead of `data.review.REVIEW_CHECKS`. A panel made
    again goes on at the first undecided case. Raises `SettingsError` for an unknown check, or a report about other rows.
    """

    def __init__(self, rows: list[Row], report: Report, workspace: Workspace, checks: Iterable[str] | None = None):
        checks = REVIEW_CHECKS if checks is None else tuple(checks)
        known = FINDINGS | {name.split(":")[0] for name in FINDINGS}
        if unknown := sorted(set(checks) - known):
            raise SettingsError(f"checks={unknown[0]!r} is not a finding; choose from {', '.join(sorted(known))}")
        if rows != report.rows:
            raise SettingsError("the report is about other rows than these; make it anew with check_rows(rows)")
        self.rows, self.review = rows, Review(workspace)
        self.cases, self._said = find_cases(rows, report, checks)
        super().__init__(len(self.cases))
        self._places = defaultdict(list)
        for i, row in enumerate(rows):
            self._places[fingerprint(row)].append(place(row, i))
        self.cards = [_Card(self._decide) for _ in range(max((len(case.rows) for case in self.cases), default=0))]
        self._box = widgets.HBox(layout={"flex_flow": "row wrap", "align_items": "stretch"})
        self.widget = widgets.VBox([self.bar, self.message, self._box] if self.cases else [self.message])
        if self.cases:
            self.go(self._undecided() or 0)
        else:
            self.say("Nothing to decide:", f"no row was hit by {', '.join(checks)}.")

    def fill(self) -> None:
        shown = self.cards[: len(self.cases[self.at].rows)]
        for card, row in zip(shown, self.cases[self.at].rows, strict=True):
            self._fill(card, row)
        self._box.children = [card.widget for card in shown]
        self._tell()

    def _fill(self, card: _Card, number: int) -> None:
        card.row, row, said = number, self.rows[number], self._said.get(number, [])
        where, *same = self._places[fingerprint(row)]
        if same:
            where += f" (the same text in {', '.join(same[:5])}{' ...' * (len(same) > 5)}: decided together)"
        notes = list(dict.fromkeys((check, hit.note) for check, hit in said)) or [("", "shown to compare")]
        decision = self.review.of(row)
        card.head.value = render("ui/review", "head", where, notes, *(DONE[decision["action"]] if decision else ()))
        turns = render("ui/common", "texts", list(_parts(row, [hit for _, hit in said])), "12em")
        card.question.value = turns + render("ui/common", "line", "", "answer")
        card.shown = card.answer.value = (decision or {}).get("new", {}).get("answer", answer(row))
        card.answer.rows = min(14, 2 + len(card.shown) // 50 + card.shown.count("\n"))

    def _decided(self, case: Case) -> bool:
        return all(self.review.of(self.rows[row]) for row in case.rows)

    def _undecided(self) -> int | None:
        """The next undecided case, from this one on and then from the first."""
        order = [*range(self.at, self.count), *range(self.at)]
        return next((n for n in order if not self._decided(self.cases[n])), None)

    def _decide(self, card: _Card, action: str) -> None:
        row, case, new = self.rows[card.row], self.cases[self.at], card.answer.value
        if action == "edit" and new == answer(row):
            return self.say("Nothing to save:", "the answer is as it was in the file. Change it first, or click Keep.")
        if action == "edit" and not new.strip():
            return self.say("Not saved:", "an empty answer teaches nothing. Write one, or click Drop.")
        if action == "keep" and new not in (card.shown, answer(row)):
            return self.say("Not saved:", "you changed this answer. Click Save edit; Next and Previous bring back the old one.")
        before, edit = self._decided(case), {"answer": new} if action == "edit" else None
        checks = dict.fromkeys(check for check, _ in self._said.get(card.row, []))
        if not self.done(self.review.decide, row, action, edit, why=", ".join(case.checks), checks=checks):
            return
        if not before and self._decided(case) and (following := self._undecided()) is not None:
            return self.go(following)
        self._fill(card, card.row)  # the other cards stay: somebody may be writing there
        self._tell()

    def _tell(self) -> None:
        case, numbers = self.cases[self.at], [row for case in self.cases for row in case.rows]
        done = sum(self.review.of(self.rows[row]) is not None for row in numbers)
        text = f"{', '.join(case.checks)}. Rows: {done} of {len(numbers)} decided."
        self.place.value = render("ui/common", "line", f"Case {self.at + 1} of {self.count}:", text)
        self.say("All decided.", ALL_DECIDED) if done == len(numbers) else self.say("")
