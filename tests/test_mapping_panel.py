"""The mapping panel, driven in Python, on real files."""

import json

import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.workspace import samples
from gemma_colab.data.reading import read_rows
from gemma_colab.ui.mapping import FIELDS, MOST, NONE, MappingPanel

ODD = "Клиент пишет;Мы пишем;Раздел\nГде заказ?;Вы увидите его завтра.;доставка\nКак вернуть?;Вы напишете нам.;возврат\n"


@pytest.fixture
def odd(tmp_path):
    """A table whose columns have names that nobody could know."""
    path = tmp_path / "odd.csv"
    path.write_text(ODD + 'Третий;"Ещё\nответ";прочее\nЧетвёртый;Не показан.;прочее\n', encoding="utf-8")
    return path


def test_columns_are_chosen_and_the_chat_follows_every_change(odd):
    panel = MappingPanel(odd)
    assert list(panel.fields) == list(FIELDS)
    assert panel.mapping == {"label": "Раздел"}  # all that names tell
    for choice in panel.fields.values():
        assert [value for _, value in choice.options] == [NONE, "Клиент пишет", "Мы пишем", "Раздел"]
    assert "Not yet" in panel.preview.value
    assert "instruction and output" in panel.preview.value

    panel.fields["instruction"].value = "Клиент пишет"
    assert "Not yet" in panel.preview.value
    panel.fields["output"].value = "Мы пишем"
    assert "Not yet" not in panel.preview.value
    for text in ("user: </span>Где заказ?", "Вы увидите его завтра.</span>", "Ещё\nответ"):
        assert text in panel.preview.value
    assert "Четвёртый" not in panel.preview.value + panel.table.value  # three rows are enough
    assert panel.mapping == {"instruction": "Клиент пишет", "output": "Мы пишем", "label": "Раздел"}
    row = read_rows(odd, mapping=panel.mapping).rows[0]
    assert row == {
        "instruction": "Где заказ?",
        "input": "",
        "output": "Вы увидите его завтра.",
        "line": 2,
        "label": "доставка",
    }

    panel.fields["system"].value = "Раздел"
    assert "system: </span>доставка" in panel.preview.value
    panel.fields["output"].value = NONE
    assert "Not yet" in panel.preview.value
    assert "output" not in panel.mapping


def test_raw_rows_stand_above_with_their_lines(odd):
    table = MappingPanel(odd).table.value
    for cell in ("line", "Клиент пишет", ">2</td>", "Где заказ?", "Ещё\nответ", ">4</td>"):
        assert cell in table


def test_what_is_recognised_is_chosen_already():
    panel = MappingPanel(samples() / "support_ru_raw.csv")
    assert panel.mapping == {"instruction": "Тема", "input": "Вопрос", "output": "Ответ", "label": "Категория"}
    assert "Заказ №12345, где он сейчас?" in panel.preview.value


@pytest.mark.parametrize(
    ("columns", "mapping"),
    [
        (["id", "Ответ", "Сообщение"], {"instruction": "Сообщение", "output": "Ответ"}),
        (["question", "answer", "response"], {"instruction": "question", "output": "response"}),  # two answers: the first known
        (["Тема", "Вопрос", "оператор"], {"instruction": "Тема", "input": "Вопрос"}),
        (["контекст", "оператор"], {"instruction": "контекст"}),
        (["q", "a", "thread_id", "system prompt"], {"conversation": "thread_id", "system": "system prompt"}),
    ],
)
def test_guesses_go_as_far_as_names_tell(tmp_path, columns, mapping):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(columns, "текст")) + "\n", encoding="utf-8")
    assert MappingPanel(path).mapping == mapping


