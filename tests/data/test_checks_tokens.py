"""Checks that count tokens, with the real tokenizer and template."""

import copy

import pytest
from transformers import AddedToken

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.rows import to_messages
from gemma_colab.data.checks_tokens import beginnings, budget, end_untrained, nothing_trained, too_long
from gemma_colab.data.finding import CheckContext
from gemma_colab.data.report import check_rows
from gemma_colab.model.lengths import token_lengths


def row(instruction="Где заказ?", output="В пути."):
    return to_messages({"instruction": instruction, "output": output})


SHORT = row()
ANSWER = row(output="Заказ передан в службу доставки. " * 30)
QUESTION = row("Где мой заказ, который я ждал? " * 60)


def counted(rows, tokenizer, max_length, **more):
    return CheckContext(rows, max_length, lengths=token_lengths(rows, tokenizer, max_length), **more)


def test_a_cut_answer_is_measured(tokenizer):
    context = counted([SHORT, ANSWER], tokenizer, 100)
    (finding,) = too_long(context)
    (hit,) = finding.hits
    total, of = context.lengths["total"][1], context.lengths["answer"][1]
    assert (hit.row, hit.field) == (1, "answer")
    assert hit.note == f"{total} tokens, {total - 100} of {of} answer tokens are cut"
    assert f"max_length=100, {(total - 100) / of:.0%} of their answers" in finding.what_to_do
    assert f"the longest row has {total} tokens" in finding.what_to_do
    labels = tokenize_row(ANSWER, tokenizer)["labels"]
    assert sum(label != -100 for label in labels[:100]) == of - (total - 100)
    assert not nothing_trained(context)
    for limit, count in ((total, 0), (total - 1, 1)):
        assert len(too_long(counted([ANSWER], tokenizer, int(limit)))) == count


@pytest.mark.parametrize(
    ("long", "short", "most", "severity"),
    [(0, 100, {}, None), (1, 99, {}, "W"), (5, 95, {}, "W"), (6, 94, {}, "E"), (2, 8, {"most": 0.2}, "W"), (2, 8, {"most": 0.19}, "E")],
)  # fmt: skip
def test_one_in_twenty_may_be_too_long(tokenizer, long, short, most, severity):
    context = counted([ANSWER] * long + [SHORT] * short, tokenizer, 64)
    assert [finding.severity for finding in too_long(context, **most)] == ([severity] if severity else [])


def test_a_question_that_leaves_no_answer_token(tokenizer):
    context = counted([SHORT, QUESTION], tokenizer, 64)
    (finding,) = nothing_trained(context)
    assert (finding.severity, finding.rows) == ("E", [1])
    assert all(label == -100 for label in tokenize_row(QUESTION, tokenizer)["labels"][:64])
    prompt = int(context.lengths["prompt"][1])
    for limit, hit in ((prompt, 1), (prompt + 1, 0)):
        assert len(nothing_trained(counted([QUESTION], tokenizer, limit))) == hit


def test_the_end_of_a_turn_is_trained_where_the_row_fits(tokenizer):
    context = counted([SHORT, ANSWER], tokenizer, 64)
    assert context.lengths["end_trained"].tolist() == [True, False]
    assert not end_untrained(context)  # the one that is cut has its own finding
    (finding,) = end_untrained(CheckContext(context.rows, 64, lengths=context.lengths.assign(end_trained=False)))
    assert (finding.severity, finding.rows) == ("E", [0])


@pytest.mark.parametrize("text", [("Токен <bos> в начале", "Да."), ("Что?", "Токен <bos> в начале")])
def test_a_literal_bos_in_the_text(tokenizer, text):
    (finding,) = beginnings(counted([SHORT, row(*text)], tokenizer, 64))
    assert (finding.severity, finding.rows, finding.hits[0].note) == ("E", [1], "2 times")


def test_a_literal_end_of_turn_does_not_hide_that_the_real_one_is_cut(tokenizer):
    fits = counted([row(output="Пишите <end_of_turn> в конце"), row(output="Пишите  в конце")], tokenizer, 64)
    assert fits.lengths["end_trained"][0]
    assert fits.lengths["total"][0] <= fits.lengths["total"][1] + 2  # it is one token, not letters
    assert not beginnings(fits)
    cut = counted([row(output="Сначала <end_of_turn> потом " + "ещё слово " * 60)], tokenizer, 40)
    assert [finding.rows for finding in too_long(cut)] == [[0]]


@pytest.mark.parametrize(
    "text", ["<pad>", "<mask>", "<unk>", "<eos>", "<start_of_turn>", "<unused0>", "[multimodal]", "<start_of_image>"]
)
def test_gemmas_control_tokens_block_with_or_without_a_tokenizer(tokenizer, text):
    rows = [row(f"Вопрос {i}") for i in range(20)] + [row(output=f"BERT угадывает {text} в тексте")]
    for more in ({}, {"tokenizer": tokenizer}):
        (finding,) = (f for f in check_rows(rows, **more).findings if f.check == "chat markers")
        assert (finding.severity, finding.rows) == ("E", [20])


def test_control_tokens_of_the_very_tokenizer_are_found(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens([AddedToken("<think>", special=True), AddedToken("<h1>", special=False), AddedToken("a|b", special=True)])
    rows = [SHORT, row(output="<think> да"), row(output="<h1>да</h1>"), row(output="a|b")]
    assert [f.rows for f in check_rows(rows, tokenizer=other).findings if f.check == "chat markers"] == [[1, 3]]
    assert not [f for f in check_rows(rows, tokenizer=tokenizer).findings if f.check == "chat markers"]


def test_every_special_token_of_the_tokenizer_is_a_chat_marker(tokenizer):
    for token in tokenizer.added_tokens_decoder.values():
        assert "chat markers" in {f.check for f in check_rows([row(output=f"да {token.content} да")]).findings}


def test_budget(tokenizer):
    context = counted([SHORT] * 9 + [ANSWER], tokenizer, 50, num_train_epochs=2)
    tokens = (9 * int(context.lengths["total"][0]) + 50) * 2
    (finding,) = budget(context)
    assert finding.severity == "I"
    assert finding.what_to_do == f"{tokens:,} tokens in 2 epochs, about 4 steps of 8 rows, if all rows are trained"
    assert budget(context, batch=4)[0].what_to_do.endswith("about 6 steps of 4 rows, if all rows are trained")


def test_in_a_report(tokenizer, support_rows):
    rows = [*support_rows[:60], QUESTION]
    checks = {f.check: f.severity for f in check_rows(rows, tokenizer=tokenizer, max_length=256).findings}
    assert (checks["too long"], checks["nothing trained"], checks["budget"]) == ("W", "E", "I")
    assert "budget" not in {f.check for f in check_rows(rows).findings}
