"""Reading: every format, encoding and schema gives the same rows; whatever is wrong is said in one sentence, and nothing crashes."""

import ast
import contextlib
import csv
import gc
import gzip
import hashlib
import io
import json
import pickle
import re
import shlex
import subprocess
import sys
import tempfile
import tracemalloc
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from files import put, refusal, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.data import sources
from gemma_colab.data.looking import question, texts
from gemma_colab.data.reading import read_rows
from gemma_colab.data.schema import say_mapping, shown
from gemma_colab.data.sources import text_kind
from gemma_colab.data.tables import find_delimiter

RECORDS = [
    {"Тема": "Доставка", "Вопрос": "Где мой\nзаказ, и когда?", "Ответ": 'Он "в пути"; ждите.', "Категория": "путь", "id": "1"},
    {"Тема": "Возврат", "Вопрос": "Вернуть товар | деньги?", "Ответ": "Напишите нам в чат.", "Категория": "деньги", "id": "2"},
    {"Тема": "Оплата", "Вопрос": "Можно ли картой?", "Ответ": "Да,\tможно.", "Категория": "деньги", "id": "3"},
]
OURS = [
    to_messages({"instruction": r["Тема"], "input": r["Вопрос"], "output": r["Ответ"], "label": r["Категория"]}) for r in RECORDS
]
GOOD = {"instruction": "Вопрос?", "input": "", "output": "Ответ."}
ROW = to_messages(GOOD)
CHAT = [{"role": "user", "content": "раз"}, {"role": "assistant", "content": "два"}]
SYSTEM = {"role": "system", "content": "вежливо"}
LONG = [SYSTEM, *CHAT, {"role": "user", "content": "три"}, {"role": "assistant", "content": "четыре"}]


def pair(asked, said, **extras):
    return to_messages({"instruction": asked, "output": said}) | extras


@pytest.fixture(autouse=True, scope="module")
def no_network():
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


def lines(*records) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def table(delimiter=",", records=RECORDS) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def typed(tmp_path, kind, records) -> Path:
    path = tmp_path / f"rows.{kind}"
    frame = pd.DataFrame(records)
    frame.to_excel(path, index=False) if kind == "xlsx" else frame.to_parquet(path)
    return path


def plain(path, **options):
    """The rows without their places."""
    return [{k: v for k, v in row.items() if k not in ("line", "item")} for row in read_rows(path, **options).rows]


def pairs(source):
    return [(row["line"], question(row), answer(row)) for row in source.rows]


# --- formats and encodings

TEXTS = {
    "jsonl": (lines(*RECORDS), "JSON lines"),
    "json": (json.dumps(RECORDS, ensure_ascii=False, indent=2), "JSON"),
    "comma.csv": (table(","), "CSV, delimiter ','"),
    "semicolon.csv": (table(";"), "CSV, delimiter ';'"),
    "tab.csv": (table("\t"), "CSV, delimiter tab"),
    "bar.csv": (table("|"), "CSV, delimiter '|'"),
}
CODECS = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16",
    "cp1251": "Windows-1251", "koi8-r": "KOI8-R", "cp866": "code page 866 (DOS)",
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_text_formats_in_all_encodings(tmp_path, name, codec, packed):
    text, said = TEXTS[name]
    content = text.encode(codec)
    path = put(tmp_path, f"rows.{name}" + ".gz" * packed, gzip.compress(content) if packed else content)
    assert plain(path) == OURS
    source = read_rows(path)
    assert source.details == f"{said}, {CODECS[codec]}" + ", gzip" * packed
    assert source.schema == ("Тема -> instruction, Вопрос -> input, Ответ -> output, Категория -> label; ignored: id")


@pytest.mark.parametrize("kind", ["xlsx", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_excel_and_parquet(tmp_path, kind, packed):
    path = typed(tmp_path, kind, RECORDS)
    if packed:
        path = put(tmp_path, f"{kind}.gz", gzip.compress(path.read_bytes()))
    assert plain(path) == OURS
    source = read_rows(path)
    assert [row["line"] for row in source.rows] == ([2, 3, 4] if kind == "xlsx" else [1, 2, 3])
    assert source.details == ("Excel, sheet 'Sheet1'" if kind == "xlsx" else "Parquet") + ", gzip" * packed


def test_the_content_counts_more_than_the_name(tmp_path):
    for name in ("a.json", "a.jsonl", "a.csv", "a.txt", "a"):
        assert plain(put(tmp_path, name, lines(*RECORDS))) == OURS
        assert plain(put(tmp_path, name, json.dumps(RECORDS, indent=1))) == OURS
    for name, text in (("a.json.gz", lines(*RECORDS)), ("a.tsv", table()), ("a.data", table())):
        assert plain(put(tmp_path, name, text)) == OURS
    assert text_kind('{"data": [\n{"a": 1}', ".jsonl") == "lines"  # a first line that breaks off
    assert text_kind('{"data": [\n{"a": 1}', ".json") == "json"
    assert text_kind('{"a": "b\n{"a": 1}\n', ".json") == "lines"


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1252", "What’s on the menu of the café?,“Crème brûlée” — £5"),
        ("cp1253", "Πού είναι η παραγγελία μου;,Το δέμα σας είναι στον δρόμο και φτάνει αύριο."),
        ("cp1255", "איפה ההזמנה שלי?,ההזמנה שלך בדרך ותגיע מחר בבוקר"),
    ],
)
def test_other_letters(tmp_path, codec, text):
    source = read_rows(put(tmp_path, "a.csv", ("question,answer\n" + f"{text}\n" * 3).encode(codec)))
    assert source.details.endswith(codec.replace("cp", "Windows-"))
    assert f"{question(source.rows[0])},{answer(source.rows[0])}" == text


def test_letters_that_cannot_be_told_are_refused(tmp_path):
    text = "question,answer\nGdzie jest moje zamówienie?,Już do ciebie jedzie. Źdźbło żółć.\n"
    assert "can't be told; save it as UTF-8" in refusal(put(tmp_path, "a.csv", text.encode("cp1250")))


