"""Deal rows out to train, validation and test so that look-alikes stay together, and check a split for leaks."""

from __future__ import annotations

import json
import math
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import Row, answer, question
from gemma_colab.core.settings import Settings, within
from gemma_colab.data.finding import Finding, Hit, own_questions
from gemma_colab.data.neighbours import clusters, near_pairs
from gemma_colab.data.text import jaccard, normalise, sameness, shingles


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """How rows are dealt out to train, validation and test. validation_size, test_size: shares of all rows."""

    file: ClassVar[str] = "split_settings.json"
    validation_size: float = within(0.1, 0.02, 0.4)
    test_size: float = within(0.15, 0.02, 0.4)
    seed: int = within(0, 0, 2**32 - 1)


PARTS = ("train", "validation", "test")
LONG = 60  # letters and digits; a shorter answer ("positive", "42") may well be right for many questions


def _said(row: Row) -> str:
    """The answer, in so far as it tells rows apart: "" for a filled-in form (a JSON object), which is right for many questions."""
    text = answer(row).strip()
    if text.startswith("{") and text.endswith("}"):
        with suppress(ValueError, RecursionError):
            return "" if isinstance(json.loads(text), dict) else text
    return text


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
    words in a row in common, of one `conversation`, or the same though the question has no words (emoji).
    threshold: Jaccard of 5-character shingles, 0-1."""
    questions = [normalise(own) for own in own_questions(rows)]
    replies = [normalise(_said(row)) for row in rows]
    whole = [f"{q} {a}" for q, a in zip(questions, replies, strict=True)]
    pairs = set(_near(questions, threshold))
    # Rows near as a whole are near in one half at least, which tells unless that is an answer too short to count.
    whole = [text if len(a) < (2 * LONG if answers else LONG) else "" for text, a in zip(whole, replies, strict=True)]
    if answers:
        pairs |= set(_near([text if len(text) >= LONG else "" for text in replies], threshold)) | _sharing(replies)
    pairs |= set(_near(whole, threshold))
    wordless = [None if q else (sameness(question(row)), sameness(answer(row))) for q, row in zip(questions, rows, strict=True)]
    return pairs | _same(wordless) | _same([row.get("conversation") for row in rows])


def _same(names: list) -> set[tuple[int, int]]:
    """(i, where the same name stood first); None is no name."""
    first: dict = {}
    return {(i, first[name]) for i, name in enumerate(names) if name is not None and first.setdefault(name, i) != i}


def groups(rows: list[Row], threshold: float = 0.6, most: float = 0.3) -> tuple[list[list[int]], str]:
    """Row numbers grouped so that look-alikes share a group, and how that was decided.

    Where a chain ties more than the share `most` of all rows together, there would be little to split, so it is untied; other
    groups stay. Of canned answers, the answer alone no longer counts then; of questions of one form ("What is 12 + 7?"), nor
    does the question alone, unless it is the same. Rows near as a whole (Jaccard `WHOLE`, and not by a canned answer alone) stay
    together all the same, but for a chain of such rows that would leave fewer than three groups or next to nothing outside it
    (`NEARLY_ALL`).
    Fewer than 20 rows are untied only when they would make fewer than three groups, and then are still alike by question.
    """
    n = len(rows)
    pairs = alike(rows, threshold)
    found = clusters(n, list(pairs))
    if _splits(found, n, most):
        return found, "rows alike in question, answer or as a whole stay together"
    near = _near_as_a_whole(rows)
    asked = alike(rows, threshold, answers=False)
    same = _same([sameness(question(row)) for row in rows]) | _same([row.get("conversation") for row in rows])

    tied = max(map(len, found))
    fewer = _untie(pairs, found, most) | asked | near
    looser = clusters(n, list(fewer))
    if _splits(looser, n, most):
        return looser, f"{tied} of {n} rows have answers alike, so only rows alike in question or as a whole stay together"
    if n >= FEW:
        loosest = clusters(n, list(_untie(fewer, looser, most) | same | near))
        if len(loosest) >= 3 and max(map(len, loosest)) <= NEARLY_ALL * n:
            why = "so only rows with the same question, or near as a whole, stay together"
            return loosest, f"{max(map(len, looser))} of {n} rows are alike, {why}"
    near = _untie(near, clusters(n, list(near)), most)
    pairs = _untie(pairs, found, most) | asked | near
    found = clusters(n, list(pairs))
    if _splits(found, n, most) or n < FEW:
        return found, f"{tied} of {n} rows have answers alike, so only rows alike in question stay together"
    tied = max(map(len, found))
    found = clusters(n, list(_untie(pairs, found, most) | same | near))
    return found, f"{tied} of {n} rows are alike, so only rows with the same question stay together"


FEW = 20
WHOLE = 0.72  # from here on rows are near duplicates, as in the report
ASKED = 0.36  # questions less alike than this are different ones, and a long canned answer makes them no near duplicates
NEARLY_ALL = 0.9


def _splits(found: list[list[int]], n: int, most: float) -> bool:
    return not n or (max(map(len, found)) <= most * n if n >= FEW else len(found) >= 3)


def _near_as_a_whole(rows: list[Row]) -> set[tuple[int, int]]:
    """Pairs near in own question and answer together, but for those near by the answer alone."""
    questions = own_questions(rows)
    pairs = set(_near([f"{own} {answer(row)}" for own, row in zip(questions, rows, strict=True)], WHOLE))
    sets = {i: shingles(questions[i]) for pair in pairs for i in pair}
    return {(a, b) for a, b in pairs if jaccard(sets[a], sets[b]) >= ASKED or questions[a] == questions[b]}


def _untie(pairs: set[tuple[int, int]], found: list[list[int]], most: float) -> set[tuple[int, int]]:
    """The pairs outside the groups larger than the share `most` of all rows; of fewer than 20 rows none."""
    n = sum(map(len, found))
    large = {i for group in found if n < FEW or len(group) > most * n for i in group}
    return {pair for pair in pairs if pair[0] not in large}


def split_rows(rows: list[Row], settings: SplitSettings) -> tuple[dict[str, list[Row]], str]:
    """{"train", "validation", "test"} -> rows, and a sentence on how. The same rows and seed give the same split.

    Stratified by `label` where rows have one; labels too rare for a row in the smallest part count as one. With few groups,
    validation and test get at least one each.
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
    counts = Counter(row.get("label") for row in rows)
    enough = math.ceil(round(1 / min(size.values()), 9))
    classes = [label if counts[label := row.get("label")] >= enough else RARE for row in rows]
    left, quota = Counter(classes), {}
    for name in want:  # validation over what test leaves, so that rounding does not favour the same labels twice
        quota[name] = _quota(left, want[name])
        left = left - Counter(quota[name])
    parts: dict[str, list[list[int]]] = {name: [] for name in PARTS}
    for group in grouped:
        label = Counter(classes[i] for i in group).most_common(1)[0][0]
        name = next((n for n in want if len(group) <= quota[n].get(label, 0)), "train")
        parts[name].append(group)
        if name != "train":
            quota[name][label] -= len(group)
    for name in want:
        missing = want[name] - sum(map(len, parts[name]))
        rest: list[list[int]] = []
        for at, group in enumerate(parts["train"][::-1]):  # fill up with small groups, whatever their label
            if len(group) <= missing and len(rest) + len(parts["train"]) - at > 1:
                parts[name].append(group)
                missing -= len(group)
            else:
                rest.append(group)
        parts["train"] = rest[::-1]
        if not parts[name]:  # a small set: the last, smallest group of the part that has most
            parts[name].append(parts[max(parts, key=lambda part: len(parts[part]))].pop())
    said = f"{len(rows)} rows in {len(grouped)} groups: {why}{_said_of_labels(counts, enough)}"
    dealt = {name: [rows[i] for i in sorted(i for group in part for i in group)] for name, part in parts.items()}
    if (few := len(dealt["validation"])) < 16:
        said += f"; only {few} validation rows, so read their loss with care"
    return dealt, said


