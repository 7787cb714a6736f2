"""What a row is: one example to learn from, in one of two shapes, and the few words needed to look at either.

Single turn, as in the Alpaca dataset: `{"instruction": ..., "input": ..., "output": ...}`. More than one turn, or a system
prompt: `{"messages": [{"role": "system" | "user" | "assistant", "content": ...}, ...]}`, ending with the assistant.
Either may also carry `line` (where it began in its file, from 1), `item` (its number in a list on one line), `label` (a class, to stratify a split by) and `conversation`
(rows with the same value belong together). All texts are strings.
"""

from __future__ import annotations

import hashlib
from typing import Any

Row = dict[str, Any]
FIELDS = ("instruction", "input", "output")
EXTRAS = ("line", "item", "label", "conversation")


def place(row: Row, number: int) -> str:
    """Where to look for the row: "line 17", or "item 17" of a list that stands on one line; else its number from 0."""
    return next((f"{name} {row[name]}" for name in ("item", "line") if name in row), f"row {number}")


def texts(row: Row) -> dict[str, str]:
    """Field -> text, in reading order. The fields of a conversation are called `messages[0]`, `messages[1]`, ..."""
    if "messages" in row:
        return {f"messages[{i}]": turn["content"] for i, turn in enumerate(row["messages"])}
    return {field: row[field] for field in FIELDS}


def with_texts(row: Row, new: dict[str, str]) -> Row:
    """A copy of the row with these texts, named as `texts` names them."""
    if "messages" in row:
        turns = [turn | {"content": new.get(f"messages[{i}]", turn["content"])} for i, turn in enumerate(row["messages"])]
        return row | {"messages": turns}
    return row | new


def answer_field(row: Row) -> str:
    """The field that is trained on: `output`, or the last message."""
    return f"messages[{len(row['messages']) - 1}]" if "messages" in row else "output"


def answer(row: Row) -> str:
    return row["messages"][-1]["content"] if "messages" in row else row["output"]


def question(row: Row) -> str:
    """Everything before the answer: instruction and input, or all earlier messages, with a blank line between."""
    parts = [turn["content"] for turn in row["messages"][:-1]] if "messages" in row else [row["instruction"], row["input"]]
    return "\n\n".join(part for part in parts if part)


def fingerprint(row: Row) -> str:
    """Sixteen digits that change when a text of the row does: by them a decision about a row finds it again."""
    return hashlib.sha256("\x1f".join(f"{k}\x1e{v}" for k, v in texts(row).items()).encode("utf-8", "surrogatepass")).hexdigest()[
        :16
    ]
