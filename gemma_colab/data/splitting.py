"""Deal rows out to train, validation and test so that look-alikes stay together."""

from __future__ import annotations

import random

from gemma_colab.data.text import jaccard, shingles
from gemma_colab.errors import DatasetError
from gemma_colab.settings import SplitSettings

Row = dict[str, str]


def _texts(row: Row) -> tuple[frozenset[str], frozenset[str]]:
    """Shingles of the question and of the answer."""
    return shingles(row["instruction"] + " " + row["input"]), shingles(row["output"])


def _alike(one, other, threshold: float) -> bool:
    """Whether the questions, or the answers, of two rows are near duplicates."""
    return any(jaccard(a, b) >= threshold for a, b in zip(one, other, strict=True))


def groups(rows: list[Row], threshold: float = 0.5, most: int = 3000) -> list[list[int]]:
    """Row numbers grouped: two rows whose questions or answers are near duplicates (Jaccard >= threshold) share a group.

    Compares each pair, so rows beyond `most` are grouped only with equal texts.
    """
    texts = [_texts(row) for row in rows]
    parent = list(range(len(rows)))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    seen = {}
    for i, pair in enumerate(texts):
        for part, text in enumerate(pair):
            parent[root(i)] = root(seen.setdefault((part, text), i))
        for j in range(i if i < most else 0):
            if _alike(pair, texts[j], threshold):
                parent[root(i)] = root(j)
    found = {}
    for i in range(len(rows)):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def split_rows(rows: list[Row], settings: SplitSettings) -> dict[str, list[Row]]:
    """{"train", "validation", "test"} -> rows. The same rows and seed give the same split.

    Raises `DatasetError` when a part would stay empty.
    """
    shuffled = groups(rows)
    random.Random(settings.seed).shuffle(shuffled)
    want = {"test": round(len(rows) * settings.test_size), "validation": round(len(rows) * settings.validation_size)}
    parts = {"train": [], "validation": [], "test": []}
    for group in sorted(shuffled, key=len, reverse=True):  # stable: big groups first, so that they don't overfill a small part
        name = next((n for n in want if len(parts[n]) + len(group) <= want[n]), "train")
        parts[name] += group
    if empty := [name for name, part in parts.items() if not part]:
        raise DatasetError(
            f"{len(rows)} rows in {len(shuffled)} groups leave {', '.join(empty)} empty; add rows, or raise its share"
        )
    return {name: [rows[i] for i in sorted(part)] for name, part in parts.items()}


def leaks(parts: dict[str, list[Row]], threshold: float = 0.72) -> list[tuple[str, int, int]]:
    """(part, row in it, row in train) for each held-out row whose question or answer is nearly one of training."""
    train = [_texts(row) for row in parts["train"]]
    found = []
    for name in ("validation", "test"):
        for i, mine in enumerate(map(_texts, parts[name])):
            twin = next((j for j, theirs in enumerate(train) if _alike(mine, theirs, threshold)), None)
            if twin is not None:
                found.append((name, i, twin))
    return found
