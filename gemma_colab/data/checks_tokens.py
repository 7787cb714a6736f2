"""Checks that need the tokenizer: what the chat template makes of a row, how long that is, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from gemma_colab.core.rows import answer_field
from gemma_colab.data.finding import Finding, Hit, Look


def too_long(look: Look, lengths: pd.DataFrame, most: float = 0.05) -> Iterator[Finding]:
    """Rows beyond `max_length`: a warning, and an error when more than the share `most` of all rows is."""
    long = lengths[lengths["total"] > look.max_length]
    if len(long):
        lost = (long["answer_tokens_cut"] / long["answer"].clip(lower=1)).mean()
        hits = [
            Hit(row, answer_field(look.rows[row]), note=f"{total} tokens, {cut} of {of} answer tokens are cut")
            for row, total, cut, of in zip(long.index, long["total"], long["answer_tokens_cut"], long["answer"], strict=True)
        ]
        advice = f"beyond max_length={look.max_length}, {lost:.0%} of their answers is lost on average; "
        advice += f"raise it (the longest row has {lengths['total'].max()} tokens), or drop or split these rows with `fit`"
        yield Finding("too long", "E" if len(long) > most * len(lengths) else "W", advice, hits)


def nothing_trained(look: Look, lengths: pd.DataFrame) -> Iterator[Finding]:
    """Rows of which no answer token is left: their loss is empty."""
    hits = [Hit(i) for i in lengths.index[lengths["answer"] <= lengths["answer_tokens_cut"]]]
    if hits:
        yield Finding("nothing trained", "E", "the question alone fills max_length; shorten it, or raise max_length", hits)


def dropped(look: Look, lengths: pd.DataFrame, most: float = 0.3) -> Iterator[Finding]:
    """More than the share `most` of the rows would be lost if rows that are too long were dropped."""
    share = (lengths["total"] > look.max_length).mean()
    if share > most:
        advice = f"{share:.0%} of the rows don't fit into max_length={look.max_length}; raise it rather than drop them"
        yield Finding("too many dropped", "E", advice)


def end_untrained(look: Look, lengths: pd.DataFrame) -> Iterator[Finding]:
    """Rows whose `<end_of_turn>` is not trained although they fit: the template at hand is not one for training."""
    hits = [Hit(i) for i in lengths.index[~lengths["end_trained"] & (lengths["total"] <= look.max_length)]]
    if hits:
        yield Finding("end not trained", "E", "the model would never learn to stop; use Gemma's own chat template", hits)


def beginnings(look: Look, lengths: pd.DataFrame) -> Iterator[Finding]:
    hits = [Hit(i, note=f"{n} times") for i, n in lengths["bos"].items() if n != 1]
    if hits:
        yield Finding(
            "not one <bos>", "E", "each row starts with exactly one <bos>, which the template adds; take it out of the text", hits
        )


def budget(look: Look, lengths: pd.DataFrame, batch: int = 8) -> Iterator[Finding]:
    """What training will cost: tokens over all epochs, and steps of an effective batch."""
    tokens = int(lengths["total"].clip(upper=look.max_length).sum() * look.num_train_epochs)
    steps = -(-len(lengths) // batch) * look.num_train_epochs
    advice = f"{tokens:,} tokens in {look.num_train_epochs:g} epochs, about {steps:,.0f} steps of {batch} rows, if all rows are trained"
    yield Finding("budget", "I", advice)


TOKEN_CHECKS = [too_long, nothing_trained, dropped, end_untrained, beginnings, budget]