@pytest.mark.parametrize("codec", ["utf-8", "cp1251"])
def test_cyrillic_that_begins_late_is_found(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(sources, "CHUNK", 1024)
    late = {"question": "Как дела сегодня?", "answer": "Всё хорошо, спасибо"}
    text = lines(*[{"question": "q" * 50, "answer": "a"}] * 100, late)
    assert answer(read_rows(put(tmp_path, "a.jsonl", text.encode(codec))).rows[-1]) == "Всё хорошо, спасибо"


@pytest.mark.parametrize(
    ("name", "before", "bad", "after", "line"),
    [
        (
            "a.jsonl",
            lines(*[{"question": "Где заказ?", "answer": "В пути."}] * 20),
            '{"question": "a", "answer": "\xe9"}\n',
            "",
            21,
        ),
        ("a.csv", "вопрос,ответ\n" + "Где мой заказ?,Уже в пути\n" * 20, "b,\xe9\n", "b,c\n", 22),
        ("a.json", '[\n{"question": "Привет", "answer": "' + "да" * 30, '"},\n{"question": "b", "answer": "\xe9"}', "]", 3),
    ],
)
def test_a_broken_byte_spoils_its_own_row_only(tmp_path, name, before, bad, after, line):
    source = read_rows(put(tmp_path, name, before.encode() + bad.encode("latin-1") + after.encode()), on_bad="aside")
    assert "UTF-8" in source.details
    assert [(bad["line"], bad["problem"]) for bad in source.aside] == [
        (line, "byte 0xE9 at character 1 does not fit the file's encoding")
    ]


# --- lines


def test_a_row_carries_the_line_it_begins_in(tmp_path):
    text = 'question,answer\r\n"one\r\ntwo\r\n\r\nthree",a\r\n\r\nb,"c\r\nd"\r\ne,f\r\n'
    assert pairs(read_rows(put(tmp_path, "a.csv", text)))[:2] == [(2, "one\r\ntwo\r\n\r\nthree", "a"), (7, "b", "c\r\nd")]
    row = json.dumps(GOOD)
    for name, text, found in (
        ("a.jsonl", f"\n{row}\n\n\n{row}", [2, 5]),
        ("a.json", f"[{row}, {row},\n\n{row}\n,\n{row}]", [1, 1, 3, 5]),
        ("a.json", "\n" + json.dumps({"meta": {"данные": [1]}, "данные": [GOOD, GOOD]}, indent=1), [2, 2]),
    ):
        source = read_rows(put(tmp_path, name, text))
        assert [r["line"] for r in source.rows] == found
    assert source.details == "JSON, UTF-8, the list 'данные' in it"


def test_rows_that_share_a_line_have_a_number(tmp_path):
    source = read_rows(put(tmp_path, "a.json", json.dumps([GOOD, GOOD, {"instruction": "a"}, GOOD])), on_bad="aside")
    assert [(r["line"], r["item"]) for r in source.rows] == [(1, 1), (1, 2), (1, 4)]
    assert source.aside[0]["sentence"].startswith("a.json, line 1, item 3, field 'output': no column is known as the answer; ")
    row = json.dumps(GOOD)
    source = read_rows(put(tmp_path, "a.json", f"[\n{row}, {row},\n{row}]"))
    assert [(r["line"], r.get("item")) for r in source.rows] == [(2, 1), (2, 2), (3, None)]
    for text in (json.dumps({"instruction": ["a", "b"], "output": ["c", "d"]}), json.dumps({"data": [GOOD, GOOD]})):
        assert [r["item"] for r in read_rows(put(tmp_path, "a.json", text)).rows] == [1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps({"instruction": ["a", "b"], "output": ["c", "d"]}), [pair("a", "c"), pair("b", "d")]),
        (json.dumps({"instruction": {"0": "a"}, "output": {"0": "c"}}), [pair("a", "c")]),  # pandas' to_json
        (json.dumps(GOOD, indent=2), [ROW]),
        (json.dumps(GOOD, indent=2) * 3, [ROW] * 3),
        (json.dumps(GOOD | {"tags": [{"name": "x"}]}, indent=2) * 2, [ROW] * 2),  # no list of rows, where several objects stand
        (json.dumps({"version": 2, "data": [GOOD, GOOD]}, indent=1), [ROW] * 2),
        (json.dumps({"messages": LONG}), [{"messages": LONG}]),
        (f"[\n{json.dumps(GOOD)},\n]", [ROW]),  # written by hand
    ],
)
def test_other_shapes_of_json(tmp_path, text, expected):
    assert plain(put(tmp_path, "a.json", text)) == expected


def test_a_json_list_that_breaks_off(tmp_path):
    whole = json.dumps([GOOD, GOOD], indent=1)
    for text, good in ((whole[:-20], 1), (whole[:-2], 2)):
        source = read_rows(put(tmp_path, "a.json", text), on_bad="aside")
        assert len(source.rows) == good
        assert "everything from here on can't be read" in source.aside[0]["problem"]
        assert "a.json, line" in refusal(tmp_path / "a.json")


# --- schemas


