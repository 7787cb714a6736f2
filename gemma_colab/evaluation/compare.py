"""Is the difference real? Paired statistics on the same rows."""

from __future__ import annotations

import numpy as np
import pandas as pd


def paired_bootstrap(before, after, *, weights=None, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """(difference after - before, low, high): a 95 % interval from `resamples` draws of whole rows.

    before, after: scores of the same rows. weights: for per-token means, the tokens of each row; then scores are sums.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    weights = np.ones(len(before)) if weights is None else np.asarray(weights, float)
    gain = after - before
    draws = np.random.default_rng(seed).integers(0, len(gain), (resamples, len(gain)))
    means = gain[draws].sum(axis=1) / weights[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gain.sum() / weights.sum()), float(low), float(high)


def compare(scores: dict[str, tuple[list, list]]) -> pd.DataFrame:
    """One line a metric: rows, before, after, difference with its 95 % interval, and whether it is clear of zero.

    scores: metric -> (before, after), one value a row; rows where either is None are left out.
    """
    lines = []
    for metric, (before, after) in scores.items():
        pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
        if not pairs:
            continue
        b, a = map(list, zip(*pairs, strict=True))
        difference, low, high = paired_bootstrap(b, a)
        clear = "too few rows" if len(pairs) < 10 else "yes" if low > 0 or high < 0 else "no"
        lines.append((metric, len(pairs), np.mean(b), np.mean(a), difference, low, high, clear))
    return pd.DataFrame(lines, columns=["metric", "rows", "before", "after", "difference", "low", "high", "clear"])
