"""The report page without a browser."""

from gemma_colab.core.rows import answer, with_texts
from gemma_colab.data.page import report_page
from gemma_colab.data.report import check_rows


def test_counts_lengths_and_more_rows_than_are_shown(support_rows, tokenizer):
    rows = [with_texts(row, {"messages[1]": answer(row) + "<br>"}) for row in support_rows[:60]]
    report = check_rows(rows, tokenizer=tokenizer, max_length=512)
    page = report_page(report, most=7).data
    assert "and 53 more rows" in page
    assert page.count("&lt;br&gt;</mark>") == 7
    assert "tokens p95" in page
    assert "data:image/png;base64," in page


def test_long_texts_are_cut_around_the_place(support_rows):
    text = "слово " * 400 + "a@example.com" + " слово" * 400
    page = report_page(check_rows([*support_rows[:20], with_texts(support_rows[30], {"messages[1]": text})])).data
    assert "<mark>a@example.com</mark>" in page
    assert len(page) < 60_000 + 4 * len(text)
    assert page.count("слово слово слово") < 200


def test_no_rows_at_all():
    page = report_page(check_rows([], aside=[{"line": 1, "field": "", "problem": "not JSON", "content": "{"}])).data
    assert "not JSON" in page
    assert "blocked" in page
