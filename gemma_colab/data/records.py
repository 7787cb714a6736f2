"""From a raw record to a row: reads a record by its form, and says which field is wrong with it."""

from __future__ import annotations

import re
from typing import Any

from gemma_colab.core.rows import Row
from gemma_colab.data.forms import EARLIER, FIELDS, NAMES, BadRow, Form, UnknownForm, mapped, normal, recognise, shown

BROKEN = re.compile("[\ud800-\udfff]")  # no whole character lies there
ROLES = {"user": "user", "human": "user", "system": "system", "developer": "system"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "model"), "assistant")
SHAPE = 'write a row as {"instruction": ..., "output": ...}, or delete it'
GROUPS = ("label", "conversation")  # nothing is learnt from them
TOOLS = ("tool", "function", "observation", "function_call")


class Unstored(str):
    """An empty cell of a table whose text was never computed."""


class Recogniser:
    """Turns records into rows; remembers the form of each set of keys.

    table: all records have the same columns, and an empty cell is an empty text.
    """

    def __init__(self, mapping: dict[str, str] | None, table: bool):
        self.mapping, self.table, self.known = mapping, table, {}
        self.unseen = {normal(column) for column in (mapping or {}).values()}  # columns of the mapping that no record had

    def row(self, record: Any) -> tuple[Row, Form]:
        """Raises `BadRow` that names the field."""
        if not isinstance(record, dict):
            kind = {list: "a list", str: "a text", type(None): "null"}.get(type(record), "a number or true/false")
            raise BadRow(f"{kind}, {shown(record)}, not an object", SHAPE)
        if not record:
            raise BadRow("an empty object", SHAPE)
        form = self._form(record)
        system = self._text(record, form, "system")
        if form.kind != "texts":
            columns = [form.columns[ours] for ours in ("messages", "instruction", "output") if ours in form.columns]
            turns = [turn for column in columns for turn in _turns(record[column], column)]
            turns = _with_system(turns, columns[0], system)
            _check_weight(record[columns[-1]], columns[-1])
        else:
            instruction, more, output = (self._text(record, form, ours) for ours in FIELDS)
            earlier = _earlier(record[form.columns[EARLIER]], form.columns[EARLIER]) if EARLIER in form.columns else []
            pairs = [("system", system)] * bool(system) + earlier
            pairs += [("user", "\n\n".join(filter(None, (instruction, more)))), ("assistant", output)]
            turns = [{"role": role, "content": content} for role, content in pairs]
        extras = {ours: self._text(record, form, ours) for ours in GROUPS}
        return {"messages": turns} | {ours: text for ours, text in extras.items() if text}, form

    def _form(self, record: dict) -> Form:
        columns = list(record)
        past = {c for c in columns if normal(c) in NAMES["history"]}
        lists = frozenset(k for k, v in record.items() if isinstance(v, list) and (k in past or not v or isinstance(v[0], dict)))
        nulls = frozenset(k for k, v in record.items() if v is None and (k in past or normal(k) in NAMES["messages"]))
        key = (tuple(columns), lists, nulls)
        if key not in self.known:
            if len(self.known) > 1000:  # objects with ever new keys must not fill the memory
                self.known.clear()
            self.unseen -= set(map(normal, columns))
            try:
                if self.mapping:
                    form = mapped(self.mapping, columns, self.table, lists)
                else:
                    form = recognise(columns, lists, nulls, record)
            except UnknownForm as bad:
                usual = next((form.columns for form in self.known.values() if form.kind == "texts"), {})
                lacking = [ours for ours in ("instruction", "output") if usual and usual[ours] not in columns]
                if self.mapping or len(lacking) != 1:
                    raise
                raise BadRow("missing", f"write the {lacking[0]}", usual[lacking[0]]) from bad  # else like the other rows
            self.known[key] = form
        return self.known[key]

    def _text(self, record: dict, form: Form, ours: str) -> str:
        """What the record has as our `ours`; "" for an optional field that is absent or null.

        A label or conversation that was only recognised by its name is also "" where it is no text, number or boolean.
        """
        column = form.columns.get(ours)
        value = record.get(column)
        empty = value is None or value != value  # NaN
        if ours in GROUPS and (value != value or not (self.mapping or isinstance(value, (str, int, float)))):
            return ""  # nobody asked for this column: it must not cost the row
        if empty and (self.table or (value is None and ours not in ("instruction", "output"))):
            return ""  # the report finds it where it matters
        if column not in record:
            raise BadRow("missing", f"write the {ours}", column)
        if ours in GROUPS and isinstance(value, (int, float)):
            value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if isinstance(value, Unstored):
            raise BadRow("a formula without a stored value", "open the file in Excel and save it again", column)
        if self.table and not isinstance(value, str):  # a type of the whole column
            remedy = "choose a column of texts, or make texts of this one (in pandas: .astype(str))"
            raise BadRow(f"{shown(value)}, not a text", remedy, column)
        return _text(value, column)


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        remedy = "write it as a text in quotes" if value is not None else "write the text"
        raise BadRow(f"{shown(value)}, not a text", remedy, field)
    if not value.isascii() and (hit := BROKEN.search(value)):
        raise BadRow(f"half a character ({hit[0]!r}, a lone surrogate) at {hit.start() + 1}", "retype that text", field)
    return value