@pytest.mark.parametrize(
    ("record", "row", "schema"),
    [
        (GOOD, ROW, "instruction, input, output"),
        ({"instruction": "a", "output": "b"}, pair("a", "b"), "instruction, output"),
        ({"instruction": "a", "input": None, "output": ""}, pair("a", ""), "instruction, input, output"),
        ({"instruction": "a", "input": "b", "output": "c"}, pair("a\n\nb", "c"), "instruction, input, output"),
        ({"prompt": "a", "completion": "b"}, pair("a", "b"), "prompt -> instruction, completion -> output"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, {"messages": CHAT}, "prompt -> instruction, completion -> output"),
        ({"prompt": LONG[:4], "completion": LONG[4:]}, {"messages": LONG}, "prompt -> instruction, completion -> output"),
        ({"prompt": LONG[:4], "completion": "четыре"}, {"messages": LONG}, "prompt -> instruction, completion -> output"),
        ({"messages": CHAT}, {"messages": CHAT}, "messages"),
        ({"messages": LONG, "prompt": "x"}, {"messages": LONG}, "messages; ignored: prompt"),
        ({"messages": [{"role": "developer", "content": "вежливо"}, {"role": "USER", "content": [{"type": "text", "text": "р"}, {"type": "text", "text": "аз"}]}, {"role": "model", "content": "два"}]}, {"messages": LONG[:3]}, "messages"),
        ({"conversations": [{"from": "system", "value": "вежливо"}, {"from": "human", "value": "раз"}, {"from": "gpt", "value": "два"}], "id": 1}, {"messages": LONG[:3]}, "conversations -> messages; ignored: id"),
        ({"conversations": CHAT}, {"messages": CHAT}, "conversations -> messages"),
        ({"conversation": CHAT}, {"messages": CHAT}, "conversation -> messages"),
        ({"messages": CHAT, "system": "вежливо"}, {"messages": LONG[:3]}, "messages, system"),
        ({"messages": LONG, "system": "вежливо"}, {"messages": LONG}, "messages, system"),
        ({"messages": None, "question": "a", "answer": "b"}, pair("a", "b"), None),
        ({"system_prompt": "s", "question": "q", "context": "c", "answer": "a"}, to_messages({"system": "s", "instruction": "q", "input": "c", "output": "a"}), "question -> instruction, context -> input, answer -> output, system_prompt -> system"),
        ({" Вопрос_Клиента ": "q", "ОТВЕТ ОПЕРАТОРА": "a", "Номер диалога": 7, "Класс": "x"}, pair("q", "a", label="x", conversation="7"), None),
        ({"сообщение клиента": "q", "ответ": "a"}, pair("q", "a"), None),
        ({"subject": "s", "query": "q", "reply": "a", "topic": None}, pair("s\n\nq", "a"), None),
        ({"instruction": "a", "input": "b", "output": "c", "question": "q"}, pair("a\n\nb", "c"), "instruction, input, output; ignored: question"),
        ({"article_id": 1, "document": "d", "summary": "s"}, pair("d", "s"), None),
        ({"instruction": "i", "article": "d", "highlights": "s"}, pair("i\n\nd", "s"), None),
        ({"id": 1, "Текст": "d", "Ответ": "s"}, pair("d", "s"), None),
        ({"question": "q", "text": "d", "answer": "a"}, pair("q", "a"), None),
        ({"instruction": "три", "output": "четыре", "system": "вежливо", "history": [["раз", "два"]]}, {"messages": LONG}, "instruction, output, history -> earlier turns, system"),
        ({"instruction": "три", "input": "и", "output": "четыре", "history": []}, pair("три\n\nи", "четыре"), None),
        ({"instruction": "три", "output": "четыре", "history": None, "system": ""}, pair("три", "четыре"), None),
        ({"instruction": "a", "output": "b", "history": "a text"}, pair("a", "b"), "instruction, output; ignored: history"),
    ],
)  # fmt: skip
def test_schemas(tmp_path, record, row, schema):
    source = read_rows(put(tmp_path, "a.jsonl", lines(record, record)))
    assert source.rows == [row | {"line": 1}, row | {"line": 2}]
    assert schema is None or source.schema == schema


def test_conversations_in_parquet(tmp_path):
    assert plain(typed(tmp_path, "parquet", [{"messages": LONG, "n": 1}, {"messages": CHAT, "n": 2}])) == [
        {"messages": LONG}, {"messages": CHAT}]  # fmt: skip
    record = {"instruction": "три", "output": "четыре", "system": "вежливо", "history": [["раз", "два"]]}
    assert plain(typed(tmp_path, "parquet", [record])) == [{"messages": LONG}]


def test_mixed_schemas_are_told_with_their_counts(tmp_path):
    source = read_rows(put(tmp_path, "a.jsonl", lines(GOOD, {"messages": LONG}, GOOD)))
    assert source.schema == "instruction, input, output (2 rows); or messages (1 rows)"
    assert repr(source) == f"a.jsonl (JSON lines, UTF-8)\nSchema: {source.schema}\n3 rows"


def test_rows_with_other_keys_than_most_carry_them(tmp_path):
    other, turned = {"b": 1, **GOOD, "a\n": 2}, dict(reversed(GOOD.items()))  # the same keys in another order
    records = [GOOD, other, {"messages": LONG}, GOOD, turned, GOOD | {"label": None}]
    for name, text in (("a.jsonl", lines(*records)), ("a.json", json.dumps(records))):
        rows = read_rows(put(tmp_path, name, text)).rows
        assert [row.get("keys") for row in rows] == [
            None, "a\\n, b, input, instruction, output", "messages", None, None, "input, instruction, label, output"]  # fmt: skip
    assert not any("keys" in row for row in read_rows(typed(tmp_path, "parquet", [GOOD, other])).rows)  # a table has one header


def test_a_recognized_label_of_any_kind_does_not_cost_the_row(tmp_path):
    values = [["x", "y"], {"a": 1}, float("nan"), [], None, "x", 5, 2.0, True]
    labels = ['["x", "y"]', '{"a": 1}', None, None, None, "x", "5", "2", "True"]
    for column, ours in (("category", "label"), ("thread_id", "conversation")):
        path = put(tmp_path, "a.jsonl", lines(*({"instruction": "a", "output": "b", column: value} for value in values)))
        assert [row.get(ours) for row in read_rows(path).rows] == labels
        mapping = {"instruction": "instruction", "output": "output", ours: column}
        assert f"field '{column}': ['x', 'y'], not a text" in refusal(path, mapping=mapping)  # it was asked for
        assert [row["line"] for row in read_rows(path, mapping=mapping, on_bad="aside").rows] == [3, 5, 6, 7, 8, 9]
    assert read_rows(put(tmp_path, "b.jsonl", lines({"messages": CHAT, "category": ["x"]}))).rows[0]["label"] == '["x"]'


