"""What the panels share. Works alike with ipywidgets 7.7 (Colab) and 8, without JavaScript."""

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display

from gemma_colab.core.errors import GemmaColabError
from gemma_colab.core.html import render


class Panel:
    """`widget` is what a notebook shows; `message` a line in it."""

    def say(self, bold: str, text: str = "", color: str = "") -> None:
        """Put this into the message line, escaped."""
        self.message.value = render("ui/common", "line", bold, text, color) if bold or text else ""

    def done(self, act: Callable, *args, failed: str = "Not saved:", **named) -> bool:
        """Call act, and say why it failed if it does: an error raised in a click would only reach the log."""
        try:
            act(*args, **named)
        except (GemmaColabError, OSError) as e:
            self.say(failed, str(e))
            return False
        return True

    def _ipython_display_(self):
        display(self.widget)


class Pages(Panel):
    """One of `count` things at a time, in turn. `fill` shows the one that `at` (from 0) points to."""

    def __init__(self, count: int):
        self.at, self.count = 0, count
        self.message, self.place = (widgets.HTML(layout={"margin": "2px 6px"}) for _ in range(2))
        self.previous, self.next = button("Previous", lambda: self.go(self.at - 1)), button("Next", lambda: self.go(self.at + 1))
        self.bar = widgets.HBox([self.previous, self.next, self.place], layout={"align_items": "center"})

    def go(self, at: int) -> None:
        """Show this one; beyond the ends, the first or last."""
        self.at = min(max(at, 0), self.count - 1)
        self.previous.disabled, self.next.disabled = self.at == 0, self.at == self.count - 1
        self.say("")
        self.fill()


def button(text: str, act: Callable[[], None], style: str = "", **layout: str) -> widgets.Button:
    """A button as wide as its text, unless `layout` says otherwise."""
    made = widgets.Button(description=text, button_style=style, layout={"width": "auto"} | layout)
    made.on_click(lambda _: act())
    return made


def text_area(rows: int, placeholder: str = "", **layout: str) -> widgets.Textarea:
    """A text to edit, sent when the field is left: sent with every key, the last letters could arrive after the click on a button."""
    return widgets.Textarea(placeholder=placeholder, rows=rows, continuous_update=False, layout={"width": "auto"} | layout)


def entry_line(act: Callable[[str], None], placeholder: str, **layout: str) -> widgets.Textarea:
    """A line to type in: Enter calls act(what was typed) and empties the line, which keeps the focus.

    The text and its line break arrive in one message. `Text.on_submit`, deprecated since ipywidgets 7, sends Enter by itself: when one
    types fast, it overtakes the last letters. Observing a `Text` instead would also act when one only clicks elsewhere.
    """
    line = widgets.Textarea(placeholder=placeholder, rows=1, layout={"height": "34px", "width": "auto"} | layout)
    done = ""

    def typed(change) -> None:
        nonlocal done
        text = change["new"]
        if not text.endswith("\n"):
            return
        fresh = text.removeprefix(done) or text  # who types on before the browser hears of the empty line sends the old text too
        done = text
        line.value = ""
        act(fresh.strip())

    line.observe(typed, names="value")
    return line
