"""The curve of a training run as a table, and what it says in plain words."""

from __future__ import annotations

import pandas as pd


def history_table(log_history: list[dict]) -> pd.DataFrame:
    """One line a step: step, epoch, loss, eval_loss, learning_rate, grad_norm. Trainer logs `loss` and `eval_loss` apart."""
    columns = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    table = pd.DataFrame(log_history).reindex(columns=columns)
    return table.dropna(subset=["loss", "eval_loss"], how="all").groupby("step", as_index=False).first()


def training_verdict(history: pd.DataFrame) -> str:
    """One sentence on the run, with the next thing to try.

    Rules, in this order: a loss that is not a number, or ends above 1.2 x its first value: unstable. A validation loss more
    than 5 % above its lowest: overfitting since then. A training loss that fell by less than 5 %: not learning.
    A validation loss still falling by more than 2 % at its last point: not finished. Else: finished.
    """
    loss, validation = history.set_index("step")["loss"], history.set_index("step")["eval_loss"].dropna()
    finite = loss.dropna()
    if finite.empty or loss.loc[: validation.index.max() if len(validation) else None].isna().all():
        return "no loss was logged: train for at least one step"
    if validation.isna().any() or not finite.map(lambda v: v < float("inf")).all() or finite.iloc[-1] > 1.2 * finite.iloc[0]:
        return f"unstable: the loss went from {finite.iloc[0]:.2f} to {finite.iloc[-1]:.2f}; try a third of the learning rate"
    if len(validation) and validation.iloc[-1] > 1.05 * validation.min():
        best = validation.idxmin()
        return (
            f"overfitting since step {best}: validation loss rose from {validation.min():.2f} to {validation.iloc[-1]:.2f}; "
            f"keep the checkpoint of step {best}, train for fewer epochs, or add rows"
        )
    if finite.iloc[-1] > 0.95 * finite.iloc[0]:
        return f"not learning: the loss stayed near {finite.iloc[-1]:.2f}; try three times the learning rate"
    if len(validation) > 1 and validation.iloc[-1] < 0.98 * validation.iloc[-2]:
        return f"learning, not finished: validation loss {validation.iloc[-1]:.2f} was still falling; try more epochs"
    if len(validation):
        return f"finished: validation loss settled at {validation.min():.2f}; now test it by hand"
    return f"learning: the loss fell from {finite.iloc[0]:.2f} to {finite.iloc[-1]:.2f}; add validation rows to see more"
