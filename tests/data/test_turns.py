"""Conversations as rows: one row for each answer, and what is done with rows that are too long."""

import pytest

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.data.turns import fit
from gemma_colab.model.lengths import token_lengths


def chat(*texts, system=None, **more):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns} | more


def contents(row):
    return [turn["content"] for turn in row["messages"]]


SINGLE = to_messages({"instruction": "раз", "output": "два"})


# ---------------------------------------------------------------------------------------------------- fit
LONG = "очень длинный рассказ о доставке " * 30


def test_dropping(tokenizer):
    rows = [SINGLE | {"line": 1}, chat("раз", LONG, line=2), chat("а", "б", line=3)]
    kept, log = fit(rows, tokenizer, 64, "drop")
    assert kept == [rows[0], rows[2]]
    assert [(line.line, line.done) for line in log.itertuples()] == [(2, "dropped")]
    assert log["tokens"][0] == token_lengths([rows[1]], tokenizer, 64)["total"][0] > 64


def test_the_limit_itself_fits(tokenizer):
    total = int(token_lengths([SINGLE], tokenizer, 9999)["total"][0])
    assert fit([SINGLE], tokenizer, total, "drop")[0] == [SINGLE]
    assert fit([SINGLE], tokenizer, total - 1, "drop")[0] == []


@pytest.mark.parametrize("system", [None, "Отвечай кратко."])
def test_splitting_between_exchanges(tokenizer, system):
    texts = [f"{'вопрос' if i % 2 == 0 else 'ответ'} номер {i}: где посылка и когда её ждать?" for i in range(12)]
    row = chat(*texts, system=system, line=5, label="x")
    whole = int(token_lengths([row], tokenizer, 9999)["total"][0])
    pieces, log = fit([row], tokenizer, whole // 2, "split")
    assert log["done"].tolist() == [f"split into {len(pieces)}"]
    assert len(pieces) >= 2
    assert (token_lengths(pieces, tokenizer, whole)["total"] <= whole // 2).all()
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
    assert log["done"].tolist() == ["split into 2, 1 too long on its own left out"]


def test_what_cannot_be_split_is_dropped(tokenizer):
    kept, log = fit([chat("раз", LONG), chat(LONG, "да")], tokenizer, 64, "split")
    assert kept == []
    assert log["done"].tolist() == ["dropped", "dropped"]


def test_another_way_is_refused(tokenizer):
    with pytest.raises(SettingsError, match="too_long='cut' must be 'keep', or 'drop' or 'split'"):
        fit([], tokenizer, 64, "cut")
