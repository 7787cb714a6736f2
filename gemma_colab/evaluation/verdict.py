"""What the comparison says, in plain words.

The rules, over the lines of `compare` (metrics on the test rows, and the loss on their right answers):

| word | holds when |
| --- | --- |
| too few rows | the test has fewer than 10 rows |
| better | at least one metric of answers is clearly better, and nothing is clearly worse |
| worse | something is clearly worse, and no metric of answers is clearly better |
| mixed | metrics of answers are clearly better, and something is clearly worse |
| no clear difference | no metric of answers is clear either way (the loss alone may be better: that proves little) |

`ship` is "no", "not yet" or "ask a reader":

| ship | holds when |
| --- | --- |
| no | the word is worse; or answers are unhealthy: a fifth or more of them empty, repeating, in another language or cut off |
| not yet | the word is not better; or few-shot is as good; or half of the answers share fewer than a third of their words with the right ones; or a fifth or more of training answers were learnt by heart; or something general was clearly forgotten |
| ask a reader | none of these: no figure says whether an answer is true, so somebody must read |
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from gemma_colab.evaluation.compare import FEW, LOSS

WORDS = ("too few rows", "better", "worse", "mixed", "no clear difference")
UNHEALTHY, ALIKE, BY_HEART = 0.2, 1 / 3, 0.2


@dataclass(frozen=True)
class Verdict:
    """word: one of `WORDS`. lines: what was seen, a sentence each. next_steps: what to do about it. ship: see above."""

    word: str
    ship: str
    lines: list[str] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)

    def __str__(self):
        return f"{self.word}; ship: {self.ship}. " + " ".join([*self.lines, *self.next_steps])


def word_for(table: pd.DataFrame) -> str:
    """The word for a comparison of two contestants, by the rules above. table: of `compare`."""
    if not len(table) or table["rows"].max() < FEW:
        return "too few rows"
    good, bad = set(improved(table)["metric"]), set(worsened(table)["metric"])
    if good - {LOSS}:
        return "mixed" if bad else "better"
    return "worse" if bad else "no clear difference"


def improved(table: pd.DataFrame) -> pd.DataFrame:
    """The lines that are clearly better."""
    return table[(table["clear"] == "yes") & ((table["difference"] < 0) == (table["better"] == "lower"))]


def worsened(table: pd.DataFrame) -> pd.DataFrame:
    """The lines that are clearly worse."""
    return table[(table["clear"] == "yes") & ((table["difference"] < 0) != (table["better"] == "lower"))]


def verdict(
    against_base: pd.DataFrame,
    against_few_shot: pd.DataFrame | None = None,
    *,
    forgotten: pd.DataFrame | None = None,
    memorised: pd.DataFrame | None = None,
    health: pd.Series | None = None,
    alike: float | None = None,
    review: dict | None = None,
) -> Verdict:
    """What all of it says together.

    against_base, against_few_shot: of `compare`, tuned as after. forgotten: the lines that got worse, of `forgetting.forgot`.
    memorised: of `memorisation.memorisation`. health: the tuned model's line of `health.health`. alike: the median over rows of the
    words that an answer shares with the right one (token F1). review: what `evaluation.blind` found.
    """
    word = word_for(against_base)
    lines, steps, not_yet = [_compared(word, against_base)], [], []
    if word == "too few rows":
        rows = int(against_base["rows"].max()) if len(against_base) else 0
        steps.append(f"Test on at least {FEW} rows, better on a hundred; now there are {rows}.")
    elif word in ("worse", "mixed"):
        steps.append("Read the rows that got worse, mend what they were taught from, and train with a lower learning rate.")
    elif word == "no clear difference":
        steps.append(
            "Train on more or better rows, or with a higher learning rate; more test rows would show a smaller difference."
        )
    if against_few_shot is not None and len(against_few_shot):
        few = word_for(against_few_shot)
        lines.append(_few_shot(few, against_few_shot))
        if few in ("worse", "no clear difference"):
            not_yet.append("few-shot is as good")
            steps.append("Stay with the base model and a few examples in the prompt: that costs no training.")
    ill = health is not None and _ill(health)
    if ill:
        lines.append(f"Many answers of the tuned model are no answers: {ill}.")
        steps.append(_cure(health))
    if alike is not None and alike < ALIKE:
        not_yet.append("unlike the right answers")
        lines.append(f"Half of its answers share {alike:.0%} of their words or fewer with the right ones.")
        steps.append(
            "Read some of them: unlike the right answer may still be good, if the form is free; if they make no sense, the model is too small or the training too short."
        )
    if memorised is not None and len(memorised):
        lines.append(_memorised(memorised))
        if memorised.loc["train", "word for word"] - memorised.loc["test", "word for word"] >= BY_HEART:
            not_yet.append("learnt by heart")
            steps.append("Train for fewer epochs, with a smaller rank, or on more rows.")
    if forgotten is not None:
        lines.append(_forgotten(forgotten))
        if len(forgotten):
            not_yet.append("forgot")
            steps.append(
                "If the model must do other things too: mix general rows in (replay), fewer epochs, a lower learning rate; or switch the adapter off for them."
            )
    if review:
        lines.append(f"Readers who did not know which was which: {review['sentence']}")
    ship = "no" if word == "worse" or ill else "not yet" if word != "better" or not_yet else "ask a reader"
    if ship == "ask a reader":
        steps.append("Read the answers below, worst first, and judge them blind: no figure says whether an answer is true.")
    return Verdict(word, ship, lines, steps)


def _compared(word: str, table: pd.DataFrame) -> str:
    rows = int(table["rows"].max()) if len(table) else 0
    if word == "too few rows":
        return f"With {rows} test rows nothing can be said."
    good, bad = _named(improved(table)), _named(worsened(table))
    if word == "no clear difference":
        return f"On {rows} test rows no difference in the answers is clear of chance" + (f", though the {good}." if good else ".")
    return f"On {rows} test rows " + "; but ".join(filter(None, [good and f"better: {good}", bad and f"worse: {bad}"])) + "."


def _named(lines: pd.DataFrame) -> str:
    """`token F1 0.03 to 0.13 (+0.07 to +0.11)`: a value before and after, and the interval of the difference."""
    return ", ".join(
        f"{line.metric} {line.before:.2f} to {line.after:.2f} ({line.low:+.2f} to {line.high:+.2f})"
        for line in lines.itertuples()
    )


def _few_shot(word: str, table: pd.DataFrame) -> str:
    said = {
        "better": "Tuning beats a few examples in the prompt",
        "mixed": "Against a few examples in the prompt it wins and loses",
        "worse": "A few examples in the prompt do better than tuning",
        "no clear difference": "A few examples in the prompt do as well as tuning",
        "too few rows": "Whether a few examples in the prompt would do, too few rows can tell",
    }[word]
    good, bad = _named(improved(table)), _named(worsened(table))
    return ". ".join([said, *filter(None, [good and f"Better: {good}", bad and f"Worse: {bad}"])]) + "."


def _ill(health: pd.Series) -> str:
    return ", ".join(f"{share:.0%} {sign}" for sign, share in health.items() if sign != "tokens" and share >= UNHEALTHY)


def _cure(health: pd.Series) -> str:
    if health.get("hit the limit", 0) >= UNHEALTHY:
        return (
            "Raise max_new_tokens; if that does not help, look whether <end_of_turn> is among the trained tokens (notebook 01)."
        )
    return "Look at these answers, and train with a lower learning rate."


def _memorised(table: pd.DataFrame) -> str:
    train, test = table.loc["train", "word for word"], table.loc["test", "word for word"]
    return f"It reproduces {train:.0%} of its training answers word for word, and {test:.0%} of the test's."


def _forgotten(lines: pd.DataFrame) -> str:
    return (
        f"It forgot: {_named(lines)}." if len(lines) else "No forgetting is clear of chance in the general questions and texts."
    )
