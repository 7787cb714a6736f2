"""Planted cases with real models: better, equal, worse, memorized. Each must be called what it is."""

import json
import random

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from steps import load_4bit

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, prompt, to_messages
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.core.workspace import read_sample
from gemma_colab.evaluation import answer_losses, evaluate, generate_answers
from gemma_colab.evaluation.candidates import few_shot_turns, in_front
from gemma_colab.evaluation.compare import clearly
from gemma_colab.evaluation.knowledge import memorization
from gemma_colab.evaluation.verdict import verdict, word_for
from gemma_colab.model.choice import starting_point

pytestmark = pytest.mark.filterwarnings("ignore")
LORA, TRAIN = starting_point("tiny-gemma3")
PROBE = [to_messages({"instruction": q["question"], "output": q["answer"]}) for q in read_sample("general_probe")]
GENERAL = [to_messages(row) for row in read_sample("general_rows")]


def tuned_on(rows, tokenizer, folder, **changes):
    """The tiny Gemma 3 with an adapter that was really trained on these rows."""
    args = sft_config(TRAIN.replace(**changes), folder, len(rows), torch.float32)
    args.save_strategy, args.eval_strategy, args.load_best_model_at_end = "no", "no", False
    base = load_4bit("tiny-gemma3", torch.float32)
    trainer = build_trainer(base, tokenizer, Dataset.from_list(rows), None, args, lora_config(LORA))
    trainer.train()
    return trainer.model


def with_answer(row: dict, text: str) -> dict:
    return {"messages": [*prompt(row), {"role": "assistant", "content": text}]}


def as_json(row: dict) -> dict:
    """The same answer in a strict form, which the base model has never seen."""
    return with_answer(row, json.dumps({"answer": answer(row)}, ensure_ascii=False))


def test_a_better_model_is_called_better(tokenizer, tmp_path):
    rows = [as_json(row) for row in GENERAL]
    model = tuned_on(rows[:200], tokenizer, tmp_path, num_train_epochs=3)
    test = [as_json(row) for row in PROBE[:40]]
    found = evaluate(model, tokenizer, test, train_rows=rows, examples=2, max_new_tokens=48)
    against_base, against_few = found.compare("base"), found.compare("few-shot")
    assert word_for(against_base) == "better"
    assert {"exact match", "loss on right answers"} <= set(clearly(against_base)[0]["metric"])
    assert list(found.table().columns) == ["base", "few-shot", "tuned"]
    said = verdict(against_base, against_few, unlike=0.1)
    assert said["ship"] == "ask a reader"
    assert "Tuning beats a few examples" in str(said)
    assert verdict(against_base, against_few, unlike=0.9)["ship"] == "not yet"  # better than nothing is not good


def test_an_adapter_of_zeros_is_called_equal(tokenizer):
    model = get_peft_model(load_4bit("tiny-gemma3", torch.float32), lora_config(LORA))
    against_base = evaluate(model, tokenizer, PROBE[:40], max_new_tokens=48).compare("base")
    assert word_for(against_base) == "no clear difference"
    assert against_base["ties"].eq(40).all()
    assert verdict(against_base)["ship"] == "not yet"


def test_a_model_tuned_on_shuffled_answers_is_called_worse(tokenizer, tmp_path):
    answers = [answer(row) for row in GENERAL[:160]]
    random.Random(0).shuffle(answers)
    shuffled = [with_answer(row, text) for row, text in zip(GENERAL, answers, strict=False)]
    model = tuned_on(shuffled, tokenizer, tmp_path, num_train_epochs=2)
    against_base = evaluate(model, tokenizer, PROBE[:40], max_new_tokens=48).compare("base")
    assert word_for(against_base) == "worse"
    assert {"exact match", "loss on right answers"} <= set(clearly(against_base)[1]["metric"])
    said = verdict(against_base)
    assert said["ship"] == "no"
    assert "worse:" in said["lines"][0]


