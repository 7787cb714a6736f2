"""Learnt, or learnt by heart? The tuned model is asked its own training questions, and questions it never saw.

A row of the test can come out word for word too, where the answer is easy to foresee. So the share on training rows means
something only beside the share on test rows.
"""

from __future__ import annotations

import pandas as pd

from gemma_colab.evaluation.compare import unpaired_bootstrap
from gemma_colab.evaluation.metrics import exact_match, words


def common_prefix(predictions: list[str], references: list[str]) -> list[float]:
    """How far an answer follows the reference word for word from its start, as a share of the reference's words."""
    shares = []
    for prediction, reference in zip(predictions, references, strict=True):
        mine, theirs = words(prediction), words(reference)
        same = next((n for n, (p, r) in enumerate(zip(mine, theirs, strict=False)) if p != r), min(len(mine), len(theirs)))
        shares.append(same / len(theirs) if theirs else float(not mine))
    return shares


def memorisation(answers: dict[str, list[str]], wanted: dict[str, list[str]]) -> pd.DataFrame:
    """part ("train", "test") -> rows, share reproduced word for word, mean and longest common prefix (as a share of the answer)."""
    lines = {}
    for part in answers:
        prefix = common_prefix(answers[part], wanted[part])
        lines[part] = {
            "rows": len(prefix),
            "word for word": sum(exact_match(answers[part], wanted[part])) / max(1, len(prefix)),
            "common prefix": sum(prefix) / max(1, len(prefix)),
            "longest prefix": max(prefix, default=0.0),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


def loss_gap(train: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float]:
    """(loss on other rows - loss on training rows, low, high), in nats per token. train, other: of `loss.answer_losses`."""
    return unpaired_bootstrap(train["loss"], other["loss"], weights_a=train["tokens"], weights_b=other["tokens"])


def learnt_by_heart(table: pd.DataFrame, share: float = 0.2) -> bool:
    """Whether so much larger a share of training answers than of test answers came out word for word."""
    return bool(table.loc["train", "word for word"] - table.loc["test", "word for word"] >= share)
