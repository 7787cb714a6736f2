"""What the comparison says, in plain words.

The rules, over the lines of `compare` (metrics on the test rows, and the loss on their right answers). *Clear* is meant as there:
after the correction for several measures, so that two equal models are called different in 5 % of cases at most.

| word | holds when |
| --- | --- |
| too few rows | the test has fewer than 10 rows |
| better | at least one metric of answers is clearly better, and nothing is clearly worse |
| closer | the same, but half of the answers or more are no more like their right answer than that of another row is (`failures.unlike`), no bars count (see below), and no reader who judged blind found it better: fluent nonsense in the house's words can be like that |
| worse | something is clearly worse, or the loss is no number, and no metric of answers is clearly better |
| mixed | metrics of answers are clearly better, and something is clearly worse |
| no clear difference | no metric of answers is clear either way (the loss alone may be better: that proves little) |

`ship` is "no", "not yet", "ask a reader" or "yes":

| ship | holds when |
| --- | --- |
| no | the word is worse; or readers who judged blind found it worse; or a fifth or more of its answers show a fault: empty, cut off, repeating, in another language |
| not yet | the word is not better; or better by less than 0.02 in every metric; or not better than few-shot; or half of the answers are unlike the right ones, unless readers found it better; or it reproduces training answers; or it forgot something general |
| yes | none of these, and readers who judged blind found it better |
| ask a reader | none of these, and nobody has judged yet: no figure says whether an answer is true |

Where right and wrong can be counted, as in answers that fill in a form, there are *bars*, and they take the place of three things:
of likeness to the right answers, of reciting (a right form is the same again and again, and the bars hold on rows that were not
trained on), and of readers. Then "not yet" also holds when a bar is missed, "yes" when none of these does, and what was forgotten is
only told: an adapter that does one job is switched on for that job alone. Bars on the form alone (`FORM`) don't do for that: a
well-formed answer may be wrong.
"""

import pandas as pd

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import check_number
from gemma_colab.evaluation.compare import ENOUGH_ROWS, LOSS, NO_NUMBER, QUESTIONS, clearly
from gemma_colab.evaluation.failures import FAILURE_MODES

TOO_MANY_FAILED, FAILED_WORTH_SAYING, CUT_OFF_WORTH_SAYING = 0.2, 0.05, 0.2  # shares of answers
MOSTLY = 0.5  # share of answers that are unlike the right ones, from which on it says nothing good
FORM = {"valid JSON", "nothing but JSON"}
KNOWN = 0.2  # share of general questions; a base that can answer fewer has little to forget there
VERBATIM = 0.2  # so much larger a share of training answers than of test answers by heart: memorized
WORKS = 0.9  # share of right answers from which on something simply works
WORTH_HAVING = 0.02  # the smallest difference of a metric worth having
REPAIR = "Read the rows that got worse, correct the rows they were learnt from, and train with a lower learning rate."
STAY = "Stay with the base model and a few examples in the prompt: that costs no training."
AS_WELL = "a few examples in the prompt do as well, or better"
AGAINST_BASE = {  # word -> (what to say, what speaks against shipping, what to do)
    "better": ("", "", ""),
    "closer": ("it came closer, and is not good yet", "", ""),
    "too few rows": ("nothing can be said", "there are too few test rows to tell", f"Test on at least {ENOUGH_ROWS} rows, better on a hundred."),
    "worse": ("", "it got worse", REPAIR),
    "mixed": ("", "it got worse in some measures", REPAIR),
    "no clear difference": ("no difference in the answers is clear of chance", "its answers did not get clearly better", "Train on more or better rows, or with a higher learning rate; more test rows would show a smaller difference."),
}  # fmt: skip
AGAINST_FEW_SHOT = {
    "better": ("Tuning beats a few examples in the prompt", "", ""),
    "mixed": ("Against a few examples in the prompt it wins and loses", "a few examples in the prompt do better in some measures", "Decide which of these measures counts: in some a few examples in the prompt do better than tuning."),
    "worse": ("A few examples in the prompt do better than tuning", AS_WELL, STAY),
    "no clear difference": ("A few examples in the prompt do as well as tuning", AS_WELL, STAY),
    "too few rows": ("Whether a few examples in the prompt would do, too few rows can tell", "", ""),
}  # fmt: skip
CUT_OFF = "Raise max_new_tokens; if that does not help, look whether <end_of_turn> is among the trained tokens (notebook 01)."
LOOK = "Look at these answers, and train with a lower learning rate."
WRONG = "Read the rows that are wrong: add rows like them, or correct the rows they were learnt from."
READ_SOME = "Read some of them: an answer in other words may still be good. If they make no sense, the model is too small, the rows are too few or the training is too short."  # fmt: skip
BY_HEART = "Train for fewer epochs, with a smaller rank, or on more rows."
ELSEWHERE = "If the model must do other things too: mix general rows in (replay), fewer epochs, a lower learning rate; or switch the adapter off for them."  # fmt: skip
BY_HAND = "Ask it some messages by hand, as people write them today. Your test rows have the same habits as your file: if something is missing in all of them, no figure can show it."  # fmt: skip
READ = "Read the answers below, worst first, and judge them blind: no figure says whether an answer is true."


