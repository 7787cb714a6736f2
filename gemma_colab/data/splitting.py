"""Deal rows out to train, validation and test so that look-alikes stay together, and check a split for leaks."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from gemma_colab.data.finding import Finding, Hit, own_questions
from gemma_colab.data.neighbours import clusters, near_pairs
from gemma_colab.data.text import normalise, sameness, shingles
from gemma_colab.errors import DatasetError
from gemma_colab.rows import Row, answer, question
from gemma_colab.settings import SplitSettings

PARTS = ("train", "validation", "test")
LONG = 60  # letters and digits; a shorter answer ("positive", "42") may well be right for many questions


def _near(texts: list[str], threshold: float) -> Iterator[tuple[int, int]]:
    yield from ((pair.row, pair.earlier) for pair in near_pairs([shingles(text) for text in texts], threshold))


def word_grams(text: str, n: int = 13) -> np.ndarray:
    """64-bit hashes of all runs of n words of the normalised text."""
    words = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in normalise(text).split()], dtype=np.uint64)
    if len(words) < n:
        return words[:0]
    powers = np.array([pow(6_364_136_223_846_793_005, k, 2**64) for k in range(n)], dtype=np.uint64)
    return (np.lib.stride_tricks.sliding_window_view(words, n) * powers).sum(axis=1, dtype=np.uint64)


def _sharing(texts: list[str]) -> set[tuple[int, int]]:
    """(text, earlier text) for texts with 13 words in a row in common: a chain that ties all of them together."""
    grams = [word_grams(text) for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(g) for g in grams])
    grams = np.concatenate(grams) if grams else np.array([], np.uint64)
    order = np.argsort(grams, kind="stable")
    grams, owner = grams[order], owner[order]
    same = (grams[1:] == grams[:-1]) & (owner[1:] != owner[:-1])
    return set(zip(owner[1:][same].tolist(), owner[:-1][same].tolist(), strict=True))


def alike(rows: list[Row], threshold: float = 0.6, answers: bool = True) -> set[tuple[int, int]]:
    """Pairs of rows that belong on one side: near in their questions, as a whole, or in their (long) answers, with 13
    words in a row in common, or of one `conversation`. threshold: Jaccard of 5-character shingles, 0-1."""
    questions = [normalise(own) for own in own_questions(rows)]
    replies = [normalise(answer(row)) for row in rows]
    whole = [f"{q} {a}" for q, a in zip(questions, replies, strict=True)]
    pairs = set(_near(questions, threshold))
    # Rows near as a whole are near in one half at least, which tells unless that is an answer too short to count.
    whole = [text if len(a) < (2 * LONG if answers else LONG) else "" for text, a in zip(whole, replies, strict=True)]
    if answers:
        pairs |= set(_near([text if len(text) >= LONG else "" for text in replies], threshold)) | _sharing(replies)
    pairs |= set(_near(whole, threshold))
    return pairs | _same([row.get("conversation") for row in rows])


def _same(names: list) -> set[tuple[int, int]]:
    """(i, where the same name stood first); None is no name."""
    first: dict = {}
    return {(i, first[name]) for i, name in enumerate(names) if name is not None and first.setdefault(name, i) != i}


def groups(rows: list[Row], threshold: float = 0.6, most: float = 0.3) -> tuple[list[list[int]], str]:
    """Row numbers grouped so that look-alikes share a group, and how that was decided.

    Where canned answers tie more than the share `most` of all rows together, answers are left out of the comparison:
    else there would be nothing to split. Where questions do ("What is 12 + 7?"), only those that are the same stay together.
    Fewer than 20 rows are untied only when they would make fewer than three groups, and never as far as that.
    """
    n = len(rows)
    found = clusters(n, list(alike(rows, threshold)))
    if _splits(found, n, most):
        return found, "rows alike in question, answer or as a whole stay together"
    tied = max(map(len, found))
    found = clusters(n, list(alike(rows, threshold, answers=False)))
    if _splits(found, n, most) or n < FEW:
        return found, f"{tied} of {n} rows have answers alike, so only rows alike in question or as a whole stay together"
    tied = max(map(len, found))
    pairs = _same([sameness(question(row)) for row in rows]) | _same([row.get("conversation") for row in rows])
    return clusters(n, list(pairs)), f"{tied} of {n} rows are alike, so only rows with the same question stay together"


FEW = 20


def _splits(found: list[list[int]], n: int, most: float) -> bool:
    return not n or (max(map(len, found)) <= most * n if n >= FEW else len(found) >= 3)


def split_rows(rows: list[Row], settings: SplitSettings) -> tuple[dict[str, list[Row]], str]:
    """{"train", "validation", "test"} -> rows, and a sentence on how. The same rows and seed give the same split.

    Stratified by `label` where rows have one. With few groups, validation and test get at least one each.
    Raises `DatasetError` when there are fewer than three groups.
    """
    grouped, why = groups(rows)
    if len(grouped) < 3:
        raise DatasetError(
            f"{len(rows)} rows make {len(grouped)} group(s) of look-alikes, too few for train, validation and test; add different rows"
        )
    random.Random(settings.seed).shuffle(grouped)
    grouped.sort(key=len, reverse=True)  # stable: big groups first, so that they don't overfill a small part
    size = {"test": settings.test_size, "validation": settings.validation_size}
    want = {
        name: min((len(rows) - 1) // 2, max(1, round(len(rows) * share))) for name, share in size.items()
    }  # some must be left
    quota = {name: _quota(rows, want[name]) for name in want}
    parts: dict[str, list[list[int]]] = {name: [] for name in PARTS}
    for group in grouped:
        label = Counter(rows[i].get("label") for i in group).most_common(1)[0][0]
        name = next((n for n in want if len(group) <= quota[n][label]), "train")
        parts[name].append(group)
        if name != "train":
            quota[name][label] -= len(group)
    for name in want:
        missing = want[name] - sum(map(len, parts[name]))
        for group in parts["train"][::-1]:  # more labels than places: fill up with small groups, whatever their label
            if len(group) <= missing and len(parts["train"]) > 1:
                parts["train"].remove(group)
                parts[name].append(group)
                missing -= len(group)
        if not parts[name]:  # a small set: the last, smallest group of the part that has most
            parts[name].append(parts[max(parts, key=lambda part: len(parts[part]))].pop())
    labels = {row.get("label") for row in rows} - {None}
    said = f"{len(rows)} rows in {len(grouped)} groups: {why}" + (f"; shares of {len(labels)} labels kept" if labels else "")
    dealt = {name: [rows[i] for i in sorted(i for group in part for i in group)] for name, part in parts.items()}
    if (few := len(dealt["validation"])) < 16:
        said += f"; only {few} validation rows, so read their loss with care"
    return dealt, said


def _quota(rows: list[Row], want: int) -> dict[str | None, int]:
    """How many of `want` rows each label may have: its share, rounded by largest remainders."""
    counts = Counter(row.get("label") for row in rows)
    exact = {label: want * n / len(rows) for label, n in counts.items()}
    quota = {label: int(share) for label, share in exact.items()}
    for label in sorted(exact, key=lambda label: (quota[label] - exact[label], str(label)))[: want - sum(quota.values())]:
        quota[label] += 1
    return quota


def leaks(parts: dict[str, list[Row]], threshold: float = 0.72) -> list[tuple[str, int, int]]:
    """(part, row in it, row in train) for each held-out row whose question, or long answer, is nearly one of training."""
    rows = [row for name in PARTS for row in parts[name]]
    start = {"validation": len(parts["train"]), "test": len(parts["train"]) + len(parts["validation"])}
    twins: dict[int, int] = {}
    pairs = set(_near(own_questions(rows), threshold))
    pairs |= set(_near([a if len(normalise(a)) >= LONG else "" for a in map(answer, rows)], threshold))
    for row, earlier in sorted(pairs):
        if earlier < start["validation"] <= row:
            twins.setdefault(row, earlier)
    return [
        ("test", row, twin) if (row := i - start["test"]) >= 0 else ("validation", i - start["validation"], twin)
        for i, twin in sorted(twins.items())
    ]


def check_split(parts: dict[str, list[Row]], n: int = 13, threshold: float = 0.72, few: int = 16) -> list[Finding]:
    """Leaks from training into the held-out parts, and parts too small. Row numbers are those within validation, then test.

    E: the very same question and answer. W: near ones (Jaccard >= threshold), or the same n words in a row (13 as in lm-eval).
    """
    held = [row for name in PARTS[1:] for row in parts[name]]
    names = [f"{name} row {i}" for name in PARTS[1:] for i in range(len(parts[name]))]
    key = [(sameness(question(row)), sameness(answer(row))) for row in held]
    train = {(sameness(question(row)), sameness(answer(row))) for row in parts["train"]}
    exact = [Hit(i, note=names[i]) for i, one in enumerate(key) if one in train]
    offset = {"validation": 0, "test": len(parts["validation"])}
    near = {offset[part] + i: f"{part} row {i} is like train row {twin}" for part, i, twin in leaks(parts, threshold)}
    seen = np.unique(np.concatenate([word_grams(answer(row), n) for row in parts["train"]] or [np.array([], np.uint64)]))
    for i, row in enumerate(held):
        if i not in near and np.isin(word_grams(answer(row), n), seen).any():
            near[i] = f"{names[i]} shares {n} words in a row with training"
    found = []
    if exact:
        found.append(Finding("leak", "E", "a held-out row stands in training; split again with `split_rows`", exact))
    if near := {i: note for i, note in near.items() if i not in {hit.row for hit in exact}}:
        advice = "a held-out row is nearly in training, so the test asks what was practised; split again with `split_rows`"
        found.append(Finding("leak", "W", advice, [Hit(i, note=note) for i, note in sorted(near.items())]))
    if len(parts["validation"]) < few:
        advice = f"{len(parts['validation'])} rows; with fewer than {few} the validation loss jumps about"
        found.append(Finding("validation too small", "W", advice))
    return found
