"""Look at a row: its texts by field, where it is in its file, and by what a decision about it finds it again."""

import hashlib
from bisect import bisect
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from gemma_colab.core.rows import Row, prompt

AS_READ = "as_read"  # in a row that was changed: the fingerprint of its texts before
BESIDE = "beside: "  # begins the name of a field that is none of the texts
OURS = ("line", "item", "cut", AS_READ)  # what reading and cleaning put beside the texts


def question(row: Row) -> str:
    """Return everything before the last answer as one text, with a blank line between the turns."""
    return "\n\n".join(turn["content"] for turn in prompt(row) if turn["content"])


def texts(row: Row) -> dict[str, str]:
    """Return the texts of a row by field, in reading order: perhaps "system", of a conversation "turn 1", "turn 2" and so on, and always
    "question" and "answer" for the last two turns."""
    turns = row["messages"]
    has_system = turns[0]["role"] == "system"
    fields = [f"turn {i + 1 - has_system}" for i in range(len(turns) - 2)] + ["question", "answer"]
    if has_system:
        fields[0] = "system"
    return {field: turn["content"] for field, turn in zip(fields, turns, strict=True)}


def with_texts(row: Row, new: dict[str, str]) -> Row:
    """Return a copy of the row with these texts, by field as in `texts`; files made before version 2 say `messages[0]`, `messages[1]`.
    If that changes a text, the copy carries the fingerprint of the row as it was read."""
    fields = enumerate(zip(texts(row), row["messages"], strict=True))
    contents = [new.get(field, new.get(f"messages[{i}]", turn["content"])) for i, (field, turn) in fields]
    changed = row | {"messages": [turn | {"content": text} for turn, text in zip(row["messages"], contents, strict=True)]}
    return changed if changed == row else changed | {AS_READ: fingerprint(row)}


def beside(row: Row) -> dict[str, Any]:
    """Return the strings and whole numbers that a row holds beside its texts, by field: "beside: label", "beside: messages.0.name"."""
    found: dict[str, Any] = {}
    _beside(row, lambda field, value: found.setdefault(field, value))
    return found


def with_beside(row: Row, new: dict[str, Any]) -> Row:
    """Return a copy of the row with these values, by field as in `beside`."""
    return _beside(row, lambda field, value: new.get(field, value))


def _beside(value: Any, change: Callable[[str, Any], Any], *place: Any) -> Any:
    if place and (place[0] in OURS or (place[0] == "messages" and place[2:] in (("role",), ("content",)))):
        return value
    if isinstance(value, dict):
        return {key: _beside(some, change, *place, key) for key, some in value.items()}
    if isinstance(value, list):
        return [_beside(some, change, *place, i) for i, some in enumerate(value)]
    return change(BESIDE + ".".join(map(str, place)), value) if isinstance(value, str) or type(value) is int else value


def replaced(text: str, found: Iterable[tuple[str, int, int]]) -> str:
    """The text with words put in the place of others: (word, start, end) of each, in order."""
    pieces, at = [], 0
    for word, start, end in found:
        pieces += [text[at:start], word]
        at = end
    return "".join([*pieces, text[at:]])


def fingerprint(row: Row, now: bool = False) -> str:
    """Return sixteen digits of the texts of the row as it was read, whatever was cleaned or edited since: by them a decision about a
    row finds it again. now: of the texts as they are now."""
    read = {f"messages[{i}]": turn["content"] for i, turn in enumerate(row["messages"])}
    return (not now and row.get(AS_READ)) or fingerprint_of(read)


def fingerprint_of(fields: dict[str, str]) -> str:
    """Return the fingerprint of some texts by their names."""
    joined = "\x1f".join(f"{name}\x1e{text}" for name, text in fields.items())
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def pieces(text: str, spans: list[tuple[int, int]], start: int, stop: int) -> list[tuple[str, bool]]:
    """text[start:stop] cut at the spans: (text, in a span?)."""
    starts, ends = sorted(s for s, _ in spans), sorted(e for _, e in spans)
    cuts = sorted({start, stop, *(place for place in (*starts, *ends) if start < place < stop)})
    return [(text[a:b], bisect(starts, a) > bisect(ends, a)) for a, b in pairwise(cuts)]  # in one: more have begun than ended
