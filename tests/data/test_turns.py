"""Conversations as rows: one row for each answer, and what is done with rows that are too long."""

import pytest

from gemma_colab.core.chat import token_lengths
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.data.splitting import SplitSettings, split_rows
from gemma_colab.data.turns import fit, one_row_per_answer


def chat(*texts, system=None, **more):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns} | more


def contents(row):
    return [turn["content"] for turn in row["messages"]]


SINGLE = {"instruction": "раз", "input": "", "output": "два"}


def test_every_answer_becomes_a_row_with_what_was_said_before():
    rows = [SINGLE, chat("а", "б", "в", "г", system="с", line=7, label="x"), chat("д", "е")]
    copy = [dict(row) for row in rows]
    made = one_row_per_answer(rows)
    assert rows == copy
    assert made[0] is rows[0]
    assert made[3] is rows[2]  # a single answer is a row already
    assert [contents(row) for row in made[1:3]] == [["с", "а", "б"], ["с", "а", "б", "в", "г"]]
    assert all(row["line"] == 7 and row["label"] == "x" for row in made[1:3])
    assert made[1]["conversation"] == made[2]["conversation"]
    assert [to_messages(row)["completion"][0]["content"] for row in made[1:3]] == ["б", "г"]


def test_the_name_of_a_conversation_is_kept_and_others_differ():
    named, one, other = (
        one_row_per_answer([chat("а", "б", "в", "г", conversation="c7")]),
        *(one_row_per_answer([chat("а", "б", "в", last)]) for last in "гд"),
    )
    assert {row["conversation"] for row in named} == {"c7"}
    assert one[0]["conversation"] != other[0]["conversation"]


def test_rows_of_one_conversation_stay_on_one_side(support_rows):
    talks = [
        chat(*(text for row in support_rows[i : i + 3] for text in (row["input"] or row["instruction"], row["output"])))
        for i in range(0, 90, 3)
    ]
    parts, _ = split_rows(one_row_per_answer(talks), SplitSettings())
    names = {part: {row["conversation"] for row in rows} for part, rows in parts.items()}
    assert sum(len(rows) for rows in parts.values()) == 90
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]


# ---------------------------------------------------------------------------------------------------- fit
LONG = "очень длинный рассказ о доставке " * 30


def test_dropping(tokenizer):
    rows = [SINGLE | {"line": 1}, SINGLE | {"output": LONG, "line": 2}, chat("а", "б", line=3)]
    kept, log = fit(rows, tokenizer, 64, "drop")
    assert kept == [rows[0], rows[2]]
    assert [(line.line, line.done) for line in log.itertuples()] == [(2, "dropped")]
    assert log["tokens"][0] == token_lengths([to_messages(rows[1])], tokenizer, 64)["total"][0] > 64


def test_the_limit_itself_fits(tokenizer):
    total = int(token_lengths([to_messages(SINGLE)], tokenizer, 9999)["total"][0])
    assert fit([SINGLE], tokenizer, total, "drop")[0] == [SINGLE]
    assert fit([SINGLE], tokenizer, total - 1, "drop")[0] == []


@pytest.mark.parametrize("system", [None, "Отвечай кратко."])
def test_splitting_between_exchanges(tokenizer, system):
    texts = [f"{'вопрос' if i % 2 == 0 else 'ответ'} номер {i}: где посылка и когда её ждать?" for i in range(12)]
    row = chat(*texts, system=system, line=5, label="x")
    whole = int(token_lengths([to_messages(row)], tokenizer, 9999)["total"][0])
    pieces, log = fit([row], tokenizer, whole // 2, "split")
    assert log["done"].tolist() == [f"split into {len(pieces)}"]
    assert len(pieces) >= 2
    assert (token_lengths([to_messages(piece) for piece in pieces], tokenizer, whole)["total"] <= whole // 2).all()
    head = [system] if system else []
    assert all(contents(piece)[: len(head)] == head for piece in pieces)
    assert [text for piece in pieces for text in contents(piece)[len(head) :]] == texts  # nothing lost, in order
    assert all(piece["messages"][-1]["role"] == "assistant" for piece in pieces)
    assert all(piece["line"] == 5 and piece["label"] == "x" for piece in pieces)
    assert len({piece["conversation"] for piece in pieces}) == 1


def test_an_exchange_too_long_on_its_own_is_left_out(tokenizer):
    row = chat("первый вопрос", "первый ответ", LONG, "второй ответ", "третий вопрос", "третий ответ", conversation="c")
    pieces, log = fit([row], tokenizer, 80, "split")
    assert [contents(piece) for piece in pieces] == [["первый вопрос", "первый ответ"], ["третий вопрос", "третий ответ"]]
    assert {piece["conversation"] for piece in pieces} == {"c"}
    assert log["done"].tolist() == ["split into 2"]


def test_what_cannot_be_split_is_dropped(tokenizer):
    kept, log = fit([SINGLE | {"output": LONG}, chat(LONG, "да")], tokenizer, 64, "split")
    assert kept == []
    assert log["done"].tolist() == ["dropped", "dropped"]


def test_another_way_is_refused(tokenizer):
    with pytest.raises(SettingsError, match="how='cut' must be 'drop' or 'split'"):
        fit([], tokenizer, 64, "cut")