def check_bars(bars: dict[str, float]) -> None:
    """Raise `SettingsError` unless bars are measures (as the report calls them) -> the least share of test rows, 0-1."""
    if not isinstance(bars, dict) or not all(isinstance(name, str) for name in bars):
        raise SettingsError(f"bars={bars!r} must name measures and shares; try bars={{'valid JSON': 0.95}}")
    for name, share in bars.items():
        check_number(f"bars[{name!r}]", share, 0, 1, 0.95)


def word_for(table: pd.DataFrame, unlike: float = 0.0) -> str:
    """Find the word for a comparison of two candidates, by the rules above. table: of `compare`. unlike: the share of `failures.unlike`."""
    better, worse = clearly(table)
    if table["rows"].max() < ENOUGH_ROWS:
        return "too few rows"
    if set(better["metric"]) - {LOSS}:
        return "mixed" if len(worse) else "closer" if unlike >= MOSTLY else "better"
    return "worse" if len(worse) else "no clear difference"


def did_it_work(against_base: pd.DataFrame, reasons: dict[str, str]) -> pd.DataFrame:
    """Say for each reason to tune a model whether it worked: a line with the measure that tests it, base, tuned, the difference with its
    95 % interval, and the answer. against_base: of `compare`. reasons: reason -> its measure; those that were not measured are left out.

    "yes" is clearly better and right in 9 of 10 answers; "in part" is clearly better only; "perhaps" as in `compare`; "no" is
    clearly worse, or the same; the rest was not shown.
    """
    lines, measured = [], {line.metric: line for line in against_base.itertuples()}
    for reason, measure in reasons.items():
        if line := measured.get(measure):
            right = line.after if line.better == "higher" else 1 - line.after
            better = (line.difference < 0) == (line.better == "lower")
            said = "yes" if right >= WORKS else f"in part: right in {right:.0%} of the answers"
            if line.clear == "perhaps":
                said = f"perhaps {'better' if better else 'worse'}: right in {right:.0%} of the answers"
            elif line.clear != "yes":
                luck = "there are too few rows" if line.clear == "too few rows" else "the difference may be luck"
                said = f"not shown: right in {right:.0%} of the answers, and {luck}"
                said = said if line.difference else f"no: right in {right:.0%} of the answers, as before"
            elif not better:
                said = "no: clearly worse"
            interval = f"{line.difference:+.2f} ({line.low:+.2f} to {line.high:+.2f})"
            lines.append((reason, measure, line.rows, f"{line.before:.2f}", f"{line.after:.2f}", interval, said))
    return pd.DataFrame(lines, columns=["reason", "measure", "rows", "base", "tuned", "difference (95 %)", "did it work?"])


