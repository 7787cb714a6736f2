"""Loss, forgetting, the adapter's way out and back."""

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model
from steps import load_4bit
from transformers import AutoModelForCausalLM

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import read_sample
from gemma_colab.evaluation import general_knowledge, knowledge
from gemma_colab.evaluation.compare import clearly
from gemma_colab.evaluation.knowledge import GeneralKnowledge
from gemma_colab.evaluation.loss import answer_losses, mean_loss, perplexity, text_losses
from gemma_colab.export.adapter import load_adapter, save_adapter

TEXTS = read_sample("neutral_text")


@pytest.fixture(scope="module")
def tiny():
    return load_4bit("tiny-gemma3", torch.float32)


def adapted(folder, seed=0):
    torch.manual_seed(seed)
    model = get_peft_model(load_4bit(folder, torch.float32), lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_answer_loss_is_the_cross_entropy_of_the_answer_tokens(random_gemma, tokenizer, support_rows):
    model = AutoModelForCausalLM.from_pretrained(random_gemma, dtype=torch.float32).eval()
    chats = [to_messages(row) for row in support_rows[:7]]
    ours = answer_losses(model, tokenizer, chats, batch_size=3)
    for chat, (loss, tokens) in zip(chats, ours.to_numpy(), strict=True):
        row = tokenize_row(chat, tokenizer)
        with torch.no_grad():
            reference = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        assert loss / tokens == pytest.approx(reference.item(), rel=1e-4)
        assert tokens == sum(label != -100 for label in row["labels"])
    assert mean_loss(ours) == pytest.approx(ours["loss"].sum() / ours["tokens"].sum())
    assert mean_loss(pd.DataFrame({"loss": [2.0], "tokens": [1]})) == 2.0
    rows = [tokenize_row(chat, tokenizer) for chat in chats]
    limit = len(rows[0]["input_ids"]) - 5
    for row, (loss, tokens) in zip(rows, answer_losses(model, tokenizer, chats, max_length=limit).to_numpy(), strict=True):
        ids, labels = (torch.tensor([values[:limit]]) for values in row.values())
        assert tokens == (labels != -100).sum()
        with torch.no_grad():
            assert loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item() * tokens if tokens else 0.0, rel=1e-4)


def test_answer_loss_sees_the_adapter_and_its_absence(random_gemma, tokenizer, support_rows):
    model, chats = adapted(random_gemma), [to_messages(row) for row in support_rows[:4]]
    with model.disable_adapter():
        base = mean_loss(answer_losses(model, tokenizer, chats))
    assert base == pytest.approx(mean_loss(answer_losses(load_4bit(random_gemma, torch.float32), tokenizer, chats)), rel=1e-5)
    assert mean_loss(answer_losses(model, tokenizer, chats)) != pytest.approx(base, rel=1e-3)


def asked_only(monkeypatch, *questions):
    monkeypatch.setattr(knowledge, "read_sample", lambda name: list(questions) if name == "general_probe" else TEXTS[:1])


def test_general_questions_are_scored(tiny, tokenizer, monkeypatch):
    capital = {"kind": "capital", "language": "ru", "question": "Какая столица Японии?"}
    asked_only(monkeypatch, capital | {"key": "Токио"}, capital | {"key": "Париж"})
    found = general_knowledge(tiny, tokenizer)
    assert list(found.questions["right"]) == [1.0, 0.0]
    assert found.summary()["general questions right"] == 0.5
    assert found.summary()["loss on neutral text"] == pytest.approx(found.texts["loss"][0] / found.texts["tokens"][0])


def test_general_questions_are_asked_as_told_and_kept_with_their_kind(tiny, tokenizer, monkeypatch):
    asked = []

    def answered(model, tokenizer, prompts, **options):
        asked.append((prompts, options))
        return ["Токио"] * len(prompts)

    monkeypatch.setattr(knowledge, "generate_answers", answered)
    probe = [{"kind": f"k{n}", "language": "ru", "question": f"q{n}", "key": "Токио"} for n in range(5)]
    asked_only(monkeypatch, *probe)
    found = general_knowledge(tiny, tokenizer, every=2, batch_size=3)
    (prompts, options) = asked[0]
    assert prompts == [[{"role": "user", "content": f"q{n}"}] for n in (0, 2, 4)]
    assert options == {"max_new_tokens": 48, "description": "general questions", "batch_size": 3}
    assert list(found.questions.columns) == ["kind", "language", "question", "answer", "right"]
    assert found.questions.iloc[1].tolist() == ["k2", "ru", "q2", "Токио", 1.0]
    assert list(found.texts.columns) == ["loss", "tokens", "language"]
    assert found.texts["language"].tolist() == [TEXTS[0]["language"]]
    general_knowledge(tiny, tokenizer, max_new_tokens=5)
    assert (len(asked[1][0]), asked[1][1]["max_new_tokens"]) == (5, 5)