def _earlier(pairs: list, column: str) -> list[tuple[str, str]]:
    """LLaMA-Factory's history as (role, text)."""
    turns = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            what = f"{shown(pair)}, not a pair of question and answer"
            raise BadRow(what, f"write {column} as [[question, answer], ...], or rename it", f"{column}[{i}]")
        turns += [(role, _text(text, f"{column}[{i}]")) for role, text in zip(("user", "assistant"), pair, strict=True)]
    return turns


def _check_weight(turns: list, column: str) -> None:
    """OpenAI's weight 0 keeps a turn out of the training. Harmless before the last turn: only that one is trained on."""
    if turns[-1].get("weight") == 0:
        what = "0, so this answer is not to be learnt, and it is the one that would be"
        raise BadRow(what, "end the conversation with an answer to learn, or drop it", f"{column}[{len(turns) - 1}].weight")


def _with_system(turns: list[dict[str, str]], column: str, system: str) -> list[dict[str, str]]:
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    elif system and turns[0]["content"] != system:
        raise BadRow("a second system prompt beside the column for it", "keep one of the two", f"{column}[0]")
    _check_order([turn["role"] for turn in turns], column)
    return turns


def _check_order(roles: list[str], column: str) -> None:
    """After a system prompt, if any: user and assistant in turn, the assistant last."""
    start = 1 if roles[0] == "system" else 0
    for i, role in enumerate(roles[start:]):
        due = ("user", "assistant")[i % 2]
        if role != due:
            what = "a second system prompt" if role == "system" else f"a turn of the {role} where the {due}'s is due"
            raise BadRow(what, "let user and assistant take turns: join or drop turns", f"{column}[{start + i}]")
    if len(roles) - start < 2:
        raise BadRow("no answer of the assistant", "add one, or drop the row", column)
    if roles[-1] != "assistant":
        what, remedy = "the conversation ends with the user's turn", "drop the last turn, or add the answer"
        raise BadRow(what, remedy, f"{column}[{len(roles) - 1}]")


def _turns(value: Any, column: str) -> list[dict[str, str]]:
    """Turns as {"role", "content"}, from OpenAI's or ShareGPT's spelling."""
    if not isinstance(value, list):
        raise BadRow(f"{shown(value)}, not a list of turns", 'write [{"role": "user", "content": ...}, ...]', column)
    if not value:
        raise BadRow("an empty list", "write at least a question and an answer", column)
    return [_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise BadRow(f"{shown(turn)}, not a turn", 'write a turn as {"role": ..., "content": ...}', place)
    who, what = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = turn.get(who)
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow("a call of a tool, which Gemma 3's chat template has no place for", "drop this conversation", place)
    role = role.strip().lower() if isinstance(role, str) else ""
    if role not in ROLES:
        known = "user, assistant, system" if who == "role" else "human, gpt, system"
        raise BadRow(f"{shown(turn[who]) if who in turn else 'missing'}, not a known role", f"use {known}", f"{place}.{who}")
    if what not in turn:
        raise BadRow("missing", "write what was said", f"{place}.{what}")
    return {"role": ROLES[role], "content": _content(turn[what], f"{place}.{what}")}


def _content(content: Any, place: str) -> str:
    """A text, or the texts of a list of parts."""
    if not isinstance(content, list):
        return _text(content, place)
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else part
        if not isinstance(part, dict) or kind != "text":
            raise BadRow(f"a part of type {shown(kind)}, not text", "this series trains on text only; drop it", f"{place}[{i}]")
    return "".join(_text(part.get("text"), f"{place}[{i}].text") for i, part in enumerate(content))