def verdict(
    against_base: pd.DataFrame,
    against_few_shot: pd.DataFrame | None = None,
    *,
    general: pd.DataFrame | None = None,
    memorized: pd.DataFrame | None = None,
    failures: pd.DataFrame | None = None,
    unlike: float = 0.0,
    review: dict | None = None,
    replayed: bool = False,
    bars: dict[str, float] | None = None,
) -> dict:
    """Say what all of it comes to: {"word", "ship" (see above), "against" (what speaks against shipping), "lines" (all that was seen,
    a sentence each), "next" (what to do)}.

    against_base, against_few_shot: of `compare`, tuned as after. general: of `GeneralKnowledge.compare`. memorized: of `memorization`.
    failures: of `failure_modes`. unlike: the share of its answers that are `failures.unlike` the right ones. review: of
    `blind.BlindReview.summary`, opened. replayed: whether general rows of the same kinds as the questions were trained on. bars: metric
    of `against_base` -> the least share of test rows; none: a reader must judge. Raises `SettingsError` for a bar of another name.
    """
    bars, (liked, disliked) = bars or {}, (bool(review) and review["verdict"] == said for said in ("better", "worse"))
    check_bars(bars)
    counted = bool(bars.keys() - FORM)
    word = word_for(against_base, 0.0 if liked or counted else unlike)
    against, lines, steps, failed = [], [], [], False

    def note(line: str, reason: str = "", step: str = "", when: bool = True) -> None:
        """line: what was seen. reason, step: `when` it speaks against shipping, why, and what to do about it."""
        for text, where in zip((line, reason, step) if when else (line,), (lines, against, steps), strict=False):
            where += [text] if text else []

    said, *rest = AGAINST_BASE[word]
    far = f"{unlike:.0%} of its answers are no more like their right answer than the answer to another question is"
    said += f": {far}" * (word == "closer")
    note(f"On {against_base['rows'].max()} test rows {_told(said, against_base)}.", *rest)
    gains = clearly(against_base)[0].query("metric != @LOSS")["difference"].abs()
    if word in ("better", "closer") and gains.max() < WORTH_HAVING:
        note(f"It is better by next to nothing: less than {WORTH_HAVING} in every metric.", "it is better by next to nothing")
    if against_few_shot is not None:
        said, *rest = AGAINST_FEW_SHOT[word_for(against_few_shot)]
        note(f"{_told(said, against_few_shot)}.", *rest)
    if failures is not None:
        tuned = failures.loc["tuned"]
        signs = ", ".join(f"{share:.0%} {sign}" for sign, share in tuned[list(FAILURE_MODES)].items() if share > 0)
        none = f"{tuned['any']:.0%} of its answers show a fault that a program can see"
        failed = bool(tuned["any"] >= TOO_MANY_FAILED)
        if tuned["any"] >= FAILED_WORTH_SAYING:
            step = CUT_OFF if tuned["hit the limit"] >= TOO_MANY_FAILED / 2 else LOOK
            note(f"{none} (one may show several): {signs}.", none, step, failed)
        for name, share in failures["hit the limit"].drop("tuned").items():
            if share >= CUT_OFF_WORTH_SAYING:
                note(f"Of the answers of {name}, {share:.0%} were cut off at the limit of tokens: that counts against it.")
    reached = dict(zip(against_base["metric"], against_base["after"], strict=True))
    if unknown := sorted(bars.keys() - reached.keys()):
        raise SettingsError(f"bars names {unknown}, which was not measured; measured were {', '.join(reached)}")
    for name, bar in bars.items():
        said = f"{name} is {reached[name]:.0%}, and the bar is {bar:.0%}"
        note(f"{said}.", said, "" if WRONG in steps else WRONG, not reached[name] >= bar)
    if unlike >= MOSTLY:
        note("" if word == "closer" else f"{far[0].upper()}{far[1:]}.", far, READ_SOME, not liked and not counted)
    if memorized is not None:
        (train, heart), (test, foreseen) = memorized.loc[["train", "test"], ["word for word", "by heart"]].to_numpy().tolist()
        said = f"It reproduces {train:.0%} of its training answers word for word, and {test:.0%} of the test's."
        recited = heart - foreseen >= VERBATIM
        if train - test >= VERBATIM and not recited:
            said += f" That is no recital: the wording of {train - heart:.0%} repeats in other right answers."
        note(said, "it recites training answers", BY_HEART, recited and not counted)
    if general is not None:
        _, lost = clearly(general)
        known = general.loc[general["metric"].str.startswith(QUESTIONS), "before"].max()
        said = f"It forgot: {_named(lost)}." if len(lost) else "No forgetting is clear of chance in general questions and texts."
        if known < KNOWN:
            said += f" Its base could answer {known:.0%} of the general questions at most, so only the texts tell what it forgot."
        said += " Questions of these kinds were mixed into its training, so that says little about all else." * replayed
        worse = f"it got clearly worse elsewhere: {', '.join(lost['metric'])}"
        note(said, worse, ELSEWHERE, len(lost) > 0 and not counted)
    if review:
        note(f"Judged blind: {review['sentence']}", "readers who judged blind preferred the base", when=disliked)
    if word == "worse" or failed or disliked:
        ship = "no"
    elif against:
        ship = "not yet"
    else:
        ship = "yes" if liked or counted else "ask a reader"
    steps += [READ] * (ship == "ask a reader") + [BY_HAND] * (ship == "yes")
    return {"word": word, "ship": ship, "against": against, "lines": lines, "next": steps}


def _told(said: str, table: pd.DataFrame) -> str:
    """Add to what is said of a comparison what is clearly better and what is clearly worse."""
    ways = zip(("better", "worse"), map(_named, clearly(table)), strict=True)
    return "; ".join(filter(None, [said, *(f"{way}: {named}" for way, named in ways if named)]))


def _named(lines: pd.DataFrame) -> str:
    """Write `token F1 0.034 to 0.127 (+0.074 to +0.114)`: a value before and after, and the interval of the difference."""
    named = []
    for line in lines.itertuples():
        digits = 3 if max(abs(line.before), abs(line.after)) <= 1 else 2  # a share, or a loss
        values = f"{line.before:.{digits}f} to {line.after:.{digits}f} ({line.low:+.{digits}f} to {line.high:+.{digits}f})"
        named.append(f"{line.metric} {'is no number' if line.clear == NO_NUMBER else values}")
    return ", ".join(named)
