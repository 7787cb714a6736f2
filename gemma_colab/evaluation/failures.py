"""What a program can see of an answer without knowing what is true: faults that show by themselves, such as one that breaks off, and
whether the answer is more like its right answer than an answer to another question would be.

An answer without a fault is complete, and may still be nonsense in the house's own words; likeness finds that out.
"""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
from py3langid import classify

from gemma_colab.evaluation.metrics import Texts, token_f1

CYRILLIC, LATIN = re.compile("[А-яЁё]"), re.compile("[A-Za-z]")
LETTERS = 200  # in a shorter text langid takes ru for uk or bg
FAILURE_MODES = ("empty", "hit the limit", "repeating", "other language")
UNLIKE = "unlike the right answer"


def repeating(text: str) -> bool:
    """Find a phrase of one to six words that comes three times in a row, or a text of 20 words whose pairs are half the same."""
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


def unlike(answers: Texts, references: Texts) -> list[bool]:
    """Tell of each answer whether it is no more like its right answer than the right answer of another row may be.

    Answers of one house share many words. So the line is drawn from the data: it is the token F1 that 95 of 100 pairs of different
    right answers don't exceed. A good answer in other words exceeds it (in `support_ru` it has 0.3 to 0.45, and the line is near 0.23),
    nonsense made of the same words hardly ever. An answer with the very words of the right one never counts as unlike.
    """
    one, other = np.random.default_rng(0).integers(len(references), size=(2, 2000))
    pairs = [(references[i], references[j]) for i, j in zip(one, other, strict=True) if references[i] != references[j]]
    line = np.quantile(token_f1(*zip(*pairs, strict=True)), 0.95) if pairs else 0.0
    return [bool(score <= line and score < 1) for score in token_f1(answers, references)]