def test_knowledge_is_compared_by_language():
    def known(right, loss):
        languages = ["ru"] * 12 + ["en"] * 12
        questions = pd.DataFrame({"language": languages, "right": right})
        return GeneralKnowledge(questions, pd.DataFrame({"language": languages, "loss": loss, "tokens": [10] * 12 + [5] * 12}))

    before, after = known([1.0] * 24, [20.0] * 24), known([1.0] * 12 + [0.0] * 12, [30.0] * 12 + [10.0] * 12)
    table = after.compare(before).set_index("metric")
    assert table["better"].tolist() == ["higher", "higher", "lower", "lower"]
    assert table["before"].tolist() == [1, 1, 2, 4]
    assert table["after"].tolist() == [1, 0, 3, 2]
    assert after.summary() == {"general questions right": 0.5, "loss on neutral text": 480 / 180}


def test_of_a_conversation_the_last_answer_counts(random_gemma, tokenizer):
    turns = [("user", "Привет"), ("assistant", "Здравствуйте"), ("user", "Где заказ?"), ("assistant", "В пути")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    model = AutoModelForCausalLM.from_pretrained(random_gemma, dtype=torch.float32).train()
    losses = answer_losses(model, tokenizer, [row])
    labels = tokenize_row(row, tokenizer, last_answer_only=True)["labels"]
    assert losses["tokens"].tolist() == [sum(label != -100 for label in labels)]
    assert list(losses.columns) == ["loss", "tokens"]
    assert model.training
    assert mean_loss(pd.DataFrame({"loss": [], "tokens": []})) == 0
    assert np.isnan(mean_loss(pd.DataFrame({"loss": [1.0, np.nan], "tokens": [1, 1]})))
    assert perplexity(pd.DataFrame({"loss": [9e9], "tokens": [1]})) == np.exp(700.0)


def test_who_repeats_the_question_is_not_right(tiny, tokenizer, monkeypatch):
    question = "Слово «ель» означает растение или животное?"
    stray = question[:-1] + "user"  # as the base of 270M does
    answers = [question, f"{question}\nuser {question}", stray, "Растение."]
    monkeypatch.setattr(knowledge, "generate_answers", lambda *a, **k: answers)
    asked_only(monkeypatch, *[{"kind": "k", "language": "ru", "question": question, "key": "растение"}] * len(answers))
    assert list(general_knowledge(tiny, tokenizer).questions["right"]) == [0.0, 0.0, 0.0, 1.0]


def test_text_loss_is_that_of_every_token_but_bos(random_gemma, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(random_gemma, dtype=torch.float32).eval()
    texts = ["Утром над рекой стоял туман.", "Bread needs flour and water, and time to rise."]
    ours = text_losses(model, tokenizer, texts)
    for text, (loss, tokens) in zip(texts, ours.to_numpy(), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            reference = model(input_ids=ids, labels=ids).loss
        assert loss / tokens == pytest.approx(reference.item(), rel=1e-4)
        assert tokens == ids.shape[1] - 1
    assert perplexity(ours) == pytest.approx(np.exp(mean_loss(ours)))


def test_what_was_forgotten_is_named(tiny, tokenizer):
    found = general_knowledge(tiny, tokenizer, every=6)
    assert (len(found.questions), len(found.texts)) == (20, 40)
    same = found.compare(found)
    assert list(same["metric"]) == [
        f"{what}, {lang}" for what in ("general questions right", "loss on neutral text") for lang in ("ru", "en")
    ]
    assert len(clearly(same)[1]) == 0
    found = GeneralKnowledge(pd.concat([found.questions.assign(right=1.0)] * 2), found.texts)
    worse = GeneralKnowledge(found.questions.assign(right=0.0), found.texts.assign(loss=found.texts["loss"] * 1.5))
    assert list(clearly(worse.compare(found))[1]["metric"]) == list(same["metric"])
    assert len(clearly(found.compare(worse))[1]) == 0


def test_adapter_comes_back_with_the_same_answers(random_gemma, tokenizer, workspace):
    model = adapted(random_gemma)
    ids = torch.tensor([tokenizer("Привет")["input_ids"]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
    path = save_adapter(model, tokenizer, workspace)
    assert {f.name for f in path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"}
    assert not [f for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]
    with torch.no_grad():
        again = load_adapter(load_4bit(random_gemma, torch.float32), workspace).eval()(input_ids=ids).logits
    torch.testing.assert_close(again, expected)


def test_adapter_of_another_base_is_refused(random_gemma, tokenizer, workspace, tiny):
    save_adapter(adapted(random_gemma), tokenizer, workspace)
    with pytest.raises(WorkspaceError, match="doesn't fit this base model"):
        load_adapter(load_4bit("tiny-gemma3", torch.float32), workspace)


def test_missing_adapter_is_named(workspace, tiny):
    with pytest.raises(WorkspaceError, match="run notebook 04_train first"):
        load_adapter(tiny, workspace)
