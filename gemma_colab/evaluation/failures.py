"""Is what came out an answer at all? Ways to fail that show without a reference, or by its language alone."""

from __future__ import annotations

import re
from itertools import pairwise

import pandas as pd
from py3langid import classify

CYRILLIC, LATIN = re.compile("[А-яЁё]"), re.compile("[A-Za-z]")
LETTERS = 200  # in a shorter text langid takes ru for uk or bg
FAILURE_MODES = ("empty", "hit the limit", "repeating", "other language")


def repeating(text: str) -> bool:
    """Find a phrase of one to six words that stands three times in a row, or a text of 20 words whose pairs are half the same."""
    said = re.findall(r"\w+", text.lower())
    thrice = re.search(r"(?<!\S)(\S+(?: \S+){0,5})(?: \1){2}(?!\S)", " ".join(said))
    pairs = list(pairwise(said))
    return thrice is not None or (len(said) >= 20 and len(set(pairs)) < len(pairs) / 2)


def other_language(answer: str, reference: str) -> bool:
    """Find another script than the reference's; or, where both are long enough to tell, another language by langid."""
    ours, theirs = (max((CYRILLIC, LATIN), key=lambda script: len(script.findall(text))) for text in (answer, reference))
    letters = [len(ours.findall(answer)), len(theirs.findall(reference))]
    if min(letters) == 0 or ours is not theirs:
        return min(letters) > 0
    return min(letters) >= LETTERS and classify(answer)[0] != classify(reference)[0]


def failures(table: pd.DataFrame, references: list[str]) -> pd.DataFrame:
    """Return one line per row, one column per failure mode: True where something is wrong, and the right answer isn't so too.
    table: of `generation.generate`."""
    pairs = list(zip(table["answer"], references, strict=True))
    found = (
        [not a.strip() and bool(r.strip()) for a, r in pairs],
        [not finished for finished in table["finished"]],
        [repeating(a) and not repeating(r) for a, r in pairs],
        [other_language(a, r) for a, r in pairs],
    )
    return pd.DataFrame(dict(zip(FAILURE_MODES, found, strict=True)), index=table.index)
