"""A panel for a file whose columns are not recognised: choose what is what, and see the chat that comes of it at once.

Only widgets that ipywidgets 7.7 (Colab) and 8 share are used, and texts of the file are escaped.
"""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from IPython.display import display

from gemma_colab.core.errors import GemmaColabError
from gemma_colab.core.html import ENVIRONMENT, text_table
from gemma_colab.data.forms import NAMES, BadRow, normal, recognise
from gemma_colab.data.reading import peek, read_rows

FIELDS = {  # our name -> what it is for
    "instruction": "what is asked, or the situation",
    "input": "more of the question, below the instruction",
    "output": "the answer to learn",
    "messages": "a whole conversation, a list of turns; instead of the three above",
    "system": "a standing order to the model, before the question",
    "label": "a class; the split keeps its shares",
    "conversation": "rows with the same value stay in one part of the split",
}
SHOWN = 3
LOOKED = 20  # rows read: a column may be missing from the first three
NONE = ""  # of a Dropdown; None would be no choice at all
MOST = 240  # characters of a text that are shown

_HINT = ENVIRONMENT.from_string('<span style="opacity:.65">{{ text }}</span>')
_ERROR = ENVIRONMENT.from_string('<div style="line-height:1.5"><b style="color:#c62828">Not yet:</b> {{ text }}</div>')
_TABLE = ENVIRONMENT.from_string('<div style="overflow-x:auto; line-height:1.4">{{ table }}</div>')
_CHATS = ENVIRONMENT.from_string(
    """<div style="line-height:1.4">What the model will read; the coloured part it learns to write.{% for chat in chats %}
<div style="border:1px solid #8886; border-radius:4px; margin:6px 0; padding:4px 10px; max-width:60em">
{% for turn, learnt in chat %}
<div style="white-space:pre-wrap; overflow-wrap:anywhere; margin:3px 0"><span style="opacity:.65">{{ turn.role }}: </span>
{%- if learnt %}<span style="background:#f6c08a; color:#111">{{ turn.content }}</span>{% else %}{{ turn.content }}{% endif %}</div>
{% endfor %}</div>{% endfor %}</div>"""
)


def guess(columns: list[str], lists: frozenset[str] = frozenset()) -> dict[str, str]:
    """Our name -> their column as far as names tell; of several columns for one name the first. `lists`: columns of turns."""
    try:
        found = recognise(columns, lists).columns
        return {ours: column for ours, column in found.items() if ours in FIELDS}
    except BadRow:
        found = {ours: next((c for n in names for c in columns if normal(c) == n), NONE) for ours, names in NAMES.items()}
    asked = [found[ours] for ours in ("instruction", "question", "input") if found[ours]]
    found = {ours: found[ours] for ours in ("output", "system", "label", "conversation") if found[ours]}
    return dict(zip(("instruction", "input"), asked, strict=False)) | found


def _guess_from(table: pd.DataFrame) -> dict[str, str]:
    """As `guess`; a column of lists or objects is no label: chosen here, it would be asked for, and every row be bad."""
    nested = {c for c in table.columns if any(isinstance(value, (list, dict)) for value in table[c])}
    turns = frozenset(c for c in nested if any(isinstance(v, list) and v and isinstance(v[0], dict) for v in table[c]))
    guessed = guess(list(table.columns), turns)
    return {ours: c for ours, c in guessed.items() if ours not in ("label", "conversation") or c not in nested}


class MappingPanel:
    """A choice of column for each of our names. `mapping` is for `read_rows(source, mapping=panel.mapping)`.

    source, sheet, split: as for `read_rows`. Raises `DatasetError` where the file itself can't be read.
    """

    def __init__(self, source: str | Path, *, sheet: str | int = 0, split: str = "train"):
        self.source, self._options = source, {"sheet": sheet, "split": split}
        table = peek(source, LOOKED, **self._options)
        guessed, columns = _guess_from(table), [(_short(column), column) for column in table.columns]
        self.fields, lines = {}, []
        for ours, hint in FIELDS.items():
            choice = widgets.Dropdown(
                options=[("(none)", NONE), *columns],
                value=guessed.get(ours, NONE),
                description=ours,
                style={"description_width": "100px"},
                layout={"flex": "0 0 340px"},
            )
            choice.observe(lambda change: self._show(), names="value")
            self.fields[ours] = choice
            lines.append(widgets.HBox([choice, widgets.HTML(_HINT.render(text=hint))]))
        self.table = widgets.HTML(_TABLE.render(table=_first(table)))
        self.preview = widgets.HTML()
        self.widget = widgets.VBox([self.table, *lines, self.preview])
        self._show()

    @property
    def mapping(self) -> dict[str, str]:
        """Our name -> the chosen column; without the names that have none."""
        return {ours: choice.value for ours, choice in self.fields.items() if choice.value != NONE}

    def _show(self) -> None:
        try:
            rows = read_rows(self.source, mapping=self.mapping, limit=LOOKED, **self._options).rows[:SHOWN]
        except GemmaColabError as e:
            self.preview.value = _ERROR.render(text=str(e))
            return
        turns = [[(t, t is row["messages"][-1]) for t in row["messages"]] for row in rows]
        self.preview.value = _CHATS.render(chats=turns)

    def _ipython_display_(self):
        display(self.widget)


def _first(table: pd.DataFrame):
    """The first rows as an escaped table, with their lines; long texts cut."""
    cells = table.head(SHOWN).astype(object)
    cells = cells.where(cells.notna(), "").map(_short)
    cells.insert(0, table.index.name, cells.index, allow_duplicates=True)  # the file may have a column of that name
    return text_table(cells)


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= MOST else text[: MOST - 1] + "…"
