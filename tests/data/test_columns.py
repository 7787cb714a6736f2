"""Which column is taken for what: shown with three rows; a guess stops, and says what to write."""

import datetime

import openpyxl
import pytest
from IPython.core.interactiveshell import InteractiveShell

from gemma_colab.core.errors import BlockedError, DatasetError
from gemma_colab.data.reading import read_rows

HEAD = ["No", "Received", "Customer", "Enquiry", "First thoughts", "Resolution", "Department"]


def excel(path, head=HEAD, rows=8):
    book = openpyxl.Workbook()
    book.active.append(head)
    for n in range(rows):
        asked, thought = f"Hello, where is parcel {n}?", f"Parcel {n} may be late."
        said = f"Parcel {n} is on its way; please look at the page of your order, or write to me@shop.example."
        values = dict(zip(HEAD, [n, datetime.date(2026, 1, 1 + n), "Ann Lee", asked, thought, said, "Sales"], strict=True))
        book.active.append([values[name] for name in head])
    book.save(path)
    return path


def refused(path, **options):
    with pytest.raises(DatasetError) as caught:
        read_rows(path, on_bad="aside", **options)
    return caught.value


def test_a_guess_by_what_the_columns_hold_is_shown_and_never_taken(tmp_path):
    page = refused(excel(tmp_path / "a.xlsx")).page
    assert page.columns == {"instruction": "First thoughts", "output": "Resolution"}  # the longest text, and the one before it
    shown = page._repr_html_()
    assert shown.count("<tr>") == 4
    assert "so this is a guess by what the columns hold, and nothing was read yet" in shown
    assert "mapping={&#34;instruction&#34;: &#39;First thoughts&#39;, &#34;output&#34;: &#39;Resolution&#39;}" in shown
    assert "Not used: No, Received, Customer, Enquiry, Department." in shown
    assert "me@shop.example" not in shown
    two = [name for name in HEAD if name != "First thoughts"]
    error = refused(excel(tmp_path / "b.xlsx", two))
    assert error.page.columns == {"instruction": "Enquiry", "output": "Resolution"}
    assert "if 'Enquiry' holds the question and 'Resolution' the answer, say mapping=" in str(error)
    # the longest text stands first: a letter, and its short answer
    assert refused(excel(tmp_path / "c.xlsx", ["Resolution", "Enquiry"])).page.columns["output"] == "Enquiry"


def test_what_a_name_says_of_label_and_conversation_is_in_the_guess(tmp_path):
    book = openpyxl.load_workbook(excel(tmp_path / "a.xlsx", ["Enquiry", "Resolution", "Department"]))
    book.active["C1"] = "Category"
    book.save(tmp_path / "b.xlsx")
    assert refused(tmp_path / "b.xlsx").page.columns == {"instruction": "Enquiry", "output": "Resolution", "label": "Category"}


def test_where_nothing_looks_like_an_answer_there_is_no_guess(tmp_path):
    assert refused(excel(tmp_path / "a.xlsx", ["No", "Customer", "Enquiry"])).page is None


def test_columns_that_are_known_or_told_are_shown_before_anything_is_trained(tmp_path):
    told = {"instruction": "Enquiry", "output": "Resolution"}
    source = read_rows(excel(tmp_path / "a.xlsx"), mapping=told)
    assert source.columns == told
    shown = source._repr_html_()
    assert "Hello, where is parcel 2?" in shown
    assert "Hello, where is parcel 3?" not in shown
    assert "Excel, sheet &#39;Sheet&#39;: 8 rows." in shown
    assert "If that is wrong, name the columns yourself:" in shown
    chat = '{"messages": [{"role": "user", "content": "<b>Hi</b>"}, {"role": "assistant", "content": "Hello."}]}\n'
    (tmp_path / "a.jsonl").write_text(chat)
    assert "user: &lt;b&gt;Hi&lt;/b&gt;\nassistant: Hello." in read_rows(tmp_path / "a.jsonl")._repr_html_()
    (tmp_path / "b.json").write_text('[[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]]')
    assert read_rows(tmp_path / "b.json").first == ()  # rows without columns


def test_a_notebook_shows_the_page_above_one_sentence(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    InteractiveShell.instance().run_cell(
        "from gemma_colab.core.errors import BlockedError\nraise BlockedError('it was blocked', 'the report')"
    )
    assert shown == ["the report"]
    assert capsys.readouterr().out.splitlines() == ["BlockedError: it was blocked"]
    error = BlockedError("a", "b")
    assert [error._render_traceback_() for _ in range(2)] == 2 * [["BlockedError: a"]]  # a kernel asks twice
    assert shown == ["the report", "b"]
    assert error.report == "b"