RARE = ("rare",)  # the class of all labels that are too rare; no label is a tuple


def _quota(counts: Counter, want: int) -> dict:
    """How many of `want` rows each class may have: its share, rounded by largest remainders. counts: rows of each class."""
    exact = {label: want * n / counts.total() for label, n in counts.items()}
    quota = {label: int(share) for label, share in exact.items()}
    for label in sorted(exact, key=lambda label: (quota[label] - exact[label], str(label)))[: want - sum(quota.values())]:
        quota[label] += 1
    return quota


def _said_of_labels(counts: Counter, enough: int) -> str:
    labels = {label: n for label, n in counts.items() if label is not None}
    if not labels:
        return ""
    rare = sum(n < enough for n in labels.values())
    if not rare:
        return f"; shares of {len(labels)} labels kept"
    return f"; shares of {len(labels) - rare} of {len(labels)} labels kept, {rare} with fewer than {enough} rows counted as one"


def leaks(parts: dict[str, list[Row]], threshold: float = 0.72) -> list[tuple[str, int, int]]:
    """(part, row in it, twin) for each held-out row whose question, or long answer, is nearly one of training, and for each
    row of test that is so like one of validation. twin: the row of train; from len(train) on, it is a row of validation."""
    rows = [row for name in PARTS for row in parts[name]]
    validation = len(parts["train"])
    test = validation + len(parts["validation"])
    twins: dict[int, int] = {}
    pairs = set(_near(own_questions(rows), threshold))
    pairs |= set(_near([a if len(normalise(a)) >= LONG else "" for a in map(_said, rows)], threshold))
    for row, earlier in sorted(pairs):  # the first twin is told, so rather one of training
        if earlier < validation <= row or earlier < test <= row:
            twins.setdefault(row, earlier)
    return [("test", i - test, twin) if i >= test else ("validation", i - validation, twin) for i, twin in sorted(twins.items())]


