"""Plain functions `(predictions, references) -> one score a row`. Add your own in three lines.

Scores are between 0 and 1, and `None` where a row has nothing to measure. Functions that need a setting make a metric:
`matches(r"№\\d+")`, `valid_json(schema)`, `required(["..."])`, `forbidden(["..."])`, `copied(r"№\\d{5}")`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence

from jsonschema import SchemaError
from jsonschema.validators import validator_for
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import CHRF

from gemma_colab.core.errors import SettingsError

Scores = list[float | None]
Metric = Callable[[Sequence[str], Sequence[str]], Scores]

ORDER_NUMBER = r"№\s?(\d{5})(?!\d)"


def words(text: str) -> list[str]:
    """Letters and digits of any alphabet, lower case, ё as е."""
    return re.findall(r"\w+", text.lower().replace("ё", "е"))


# ------------------------------------------------------------------------------------------ likeness
def exact_match(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """1 where the answer is the reference, but for white space."""
    return [float(p.split() == r.split()) for p, r in zip(predictions, references, strict=True)]


def token_f1(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Harmonic mean of precision and recall over words, in any order, as SQuAD counts it (arXiv 1606.05250)."""
    scores = []
    for p, r in zip(predictions, references, strict=True):
        mine, theirs = words(p), words(r)
        if not (mine and theirs):  # signs alone, such as an emoji
            scores += exact_match([p], [r])
            continue
        shared = sum((Counter(mine) & Counter(theirs)).values())
        scores.append(2 * shared / (len(mine) + len(theirs)) if shared else 0.0)
    return scores


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """F1 of the longest common subsequence of words: their order counts (Lin 2004, W04-1013). The rouge-score package takes
    only Latin letters for words, and would score every Russian answer 0."""
    scores = []
    for p, r in zip(predictions, references, strict=True):
        mine, theirs = words(p), words(r)
        if not (mine and theirs):
            scores += exact_match([p], [r])
            continue
        shared = LCSseq.similarity(mine, theirs)
        scores.append(2 * shared / (len(mine) + len(theirs)) if shared else 0.0)
    return scores


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """F-score (beta 2) over runs of 1 to 6 characters (Popović 2015, W15-3049), by sacrebleu: right where endings change."""
    metric = CHRF()
    return [metric.sentence_score(p, [r]).score / 100 for p, r in zip(predictions, references, strict=True)]


def contains_answer(predictions: Sequence[str], keys: Sequence[str]) -> Scores:
    """1 where the key stands in the answer as whole words, case and ё aside: for general questions with one right word. A Russian
    word of five letters or more may have another ending ("Чехия" for "Чехии")."""

    def plain(text):
        return text.lower().replace("ё", "е")

    def pattern(key):
        ending = r"\w{0,3}" if re.fullmatch("[а-я]{5,}", key) else ""
        return rf"(?<!\w){re.escape(key[:-2] if ending else key)}{ending}(?!\w)"

    return [float(re.search(pattern(plain(k)), plain(p)) is not None) for p, k in zip(predictions, keys, strict=True)]


# ------------------------------------------------------------------------------------------ form
def matches(pattern: str) -> Metric:
    """1 where the whole answer has this form, a regular expression; `.` stands for a line break too."""
    compiled = _compiled(pattern)

    def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return [float(compiled.fullmatch(p.strip()) is not None) for p in predictions]

    return described(metric, f"1 where the whole answer has the form {pattern}")


def required(phrases: Sequence[str]) -> Metric:
    """1 where all phrases stand in the answer, case aside."""
    phrases = _phrases(phrases)

    def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return [float(all(w in p.lower() for w in phrases)) for p in predictions]

    return described(metric, f"1 where the answer says: {', '.join(phrases)}")


def forbidden(phrases: Sequence[str]) -> Metric:
    """1 where none of the phrases stands in the answer, case aside."""
    phrases = _phrases(phrases)

    def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return [float(not any(w in p.lower() for w in phrases)) for p in predictions]

    return described(metric, f"1 where the answer says none of: {', '.join(phrases)}")


def copied(pattern: str) -> Metric:
    """1 where the answer holds just those values that the reference holds, such as order numbers; None where it holds none.

    pattern: a regular expression of one value; with a group, what the group holds is compared.
    """
    compiled = _compiled(pattern)

    def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        pairs = [(set(compiled.findall(p)), set(compiled.findall(r))) for p, r in zip(predictions, references, strict=True)]
        return [float(mine == theirs) if theirs else None for mine, theirs in pairs]

    return described(
        metric, f"1 where the answer holds the same {pattern} as the right one, of the rows whose right answer has any"
    )


def valid_json(schema: dict | None = None) -> Metric:
    """1 where the answer is JSON and nothing else, and fits the JSON Schema if there is one."""
    try:
        validator = None if schema is None else validator_for(schema)
        if validator:
            validator.check_schema(schema)
    except SchemaError as e:
        raise SettingsError(
            f"the JSON Schema is wrong at {e.json_path} ({e.message}); json-schema.org shows how one looks"
        ) from None
    check = validator(schema).is_valid if validator else lambda value: True

    def one(text: str) -> float:
        try:
            return float(check(json.loads(text, parse_constant=_no_json)))
        except (ValueError, RecursionError):
            return 0.0

    def metric(predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return [one(p) for p in predictions]

    return described(metric, "1 where the answer is JSON" + (" that fits its schema" if schema else ""))


def _no_json(constant: str):
    raise ValueError(f"{constant} is no JSON, though Python reads it")


def described(metric: Metric, text: str) -> Metric:
    metric.__doc__ = text
    return metric


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as e:
        raise SettingsError(f"pattern={pattern!r} is no regular expression ({e}); regex101.com helps to mend it") from None


def _phrases(phrases: Sequence[str]) -> list[str]:
    if isinstance(phrases, str) or not all(phrases):
        raise SettingsError(f"phrases={phrases!r} must be a list of texts, none of them empty; write ['{phrases or '...'}']")
    return [phrase.lower() for phrase in phrases]


order_number_kept = copied(ORDER_NUMBER)
# What every comparison shows: likeness to the reference. None of them knows whether an answer is true.
USUAL: dict[str, Metric] = {"exact match": exact_match, "token F1": token_f1, "ROUGE-L": rouge_l, "chrF": chrf}
