"""What a check is, what it sees of the rows, and what it says: which of them it hit and where, how bad that is, what to do."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from gemma_colab.core.rows import Row, answer, place, prompt
from gemma_colab.data.likeness import near_pairs, sameness, shingles
from gemma_colab.data.looking import question, texts


class Hit(NamedTuple):
    """One place: the row (from 0), the field as in `looking.texts`, the characters [start, end) in it, a note, and the row it repeats.

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
    """What one check found. severity: "E" blocks training, "W" warns, "I" informs. lines: of rows that are not in the report."""

    check: str
    severity: str
    what_to_do: str
    hits: list[Hit] = field(default_factory=list)
    lines: list[int | str] = field(default_factory=list)

    @cached_property
    def rows(self) -> list[int]:
        """Numbers of the rows it hit, from 0, each once."""
        return sorted({hit.row for hit in self.hits})

    @property
    def count(self) -> int:
        """How many rows it is about, read or not."""
        return len(self.rows) or len(self.lines)


_near = functools.lru_cache(maxsize=1)(lambda texts, threshold: near_pairs([*map(shingles, texts)], threshold))
CHECKS: list[Callable[..., list[Finding]]] = []  # in the order in which they run


def check(*names: str, severity: str = "W", advice: str = "", counts_tokens: bool = False):
    """Register a function of a `CheckContext` as a check; its other arguments, by name, are thresholds. It yields hits, which become one
    finding called names[0], with this severity and advice; or findings, where these depend on what was found, called by any of the names.
    """

    def register(function: Callable[..., Iterable[Hit | Finding]]) -> Callable[..., list[Finding]]:
        @functools.wraps(function)
        def run(context: CheckContext, **thresholds) -> list[Finding]:
            found = list(function(context, **thresholds))
            if found and isinstance(found[0], Hit):
                return [Finding(names[0], severity, advice, found)]
            return found

        run.names, run.counts_tokens = names, counts_tokens
        CHECKS.append(run)
        return run

    return register


@dataclass
class CheckContext:
    """The rows under inspection, and what several checks need of them, computed once. lengths: of `token_lengths`, if known."""

    rows: list[Row]
    max_length: int = 1024
    num_train_epochs: float = 3.0
    near_threshold: float = 0.72
    lengths: pd.DataFrame | None = None
    tokenizer: object | None = None

    def __post_init__(self):
        self.texts = [texts(row) for row in self.rows]
        self.answers = [answer(row) for row in self.rows]

    def place(self, row: int) -> str:
        return place(self.rows[row], row)

    def fields(self) -> Iterator[tuple[int, str, str]]:
        """Yield (number of the row, field, text) for every turn of every row."""
        return ((row, name, text) for row, fields in enumerate(self.texts) for name, text in fields.items())

    @cached_property
    def same_questions(self) -> list[str]:
        return [sameness(question(row)) for row in self.rows]

    @cached_property
    def same_answers(self) -> list[str]:
        return [sameness(text) for text in self.answers]

    @cached_property
    def own_questions(self) -> list[str]:
        """The questions by which rows can be told apart: without system prompts, and without opening paragraphs (an instruction)
        that are over 5 different texts or more. Else all rows of one prompt would look alike."""
        asked = ["\n\n".join(t["content"] for t in prompt(row) if t["role"] != "system" and t["content"]) for row in self.rows]
        seen = Counter(key for text in set(asked) for key, _ in _openings(text))
        return [text[max((end for key, end in _openings(text) if seen[key] >= 5), default=0) :] for text in asked]

    @cached_property
    def near(self) -> list[tuple[int, int, float]]:
        """(row, earlier row, Jaccard of own question and answer together) of at least `near_threshold`. Rows of one `conversation`
        are alike because one goes on where the other ends: they are no pair. Those of the last rows are kept: cleaning, checks and split ask anew."""
        whole = [f"{own} {said}" for own, said in zip(self.own_questions, self.answers, strict=True)]
        names = [row.get("conversation") for row in self.rows]
        pairs = _near(tuple(whole), self.near_threshold)
        return [pair for pair in pairs if names[pair[0]] is None or names[pair[0]] != names[pair[1]]]


def _openings(text: str) -> Iterator[tuple[int, int]]:
    """Yield a key of the text before each blank line, and where the text goes on behind it."""
    key = end = 0
    for paragraph in text.split("\n\n")[:-1]:
        key, end = hash((key, paragraph)), end + len(paragraph) + 2
        yield key, end
