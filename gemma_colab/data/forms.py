"""Which columns mean what: the forms of records that are known by their names, and those that a mapping tells.

Everything here is pure: names in, a `Form` or an `UnknownForm` out. `records.py` reads records by it.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gemma_colab.core.errors import SettingsError

FIELDS = ("instruction", "input", "output")


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
    "document": "document, article, text, dialogue, документ, статья, текст",  # where nothing else is asked
    "summary": "summary, highlights, резюме, краткое содержание",  # where there is no other answer
    "history": "history",  # LLaMA-Factory: the earlier turns, as pairs of question and answer
    "chosen": "chosen, chosen response",  # of preference data
    "rejected": "rejected, rejected response",
}
NAMES = {ours: tuple(names.split(", ")) for ours, names in NAMES.items()}
EARLIER = "earlier turns"
EXTRAS = ("system", "label", "conversation")
KEYS = (*FIELDS, "system", "messages", "label", "conversation")  # of a mapping
NO_TEXT = re.compile(  # names of columns that are neither question nor answer
    r"(.* )?(id|uuid|guid|index|url|link|date|timestamp|номер|№|дата|ссылка|идентификатор)|id .*|unnamed: \d+"
)
NUMBER = re.compile(r"[-+−]?\d[\d\s.,]*%?")
CHAT = {"messages", "conversations"}  # columns that are nothing else; the others of NAMES["messages"] only when they hold a list


class BadRow(Exception):
    """One record that can't become a row: what is wrong, what to do, in which field. It stays inside `gemma_colab.data`."""

    def __init__(self, problem: str, remedy: str, field: str = "", content: Any = None):
        super().__init__(problem)
        self.problem, self.remedy, self.field, self.content = problem, remedy, field, content


class UnknownForm(BadRow):
    """No form fits the columns, or more than one does."""


@dataclass(frozen=True)
class Form:
    """How records with certain keys are read. `columns`: our name -> their column."""

    name: str  # said to the user
    kind: str  # "texts" in columns, "turns" in one column, or "prompts": turns in two
    columns: dict[str, str]
    ignored: tuple[str, ...]
    keys: str  # all keys there are, sorted