# --- unknown columns, and a mapping


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"answer": "a", "question": "b", "response": "c"}, "field 'output': 2 columns could be the output: 'response', 'answer'"),
        ({"тема": "a", "контекст": "b", "вопрос": "c", "ответ": "d"}, "3 columns could be the question"),
        ({"question": "a", "b": 5}, "field 'output': no column is known as the answer; the columns are 'question', 'b'"),
        ({"a": 1, "b": 2}, "the columns are 'a', 'b'; a row needs a question and an answer; name their columns"),
        ({"text": "### Вопрос: a"}, "a row needs a question and an answer"),
        ({"Где мой заказ?": "Как?", "Он в пути.": "Так."}, "write the columns' names above it, such as question,answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference data; to learn the chosen answers say"),
        ({"dialog_id": "1", "role": "user", "text": "Где мой заказ?"}, "one message a row, and 'role' says whose; join those of each 'dialog_id'"),
        ({"id": "1", "who": "user", "when": "2026-01-01 10:00", "said": "Где мой заказ?"}, "one message a row, and 'who' says whose"),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear(tmp_path, record, words):
    assert words in refusal(put(tmp_path, "a.jsonl", lines(record)))


@pytest.mark.parametrize(
    ("record", "mapping", "line"),
    [
        ({"id": "7", "frage": "a b", "antwort": "c d."}, {"instruction": "frage", "output": "antwort"}, "--map instruction=frage --map output=antwort"),
        ({"Запрос клиента": "Где он?", "Реплика": "Он в пути."}, {"instruction": "Запрос клиента", "output": "Реплика"}, "--map 'instruction=Запрос клиента' --map 'output=Реплика'"),
        ({"article_id": "x7", "title": "a b", "body": "b c.", "url": "https://c", "n": 1, "m": "1.5"}, {"instruction": "title", "output": "body"}, "--map instruction=title --map output=body"),
        ({"instruction": "a", "context": "b", "mine": "c d."}, {"instruction": "instruction", "input": "context", "output": "mine"}, "--map instruction=instruction --map input=context --map output=mine"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"instruction": "prompt", "output": "chosen"}, "--map instruction=prompt --map output=chosen"),
    ],
)  # fmt: skip
def test_a_suggested_mapping_can_be_used(tmp_path, record, mapping, line):
    path = put(tmp_path, "a.jsonl", lines(record))
    told, _, rest = refusal(path).partition("mapping=")[2].partition(" (on the command line: ")
    assert ast.literal_eval(told) == mapping
    assert rest.startswith(f"{line})")
    assert answer(read_rows(path, mapping=mapping).rows[0]) == record[mapping["output"]]


def test_mapping(tmp_path):
    path = put(tmp_path, "a.jsonl", lines({"a": "x", "b": "y", "c": "z", "s": "sys", "n": 5}))
    assert read_rows(path, mapping={"input": "a", "output": "b", "conversation": "n"}).rows == [
        pair("x", "y", line=1, conversation="5")
    ]
    known = put(tmp_path, "known.jsonl", lines({"subject": "x", "answer": "y"}))
    assert read_rows(known, mapping={"conversation": "subject"}).rows == [pair("x", "y", line=1, conversation="x")]
    (row,) = read_rows(path, mapping={"instruction": "A", "output": "b", "system": "s"}).rows
    assert [t["content"] for t in row["messages"]] == ["sys", "x", "y"]
    assert "field 'bb': missing; there are 'a', 'b'" in refusal(path, mapping={"instruction": "a", "output": "bb"})
    assert "no row has 'Лабел'" in refusal(path, mapping={"instruction": "a", "output": "b", "label": "Лабел"})
    yo = put(tmp_path, "yo.csv", "Счёт-фактура,b\nx,y\n")
    assert plain(yo, mapping={"instruction": "счет фактура", "output": "b"}) == [pair("x", "y")]
    assert plain(put(tmp_path, "b.jsonl", lines({"talk": CHAT})), mapping={"messages": "talk"}) == [{"messages": CHAT}]
    turns = put(tmp_path, "turns.jsonl", lines({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}))
    assert plain(turns, mapping={"instruction": "prompt", "output": "chosen"}) == [{"messages": CHAT}]
    whole = put(tmp_path, "whole.jsonl", lines({"prompt": "раз", "chosen": CHAT, "rejected": CHAT}))
    assert plain(whole, mapping={"messages": "chosen"}) == [{"messages": CHAT}]


def test_an_optional_column_may_appear_late(tmp_path):
    record = {"a": "x", "b": "y"}
    path = put(tmp_path, "a.jsonl", lines(*[record] * 15, record | {"sys": "s"}))
    mapping = {"instruction": "a", "output": "b", "system": "sys"}
    assert plain(path, mapping=mapping, limit=10) == [pair("x", "y")] * 10
    assert plain(path, mapping=mapping)[15]["messages"][0] == {"role": "system", "content": "s"}


def test_a_bar_of_rows_that_nobody_read_is_never_shown(tmp_path, monkeypatch):
    """In a notebook a bar that dies half read would be displayed as failed, in whichever cell runs when it is collected."""
    import tqdm.notebook

    shown_bars = []
    monkeypatch.setattr(tqdm.notebook, "display", shown_bars.append)
    monkeypatch.setattr(sources, "tqdm", tqdm.notebook.tqdm)
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 50)
    assert len(read_rows(path, limit=10).rows) == 10
    path.write_text(json.dumps(GOOD) + "\nno JSON\n" + json.dumps(GOOD))
    with pytest.raises(DatasetError):
        read_rows(path)
    gc.collect()
    assert not shown_bars


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"instrucion": "a", "output": "b"}, "the keys are our names: instruction, input"),
        ({"output": "b"}, "it needs instruction and output, or messages"),
        ({"messages": "a", "output": "b"}, "or messages and none of them"),
        (["a"], "is to be our name"),
        ({"output": 3}, "is to be our name"),
    ],
)
def test_a_mapping_that_cannot_be_meant(tmp_path, mapping, words):
    with pytest.raises(SettingsError, match=words):
        read_rows(put(tmp_path, "a.jsonl", lines(GOOD)), mapping=mapping)


# --- bad rows

