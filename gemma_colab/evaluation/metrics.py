"""Plain functions `(predictions, references) -> one score a row`. Add your own in three lines."""

from __future__ import annotations

import re
from collections import Counter

ORDER_NUMBER = re.compile(r"№\s?(\d{5})(?!\d)")


def exact_match(predictions: list[str], references: list[str]) -> list[float]:
    """1.0 where the answer is the reference, outer spaces aside."""
    return [float(p.strip() == r.strip()) for p, r in zip(predictions, references, strict=True)]


def token_f1(predictions: list[str], references: list[str]) -> list[float]:
    """Harmonic mean of precision and recall over words, 0-1, as SQuAD counts it (arXiv 1606.05250)."""
    scores = []
    for p, r in zip(predictions, references, strict=True):
        mine, theirs = re.findall(r"\w+", p.lower()), re.findall(r"\w+", r.lower())
        shared = sum((Counter(mine) & Counter(theirs)).values())
        scores.append(2 * shared / (len(mine) + len(theirs)) if shared else 0.0)
    return scores


def order_number_kept(predictions: list[str], references: list[str]) -> list[float | None]:
    """1.0 where the order numbers (№ and five digits) of the answer are just those of the reference; None where it has none."""
    scores = []
    for p, r in zip(predictions, references, strict=True):
        wanted = set(ORDER_NUMBER.findall(r))
        scores.append(float(set(ORDER_NUMBER.findall(p)) == wanted) if wanted else None)
    return scores


def contains_answer(predictions: list[str], keys: list[str]) -> list[float]:
    """1.0 where the key stands in the answer as whole words, case and ё aside: for general questions with one right word."""

    def plain(text):
        return text.lower().replace("ё", "е")

    return [
        float(re.search(rf"(?<!\w){re.escape(plain(k))}(?!\w)", plain(p)) is not None)
        for p, k in zip(predictions, keys, strict=True)
    ]