def shown(value: Any, most: int = 60) -> str:
    """The value in one short line: JSON's words for null and true, control characters escaped, at most `most` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 3, 4, 4
    text = repr(value[: most + 1]) if isinstance(value, str) else short.repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(name: Any) -> str:
    """A file or column name that can be printed: names need be neither UTF-8 nor short."""
    name = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return name if len(name) <= 160 else f"{name[:80]}…{name[-60:]}"


def some(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(names: Iterable[Any]) -> str:
    return some(shown(str(name), 40) for name in names) or "(none)"


def normal(name: Any) -> str:
    """The name of a column as it is compared."""
    return re.sub(r"[\s_-]+", " ", str(name).lower().replace("ё", "е")).strip()


def guess_mapping(columns: list[str], record: dict[str, Any] | None = None) -> dict[str, str]:
    """Our name -> their column, for records of questions and answers. Raises `UnknownForm` where none or several fit.

    record: one of them; with it the error's remedy names only columns that hold texts.

    >>> guess_mapping(["Тема", "Вопрос", "Ответ", "id"])
    {'instruction': 'Тема', 'input': 'Вопрос', 'output': 'Ответ'}
    """
    found = _candidates(columns)
    for ours in FIELDS:  # our own names win: a table may hold its texts in a second form as well
        found[ours] = [c for c in found[ours] if normal(c) == ours] or found[ours]
    if all(found[ours] and normal(found[ours][0]) == ours for ours in FIELDS):
        found["question"] = []
    preference = found["chosen"] and found["rejected"] and not found["output"]
    if not found["output"] and found["summary"]:
        found["output"], found["input"] = found["summary"], found["input"] or found["document"][:1]
    elif not any(found[ours] for ours in ("instruction", "question", "input")):
        found["input"] = found["document"][:1]
    call = _call(columns, found, record or {})
    if preference:
        raise UnknownForm("preference data, a chosen and a rejected answer to each question; here the chosen one is learnt", call)
    for ours in (*FIELDS, "question"):
        if len(found[ours]) > 1:
            raise UnknownForm(f"{len(found[ours])} columns could be the {ours}: {listed(found[ours])}", call, ours)
    asked = [theirs for ours in ("instruction", "question", "input") for theirs in found[ours]]
    if lacking := [what for what, there in (("question", asked), ("answer", found["output"])) if not there]:
        field = {"question": "instruction", "answer": "output"}[lacking[0]] if len(lacking) == 1 else ""
        raise UnknownForm(f"no column is known as the {' and '.join(lacking)}; the columns are {listed(columns)}", call, field)
    if len(asked) > 2:
        raise UnknownForm(f"{len(asked)} columns could be the question: {listed(asked)}", call, "instruction")
    others = {ours: found[ours][0] for ours in ("output", *EXTRAS) if found[ours]}
    return dict(zip(("instruction", "input"), asked, strict=False)) | others


def _candidates(columns: list[str]) -> dict[str, list[str]]:
    return {ours: [c for name in names for c in columns if normal(c) == name] for ours, names in NAMES.items()}


def _call(columns: list[str], found: dict[str, list[str]], record: dict[str, Any]) -> str:
    """What to do: the call to write, with columns of the record that can be meant."""
    names = [str(c) for c in columns]
    if len(names) < 2:
        return "a row needs a question and an answer, in two columns such as instruction and output"
    if any(len(n) > 40 or n.isdigit() or n.rstrip().endswith(("?", "!", ".")) for n in names):
        return "if this is a row and no header, add a first line of names such as instruction,input,output"
    known = found["output"] or found["chosen"]
    fit = [c for c in columns if not (c in found["rejected"] or NO_TEXT.fullmatch(normal(c))) and _text_or_none(record.get(c))]
    words = [c for c in fit if not NUMBER.fullmatch(str(record.get(c)).strip())]
    asked = [*found["instruction"], *found["question"], *found["input"]][:2] or [c for c in words if c not in known][:1]
    answers = [c for c in (*known, *reversed(words), *reversed(fit)) if c not in asked][:1]
    pairs = dict(zip(("instruction", "input"), asked, strict=False)) | dict(zip(("output",), answers, strict=False))
    if found["chosen"] and _begins_with_question(record.get(found["chosen"][0])):
        pairs = {"messages": found["chosen"][0]}
    if not ((asked and answers) or "messages" in pairs) or not all(c.isprintable() for c in pairs.values()):
        return "choose one of them as instruction and one as output, with mapping= (on the command line: --map)"
    mapping = ", ".join(f'"{ours}": {theirs!r}' for ours, theirs in pairs.items())
    line = " ".join(f"--map {_quoted(f'{ours}={theirs}')}" for ours, theirs in pairs.items())
    said = "take the chosen answers" if known and known == found["chosen"] else "say which is which"
    return f"{said}: read_rows(..., mapping={{{mapping}}}) (on the command line: {line})"


def _text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _begins_with_question(turns: Any) -> bool:
    """Whether this is a whole conversation, not an answer alone."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and first.get("role", first.get("from")) in ("user", "human", "system")


def _quoted(word: str) -> str:
    """For a command line; in double quotes where they do, as Windows knows no others."""
    if re.fullmatch(r"[\w.=-]+", word):
        return word
    return shlex.quote(word) if re.search(r'["$`\\!%]', word) else f'"{word}"'


