"""The losses of a run, as a table and as a picture."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

HISTORY_COLUMNS = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
TRAIN, VALIDATION, BEST = "#1f6fb2", "#c8552b", "#5b8c3a"


def history_table(log_history: list[dict]) -> pd.DataFrame:
    """Tabulate a `Trainer`'s log, which holds `loss` and `eval_loss` in lines of their own: one line a step, `HISTORY_COLUMNS`.

    A loss that was logged as "not a number" is infinite here: in a table, NaN means that nothing was logged.
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


def new_axes(width: float, height: float, rows: int = 1) -> Axes | np.ndarray:
    """Axes on a new figure of pyplot's, which a notebook shows; of several rows an array. width, height: in inches."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, figsize=(width, height), layout="constrained", sharex=True)[1]


def loss_curve(history: pd.DataFrame, ax: Axes | None = None, title: str = "loss") -> Axes:
    """Plot training and validation loss over steps, the best validation point marked. history: of `history_table`.

    Beyond 20 steps the training loss is drawn thin, and its mean over neighbors thick. The axis ends at 1.5 times the loss at
    the start: one broken step must not press the rest flat.
    """
    ax = ax or new_axes(7, 3.2)
    train, validation = history.dropna(subset=["loss"]), history.dropna(subset=["eval_loss"])
    if len(train) > 20:
        ax.plot(train["step"], train["loss"], color=TRAIN, alpha=0.35, linewidth=0.8)
        ax.plot(train["step"], smoothed(train["loss"]), color=TRAIN, linewidth=2, label="train, smoothed")
    else:
        ax.plot(train["step"], train["loss"], color=TRAIN, label="train")
    if len(validation):
        ax.plot(validation["step"], validation["eval_loss"], "o-", color=VALIDATION, label="validation")
        step, loss = validation.loc[validation["eval_loss"].idxmin(), ["step", "eval_loss"]]
        last = validation["eval_loss"].iloc[-1]  # as a number: beside a high start, a rise from 0.10 to 0.12 can't be seen
        label = f"best {loss:#.3g}" + (f", last {last:#.3g}" if last > loss else "")
        ax.plot(step, loss, "o", color=BEST, markersize=11, fillstyle="none", markeredgewidth=2, label=label)
    start = train["loss"].iloc[:3].max() if len(train) else math.nan
    top = 1.5 * start if train["loss"].max() > 1.5 * start else None
    ax.set(xlabel="step", ylabel="loss (nats per token)", title=title, ylim=(0, top))
    if len(history):
        ax.legend()
    ax.grid(alpha=0.3)
    return ax
