"""What a record means: which of its columns hold question and answer, and the row that comes of it.

A record is what a file holds, a dict of columns; a row is what the package works with, see `gemma_colab.core.rows`. Columns are
known by their names (`NAMES`) or told by a mapping. Lists of turns are read in OpenAI's and in ShareGPT's spelling.
"""

import ast
import contextlib
import functools
import json
import re
import reprlib
import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, Turn
from gemma_colab.data.personal import redact

# What a column may be called; compared without regard to case, ё/е, and spaces, underscores or hyphens. The first is our own name.
NAMES = {
    "instruction": "instruction, instructions, инструкция, тема, ситуация, задание, subject",
    "input": "input, вход, ввод, контекст, context, passage, document, документ, сообщение клиента, сообщение, client message, customer message",
    "output": "output, ответ, response, answer, completion, ответ оператора, reply, вывод, assistant",
    "question": "question, вопрос, вопрос клиента, query, prompt, запрос, user",
    "system": "system, system prompt, system message, системный промпт, системное сообщение",
    "messages": "messages, conversations, conversation, dialog, dialogue, диалог",
    "label": "label, category, class, topic, категория, класс, метка, раздел",
    "conversation": "conversation id, dialog id, dialogue id, thread id, conversation, dialog, диалог, номер диалога",
    "earlier turns": "history",  # LLaMA-Factory: pairs of question and answer
    "document": "document, article, text, dialogue, документ, статья, текст",  # where nothing else is asked
    "summary": "summary, highlights, резюме, краткое содержание",  # where there is no other answer
}
NAMES = {ours: names.split(", ") for ours, names in NAMES.items()}
HEADER = "if line 1 is a row, write the columns' names above it, such as question,answer"
PARTS = ("instruction", "input", "output")
EXTRAS = ("system", "label", "conversation")
MAPPABLE = (*PARTS, "messages", *EXTRAS)
ROLES = dict.fromkeys("user human prompter customer client пользователь клиент".split(), "user")
ROLES |= dict.fromkeys("assistant gpt chatgpt bard model ai bot chatbot agent operator бот ассистент".split(), "assistant")
ROLES |= dict.fromkeys(("system", "developer"), "system") | {"оператор": "assistant"}
TOOLS = ("tool", "function", "observation", "function_call")
BROKEN = re.compile("[\ud800-\udfff]")  # no whole character; also Python's stand-in for a byte that can't be decoded
CHAT = re.compile(r"""\s*\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")  # in a cell, as JSON or as Python writes it
# Columns, and keys of a turn, that say whether it is to be learned -> what they say where it is not.
MARKS = "weight, loss weight, sample weight, loss, train, training, trainable, learn"
MARKS += ", good, is good, ok, is ok, is correct, approved"
MARKS = dict.fromkeys(MARKS.split(", "), ("false", "no", "нет", "ложь", "0", "0.0", "-1"))
MARKS |= dict.fromkeys(("bad", "is bad", "is rejected", "deleted", "skip", "exclude"), ("true", "yes", "да", "истина", "1"))
RATINGS = ("label", "метка", "correct", "rating", "score", "vote", "feedback", "reward", "csat", "verdict", "оценка", "рейтинг")
MARKS |= dict.fromkeys(RATINGS, ("false", "ложь", "bad", "плохо", "dislike", "👎", "thumbs down", "thumbs_down"))
MARKS |= {name: (*MARKS[name], "negative", "down", "wrong", "incorrect") for name in RATINGS[2:]}  # a label says what a text is
# Columns that the texts of a row may need; and what is in one that holds nothing.
NO_TEXT = re.compile(r"\b(?:(?:image|img|picture|photo|audio|video)s?|tools|изображени[ея]|картинк[аи]|фото|аудио|видео)\b")
CHOICES = re.compile(r"choices?|options?|варианты(?: ответ\w+)?|(?:option|choice|вариант|ответ) ?[a-hа-г1-8]|[a-d]")
EMPTY = ("", "none", "nan", "null", "false", "no", "0", "[]", "{}")


class BadRow(Exception):
    """What is wrong with a record or a cell, what to do, and in which field. It stays inside `gemma_colab.data`."""

    def __init__(self, problem: str, remedy: str, field: str = "", content: Any = None):
        super().__init__(problem)
        self.problem, self.remedy, self.field, self.content = problem, remedy, field, content


class UnknownSchema(BadRow):
    """The columns are not recognized, or more than one could be meant. Without a remedy, `advice.py` gives it."""


class NotLearned(BadRow):
    """The file itself says that the row, or each of its answers, is not to be learned."""


@dataclass
class Records:
    """An open source. `records` yields (line, record); a record that is a `BadRow` could not be parsed."""

    records: Iterator[tuple[int, Any]]
    details: list[str]  # "CSV", "delimiter ';'", "UTF-8"
    unit: str = "line"  # what the number counts: lines of a text file, rows of a table
    table: bool = False  # all records have the same columns, and None and NaN are empty cells
    header: str = ""  # why the names of the columns seem to be none, and what to do
    notes: dict[str, list[int]] = field(default_factory=dict)  # what was left out or taken for something -> the lines it is about
    columns: Collection[str] = ()  # of a header


@dataclass(eq=False)
class Schema:
    """How records with certain columns are read."""

    columns: dict[str, str]  # our name -> their column
    said: str  # "Тема -> instruction, Ответ -> output"
    ignored: tuple[str, ...]
    keys: str  # all columns, sorted
    marks: tuple[str, ...]  # those in `MARKS`
    needed: tuple[str, ...]  # those that the texts may need


def shown(value: Any, most: int = 60) -> str:
    """Return the value in one line of at most `most` characters, control characters escaped, personal data masked before it is cut."""
    text = repr(redact(value[:2000])[: most + 1]) if isinstance(value, str) else reprlib.repr(redact(value))
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(name: Any) -> str:
    """Return a file or column name that can be printed: names need be neither UTF-8 nor short."""
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return name if len(name) <= 160 else f"{name[:80]}…{name[-60:]}"


def listed(names: Iterable[Any], most: int = 12) -> str:
    names = [shown(str(name), 40) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.lower().replace("ё", "е")).strip()


# --- which column is what


def check_mapping(mapping: dict[str, str]) -> None:
    """Raise `SettingsError` for a mapping that can't be meant."""
    if not isinstance(mapping, dict) or not all(isinstance(c, str) for pair in mapping.items() for c in pair):
        raise SettingsError(f"mapping={shown(mapping)} is to be our name -> your column, such as {{'output': 'Ответ'}}")
    if unknown := [key for key in mapping if key not in MAPPABLE]:
        raise SettingsError(f"mapping has the key {shown(unknown[0])}; the keys are our names: {', '.join(MAPPABLE)}")
    parts = set(mapping) - set(EXTRAS)
    if parts not in (set(), {"messages"}, {"instruction", "output"}, {"input", "output"}, set(PARTS)):
        raise SettingsError(f"mapping names {', '.join(mapping)}; it needs instruction and output, or messages and none of them")


@functools.lru_cache(1000)  # one record is mostly like the last
def recognize(kinds: tuple[tuple[str, str], ...], mapping: tuple[tuple[str, str], ...], table: bool) -> Schema:
    """Find out what the columns of a record mean. kinds: each column, and what `_kind` says of its value. Raises `UnknownSchema`."""
    kind = dict(kinds)
    alike = {normal(column): column for column in kind} | {column: column for column in kind}
    told = {}
    for ours, theirs in mapping:
        if column := alike.get(theirs, alike.get(normal(theirs))):
            told[ours] = [column]
        elif table or ours in ("instruction", "output", "messages"):  # others may appear late
            raise UnknownSchema(f"missing; there are {listed(kind)}", "correct the mapping, or add the field", theirs)
    found = named([] if told.keys() - set(EXTRAS) else kind) | told
    chats = [c for c in found["messages"] if kind[c] == "turns" or "messages" in told]
    chats += [c for c in found["messages"] if normal(c) in ("messages", "conversations") and kind[c] != "null"]
    columns = {"messages": chats[0]} if chats else _question_and_answer(found, kind)
    if not chats and (pairs := [c for c in found["earlier turns"] if kind[c] in ("list", "turns")]):
        columns["earlier turns"] = pairs[0]
    columns |= {ours: c for ours in EXTRAS for c in found[ours][:1] if ours in told or c not in columns.values()}
    said = ", ".join(printable(c) + f" -> {ours}" * (c != ours) for ours, c in columns.items())
    ignored = tuple(c for c in kind if c not in columns.values() and kind[c] != "null")
    free = {c: normal(c) for c in kind if [c] not in told.values()}  # a column that is told to be a label is no mark
    marks = tuple(c for c in free if free[c] in MARKS and c in (*ignored, columns.get("label")))
    choices = [c for c in ignored if CHOICES.fullmatch(free[c])]
    choices *= len(choices) > 2 or any(len(free[c]) > 1 for c in choices)  # "a" and "b" may be anything
    needed = tuple(c for c in ignored if c in choices or NO_TEXT.search(free[c]))
    return Schema(columns, said, ignored, ", ".join(sorted(map(printable, kind))), marks, needed)


def _kind(value: Any) -> str:
    """Tell lists of turns from other lists, and both from everything else."""
    if isinstance(value, list):
        return "turns" if value and isinstance(value[0], dict) else "list"
    return "null" if value is None else "value"


def named(columns: Iterable[str]) -> dict[str, list[str]]:
    """Return our name -> the columns that are called so; our own names win, as a table may hold its texts in a second form as well."""
    names = {column: normal(column) for column in columns}
    found = {ours: [c for name in known for c in names if names[c] == name] for ours, known in NAMES.items()}
    own = {ours: [c for c in found[ours] if names[c] == ours] for ours in PARTS}
    return found | {ours: cs for ours, cs in own.items() if cs} | ({"question": []} if all(own.values()) else {})


def _question_and_answer(found: dict[str, list[str]], columns: Iterable[str]) -> dict[str, str]:
    """Return our name -> their column, for a question and an answer in columns of their own."""
    if not found["output"]:
        found |= {"output": found["summary"], "input": found["input"] or found["document"][:1]}
    asked = [c for ours in ("instruction", "question", "input") for c in found[ours]] or found["document"][:1]
    for ours in (*PARTS, "question"):
        if len(found[ours]) > 1:
            raise UnknownSchema(f"{len(found[ours])} columns could be the {ours}: {listed(found[ours])}", "", ours)
    if len(asked) > 2:
        raise UnknownSchema(f"{len(asked)} columns could be the question: {listed(asked)}", "", "instruction")
    if not asked or not found["output"]:
        lacking = " and ".join(["question"] * (not asked) + ["answer"] * (not found["output"]))
        field = {"question": "instruction", "answer": "output"}.get(lacking, "")
        raise UnknownSchema(f"no column is known as the {lacking}; the columns are {listed(columns)}", "", field)
    return dict(zip(("instruction", "input"), asked, strict=False)) | {"output": found["output"][0]}


def say_mapping(mapping: dict[str, str]) -> str:
    """Return how a mapping is given in Python and on the command line."""
    mapping = {ours: redact(theirs) for ours, theirs in mapping.items()}  # a table without a header begins with a row
    python = ", ".join(f'"{ours}": {theirs!r}' for ours, theirs in mapping.items())
    line = shlex.join(word for ours, theirs in mapping.items() for word in ("--map", f"{ours}={theirs}"))
    # A name that can't be printed can't be pasted either.
    return f"mapping={{{python}}}" + f" (on the command line: {line})" * (line.isprintable() and len(line) <= 200)


# --- from a record to a row


def to_row(record: Any, mapping: dict[str, str], table: bool) -> tuple[Row, Schema]:
    """Return the row that a record becomes, and the schema it was read by. Raises `BadRow` that names the field."""
    if isinstance(record, BadRow):
        raise record
    if _kind(record) == "turns" and {"role", "from"} & record[0].keys():
        record = {"messages": record}
    if not isinstance(record, dict) or not record:
        pair = "if these are a question and its answer, " * (isinstance(record, list) and len(record) == 2)
        raise BadRow(f"{shown(record)}, not an object with columns", pair + 'write a row as {"instruction": ..., "output": ...}')
    if table:
        record = {column: "" if value is None or value != value else value for column, value in record.items()}  # NaN
    written = record
    record = {column: _unpacked(value, normal(column)) if isinstance(value, str) else value for column, value in record.items()}
    schema = recognize(tuple((column, _kind(value)) for column, value in record.items()), tuple(mapping.items()), table)
    columns = schema.columns
    both = [columns[ours] for ours in ("instruction", "input") if ours in columns]
    if len(both) == 2 and all(written.get(column) for column in both):  # a chat beside an instruction is what that is about
        record |= {column: written[column] for column in both if isinstance(written[column], str)}
    for column in schema.marks:
        if _marked(column, record[column]):
            remedy = f"left out; to learn it, take the mark out, or say {say_mapping({'label': column})} if it is none"
            raise NotLearned(f"{shown(record[column])}, so this row is not to be learned", remedy, column)
    for column in schema.needed:
        value, texts = record[column], " ".join(str(record[c]) for c in columns.values() if c in record)
        parts = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if str(value).strip().lower() not in EMPTY and not all(str(part) in texts for part in parts):
            remedy = "this series trains on texts only: write what the question needs of it there or drop the row, and take the column out"
            raise BadRow(f"{shown(value)}, which the texts of the row don't hold", remedy, column)
    system = record.get(columns.get("system"))
    turns = [{"role": "system", "content": _text(system, columns["system"])}] if system else []
    for i, pair in enumerate(record.get(columns.get("earlier turns")) or []):
        place = f"{columns['earlier turns']}[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{shown(pair)}, not a pair of question and answer", "write [[question, answer], ...]", place)
        turns += [{"role": role, "content": _text(said, place)} for role, said in zip(("user", "assistant"), pair, strict=True)]
    if "messages" in columns:
        turns += _turns(record[columns["messages"]], columns["messages"])
    else:
        turns += _part(record, columns, ("instruction", "input"), "user") + _part(record, columns, ("output",), "assistant")
    if system and turns[1:2] == turns[:1]:  # the column repeats the conversation's own
        del turns[0]
    _check_order(turns, asked := columns.get("messages") or columns["instruction"])
    learned = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if learned is None:
        raise NotLearned("all answers are marked as not to be learned", "left out; to learn one, take its mark out", asked)
    cut = (len(turns) - 1 - learned) // 2
    extras = {ours: _group(record.get(columns.get(ours)), columns.get(ours), ours in mapping) for ours in EXTRAS[1:]}
    return {"messages": turns[: learned + 1]} | {ours: some for ours, some in (extras | {"cut": cut}).items() if some}, schema


