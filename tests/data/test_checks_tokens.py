"""Checks that count tokens, with the real tokenizer and template."""

import pytest

from gemma_colab.core.chat import token_lengths, tokenize_row
from gemma_colab.core.rows import to_messages
from gemma_colab.data.checks_tokens import beginnings, budget, dropped, end_untrained, nothing_trained, too_long
from gemma_colab.data.finding import Look
from gemma_colab.data.report import check_rows

SHORT = {"instruction": "Где заказ?", "input": "", "output": "В пути."}
ANSWER = SHORT | {"output": "Заказ передан в службу доставки. " * 30}
QUESTION = SHORT | {"instruction": "Где мой заказ, который я ждал? " * 60}


def counted(rows, tokenizer, max_length):
    rows = [to_messages(row) for row in rows]
    return Look(rows, max_length), token_lengths(rows, tokenizer, max_length)


def test_a_cut_answer_is_measured(tokenizer):
    look, lengths = counted([SHORT, ANSWER], tokenizer, 100)
    (finding,) = too_long(look, lengths)
    (hit,) = finding.hits
    total, of = lengths["total"][1], lengths["answer"][1]
    assert (hit.row, hit.field) == (1, "messages[1]")
    assert hit.note == f"{total} tokens, {total - 100} of {of} answer tokens are cut"
    assert f"max_length=100, {(total - 100) / of:.0%} of their answers" in finding.what_to_do
    assert f"the longest row has {total} tokens" in finding.what_to_do
    ids = tokenize_row(to_messages(ANSWER), tokenizer)
    assert sum(label != -100 for label in ids["labels"][:100]) == of - (total - 100)
    assert not list(nothing_trained(look, lengths))


def test_the_field_of_a_conversation_is_its_last_message(tokenizer):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"слово {i} " * 20} for i in range(4)]
    look, lengths = counted([{"messages": turns}], tokenizer, 60)
    assert [hit.field for finding in too_long(look, lengths) for hit in finding.hits] == ["messages[3]"]


@pytest.mark.parametrize(("long", "severity"), [(0, None), (1, "W"), (5, "W"), (6, "E")])
def test_one_in_twenty_may_be_too_long(tokenizer, long, severity):
    look, lengths = counted([ANSWER] * long + [SHORT] * (100 - long), tokenizer, 64)
    assert [finding.severity for finding in too_long(look, lengths)] == ([severity] if severity else [])


def test_the_share_of_long_rows_is_a_parameter(tokenizer):
    look, lengths = counted([ANSWER] * 2 + [SHORT] * 8, tokenizer, 64)
    assert [f.severity for f in too_long(look, lengths)] == ["E"]
    assert [f.severity for f in too_long(look, lengths, most=0.2)] == ["W"]
    assert [f.severity for f in too_long(look, lengths, most=0.19)] == ["E"]


def test_max_length_itself_fits(tokenizer):
    total = int(counted([ANSWER], tokenizer, 9999)[1]["total"][0])
    for limit, count in ((total, 0), (total - 1, 1)):
        look, lengths = counted([ANSWER], tokenizer, limit)
        assert len(list(too_long(look, lengths))) == count


def test_a_question_that_leaves_no_answer_token(tokenizer):
    look, lengths = counted([SHORT, QUESTION], tokenizer, 64)
    (finding,) = nothing_trained(look, lengths)
    assert (finding.severity, finding.rows) == ("E", [1])
    assert all(label == -100 for label in tokenize_row(to_messages(QUESTION), tokenizer)["labels"][:64])
    prompt = int(lengths["prompt"][1])
    for limit, hit in ((prompt, 1), (prompt + 1, 0)):
        assert len(list(nothing_trained(*counted([QUESTION], tokenizer, limit)))) == hit


@pytest.mark.parametrize(("long", "found"), [(3, False), (4, True)])
def test_three_in_ten_may_be_dropped(tokenizer, long, found):
    look, lengths = counted([ANSWER] * long + [SHORT] * (10 - long), tokenizer, 64)
    findings = list(dropped(look, lengths))
    assert [f.severity for f in findings] == ["E"] * found
    assert bool(list(dropped(look, lengths, most=0.39))) == found
    assert not list(dropped(look, lengths, most=0.4))


def test_the_end_of_a_turn_is_trained_where_the_row_fits(tokenizer):
    look, lengths = counted([SHORT, ANSWER], tokenizer, 64)
    assert lengths["end_trained"].tolist() == [True, False]
    assert not list(end_untrained(look, lengths))  # the one that is cut has its own finding
    (finding,) = end_untrained(look, lengths.assign(end_trained=False))
    assert (finding.severity, finding.rows) == ("E", [0])


@pytest.mark.parametrize("field", ["instruction", "output"])
def test_a_literal_bos_in_the_text(tokenizer, field):
    rows = [SHORT, SHORT | {field: "Токен <bos> в начале"}]
    (finding,) = beginnings(*counted(rows, tokenizer, 64))
    assert (finding.severity, finding.rows, finding.hits[0].note) == ("E", [1], "2 times")


def test_a_literal_end_of_turn_in_the_answer(tokenizer):
    look, lengths = counted([SHORT | {"output": "Пишите <end_of_turn> в конце"}], tokenizer, 64)
    plain = counted([SHORT | {"output": "Пишите  в конце"}], tokenizer, 64)[1]
    assert lengths["end_trained"][0]
    assert lengths["total"][0] <= plain["total"][0] + 2  # it is one token, not letters
    assert not list(beginnings(look, lengths))


def test_a_literal_end_of_turn_does_not_hide_that_the_real_one_is_cut(tokenizer):
    row = SHORT | {"output": "Сначала <end_of_turn> потом " + "ещё слово " * 60}
    look, lengths = counted([row], tokenizer, 40)
    assert [finding.rows for finding in too_long(look, lengths)] == [[0]]


def test_budget(tokenizer):
    rows = [SHORT] * 9 + [ANSWER]
    lengths = counted(rows, tokenizer, 50)[1]
    look = Look(rows, 50, num_train_epochs=2)
    tokens = (9 * int(lengths["total"][0]) + 50) * 2
    (finding,) = budget(look, lengths)
    assert finding.severity == "I"
    assert finding.what_to_do == f"{tokens:,} tokens in 2 epochs, about 4 steps of 8 rows, if all rows are trained"
    (finding,) = budget(look, lengths, batch=5)
    assert finding.what_to_do.endswith("about 4 steps of 5 rows, if all rows are trained")


def test_in_a_report(tokenizer, support_rows):
    rows = [*support_rows[:60], to_messages(QUESTION)]
    checks = {f.check: f.severity for f in check_rows(rows, tokenizer=tokenizer, max_length=256).findings}
    assert checks["too long"] == "W"
    assert checks["nothing trained"] == "E"
    assert checks["budget"] == "I"
    assert "budget" not in {f.check for f in check_rows(rows).findings}