def recognise(
    columns: list[str],
    lists: frozenset = frozenset(),
    nulls: frozenset = frozenset(),
    record: dict[str, Any] | None = None,
) -> Form:
    """The form of records with these columns, of which `lists` hold lists of turns and `nulls` nothing. Raises `UnknownForm`."""
    present = [c for c in columns if c not in nulls]
    found = _candidates(present)
    chats = [c for c in found["messages"] if c in lists or normal(c) in CHAT]
    if chats:
        chat = min(chats, key=lambda c: c not in lists)
        name = {"messages": "OpenAI messages", "conversations": "ShareGPT conversations"}.get(normal(chat))
        extras = {ours: c for ours in EXTRAS for c in found[ours][::-1] if c != chat}  # the first name wins: it comes last
        return _form(name or f"conversations in {printable(chat)!r}", "turns", {"messages": chat} | extras, columns, nulls)
    mapping = guess_mapping(present, record)
    asked, answer = mapping["instruction"], mapping["output"]
    if asked in lists or answer in lists:
        return _form(f"conversational {printable(asked)}/{printable(answer)}", "prompts", mapping, columns, nulls)
    names = {ours: normal(theirs) for ours, theirs in mapping.items() if ours in FIELDS}
    if earlier := [c for c in found["history"] if c in lists]:
        mapping[EARLIER] = earlier[0]
    if all(ours == theirs for ours, theirs in names.items()):
        return _form("Alpaca instruction/input/output", "texts", mapping, columns, nulls)
    if names == {"instruction": "prompt", "output": "completion"}:
        return _form("prompt/completion", "texts", mapping, columns, nulls)
    return _form("question/answer columns: " + _arrows(mapping), "texts", mapping, columns, nulls)


def _form(name: str, kind: str, mapping: dict[str, str], columns: list[str], nulls: frozenset = frozenset()) -> Form:
    extras = {ours: theirs for ours, theirs in mapping.items() if ours in (*EXTRAS, EARLIER)}
    said = "" if "->" in name or not extras else " with " + _arrows(extras)
    ignored = tuple(c for c in columns if c not in mapping.values() and c not in nulls)
    return Form(name + said, kind, mapping, ignored, ", ".join(sorted(map(printable, columns))))


def _arrows(mapping: dict[str, str]) -> str:
    return ", ".join(f"{printable(theirs)} -> {ours}" for ours, theirs in mapping.items())


# --- a mapping that the user gives


def check_mapping(mapping: dict[str, str] | None) -> None:
    """Raises `SettingsError` for a mapping that can't be meant."""
    if mapping is None:
        return
    if not isinstance(mapping, dict) or not all(isinstance(c, str) for pair in mapping.items() for c in pair):
        raise SettingsError(f"mapping={shown(mapping)} is to be our name -> your column, such as {{'output': 'Ответ'}}")
    for key in mapping:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"mapping has the key {shown(key)}, which is not one of {', '.join(KEYS)}{hint}")
    if "messages" in mapping and mapping.keys() & set(FIELDS):
        raise SettingsError("mapping has messages as well as instruction, input or output; give one or the other")
    if "messages" not in mapping and not ("output" in mapping and mapping.keys() & {"instruction", "input"}):
        raise SettingsError(f"mapping names only {', '.join(mapping) or 'nothing'}; it needs instruction and output, or messages")


def mapped(mapping: dict[str, str], columns: list[str], table: bool, lists: frozenset = frozenset()) -> Form:
    """The form that the user told; `lists` as for `recognise`. Raises `UnknownForm` for a column that is missing; a record may lack an optional one."""
    if "instruction" not in mapping and "input" in mapping:  # all that is asked
        mapping = {"instruction" if ours == "input" else ours: theirs for ours, theirs in mapping.items()}
    own = {ours: column for ours, theirs in mapping.items() if (column := _column(theirs, columns)) is not None}
    for ours, theirs in mapping.items():
        if ours not in own and (table or ours in ("instruction", "output", "messages")):
            there = {normal(c): c for c in columns}
            near = difflib.get_close_matches(normal(theirs), there, 1)
            hint = f"; the nearest is {shown(there[near[0]])}" if near else ""
            raise UnknownForm(f"missing; there are {listed(columns)}{hint}", "correct the mapping, or add the field", theirs)
    kind = "turns" if "messages" in own else "prompts" if lists & {own["instruction"], own["output"]} else "texts"
    return _form("columns as mapped: " + _arrows(own), kind, own, columns)


def _column(name: str, columns: list[str]) -> str | None:
    """The column meant by a mapping: of exactly this name, or the only one that differs in case, spaces or ё."""
    alike = [name] if name in columns else [c for c in columns if normal(c) == normal(name)]
    return alike[0] if len(alike) == 1 else None
