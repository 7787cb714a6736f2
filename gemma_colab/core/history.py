"""The curve of a training run as a table."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

HISTORY_COLUMNS = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]


def history_table(log_history: list[dict]) -> pd.DataFrame:
    """Tabulate a `Trainer`'s log, which holds `loss` and `eval_loss` in lines of their own: one line a step, `HISTORY_COLUMNS`.

    A loss that was logged as "not a number" stands here as infinite: in a table, NaN means that nothing was logged.
    """
    logged = [
        {name: math.inf if value != value else value for name, value in line.items() if name in HISTORY_COLUMNS}
        for line in log_history
        if "loss" in line or "eval_loss" in line
    ]
    table = pd.DataFrame(logged, columns=HISTORY_COLUMNS, dtype=float)
    return table.groupby("step", as_index=False).first().astype({"step": int})


def smoothed(loss: pd.Series) -> pd.Series:
    """Average each loss with its neighbors on both sides: over a fifteenth of all steps, and over five at least.

    A batch holds a few rows, some easy and some hard, so single losses jump. Infinite ones are left out.
    """
    window = max(5, len(loss) // 15) | 1  # odd: as many before as after
    return loss.where(np.isfinite(loss)).rolling(window, center=True, min_periods=1).mean()
