"""Is the difference real? Paired statistics: the same rows before and after.

A mean over 82 rows would be another one over 82 other rows. How far off it might be is found by drawing rows again, with
repetition, a few thousand times (the bootstrap): the middle 95 % of what comes out is the interval. Before and after are in the
same row and are drawn together, so that hard rows and easy rows weigh on both alike. For yes/no scores, and where few rows
change, McNemar's exact test asks how often a fair coin would do what the changed rows did.

Of twenty measures one moves by chance. So where several are compared, a difference counts as clear only if it is so at a level
divided by their number (Bonferroni); the intervals shown are those of 95 %.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm, t

LOSS = "loss on right answers"  # the name of its line beside the metrics of answers
QUESTIONS = "general questions right"  # so the lines of general knowledge about them begin
NO_NUMBER = "no number"
ENOUGH_ROWS = 10  # with fewer rows nothing is called different
COLUMNS = ["metric", "better", "rows", "before", "after", "difference", "low", "high", "wins", "ties", "losses", "p", "clear"]


def paired_bootstrap(
    before, after, *, weights=None, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Return (mean difference after - before, low, high): a 95 % interval, or one of `level`, from `resamples` draws of whole rows.

    before, after: scores of the same rows. weights: for per-token means, the tokens of each row; then scores are sums.

    The interval is studentized ("bootstrap-t", Efron and Tibshirani 1993, chapter 12.5): each draw is measured in its own standard
    errors, which stays right where scores are skewed and rows are few (of 12 rows it holds the truth in 95 %, that of
    `scipy.stats.bootstrap` in 92 %). Where fewer than 10 rows changed it breaks down; then it is the expanded percentile interval
    (Hesterberg 2015, doi 10.1080/00031305.2015.1089789).
    """
    gain = np.asarray(after, float) - np.asarray(before, float)
    weights = np.ones(len(gain)) if weights is None else np.asarray(weights, float)
    difference, error = map(float, _mean_and_error(gain, weights))
    means, errors = _draws(gain, weights, resamples, seed)
    if (gain != 0).sum() < ENOUGH_ROWS or not errors.all():
        low, high = np.quantile(means, _expanded(len(gain), level))
        return difference, float(low), float(high)
    low, high = np.quantile((means - difference) / errors, [(1 - level) / 2, (1 + level) / 2])
    return difference, difference - float(high) * error, difference - float(low) * error


def share_interval(hits) -> tuple[float, float]:
    """Return (low, high) of the share of rows that yes/no scores hold: Wilson's 95 % interval."""
    low, high = binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return float(low), float(high)


def loss_gap(train: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float]:
    """Return (loss on other rows - loss on training rows, low, high), in nats per token. train, other: of `answer_losses`."""
    (a, weights_a), (b, weights_b) = (table[["loss", "tokens"]].to_numpy(float).T for table in (train, other))
    means = _draws(b, weights_b, 2000, seed=1)[0] - _draws(a, weights_a, 2000, seed=0)[0]
    low, high = np.quantile(means, _expanded(min(len(a), len(b))))
    return float(b.sum() / weights_b.sum() - a.sum() / weights_a.sum()), float(low), float(high)


