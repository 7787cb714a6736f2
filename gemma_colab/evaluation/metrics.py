"""Plain functions `(predictions, references) -> one score a row`. Add your own in three lines:

    def thanks(predictions, references):
        "1 where the answer says thank you."
        return [float("thank you" in p.lower()) for p in predictions]

Scores are between 0 and 1, and `None` where a row has nothing to measure. The docstring's first sentence is what a report says of it.
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

Texts = Sequence[str]
Scores = list[float | None]
Metric = Callable[[Texts, Texts], Scores]


def words(text: str) -> list[str]:
    """Letters and digits of any alphabet, lower case, ё as е."""
    return re.findall(r"\w+", text.lower().replace("ё", "е"))


# ------------------------------------------------------------------------------------------ likeness
def exact_match(predictions: Texts, references: Texts) -> Scores:
    """1 where the answer is the reference, but for white space."""
    return [float(p.split() == r.split()) for p, r in zip(predictions, references, strict=True)]


def token_f1(predictions: Texts, references: Texts) -> Scores:
    """Harmonic mean of precision and recall over words, in any order, as SQuAD counts it (arXiv 1606.05250)."""
    return _f1(predictions, references, lambda mine, theirs: sum((Counter(mine) & Counter(theirs)).values()))


def rouge_l(predictions: Texts, references: Texts) -> Scores:
    """F1 of the longest common subsequence of words: their order counts (Lin 2004, W04-1013). The rouge-score package takes
    only Latin letters for words, and would score every Russian answer 0."""
    return _f1(predictions, references, LCSseq.similarity)


def _f1(predictions: Texts, references: Texts, shared: Callable[[list[str], list[str]], int]) -> Scores:
    scores = []
    for p, r in zip(predictions, references, strict=True):
        mine, theirs = words(p), words(r)
        if mine and theirs:
            scores.append(2 * shared(mine, theirs) / (len(mine) + len(theirs)))
        else:  # signs alone, such as an emoji
            scores += exact_match([p], [r])
    return scores


def chrf(predictions: Texts, references: Texts) -> Scores:
    """F-score (beta 2) over runs of 1 to 6 characters (Popović 2015, W15-3049), by sacrebleu: right where endings change."""
    metric = CHRF()
    return [metric.sentence_score(p, [r]).score / 100 for p, r in zip(predictions, references, strict=True)]


def contains_answer(predictions: Texts, keys: Texts) -> Scores:
    """1 where the key stands in the answer as whole words, case and ё aside: for general questions with one right word. A Russian
    word of five letters or more may have another ending ("Чехия" for "Чехии")."""

    def plain(text: str) -> str:
        return text.lower().replace("ё", "е")

    def pattern(key: str) -> str:
        ending = r"\w{0,3}" if re.fullmatch("[а-я]{5,}", key) else ""
        return rf"(?<!\w){re.escape(key[:-2] if ending else key)}{ending}(?!\w)"

    return [float(re.search(pattern(plain(k)), plain(p)) is not None) for p, k in zip(predictions, keys, strict=True)]


# ------------------------------------------------------------------------------------------ form
def of_each_answer(holds: Callable[[str], bool], meaning: str) -> Metric:
    """A metric of answers alone. meaning: what a report says of it."""
    return described(lambda predictions, references: [float(holds(p)) for p in predictions], meaning)


def described(metric: Metric, meaning: str) -> Metric:
    metric.__doc__ = meaning
    return metric


def copied(pattern: str) -> Metric:
    """1 where the answer holds just those values that the reference holds, such as order numbers; None where it holds none.

    pattern: a regular expression of one value; with a group, what the group holds is compared.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as e:
        raise SettingsError(f"pattern={pattern!r} is no regular expression ({e}); regex101.com helps to mend it") from None

    def metric(predictions: Texts, references: Texts) -> Scores:
        pairs = [(set(compiled.findall(p)), set(compiled.findall(r))) for p, r in zip(predictions, references, strict=True)]
        return [float(mine == theirs) if theirs else None for mine, theirs in pairs]

    return described(
        metric, f"1 where the answer holds the same {pattern} as the right one, of the rows whose right answer has any"
    )


def valid_json(schema: dict | None = None) -> Metric:
    """1 where the answer is JSON and nothing else, and fits the JSON Schema if there is one."""
    if schema is not None:
        try:
            validator_for(schema).check_schema(schema)
        except SchemaError as e:
            raise SettingsError(
                f"the JSON Schema is wrong at {e.json_path} ({e.message}); json-schema.org shows how one looks"
            ) from None
    fits = validator_for(schema)(schema).is_valid if schema is not None else lambda value: True

    def holds(text: str) -> bool:
        try:
            return fits(json.loads(text, parse_constant=_no_json))
        except (ValueError, RecursionError):
            return False

    return of_each_answer(holds, "1 where the answer is JSON" + (" that fits its schema" if schema else ""))


def _no_json(constant: str):
    raise ValueError(f"{constant} is no JSON, though Python reads it")


# What every comparison shows: likeness to the reference. None of them knows whether an answer is true.
USUAL: dict[str, Metric] = {"exact match": exact_match, "token F1": token_f1, "ROUGE-L": rouge_l, "chrF": chrf}
