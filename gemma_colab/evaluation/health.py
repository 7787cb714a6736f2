"""Is what came out an answer at all? Signs that need no reference, or only its language."""

from __future__ import annotations

import re
from itertools import pairwise

import pandas as pd
from py3langid import classify

CYRILLIC, LATIN = re.compile("[А-яЁё]"), re.compile("[A-Za-z]")
LETTERS = 200  # in a shorter text langid takes ru for uk or bg
SIGNS = ("empty", "hit the limit", "repeating", "other language")


def repeating(text: str) -> bool:
    """A phrase of one to six words that stands three times in a row, or a text of 20 words whose pairs are half the same."""
    said = re.findall(r"\w+", text.lower())
    for size in range(1, 7):
        for start in range(len(said) - 3 * size + 1):
            phrase = said[start : start + size]
            if phrase == said[start + size : start + 2 * size] == said[start + 2 * size : start + 3 * size]:
                return True
    pairs = list(pairwise(said))
    return len(said) >= 20 and len(set(pairs)) < len(pairs) / 2


def other_language(answer: str, reference: str) -> bool:
    """Another script than the reference's; or, where both are long enough to tell, another language by langid."""
    ours, theirs = (max((CYRILLIC, LATIN), key=lambda script: len(script.findall(text))) for text in (answer, reference))
    letters = [len(ours.findall(answer)), len(theirs.findall(reference))]
    if min(letters) == 0 or ours is not theirs:
        return min(letters) > 0
    return min(letters) >= LETTERS and classify(answer)[0] != classify(reference)[0]


def signs(table: pd.DataFrame, wanted: list[str]) -> pd.DataFrame:
    """One line a row, one column of `SIGNS`: True where something is wrong, and the right answer isn't so too.
    table: of `generation.generate`."""
    pairs = list(zip(table["answer"], wanted, strict=True))
    return pd.DataFrame(
        {
            "empty": [not a.strip() and bool(w.strip()) for a, w in pairs],
            "hit the limit": [not finished for finished in table["finished"]],
            "repeating": [repeating(a) and not repeating(w) for a, w in pairs],
            "other language": [other_language(a, w) for a, w in pairs],
        },
        index=table.index,
    )


def health(tables: dict[str, pd.DataFrame], wanted: list[str]) -> pd.DataFrame:
    """contestant -> the share of its answers with each sign and with any of them, and the mean length in tokens."""
    found = {name: signs(table, wanted) for name, table in tables.items()}
    lines = {name: one.mean().to_dict() | {"any": one.any(axis=1).mean()} for name, one in found.items()}
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=[*SIGNS, "any"])
    return frame.assign(tokens=[table["tokens"].mean() for table in tables.values()])
