"""Tables: what a stray quote, a joined file, a spreadsheet's error word or another program's file must not do to rows."""

import csv
import gzip
import io
import json

import pandas as pd
import pytest
from files import put, refusal, zipped

from gemma_colab.core.rows import answer
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows


def pairs(source):
    return [(row["line"], question(row), answer(row)) for row in source.rows]


# --- stray quotation marks


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_a_quote_swallows_no_rows(tmp_path, delimiter):
    rows = [
        ("question", "answer"),
        ("Как дела?", "Хорошо."),
        ('"Сколько дюймов?', "5"),
        ("Длина?", "10 см"),
        ('Экран в 6"', "15 см"),
        ("Потом?", "Да."),
    ]
    path = put(tmp_path, "a.csv", "\n".join(map(delimiter.join, rows)))
    source = read_rows(path, on_bad="aside")
    assert pairs(source) == [(2, "Как дела?", "Хорошо."), (6, "Потом?", "Да.")]
    assert [(bad["line"], bad["content"].strip()) for bad in source.aside] == [
        (n, delimiter.join(rows[n - 1])) for n in (3, 4, 5)
    ]
    assert "a quotation mark in line 3 joins lines 3 to 5 to one row; write such a mark twice" in source.aside[0]["sentence"]


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_a_quote_in_an_answer_and_three_columns(tmp_path, delimiter):
    rows = [
        ("id", "question", "answer"),
        ("1", "Экран?", '"15'),
        ("2", "Цвет?", "белый"),
        ("3", "Размер?", '6"'),
        ("4", "Всё?", "Да."),
    ]
    source = read_rows(put(tmp_path, "a.csv", "\n".join(map(delimiter.join, rows))), on_bad="aside")
    assert [bad["line"] for bad in source.aside] == [2, 3, 4]
    assert pairs(source) == [(5, "Всё?", "Да.")]


TEXTS = [
    "Здравствуйте, Анна!\nЗаказ отправлен, ждите.", "Первая строка\nвторая, третья\nчетвёртая, пятая", "def f(a, b):\n\treturn a, b\n", "a\n\nb,c",
    "| a | b |\n|---|---|\n| 1 | 2 |", "for (i = 0; i < n; i++) {\n\tx;\n}", "строка;\nстрока;", 'Он сказал: "да",\nи ушёл, смеясь.',
]  # fmt: skip


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
def test_texts_of_several_lines_stay_whole(tmp_path, delimiter, quoting):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting).writerows(
        [["question", "answer"], *([f"В{i}?", text] for i, text in enumerate(TEXTS))]
    )
    assert [answer(row) for row in read_rows(put(tmp_path, "a.csv", out.getvalue())).rows] == TEXTS


def test_the_delimiter_is_the_one_that_gives_the_header_known_names(tmp_path):
    rows = "".join(f"Где мой заказ {i}?;Он в пути, ждите.\n" for i in range(9))
    text = f"question;answer\n{rows.rstrip()}question;answer\n{rows}"  # joined without a line break: every row has one comma
    source = read_rows(put(tmp_path, "a.csv", text), on_bad="aside")
    assert source.details.startswith("CSV, delimiter ';'")
    assert (len(source.rows), [bad["line"] for bad in source.aside]) == (17, [10])


# --- joined files


def test_a_header_that_stands_again_is_left_out_and_counted(tmp_path):
    text = "question,answer\nа,б\nquestion,answer\nв,г\n\ufeffQuestion, answer\nд,е\n"
    source = read_rows(put(tmp_path, "a.csv", text))
    assert pairs(source) == [(2, "а", "б"), (4, "в", "г"), (6, "д", "е")]
    assert "the header again, as of joined files, left out: line 3, 5" in source.notes
    assert "left out: line 3, 5" in repr(source)
    many = read_rows(put(tmp_path, "b.csv", "question,answer\nа,б\n" * 8))
    assert many.notes == ("the header again, as of joined files, left out: line 3, 5, 7, 9, 11 and 2 more",)


