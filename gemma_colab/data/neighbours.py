"""Which texts are nearly the same: MinHash proposes pairs, the exact Jaccard of their shingles decides.

MinHash after Broder, "On the resemblance and containment of documents", 1997; hashing and index are the datasketch library's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.cluster.hierarchy import DisjointSet

from gemma_colab.data.text import jaccard

NUM_PERM = 128
# A row with so many near twins, or so many proposed, stands for no further ones, or n variants of a text would cost n² comparisons.
MAX_TWINS, MAX_PROPOSED = 50, 1000


class Pair(NamedTuple):
    """Two rows, `row` after `earlier`, and the Jaccard similarity of their shingles (0-1)."""

    row: int
    earlier: int
    similarity: float


def near_pairs(sets: list[np.ndarray], threshold: float) -> list[Pair]:
    """Return all pairs with a Jaccard similarity of at least `threshold` (0-1), but at most `MAX_TWINS` with earlier rows a row.

    sets: one sorted array of shingles a row, as `text.shingles` makes them. Rows without shingles are like no other; a row
    whose very set stood earlier is paired with that row only.
    """
    # Weights of false and missed proposals: a pair at the threshold is proposed with a probability of 97-99 %.
    index = MinHashLSH(threshold, NUM_PERM, weights=(0.005, 0.995))
    empty = MinHash(num_perm=NUM_PERM, seed=1, hashfunc=int)  # the shingles are 32-bit hashes already
    minima = np.zeros((len(sets), NUM_PERM), dtype=np.uint64)
    first, pairs = {}, []
    for row, shingles in enumerate(sets):
        if not len(shingles):
            continue
        if (twin := first.setdefault(shingles.tobytes(), row)) != row:
            pairs.append(Pair(row, twin, 1.0))
            continue
        sketch = empty.copy()
        sketch.update_batch(shingles.tolist())
        minima[row] = sketch.hashvalues
        proposed = np.array(sorted(index.query(sketch)), dtype=np.int64)
        # The share of equal minima estimates the similarity, with a standard deviation of at most 0.045.
        likely = proposed[(minima[proposed] == minima[row]).mean(axis=1) >= threshold - 0.18]
        near = [Pair(row, twin, s) for twin in likely.tolist() if (s := jaccard(shingles, sets[twin])) >= threshold][:MAX_TWINS]
        pairs += near
        if len(near) < MAX_TWINS and len(proposed) < MAX_PROPOSED:
            index.insert(row, sketch, check_duplication=False)
    return pairs


def clusters(count: int, pairs: list[Pair] | list[tuple[int, int]]) -> list[list[int]]:
    """Group the numbers 0 to count-1 so that each pair is in one group; groups in the order of their first member."""
    sets = DisjointSet(range(count))
    for a, b, *_ in pairs:
        sets.merge(a, b)
    return sorted(map(sorted, sets.subsets()))