def test_a_model_made_to_memorize_is_found_out(tokenizer, tmp_path, support_rows):
    rows = [row for row in map(to_messages, support_rows) if len(answer(row)) < 140]
    splits = {"train": rows[:8], "test": rows[8:24]}
    model = tuned_on(splits["train"], tokenizer, tmp_path, num_train_epochs=60, lr_scheduler_type="cosine", learning_rate=4e-3)
    answers = {s: generate_answers(model, tokenizer, [*map(prompt, some)], max_new_tokens=96) for s, some in splits.items()}
    losses = tuple(answer_losses(model, tokenizer, some) for some in splits.values())
    table = memorization(answers, {s: [answer(row) for row in some] for s, some in splits.items()}, losses)
    assert table.loc["train", "word for word"] >= 0.5
    assert table.loc["test", "word for word"] == 0
    assert table.loc["test", "gap"] == pytest.approx(table.loc["test", "loss"] - table.loc["train", "loss"])
    assert table.loc["test", "gap"] > table.loc["test", "low"] > 1
    against_base = evaluate(model, tokenizer, splits["test"], max_new_tokens=48).compare("base")
    assert "it recites training answers" in verdict(against_base, memorized=table)["against"]


def test_all_candidates_are_one_model_and_get_the_same_rows(tokenizer):
    torch.manual_seed(0)
    model = get_peft_model(load_4bit("tiny-gemma3", torch.float32), lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    rows, options = PROBE[:3], {"train_rows": GENERAL, "max_new_tokens": 12}
    tokens = [tokenize_row(row, tokenizer)["labels"] for row in rows]
    options["max_length"] = (
        max(map(len, tokens)) - 2
    )  # the longest loses its end, and no row more of it where examples stand before it
    found = evaluate(model, tokenizer, rows, candidates=("tuned", "base"), **options)
    assert list(found.answers) == ["base", "tuned"]
    plain = evaluate(load_4bit("tiny-gemma3", torch.float32), tokenizer, rows, **options)  # no adapter: no tuned
    assert list(plain.answers) == ["base", "few-shot"]
    left = [sum(label != -100 for label in labels[: options["max_length"]]) for labels in tokens]
    assert all(left)
    assert left != [sum(label != -100 for label in labels) for labels in tokens]
    for tables in (found.answers, plain.answers):
        assert all(table["loss_tokens"].tolist() == left for table in tables.values())
    assert plain.answers["base"]["answer"].equals(found.answers["base"]["answer"])
    assert not plain.answers["base"]["answer"].equals(found.answers["tuned"]["answer"])
    assert plain.compare("base")["metric"].iloc[-1] == "loss on right answers"
    with pytest.raises(SettingsError, match=r"candidates names \['best'\], and there are base, few-shot, tuned"):
        evaluate(model, tokenizer, rows, candidates=("best",))


def test_rows_to_read_have_labels_scores_and_failure_modes(tokenizer):
    def short(predictions, references):
        """1 where the answer is short."""
        return [float(len(p) < 40) for p in predictions]

    rows = [row | {"label": "x"} for row in PROBE[:2]]
    found = evaluate(load_4bit("tiny-gemma3", torch.float32), tokenizer, rows, metrics={"base": short}, max_new_tokens=2)
    table = found.rows()
    assert list(table)[:4] == ["question", "wanted", "label", "base"]
    assert table["base, score"].tolist() == [1.0, 1.0]  # the column of the answers keeps its name
    assert table["signs"].str.contains("hit the limit").all()
    assert found.failure_modes().loc["base", "hit the limit"] == 1
    found.metrics["other"] = lambda predictions, references: [0.5, None]
    assert found.scores["base"]["other"] == [0.5, None]
    assert found.table().loc["other", "base"] == 0.5
    assert found.references == [answer(row) for row in rows]


def test_examples_stand_in_front_and_a_system_prompt_stays_first():
    rows = [to_messages({"instruction": str(n), "output": "a"}) for n in range(9)]
    turns = few_shot_turns(rows, 2)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns == few_shot_turns(rows, 2)
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    assert in_front(turns, [system, user]) == [system, *turns, user]
    with_system = [{"messages": [system, *row["messages"]]} for row in rows]
    assert few_shot_turns(with_system, 2) == turns
