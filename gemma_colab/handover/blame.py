"""Which training rows are to blame for bad answers? Nobody can tell for sure; these are the ones to read first."""

import numpy as np

from gemma_colab.core.rows import Row, answer
from gemma_colab.data.finding import Finding, Hit
from gemma_colab.data.likeness import jaccard, shingles
from gemma_colab.data.looking import question
from gemma_colab.data.report import SUSPECTS, Report
from gemma_colab.evaluation.loss import answer_losses

LOOK = "read them: is the answer right, clear and in the house's tone? Correct it, or drop the row"


def suspects(
    model, tokenizer, rows: list[Row], held_out: list[Row], *, max_length=1024, worst: int = 5, nearest: int = 2, hardest: int = 5
) -> Report:
    """Find training rows that may be to blame for bad answers, as a report for `ui.ReviewPanel(rows, report, workspace, data.report.SUSPECTS)`.

    "near a bad answer" are the `nearest` rows to each of the `worst` held-out rows, by the runs of 5 characters that question and
    answer share. "high loss" are the `hardest` rows: their answers still surprise a model that was trained on them. Worst and hardest
    go by the loss of the tuned model, a token. A row may be found by both, and may be right.
    """
    losses = (answer_losses(model, tokenizer, some, max_length=max_length) for some in (rows, held_out))
    own, held = (table["loss"] / table["tokens"].clip(lower=1) for table in losses)
    asked, held_asked = ([f"{question(row)} {answer(row)}" for row in some] for some in (rows, held_out))
    sets, near = [*map(shingles, asked)], []
    for i in held.nlargest(worst).index:
        like, bad = [jaccard(shingles(held_asked[i]), one) for one in sets], question(held_out[i]).split("\n\n")[-1]
        note = f"like a question that was answered badly: {bad[:90]}"
        near += [Hit(int(n), note=note) for n in np.argsort(like)[::-1][:nearest]]
    what = f"a token; half of the rows have {own.median():.2f} or less"
    high = [Hit(int(n), note=f"its answer has a loss of {own[n]:.2f} {what}") for n in own.nlargest(hardest).index]
    return Report(rows, [Finding(name, "W", LOOK, hits) for name, hits in zip(SUSPECTS, (near, high), strict=True)], max_length)
