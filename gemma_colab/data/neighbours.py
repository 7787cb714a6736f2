"""Which texts are nearly the same: MinHash proposes pairs, the exact Jaccard of their shingles decides.

MinHash after Broder, "On the resemblance and containment of documents", 1997, by the datasketch library. The banding is
done here in numpy, since the dictionaries of `datasketch.MinHashLSH` took twice as long over all on 52,000 rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from datasketch import MinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gemma_colab.data.text import jaccard

NUM_PERM = 128
CROWD = 50  # of many twins, later ones are compared with the first so many only, or n copies would cost n² comparisons


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
        sketch.update_batch(shingles.tolist())
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


def near_pairs(sets: list[np.ndarray], threshold: float) -> list[Pair]:
    """All pairs with a Jaccard similarity of at least `threshold` (0-1), but no more than 50 with earlier rows for one row.

    sets: one sorted array of shingles a row, as `text.shingles` makes them. Rows without shingles are like no other; a row
    whose very set stood earlier is paired with that row only.
    """
    first, pairs = {}, []
    for row, shingles in enumerate(sets):
        if len(shingles) and (twin := first.setdefault(shingles.tobytes(), row)) != row:
            pairs.append(Pair(row, twin, 1.0))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    if len(rows) < 2:
        return pairs
    twins: Counter[int] = Counter()
    minima = np.stack([sketch.hashvalues for sketch in sketches([sets[row] for row in rows])])
    for later, earlier in _proposed(minima, *bands(threshold)):
        # The share of equal minima estimates the similarity, with a standard deviation of at most 0.045.
        likely = (minima[later] == minima[earlier]).mean(axis=1) >= threshold - 0.18
        for a, b in zip(rows[later[likely]].tolist(), rows[earlier[likely]].tolist(), strict=True):
            if twins[a] < CROWD and (similarity := jaccard(sets[a], sets[b])) >= threshold:
                pairs.append(Pair(a, b, similarity))
                twins[a] += 1
    return sorted(pairs)


def _proposed(minima: np.ndarray, count: int, size: int, chunk: int = 100_000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later, earlier) numbers of sketches that agree in all `size` minima of one of `count` bands; each pair once, in chunks."""
    n, codes = len(minima), []
    for band in range(count):
        keys = (
            np.ascontiguousarray(minima[:, band * size : (band + 1) * size])
            .view(np.dtype((np.void, minima.itemsize * size)))
            .ravel()
        )
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(inverse, kind="stable")
        starts = np.cumsum(sizes) - sizes
        for start, members in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
            same = order[start : start + members]  # ascending
            for i in range(min(members - 1, CROWD)):
                codes.append(same[i + 1 :] * n + same[i])
    found = np.unique(np.concatenate(codes)) if codes else np.array([], dtype=np.int64)
    for start in range(0, len(found), chunk):
        yield np.divmod(found[start : start + chunk], n)


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
