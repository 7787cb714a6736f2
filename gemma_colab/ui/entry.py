"""A line to type in, with Enter. Works alike with ipywidgets 7.7 (Colab) and 8, without JavaScript."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets


def entry_line(act: Callable[[str], None], placeholder: str, **layout: str) -> widgets.Textarea:
    """Enter calls act(what was typed) and empties the line, which keeps the focus.

    The text and its line break arrive in one message. `Text.on_submit`, deprecated since ipywidgets 7, sends Enter by itself: when one
    types fast, it overtakes the last letters. Observing a `Text` instead would also act when one only clicks elsewhere.
    """
    line = widgets.Textarea(placeholder=placeholder, rows=1, layout={"height": "34px"} | layout)
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