def _draws(sums: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    return _mean_and_error(sums[rows], weights[rows])


def _mean_and_error(sums: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a ratio of sums along the last axis and, by linearization, its standard error; with equal weights those of a mean."""
    rows, total = sums.shape[-1], weights.sum(axis=-1)
    mean = sums.sum(axis=-1) / total
    left = sums - mean[..., None] * weights
    return mean, np.sqrt((left**2).sum(axis=-1) * rows / max(1, rows - 1)) / total


def _expanded(rows: int, level: float = 0.95) -> tuple[float, float]:
    """Return the quantiles of the draws' means that bound a `level` interval: wider than 2.5 % and 97.5 % by as much as Student's t
    is wider than a normal distribution."""
    if rows < 2:
        return 0.0, 1.0
    low = float(norm.cdf(np.sqrt(rows / (rows - 1)) * t.ppf((1 - level) / 2, rows - 1)))
    return low, 1 - low


def paired_proportions(before, after, *, level: float = 0.95) -> tuple[float, float, float]:
    """Return (difference, low, high) for yes/no scores of the same rows: Wald's interval with half a row added to each of the four
    cells (Agresti and Min 2005, doi 10.1002/sim.1781). Unlike the bootstrap it has a width where no row, or every row, changed."""
    before, after = np.asarray(before), np.asarray(after)
    rows, gained, lost = len(before) + 2, (after > before).sum() + 0.5, (after < before).sum() + 0.5
    middle = (gained - lost) / rows
    reach = norm.ppf((1 + level) / 2) * np.sqrt(gained + lost - (gained - lost) ** 2 / rows) / rows
    return float((after - before).mean()), float(max(-1, middle - reach)), float(min(1, middle + reach))


def mcnemar(wins: int, losses: int) -> float:
    """Return the exact p-value for the rows that changed: would a fair coin split them so unevenly?"""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def compare(scores: dict[str, tuple], *, weights: dict[str, Sequence[float]] | None = None, lower_is_better=()) -> pd.DataFrame:
    """Say for each metric, one line each, whether after is better than before, and whether that is clear of chance.

    scores: metric -> (before, after), one value a row; rows where either is None are left out. weights: metric -> tokens of each
    row, for scores that are sums over tokens, such as a loss. lower_is_better: the metrics where it is.

    Columns: metric, better ("higher" or "lower"), rows, before, after, difference, low, high (95 % interval), wins, ties, losses
    (rows that got better, stayed, got worse), p (McNemar's, for yes/no scores and where fewer than 10 rows changed), clear: "yes", or
    "perhaps" when the interval leaves out zero, but not after the correction for several measures, or p speaks against it; "no";
    "too few rows" with fewer than 10; "no number" where a score is not finite.
    """
    tokens, kept = weights or {}, {}
    for metric, (before, after) in scores.items():
        rows = zip(before, after, tokens.get(metric, [1.0] * len(before)), strict=True)
        if rows := [row for row in rows if None not in row and row[2]]:  # a row without an answer token has no loss
            kept[metric] = tuple(np.array(column, float) for column in zip(*rows, strict=True))
    lines = []
    for metric, (b, a, w) in kept.items():
        lower = metric in lower_is_better
        gain = (b - a) if lower else (a - b)
        line = {"metric": metric, "better": "lower" if lower else "higher", "rows": len(b)}
        line |= {"before": b.sum() / w.sum(), "after": a.sum() / w.sum(), "clear": NO_NUMBER}
        line |= {"wins": int((gain > 0).sum()), "ties": int((gain == 0).sum()), "losses": int((gain < 0).sum())}
        if np.isfinite([*b, *a]).all():
            yes_no = metric not in tokens and set(b) | set(a) <= {0.0, 1.0}
            interval = partial(paired_proportions, b, a) if yes_no else partial(paired_bootstrap, b, a, weights=w)
            line |= dict(zip(("difference", "low", "high"), interval(), strict=True))
            changed = line["wins"] + line["losses"]
            line["p"] = mcnemar(line["wins"], line["losses"]) if yes_no or changed < ENOUGH_ROWS else None
            line["clear"] = _clear(line, interval, 0.05 / len(kept))
        lines.append(line)
    return pd.DataFrame(lines, columns=COLUMNS)


def _clear(line: dict, interval: partial, strict: float) -> str:
    """strict: the share of errors that is left to this one of several measures."""
    if line["rows"] < ENOUGH_ROWS:
        return "too few rows"
    if line["low"] <= 0 <= line["high"]:
        return "no"
    _, low, high = interval(level=1 - strict)
    return "yes" if (low > 0 or high < 0) and (line["p"] is None or line["p"] < strict) else "perhaps"


def clearly(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the lines of `compare` that are clearly better, and those that are clearly worse; a loss that is no number is."""
    clear, good = table["clear"] == "yes", (table["difference"] < 0) == (table["better"] == "lower")
    return table[clear & good], table[(clear & ~good) | (table["clear"] == NO_NUMBER)]
