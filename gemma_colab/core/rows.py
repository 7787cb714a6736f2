"""What a row is: one example to learn from.

A row is `{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}`: perhaps a system prompt, then user and
assistant in turn, the assistant last. It has this shape from its file until TRL trains on it. An earlier answer that is not to be learned
has Gemma's own word as its role, "model": the chat template writes both alike, TRL learns those of the assistant only. Beside the messages
there may be `line` (where it began in its file, from 1), `item` (its number in a list on one line), `label` (a class, to stratify a split
by), `conversation` (rows with the same value belong together), `cut` (how many answers at its end were not to be learned) and `as_read`
(if changed since: its first fingerprint).
"""

import re
from typing import Any

Row = dict[str, Any]
Turn = dict[str, str]


def to_messages(record: dict) -> Row:
    """Turn `{"instruction", "input", "output"}`, perhaps with a `system` prompt, into a row; the extras stay beside the messages.

    Instruction and input become one user turn, with a blank line between them. TRL's `{"prompt": [...], "completion": [...]}` is
    understood too (workspaces made before version 2 hold it), and a row is returned as it is. Raises `ValueError`, `KeyError` or `TypeError` for what is none.
    """
    if "messages" in record:
        roles = " ".join(turn["role"] + turn["content"][:0] for turn in record["messages"])  # raises where one is no text
        if not re.fullmatch("(system )?(user (assistant|model) )*user assistant", roles):
            raise ValueError(f"its turns are {roles!r}, and user and assistant must take turns")
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
    return [turn | {"role": "assistant"} if turn["role"] == "model" else turn for turn in row["messages"][:-1]]


def answer(row: Row) -> str:
    """Return the last answer: what the model should say."""
    return row["messages"][-1]["content"]


def place(row: Row, number: int) -> str:
    """Say where to look for a row: "line 17", or "item 17" of a list that is written on one line; else its number, as given."""
    return next((f"{name} {row[name]}" for name in ("item", "line") if row.get(name) is not None), f"row {number}")
