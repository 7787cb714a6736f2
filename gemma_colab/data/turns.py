"""Conversations of several turns, and rows too long for `max_length`: what to do with them is a choice, never a default."""

from __future__ import annotations

import json

import pandas as pd

from gemma_colab.core.chat import token_lengths
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, fingerprint


def fit(rows: list[Row], tokenizer, max_length: int, how: str) -> tuple[list[Row], pd.DataFrame]:
    """Rows that fit into `max_length` tokens, and a log: line, the row before as JSON, its tokens, what was done.

    how: "drop" leaves out rows that are too long. "split" cuts conversations between two exchanges into shorter ones, each
    with the system prompt; an exchange that is too long on its own is left out. Raises `SettingsError` for another value.
    """
    if how not in ("drop", "split"):
        raise SettingsError(f"how={how!r} must be 'drop' or 'split'; try 'drop'")
    if tokenizer is None:
        raise SettingsError("tokenizer=None can't tell which rows are too long; give the tokenizer of your model")
    totals = token_lengths(rows, tokenizer, max_length)["total"]
    kept, log = [], []
    for row, total in zip(rows, totals, strict=True):
        if total <= max_length:
            kept.append(row)
            continue
        pieces = _pieces(row, tokenizer, max_length) if how == "split" else []
        kept += pieces
        log.append(
            (row.get("line"), json.dumps(row, ensure_ascii=False), total, f"split into {len(pieces)}" if pieces else "dropped")
        )
    return kept, pd.DataFrame(log, columns=["line", "before", "tokens", "done"])


def _pieces(row: Row, tokenizer, max_length: int) -> list[Row]:
    """Runs of whole exchanges, each as long as fits."""
    turns = row.get("messages", [])
    system = [turn for turn in turns if turn["role"] == "system"]
    exchanges = [turns[i : i + 2] for i in range(len(system), len(turns), 2)]
    name, pieces, run = row.get("conversation", fingerprint(row)), [], []
    for exchange in exchanges:
        for candidate in ([*run, *exchange], exchange):
            if _tokens(system + candidate, tokenizer) <= max_length:
                break
        else:  # this exchange alone is too long
            pieces, run = _with(pieces, run), []
            continue
        pieces, run = (pieces if len(candidate) > len(exchange) or not run else _with(pieces, run)), candidate
    return [row | {"messages": system + piece, "conversation": name} for piece in _with(pieces, run)]


def _with(pieces: list, run: list) -> list:
    return [*pieces, run] if run else pieces


def _tokens(turns: list[dict], tokenizer) -> int:
    return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
