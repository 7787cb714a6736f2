"""Is training worth it? The words over measures whose answer is known, and what the sentence says of the cost."""

import pandas as pd
import pytest

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import SettingsError
from gemma_colab.evaluation import worth_training
from gemma_colab.evaluation.candidates import Evaluation, few_shot_turns


def chat_row(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def asked(base: int, few: int, rows: int) -> Evaluation:
    """So many answers of so many rows are right; the measure is yes or no."""

    def right(predictions, references):
        return [float(said == "yes") for said in predictions]

    answers = {
        name: pd.DataFrame({"answer": ["yes"] * count + ["no"] * (rows - count)})
        for name, count in (("base", base), ("few-shot", few))
    }
    return Evaluation([chat_row(f"question {i}", "yes") for i in range(rows)], answers, {"right": right}, examples=2)


@pytest.mark.parametrize(
    ("base", "few", "rows", "word"),
    [
        (0, 99, 100, "it suffices"),
        (99, 0, 100, "it suffices"),  # the bare base may be the better one
        (0, 60, 100, "train"),
        (0, 0, 30, "train"),
        (0, 28, 30, "too few rows to tell"),  # 93 %: it may be 90, and it may be 80
        (0, 9, 9, "too few rows to tell"),
        (0, 0, 9, "too few rows to tell"),
    ],
)
def test_the_word_is_that_of_the_interval(base, few, rows, word, tokenizer):
    train = [chat_row("question", "answer")] * 5
    table, sentence = worth_training(asked(base, few, rows), {"right": 0.9}, tokenizer, train)
    assert sentence.startswith(f"{word}. ")
    assert table.loc["right", "says"] == word
    assert table.loc["right", ["base", "few-shot"]].tolist() == [base / rows, few / rows]


def test_one_measure_below_is_enough_to_train(tokenizer):
    found = asked(0, 99, 100)
    found.metrics["never"] = lambda predictions, references: [0.0] * len(predictions)
    table, sentence = worth_training(found, {"right": 0.9, "never": 0.5}, tokenizer, [chat_row("question", "answer")] * 5)
    assert table["says"].to_dict() == {"right": "it suffices", "never": "train"}
    assert sentence.startswith("train. ")


def test_a_measure_that_no_row_has_can_not_tell(tokenizer):
    found = asked(0, 99, 100)
    found.metrics["number"] = lambda predictions, references: [None] * len(predictions)
    table, _ = worth_training(found, {"number": 0.9}, tokenizer, [chat_row("question", "answer")])
    assert table.loc["number", "says"] == "too few rows to tell"


def test_the_cost_is_counted_in_tokens(tokenizer):
    train = [chat_row(f"question {i}", "answer " * i) for i in range(1, 9)]
    _, sentence = worth_training(asked(0, 99, 100), {"right": 0.9}, tokenizer, train, epochs=3)
    read = 3 * sum(len(tokenize_row(row, tokenizer)["input_ids"]) for row in train)
    extra = len(tokenizer.apply_chat_template(few_shot_turns(train, 2), return_dict=True)["input_ids"])
    assert f"3 epochs reads {read:,} tokens, once." in sentence
    assert f"The 2 examples add {extra:,} tokens to every question." in sentence
    assert f"If both answer well enough, training is cheaper after {3 * read / extra:,.0f} questions." in sentence


def test_an_unknown_measure_names_those_there_are(tokenizer):
    with pytest.raises(SettingsError, match="wanted names 'rihgt', and there are right; name one"):
        worth_training(asked(0, 0, 20), {"rihgt": 0.9}, tokenizer, [])
