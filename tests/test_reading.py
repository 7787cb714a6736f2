"""Reading: every format, encoding and form gives the same rows; whatever is wrong is said in one sentence, and nothing crashes."""

import ast
import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import answer, question, texts, to_messages
from gemma_colab.data import files
from gemma_colab.data.files import text_kind
from gemma_colab.data.forms import BadRow, UnknownForm, guess_mapping, recognise, shown
from gemma_colab.data.reading import Source, iter_rows, peek, read_rows
from gemma_colab.data.tables import find_delimiter

RECORDS = [
    {"Тема": "Доставка", "Вопрос": "Где мой\nзаказ, и когда?", "Ответ": 'Он "в пути"; ждите.', "Категория": "путь", "id": "1"},
    {
        "Тема": "Возврат",
        "Вопрос": "Как вернуть товар | деньги?",
        "Ответ": "Напишите нам в чат.",
        "Категория": "деньги",
        "id": "2",
    },
    {"Тема": "Оплата", "Вопрос": "Можно ли картой?", "Ответ": "Да,\tможно.", "Категория": "деньги", "id": "3"},
]
OURS = [
    to_messages({"instruction": r["Тема"], "input": r["Вопрос"], "output": r["Ответ"], "label": r["Категория"]}) for r in RECORDS
]
GOOD = {"instruction": "Вопрос?", "input": "", "output": "Ответ."}
ROW = to_messages(GOOD)
CHAT = [{"role": "user", "content": "раз"}, {"role": "assistant", "content": "два"}]
LONG = [
    {"role": "system", "content": "вежливо"},
    *CHAT,
    {"role": "user", "content": "три"},
    {"role": "assistant", "content": "четыре"},
]


@pytest.fixture(autouse=True, scope="module")
def no_network():
    import datasets.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


def put(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*records) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def table(delimiter=",", records=RECORDS) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def without_lines(rows):
    return [{k: v for k, v in row.items() if k not in ("line", "item")} for row in rows]