def test_a_second_file_with_other_columns_is_read_by_its_own_header(tmp_path):
    text = "question,answer\nвопрос раз,ответ раз\nanswer,question\nответ два,вопрос два\nВопрос,Ответ\nвопрос три,ответ три\n"
    source = read_rows(put(tmp_path, "a.csv", text))
    assert pairs(source) == [
        (2, "вопрос раз", "ответ раз"), (4, "вопрос два", "ответ два"), (6, "вопрос три", "ответ три")]  # fmt: skip
    assert (
        "the header again, as of joined files, left out, and its columns are others or in another order from here on: line 3, 5"
        in source.notes
    )
    words = "вопрос,ответ\nсистема,system\nответ,answer\nтема,subject\n"  # a dictionary is no header
    assert [answer(row) for row in read_rows(put(tmp_path, "b.csv", words)).rows] == ["system", "answer", "subject"]


def test_joined_files_with_titles_and_in_excel(tmp_path):
    text = "sep=;\nquestion;answer\nа;б\nsep=;\nquestion;answer\nв;г\n"
    assert pairs(read_rows(put(tmp_path, "a.csv", text))) == [(3, "а", "б"), (6, "в", "г")]
    sheet = pd.DataFrame([["а", "б"], ["question", "answer"], ["в", "г"]], columns=["question", "answer"])
    sheet.to_excel(tmp_path / "a.xlsx", index=False)
    source = read_rows(tmp_path / "a.xlsx")
    assert pairs(source) == [(2, "а", "б"), (4, "в", "г")]
    assert source.notes == ("the header again, as of joined files, left out: row 3",)


def test_prepare_says_what_reading_left_out(tmp_path, capsys):
    from gemma_colab.cli import main

    rows = "".join(f'"Что значит слово номер {i}?","Это слово значит вот что: {i * i + 7}."\n' for i in range(40))
    path = put(tmp_path, "a.csv", f"question,answer\n{rows}question,answer\n")
    main(["prepare", str(path), "--workspace", str(tmp_path / "w")])
    assert "the header again, as of joined files, left out: line 42" in capsys.readouterr().out


# --- error words


@pytest.mark.parametrize(
    "word", ["#N/A", "#REF!", "#ЗНАЧ!", "#Н/Д", "#ССЫЛКА!", "#ДЕЛ/0!", "#DIV/0!", "#ИМЯ?", "#NAME?", "#WERT!", "#NV", "#¿NOMBRE?", " #VALUE! ", "#####"]
)  # fmt: skip
def test_an_error_word_is_a_bad_row_in_every_table(tmp_path, word):
    for name in ("a.csv", "a.parquet", "a.xlsx"):
        frame = pd.DataFrame({"question": ["а", "б", "в"], "answer": ["раз", word, "три"], "note": [word, "", ""]})
        path = tmp_path / name
        frame.to_csv(path, index=False) if name == "a.csv" else frame.to_parquet(path) if "parquet" in name else frame.to_excel(
            path, index=False
        )
        source = read_rows(path, on_bad="aside")
        assert [answer(row) for row in source.rows] == ["раз", "три"], name  # in a column that is not read it does no harm
        (bad,) = source.aside
        assert bad["field"] == "answer"
        assert "the error of a formula" in bad["problem"]


def test_a_hashtag_or_heading_is_no_error_word(tmp_path):
    words = ["#1", "#python", "# Заголовок", "#C", "#УРА", "Ошибка #REF! в ячейке", "#include <stdio.h>", "#fff", "\\n", "\\Nu"]
    frame = pd.DataFrame({"question": words, "answer": words})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert [answer(row) for row in read_rows(tmp_path / "a.csv").rows] == words


def test_a_databases_null_is_an_empty_cell_and_said(tmp_path):
    text = "instruction\tinput\toutput\nа\t\\N\tб\nв\tг\t\\N\n"
    source = read_rows(put(tmp_path, "a.tsv", text))
    assert pairs(source) == [(2, "а", "б"), (3, "в\n\nг", "")]  # the second is found by the check for empty texts
    assert source.notes == (r"\N, which databases write for no value, was read as an empty cell: line 2, 3",)


# --- no header, no table


