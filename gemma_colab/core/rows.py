"""What a row is: one example to learn from, and the few words needed to look at it.

A row is `{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}`: perhaps a system prompt, then user and
assistant in turn, the assistant last. It has this shape from the moment its file was read until TRL trains on it. Beside the messages
it may carry `line` (where it began in its file, from 1), `item` (its number in a list that stands on one line), `label` (a class, to
stratify a split by) and `conversation` (rows with the same value belong together).
"""

from __future__ import annotations

import hashlib
from typing import Any

Row = dict[str, Any]
Turn = dict[str, str]


def to_messages(record: dict) -> Row:
    """Turn `{"instruction", "input", "output"}`, perhaps with a `system` prompt, into a row; the extras stay beside the messages.

    Instruction and input become one user turn, with a blank line between them. TRL's `{"prompt": [...], "completion": [...]}` is
    understood too (workspaces made before version 2 hold it), and a row is returned as it is.
    """
    if "messages" in record:
        return record
    parts = ("instruction", "input", "output", "system", "prompt", "completion")
    extras = {key: value for key, value in record.items() if key not in parts}
    if "prompt" in record:
        return {"messages": [*record["prompt"], *record["completion"]]} | extras
    asked = "\n\n".join(filter(None, (record["instruction"], record.get("input", ""))))
    turns = [("system", record["system"])] if record.get("system") else []
    turns += [("user", asked), ("assistant", record["output"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]} | extras


def prompt(row: Row) -> list[Turn]:
    """Return the turns before the last answer: what the model is asked."""
    return row["messages"][:-1]


def answer(row: Row) -> str:
    """Return the last answer: what the model should say."""
    return row["messages"][-1]["content"]


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
    """Return a copy of the row with these texts, by field as in `texts`; files made before version 2 say `messages[0]`, `messages[1]`."""
    fields = enumerate(zip(texts(row), row["messages"], strict=True))
    contents = [new.get(field, new.get(f"messages[{i}]", turn["content"])) for i, (field, turn) in fields]
    return row | {"messages": [turn | {"content": text} for turn, text in zip(row["messages"], contents, strict=True)]}


def place(row: Row, number: int) -> str:
    """Say where to look for a row: "line 17", or "item 17" of a list that stands on one line; else its number, from 0."""
    return next((f"{name} {row[name]}" for name in ("item", "line") if name in row), f"row {number}")


def fingerprint(row: Row) -> str:
    """Return sixteen digits that change when a text of the row does: by them a decision about a row finds it again."""
    return fingerprint_of({f"messages[{i}]": turn["content"] for i, turn in enumerate(row["messages"])})


def fingerprint_of(fields: dict[str, str]) -> str:
    """Return the fingerprint of some texts by their names."""
    joined = "\x1f".join(f"{name}\x1e{text}" for name, text in fields.items())
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]
