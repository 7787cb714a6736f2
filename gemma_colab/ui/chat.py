"""A panel to talk to several contestants at once, side by side. Each keeps its own history.

Only widgets that ipywidgets 7.7 (Colab) and 8 share are used, no JavaScript. Texts are escaped, and Markdown is left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import ipywidgets as widgets
from IPython.display import display

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import ENVIRONMENT, LIGHTS
from gemma_colab.ui.entry import entry_line

_LINE = ENVIRONMENT.from_string(
    '<div style="line-height:1.5">{% if bold %}<b{% if colour %} style="color:{{ colour }}"{% endif %}>{{ bold }}</b> {% endif %}{{ text }}</div>'
)
# column-reverse keeps a long talk scrolled to its end without JavaScript
_TALK = ENVIRONMENT.from_string(
    """<div style="line-height:1.45"><b>{{ name }}</b></div>
<div style="height:{{ height }}; overflow:auto; display:flex; flex-direction:column-reverse; border:1px solid #8886; border-radius:4px; padding:6px 8px; margin-top:4px">
<div style="margin-bottom:auto">
{% for turn in talk %}
<div style="display:flex; justify-content:flex-end"><div style="background:#1565c0; color:#fff; border-radius:10px 10px 2px 10px; padding:4px 10px; margin:6px 0 6px 15%; white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.4">{{ turn.said }}</div></div>
{% if turn.error %}
<div style="margin:6px 0; line-height:1.4"><b style="color:{{ red }}">No answer:</b> {{ turn.error }}</div>
{% elif turn.answer is none %}
<div style="opacity:.65; margin:6px 0">…</div>
{% else %}
<div style="display:flex"><div style="background:#8882; border-radius:10px 10px 10px 2px; padding:4px 10px; margin:6px 15% 6px 0; white-space:pre-wrap; overflow-wrap:anywhere; line-height:1.4">{% if turn.answer %}{{ turn.answer }}{% else %}<i style="opacity:.65">(empty)</i>{% endif %}</div></div>
{% endif %}
{% else %}
<div style="opacity:.65">Nothing said yet.</div>
{% endfor %}
</div></div>"""
)


class Turn(NamedTuple):
    """What was said, and the answer, or why there is none."""

    said: str
    answer: str | None = None
    error: str = ""


class ChatPanel:
    """One line to type in, and what each contestant answers. `turns(name)` is a talk so far.

    contestants: name -> function from chat turns ({"role", "content"}) to an answer, for example from
    `evaluation.chatting.contestants(model, tokenizer)`. height: of the talks, in CSS. Raises `SettingsError` without contestants.
    """

    def __init__(self, contestants: dict[str, Callable[[list[dict[str, str]]], str]], *, height: str = "22em"):
        if not contestants:
            raise SettingsError("contestants={} must name at least one; try contestants(model, tokenizer)")
        self.contestants, self._height = dict(contestants), height
        self.talks: dict[str, list[Turn]] = {name: [] for name in self.contestants}
        self.columns = {name: widgets.HTML(layout={"flex": "1 1 320px", "margin": "4px"}) for name in self.contestants}
        self.busy = widgets.HTML()
        self.line = entry_line(self.ask, "Type here; Enter sends it to all", flex="1 1 auto", width="auto")
        self.send, self.clear = (widgets.Button(description=text, layout={"width": "auto"}) for text in ("Send", "Clear"))
        self.send.button_style = "primary"
        self.send.on_click(lambda _: self._send())
        self.clear.on_click(lambda _: self._clear())
        columns = widgets.HBox(list(self.columns.values()), layout={"flex_flow": "row wrap", "align_items": "stretch"})
        bar = widgets.HBox([self.line, self.send, self.clear], layout={"align_items": "center", "margin": "0 2px"})
        self.widget = widgets.VBox([columns, bar, self.busy], layout={"max_width": "1000px"})
        self._show()

    def turns(self, name: str) -> list[dict[str, str]]:
        """The talk with one contestant as chat turns. What it failed to answer is left out: user and assistant must alternate."""
        answered = [turn for turn in self.talks[name] if turn.answer is not None]
        roles = ("user", "assistant")
        return [{"role": role, "content": text} for turn in answered for role, text in zip(roles, turn[:2], strict=True)]

    def ask(self, text: str) -> None:
        """Say this to every contestant, one after the other."""
        if not text.strip():
            return self._say("Nothing to send:", "type a message first.")
        names, took = list(self.contestants), []
        for name in names:
            self.talks[name].append(Turn(text))
        self._show()
        for i, name in enumerate(names):
            self._say("", f"asking {name}… ({i + 1} of {len(names)})")
            start = time.perf_counter()
            try:
                answer = self.contestants[name]([*self.turns(name), {"role": "user", "content": text}])
            except KeyboardInterrupt:  # the notebook's stop button
                for rest in names[i:]:
                    self.talks[rest][-1] = Turn(text, error="stopped")
                self._show()
                return self._say("Stopped:", f"{', '.join(names[i:])} did not answer.", LIGHTS["no"])
            except Exception as e:  # raised in a click it would only reach the log
                first = (str(e).strip().splitlines() or [""])[0]
                self.talks[name][-1] = Turn(text, error=first if len(first) < 300 else first[:300] + "…")
                if not first:
                    self.talks[name][-1] = Turn(text, error=type(e).__name__)
            else:
                self.talks[name][-1] = Turn(text, answer)
                took.append(f"{name} {time.perf_counter() - start:.1f} s")
            self._show(name)
        self._say("", f"answered in: {', '.join(took)}" if took else "")

    def _send(self) -> None:
        text, self.line.value = self.line.value, ""
        self.ask(text.strip())

    def _clear(self) -> None:
        for talk in self.talks.values():
            talk.clear()
        self.line.value = ""
        self._show()
        self._say("", "")

    def _show(self, *names: str) -> None:
        for name in names or self.columns:
            self.columns[name].value = _TALK.render(name=name, talk=self.talks[name], height=self._height, red=LIGHTS["no"])

    def _say(self, bold: str, text: str, colour: str = "") -> None:
        self.busy.value = _LINE.render(bold=bold, text=text, colour=colour) if bold or text else ""

    def _ipython_display_(self):
        display(self.widget)
