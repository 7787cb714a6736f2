"""Deal rows out to train, validation and test so that what belongs together stays together, and say what leaks all the same."""

import json
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.core.settings import Settings, within
from gemma_colab.core.workspace import SPLITS
from gemma_colab.data.finding import CheckContext, Finding
from gemma_colab.data.likeness import clusters, jaccard, near_pairs, normalize, shingles

CONTACT = re.compile(r"(?<!\S)\S+@\S+|\+?\d[\d ()-]{9,}\d")  # a house's telephone makes no two answers alike
SMALL_SET = 20  # with fewer rows, any three groups are good enough
RARE = ("rare",)  # the class of all labels that are too rare; no label is a tuple


@dataclass(frozen=True, kw_only=True)
class SplitSettings(Settings):
    """How rows are dealt out. validation_size, test_size: shares of all rows, 0.02-0.4 each. seed: any whole number."""

    file: ClassVar[str] = "split_settings.json"
    validation_size: float = within(0.1, 0.02, 0.4)
    test_size: float = within(0.15, 0.02, 0.4)
    seed: int = within(0, 0, 2**32 - 1)


class SplitNotes(NamedTuple):
    """What there is to say of a split: one sentence, and the findings about it, for `Report.with_findings`."""

    sentence: str
    findings: list[Finding]

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *(f"{f.severity}  {f.check}: {f.what_to_do}" for f in self.findings)])


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
        findings.append(Finding("validation too small", "W", f"{n} rows; with fewer than {few} the validation loss jumps about"))
    return splits, SplitNotes(sentence, findings)


def group_rows(
    rows: list[Row], *, near: float = 0.6, twin: float = 0.72, largest_group: float = 0.3, **measures
) -> tuple[list[list[int]], str]:
    """Return numbers of rows, grouped so that rows that belong together share a group, and how that was decided.

    The same question, conversation or group always ties, and so does likeness. Where that ties more than the share `largest_group` of
    the rows into one chain, there is little to split: within the chain less and less counts, first no answers (canned ones), then no
    questions that are merely near ("What is 12 + 7?"), and at last not even rows that are near as a whole.
    """
    n, context = len(rows), CheckContext(rows, near_threshold=twin)
    always, asked, answered = related(context, near, **measures).values()
    always = always | _sharing([text] if text else [] for text in context.same_questions)
    own, sets = context.own_questions, [shingles(text) for text in context.own_questions]
    # Questions with a lower Jaccard are different ones, though a long canned answer makes the rows alike.
    twins = {(i, j) for i, j, _ in context.near if own[i] == own[j] or jaccard(sets[i], sets[j]) >= 0.36}
    levels = [
        (asked | answered | twins, largest_group, "rows alike in question, answer or as a whole"),
        (asked | twins, largest_group, "rows alike in question or as a whole"),
        (twins, 0.9, "rows with the same question, or near as a whole,"),  # one row in ten outside that chain is enough
        (set(), 1.0, "rows with the same question"),
    ]
    pairs, tied = set(), ""
    for likeness, most, what in levels if n >= SMALL_SET else levels[:2]:
        pairs = pairs | likeness | always
        found, why = clusters(n, pairs), f"{tied}{what} stay together"
        largest = max(map(len, found), default=0)
        if len(found) >= 3 and (n < SMALL_SET or largest <= most * n):
            break
        chained = {i for group in found if n < SMALL_SET or len(group) > largest_group * n for i in group}
        pairs = {pair for pair in pairs if pair[0] not in chained}  # other groups stay as they are
        tied = f"{largest} of {n} rows are alike, so only "
    return found, why


def _known_by(name: Any) -> str:
    """What the spellings of one customer have in common: neither capitals nor blanks make another one."""
    return " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())


def related(context: CheckContext, near: float, *, groups: str | None = None, long_answer: int = 60, shared_words: int = 13):
    """Return reason -> pairs of rows: of the same conversation or group, and alike in question or in (long) answer."""
    keys = [[(key, _known_by(row[key])) for key in ("conversation", groups) if row.get(key) is not None] for row in context.rows]
    said = []
    for text in context.answers:
        with suppress(ValueError, RecursionError):
            text = "" if isinstance(json.loads(text), dict) else text  # a filled-in form is right for many questions
        said.append(normalize(CONTACT.sub(" ", text)))
    long = [text if len(text) >= long_answer else "" for text in said]
    asked, answered = ({pair[:2] for pair in near_pairs([*map(shingles, some)], near)} for some in (context.own_questions, long))
    words, n = [text.split() for text in said], shared_words
    runs = ([hash(tuple(some[i : i + n])) for i in range(len(some) - n + 1)] for some in words)
    return {"group": _sharing(keys), "question": asked, "answer": answered | _sharing(runs)}


