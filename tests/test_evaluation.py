"""Generation, loss, metrics, paired statistics, forgetting, the adapter's way out and back."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from gemma_colab.chat import to_chat, tokenize_chat
from gemma_colab.errors import WorkspaceError
from gemma_colab.evaluation.compare import compare, paired_bootstrap
from gemma_colab.evaluation.forgetting import probe
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import answer_losses, mean_loss
from gemma_colab.evaluation.metrics import contains_answer, exact_match, order_number_kept, token_f1
from gemma_colab.export.adapter import load_adapter, save_adapter
from gemma_colab.model.loading import load_4bit
from gemma_colab.model.lora import lora_config
from gemma_colab.settings import LoraSettings


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


QUESTIONS = ["Какая столица Японии?", "Count from 3 to 6.", "Сложи 2 и 3.", "Повтори слова: кот мост лампа"]


def test_batched_answers_equal_one_by_one_in_the_order_asked(tiny, tokenizer):
    prompts = [[{"role": "user", "content": q}] for q in QUESTIONS]
    batched = generate_answers(tiny, tokenizer, prompts, max_new_tokens=24, batch_size=3)
    single = [generate_answers(tiny, tokenizer, [p], max_new_tokens=24)[0] for p in prompts]
    assert batched == single
    assert "Токио" in batched[0]
    assert "<end_of_turn>" not in "".join(batched)


def test_generation_leaves_the_model_in_its_mode(tiny, tokenizer):
    tiny.train()
    generate_answers(tiny, tokenizer, [[{"role": "user", "content": "x"}]], max_new_tokens=2)
    assert tiny.training
    tiny.eval()


def test_answer_loss_is_the_cross_entropy_of_the_answer_tokens(random_gemma, tokenizer, support_rows):
    model = AutoModelForCausalLM.from_pretrained(random_gemma, dtype=torch.float32).eval()
    chats = [to_chat(row) for row in support_rows[:7]]
    ours = answer_losses(model, tokenizer, chats, batch_size=3)
    for chat, (loss, tokens) in zip(chats, ours.to_numpy(), strict=True):
        row = tokenize_chat(chat, tokenizer)
        with torch.no_grad():
            reference = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        assert loss / tokens == pytest.approx(reference.item(), rel=1e-4)
        assert tokens == sum(label != -100 for label in row["labels"])
    assert mean_loss(ours) == pytest.approx(ours["loss"].sum() / ours["tokens"].sum())


def test_answer_loss_sees_the_adapter_and_its_absence(random_gemma, tokenizer, support_rows):
    model, chats = adapted(random_gemma), [to_chat(row) for row in support_rows[:4]]
    with model.disable_adapter():
        base = mean_loss(answer_losses(model, tokenizer, chats))
    assert base == pytest.approx(mean_loss(answer_losses(load_4bit(random_gemma, torch.float32), tokenizer, chats)), rel=1e-5)
    assert mean_loss(answer_losses(model, tokenizer, chats)) != pytest.approx(base, rel=1e-3)


def test_metrics():
    assert exact_match(["да ", "нет"], ["да", "да"]) == [1.0, 0.0]
    assert token_f1(["Заказ в пути", "", "раз"], ["заказ уже в пути", "а", "два"]) == [pytest.approx(6 / 7), 0.0, 0.0]
    assert order_number_kept(
        ["Заказ №12345 едет", "Заказ №12354", "Заказ №123456", "№12345 и №99999", "Да"],
        ["№12345", "№12345", "№12345", "№12345", "Номера нет"],
    ) == [1.0, 0.0, 0.0, 0.0, None]
    assert contains_answer(["Это ёлка.", "Столица — Париж!", "13"], ["елка", "париж", "3"]) == [1.0, 1.0, 0.0]


def test_paired_bootstrap_covers_the_truth():
    rng, hits, trials = np.random.default_rng(1), 0, 200
    for _ in range(trials):
        before = rng.normal(0, 1, 60)
        _, low, high = paired_bootstrap(before, before + rng.normal(0.3, 1, 60), resamples=400, seed=int(rng.integers(1 << 30)))
        hits += low <= 0.3 <= high
    assert 0.89 <= hits / trials <= 0.99


def test_paired_bootstrap_weights_tokens_and_is_seeded():
    difference, low, high = paired_bootstrap([10.0, 40.0], [5.0, 20.0], weights=[5, 10])
    assert difference == pytest.approx(-25 / 15)
    assert low <= difference <= high
    assert paired_bootstrap([1, 2, 3], [2, 2, 5]) == paired_bootstrap([1, 2, 3], [2, 2, 5])


def test_compare_says_when_there_is_too_little_to_tell():
    table = compare(
        {
            "better": ([0.0] * 30, [1.0] * 30),
            "few": ([0.0] * 5, [1.0] * 5),
            "same": ([1.0, 0.0] * 10, [1.0, 0.0] * 10),
            "none": ([None], [None]),
        }
    )
    assert dict(zip(table["metric"], table["clear"], strict=True)) == {"better": "yes", "few": "too few rows", "same": "no"}


def test_probe_scores_general_questions(tiny, tokenizer):
    questions = [
        {"kind": "capital", "language": "ru", "question": "Какая столица Японии?", "key": "Токио"},
        {"kind": "capital", "language": "ru", "question": "Какая столица Японии?", "key": "Париж"},
    ]
    assert list(probe(tiny, tokenizer, questions)["right"]) == [1.0, 0.0]


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
