"""What a record means: which of its columns hold question and answer, and the row that comes of it.

A record is what a file holds, a dict of columns; a row is what the package works with, see `gemma_colab.core.rows`. Columns are
known by their names (`NAMES`) or told by a mapping. Lists of turns, as OpenAI and ShareGPT write them, are read as they are.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, Turn

# What a column may be called; compared without regard to case, ё/е, and spaces, underscores or hyphens. The first is our own name.
NAMES = {
    "instruction": "instruction, instructions, инструкция, тема, ситуация, задание, subject",
    "input": "input, вход, ввод, контекст, context, сообщение клиента, сообщение, client message, customer message",
    "output": "output, ответ, response, answer, completion, ответ оператора, reply, вывод, assistant",
    "question": "question, вопрос, вопрос клиента, query, prompt, запрос, user",
    "system": "system, system prompt, system message, системный промпт, системное сообщение",
    "messages": "messages, conversations, conversation, dialog, dialogue, диалог",
    "label": "label, category, class, topic, категория, класс, метка, раздел",
    "conversation": "conversation id, dialog id, dialogue id, thread id, conversation, dialog, диалог, номер диалога",
    "earlier turns": "history",  # LLaMA-Factory: pairs of question and answer
    "document": "document, article, text, dialogue, документ, статья, текст",  # where nothing else is asked
    "summary": "summary, highlights, резюме, краткое содержание",  # where there is no other answer
    "chosen": "chosen, chosen response",  # of preference data
    "rejected": "rejected, rejected response",
}
NAMES = {ours: tuple(names.split(", ")) for ours, names in NAMES.items()}
PARTS = ("instruction", "input", "output")
EXTRAS = ("system", "label", "conversation")
MAPPABLE = (*PARTS, "messages", *EXTRAS)
REQUIRED = ("instruction", "output", "messages")
CHATS = {"messages": "OpenAI messages", "conversations": "ShareGPT conversations"}  # what is called so holds nothing else
NAMED = {("prompt", "completion"): "prompt/completion"}
NAMED |= dict.fromkeys([("instruction", "output"), PARTS], "Alpaca instruction/input/output")
# Names of columns that are neither question nor answer.
NO_TEXT = re.compile(r"(.* )?(id|uuid|guid|index|url|link|date|timestamp|номер|№|дата|ссылка|идентификатор)|id .*|unnamed: \d+")
NUMBER = re.compile(r"[-+−]?\d[\d\s.,]*%?")
BROKEN = re.compile("[\ud800-\udfff]")  # no whole character lies there
ROLES = {"user": "user", "human": "user", "system": "system", "developer": "system"}
ROLES |= dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "model"), "assistant")
TOOLS = ("tool", "function", "observation", "function_call")


class BadRow(Exception):
    """One record that can't become a row: what is wrong, what to do, in which field. It stays inside `gemma_colab.data`."""

    def __init__(self, problem: str, remedy: str, field: str = "", content: Any = None):
        super().__init__(problem)
        self.problem, self.remedy, self.field, self.content = problem, remedy, field, content


class UnknownSchema(BadRow):
    """The columns are not recognized, or more than one could be meant."""


@dataclass
class Records:
    """An open source. `records` yields (line, record); a record that is a `BadRow` could not be parsed."""

    records: Iterator[tuple[int, Any]]
    details: list[str]  # "CSV", "delimiter ';'", "UTF-8"
    unit: str = "line"  # what the number counts: lines of a text file, rows of a table
    table: bool = False  # all records have the same columns, and None and NaN are empty cells