def _marked(name: str, value: Any) -> bool:
    """Tell whether a column or a key of a turn says that its row or turn is not to be learned."""
    return str(value).strip().lower() in MARKS.get(normal(name), ())


def _unpacked(text: str, name: str) -> Any:
    """Return the turns that a cell holds as JSON or as Python writes them. An answer of several turns is a text that somebody wants."""
    is_chat = CHAT.match(text) or (name in NAMES["earlier turns"] and text.startswith("[["))
    readers = (json.loads, ast.literal_eval)[: 1 + (len(text) <= 100_000)]  # Python's own takes 500 times as much memory
    for read in readers if is_chat else ():
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            turns = read(text)
            return turns if name not in NAMES["output"] or len(turns) == 1 else text
    return text


def _part(record: dict[str, Any], columns: dict[str, str], names: tuple[str, ...], role: str) -> list[Turn]:
    """Return the turns of some columns: of lists the turns in them, of texts one turn with blank lines between."""
    turns, texts = [], []
    for ours in names:
        column = columns.get(ours)
        if _kind(record.get(column)) == "turns":
            turns += _turns(record[column], column)
        elif column and (ours != "input" or record[column] is not None):
            texts.append(_text(record[column], column))
    text = "\n\n".join(filter(None, texts))
    return [*turns, {"role": role, "content": text}] if text or not turns else turns


