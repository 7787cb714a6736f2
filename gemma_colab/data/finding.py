"""What a check says: which rows it hit and where, how bad that is, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from gemma_colab.core.rows import Row, answer, question, texts
from gemma_colab.data.neighbours import Pair, near_pairs
from gemma_colab.data.text import sameness, shingles


class Hit(NamedTuple):
    """One place: the row (from 0), the field, the characters [start, end) in it, a note for the reader, and the row it repeats.

    end = 0: the whole field. field = "": the whole row.
    """

    row: int
    field: str = ""
    start: int = 0
    end: int = 0
    note: str = ""
    twin: int | None = None


@dataclass(frozen=True)
class Finding:
    """What one check found. severity: "E" blocks training, "W" warns, "I" informs. lines: of rows that could not be read."""

    check: str
    severity: str
    what_to_do: str
    hits: list[Hit] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    @cached_property
    def rows(self) -> list[int]:
        """Numbers of the rows it hit, from 0, each once."""
        return sorted({hit.row for hit in self.hits})

    @property
    def count(self) -> int:
        """How many rows it is about, read or not."""
        return len(self.rows) or len(self.lines)


def own_questions(rows: list[Row], common: int = 5) -> list[str]:
    """The questions by which rows can be told apart: without system messages, and without an opening (an instruction) that
    stands over `common` different texts or more. Else all rows of one prompt would look alike."""
    asked = [question(row | {"messages": [turn for turn in row["messages"] if turn["role"] != "system"]}) for row in rows]
    seen = Counter(key for text in set(asked) for key, _ in _openings(text))
    return [text[max((end for key, end in _openings(text) if seen[key] >= common), default=0) :] for text in asked]


def _openings(text: str) -> Iterator[tuple[int, int]]:
    """A key of the text before each blank line, and where the text goes on behind it."""
    key = end = 0
    for paragraph in text.split("\n\n")[:-1]:
        key, end = hash((key, paragraph)), end + len(paragraph) + 2
        yield key, end


@dataclass(frozen=True)
class Look:
    """The rows under inspection, and what several checks need of them, computed once."""

    rows: list[Row]
    max_length: int = 1024
    num_train_epochs: float = 3.0
    near_threshold: float = 0.72

    @cached_property
    def texts(self) -> list[dict[str, str]]:
        return [texts(row) for row in self.rows]

    @cached_property
    def questions(self) -> list[str]:
        return [sameness(question(row)) for row in self.rows]

    @cached_property
    def answers(self) -> list[str]:
        return [sameness(answer(row)) for row in self.rows]

    @cached_property
    def own(self) -> list[str]:
        return own_questions(self.rows)

    @cached_property
    def near(self) -> list[Pair]:
        """Pairs of rows, own question and answer together, with Jaccard `near_threshold` or more. Rows of one `conversation`
        are alike because one goes on where the other ends: they are no pair."""
        whole = [f"{own} {answer(row)}" for own, row in zip(self.own, self.rows, strict=True)]
        names = [row.get("conversation") for row in self.rows]
        pairs = near_pairs([shingles(text) for text in whole], self.near_threshold)
        return [pair for pair in pairs if names[pair.row] is None or names[pair.row] != names[pair.earlier]]
