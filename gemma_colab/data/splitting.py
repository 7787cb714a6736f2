"""Deal rows out to train, validation and test so that what belongs together stays together, and say what leaks all the same."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import Row, answer
from gemma_colab.core.settings import Settings, within
from gemma_colab.core.workspace import SPLITS
from gemma_colab.data.finding import CheckContext, Finding
from gemma_colab.data.neighbours import Pair, clusters, near_pairs
from gemma_colab.data.text import jaccard, normalize, shingles

SMALL_SET = 20  # with fewer rows, any three groups are good enough
RARE = ("rare",)  # the class of all labels that are too rare; no label is a tuple
PairSet = set[tuple[int, int]]  # (number of a row, number of an earlier row)


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """How rows are dealt out. validation_size, test_size: shares of all rows, 0.02-0.4 each. seed: any whole number."""

    file: ClassVar[str] = "split_settings.json"
    validation_size: float = within(0.1, 0.02, 0.4)
    test_size: float = within(0.15, 0.02, 0.4)
    seed: int = within(0, 0, 2**32 - 1)


@dataclass(frozen=True)
class SplitNotes:
    """What there is to say of a split: one sentence, and the findings about it, for `Report.with_findings`."""

    sentence: str
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"{f.severity}  {f.check}: {f.what_to_do}" for f in self.findings)])

    __repr__ = __str__


def split_rows(
    rows: list[Row] | Mapping[str, list[Row]],
    *,
    groups: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.15,
    seed: int = 0,
    near: float = 0.6,
    twin: float = 0.72,
    long_answer: int = 60,
    shared_words: int = 13,
    largest_group: float = 0.3,
    few: int = 16,
) -> tuple[dict[str, list[Row]], SplitNotes]:
    """Return {"train", "validation", "test"} -> rows, and what there is to say of it. The same rows and seed give the same split.

    rows: all of them, or ready-made splits such as {"train": ..., "test": ...}: those stay as they are, and what is missing is
    taken from train. groups: a key of the rows ("customer"); rows with the same value stay together, as look-alikes and the rows
    of a `conversation` do. validation_size, test_size: shares of the rows, 0.02-0.4. Shares of each `label` are kept where rows
    have one; labels too rare for a row in the smaller split count as one.

    near: Jaccard of 5-character shingles from which questions, or answers of `long_answer` letters and more, are alike; answers
    with `shared_words` words in a row in common (13 as in lm-eval) are, too. twin: Jaccard from which rows are near duplicates as
    a whole, and from which a held-out row has leaked. largest_group: see `group_rows`. few: validation rows that are too few.
    Raises `DatasetError` when there are too few groups, `SettingsError` for sizes, splits or groups that are impossible.
    """
    SplitSettings(validation_size=validation_size, test_size=test_size, seed=seed)
    ready = dict(rows) if isinstance(rows, Mapping) else {"train": rows}
    if unknown := set(ready) - set(SPLITS) or {"train"} - set(ready):
        raise SettingsError(f"splits {', '.join(ready)}: {unknown.pop()!r} is wrong or missing; name them {', '.join(SPLITS)}")
    if groups and not any(groups in row for some in ready.values() for row in some):
        raise SettingsError(f"groups={groups!r} is a key of no row; read the file with mapping={{'conversation': {groups!r}}}")
    measures = {"groups": groups, "long_answer": long_answer, "shared_words": shared_words}
    shares = {name: size for name, size in (("test", test_size), ("validation", validation_size)) if name not in ready}
    splits, sentence = {name: list(ready.get(name, [])) for name in SPLITS}, "the splits were ready-made"
    if shares:
        pool = splits["train"]
        grouped, why = group_rows(pool, near=near, twin=twin, largest_group=largest_group, **measures)
        if len(grouped) <= len(shares):
            remedy = f"too few for {', '.join(['train', *reversed(shares)])}; add different rows"
            raise DatasetError(f"{len(pool)} rows make {len(grouped)} group(s) of look-alikes, {remedy}")
        dealt, labels = deal(pool, grouped, shares, seed)
        splits |= {name: [pool[i] for i in numbers] for name, numbers in dealt.items()}
        sentence = f"{len(pool)} rows in {len(grouped)} groups: {why}{labels}"
    findings = leaks(splits, twin=twin, **measures)
    if (n := len(splits["validation"])) < few:
        sentence += f"; only {n} validation rows, so read their loss with care"
        advice = f"{n} rows; with fewer than {few} the validation loss jumps about"
        findings.append(Finding("validation too small", "W", advice))
    return splits, SplitNotes(sentence, findings)


def group_rows(
    rows: list[Row], *, near: float = 0.6, twin: float = 0.72, largest_group: float = 0.3, **measures
) -> tuple[list[list[int]], str]:
    """Return numbers of rows, grouped so that rows that belong together share a group, and how that was decided.

    The same question, conversation or group always ties. Where likeness ties more than the share `largest_group` of the rows
    into one chain, there is little to split, so within that chain less and less counts: answers no longer do (canned ones), nor
    do questions that are merely near ("What is 12 + 7?"), and at last not even near duplicates.
    """
    n, context = len(rows), CheckContext(rows, near_threshold=twin)
    always, asked, answered = related(context, near, **measures).values()
    always = always | _same([text or None for text in context.same_questions])
    twins = {(pair.row, pair.earlier) for pair in context.near if _asked_alike(context, pair)}
    levels = [
        (asked | answered | twins, largest_group, "rows alike in question, answer or as a whole"),
        (asked | twins, largest_group, "rows alike in question or as a whole"),
        (twins, 0.9, "rows with the same question, or near as a whole,"),  # one row in ten outside that chain is enough
        (set(), 1.0, "rows with the same question"),
    ]
    pairs, tied = set(), ""
    for likeness, most, what in levels if n >= SMALL_SET else levels[:2]:
        pairs = pairs | likeness | always
        found, why = clusters(n, list(pairs)), f"{tied}{what} stay together"
        if len(found) >= 3 and (n < SMALL_SET or max(map(len, found)) <= most * n):
            break
        chained = {i for group in found if n < SMALL_SET or len(group) > largest_group * n for i in group}
        pairs = {pair for pair in pairs if pair[0] not in chained}  # other groups stay as they are
        tied = f"{max(map(len, found), default=0)} of {n} rows are alike, so only "
    return found, why


def related(context: CheckContext, near: float, *, groups: str | None = None, long_answer: int = 60, shared_words: int = 13):
    """Return reason -> pairs of rows: of the same conversation or group, and alike in question or in (long) answer."""
    replies = [_own_answer(row) for row in context.rows]
    long = [text if len(normalize(text)) >= long_answer else "" for text in replies]
    return {
        "group": _same([row.get("conversation") for row in context.rows]) | _same([row.get(groups) for row in context.rows]),
        "question": _near(context.own_questions, near),
        "answer": _near(long, near) | _sharing(replies, shared_words),
    }


def _own_answer(row: Row) -> str:
    """The answer, in so far as it tells rows apart: "" for a filled-in form (a JSON object), which is right for many questions."""
    text = answer(row).strip()
    if text.startswith("{") and text.endswith("}"):
        with suppress(ValueError, RecursionError):
            return "" if isinstance(json.loads(text), dict) else text
    return text


def _near(texts: list[str], threshold: float) -> PairSet:
    return {(pair.row, pair.earlier) for pair in near_pairs([shingles(text) for text in texts], threshold)}


def _asked_alike(context: CheckContext, pair: Pair, least: float = 0.36) -> bool:
    """Questions with a Jaccard below `least` are different ones, though a long canned answer makes the rows alike."""
    one, other = context.own_questions[pair.row], context.own_questions[pair.earlier]
    return one == other or jaccard(shingles(one), shingles(other)) >= least


def _sharing(texts: list[str], n: int) -> PairSet:
    """(text, first text with the same n words in a row)."""
    first, pairs = {}, set()
    for i, text in enumerate(texts):
        words = normalize(text).split()
        for start in range(len(words) - n + 1):
            if (twin := first.setdefault(hash(tuple(words[start : start + n])), i)) != i:
                pairs.add((i, twin))
    return pairs


def _same(names: list) -> PairSet:
    """(i, where the same name stood first); None is no name."""
    first: dict = {}
    return {(i, first[name]) for i, name in enumerate(names) if name is not None and first.setdefault(name, i) != i}


def deal(rows: list[Row], grouped: list[list[int]], shares: dict[str, float], seed: int) -> tuple[dict[str, list[int]], str]:
    """Return split -> numbers of its rows, and what was done about labels. Every split of `shares` gets a group at least."""
    random.Random(seed).shuffle(grouped)
    grouped.sort(key=len, reverse=True)  # stable: big groups first, so that they don't overfill a small split
    n = len(rows)
    want = {name: min((n - 1) // 2, max(1, round(n * share))) for name, share in shares.items()}  # some must be left
    counts = Counter(row.get("label") for row in rows)
    enough = math.ceil(round(1 / min(shares.values()), 9))
    classes = [label if counts[label := row.get("label")] >= enough else RARE for row in rows]
    left, quota = Counter(classes), {}
    for name in want:  # validation over what test leaves, so that rounding does not favor the same labels twice
        quota[name] = _quota(left, want[name])
        left -= Counter(quota[name])
    dealt: dict[str, list[list[int]]] = {"train": [], **{name: [] for name in want}}
    for group in grouped:
        label = Counter(classes[i] for i in group).most_common(1)[0][0]
        name = next((name for name in want if len(group) <= quota[name].get(label, 0)), "train")
        dealt[name].append(group)
        if name != "train":
            quota[name][label] -= len(group)
    for name in want:
        missing = want[name] - sum(map(len, dealt[name]))
        for group in dealt["train"][::-1]:  # fill up with small groups, whatever their label
            if len(group) <= missing and len(dealt["train"]) > 1:
                dealt["train"].remove(group)
                dealt[name].append(group)
                missing -= len(group)
        if not dealt[name]:  # a small set: the last, smallest group of the split that has most
            dealt[name].append(dealt[max(dealt, key=lambda split: len(dealt[split]))].pop())
    return {name: sorted(i for group in some for i in group) for name, some in dealt.items()}, _said_of_labels(counts, enough)


def _quota(counts: Counter, want: int) -> dict:
    """How many of `want` rows each class may have: its share, rounded by largest remainders. counts: rows of each class."""
    exact = {label: want * n / counts.total() for label, n in counts.items()}
    quota = {label: int(share) for label, share in exact.items()}
    for label in sorted(exact, key=lambda label: (quota[label] - exact[label], str(label)))[: want - sum(quota.values())]:
        quota[label] += 1
    return quota


def _said_of_labels(counts: Counter, enough: int) -> str:
    labels = {label: n for label, n in counts.items() if label is not None}
    if rare := sum(n < enough for n in labels.values()):
        kept = f"{len(labels) - rare} of {len(labels)}"
        return f"; shares of {kept} labels kept, {rare} with fewer than {enough} rows counted as one"
    return f"; shares of {len(labels)} labels kept" if labels else ""


def leaks(splits: dict[str, list[Row]], *, twin: float = 0.72, **measures) -> list[Finding]:
    """Look for rows of validation and test that stand in training, and rows of test that stand in validation.

    E: the very same question and answer. W: near ones (Jaccard >= twin), or rows of one conversation or group.
    """
    places = [(name, i) for name in SPLITS for i in range(len(splits[name]))]
    context = CheckContext([splits[name][i] for name, i in places])
    same = _same(list(zip(context.same_questions, context.same_answers, strict=True)))
    told: dict[int, tuple[str, str]] = {}
    for reason, pairs in {"": same, **related(context, twin, **measures)}.items():
        for row, earlier in sorted(pairs):
            (split, number), (other, its) = places[row], places[earlier]
            if split != other:
                kind = f"has its {reason} from" if reason else "stands in"
                told.setdefault(row, ("W" if reason else "E", f"{split} row {number} {kind} {other} (row {its})"))
    findings = []
    for severity in "EW":
        if some := [text for row, (kind, text) in sorted(told.items()) if kind == severity]:
            more = f" and {len(some) - 3} more" * (len(some) > 3)
            advice = "the test would ask what was practiced, or chosen by; split again with `split_rows`"
            findings.append(Finding("leak", severity, f"{'; '.join(some[:3])}{more}: {advice}"))
    return findings