def _group(value: Any, column: str, told: bool) -> str:
    """Return a label or conversation as text, whatever it is: rows that belong together are known by it. A cell that can't be read costs
    the row only where it was told, not recognized by its name."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if told or isinstance(value, str):
        return _text(value, column)
    return json.dumps(value, sort_keys=True, default=str) if value and not isinstance(value, BadRow) else ""


def _text(value: Any, field: str) -> str:
    if isinstance(value, BadRow):  # a cell that could not be read
        raise BadRow(value.problem, value.remedy, field)
    if value is None:
        raise BadRow("null or missing, not a text", "write the text", field)
    if not isinstance(value, str):
        raise BadRow(f"{shown(value)}, not a text", "make it a text (in JSON: in quotes; in a table: the whole column)", field)
    if not value.isascii() and (hit := BROKEN.search(value)):
        what = f"byte 0x{ord(hit[0]) & 0xFF:02X}" if "\udc80" <= hit[0] <= "\udcff" else f"half a character ({hit[0]!r})"
        remedy = "retype that place, or save the file as UTF-8 anew"
        raise BadRow(f"{what} at character {hit.start() + 1} does not fit the file's encoding", remedy, field)
    return value


def _turns(value: Any, column: str) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"{shown(value)}, not a list of turns", 'write [{"role": "user", "content": ...}, ...]', column)
    return [_turn(turn, f"{column}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, place: str) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow(f"{shown(turn)}, not a turn", 'write a turn as {"role": ..., "content": ...}', place)
    who = next((key for key in ("role", "from", "speaker", "author", "sender", "type") if key in turn), "role")
    spelled = (key for key in ("content", "value", "text", "message") if turn.get(key) is not None)
    what = next(spelled, "value" if who == "from" else "content")
    role, content = turn.get(who), turn.get(what)
    if role in TOOLS or turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow("a call of a tool, which Gemma 3's chat template has no place for", "drop this conversation", place)
    if not isinstance(role, str) or role.strip().lower() not in ROLES:
        raise BadRow(f"{shown(role)}, not a known role", "use user, assistant, system (or human, gpt)", f"{place}.{who}")
    role, where = ROLES[role.strip().lower()], f"{place}.{what}"
    if isinstance(content, list):
        content = "".join(_piece(part, f"{where}[{i}]") for i, part in enumerate(content))
    unlearned = role == "assistant" and any(_marked(key, value) for key, value in turn.items())
    return {"role": "model" if unlearned else role, "content": _text(content, where)} | ({"weight": 0} if unlearned else {})


def _piece(part: Any, place: str) -> str:
    """Return the text of a part of a turn, as OpenAI's chats, responses and assistants spell it, and those who write "value"."""
    kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else None
    if kind not in ("text", "input_text", "output_text"):
        raise BadRow(f"{shown(part)}, not a part of text", "this series trains on text only; drop it", place)
    while isinstance(part, dict):
        part, place = part.get("value") if part.get("text") is None else part["text"], f"{place}.text"
    return _text(part, place)


def _check_order(turns: list[Turn], column: str) -> None:
    """After a system prompt, if any: user and assistant in turn, the assistant last."""
    roles = ["assistant" if turn["role"] == "model" else turn["role"] for turn in turns]
    due = ["system"] * (roles[0] == "system") + ["user", "assistant"] * len(roles)
    for i, (role, right) in enumerate(zip(roles, due, strict=False)):
        if role != right:
            remedy = "let user and assistant take turns: join or drop turns"
            raise BadRow(f"a turn of the {role} where the {right}'s is due", remedy, f"{column}[{i}]")
    if role != "assistant":
        remedy = "drop the last turn, or add the answer"
        raise BadRow(f"the conversation ends with the {role}'s turn", remedy, f"{column}[{i}]")
