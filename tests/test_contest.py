"""Planted cases with real models: better, equal, worse, learnt by heart. Each must be called what it is."""

import json
import random

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from gemma_colab.core.loading import load_4bit
from gemma_colab.core.lora import lora_config
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, starting_point
from gemma_colab.core.trainer import build_trainer, sft_config
from gemma_colab.core.workspace import samples
from gemma_colab.evaluation import contest
from gemma_colab.evaluation.compare import improved, worsened
from gemma_colab.evaluation.contest import Contestant, comparison, few_shot_turns, in_front, play
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import answer_losses
from gemma_colab.evaluation.memorisation import learnt_by_heart, loss_gap, memorisation
from gemma_colab.evaluation.metrics import USUAL
from gemma_colab.evaluation.verdict import verdict, word_for
from gemma_colab.training.replay import general_chats

pytestmark = pytest.mark.filterwarnings("ignore")
LORA, TRAIN = starting_point("tiny-gemma3")


def probe_chats():
    lines = (samples() / "general_probe.jsonl").read_text(encoding="utf-8").splitlines()
    return [to_messages({"instruction": q["question"], "input": "", "output": q["answer"]}) for q in map(json.loads, lines)]


def tuned_on(chats, tokenizer, folder, **changes):
    """The tiny Gemma 3 with an adapter that was really trained on these rows."""
    settings = TRAIN.replace(**changes)
    args = sft_config(settings, folder, len(chats), torch.float32)
    args.save_strategy, args.eval_strategy, args.load_best_model_at_end = "no", "no", False
    trainer = build_trainer(
        load_4bit("tiny-gemma3", torch.float32), tokenizer, Dataset.from_list(chats), None, args, lora_config(LORA)
    )
    trainer.train()
    return trainer.model


def compared(model, tokenizer, chats, examples=()):
    """(tuned against base, tuned against few-shot) on these rows."""
    players = {"base": Contestant(), "few-shot": Contestant(examples=tuple(examples)), "tuned": Contestant(adapter=True)}
    tables = play(model, tokenizer, chats, players, max_new_tokens=48)
    scored = contest.scores(tables, [chat["completion"][0]["content"] for chat in chats], USUAL)
    return comparison(tables, scored, "base"), comparison(tables, scored, "few-shot")


def as_json(chat: dict) -> dict:
    """The same answer in a strict form, which the base model has never seen."""
    text = json.dumps({"answer": chat["completion"][0]["content"]}, ensure_ascii=False)
    return chat | {"completion": [{"role": "assistant", "content": text}]}


def test_a_better_model_is_called_better(tokenizer, tmp_path):
    model = tuned_on([as_json(chat) for chat in general_chats()[:200]], tokenizer, tmp_path, num_train_epochs=3)
    test = [as_json(chat) for chat in probe_chats()[:40]]
    against_base, against_few = compared(model, tokenizer, test, few_shot_turns([as_json(c) for c in general_chats()], 2))
    assert word_for(against_base) == "better"
    assert {"exact match", "loss on right answers"} <= set(improved(against_base)["metric"])
    said = verdict(against_base, against_few, alike=0.9)
    assert said.ship == "ask a reader"
    assert "Tuning beats a few examples" in str(said)
    assert verdict(against_base, against_few, alike=0.1).ship == "not yet"  # better than nothing is not good


def test_an_adapter_of_zeros_is_called_equal(tokenizer):
    model = get_peft_model(load_4bit("tiny-gemma3", torch.float32), lora_config(LORA))
    against_base, _ = compared(model, tokenizer, probe_chats()[:40])
    assert word_for(against_base) == "no clear difference"
    assert against_base["ties"].eq(40).all()
    assert verdict(against_base).ship == "not yet"


def test_a_model_tuned_on_shuffled_answers_is_called_worse(tokenizer, tmp_path):
    chats = general_chats()[:160]
    answers = [chat["completion"] for chat in chats]
    random.Random(0).shuffle(answers)
    shuffled = [chat | {"completion": answer} for chat, answer in zip(chats, answers, strict=True)]
    model = tuned_on(shuffled, tokenizer, tmp_path, num_train_epochs=2)
    against_base, _ = compared(model, tokenizer, probe_chats()[:40])
    assert word_for(against_base) == "worse"
    assert {"exact match", "loss on right answers"} <= set(worsened(against_base)["metric"])
    said = verdict(against_base)
    assert said.ship == "no"
    assert "worse:" in said.lines[0]


def test_a_model_made_to_memorise_is_found_out(tokenizer, tmp_path, support_rows):
    chats = [to_messages(row) for row in support_rows if len(row["messages"][-1]["content"]) < 140]
    train, test = chats[:8], chats[8:24]
    model = tuned_on(train, tokenizer, tmp_path, num_train_epochs=60, lr_scheduler_type="cosine", learning_rate=4e-3)
    parts = {"train": train, "test": test}
    answers = {p: generate_answers(model, tokenizer, [c["prompt"] for c in rows], max_new_tokens=96) for p, rows in parts.items()}
    table = memorisation(answers, {part: [chat["completion"][0]["content"] for chat in rows] for part, rows in parts.items()})
    assert table.loc["train", "word for word"] >= 0.5
    assert table.loc["test", "word for word"] == 0
    assert learnt_by_heart(table)
    gap, low, _ = loss_gap(*(answer_losses(model, tokenizer, rows) for rows in (train, test)))
    assert gap > low > 1
    against_base, _ = compared(model, tokenizer, test)
    assert "reproduces" in str(verdict(against_base, memorised=table))


def test_all_contestants_are_one_model_and_get_the_same_rows(tokenizer, support_rows):
    torch.manual_seed(0)
    model = get_peft_model(load_4bit("tiny-gemma3", torch.float32), lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    chats = probe_chats()[:3]
    players = {"base": Contestant(), "tuned": Contestant(adapter=True)}
    tables = play(model, tokenizer, chats, players, max_new_tokens=12)
    plain = generate_answers(load_4bit("tiny-gemma3", torch.float32), tokenizer, [c["prompt"] for c in chats], max_new_tokens=12)
    assert list(tables["base"]["answer"]) == plain
    assert list(tables["tuned"]["answer"]) != plain
    assert (tables["base"]["loss_tokens"] == tables["tuned"]["loss_tokens"]).all()


def test_examples_stand_in_front_and_a_system_prompt_stays_first():
    chats = [
        {"prompt": [{"role": "user", "content": str(n)}], "completion": [{"role": "assistant", "content": "a"}]} for n in range(9)
    ]
    turns = few_shot_turns(chats, 2)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert turns == few_shot_turns(chats, 2)
    assert few_shot_turns(chats, 2, seed=1) != turns
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    assert in_front(turns, [system, user]) == [system, *turns, user]
    with_system = [chat | {"prompt": [system, *chat["prompt"]]} for chat in chats]
    assert few_shot_turns(with_system, 2) == turns