TURNS = '{"messages": [{"role": "user", "content": "a"}, '


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"instruction": "a", "output": null}', "field 'output': null or missing, not a text"),
        ('{"instruction": "a", "output": 5}', "field 'output': 5, not a text"),
        ('{"instruction": ["a"], "input": "", "output": ["b"]}', "field 'instruction': ['a'], not a text"),
        ('{"instruction": "a"}', "field 'output': no column is known as the answer"),
        ('{"instruction": "a", "output": NaN}', "field 'output': nan, not a text"),
        ('{"instruction": "a", "output": "b\\ud800"}', "field 'output': half a character ('\\ud800'"),
        ('{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}", "Exceeds the limit (4300 digits)"),
        ('{"instruction": ' + "[" * 100_000, "too many brackets inside each other"),
        ('{"instruction": "a", "output": "b"', "not valid JSON (Expecting ',' delimiter at character 35)"),
        ('{"instruction": "a", "output": "b"} {}', "not valid JSON (Extra data"),
        ('[{"instruction": "a"}]', "[{'instruction': 'a'}], not an object"),
        ('"text"', "'text', not an object"),
        ("null", "None, not an object"),
        ("{}", "{}, not an object with columns"),
        ('{"a": 1, "b": 2}', "the columns are 'a', 'b'"),
        ('{"instruction": "a", "output": "b", "history": [["a"]]}', "field 'history[0]': ['a'], not a pair of question and answer"),
        ('{"instruction": "a", "output": "b", "history": [["a", "b"], ["c", null]]}', "field 'history[1]': null or missing, not a text"),
        ('{"messages": []}', "field 'messages': [], not a list of turns"),
        ('{"messages": "a"}', "field 'messages': 'a', not a list of turns"),
        ('{"messages": ["a"]}', "field 'messages[0]': 'a', not a turn"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "field 'messages[0]': the conversation ends with the user's turn; drop the last turn"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "field 'messages[0]': a turn of the assistant where the user's"),
        (TURNS + '{"role": "user", "content": "a"}]}', "field 'messages[1]': a turn of the user"),
        (TURNS + '{"role": "system", "content": "a"}]}', "field 'messages[1]': a turn of the system"),
        ('{"messages": [{"role": "judge", "content": "a"}]}', "field 'messages[0].role': 'judge', not a known role"),
        ('{"messages": [{"content": "a"}]}', "field 'messages[0].role': None, not a known role"),
        ('{"messages": [{"role": "user", "content": null}]}', "field 'messages[0].content': null or missing, not a text"),
        ('{"messages": [{"role": "user"}]}', "field 'messages[0].content': null or missing"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "field 'messages[0].content[0]': {'type': 'image_url'}, not a part of text"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "field 'messages[0]': a call of a tool"),
        ('{"conversations": [{"from": "human", "value": 1}]}', "field 'conversations[0].value': 1, not a text"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_or_put_aside(tmp_path, record, words):
    path = put(tmp_path, "support.jsonl", lines(GOOD, GOOD) + record + "\n" + lines(GOOD))
    message = refusal(path)
    assert message.startswith("support.jsonl, line 3")
    assert words in message
    assert message.endswith('on_bad="aside"')
    assert len(message) < 400
    source = read_rows(path, on_bad="aside")
    assert [row["line"] for row in source.rows] == [1, 2, 4]
    assert "3 rows, 1 put aside" in repr(source)
    (bad,) = source.aside
    assert set(bad) == {"line", "field", "problem", "content", "sentence"}
    assert bad["sentence"] + ', or leave bad rows aside with on_bad="aside"' == message
    assert (bad["line"], bad["problem"] in message, bad["content"] is not None) == (3, True, record != "null")
    array = put(tmp_path, "support.json", f"[\n  {json.dumps(GOOD)},\n  {record},\n  {json.dumps(GOOD)}\n]")
    source = read_rows(array, on_bad="aside")
    if record.startswith("{") and not record.endswith("["):  # else no bracket closes, or the place to go on is unclear
        assert [row["line"] for row in source.rows] == ([2, 3, 4] if "} {" in record else [2, 4])
    assert source.aside[0]["line"] in ((3, 4) if record.endswith('"b"') else (3,))
    with pytest.raises(DatasetError, match=r"(is|are) bad"):
        read_rows(put(tmp_path, "only.jsonl", record), on_bad="aside")


def test_long_values_are_shortened_and_control_characters_escaped(tmp_path):
    message = refusal(put(tmp_path, "a.jsonl", lines({"messages": "\x1b[31m" + "a" * 1000})))
    assert "\\x1b[31maaa" in message
    assert "\x1b" not in message
    assert len(message) < 250
    assert len(shown("я" * 100)) == len(shown(["я" * 100] * 50)) == 60


def test_csv_rows_with_other_numbers_of_cells(tmp_path):
    text = 'question,answer\na,b,c\nd\ne,"f\ng,h\ni,"j"k\nl,m\n'
    source = read_rows(put(tmp_path, "a.csv", text), on_bad="aside")
    assert [(bad["line"], bad["problem"]) for bad in source.aside] == [
        (2, "3 cells where the header has 2"),
        (3, "1 cells where the header has 2"),
        (4, "',' expected after '\"'"),
        (6, "',' expected after '\"'"),
    ]
    assert pairs(source) == [(5, "g", "h"), (7, "l", "m")]
    source = read_rows(put(tmp_path, "a.csv", 'question,answer\na,"b\n' + "c,d\n" * 5000), on_bad="aside")
    assert [(bad["line"], bad["problem"]) for bad in source.aside] == [(2, "a quotation mark is opened and never closed")]
    assert len(source.rows) == 5000
    source = read_rows(put(tmp_path, "a.csv", "question,answer\na,b\n" + '"x"y,z\n' * 20_000), on_bad="aside")
    assert (len(source.rows), len(source.aside)) == (1, 20_000)


def test_empty_cells_and_numbers_of_tables(tmp_path):
    records = [{"question": "a", "context": None, "answer": 5}, {"question": None, "context": 2.5, "answer": 7.0}]
    for path in (typed(tmp_path, "xlsx", records), put(tmp_path, "a.csv", "question,context,answer\na,,5\n,2.5,7\n")):
        assert plain(path) == [pair("a", "5"), pair("2.5", "7")]
    nulls = [{"question": "a", "context": None, "answer": "b"}, {"question": None, "context": None, "answer": "c"}]
    assert plain(typed(tmp_path, "parquet", nulls)) == [pair("a", "b"), pair("", "c")]
    message = refusal(typed(tmp_path, "parquet", [{"question": "a", "answer": 5}]))
    assert "row 1, field 'answer': 5, not a text; make it a text" in message


# --- Excel


def sheet_of(tmp_path, *rows, **others) -> Path:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Кадры"
    for title, cells in {"Кадры": rows, **others}.items():
        page = book["Кадры"] if title == "Кадры" else book.create_sheet(title)
        for row in cells:
            page.append(row)
    book.save(tmp_path / "a.xlsx")
    return tmp_path / "a.xlsx"


def test_sheets(tmp_path):
    path = sheet_of(tmp_path, ["Вопрос", "Ответ"], ["a", "b"], Архив=[["Вопрос", "Ответ"], ["c", "d"]])
    assert read_rows(path).details == "Excel, sheet 'Кадры'"
    assert read_rows(path).notes == ("other sheets, which were not read: 'Архив'",)
    assert plain(path, sheet="Архив") == plain(path, sheet=1) == [pair("c", "d")]
    assert "has no sheet 'Архы'; it has 'Кадры', 'Архив' (numbers count from 0); name one as sheet=" in refusal(
        path, sheet="Архы"
    )
    assert "has no sheet 2" in refusal(path, sheet=2)
    path = sheet_of(
        tmp_path,
        ["Вопрос", "Ответ"],
        ["a", "b"],
        **{"2": [["Вопрос", "Ответ"], ["c", "d"]], "2024": [["Вопрос", "Ответ"], ["e", "f"]]},
    )
    assert [plain(path, sheet=sheet) for sheet in (0, 1, 2, 2024)] == [
        [pair("a", "b")],
        [pair("c", "d")],
        [pair("c", "d")],
        [pair("e", "f")],
    ]


def test_a_title_above_the_header(tmp_path):
    title, header, row = "База знаний, редакция 2", ["Вопрос", "Ответ", "Кто"], ["a", "b", "c"]
    source = read_rows(sheet_of(tmp_path, [title], header, row, row))
    assert pairs(source) == [(3, "a", "b"), (4, "a", "b")]
    assert "header in row 2, under a title" in source.details
    for above in (f"{title}\n", f"{title};;\n", f"{title}\n\nот 12 марта\n"):
        source = read_rows(put(tmp_path, "a.csv", f"{above}Вопрос;Ответ;Кто\na;b;c\n"))
        line = above.count("\n") + 1
        assert pairs(source) == [(line + 1, "a", "b")]
        assert f"delimiter ';', header in line {line}, under a title" in source.details
    unknown = sheet_of(tmp_path, [title], ["Frage", "Antwort"], ["a", "b"])
    assert "the columns are 'Frage', 'Antwort'" in refusal(unknown)
    assert plain(unknown, mapping={"instruction": "Frage", "output": "Antwort"}) == [pair("a", "b")]


def test_cells_beyond_the_header_have_a_remedy_for_excel(tmp_path):
    (bad,) = read_rows(sheet_of(tmp_path, ["Вопрос", "Ответ"], ["a", "b"], ["a", "b", "c"]), on_bad="aside").aside
    assert "row 3: 3 cells where the header has 2; name each column in the header row" in bad["sentence"]


def test_errors_and_dates_of_excel(tmp_path):
    day, hour = datetime(2026, 3, 5), datetime(2026, 3, 5, 14, 30)
    rows = ["a", "#N/A"], ["b", day], ["#REF!", hour, "#N/A"], ["c", "d", "#DIV/0!"], ["e", None], ["f", "g"]
    source = read_rows(sheet_of(tmp_path, ["Вопрос", "Ответ", "x"], *rows), on_bad="aside")
    assert pairs(source) == [(3, "b", "2026-03-05"), (5, "c", "d"), (6, "e", ""), (7, "f", "g")]
    assert [(bad["line"], bad["field"]) for bad in source.aside] == [(2, "Ответ"), (4, "Вопрос")]
    assert "field 'Ответ': #N/A, the error of a formula; correct it in Excel" in source.aside[0]["sentence"]


# --- refusals


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "is empty (0 bytes)"),
        ("a.jsonl", b"\n \n\n", "has no rows"),
        ("a.csv", b"\n\n", "has no rows"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv.gz", gzip.compress(b""), "is empty"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.zip", zipped("a.csv"), "is a zip archive, not an .xlsx workbook; unpack it"),
        ("a.xlsb", zipped("xl/workbook.bin"), "save it as .xlsx"),
        ("a.xlsx", b"PK\x03\x04 and no more", "can't be read: BadZipFile 'File is not a zip file'"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old Excel file (.xls)"),
        ("a.pdf", b"%PDF-1.7\n", "is a PDF, not a dataset"),
        ("a.pkl", pickle.dumps([GOOD]), "is not text"),
        ("a.bin", bytes(range(256)) * 40, "is not text"),
        ("a.gz", gzip.compress(gzip.compress(bytes(range(256)) * 99)), "is not text"),
        ("a.csv.gz", gzip.compress(table().encode())[:-30], "is cut off or damaged as a gzip file"),
        ("a.csv.gz", gzip.compress(table().encode())[:60] + b"garbage" * 20, "is cut off or damaged as a gzip file"),
        ("a.parquet", b"PAR1 and no more", "can't be read: ArrowInvalid"),
        ("a.csv", b"frage\na\n", "has one column only, 'frage'"),
        ("a.csv", b"answer,question,answer\na,b,c\n", "its header calls two columns 'answer'"),
        ("a.csv", b"a;b\n1;2\n", "no column is known as the question and answer"),
        ("a.json", b'[{"instruction": "a", "output": "b"}] x', "Expecting value at character 39"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "several lists of rows: 'train', 'test'"),
        ("a.json", b'{"instruction": ["a", "b"], "output": ["c"]}', "All arrays must be of the same length"),
    ],
)
def test_refusals(tmp_path, name, content, words):
    message = refusal(put(tmp_path, name, content))
    assert words in message
    assert name in message