def test_a_conversation_under_an_unknown_name_can_be_chosen(tmp_path):
    path = tmp_path / "talks.jsonl"
    talk = [{"role": "user", "content": "Где заказ?"}, {"role": "assistant", "content": "В пути."}]
    path.write_text(json.dumps({"talk": talk, "note": "x"}) + "\n", encoding="utf-8")
    panel = MappingPanel(path)
    assert "Not yet" in panel.preview.value
    panel.fields["messages"].value = "talk"
    assert panel.mapping == {"messages": "talk"}
    assert "user: </span>Где заказ?" in panel.preview.value
    assert read_rows(path, mapping=panel.mapping).rows[0]["output"] == "В пути."
    panel.fields["output"].value = "note"
    assert "one or the other" in panel.preview.value


@pytest.mark.parametrize("name", ["messages", "dialog"])
def test_a_conversation_under_a_known_name_is_chosen_already(tmp_path, name):
    path = tmp_path / "talks.jsonl"
    talk = [{"role": "user", "content": "Где заказ?"}, {"role": "assistant", "content": "В пути."}]
    path.write_text(json.dumps({name: talk, "category": "путь"}) + "\n", encoding="utf-8")
    panel = MappingPanel(path)
    assert panel.mapping == {"messages": name, "label": "category"}
    assert "В пути." in panel.preview.value


def test_a_list_is_not_chosen_as_a_label(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"instruction": "Где?", "output": "Здесь.", "category": ["x", "y"], "dialog": ["a"]}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    panel = MappingPanel(path)
    assert panel.mapping == {"instruction": "instruction", "output": "output"}
    assert "Здесь." in panel.preview.value


def test_texts_and_column_names_are_escaped(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"<script>q": "</td><script>alert(1)</script>", "a": "</div><img src=x onerror=alert(1)>", "line": 7, "rest": None}
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    panel = MappingPanel(path)
    panel.fields["instruction"].value, panel.fields["output"].value = "<script>q", "a"
    for html in (panel.table.value, panel.preview.value):
        assert "&lt;/td&gt;&lt;script&gt;" in html
        assert "&lt;/div&gt;&lt;img" in html
        assert "<script" not in html
        assert "<img" not in html
    panel.fields["output"].value = "rest"  # null: the sentence names the column
    assert "Not yet" in panel.preview.value
    assert "rest" in panel.preview.value
    panel.fields["instruction"].value, panel.fields["output"].value = "a", "<script>q"
    panel.fields["instruction"].value = "line"  # a number: the sentence names the place
    assert "rows.jsonl, line 1" in panel.preview.value
    assert "<script" not in panel.preview.value


def test_a_column_that_only_later_rows_have_can_be_chosen(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"q": f"вопрос {i}", "a": "ответ"} | ({"extra": "подробности"} if i == 5 else {}) for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    panel = MappingPanel(path)
    assert "nan" not in panel.table.value
    panel.fields["instruction"].value, panel.fields["input"].value, panel.fields["output"].value = "q", "extra", "a"
    assert "Not yet" not in panel.preview.value


def test_long_texts_are_cut_in_the_table(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "я" * 5000, "a": "ответ"}) + "\n", encoding="utf-8")
    assert "я" * (MOST - 1) + "…" in MappingPanel(path).table.value


def test_a_file_that_cant_be_read_is_refused_at_once(tmp_path):
    with pytest.raises(DatasetError, match="not there"):
        MappingPanel(tmp_path / "absent.csv")


def test_a_sheet_of_an_excel_file(tmp_path):
    import pandas as pd

    path = tmp_path / "book.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"x": ["1"]}).to_excel(book, sheet_name="first", index=False)
        pd.DataFrame({"Вопрос": ["Где?"], "Ответ": ["Здесь."]}).to_excel(book, sheet_name="second", index=False)
    panel = MappingPanel(path, sheet="second")
    assert panel.mapping == {"instruction": "Вопрос", "output": "Ответ"}
    assert "Здесь." in panel.preview.value


def test_a_notebook_shows_the_widget(odd, monkeypatch):
    panel, calls = MappingPanel(odd), []
    monkeypatch.setattr("gemma_colab.ui.mapping.display", calls.append)
    panel._ipython_display_()
    assert calls == [panel.widget]