def refusal(source, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        read_rows(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- formats and encodings

TEXTS = {
    "jsonl": (lines(*RECORDS), "JSON lines"),
    "json": (json.dumps(RECORDS, ensure_ascii=False, indent=2), "JSON"),
    **{
        f"{name}.csv": (table(d), f"CSV, delimiter {said}")
        for name, d, said in [("comma", ",", "','"), ("semicolon", ";", "';'"), ("tab", "\t", "tab"), ("bar", "|", "'|'")]
    },
}
CODECS = {
    "utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16", "utf-16-le": "UTF-16 (little-endian)",
    "utf-16-be": "UTF-16 (big-endian)", "cp1251": "Windows-1251", "koi8-r": "KOI8-R", "cp866": "code page 866 (DOS)",
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("packed", [False, True])
def test_text_formats_in_all_encodings(tmp_path, name, codec, packed):
    text, said = TEXTS[name]
    content = text.encode(codec)
    path = put(tmp_path, f"rows.{name}" + ".gz" * packed, gzip.compress(content) if packed else content)
    source = read_rows(path)
    assert without_lines(source.rows) == OURS
    assert source.details == f"{said}, {CODECS[codec]}" + ", gzip" * packed
    assert source.form == (
        "question/answer columns: Тема -> instruction, Вопрос -> input, Ответ -> output, Категория -> label; ignored: id"
    )


def typed(tmp_path, kind, records) -> Path:
    path = tmp_path / f"rows.{kind}"
    frame = pd.DataFrame(records)
    frame.to_excel(path, index=False) if kind == "xlsx" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["xlsx", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_excel_and_parquet(tmp_path, kind, packed):
    path = typed(tmp_path, kind, RECORDS)
    if packed:
        path = put(tmp_path, f"{kind}.gz", gzip.compress(path.read_bytes()))
    source = read_rows(path)
    assert without_lines(source.rows) == OURS
    assert [row["line"] for row in source.rows] == ([2, 3, 4] if kind == "xlsx" else [1, 2, 3])
    assert source.details.startswith("Excel, sheet 'Sheet1'" if kind == "xlsx" else "Parquet")
    assert source.details.endswith("gzip") == packed


def test_the_content_counts_more_than_the_name(tmp_path):
    for name in ("a.json", "a.jsonl", "a.csv", "a.txt", "a"):
        assert without_lines(read_rows(put(tmp_path, name, lines(*RECORDS))).rows) == OURS
        assert without_lines(read_rows(put(tmp_path, name, json.dumps(RECORDS, indent=1))).rows) == OURS
    for name in ("a.json.gz", "a.tsv", "a.data"):
        assert without_lines(read_rows(put(tmp_path, name, table() if "gz" not in name else lines(*RECORDS))).rows) == OURS
    assert text_kind('{"data": [\n{"a": 1}', ".jsonl") == "lines"  # a first line that breaks off
    assert text_kind('{"data": [\n{"a": 1}', ".json") == "json"
    assert text_kind('{"a": "b\n{"a": 1}\n', ".json") == "lines"


def test_an_english_table_in_windows_1252(tmp_path):
    text = "question,answer\n" + "What’s on the menu of the café?,“Crème brûlée” — £5\n" * 3
    source = read_rows(put(tmp_path, "a.csv", text.encode("cp1252")))
    assert source.details.endswith("Windows-1252")
    assert answer(source.rows[0]) == "“Crème brûlée” — £5"


def test_cyrillic_that_begins_late_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1024)
    text = lines(
        *[{"question": "q" * 50, "answer": "a"}] * 100, {"question": "Как дела сегодня?", "answer": "Всё хорошо, спасибо"}
    )
    for codec in ("utf-8", "cp1251"):
        assert read_rows(put(tmp_path, "a.jsonl", text.encode(codec))).rows[-1]["messages"][1]["content"] == "Всё хорошо, спасибо"


def test_few_broken_bytes_spoil_their_own_line_only(tmp_path):
    good = lines(*[{"question": "Здравствуйте, где заказ?", "answer": "В пути, ждите завтра."}] * 20).encode()
    path = put(tmp_path, "a.jsonl", good + b'{"question": "\xe9", "answer": "b"}\n' + good)
    source = read_rows(path, on_bad="aside")
    assert len(source.rows) == 40
    assert [(bad["line"], bad["problem"]) for bad in source.aside] == [
        (21, "byte 0xE9 at character 15 does not fit the file's encoding")
    ]
    assert "UTF-8" in source.details
    assert "line 21: byte 0xE9" in refusal(path)
    cells = "вопрос,ответ\n" + "Где мой заказ?,Уже в пути\n" * 20
    source = read_rows(put(tmp_path, "a.csv", cells.encode() + b"\xe9,b\n"), on_bad="aside")
    assert [bad["line"] for bad in source.aside] == [22]
    array = b'[\n{"question": "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82", "answer": "' + "да".encode() * 30
    assert [b["line"] for b in read_rows(put(tmp_path, "a.json", array + b'"},\n{"question": "\xff", "answer": "b"}]'),
                                         on_bad="aside").aside] == [3]  # fmt: skip


# --- lines


def test_a_row_carries_the_line_it_begins_in(tmp_path):
    text = 'question,answer\r\n"one\r\ntwo\r\n\r\nthree",a\r\n\r\nb,"c\r\nd"\r\ne,f\r\n'
    source = read_rows(put(tmp_path, "a.csv", text))
    assert [(row["line"], question(row)) for row in source.rows] == [(2, "one\r\ntwo\r\n\r\nthree"), (7, "b"), (9, "e")]
    row = json.dumps(GOOD)
    assert [r["line"] for r in read_rows(put(tmp_path, "a.jsonl", f"\n{row}\n\n\n{row}")).rows] == [2, 5]
    assert [r["line"] for r in read_rows(put(tmp_path, "a.json", f"[{row}, {row},\n\n{row}\n,\n{row}]")).rows] == [1, 1, 3, 5]
    pretty = json.dumps({"version": 2, "data": [GOOD, GOOD]}, indent=1)
    source = read_rows(put(tmp_path, "a.json", pretty))
    assert [r["line"] for r in source.rows] == [4, 9]
    assert source.details == "JSON, UTF-8, the list 'data' in it"


def test_rows_that_share_a_line_have_a_number(tmp_path):
    source = read_rows(put(tmp_path, "a.json", json.dumps([GOOD, GOOD, {"instruction": "a"}, GOOD])), on_bad="aside")
    assert [(r["line"], r["item"]) for r in source.rows] == [(1, 1), (1, 2), (1, 4)]
    assert source.aside[0]["sentence"].startswith("a.json, line 1, item 3, field 'output': missing; ")
    row = json.dumps(GOOD)
    source = read_rows(put(tmp_path, "a.json", f"[\n{row}, {row},\n{row}]"))
    assert [(r["line"], r.get("item")) for r in source.rows] == [(2, 1), (2, 2), (3, None)]
    for text in (json.dumps({"instruction": ["a", "b"], "output": ["c", "d"]}), json.dumps({"data": [GOOD, GOOD]})):
        assert [r["item"] for r in read_rows(put(tmp_path, "a.json", text)).rows] == [1, 2]
    assert all("item" not in r for r in read_rows(put(tmp_path, "a.jsonl", lines(GOOD, GOOD))).rows)


def test_a_value_longer_than_the_window_is_read_once_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 64)
    records = [
        {"instruction": "a" * n, "output": '\\"\n€😀' * n, "number": 12345678901, "list": [1.5, True, None]} for n in range(60)
    ]
    source = read_rows(put(tmp_path, "a.json", json.dumps(records, indent=2, ensure_ascii=False)))
    assert [answer(row) for row in source.rows] == [r["output"] for r in records]
    assert [row["line"] for row in source.rows][:2] == [2, 12]
    assert question(source.rows[3]) == "aaa"


def test_other_shapes_of_json(tmp_path):
    for content in (
        {"instruction": ["a", "b"], "output": ["c", "d"]},
        {"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}},  # pandas' to_json
    ):
        source = read_rows(put(tmp_path, "a.json", json.dumps(content)))
        assert [(question(r), answer(r)) for r in source.rows] == [("a", "c"), ("b", "d")]
        assert "columns turned into rows" in source.details
    assert without_lines(read_rows(put(tmp_path, "a.json", json.dumps(GOOD, indent=2))).rows) == [ROW]
    assert without_lines(read_rows(put(tmp_path, "a.json", json.dumps(GOOD, indent=2) * 3)).rows) == [ROW] * 3
    tagged = json.dumps(GOOD | {"tags": [{"name": "x"}]}, indent=2)  # no list of rows, where several objects stand
    assert without_lines(read_rows(put(tmp_path, "a.json", tagged * 2)).rows) == [ROW] * 2
    assert without_lines(read_rows(put(tmp_path, "a.json", json.dumps({"messages": LONG}))).rows) == [{"messages": LONG}]
    assert without_lines(read_rows(put(tmp_path, "a.json", f"[\n{json.dumps(GOOD)},\n]")).rows) == [ROW]  # written by hand
    assert "several lists of rows: 'train', 'test'" in refusal(
        put(tmp_path, "a.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}')
    )
    assert "different lengths ('instruction' 2, 'output' 1)" in refusal(
        put(tmp_path, "a.json", '{"instruction": ["a", "b"], "output": ["c"]}')
    )


# --- forms


@pytest.mark.parametrize(
    ("record", "row", "form"),
    [
        (GOOD, GOOD, "Alpaca instruction/input/output"),
        ({"instruction": "a", "output": "b"}, {"instruction": "a", "input": "", "output": "b"}, "Alpaca instruction/input/output"),
        ({"instruction": "a", "input": None, "output": ""}, {"instruction": "a", "input": "", "output": ""}, "Alpaca instruction/input/output"),
        ({"prompt": "a", "completion": "b"}, {"instruction": "a", "input": "", "output": "b"}, "prompt/completion"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, {"instruction": "раз", "input": "", "output": "два"}, "conversational prompt/completion"),
        ({"prompt": LONG[:4], "completion": LONG[4:]}, {"messages": LONG}, "conversational prompt/completion"),
        ({"messages": CHAT}, {"instruction": "раз", "input": "", "output": "два"}, "OpenAI messages"),
        ({"messages": LONG, "prompt": "x"}, {"messages": LONG}, "OpenAI messages; ignored: prompt"),
        ({"messages": [{"role": "developer", "content": "вежливо"}, {"role": "USER", "content": [{"type": "text", "text": "р"}, {"type": "text", "text": "аз"}]}, {"role": "model", "content": "два"}]}, {"messages": LONG[:3]}, "OpenAI messages"),
        ({"conversations": [{"from": "system", "value": "вежливо"}, {"from": "human", "value": "раз"}, {"from": "gpt", "value": "два"}], "id": 1}, {"messages": LONG[:3]}, "ShareGPT conversations; ignored: id"),
        ({"conversations": CHAT}, {"instruction": "раз", "input": "", "output": "два"}, "ShareGPT conversations"),
        ({"conversation": CHAT}, {"instruction": "раз", "input": "", "output": "два"}, "conversations in 'conversation'"),
        ({"messages": CHAT, "system": "вежливо"}, {"messages": LONG[:3]}, "OpenAI messages with system -> system"),
        ({"system_prompt": "s", "question": "q", "context": "c", "answer": "a"}, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q\n\nc"}, {"role": "assistant", "content": "a"}]}, "question/answer columns: question -> instruction, context -> input, answer -> output, system_prompt -> system"),
        ({" Вопрос_Клиента ": "q", "ОТВЕТ ОПЕРАТОРА": "a", "Номер диалога": 7, "Класс": "x"}, {"instruction": "q", "input": "", "output": "a", "label": "x", "conversation": "7"}, None),
        ({"сообщение клиента": "q", "ответ": "a"}, {"instruction": "q", "input": "", "output": "a"}, None),
        ({"subject": "s", "query": "q", "reply": "a", "topic": None}, {"instruction": "s", "input": "q", "output": "a"}, None),
    ],
)  # fmt: skip
def test_forms(tmp_path, record, row, form):
    source = read_rows(put(tmp_path, "a.jsonl", lines(record, record)))
    row = to_messages(row)
    assert source.rows == [row | {"line": 1}, row | {"line": 2}]
    assert form is None or source.form == form


def test_a_history_becomes_earlier_turns(tmp_path):
    record = {"instruction": "три", "input": "", "output": "четыре", "system": "вежливо", "history": [["раз", "два"]]}
    source = read_rows(
        put(tmp_path, "a.jsonl", lines(record, record | {"history": []}, record | {"history": None, "system": ""}))
    )
    assert [row.get("messages") for row in source.rows] == [LONG, [LONG[0], *LONG[3:]], LONG[3:]]
    assert "history -> earlier turns" in source.form
    assert "ignored" not in source.form
    source = read_rows(put(tmp_path, "a.jsonl", lines(record | {"system": "", "input": "и"})))
    assert source.rows[0]["messages"] == [*CHAT, {"role": "user", "content": "три\n\nи"}, LONG[4]]
    assert read_rows(typed(tmp_path, "parquet", [record])).rows[0]["messages"] == LONG
    for history, words in (
        ([["a"]], "field 'history[0]': ['a'], not a pair of question and answer"),
        ([["a", "b"], ["c", None]], "field 'history[1]': null, not a text"),
    ):
        assert words in refusal(put(tmp_path, "a.jsonl", lines(record | {"history": history})))
    source = read_rows(put(tmp_path, "a.jsonl", lines(record | {"history": "a text"})))
    assert source.form.endswith("ignored: history")


def test_a_weight_of_nothing(tmp_path):
    free, last = ({"messages": [t | {"weight": 0} if i == n else t for i, t in enumerate(LONG)]} for n in (2, 4))
    source = read_rows(put(tmp_path, "a.jsonl", lines(free, last, {"messages": LONG})), on_bad="aside")
    assert without_lines(source.rows) == [{"messages": LONG}] * 2
    assert [(bad["line"], bad["field"]) for bad in source.aside] == [(2, "messages[4].weight")]
    assert "0, so this answer is not to be learnt" in source.aside[0]["sentence"]


def test_mixed_forms_are_told_with_their_counts(tmp_path):
    source = read_rows(put(tmp_path, "a.jsonl", lines(GOOD, {"messages": LONG}, GOOD)))
    assert source.form == "Alpaca instruction/input/output (2 rows), OpenAI messages (1 rows)"
    assert repr(source) == f"a.jsonl (JSON lines, UTF-8)\nForm: {source.form}\n3 rows"


def test_rows_with_other_keys_than_most_carry_them(tmp_path):
    other = {"b": 1, **GOOD, "a\n": 2}
    for name, text in (
        ("a.jsonl", lines(GOOD, other, {"messages": LONG}, GOOD)),
        ("a.json", json.dumps([GOOD, other, {"messages": LONG}, GOOD])),
    ):
        rows = read_rows(put(tmp_path, name, text)).rows
        assert [row.get("keys") for row in rows] == [None, "a\\n, b, input, instruction, output", "messages", None]
        assert all("keys" not in row for row in iter_rows(tmp_path / name))
    turned = {"input": "", "output": "Ответ.", "instruction": "Вопрос?"}  # the same keys in another order
    mapping = {"instruction": "input", "output": "output"}
    for options in ({}, {"mapping": mapping}):
        rows = read_rows(put(tmp_path, "a.jsonl", lines(GOOD, turned, GOOD | {"label": None})), **options).rows
        assert [row.get("keys") for row in rows] == [None, None, "input, instruction, label, output"]
    assert not any("keys" in row for row in read_rows(typed(tmp_path, "parquet", [GOOD, other])).rows)  # a table has one header
    mixed = lines(*[GOOD] * 3, {"messages": CHAT}, GOOD | {"score": 5}, {"prompt": "a", "completion": "b"})
    rows = read_rows(put(tmp_path, "a.jsonl", mixed)).rows
    assert rows[4]["keys"] == "input, instruction, output, score"


def test_rows_of_parquet_keep_conversations(tmp_path):
    rows = read_rows(typed(tmp_path, "parquet", [{"messages": LONG, "n": 1}, {"messages": CHAT, "n": 2}])).rows
    assert without_lines(rows) == [{"messages": LONG}, {"messages": CHAT}]


def test_guess_mapping():
    assert guess_mapping(["Тема", "Вопрос", "Ответ"]) == {"instruction": "Тема", "input": "Вопрос", "output": "Ответ"}
    assert guess_mapping(["instruction", "input", "output", "question"]) == {f: f for f in ("instruction", "input", "output")}
    for columns, words in (
        (["answer", "question", "response"], "2 columns could be the output: 'response', 'answer'"),
        (["тема", "контекст", "вопрос", "ответ"], "3 columns could be the question"),
        (["question", "b"], "no column is known as the answer"),
    ):
        with pytest.raises(UnknownForm, match=words):
            guess_mapping(columns)
    assert recognise(["messages", "question", "answer"], nulls=frozenset({"messages"})).kind == "texts"


def test_unknown_columns_show_the_call_to_write(tmp_path):
    path = put(tmp_path, "a.csv", "id,frage,antwort\n1,a,b\n")
    message = refusal(path)
    assert "the columns are 'id', 'frage', 'antwort'" in message
    call, line = message[message.index("read_rows(") :].split(" (on the command line: ")
    assert ast.literal_eval(call.split("mapping=")[1].rstrip(")")) == {"instruction": "frage", "output": "antwort"}
    assert line == "--map instruction=frage --map output=antwort)"
    assert str(path) in call
    assert without_lines(read_rows(path, mapping={"instruction": "Frage", "output": "antwort", "label": "id"}).rows) == [
        to_messages({"instruction": "a", "output": "b", "label": "1"})
    ]
    assert "first line of names" in refusal(put(tmp_path, "b.csv", "Где заказ?,В пути.\nКак?,Так.\n"))


def test_mapping(tmp_path):
    path = put(tmp_path, "a.jsonl", lines({"a": "x", "b": "y", "c": "z", "s": "sys", "n": 5}))
    assert read_rows(path, mapping={"input": "a", "output": "b", "conversation": "n"}).rows == [
        to_messages({"instruction": "x", "output": "y", "line": 1, "conversation": "5"})
    ]
    assert [t["role"] for t in read_rows(path, mapping={"instruction": "a", "output": "b", "system": "s"}).rows[0]["messages"]] == [
        "system", "user", "assistant"]  # fmt: skip
    assert "field 'bb': missing; there are 'a', 'b'" in refusal(path, mapping={"instruction": "a", "output": "bb"})
    assert "no row has 'лабел'" in refusal(path, mapping={"instruction": "a", "output": "b", "label": "Лабел"})
    yo = put(tmp_path, "yo.csv", "Счёт-фактура,b\nx,y\n")
    assert read_rows(yo, mapping={"instruction": "счет фактура", "output": "b"}).rows[0]["messages"][0]["content"] == "x"
    chats = put(tmp_path, "b.jsonl", lines({"talk": CHAT}))
    assert read_rows(chats, mapping={"messages": "talk"}).rows[0]["messages"] == CHAT
    assert "the nearest is 'вопрос'" in refusal(
        put(tmp_path, "c.csv", "вопрос,b\n1,2\n"), mapping={"instruction": "вапрос", "output": "b"}
    )
    for mapping, words in (
        ({"instrucion": "a", "output": "b"}, "did you mean 'instruction'"),
        ({"output": "b"}, "it needs instruction and output, or messages"),
        ({"messages": "a", "output": "b"}, "one or the other"),
        (["a"], "is to be our name"),
        ({"output": 3}, "is to be our name"),
    ):
        with pytest.raises(SettingsError, match=words):
            read_rows(path, mapping=mapping)


def remedy(tmp_path, *records) -> str:
    """What the refusal of these records says behind the columns."""
    return refusal(put(tmp_path, "a.jsonl", lines(*records))).split("; ", 2)[2]


def test_preference_data(tmp_path):
    message = refusal(put(tmp_path, "dpo.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"})))
    assert "preference data" in message
    assert "mapping={\"instruction\": 'prompt', \"output\": 'chosen'}) (on the command line: --map instruction=prompt" in message
    assert "'rejected'" not in message
    path = put(tmp_path, "chats.jsonl", lines({"prompt": "раз", "chosen": CHAT, "rejected": CHAT}))
    assert "take the chosen answers: read_rows(" in refusal(path)
    assert "mapping={\"messages\": 'chosen'}" in refusal(path)
    assert read_rows(path, mapping={"messages": "chosen"}).rows[0]["messages"] == CHAT
    path = put(tmp_path, "turns.jsonl", lines({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": CHAT[1:]}))
    assert read_rows(path, mapping={"instruction": "prompt", "output": "chosen"}).rows[0]["messages"] == CHAT
    assert "rejected" not in remedy(tmp_path, {"frage": "a", "rejected": "b", "n": 1})


@pytest.mark.parametrize(
    ("record", "mapping", "line"),
    [
        ({"en": "a", "ru": "b"}, {"instruction": "en", "output": "ru"}, "--map instruction=en --map output=ru"),
        ({"Запрос клиента": "a", "Реплика": "b"}, {"instruction": "Запрос клиента", "output": "Реплика"}, '--map "instruction=Запрос клиента" --map output=Реплика'),
        ({"a$b": "a", "b": "b"}, {"instruction": "a$b", "output": "b"}, "--map 'instruction=a$b' --map output=b"),
        ({"article_id": "x7", "title": "a", "body": "b", "url": "c", "n": 1, "m": "1.5"}, {"instruction": "title", "output": "body"}, "--map instruction=title --map output=body"),
        ({"review": "good", "stars": "5"}, {"instruction": "review", "output": "stars"}, "--map instruction=review --map output=stars"),
        ({"instruction": "a", "context": "b", "mine": "c"}, {"instruction": "instruction", "input": "context", "output": "mine"}, "--map instruction=instruction --map input=context --map output=mine"),
    ],
)  # fmt: skip
def test_a_suggested_mapping_can_be_used(tmp_path, record, mapping, line):
    path = put(tmp_path, "a.jsonl", lines(record))
    call = refusal(path).partition("mapping=")[2]
    assert ast.literal_eval(call[: call.index("}") + 1]) == mapping
    assert f"(on the command line: {line})" in call
    assert read_rows(path, mapping=mapping).rows[0]["messages"][1]["content"] == record[mapping["output"]]


def test_no_mapping_is_suggested_where_none_fits(tmp_path):
    for record in ({"a": 1, "b": 2}, {"question": "a", "score": 5}, {"a": "x", "b\n": "y"}):
        message = refusal(put(tmp_path, "a.jsonl", lines(record)))
        assert f"the columns are {', '.join(map(repr, record))}" in message
        assert "choose one of them as instruction and one as output" in message
    message = refusal(put(tmp_path, "a.jsonl", lines({"text": "### Вопрос: a"})))
    assert "a row needs a question and an answer, in two columns" in message
    assert "..." not in message


def test_documents_and_their_summaries(tmp_path):
    for record, row in (
        ({"article_id": 1, "document": "d", "summary": "s"}, {"instruction": "d", "input": "", "output": "s"}),
        ({"instruction": "i", "article": "d", "highlights": "s"}, {"instruction": "i", "input": "d", "output": "s"}),
        ({"id": 1, "Текст": "d", "Ответ": "s"}, {"instruction": "d", "input": "", "output": "s"}),
        ({"question": "q", "text": "d", "answer": "a"}, {"instruction": "q", "input": "", "output": "a"}),
        ({"instruction": "q", "input": "", "output": "a", "text": "all"}, {"instruction": "q", "input": "", "output": "a"}),
    ):
        assert without_lines(read_rows(typed(tmp_path, "parquet", [record])).rows) == [to_messages(row)]
    path = typed(tmp_path, "parquet", [{"document": 5, "summary": "s"}])
    assert "5, not a text; choose a column of texts, or make texts of this one" in refusal(path)
    assert "in quotes" not in refusal(path)


# --- bad rows


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"instruction": "a", "output": null}', "field 'output': null, not a text"),
        ('{"instruction": "a", "output": 5}', "field 'output': 5, not a text"),
        ('{"instruction": ["a"], "input": "", "output": ["b"]}', "field 'instruction': ['a'], not a text"),
        ('{"instruction": "a"}', "field 'output': missing"),
        ('{"instruction": "a", "output": NaN}', "field 'output': nan, not a text"),
        ('{"instruction": "a", "output": "b\\ud800"}', "field 'output': half a character ('\\ud800'"),
        ('{"instruction": "a", "output": "b", "output": "c"}', "field 'output': this key stands twice"),
        ('{"instruction": "a", "x": {"y": 1, "y": 2}, "output": "c"}', "field 'y': this key stands twice"),
        ('{"instruction": "a", "output": "b", "n": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"instruction": ' + "[" * 100_000, "too many brackets inside each other"),
        ('{"instruction": "a", "output": "b"', "not valid JSON (Expecting ',' delimiter at character 35)"),
        ('{"instruction": "a", "output": "b"} {}', "not valid JSON (Extra data"),
        ('[{"instruction": "a"}]', "a list, [{'instruction': 'a'}], not an object"),
        ('"text"', "a text, 'text', not an object"),
        ("null", "null, null, not an object"),
        ("{}", "an empty object"),
        ('{"a": 1, "b": 2}', "the columns are 'a', 'b'"),
        ('{"messages": []}', "field 'messages': an empty list"),
        ('{"messages": "a"}', "field 'messages': 'a', not a list of turns"),
        ('{"messages": ["a"]}', "field 'messages[0]': 'a', not a turn"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "field 'messages': no answer of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "field 'messages[0]': a turn of the assistant where the user's"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]}', "field 'messages[1]': a turn of the user"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "field 'messages[0].role': 'bot', not a known role"),
        ('{"messages": [{"content": "a"}]}', "field 'messages[0].role': missing"),
        ('{"messages": [{"role": "user", "content": null}]}', "field 'messages[0].content': null, not a text"),
        ('{"messages": [{"role": "user"}]}', "field 'messages[0].content': missing"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "field 'messages[0].content[0]': a part of type 'image_url'"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "field 'messages[0]': a call of a tool"),
        ('{"conversations": [{"from": "human", "value": 1}]}', "field 'conversations[0].value': 1, not a text"),
        ('{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}', "field 'completion': 'b', not a list of turns"),
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
    (bad,) = source.aside
    assert set(bad) == {"line", "field", "problem", "content", "sentence"}
    assert bad["sentence"] + ', or leave bad rows aside with on_bad="aside"' == message
    assert bad["line"] == 3
    assert bad["problem"] in message
    array = put(tmp_path, "support.json", f"[\n  {json.dumps(GOOD)},\n  {record},\n  {json.dumps(GOOD)}\n]")
    source = read_rows(array, on_bad="aside")
    if record.startswith("{") and not record.endswith("["):  # else no bracket closes, or the place to go on is unclear
        assert [row["line"] for row in source.rows] == ([2, 3, 4] if "} {" in record else [2, 4])
    assert source.aside[0]["line"] in ((3, 4) if record.endswith('"b"') else (3,))
    put(tmp_path, "only.jsonl", record)
    with pytest.raises(DatasetError, match=r"(is|are) bad"):
        read_rows(tmp_path / "only.jsonl", on_bad="aside")


def test_a_recognised_label_that_is_none_does_not_cost_the_row(tmp_path):
    values = [["x", "y"], {"a": 1}, float("nan"), [], None, "x", 5, 2.0, True]
    labels = [None, None, None, None, None, "x", "5", "2", "True"]
    for column, ours in (("category", "label"), ("thread_id", "conversation")):
        path = put(tmp_path, "a.jsonl", lines(*({"instruction": "a", "output": "b", column: value} for value in values)))
        assert [row.get(ours) for row in read_rows(path).rows] == labels
        mapping = {"instruction": "instruction", "output": "output", ours: column}
        assert f"field '{column}': ['x', 'y'], not a text" in refusal(path, mapping=mapping)  # it was asked for
        rows = read_rows(path, mapping=mapping, on_bad="aside").rows
        assert [(row["line"], row.get(ours)) for row in rows] == list(enumerate(labels, 1))[2:3] + list(enumerate(labels, 1))[4:]
    talk = put(tmp_path, "b.jsonl", lines(*[{"messages": CHAT, "category": ["x", "y"]}] * 20))
    assert [row.get("label") for row in read_rows(talk).rows] == [None] * 20
    packed = typed(tmp_path, "parquet", [{"question": "a", "answer": "b", "category": ["x", "y"]}])
    assert "label" not in read_rows(packed).rows[0]


def test_a_conversation_that_ends_with_the_user(tmp_path):
    message = refusal(put(tmp_path, "a.jsonl", lines({"messages": LONG[:4]})))
    assert "field 'messages[3]': the conversation ends with the user's turn; drop the last turn" in message


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
    assert [(row["line"], answer(row)) for row in source.rows] == [(5, "h"), (7, "m")]
    source = read_rows(put(tmp_path, "a.csv", 'question,answer\na,"b\nc,d\ne,f\n'), on_bad="aside")
    assert source.aside[0]["problem"] == "a quotation mark is opened and never closed"
    assert [row["line"] for row in source.rows] == [3, 4]
    source = read_rows(put(tmp_path, "a.csv", "question,answer\na,b\n" + '"x"y,z\n' * 20_000), on_bad="aside")
    assert (len(source.rows), len(source.aside)) == (1, 20_000)


def test_a_json_list_that_breaks_off(tmp_path):
    whole = json.dumps([GOOD, GOOD], indent=1)
    for text in (whole[:-20], whole[:-2], '{"data": ' + whole[:-20]):
        source = read_rows(put(tmp_path, "a.json", text), on_bad="aside")
        assert without_lines(source.rows) == [ROW] * (2 if text == whole[:-2] else 1)
        assert "everything from here on can't be read" in source.aside[0]["problem"]
        assert "a.json, line" in refusal(tmp_path / "a.json")
    assert "text behind the end of the JSON" in refusal(put(tmp_path, "a.json", whole + "x"))


def test_huge_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST", 10_000)
    monkeypatch.setattr(files, "CHUNK", 1000)
    huge = json.dumps(GOOD | {"output": "x" * 50_000})
    source = read_rows(put(tmp_path, "a.jsonl", lines(GOOD) + huge + "\n" + lines(GOOD)), on_bad="aside")
    assert [row["line"] for row in source.rows] == [1, 3]
    assert source.aside[0]["problem"] == "more than 10,000 characters"
    assert "more than 10,000 characters" in refusal(put(tmp_path, "a.json", f"[{huge}]"))
    assert "more than 10,000 characters" in refusal(put(tmp_path, "a.csv", "question,answer\na,b\nb," + "x" * 50_000 + "\n"))


def test_empty_cells_and_numbers_of_tables(tmp_path):
    records = [{"question": "a", "context": None, "answer": 5}, {"question": None, "context": 2.5, "answer": 7.0}]
    expected = [("a", "5"), ("2.5", "7")]
    rows = read_rows(typed(tmp_path, "xlsx", records)).rows
    assert [tuple(texts(row).values()) for row in rows] == expected
    rows = read_rows(put(tmp_path, "a.csv", "question,context,answer\na,,5\n,2.5,7\n")).rows
    assert [tuple(texts(row).values()) for row in rows] == expected
    path = typed(
        tmp_path,
        "parquet",
        [{"question": "a", "context": None, "answer": "b"}, {"question": None, "context": None, "answer": "c"}],
    )
    assert [tuple(texts(row).values()) for row in read_rows(path).rows] == [("a", "b"), ("", "c")]
    assert "row 1, field 'answer': 5, not a text" in refusal(typed(tmp_path, "parquet", [{"question": "a", "answer": 5}]))


def test_sheets(tmp_path):
    path = tmp_path / "a.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame([{"x": 1}]).to_excel(book, sheet_name="план", index=False)
        pd.DataFrame(RECORDS).to_excel(book, sheet_name="чат", index=False)
    assert without_lines(read_rows(path, sheet="чат").rows) == without_lines(read_rows(path, sheet=1).rows) == OURS
    assert "has no sheet 'чад'; it has 'план', 'чат'" in refusal(path, sheet="чад")
    assert "has no sheet 2" in refusal(path, sheet=2)


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


def test_a_title_above_the_header(tmp_path):
    title, header, row = "База знаний, редакция 2", ["Вопрос", "Ответ", "Кто"], ["a", "b", "c"]
    source = read_rows(sheet_of(tmp_path, [title], header, row, row))
    assert [(r["line"], question(r), answer(r)) for r in source.rows] == [(3, "a", "b"), (4, "a", "b")]
    assert "header in row 2, under a title" in source.details
    for above in (f"{title}\n", f"{title};;\n", f"{title}\n\nот;12;марта\n"):
        source = read_rows(put(tmp_path, "a.csv", f"{above}Вопрос;Ответ;Кто\na;b;c\n"))
        line = above.count("\n") + 1
        assert without_lines(source.rows) == [to_messages({"instruction": "a", "output": "b"})]
        assert source.rows[0]["line"] == line + 1
        assert f"delimiter ';', header in line {line}, under a title" in source.details
    message = refusal(sheet_of(tmp_path, [title], ["Frage", "Antwort"], ["a", "b"]))
    assert message == "a.xlsx: row 1 looks like a title ('База знаний, редакция 2'), not like a header; delete that row"
    assert "line 1 looks like a title" in refusal(put(tmp_path, "a.csv", f"{title};;\nFrage;Antwort;Wer\na;b;c\n"))
    assert "a title above that line is to be deleted" in refusal(put(tmp_path, "a.csv", "База\nFrage;Antwort\n"))
    assert "column 1 of 2 has no name" in refusal(put(tmp_path, "a.csv", ",answer\n0,\n"))


def test_the_remedies_of_excel_are_for_excel(tmp_path):
    source = read_rows(sheet_of(tmp_path, ["Вопрос", "Ответ"], ["a", "b"], ["a", "b", "c"]), on_bad="aside")
    (bad,) = source.aside
    assert bad["sentence"] == (
        "a.xlsx, row 3: 3 cells where the header has 2; name each column in the header row, or delete the cells that stand beyond it"
    )


def test_other_sheets_are_named(tmp_path):
    path = sheet_of(tmp_path, ["Вопрос", "Ответ"], ["a", "b"], Архив=[["Вопрос", "Ответ"], ["c", "d"]])
    assert read_rows(path).details == "Excel, sheet 'Кадры' (other sheets: 'Архив')"
    assert read_rows(path, sheet="Архив").details == "Excel, sheet 'Архив' (other sheets: 'Кадры')"
    assert read_rows(sheet_of(tmp_path, ["Вопрос", "Ответ"], ["a", "b"])).details == "Excel, sheet 'Кадры'"
    assert "--sheet" in refusal(path, sheet="x")


def test_formulas_and_dates_of_excel(tmp_path):
    day, hour = datetime(2026, 3, 5), datetime(2026, 3, 5, 14, 30)
    path = sheet_of(
        tmp_path, ["Вопрос", "Ответ", "x"], ["a", "=1+1"], ["b", day], ["=2", hour, "=3"], ["c", "d", "=4"], ["e", None]
    )
    source = read_rows(path, on_bad="aside")
    assert [(question(r), answer(r)) for r in source.rows] == [("b", "2026-03-05"), ("c", "d"), ("e", "")]
    assert [(bad["line"], bad["field"]) for bad in source.aside] == [(2, "Ответ"), (4, "Вопрос")]
    assert source.aside[0]["sentence"].endswith(
        "field 'Ответ': a formula without a stored value; open the file in Excel and save it again"
    )


# --- refusals


def zipped(*names) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "a,b\n1,2\n")
    return out.getvalue()


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
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.zip", zipped("a.csv"), "is a zip archive; unpack it"),
        ("a.xlsb", zipped("xl/workbook.bin"), "save it as .xlsx"),
        ("a.xlsx", zipped("xl/workbook.xml"), "is not an .xlsx file Python can read"),
        ("a.xlsx", b"PK\x03\x04 and no more", "damaged zip or .xlsx"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "old Excel file (.xls)"),
        ("a.pdf", b"%PDF-1.7\n", "is a PDF, not a dataset"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is a PNG image"),
        ("a.pkl", pickle.dumps([GOOD]), "is a Python pickle"),
        ("a.exe", b"MZ\x90\0\x03\0", "is a Windows program"),
        ("a.bin", bytes(range(256)) * 40, "is not text"),
        ("a.gz", gzip.compress(gzip.compress(b"a")), "is gzip inside gzip"),
        ("a.csv.gz", gzip.compress(table().encode())[:-30], "gzip file is cut off or damaged"),
        ("a.csv.gz", gzip.compress(table().encode())[:60] + b"garbage" * 20, "gzip file is cut off or damaged"),
        ("a.parquet", b"PAR1 and no more", "damaged or unfinished Parquet file"),
        ("a.csv", b"frage\na\n", "has one column only, 'frage'"),
        ("a.csv", b",question,answer\n0,a,b\n", "column 1 of 3 has no name"),
        ("a.csv", b"answer,question,answer\na,b,c\n", "two columns are called 'answer'"),
        ("a.jsonl", table().encode("utf-16")[:-1], "breaks off in the middle of a character"),
    ],
)
def test_refusals(tmp_path, name, content, words):
    path = put(tmp_path, name, content)
    for on_bad in ("raise", "aside"):
        message = refusal(path, on_bad=on_bad)
        assert words in message
        assert name in message
    with pytest.raises(DatasetError, match=r"."):
        peek(path)


def test_a_nul_byte_and_excels_own_first_line(tmp_path):
    assert read_rows(put(tmp_path, "a.csv", "question,answer\na,b\0c\n")).rows[0]["messages"][1]["content"] == "b\0c"
    source = read_rows(put(tmp_path, "a.csv", "sep=;\r\nquestion;answer\r\na, b, c;d\r\n"))
    assert (source.rows[0]["line"], question(source.rows[0])) == (3, "a, b, c")
    assert find_delimiter("question;answer\na, b, c;d\na, b, c;d\n") == ";"
    assert find_delimiter("вопрос;ответ\n") == ";"


def test_what_is_not_there(tmp_path):
    put(tmp_path, "support.jsonl", lines(GOOD))
    assert "is not there; in its folder: support.jsonl" in refusal(tmp_path / "suport.jsonl")
    assert "is not there" in refusal(tmp_path / "no" / "such" / "a.csv")
    assert "is not there" in refusal(str(tmp_path / ("a" * 5000)))
    (tmp_path / "bare").mkdir()
    put(tmp_path / "bare", "readme.md", "x")
    assert "is a folder without data files" in refusal(tmp_path / "bare")
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    assert "is a broken link" in refusal(tmp_path / "link.csv")
    assert "no connection to the Hugging Face Hub" in refusal("owner/name-that-is-not-here")
    assert "no connection" in refusal("squad-that-is-not-here:plain", limit=1)


@pytest.mark.parametrize(
    "options",
    [{"on_bad": "skip"}, {"limit": 0}, {"limit": True}, {"limit": "5"}, {"split": ""}, {"sheet": None}, {"sheet": True},
     {"aside": "bad.jsonl"}, {"aside": 5, "on_bad": "aside"}, {"aside": "no/such/folder/a", "on_bad": "aside"}, {"mapping": {}}],
)  # fmt: skip
def test_impossible_arguments(tmp_path, options):
    path = put(tmp_path, "a.jsonl", lines(GOOD))
    with pytest.raises(SettingsError):
        read_rows(path, **options)
    with pytest.raises(SettingsError):
        iter_rows(path, **options)  # at once, not with the first row
    for source in ("", " ", None, 5, "a\0b"):
        with pytest.raises(SettingsError):
            read_rows(source)


# --- the side file


def test_bad_rows_go_to_a_side_file(tmp_path):
    path = put(
        tmp_path,
        "a.jsonl",
        lines(GOOD, {"instruction": "a", "output": None}, GOOD) + '{"output": "\\ud800", "instruction": "a"}\n',
    )
    side = tmp_path / "bad.jsonl"
    source = read_rows(path, on_bad="aside", aside=side)
    written = [json.loads(line) for line in side.read_text("utf-8").splitlines()]
    assert written == source.aside
    assert [(bad["line"], bad["field"]) for bad in written] == [(2, "output"), (4, "output")]
    assert written[0]["content"] == {"instruction": "a", "output": None}
    assert "2 put aside" in repr(source)
    assert [row["line"] for row in iter_rows(path, on_bad="aside", aside=side)] == [1, 3]  # written anew
    assert len(side.read_text("utf-8").splitlines()) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "bad.jsonl"]
    read_rows(put(tmp_path, "b.jsonl", lines(GOOD)), on_bad="aside", aside=side)
    assert side.read_bytes() == b""


def test_the_side_file_destroys_nothing(tmp_path):
    path = put(tmp_path, "a.jsonl", lines(GOOD) + "x\n")
    os.link(path, tmp_path / "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to(path)
    put(tmp_path, "other.jsonl", lines(GOOD))
    before = path.read_bytes()
    for name in ("a.jsonl", "hard.jsonl", "soft.jsonl", "../" + tmp_path.name + "/a.jsonl"):
        with pytest.raises(SettingsError, match="the input itself"):
            read_rows(path, on_bad="aside", aside=tmp_path / name)
    with pytest.raises(SettingsError, match="exists and is not a list of rows put aside"):
        read_rows(path, on_bad="aside", aside=tmp_path / "other.jsonl")
    with pytest.raises(SettingsError, match="is no file in a folder"):
        read_rows(path, on_bad="aside", aside=tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(DatasetError, match="all 2 rows are bad"):
        read_rows(put(tmp_path, "b.jsonl", "x\ny\n"), on_bad="aside", aside=tmp_path / "bad.jsonl")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2  # all the same: they are what one wants to see


# --- streams, limits, looks


def test_limit_and_peek(tmp_path):
    path = put(tmp_path, "a.jsonl", lines(*[GOOD] * 5) + "not JSON\n")
    assert len(read_rows(path, limit=5).rows) == 5
    assert isinstance(read_rows(path, limit=2), Source)
    frame = peek(put(tmp_path, "a.csv", table(";").encode("cp1251")), 2)
    assert frame.to_dict("records") == RECORDS[:2]
    assert list(frame.index) == [2, 4]
    assert peek(put(tmp_path, "b.jsonl", "nonsense\n" + lines({"a": [1], "b": None}))).to_dict("records") == [
        {"a": [1], "b": None}
    ]
    assert peek(typed(tmp_path, "xlsx", RECORDS), 1).to_dict("records") == RECORDS[:1]


def big(path: Path, kind: str, rows: int = 30_000) -> Path:
    record = {"instruction": "i" * 100, "input": "j" * 400, "output": "o" * 500}
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist([record | {"input": f"{i}" * 100} for i in range(rows)]), path, row_group_size=1000)
        return path
    with path.open("w") as file:
        one = json.dumps(record)
        if kind == "csv":
            file.write("instruction,input,output\n")
            one = ",".join(record.values())
        file.write("[" if kind == "json" else "")
        for i in range(rows):
            file.write(("," if kind == "json" and i else "") + one + ("\n" if kind != "json" else ""))
        file.write("]" if kind == "json" else "")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_big_file_is_read_in_a_stream(tmp_path, kind, capsys):
    path = big(tmp_path / f"big.{kind}", kind)
    assert kind == "parquet" or path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 12_000_000
    assert kind == "parquet" or "big." in capsys.readouterr().err  # the progress bar


def test_the_first_rows_come_without_reading_to_the_end(tmp_path):
    path = put(tmp_path, "a.json", "[" + json.dumps(GOOD) + "," * 1_000_000)
    assert next(iter_rows(path)) == ROW | {"line": 1}


# --- datasets


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    pd.DataFrame(RECORDS[:2]).to_parquet(tmp_path / "set" / "train-00000.parquet")
    pd.DataFrame(RECORDS[2:]).to_parquet(tmp_path / "set" / "test-00000.parquet")
    return tmp_path / "set"


def test_a_folder_is_read_by_load_dataset(folder):
    source = read_rows(folder)
    assert source.rows == [row | {"line": i} for i, row in enumerate(OURS[:2], 1)]
    assert source.details == "folder of data files, split train"
    assert without_lines(read_rows(str(folder), split="test", limit=1).rows) == OURS[2:]
    assert peek(folder, 1).to_dict("records") == RECORDS[:1]
    message = refusal(folder, split="валидация")
    assert "split" in message
    assert "train" in message
    with pytest.raises(SettingsError, match="lies in it"):
        read_rows(folder, on_bad="aside", aside=folder / "bad.jsonl")


def test_a_folder_of_csv_and_jsonl(tmp_path):
    put(tmp_path, "train.jsonl", lines({"messages": LONG}, {"messages": CHAT}))
    assert without_lines(read_rows(tmp_path).rows) == [{"messages": LONG}, {"messages": CHAT}]
    (tmp_path / "train.jsonl").unlink()
    put(tmp_path, "train.csv", table())
    assert without_lines(read_rows(tmp_path).rows) == OURS
    put(tmp_path, "train.csv", "a;b\n1;2\n")
    assert "no column is known" in refusal(tmp_path)


def test_a_saved_dataset(tmp_path):
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "one")
    assert without_lines(read_rows(tmp_path / "one").rows) == OURS
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(tmp_path / "parts")
    assert without_lines(read_rows(tmp_path / "parts", split="test").rows) == OURS
    assert "has no such split; it has 'test'" in refusal(tmp_path / "parts")


def test_a_dataset_of_the_hub(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, name=None, **options):
        asked.update(options, path=path, name=name)
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert without_lines(read_rows("owner/name:ru", split="test").rows) == OURS
    assert asked == {"path": "owner/name", "name": "ru", "split": "test", "streaming": False}
    assert len(read_rows("owner/name", limit=2).rows) == 2
    assert asked["streaming"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("DatasetNotFoundError", "neither a file here nor a dataset on the Hugging Face Hub"),
        ("gated", "accept its terms"),
        ("config", "has several configurations: 'en', 'ru'; name one as 'owner/name:configuration'"),
        ("split", "has no such split; it has 'train', 'test'"),
        ("script", "loading script"),
        ("other", "can't be read as a dataset: ZeroDivisionError 'boom'"),
    ],
)
def test_failures_of_the_hub_in_plain_words(monkeypatch, error, words):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    errors = {
        "DatasetNotFoundError": DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
        "gated": DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."),
        "config": ValueError("Config name is missing.\nPlease pick one among the available configs: ['en', 'ru']"),
        "split": ValueError("Bad split: x. Available splits: ['train', 'test']"),
        "script": RuntimeError("Dataset scripts are no longer supported, but found x.py"),
        "other": ZeroDivisionError("boom\nand more"),
    }

    def fail(*_, **__):
        raise errors[error]

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DatasetError) as caught:
        read_rows("owner/name")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is errors[error]


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
KEYS = st.sampled_from(
    ["instruction", "input", "output", "messages", "conversations", "prompt", "completion", "вопрос", "ответ", "label", "x"]
)
RECORD = st.dictionaries(KEYS, JSON, max_size=5)
PIECES = st.sampled_from(
    [json.dumps(GOOD), '{"instruction": "a", "instruction": "b", "output": ""}', "question,answer\n", '"', "\n", "\r\n", ",", ";", "\t", "{", "}",
     "[", "]", ":", "null", "\0", "\ufeff", "NaN", "1e999", "-", "\\ud800", "\\", '{"data": [', '"a"', "вопрос;ответ\n", "a;b\n", "sep=;\n", "[" * 2000]
)  # fmt: skip