def test_a_column_without_a_name_is_ignored(tmp_path):
    source = read_rows(put(tmp_path, "a.csv", ",question,answer\n0,a,b\n"))  # as pandas writes its index
    assert pairs(source) == [(2, "a", "b")]
    assert source.schema.endswith("; ignored: column 1")


def test_a_nul_byte_and_excels_own_first_line(tmp_path):
    assert plain(put(tmp_path, "a.csv", "question,answer\na,b\0c\n")) == [pair("a", "b\0c")]
    assert pairs(read_rows(put(tmp_path, "a.csv", "sep=;\r\nquestion;answer\r\na, b, c;d\r\n"))) == [(3, "a, b, c", "d")]
    assert find_delimiter("question;answer\na, b, c;d\na, b, c;d\n") == ";"
    assert find_delimiter("вопрос;ответ\n") == ";"


def test_what_is_not_there(tmp_path):
    put(tmp_path, "support.jsonl", lines(GOOD))
    (tmp_path / "bare").mkdir()
    put(tmp_path / "bare", "readme.md", "x")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    for source, words in (
        (tmp_path / "suport.jsonl", "is not there; in its folder: support.jsonl"),
        (tmp_path / "no" / "such" / "a.csv", "is not there"),
        (str(tmp_path / ("a" * 5000)), "is not there"),
        (tmp_path / "bare", "is a folder without data files"),
        (tmp_path / "link.csv", "is a broken link"),
        ("a\0b", "is not there"),
        ("hf://datasets/owner/name-that-is-not-here", "no connection to the Hugging Face Hub"),
    ):
        assert words in refusal(source)


