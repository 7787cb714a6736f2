"""When two texts are the same, and which are nearly so: MinHash proposes pairs, the exact Jaccard of their shingles decides.

MinHash after Broder, "On the resemblance and containment of documents", 1997; hashing and index are the datasketch library's.
"""

import re
from collections.abc import Iterable

import numpy as np
from datasketch import MinHash, MinHashLSH
from scipy.cluster.hierarchy import DisjointSet

TYPED = str.maketrans("ё…−–—‐‑’‘`“”„«»", "е.-----'''" + '"' * 5)
# The signs of a sentence, beside words of two letters and more: at their ends, before them, the hyphen between them, the full stop or
# question mark of the text. Beside numbers, single letters and each other signs are part of what is said: 8 : 2, n!, f(x), :-(
LETTER = r"[^\s\d!-/:-@\[-`{-~]"
PROSE = re.compile(
    rf"(?:(?<={LETTER}{{2}})|(?<=[^\w\s!-~]))[.,;:!?'\")\]]+(?=\s|$)|(?<!\S)[\"'(\[]+(?={LETTER}{{2}})|(?<={LETTER}{{2}})-(?={LETTER}{{2}})"
    rf"|(?<=[\d%#+)\]₽$€°])(?:[.,;:?]+(?=\s+{LETTER}{{2}})|[.,;?]+\s*$)"
)
DASH = re.compile(rf"(?:(?<={LETTER}{{2}} )|^)-+ (?={LETTER}{{2}})")
SHINGLE = 5  # characters
POWERS = np.array([1_000_003**k % 2**32 for k in range(SHINGLE)], dtype=np.uint32)
NUM_PERM = 128
# A row with so many near twins, or so many proposed, stands for no further ones, or n variants of a text would cost n² comparisons.
MAX_TWINS, MAX_PROPOSED = 50, 1000


def normalize(text: str) -> str:
    """Lower case, ё as е, words and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", text.lower().replace("ё", "е")))


def sameness(text: str) -> str:
    """Texts with the same sameness are the same, but for case, ё, white space and the signs of a sentence. Other signs stay:
    8 - 2 is not 8 : 2, nor C++ C#, nor 1.5 15, nor one emoji another."""
    return DASH.sub("", " ".join(PROSE.sub(" ", text.lower().translate(TYPED)).split()))


def shingles(text: str) -> np.ndarray:
    """The set of all runs of 5 characters of the normalized text, every digit as 0: sorted 32-bit hashes without repeats.

    A shorter text is its own single shingle; a text without words has none.
    """
    text = re.sub(r"\d", "0", normalize(text))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    if not len(codes):
        return codes
    size = min(SHINGLE, len(codes))
    windows = np.lib.stride_tricks.sliding_window_view(codes, size)
    return np.unique((windows * POWERS[:size]).sum(axis=1, dtype=np.uint32))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared shingles over all shingles, 0-1; 0 where a text has none."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared) if shared else 0.0


def near_pairs(sets: list[np.ndarray], threshold: float) -> list[tuple[int, int, float]]:
    """Return (row, earlier row, Jaccard) for all of at least `threshold` (0-1), but at most `MAX_TWINS` with earlier rows a row.

    sets: the `shingles` of each row. Rows without any are like no other; a row whose very set stood earlier is paired with that only.
    """
    # Weights of false and missed proposals: a pair at the threshold is proposed with a probability of 97-99 %.
    index = MinHashLSH(threshold, NUM_PERM, weights=(0.005, 0.995))
    empty = MinHash(NUM_PERM, hashfunc=int)  # the shingles are 32-bit hashes already
    minima = np.zeros((len(sets), NUM_PERM), dtype=np.uint64)
    first, pairs = {}, []
    for row, own in enumerate(sets):
        if not len(own):
            continue
        if (twin := first.setdefault(own.tobytes(), row)) != row:
            pairs.append((row, twin, 1.0))
            continue
        sketch = empty.copy()
        sketch.update_batch(own.tolist())
        minima[row] = sketch.hashvalues
        proposed = np.array(sorted(index.query(sketch)), dtype=np.int64)
        # The share of equal minima estimates the similarity, with a standard deviation of at most 0.045.
        likely = proposed[(minima[proposed] == minima[row]).mean(axis=1) >= threshold - 0.18]
        near = [(row, twin, s) for twin in likely.tolist() if (s := jaccard(own, sets[twin])) >= threshold][:MAX_TWINS]
        pairs += near
        if len(near) < MAX_TWINS and len(proposed) < MAX_PROPOSED:
            index.insert(row, sketch, check_duplication=False)
    return pairs


def clusters(count: int, pairs: Iterable[tuple]) -> list[list[int]]:
    """Group the numbers 0 to count-1 so that each pair is in one group; groups in the order of their first member."""
    sets = DisjointSet(range(count))
    for a, b, *_ in pairs:
        sets.merge(a, b)
    return sorted(map(sorted, sets.subsets()))
