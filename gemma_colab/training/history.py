"""The curve of a training run as a table, and what it says in plain words."""

from __future__ import annotations

import math

import pandas as pd


def history_table(log_history: list[dict]) -> pd.DataFrame:
    """One line a step: step, epoch, loss, eval_loss, learning_rate, grad_norm. Trainer logs `loss` and `eval_loss` apart.

    A loss that was logged as "not a number" stands here as infinite: in a table, NaN means that nothing was logged.
    """
    columns = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    logged = [{name: math.inf if value != value else value for name, value in line.items()} for line in log_history]
    table = pd.DataFrame(logged).reindex(columns=columns)
    return table.dropna(subset=["loss", "eval_loss"], how="all").groupby("step", as_index=False).first()


def training_verdict(history: pd.DataFrame) -> str:
    """One sentence on the run, with the next thing to try.

    Rules, in this order: a loss of exactly 0, or one that is not a number, or ends above 1.2 x its first value: unstable. A validation loss more
    than 5 % above its lowest: overfitting since then. A training loss that fell by less than 5 %: not learning.
    A validation loss still falling by more than 2 % at its last point: not finished. Else: finished.
    """
    steps = history.set_index("step")
    loss, validation = steps["loss"].dropna(), steps["eval_loss"].dropna()
    if loss.empty:
        return "no loss was logged: train for at least one step"
    first, last = loss.iloc[0], loss.iloc[-1]
    if loss.max() == 0:
        return "unstable: the loss is exactly 0, which is what an overflow in float16 looks like; load the model with load_4bit"
    if math.isinf(loss.max()) or (len(validation) and math.isinf(validation.max())) or last > 1.2 * first:
        return f"unstable: the loss went from {first:.2f} to {last:.2f}; try a third of the learning rate"
    if len(validation) and validation.iloc[-1] > 1.05 * validation.min():
        best = validation.idxmin()
        return (
            f"overfitting since step {best}: validation loss rose from {validation.min():.2f} to {validation.iloc[-1]:.2f}; "
            f"keep the checkpoint of step {best}, train for fewer epochs, or add rows"
        )
    if last > 0.95 * first:
        return f"not learning: the loss stayed near {last:.2f}; try three times the learning rate"
    if len(validation) > 1 and validation.iloc[-1] < 0.98 * validation.iloc[-2]:
        return f"learning, not finished: validation loss {validation.iloc[-1]:.2f} was still falling; try more epochs"
    if len(validation):
        return f"finished: validation loss settled at {validation.min():.2f}; now test it by hand"
    return f"learning: the loss fell from {first:.2f} to {last:.2f}; add validation rows to see more"