def never_crashes(content: bytes, name: str, **options) -> None:
    """Rows, or one DatasetError of one line that names the file; the file stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = put(Path(folder), name, content)
        for on_bad in ("raise", "aside"):
            side = {"aside": Path(folder) / "side"} if on_bad == "aside" else {}
            source = message = None
            try:
                source = read_rows(path, on_bad=on_bad, **side, **options)
            except DatasetError as e:
                message = str(e)
            if message is not None:
                assert name in message
                assert message.isprintable()
                assert len(message) < 1200
                assert ";" in message  # what is wrong; what to do
            else:
                assert source.rows
                assert repr(source).startswith(name)
                for row in source.rows:
                    assert row["line"] >= 1
                    assert row["messages"][-1]["role"] == "assistant"
                    for text in texts(row).values():
                        text.encode()
                assert on_bad == "aside" or not source.aside
                if side:
                    assert len([json.loads(line) for line in side["aside"].open(encoding="utf-8")]) == len(source.aside)
        with contextlib.suppress(DatasetError):
            peek(path)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()
        assert {p.name for p in Path(folder).iterdir()} <= {name, "side"}


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn", "Co")) | st.sampled_from('\n\r\t",;|'), max_size=12)
PROPERTY = settings(deadline=None, max_examples=200, derandomize=True)


@PROPERTY
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"PAR1", b"\x1f\x8b\x08", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"{", b"[", b"question,answer\n"]), st.sampled_from(NAMES))  # fmt: skip
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
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6), st.sampled_from(",;\t|"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]))  # fmt: skip
def test_what_csv_writes_is_read_back(cells, delimiter, codec):
    """Any texts survive a round trip, with a header that is known."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["вопрос", "ответ"], *cells])
    expected = [tuple(row) for row in cells if any(cell.strip() for cell in row)]
    content = out.getvalue().encode(codec)
    never_crashes(content, "a.csv")
    if expected:
        with tempfile.TemporaryDirectory() as folder:
            read = read_rows(put(Path(folder), "a.csv", content)).rows
            assert [(question(row), answer(row)) for row in read] == expected


@PROPERTY
@given(st.lists(st.fixed_dictionaries({"instruction": st.text(max_size=30), "output": st.text(max_size=30)}), min_size=1, max_size=6), st.sampled_from([None, 1]))  # fmt: skip
def test_what_json_writes_is_read_back(records, indent):
    records = [{k: v.encode("utf-8", "ignore").decode() for k, v in r.items()} for r in records]
    for name, text in (("a.jsonl", lines(*records)), ("a.json", json.dumps(records, indent=indent))):
        with tempfile.TemporaryDirectory() as folder:
            rows = read_rows(put(Path(folder), name, text)).rows
            assert [(question(row), answer(row)) for row in rows] == [(r["instruction"], r["output"]) for r in records]


def test_bad_rows_stay_inside():
    assert not issubclass(BadRow, DatasetError)
