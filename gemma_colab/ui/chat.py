"""A panel to talk to several models at once, side by side; each keeps its own history. Texts are escaped, Markdown is left as it is."""

import time
from typing import NamedTuple

import ipywidgets as widgets

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import LIGHTS, render
from gemma_colab.ui.common import Panel, button, entry_line


class Turn(NamedTuple):
    """What was said, and the answer, or why there is none."""

    said: str
    answer: str | None = None
    error: str = ""


class ChatPanel(Panel):
    """One line to type in, and below what the base model and the tuned one answer. `turns(name)` is a talk so far.

    model: with its adapter, which is off for the base. generation: arguments of `evaluation.generation.chat_candidates`, such as
    do_sample=False. Or, instead of model and tokenizer: a dictionary of names and functions from chat turns ({"role", "content"})
    to an answer. height: of the talks, in CSS. Raises `SettingsError` if there is nobody to talk to.
    """

    def __init__(self, model, tokenizer=None, *, max_new_tokens: int = 96, height: str = "22em", **generation):
        if not isinstance(model, dict):
            from gemma_colab.evaluation.generation import chat_candidates  # torch

            model = chat_candidates(model, tokenizer, max_new_tokens=max_new_tokens, **generation)
        if not model:
            raise SettingsError("model={} must name at least one function; try ChatPanel(model, tokenizer)")
        self.answer, self._height, self.message = dict(model), height, widgets.HTML()
        self.talks: dict[str, list[Turn]] = {name: [] for name in model}
        self.columns = {name: widgets.HTML(layout={"flex": "1 1 320px", "margin": "4px"}) for name in model}
        self.line = entry_line(self.ask, "Type here; Enter sends it to all", flex="1 1 auto")
        self.send, self.clear = button("Send", self._send, "primary"), button("Clear", self._clear)
        columns = widgets.HBox(list(self.columns.values()), layout={"flex_flow": "row wrap", "align_items": "stretch"})
        bar = widgets.HBox([self.line, self.send, self.clear], layout={"align_items": "center", "margin": "0 2px"})
        self.widget = widgets.VBox([columns, bar, self.message], layout={"max_width": "1000px"})
        self._show()

    def turns(self, name: str) -> list[dict[str, str]]:
        """The talk with one model as chat turns. What it failed to answer is left out: user and assistant must alternate."""
        answered = [turn for turn in self.talks[name] if turn.answer is not None]
        pairs = [(("user", turn.said), ("assistant", turn.answer)) for turn in answered]
        return [{"role": role, "content": text} for pair in pairs for role, text in pair]

    def ask(self, text: str) -> None:
        """Say this to every model, one after the other."""
        if not text.strip():
            return self.say("Nothing to send:", "type a message first.")
        for talk in self.talks.values():
            talk.append(Turn(text))
        self._show()
        took, names = [], list(self.answer)
        for i, name in enumerate(names):
            self.say("", f"asking {name}… ({i + 1} of {len(names)})")
            start, asked = time.perf_counter(), [*self.turns(name), {"role": "user", "content": text}]
            try:
                self.talks[name][-1] = Turn(text, self.answer[name](asked))
                took.append(f"{name} {time.perf_counter() - start:.1f} s")
            except KeyboardInterrupt:  # the notebook's stop button
                for rest in names[i:]:
                    self.talks[rest][-1] = Turn(text, error="stopped")
                self._show()
                return self.say("Stopped:", f"{', '.join(names[i:])} did not answer.", LIGHTS["no"])
            except Exception as e:  # raised in a click it would only reach the log
                self.talks[name][-1] = Turn(text, error=str(e).strip().partition("\n")[0][:300] or type(e).__name__)
            self._show()
        self.say("", f"answered in: {', '.join(took)}" if took else "")

    def _send(self) -> None:
        text, self.line.value = self.line.value, ""
        self.ask(text.strip())

    def _clear(self) -> None:
        self.talks = {name: [] for name in self.talks}
        self.line.value = ""
        self._show()
        self.say("")

    def _show(self) -> None:
        for name, column in self.columns.items():
            column.value = render("ui/chat", "talk", name, self.talks[name], self._height)
