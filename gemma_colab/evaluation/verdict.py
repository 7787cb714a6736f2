"""What the comparison says, in plain words.

The rules, over the lines of `compare` (metrics on the test rows, and the loss on their right answers). *Clear* is meant as there:
after the correction for several measures, so that two equal models are called different in 5 % of cases at most.

| word | holds when |
| --- | --- |
| too few rows | the test has fewer than 10 rows |
| better | at least one metric of answers is clearly better, and nothing is clearly worse |
| worse | something is clearly worse, or the loss is no number, and no metric of answers is clearly better |
| mixed | metrics of answers are clearly better, and something is clearly worse |
| no clear difference | no metric of answers is clear either way (the loss alone may be better: that proves little) |

`ship` is "no", "not yet", "ask a reader" or "yes":

| ship | holds when |
| --- | --- |
| no | the word is worse; or readers who judged blind found it worse; or a fifth or more of its answers are none: empty, cut off, repeating, in another language |
| not yet | the word is not better; or better by less than 0.02 in every metric; or not better than few-shot; or half of the answers are unlike the right ones (token F1 under a third), unless readers found it better; or it reproduces training answers; or it forgot something general |
| yes | none of these, and readers who judged blind found it better |
| ask a reader | none of these, and nobody has judged yet: no figure says whether an answer is true |

Where right and wrong can be counted, there are *bars* (`settings.ShipSettings`), and they take the place of three things: of
likeness to the right answers, of reciting (a right form is the same again and again, and the bars hold on rows that were not
trained on), and of readers. Then "not yet" also holds when a bar is missed, "yes" when none of these does, and what was forgotten
counts only if the settings say so. Bars on the form alone (`FORM`) don't do for that: a well-formed answer may be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pandas as pd

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import Settings, check_number
from gemma_colab.evaluation.compare import FEW, LOSS, NO_NUMBER, QUESTIONS, improved, worsened
from gemma_colab.evaluation.memorisation import learnt_by_heart
from gemma_colab.evaluation.metrics import USUAL


@dataclass(frozen=True, kw_only=True)
class ShipSettings(Settings):
    """When figures alone may say "ship it": where right and wrong can be counted, as in answers that fill in a form.

    bars: measure (as the report calls it) -> the least share of test rows, 0-1; none: a reader must judge. may_forget: whether what
    got worse elsewhere is only told. An adapter that does one job is switched on for that job alone.
    """

    file: ClassVar[str] = "ship_settings.json"
    bars: dict[str, float] = field(default_factory=dict)
    may_forget: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.bars, dict) or not all(isinstance(name, str) for name in self.bars):
            raise SettingsError(f"bars={self.bars!r} must name measures and shares; try bars={{'valid JSON': 0.95}}")
        for name, share in self.bars.items():
            check_number(f"bars[{name!r}]", share, 0, 1, 0.95)


WORDS = ("too few rows", "better", "worse", "mixed", "no clear difference")
ILL = {"empty": "empty", "hit the limit": "cut off", "repeating": "repeating themselves", "other language": "in another language"}
UNHEALTHY, MENTIONED, CUT = 0.2, 0.05, 0.2  # shares of answers
ALIKE = 1 / 3  # token F1
FORM = {"valid JSON", "nothing but JSON"}
NOT_BETTER = {
    "too few rows": "there are too few test rows to tell",
    "worse": "it got worse",
    "mixed": "it got worse in some measures",
    "no clear difference": "its answers did not get clearly better",
}
KNOWN = 0.2  # share of general questions; a base that can answer fewer has little to forget there
WORTH = 0.02  # the smallest difference of a metric worth having


@dataclass(frozen=True)
class Verdict:
    """word: one of `WORDS`. ship: see above. against: what speaks against shipping. lines: all that was seen, a sentence each.
    next_steps: what to do about it."""

    word: str
    ship: str
    against: list[str] = field(default_factory=list)
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


def verdict(
    against_base: pd.DataFrame,
    against_few_shot: pd.DataFrame | None = None,
    *,
    forgotten: pd.DataFrame | None = None,
    memorised: pd.DataFrame | None = None,
    health: pd.DataFrame | None = None,
    alike: float | None = None,
    review: dict | None = None,
    replayed: bool = False,
    ship_by: ShipSettings | None = None,
) -> Verdict:
    """What all of it says together.

    against_base, against_few_shot: of `compare`, tuned as after. forgotten: of `forgetting.forgetting`. memorised: of
    `memorisation.memorisation`. health: of `health.health`. alike: the median over rows of token F1.
    review: of `blind.BlindReview.summary`, opened. replayed: whether general rows of the same kinds as the probe were trained on. ship_by: bars, which
    name metrics of `against_base`. Raises `SettingsError` for a bar of another name.
    """
    bars = ship_by.bars if ship_by else {}
    word = word_for(against_base)
    lines, steps, against = (
        [_compared(word, against_base), *_levels(against_base)],
        [],
        [] if word == "better" else [NOT_BETTER[word]],
    )
    if word == "too few rows":
        rows = int(against_base["rows"].max()) if len(against_base) else 0
        steps.append(f"Test on at least {FEW} rows, better on a hundred; now there are {rows}.")
    elif word in ("worse", "mixed"):
        steps.append("Read the rows that got worse, mend what they were taught from, and train with a lower learning rate.")
    elif word == "no clear difference":
        steps.append(
            "Train on more or better rows, or with a higher learning rate; more test rows would show a smaller difference."
        )
    elif improved(against_base).query("metric != @LOSS")["difference"].abs().max() < WORTH:
        against.append("it is better by next to nothing")
        lines.append(f"It is better by next to nothing: less than {WORTH} in every metric.")
    if against_few_shot is not None and len(against_few_shot):
        few = word_for(against_few_shot)
        lines.append(_few_shot(few, against_few_shot))
        if few in ("worse", "no clear difference"):
            against.append("a few examples in the prompt do as well, or better")
            steps.append("Stay with the base model and a few examples in the prompt: that costs no training.")
        elif few == "mixed":
            against.append("a few examples in the prompt do better in some measures")
            steps.append("Decide which of these measures counts: in some a few examples in the prompt do better than tuning.")
    ill = health is not None and bool(health.loc["tuned", "any"] >= UNHEALTHY)
    if health is not None:
        lines += _health(health)
    if ill:
        against.append(f"{health.loc['tuned', 'any']:.0%} of its answers are no proper answers")
        steps.append(_cure(health.loc["tuned"]))
    liked = bool(review) and review.get("verdict") == "better"
    disliked = bool(review) and review.get("verdict") == "worse"
    if bars:
        missed, told = _bars(bars, against_base)
        against += missed
        lines.append(told)
        if missed:
            steps.append("Read the rows that are wrong: add rows like them, or mend what they were taught from.")
    if alike is not None and alike < ALIKE and not bars:
        against += [] if liked else ["half of its answers are unlike the right ones"]
        lines.append(f"Half of its answers are unlike the right ones: token F1 {alike:.2f} or less, where 1 is the same words.")
        steps.append(
            "Read some of them: unlike the right answer may still be good, if the form is free; if they make no sense, the model is "
            "too small or the training too short."
        )
    if memorised is not None and len(memorised):
        train, test = memorised.loc["train", "word for word"], memorised.loc["test", "word for word"]
        lines.append(f"It reproduces {train:.0%} of its training answers word for word, and {test:.0%} of the test's.")
        if learnt_by_heart(memorised) and not bars:
            against.append("it recites training answers")
            steps.append("Train for fewer epochs, with a smaller rank, or on more rows.")
    if forgotten is not None:
        lost = worsened(forgotten)
        lines.append(_forgotten(forgotten, lost, replayed))
        if len(lost) and not (bars and ship_by.may_forget):
            against.append(f"it got clearly worse elsewhere: {', '.join(lost['metric'])}")
            steps.append(
                "If the model must do other things too: mix general rows in (replay), fewer epochs, a lower learning rate; or switch "
                "the adapter off for them."
            )
    if review:
        against += ["readers who judged blind preferred the base"] if disliked else []
        lines.append(f"Judged blind: {review['sentence']}")
    counted = bool(bars.keys() - FORM)
    ship = "no" if word == "worse" or ill or disliked else "not yet" if against else "yes" if liked or counted else "ask a reader"
    if ship == "ask a reader":
        steps.append("Read the answers below, worst first, and judge them blind: no figure says whether an answer is true.")
    return Verdict(word, ship, against, lines, steps)


def _bars(bars: dict[str, float], table: pd.DataFrame) -> tuple[list[str], str]:
    """What speaks against shipping, and a sentence on all bars."""
    reached = dict(zip(table["metric"], table["after"], strict=True))
    if unknown := sorted(set(bars) - set(reached)):
        raise SettingsError(f"bars names {unknown}, which was not measured; measured were {', '.join(reached)}")
    missed = [
        f"{name} is {reached[name]:.0%}, and the bar is {bar:.0%}" for name, bar in bars.items() if not reached[name] >= bar
    ]
    told = ", ".join(f"{name} {reached[name]:.0%} (bar {bar:.0%})" for name, bar in bars.items())
    return missed, f"Against the bars you set: {told}."


def _compared(word: str, table: pd.DataFrame) -> str:
    rows = int(table["rows"].max()) if len(table) else 0
    if word == "too few rows":
        return f"With {rows} test rows nothing can be said."
    good, bad = _named(improved(table)), _named(worsened(table))
    if word == "no clear difference":
        return f"On {rows} test rows no difference in the answers is clear of chance" + (f", though the {good}." if good else ".")
    return f"On {rows} test rows " + "; but ".join(filter(None, [good and f"better: {good}", bad and f"worse: {bad}"])) + "."


def _levels(table: pd.DataFrame) -> list[str]:
    """How often the answers do what was asked for, also where that did not clearly change."""
    strict = table[table["p"].notna() & ~table["metric"].isin([*USUAL, LOSS])]

    def one(line) -> str:
        good = (line.difference < 0) == (line.better == "lower")
        clear = {"yes": "better" if good else "worse", "perhaps": "perhaps better" if good else "perhaps worse"}
        return (
            f"{line.metric} in {line.after:.0%} of {line.rows} (before {line.before:.0%}, {clear.get(line.clear, 'not clear')})"
        )

    named = "; ".join(one(line) for line in strict.itertuples() if 0 <= line.after <= 1)
    return [f"Of the tuned model's answers: {named}."] if named else []


def _named(lines: pd.DataFrame) -> str:
    """`token F1 0.034 to 0.127 (+0.074 to +0.114)`: a value before and after, and the interval of the difference."""

    def one(line) -> str:
        if line.clear == NO_NUMBER:
            return f"{line.metric} is no number"
        digits = 3 if max(abs(line.before), abs(line.after)) <= 1 else 2  # a share, or a loss
        values = f"{line.before:.{digits}f} to {line.after:.{digits}f}"
        return f"{line.metric} {values} ({line.low:+.{digits}f} to {line.high:+.{digits}f})"

    return ", ".join(map(one, lines.itertuples()))


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


def _health(health: pd.DataFrame) -> list[str]:
    """What is wrong with answers of the tuned model; and where others were cut off, which counts against them."""
    tuned, lines = health.loc["tuned"], []
    if tuned["any"] >= MENTIONED:
        named = ", ".join(f"{tuned[sign]:.0%} {text}" for sign, text in ILL.items() if tuned[sign] > 0)
        lines.append(
            f"Of the tuned model's answers {tuned['any']:.0%} are no proper answers (one may show several signs): {named}."
        )
    for name in health.index.drop("tuned"):
        if health.loc[name, "hit the limit"] >= CUT:
            share = health.loc[name, "hit the limit"]
            lines.append(f"Of the answers of {name}, {share:.0%} were cut off at the limit of tokens: that counts against it.")
    return lines


def _cure(health: pd.Series) -> str:
    if health["hit the limit"] >= UNHEALTHY / 2:
        return (
            "Raise max_new_tokens; if that does not help, look whether <end_of_turn> is among the trained tokens (notebook 01)."
        )
    return "Look at these answers, and train with a lower learning rate."


def _forgotten(table: pd.DataFrame, lost: pd.DataFrame, replayed: bool) -> str:
    text = f"It forgot: {_named(lost)}." if len(lost) else "No forgetting is clear of chance in the general questions and texts."
    known = table.loc[table["metric"].str.startswith(QUESTIONS), "before"].max()
    if known < KNOWN:
        text += f" Its base could answer {known:.0%} of the general questions at most, so only the texts tell what it forgot."
    return text + " Questions of these kinds were mixed into its training, so that says little about all else." * replayed
