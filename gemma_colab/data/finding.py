"""What a check says: which rows it hit and where, how bad that is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from gemma_colab.data.neighbours import Pair, near_pairs, sketches
from gemma_colab.data.text import normalise, shingles
from gemma_colab.rows import Row, answer, question, texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Hit(NamedTuple):
    """One place: the row (from 0), the field, the characters [start, end) in it, and a note for the reader.

    end = 0: the whole field. field = "": the whole row.
    """

    row: int
    field: str = ""
    start: int = 0
    end: int = 0
    note: str = ""


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


@dataclass(frozen=True)
class Look:
    """The rows under inspection, and what several checks need of them, computed once."""

    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase | None = None
    max_length: int = 1024
    num_train_epochs: float = 3.0

    @cached_property
    def texts(self) -> list[dict[str, str]]:
        return [texts(row) for row in self.rows]

    @cached_property
    def questions(self) -> list[str]:
        return [normalise(question(row)) for row in self.rows]

    @cached_property
    def answers(self) -> list[str]:
        return [normalise(answer(row)) for row in self.rows]

    @cached_property
    def near(self) -> list[Pair]:
        """Pairs of rows, question and answer together, with Jaccard 0.6 or more."""
        sets = [shingles(" ".join(fields.values())) for fields in self.texts]
        return near_pairs(sets, 0.6, sketches(sets))
