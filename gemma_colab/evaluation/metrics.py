"""Plain functions `(predictions, references) -> one score a row`. Add your own in three lines:

    def thanks(predictions, references):
        "1 where the answer says thank you."
        return [float("thank you" in p.lower()) for p in predictions]

Scores are between 0 and 1, and `None` where a row has nothing to measure. The docstring's first sentence is what a report says of it.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import CHRF

Texts = Sequence[str]
Scores = list[float | None]
NO_SPACES = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"
Metric = Callable[[Texts, Texts], Scores]


def words(text: str) -> list[str]:
    """Letters and digits of any alphabet, lower case, ё as е; where no spaces are written (Chinese, Japanese, Thai) each sign is one."""
    return re.findall(rf"[{NO_SPACES}]|[^\W{NO_SPACES}]+", text.lower().replace("ё", "е"))


def exact_match(predictions: Texts, references: Texts) -> Scores:
    """1 where the answer is the right one word for word."""
    return [float(p.split() == r.split()) for p, r in zip(predictions, references, strict=True)]


def token_f1(predictions: Texts, references: Texts) -> Scores:
    """Words in common with the right answer, in any order. It is the harmonic mean of precision and recall (SQuAD, arXiv 1606.05250)."""
    return _f1(predictions, references, lambda mine, theirs: sum((Counter(mine) & Counter(theirs)).values()))


def rouge_l(predictions: Texts, references: Texts) -> Scores:
    """Words in common with the right answer, in the same order. It is the F1 of the longest common subsequence (Lin 2004, W04-1013). The rouge-score package takes
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
    """Pieces of words in common, so that another ending counts little. It is an F-score (beta 2) over runs of 1 to 6 characters (Popović
    2015, W15-3049), by sacrebleu."""
    metric = CHRF()
    return [metric.sentence_score(p, [r]).score / 100 for p, r in zip(predictions, references, strict=True)]


def contains_answer(predictions: Texts, keys: Texts) -> Scores:
    """1 where the key is in the answer as whole words, case and ё aside: for general questions with one right word. A Russian
    word of five letters or more may have another ending ("Чехия" for "Чехии")."""

    def plain(text: str) -> str:
        return text.lower().replace("ё", "е")

    def pattern(key: str) -> str:
        ending = r"\w{0,3}" if re.fullmatch("[а-я]{5,}", key) else ""
        return rf"(?<!\w){re.escape(key[:-2] if ending else key)}{ending}(?!\w)"

    return [float(re.search(pattern(plain(k)), plain(p)) is not None) for p, k in zip(predictions, keys, strict=True)]


# What every comparison shows: likeness to the reference. None of them knows whether an answer is true.
USUAL: dict[str, Metric] = {"exact match": exact_match, "token F1": token_f1, "ROUGE-L": rouge_l, "chrF": chrf}


def rule_checks(rules: Sequence[Sequence[str]], checks: dict[str, dict[str, list[str]]]) -> dict[str, Metric]:
    """Make two measures of the rules of a house: "rules stated" and "nothing forbidden".

    rules: for each row the names of the rules that its right answer rests on. checks: rule -> {"required": patterns of what it says,
    "forbidden": patterns of what would contradict it}; those of "*" hold for all rows. A pattern is a regular expression, case aside.
    """

    def found(kind: str, names: Sequence[str], text: str) -> set[str]:
        patterns = [p for name in names for p in checks.get(name, {}).get(kind, ())]
        return {p for p in patterns if re.search(p, text.replace("\xa0", " "), re.IGNORECASE)}

    def stated(predictions: Texts, references: Texts) -> Scores:
        """1 where the answer says all that its right answer says of the shop's rules, of what can be checked."""
        rows = zip(predictions, references, rules, strict=True)
        pairs = [(found("required", own, r), found("required", own, p)) for p, r, own in rows]
        return [float(right <= said) if right else None for right, said in pairs]

    def nothing_forbidden(predictions: Texts, references: Texts) -> Scores:
        """1 where the answer says nothing that contradicts the rules of its row or that the shop never says."""
        rows = zip(predictions, references, ([*own, "*"] for own in rules), strict=True)
        return [float(found("forbidden", own, p) <= found("forbidden", own, r)) for p, r, own in rows]

    return {"rules stated": stated, "nothing forbidden": nothing_forbidden}