@pytest.mark.parametrize("options", [{"on_bad": "skip"}, {"limit": 0}])
def test_impossible_arguments(tmp_path, options):
    with pytest.raises(SettingsError, match=f"{next(iter(options))}=.* is to be "):
        read_rows(put(tmp_path, "a.jsonl", lines(GOOD)), **options)


@pytest.mark.parametrize("source", ["", " ", None, 5])
def test_impossible_sources(source):
    with pytest.raises(SettingsError, match="is to be a path"):
        read_rows(source)


# --- streams and limits


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_big_file_is_read_in_a_stream(tmp_path, kind):
    record = {"instruction": "i" * 100, "input": "j" * 400, "output": "o" * 500}
    path = tmp_path / f"big.{kind}"
    if kind == "parquet":
        pd.DataFrame([record | {"input": f"{i}" * 100} for i in range(20_000)]).to_parquet(path, row_group_size=1000)
    else:
        put(tmp_path, path.name, lines(*[record] * 20_000) if kind == "jsonl" else table(records=[record] * 20_000))
    with contextlib.ExitStack() as stack:
        records = sources.open_source(path, "big", stack, 0, "train", None).records
        tracemalloc.start()
        assert sum(1 for _ in records) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
        tracemalloc.stop()
    if kind == "jsonl":
        path.write_text(lines(record, record) + "not JSON")
        assert len(read_rows(path, limit=2).rows) == 2  # the rest is not looked at


@pytest.mark.parametrize(
    ("option", "words"), [({"sheet": 2}, "sheet=2 is for an Excel file"), ({"split": "test"}, "split='test' is for a dataset")]
)
def test_an_option_that_would_change_nothing_is_refused(tmp_path, option, words):
    path = put(tmp_path, "mine.jsonl", lines(RECORDS[0]))
    with pytest.raises(SettingsError, match=f"{words}, and mine.jsonl is none; leave it out"):
        read_rows(path, **option)


@pytest.mark.parametrize("column", ["Ответ", "the answer", """It's the "final" answer, $HOME""", "a\\b's"])
def test_a_mapping_that_is_told_can_be_pasted(column):
    said = say_mapping({"instruction": "Тема письма", "output": column})
    assert shlex.split(said.partition("command line: ")[2][:-1]) == [
        "--map",
        "instruction=Тема письма",
        "--map",
        f"output={column}",
    ]
    assert "command line" not in say_mapping({"output": column + "\n"})
    assert ast.literal_eval(said.partition("=")[2].partition(" (on the")[0])["output"] == column


# --- datasets


def test_a_folder_is_read_by_load_dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pd.DataFrame(RECORDS[:2]).to_parquet(folder / "train-00000.parquet")
    pd.DataFrame(RECORDS[2:]).to_parquet(folder / "test-00000.parquet")
    source = read_rows(folder)
    assert source.rows == [row | {"line": i} for i, row in enumerate(OURS[:2], 1)]
    assert source.details == "folder of data files, split train"
    assert plain(str(folder), split="test", limit=1) == OURS[2:]
    assert re.search(r"split.*train", refusal(folder, split="валидация"))


def test_a_folder_of_csv_and_jsonl(tmp_path):
    path = put(tmp_path, "train.jsonl", lines({"messages": LONG}, {"messages": CHAT}))
    assert plain(tmp_path) == [{"messages": LONG}, {"messages": CHAT}]
    path.unlink()
    put(tmp_path, "train.csv", table())
    assert plain(tmp_path) == OURS


def test_a_saved_dataset(tmp_path):
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "one")
    assert plain(tmp_path / "one") == OURS
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(tmp_path / "parts")
    assert plain(tmp_path / "parts", split="test") == OURS
    assert "has no split 'train'; it has 'test'" in refusal(tmp_path / "parts")


def test_a_dataset_of_the_hub(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, name=None, **options):
        asked.update(options, path=path, name=name)
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    files = {"test": ["hf://datasets/owner/name@1/test.csv"]}
    config = SimpleNamespace(data_files=files)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: SimpleNamespace(config=config))
    assert plain("hf://datasets/owner/name:ru", split="test") == OURS
    assert asked == {"path": "owner/name", "name": "ru", "split": "test", "streaming": False}
    assert len(read_rows("hf://datasets/owner/name", limit=2).rows) == 2
    assert asked["streaming"]
    files["test"].append("/home/me/secret.csv")  # as its README.md may say
    assert "takes its rows from '/home/me/secret.csv', which is not in it" in refusal("hf://datasets/owner/name")


