"""Which texts are nearly the same: MinHash proposes pairs, the exact Jaccard of their shingles decides.

MinHash and banding (LSH) after Broder, "On the resemblance and containment of documents", 1997, by the datasketch library.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gemma_colab.data.text import jaccard

NUM_PERM = 128
CROWD = 50  # a text with so many twins is not offered to later ones, or n copies would cost n² comparisons


class Pair(NamedTuple):
    """Two rows, `row` after `earlier`, and the Jaccard similarity of their shingles (0-1)."""

    row: int
    earlier: int
    similarity: float


def sketches(sets: list[np.ndarray], seed: int = 1) -> list[MinHash]:
    """One MinHash for each set of shingles. The hashes of the shingles are 32-bit already, so they are used as they are."""
    empty = MinHash(num_perm=NUM_PERM, seed=seed, hashfunc=int)
    found = []
    for shingles in sets:
        sketch = empty.copy()
        sketch.update_batch(shingles)
        found.append(sketch)
    return found


def bands(threshold: float, recall: float = 0.98) -> tuple[int, int]:
    """(bands, rows in a band): the longest bands with which a pair at the threshold is still proposed with this probability.

    A pair of similarity s is proposed with probability 1 - (1 - s^r)^b.
    """
    for r in range(10, 1, -1):
        if 1 - (1 - threshold**r) ** (NUM_PERM // r) >= recall:
            return NUM_PERM // r, r
    return NUM_PERM, 1


def near_pairs(sets: list[np.ndarray], threshold: float, sketched: list[MinHash] | None = None) -> list[Pair]:
    """All pairs with a Jaccard similarity of at least `threshold` (0-1), but no more than about 50 for one row.

    sets: one sorted array of shingles a row, as `text.shingles` makes them. Rows without shingles are like no other.
    """
    sketched = sketched or sketches(sets)
    index, first, pairs = MinHashLSH(params=bands(threshold), num_perm=NUM_PERM), {}, []
    for row, shingles in enumerate(sets):
        if not len(shingles):
            continue
        twin = first.setdefault(shingles.tobytes(), row)
        if twin != row:  # the very same set: what it is near to is known from its first appearance
            pairs.append(Pair(row, twin, 1.0))
            continue
        candidates = ((j, jaccard(shingles, sets[j])) for j in sorted(index.query(sketched[row])))
        near = [Pair(row, j, similarity) for j, similarity in candidates if similarity >= threshold]
        pairs += near
        if len(near) < CROWD:
            index.insert(row, sketched[row], check_duplication=False)
    return pairs


def clusters(count: int, pairs: list[Pair] | list[tuple[int, int]]) -> list[list[int]]:
    """The numbers 0 to count-1 grouped so that each pair is in one group; groups in the order of their first member."""
    if not count:
        return []
    a, b = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    _, labels = connected_components(coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(count, count)), directed=False)
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(int(label), []).append(i)
    return list(groups.values())