def check_split(parts: dict[str, list[Row]], n: int = 13, threshold: float = 0.72, few: int = 16) -> list[Finding]:
    """Leaks from training into the held-out parts and from validation into test, and parts too small. Row numbers are those
    within validation, then test.

    E: the very same question and answer. W: near ones (Jaccard >= threshold), or the same n words in a row (13 as in lm-eval).
    """
    held = [row for name in PARTS[1:] for row in parts[name]]
    names = [f"{name} row {i}" for name in PARTS[1:] for i in range(len(parts[name]))]
    train, test = len(parts["train"]), len(parts["validation"])  # numbers of rows of training, and of the first row of test
    key = [(sameness(question(row)), sameness(answer(row))) for row in held]
    trained = {(sameness(question(row)), sameness(answer(row))) for row in parts["train"]}
    validated = set(key[:test])
    exact = {i: names[i] for i, one in enumerate(key) if one in trained}
    for i, one in enumerate(key[test:], test):
        if one in validated:
            exact.setdefault(i, f"{names[i]} stands in validation")
    near = {}
    for part, i, twin in leaks(parts, threshold):
        row = i + (test if part == "test" else 0)
        near[row] = f"{names[row]} is like " + (f"train row {twin}" if twin < train else f"validation row {twin - train}")
    grams = [word_grams(_said(row), n) for row in held]
    for i in _sharing_with(grams, [word_grams(_said(row), n) for row in parts["train"]]):
        near.setdefault(i, f"{names[i]} shares {n} words in a row with training")
    for i in _sharing_with(grams[test:], grams[:test]):
        near.setdefault(test + i, f"{names[test + i]} shares {n} words in a row with validation")
    found = []
    if exact:
        advice = "a held-out row stands in training, or a test row in validation; split again with `split_rows`"
        found.append(Finding("leak", "E", advice, [Hit(i, note=note) for i, note in sorted(exact.items())]))
    if near := {i: note for i, note in near.items() if i not in exact}:
        advice = "a held-out row is nearly in training, or a test row in validation, so the test asks what was practised or "
        advice += "chosen by; split again with `split_rows`"
        found.append(Finding("leak", "W", advice, [Hit(i, note=note) for i, note in sorted(near.items())]))
    if len(parts["validation"]) < few:
        advice = f"{len(parts['validation'])} rows; with fewer than {few} the validation loss jumps about"
        found.append(Finding("validation too small", "W", advice))
    return found


def _sharing_with(grams: list[np.ndarray], others: list[np.ndarray]) -> list[int]:
    """Which of `grams`, one array a row, have an element that any of the others has."""
    if not grams or not others:
        return []
    owner = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
    return np.unique(owner[np.isin(np.concatenate(grams), np.concatenate(others))]).tolist()