@pytest.mark.parametrize("name", ["clients/ivanov", "clients", "clients/ivanov:2026", "./clients/ivanov", "clients/2026/ivanov"])
def test_a_missing_path_is_not_asked_of_the_hub(monkeypatch, tmp_path, name):
    import datasets
    import huggingface_hub

    asked = []
    for module in (datasets, huggingface_hub):
        for function in ("load_dataset", "load_dataset_builder", "dataset_info", "hf_hub_download"):
            monkeypatch.setattr(module, function, lambda *given, **_: asked.append(given), raising=False)
    monkeypatch.setattr("socket.socket.connect", lambda *given: asked.append(given))
    monkeypatch.chdir(tmp_path)
    said = refusal(name)
    assert f"{name} is not there" in said
    assert said.endswith(f"; a dataset of the Hugging Face Hub is written hf://datasets/{name}") == (name.count("/") < 2)
    assert not asked
    with pytest.raises(DatasetError, match="is not there"):
        read_rows(Path(name))


def hub_errors():
    from datasets.exceptions import DatasetNotFoundError

    return [
        (DatasetNotFoundError("Dataset 'x' doesn't exist."), "is no dataset on the Hugging Face Hub"),
        (DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "accept its terms"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'ru']"),
            "configurations: 'en', 'ru'",
        ),
        (ValueError("Bad split: x. Available splits: ['train', 'test']"), "has no such split; it has 'train', 'test'"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "loading script"),
        (ZeroDivisionError("boom\nand more"), "can't be read: ZeroDivisionError 'boom'"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_failures_of_the_hub_in_plain_words(monkeypatch, number):
    import datasets

    error, words = hub_errors()[number]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    assert words in refusal("hf://datasets/owner/name")


def test_the_import_is_light():
    code = "import sys, gemma_colab.data.reading; print([m for m in ('torch', 'pandas', 'datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- anything at all

NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.xlsx", "a.parquet", "a.gz", "a"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["role", "content", "messages", "instruction", "output", "from", "value", "ё"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
KEYS = [
    "instruction",
    "input",
    "output",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "history",
    "вопрос",
    "ответ",
    "label",
    "x",
]
RECORD = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5)
PIECES = st.sampled_from(
    [json.dumps(GOOD), '{"instruction": "a", "instruction": "b", "output": ""}', "question,answer\n", '"', "\n", "\r\n", ",", ";", "\t", "{", "}",
     "[", "]", ":", "null", "\0", "\ufeff", "NaN", "1e999", "-", "\\ud800", "\\", '{"data": [', '"a"', "вопрос;ответ\n", "a;b\n", "sep=;\n", "[" * 2000]
)  # fmt: skip
OUR_BUGS = re.compile(r"(Index|Key|Type|Attribute|Name|Value|Assertion|StopIteration|UnboundLocal)Error")


def never_crashes(content: bytes, name: str, **options) -> None:
    """Rows, or one DatasetError of one line that names the file; the file stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), name, content)
        for on_bad in ("raise", "aside"):
            try:
                source = read_rows(path, on_bad=on_bad, **options)
            except DatasetError as e:
                message = str(e)
                assert name in message
                assert message.isprintable()
                assert len(message) < 1200
                assert ";" in message  # what is wrong; what to do
                assert name == "a.xlsx" or content[:2] == b"PK" or not OUR_BUGS.search(message)
                continue
            assert source.rows
            assert repr(source).startswith(name)
            for row in source.rows:
                assert row["line"] >= 1
                assert row["messages"][-1]["role"] == "assistant"
                for text in texts(row).values():
                    text.encode()
            assert on_bad == "aside" or not source.aside
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()
        assert [p.name for p in Path(folder).iterdir()] == [name]


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")) | st.sampled_from('\n\r\t",;|'), max_size=12)
PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)
STARTS = [
    b"",
    b"PK\x03\x04",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"[",
    b"question,answer\n",
]


@PROPERTY
@given(st.binary(max_size=300), st.sampled_from(STARTS), st.sampled_from(NAMES))
def test_arbitrary_bytes(content, start, name):
    never_crashes(start + content, name)


@PROPERTY
@given(
    st.lists(PIECES, max_size=25).map("".join),
    st.sampled_from(NAMES),
    st.sampled_from(["utf-8", "utf-16", "utf-16-le", "cp1251"]),
)
def test_pieces_of_json_and_csv(text, name, codec):
    never_crashes(text.encode(codec, "ignore"), name)


@PROPERTY
@given(
    st.lists(RECORD, max_size=5),
    st.sampled_from(["lines", "list", "indented", "object", "columns"]),
    st.integers(0, 60),
    st.booleans(),
)
def test_records_of_any_shape_and_cut_anywhere(records, shape, cut, packed):
    text = {
        "lines": lambda: lines(*records),
        "list": lambda: json.dumps(records),
        "indented": lambda: json.dumps(records, indent=1, ensure_ascii=False),
        "object": lambda: json.dumps({"version": 1, "data": records}, indent=1),
        "columns": lambda: json.dumps({key: [r.get(key) for r in records] for r in records for key in r}),
    }[shape]()
    content = text.encode("utf-8", "surrogatepass")
    content = content[: len(content) - cut] if cut > 30 else content
    never_crashes(gzip.compress(content) if packed else content, "a.jsonl" if shape == "lines" else "a.json")


@PROPERTY
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))  # fmt: skip
def test_what_csv_writes_is_read_back(cells, delimiter, codec):
    """Any texts survive a round trip, with a header that is known."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["вопрос", "ответ"], *cells])
    expected = [row for row in cells if any(cell.strip() for cell in row)]
    content = out.getvalue().encode(codec)
    never_crashes(content, "a.csv")
    if expected:
        with tempfile.TemporaryDirectory() as folder:
            rows = read_rows(put(Path(folder), "a.csv", content)).rows
            assert [(question(row), answer(row)) for row in rows] == expected


@PROPERTY
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=6), st.sampled_from([None, 1]))
def test_what_json_writes_is_read_back(cells, indent):
    cells = [tuple(text.encode("utf-8", "ignore").decode() for text in row) for row in cells]
    records = [dict(zip(("instruction", "output"), row, strict=True)) for row in cells]
    for name, text in (("a.jsonl", lines(*records)), ("a.json", json.dumps(records, indent=indent))):
        with tempfile.TemporaryDirectory() as folder:
            rows = read_rows(put(Path(folder), name, text)).rows
            assert [(question(row), answer(row)) for row in rows] == cells