def test_a_file_without_a_header_is_told_to_write_one(tmp_path):
    message = refusal(put(tmp_path, "a.csv", "привет,здравствуйте\nпока,до свидания\nкак дела,хорошо\n"))
    assert "if line 1 is a row, write the columns' names above it, such as question,answer" in message
    message = refusal(put(tmp_path, "a.csv", "Где мой заказ?,Он уже в пути.\nКак вернуть товар?,Напишите нам.\n"))
    assert "reads like a text, not like names of columns; if line 1 is a row, write the columns' names" in message
    assert "mapping=" not in message  # a row's texts are no names


@pytest.mark.parametrize(
    "text",
    [
        "It was a bright cold day in April, and the clocks were striking thirteen.\nWinston Smith slipped quickly through the doors.\n",
        "Списки (молоко, хлеб, etc.), и снова (вода, соль, etc.), и всё.\nЕщё строка, без всего.\n",
        "Просто текст, без таблицы, и ничего больше.\n",
    ],
)
def test_plain_text_is_called_so(tmp_path, text):
    message = refusal(put(tmp_path, "a.txt", text))
    assert "of plain text, make rows of question and answer first" in message
    assert "mapping=" not in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.docx", zipped("[Content_Types].xml", "word/document.xml"), "is a Word document; open it in its program and save it as .xlsx"),
        ("a.ods", zipped("mimetype", "content.xml"), "is an OpenDocument file (.ods, .odt); open it in its program"),
        ("a.numbers", zipped("Index/Document.iwa"), "is an Apple Numbers file"),
        ("a.zip", zipped("rows.csv"), "is a zip archive, not an .xlsx workbook; unpack it"),
        ("a.xls", b"\r\n<HTML><body><table><tr><td>a</td></tr></table></body></HTML>", "is an HTML page, whatever its name says; open it in Excel"),
        ("a.xls", "\ufeff<!DOCTYPE html>\n<html></html>", "is an HTML page"),
        ("a.csv", "<table><tr><td>a</td></tr></table>", "is an HTML page"),
        ("a.csv.gz", gzip.compress(b"<html></html>"), "is an HTML page"),
        ("a.xls", '<?xml version="1.0"?><Workbook></Workbook>', "is an XML file; open it in Excel"),
        ("a.doc", "{\\rtf1\\ansi a}", "is a text document (.rtf)"),
        ("a.rar", b"Rar!\x1a\x07\x00", "is a packed archive; unpack it"),
    ],
)  # fmt: skip
def test_another_programs_file_is_called_by_its_name(tmp_path, name, content, words):
    assert words in refusal(put(tmp_path, name, content))


def test_a_tag_in_a_row_is_no_page(tmp_path):
    source = read_rows(put(tmp_path, "a.csv", "question,answer\n<html>?,A tag.\n"))
    assert pairs(source) == [(2, "<html>?", "A tag.")]


# --- where a file is


def test_the_home_folder_and_odd_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    row = json.dumps({"question": "а", "answer": "б"})
    put(tmp_path, "a.jsonl", row)
    assert len(read_rows("~/a.jsonl").rows) == 1
    for folder in ("data [v2]", "data *", "what?"):
        put(tmp_path, f"{folder}/train.jsonl", row)
        put(tmp_path, f"{folder}/test.jsonl", row + "\n" + row)
        assert len(read_rows(tmp_path / folder).rows) == 1
        assert len(read_rows(str(tmp_path / folder), split="test").rows) == 2
    put(tmp_path, "table [1]/rows.csv", "question,answer\nа,б\n")
    assert len(read_rows(tmp_path / "table [1]").rows) == 1


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://example.com/rows.jsonl", "is a web address, and rows are read from files; download it first"),
        ("http://example.com/a b.csv", "download it first"),
        ("www.example.com/rows.csv", "download it first"),
        ("https://docs.google.com/spreadsheets/d/1a2b/edit#gid=0", "in Google Sheets choose File > Download"),
        ("docs.google.com/spreadsheets/d/1a2b", "in Google Sheets choose File > Download"),
        ("https://huggingface.co/datasets/owner/name/tree/main", "give the dataset by its name: hf://datasets/owner/name"),
        ("s3://bucket/rows.jsonl", "download it first"),
    ],
)
def test_a_web_address_is_told_what_to_do(address, words):
    assert words in refusal(address)
