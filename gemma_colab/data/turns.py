"""Rows too long for `max_length`: what to do with them is a choice, never a default."""

import json

import pandas as pd

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, Turn
from gemma_colab.data.looking import AS_READ, fingerprint
from gemma_colab.model.lengths import token_lengths


def fit(rows: list[Row], tokenizer, max_length: int, how: str) -> tuple[list[Row], pd.DataFrame]:
    """Return the rows that fit into `max_length` tokens, and a log: line, the row before as JSON, its tokens, what was done.

    how: "drop" leaves out rows that are too long. "split" cuts conversations between two exchanges into shorter ones, each
    with the system prompt; an exchange that is too long on its own is left out.
    """
    if how not in ("drop", "split") or tokenizer is None:
        raise SettingsError(f"too_long={how!r} must be 'keep', or 'drop' or 'split' with the tokenizer of your model")
    kept, log = [], []
    for row, total in zip(rows, token_lengths(rows, tokenizer, max_length)["total"], strict=True):
        if total <= max_length:
            kept.append(row)
            continue
        pieces = _pieces(row, tokenizer, max_length) if how == "split" else []
        kept += pieces
        lost = len(row["messages"]) // 2 - sum(len(piece["messages"]) // 2 for piece in pieces)  # exchanges
        done = f"split into {len(pieces)}" + f", {lost} too long on its own left out" * bool(lost) if pieces else "dropped"
        log.append((row.get("line"), json.dumps(row, ensure_ascii=False), total, done))
    return kept, pd.DataFrame(log, columns=["line", "before", "tokens", "done"])


def _pieces(row: Row, tokenizer, max_length: int) -> list[Row]:
    """Return runs of whole exchanges, each as long as fits; an exchange that is too long on its own is in none."""
    turns = row["messages"]
    system = [turn for turn in turns if turn["role"] == "system"]
    name, pieces = row.get("conversation", fingerprint(row, now=True)), [[]]

    def fits(piece: list[Turn]) -> bool:
        return len(tokenizer.apply_chat_template(system + piece, return_dict=True)["input_ids"]) <= max_length

    for i in range(len(system), len(turns), 2):
        exchange = turns[i : i + 2]
        if not fits(exchange):
            pieces.append([])
        elif fits(pieces[-1] + exchange):
            pieces[-1] = pieces[-1] + exchange
        else:
            pieces.append(exchange)
    for piece in pieces:
        while piece and piece[-1]["role"] != "assistant":
            piece.pop()  # an answer that is read only, and its question
    row = {key: value for key, value in row.items() if key != AS_READ}  # a decision about one piece is not about the others
    return [row | {"messages": system + piece, "conversation": name} for piece in pieces if piece]
