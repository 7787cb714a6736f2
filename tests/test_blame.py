"""Training rows that may be to blame for bad answers: near the worst held-out rows, or hard to learn."""

import pandas as pd

from gemma_colab.core.rows import to_messages
from gemma_colab.evaluation import suspects
from gemma_colab.handover import blame
from gemma_colab.ui import ReviewPanel


def test_the_rows_near_the_worst_answers_and_the_hardest_are_suspects(workspace, support_rows, monkeypatch):
    rows, held = [to_messages(row) for row in support_rows[:40]], [to_messages(row) for row in support_rows[40:50]]
    twin = {"messages": [{"role": "user", "content": held[3]["messages"][0]["content"] + " Так?"}, rows[7]["messages"][1]]}
    rows[7] = twin
    # In sums: row 30 has a loss of 9 a token, though row 0, which is longer, has the larger sum.
    losses = [pd.DataFrame({"loss": [100.0] * len(some), "tokens": 100}) for some in (rows, held)]
    losses[0].loc[0], losses[0].loc[30], losses[1].loc[3] = (900.0, 500), (90.0, 10), (70.0, 10)
    monkeypatch.setattr(blame, "answer_losses", lambda model, tokenizer, some, max_length: losses[some is held])
    near, high = suspects(None, None, rows, held, worst=1, nearest=2, hardest=2).findings
    assert near.hits[0].row == 7
    assert len(near.hits) == 2
    assert held[3]["messages"][0]["content"].split("\n\n")[-1][:60] in near.hits[0].note
    assert [hit.row for hit in high.hits] == [30, 0]
    assert "a loss of 9.00 a token; half of the rows have 1.00 or less" in high.hits[0].note
    report = suspects(None, None, rows, held)
    panel = ReviewPanel(rows, report, workspace, [finding.check for finding in report.findings])
    assert {row for case in panel.cases for row in case.rows} == {row for finding in report.findings for row in finding.rows}