def shown(value: Any, most: int = 60) -> str:
    """Return the value in one short line: JSON's words for null and true, control characters escaped, at most `most` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 3, 4, 4
    text = repr(value[: most + 1]) if isinstance(value, str) else short.repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(name: Any) -> str:
    """Return a file or column name that can be printed: names need be neither UTF-8 nor short."""
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return name if len(name) <= 160 else f"{name[:80]}…{name[-60:]}"


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Return the names in quotes, at most `most` of them."""
    names = [shown(str(name), 40) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def normal(name: Any) -> str:
    """Return the name of a column as it is compared."""
    return re.sub(r"[\s_-]+", " ", str(name).lower().replace("ё", "е")).strip()


# --- which column is what


@dataclass(frozen=True)
class Schema:
    """How records with certain columns are read. `columns`: our name -> their column."""

    name: str  # said to the user
    columns: dict[str, str]
    ignored: tuple[str, ...]
    keys: str  # all columns, sorted


def _schema(name: str, mapping: dict[str, str], kinds: dict[str, str]) -> Schema:
    extras = {ours: theirs for ours, theirs in mapping.items() if ours in (*EXTRAS, "earlier turns")}
    name += "" if "->" in name or not extras else " with " + _arrows(extras)
    ignored = tuple(c for c, kind in kinds.items() if c not in mapping.values() and kind != "null")
    return Schema(name, mapping, ignored, ", ".join(sorted(map(printable, kinds))))


def _arrows(mapping: dict[str, str]) -> str:
    return ", ".join(f"{printable(theirs)} -> {ours}" for ours, theirs in mapping.items())


def recognize(record: dict[str, Any], told: dict[str, str] | None = None) -> Schema:
    """Find out by their names what the columns of a record mean. told: a mapping of extras, such as the conversation. Raises
    `UnknownSchema` where none or several fit."""
    kinds = {column: _kind(value) for column, value in record.items()}
    told = {ours: c for ours, theirs in (told or {}).items() for c in kinds if normal(c) == normal(theirs)}
    found = {ours: [c for name in names for c in kinds if normal(c) == name] for ours, names in NAMES.items()}
    chats = [c for c in found["messages"] if kinds[c] == "turns"]
    chats += [c for c in found["messages"] if normal(c) in CHATS and kinds[c] != "null"]
    if chats:
        extras = {ours: c for ours in EXTRAS for c in found[ours][::-1] if c != chats[0]}  # the first name wins: it comes last
        name = CHATS.get(normal(chats[0]), f"conversations in {printable(chats[0])!r}")
        return _schema(name, {"messages": chats[0]} | extras | told, kinds)
    mapping = _question_and_answer(record, found)
    if earlier := [c for c in found["earlier turns"] if kinds[c] in ("list", "turns")]:
        mapping["earlier turns"] = earlier[0]
    names = tuple(normal(mapping[ours]) for ours in PARTS if ours in mapping)
    name = NAMED.get(names, "question/answer columns: " + _arrows(mapping))
    if "turns" in (kinds[mapping["instruction"]], kinds[mapping["output"]]):
        name = f"conversational {name}"
    return _schema(name, mapping | told, kinds)


def _kind(value: Any) -> str:
    """Tell lists of turns from other lists, and both from everything else."""
    if isinstance(value, list):
        return "turns" if value and isinstance(value[0], dict) else "list"
    return "null" if value is None else "value"


def _question_and_answer(record: dict[str, Any], found: dict[str, list[str]]) -> dict[str, str]:
    """Return our name -> their column, for a question and an answer in columns of their own."""

    def unknown(problem: str, field: str = "") -> UnknownSchema:
        return UnknownSchema(problem, _advice(record, found), field)

    preference = found["chosen"] and found["rejected"] and not found["output"]
    for ours in PARTS:  # our own names win: a table may hold its texts in a second form as well
        found[ours] = [c for c in found[ours] if normal(c) == ours] or found[ours]
    if all(found[ours] and normal(found[ours][0]) == ours for ours in PARTS):
        found["question"] = []
    if not found["output"] and found["summary"]:
        found["output"], found["input"] = found["summary"], found["input"] or found["document"][:1]
    asked = [theirs for ours in ("instruction", "question", "input") for theirs in found[ours]] or found["document"][:1]
    if preference:
        raise unknown("preference data, a chosen and a rejected answer to each question; here the chosen one is learned")
    for ours in (*PARTS, "question"):
        if len(found[ours]) > 1:
            raise unknown(f"{len(found[ours])} columns could be the {ours}: {listed(found[ours])}", ours)
    if lacking := [what for what, there in (("question", asked), ("answer", found["output"])) if not there]:
        field = {"question": "instruction", "answer": "output"}[lacking[0]] if len(lacking) == 1 else ""
        raise unknown(f"no column is known as the {' and '.join(lacking)}; the columns are {listed(record)}", field)
    if len(asked) > 2:
        raise unknown(f"{len(asked)} columns could be the question: {listed(asked)}", "instruction")
    others = {ours: found[ours][0] for ours in ("output", *EXTRAS) if found[ours]}
    return dict(zip(("instruction", "input"), asked, strict=False)) | others


def _advice(record: dict[str, Any], found: dict[str, list[str]]) -> str:
    """Return the call to write, with columns of the record that can be meant."""
    if len(record) < 2:
        return "a row needs a question and an answer, in two columns such as instruction and output"
    if any(len(c) > 40 or c.isdigit() or c.rstrip().endswith(("?", "!", ".")) for c in map(str, record)):
        return "if this is a row and no header, add a first line of names such as instruction,input,output"
    texts = [c for c, value in record.items() if isinstance(value, str | None) and not NUMBER.fullmatch(str(value).strip())]
    texts = [c for c in texts if not (NO_TEXT.fullmatch(normal(c)) or c in found["rejected"])]
    known = found["output"] or found["chosen"]
    asked = [*found["instruction"], *found["question"], *found["input"]][:2] or [c for c in texts if c not in known][:1]
    answers = [c for c in (*known, *reversed(texts)) if c not in asked][:1]
    mapping = dict(zip(("instruction", "input"), asked, strict=False)) | dict(zip(("output",), answers, strict=False))
    chosen = record.get(found["chosen"][0]) if found["chosen"] else None
    if _kind(chosen) == "turns" and chosen[0].get("role", chosen[0].get("from")) in ("user", "human", "system"):
        mapping = {"messages": found["chosen"][0]}  # a whole conversation, not an answer alone
    elif not (asked and answers):
        return "choose one of them as instruction and one as output, with mapping= (on the command line: --map)"
    python = ", ".join(f'"{ours}": {theirs!r}' for ours, theirs in mapping.items())
    line = shlex.join(word for ours, theirs in mapping.items() for word in ("--map", f"{ours}={theirs}"))
    return f"say which is which: read_rows(..., mapping={{{python}}}) (on the command line: {shown(line, 200)[1:-1]})"


# --- a mapping that the user gives


def check_mapping(mapping: dict[str, str] | None) -> None:
    """Raise `SettingsError` for a mapping that can't be meant."""
    if mapping is None:
        return
    if not isinstance(mapping, dict) or not all(isinstance(c, str) for pair in mapping.items() for c in pair):
        raise SettingsError(f"mapping={shown(mapping)} is to be our name -> your column, such as {{'output': 'Ответ'}}")
    if unknown := [key for key in mapping if key not in MAPPABLE]:
        hint = _nearest(unknown[0], MAPPABLE, "did you mean")
        raise SettingsError(f"mapping has the key {shown(unknown[0])}, which is not one of {', '.join(MAPPABLE)}{hint}")
    if "messages" in mapping and mapping.keys() & set(PARTS):
        raise SettingsError("mapping has messages as well as instruction, input or output; give one or the other")
    if mapping and mapping.keys() <= set(EXTRAS):
        return  # the question and the answer are found by their names
    if "messages" not in mapping and not ("output" in mapping and mapping.keys() & {"instruction", "input"}):
        raise SettingsError(f"mapping names only {', '.join(mapping) or 'nothing'}; it needs instruction and output, or messages")


def mapped(mapping: dict[str, str], record: dict[str, Any], table: bool) -> Schema:
    """Return the schema that the user told. Raises `UnknownSchema` for a column that is missing; outside tables an optional one may be."""
    if "instruction" not in mapping and "input" in mapping:  # all that is asked
        mapping = {"instruction" if ours == "input" else ours: theirs for ours, theirs in mapping.items()}
    columns = {}
    for ours, theirs in mapping.items():
        alike = [theirs] if theirs in record else [c for c in record if normal(c) == normal(theirs)]
        if len(alike) == 1:
            columns[ours] = alike[0]
        elif table or ours in REQUIRED:
            hint = _nearest(theirs, record, "the nearest is")
            raise UnknownSchema(f"missing; there are {listed(record)}{hint}", "correct the mapping, or add the field", theirs)
    return _schema("columns as mapped: " + _arrows(columns), columns, {column: _kind(value) for column, value in record.items()})


def _nearest(name: str, names: Iterable[str], words: str) -> str:
    there = {normal(known): known for known in names}
    near = difflib.get_close_matches(normal(name), there, 1)
    return f"; {words} {shown(there[near[0]])}" if near else ""


# --- from a record to a row


class SchemaReader:
    """Turns records into rows; remembers the schema of each set of columns.

    table: all records have the same columns, and an empty cell is an empty text.
    """

    def __init__(self, mapping: dict[str, str] | None, table: bool):
        self.mapping, self.table, self.known = mapping, table, {}
        self.unseen = {normal(column) for column in (mapping or {}).values()}  # columns of the mapping that no record had

    def row(self, record: Any) -> tuple[Row, Schema]:
        """Return the row that a record becomes, and the schema it was read by. Raises `BadRow` that names the field."""
        if not isinstance(record, dict) or not record:
            what = "an empty object" if record == {} else f"{shown(record)}, not an object"
            raise BadRow(what, 'write a row as {"instruction": ..., "output": ...}, or delete it')
        if self.table:
            record = {column: "" if value is None or value != value else value for column, value in record.items()}  # NaN
        schema = self._schema(record)
        system = self._text(record, schema, "system")
        turns = [{"role": "system", "content": system}] if system else []
        if "earlier turns" in schema.columns:
            turns += _pairs(record, schema.columns["earlier turns"])
        if "messages" in schema.columns:
            turns += _turns(record, schema.columns["messages"])
        else:
            turns += self._part(record, schema, ("instruction", "input"), "user")
            turns += self._part(record, schema, ("output",), "assistant")
        if system and turns[1:2] == turns[:1]:  # the column repeats the conversation's own
            del turns[0]
        _check_order(turns, schema.columns.get("messages") or schema.columns["instruction"])
        groups = {ours: self._group(record, schema, ours) for ours in ("label", "conversation")}
        return {"messages": turns} | {ours: text for ours, text in groups.items() if text}, schema

    def _schema(self, record: dict[str, Any]) -> Schema:
        key = tuple((column, _kind(value)) for column, value in record.items())
        if key not in self.known:
            if len(self.known) > 1000:  # objects with ever new keys must not fill the memory
                self.known.clear()
            self.unseen -= set(map(normal, record))
            try:
                whole = (self.mapping or {}).keys() & {"messages", *PARTS}
                schema = mapped(self.mapping, record, self.table) if whole else recognize(record, self.mapping)
            except UnknownSchema as bad:
                usual = next((schema.columns for schema in self.known.values() if "output" in schema.columns), {})
                lacking = [ours for ours in ("instruction", "output") if usual and usual[ours] not in record]
                if self.mapping or len(lacking) != 1:
                    raise
                raise BadRow("missing", f"write the {lacking[0]}", usual[lacking[0]]) from bad  # else like the other rows
            self.known[key] = schema
        return self.known[key]

    def _part(self, record: dict[str, Any], schema: Schema, names: tuple[str, ...], role: str) -> list[Turn]:
        """Return the turns of a question or an answer: of lists the turns in them, of texts one turn with blank lines between."""
        lists = [ours for ours in names if _kind(record.get(schema.columns.get(ours))) == "turns"]
        turns = [turn for ours in lists for turn in _turns(record, schema.columns[ours])]
        text = "\n\n".join(filter(None, (self._text(record, schema, ours) for ours in names if ours not in lists)))
        return turns if lists and not text else [*turns, {"role": role, "content": text}]

    def _text(self, record: dict[str, Any], schema: Schema, ours: str) -> str:
        """Return what the record has as our `ours`; "" for an optional column that is absent or null."""
        column = schema.columns.get(ours)
        if record.get(column) is None and ours not in REQUIRED:
            return ""
        if column not in record:
            raise BadRow("missing", f"write the {ours}", column)
        return _text(record[column], column)

    def _group(self, record: dict[str, Any], schema: Schema, ours: str) -> str:
        """Return a label or conversation as text. One that was only recognized by its name must not cost the row: no text, no label."""
        column = schema.columns.get(ours)
        value = record.get(column)
        if value is None or value != value:  # NaN
            return ""
        if isinstance(value, (int, float)):
            return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        return _text(value, column) if self.mapping or isinstance(value, str) else ""


def _text(value: Any, field: str) -> str:
    if isinstance(value, BadRow):  # a cell that could not be read
        raise BadRow(value.problem, value.remedy, field)
    if not isinstance(value, str):
        remedy = "make it a text (in JSON: in quotes; in a table: the whole column)" if value is not None else "write the text"
        raise BadRow(f"{shown(value)}, not a text", remedy, field)
    if not value.isascii() and (hit := BROKEN.search(value)):
        if "\udc80" <= hit[0] <= "\udcff":  # Python's stand-in for a byte that can't be decoded
            what = f"byte 0x{ord(hit[0]) & 0xFF:02X} at character {hit.start() + 1} does not fit the file's encoding"
            raise BadRow(what, "save the file as UTF-8 anew, or retype that place", field)
        raise BadRow(f"half a character ({hit[0]!r}, a lone surrogate) at {hit.start() + 1}", "retype that text", field)
    return value


def _pairs(record: dict[str, Any], column: str) -> list[Turn]:
    """Return the turns of LLaMA-Factory's history."""
    turns = []
    for i, pair in enumerate(record[column]):
        place = f"{column}[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            remedy = f"write {column} as [[question, answer], ...], or rename it"
            raise BadRow(f"{shown(pair)}, not a pair of question and answer", remedy, place)
        turns += [{"role": role, "content": _text(pair[n], place)} for n, role in enumerate(("user", "assistant"))]
    return turns


def _turns(record: dict[str, Any], column: str) -> list[Turn]:
    """Return the turns of a list in OpenAI's or ShareGPT's spelling."""
    value = record[column]
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else f"{shown(value)}, not a list of turns"
        raise BadRow(what, 'write [{"role": "user", "content": ...}, ...]', column)
    return [_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow(f"{shown(turn)}, not a turn", 'write a turn as {"role": ..., "content": ...}', place)
    who, what = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = turn.get(who)
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow("a call of a tool, which Gemma 3's chat template has no place for", "drop this conversation", place)
    role = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if role is None:
        known = "user, assistant, system" if who == "role" else "human, gpt, system"
        raise BadRow(f"{shown(turn[who]) if who in turn else 'missing'}, not a known role", f"use {known}", f"{place}.{who}")
    if what not in turn:
        raise BadRow("missing", "write what was said", f"{place}.{what}")
    if role == "assistant" and turn.get("weight") == 0:  # OpenAI's way to keep a turn out of the training
        problem = "0, so this answer is not to be learned, and every answer of a row is"
        raise BadRow(problem, "end the conversation before it, or take the weight out", f"{place}.weight")
    parts, place = turn[what], f"{place}.{what}"
    if not isinstance(parts, list):
        return {"role": role, "content": _text(parts, place)}
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else part
        if not isinstance(part, dict) or kind != "text":
            raise BadRow(f"a part of type {shown(kind)}, not text", "this series trains on text only; drop it", f"{place}[{i}]")
    return {"role": role, "content": "".join(_text(part.get("text"), f"{place}[{i}].text") for i, part in enumerate(parts))}


def _check_order(turns: list[Turn], column: str) -> None:
    """After a system prompt, if any: user and assistant in turn, the assistant last."""
    roles = [turn["role"] for turn in turns]
    due = ["system"] * (roles[0] == "system") + ["user", "assistant"] * len(roles)
    for i, role in enumerate(roles):
        if role != due[i]:
            what = f"a turn of the {role} where the {due[i]}'s is due"
            raise BadRow(what, "let user and assistant take turns: join or drop turns", f"{column}[{i}]")
    if roles[-1] != "assistant":
        what = f"the conversation ends with the {roles[-1]}'s turn"
        raise BadRow(what, "drop the last turn, or add the answer", f"{column}[{len(roles) - 1}]")
