"""Tables to look at: rows, tokens, comparisons with their intervals as bars, answers side by side. Every text is escaped."""

import math
import re
from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML
from rapidfuzz.distance import LCSseq

from gemma_colab.core.html import render
from gemma_colab.data.looking import pieces
from gemma_colab.data.personal import redact

GREEN, RED, GREY = "#2e9d4e", "#d64545", "#8a8f98"
CANDIDATES = ("base", "few-shot", "tuned")
TEMPLATE = "ui/evidence"
TICKS, AXIS = (-1, -0.1, 0, 0.1, 1), 90  # of the axis of differences; half its width in pixels, where it has come to 10


def text_table(table: pd.DataFrame, masked: bool = True) -> HTML:
    """Show a table whose long texts wrap and are left-aligned. Whatever the cells hold is shown, never run. masked: not personal data,
    as a notebook is saved with what it shows."""
    rows = [[[(redact(cell) if masked else cell, False)] for cell in row] for row in table.itertuples(index=False)]
    return HTML(render(TEMPLATE, "grid", list(table.columns), rows, "texts", "max-width:36em"))


def trained_tokens(input_ids: Sequence[int], labels: Sequence[int], tokenizer) -> HTML:
    """Show the tokens of one row in color: trained where the label is not -100."""
    shown = [tokenizer.decode([i]).replace("\n", "⏎").replace(" ", "·") for i in input_ids]
    return HTML(render(TEMPLATE, "tokens", [(text, label != -100) for text, label in zip(shown, labels, strict=True)]))


def comparison_table(x: pd.DataFrame | dict, other: str = "base") -> HTML | pd.DataFrame:
    """Show what tuning changed, on the same test rows.

    x: a comparison of the tuned model with `other`: each interval is drawn as a bar beside zero, green where tuned is clearly
    better, red where it is clearly worse, grey where that isn't clear, or only perhaps; all on one axis, see `_along`. Or the
    summary of `assess`: a `DataFrame` with a line a measure, the mean of each candidate, and how far tuned is from few-shot (from
    base, where few-shot was not asked) with its 95 % interval; "always the same" is one answer to every question.
    """
    if isinstance(x, dict):
        return _candidates(x)
    lines = x.to_dict("records")
    for line in lines:
        line |= {"x1": _along(line["low"]), "x": _along(line["difference"]), "x2": _along(line["high"])}
        good = (line["difference"] < 0) == (line["better"] == "lower")
        line["color"] = GREY if line["clear"] != "yes" else GREEN if good else RED
        line["word"] = line["clear"]
        if line["clear"] in ("yes", "perhaps"):
            line["word"] += ", better" if good else ", worse"
        if pd.notna(line["p"]):  # McNemar's, for yes/no scores
            line["word"] += f" (p {line['p']:.2f})" if line["p"] >= 0.005 else " (p < 0.01)"
    return HTML(render(TEMPLATE, "comparison", lines, other, [(f"{tick:+g}" if tick else "0", _along(tick)) for tick in TICKS]))


def _along(difference: float) -> float:
    """Place a difference on the axis, 0 in the middle: even near 0 and logarithmic beyond, so that 0.1, 1 and 5 can be told apart."""
    if math.isnan(difference):  # no number
        return 0.0
    return round(math.copysign(min(AXIS, 33 * math.log10(1 + abs(difference) / 0.02)), difference), 1)


def _candidates(summary: dict) -> pd.DataFrame:
    few = {line["metric"]: line for line in summary["tuned_against_few_shot"]}
    same, lines = summary.get("always_the_same") or {}, {}
    for line in summary["tuned_against_base"]:
        name, against = line["metric"], few.get(line["metric"], line)
        means = {"always the same": same.get(name)} if same else {}
        means |= {"base": line["before"], **({"few-shot": against["before"]} if few else {}), "tuned": line["after"]}
        lines[name] = {who: "" if mean is None else f"{mean:.2f}" for who, mean in means.items()}
        interval = f"{against['difference']:+.2f} ({against['low']:+.2f} to {against['high']:+.2f})"
        lines[name][f"tuned − {'few-shot' if few else 'base'} (95 %)"] = interval
    return pd.DataFrame(lines).T


def shared_words(text: str, reference: str) -> list[tuple[str, bool]]:
    """`text` cut into pieces: (piece, whether its words are in the reference too, in the same order)."""
    words = [list(re.finditer(r"\w+", t)) for t in (text, reference)]
    folded = [[word[0].lower().replace("ё", "е") for word in part] for part in words]
    blocks = LCSseq.opcodes(*folded).as_matching_blocks() if len(folded[0]) * len(folded[1]) <= 2000**2 else []  # a bit a pair
    return pieces(text, [(words[0][b.a].start(), words[0][b.a + b.size - 1].end()) for b in blocks if b.size], 0, len(text))


def side_by_side(
    answers: pd.DataFrame, by: str | None = None, n: int | None = None, names: Sequence[str] | None = None, score="token F1"
) -> HTML:
    """Show question, right answer and the answer of each candidate in a row; the words it shares with the right one are marked.

    answers: columns "question", "wanted", and the candidates' names. by: "worst" or "best" by column `score`, "random", or
    None: as they come. n: at most so many rows. names: which candidates; those that are missing are left out.
    """
    names, rows = [name for name in names or CANDIDATES if name in answers], []
    for row in in_order(answers, by, score).head(n or len(answers)).to_dict("records"):
        plain = [[(str(row[name]), False)] for name in ("question", "wanted")]
        rows.append(plain + [shared_words(str(row[name]), str(row["wanted"])) for name in names])
    heads = ["question", "right answer", *names]
    return HTML(render(TEMPLATE, "grid", heads, rows, "answers", f"width:{100 // len(heads)}%"))


def in_order(answers: pd.DataFrame, by: str | None, score: str = "token F1") -> pd.DataFrame:
    """All rows: the worst or the best first by column `score`, shuffled ("random", always alike), or as they come."""
    if by == "random":
        return answers.sample(frac=1, random_state=0)
    if by not in ("worst", "best") or score not in answers:
        return answers
    return answers.sort_values(score, ascending=by == "worst", kind="stable")