def _sharing(keys: Iterable[Iterable[Hashable]]) -> set[tuple[int, int]]:
    """(row, first row with the same key) for each key of each row."""
    first: dict = {}
    return {(row, twin) for row, some in enumerate(keys) for key in some if (twin := first.setdefault(key, row)) != row}


def deal(rows: list[Row], grouped: list[list[int]], shares: dict[str, float], seed: int) -> tuple[dict[str, list[int]], str]:
    """Return split -> numbers of its rows, and what was done about labels. Every split of `shares` gets a group at least."""
    random.Random(seed).shuffle(grouped)
    grouped.sort(key=len, reverse=True)  # stable: big groups first, so that they don't overfill a small split
    n = len(rows)
    want = {name: min((n - 1) // 2, max(1, round(n * share))) for name, share in shares.items()}  # some must be left
    counts, enough = Counter(row.get("label") for row in rows), math.ceil(round(1 / min(shares.values()), 9))
    classes = [label if counts[label := row.get("label")] >= enough else RARE for row in rows]
    left, quota = Counter(classes), {}
    for name, size in want.items():  # validation over what test leaves, so that rounding does not favor the same labels twice
        exact = {label: size * count / left.total() for label, count in left.items()}
        quota[name] = Counter({label: int(share) for label, share in exact.items()})
        by_remainder = sorted(exact, key=lambda label: (int(exact[label]) - exact[label], str(label)))
        quota[name].update(by_remainder[: size - quota[name].total()])
        left -= quota[name]
    dealt: dict[str, list[list[int]]] = {"train": [], **{name: [] for name in want}}
    for group in grouped:
        label = Counter(classes[i] for i in group).most_common(1)[0][0]
        name = next((name for name in want if len(group) <= quota[name][label]), "train")
        dealt[name].append(group)
        if name != "train":
            quota[name][label] -= len(group)
    for name, size in want.items():
        missing = size - sum(map(len, dealt[name]))
        for group in dealt["train"][::-1]:  # fill up with small groups, whatever their label
            if len(group) <= missing and len(dealt["train"]) > 1:
                dealt["train"].remove(group)
                dealt[name].append(group)
                missing -= len(group)
        if not dealt[name]:  # a small set: the last, smallest group of the split that has most
            dealt[name].append(dealt[max(dealt, key=lambda split: len(dealt[split]))].pop())
    sizes = [size for label, size in counts.items() if label is not None]
    kept = f"; shares of {len(sizes)} labels kept" if sizes else ""
    if rare := sum(size < enough for size in sizes):
        kept = f"; shares of {len(sizes) - rare} of {len(sizes)} labels kept, {rare} with fewer than {enough} rows counted as one"
    return {name: sorted(i for group in some for i in group) for name, some in dealt.items()}, kept


def leaks(splits: dict[str, list[Row]], *, twin: float = 0.72, **measures) -> list[Finding]:
    """Look for rows of validation and test that are in training too, and rows of test that are in validation.

    E: the very same question and answer. W: near ones (Jaccard >= twin), or rows of one conversation or group.
    """
    places = [(name, i) for name in SPLITS for i in range(len(splits[name]))]
    context = CheckContext([splits[name][i] for name, i in places])
    same = _sharing([key] for key in zip(context.same_questions, context.same_answers, strict=True))
    told: dict[int, tuple[str, str]] = {}
    for reason, pairs in {"": same, **related(context, twin, **measures)}.items():
        for row, earlier in sorted(pairs):
            (split, number), (other, its) = places[row], places[earlier]
            if split != other:
                kind = f"has its {reason} from" if reason else "is in"
                told.setdefault(row, ("W" if reason else "E", f"{split} row {number} {kind} {other} (row {its})"))
    findings = []
    for severity in "EW":
        if some := [text for row, (kind, text) in sorted(told.items()) if kind == severity]:
            more = f" and {len(some) - 3} more" * (len(some) > 3)
            advice = "the test would ask what was practiced, or chosen by; split again with `split_rows`"
            findings.append(Finding("leak", severity, f"{'; '.join(some[:3])}{more}: {advice}"))
    return findings
