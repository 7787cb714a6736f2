"""Is training worth it? What the untouched model reaches, bare and with a few examples in its prompt, against what the data ask for."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.evaluation.candidates import Evaluation, few_shot_turns
from gemma_colab.evaluation.compare import ENOUGH_ROWS, paired_bootstrap, share_interval

TRAINING = 3  # a token of training computes as much as three that are only read: forward once, backward twice (arXiv 2001.08361)


def worth_training(
    asked: Evaluation, wanted: dict[str, float], tokenizer: PreTrainedTokenizerBase, train_rows: Sequence[Row], epochs: float = 2
) -> tuple[pd.DataFrame, str]:
    """Return a line for each measure of `wanted` (its name -> the mean that would do, 0-1) and a sentence that begins with the word:

    | word | holds when the better of base and few-shot, with its 95 % interval |
    | --- | --- |
    | "it suffices" | lies at or above what is wanted, in each measure |
    | "train" | lies below it in some measure |
    | "too few rows to tell" | is neither, or was measured on fewer than 10 rows |

    asked: the untouched model's answers, of `evaluate`. The sentence also says what each way costs, in tokens. Raises `SettingsError`
    for a measure that `asked` doesn't have.
    """
    lines = {}
    for name, bar in wanted.items():
        if name not in asked.metrics:
            raise SettingsError(f"wanted names {name!r}, and there are {', '.join(asked.metrics)}; name one of these")
        scores = {who: np.array([s for s in found[name] if s is not None], float) for who, found in asked.scores.items()}
        best = max(scores, key=lambda who: scores[who].mean() if len(scores[who]) else 0)
        low, high = _interval(scores[best])
        says = "it suffices" if low >= bar else "train" if high < bar else "too few rows to tell"
        says = says if len(scores[best]) >= ENOUGH_ROWS else "too few rows to tell"
        means = {who: one.mean() if len(one) else np.nan for who, one in scores.items()}
        lines[name] = means | {"best": best, "low": low, "high": high, "wanted": bar, "says": says}
    table = pd.DataFrame.from_dict(lines, orient="index")
    word = next((word for word in ("train", "too few rows to tell") if word in set(table["says"])), "it suffices")
    turns = few_shot_turns(train_rows, asked.examples)
    extra = len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]) if turns else 0
    read = epochs * sum(len(tokenize_row(row, tokenizer)["input_ids"]) for row in train_rows)
    cost = f"Training for {epochs:g} epochs reads {read:,.0f} tokens, once."
    if extra:
        cost += f" The {asked.examples} examples add {extra:,} tokens to every question. If both answer well enough, training is cheaper after {TRAINING * read / extra:,.0f} questions."
    return table, f"{word}. {cost}"


def _interval(scores: np.ndarray) -> tuple[float, float]:
    """95 % of a mean: Wilson's for yes/no scores, else the bootstrap's."""
    if len(scores) and np.isin(scores, (0, 1)).all():
        return share_interval(scores)
    return paired_bootstrap(np.zeros(len(scores)), scores)[1:] if len(scores) else (0.0, 1.0)
