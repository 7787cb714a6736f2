"""The chat panel with plain functions, and the two candidates behind it with a real model and adapter."""

import pytest
import torch

from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.evaluation.generation import chat_candidates
from gemma_colab.ui import ChatPanel

EVIL = "<img src=x onerror='alert(1)'> </div><b>жирный</b> **звёзды** {{ 7 * 7 }}"


def counting(name):
    return lambda turns: f"{name} {len(turns)}"


def test_each_candidate_has_its_own_history():
    heard = []

    def tuned(turns):
        heard.append(turns)
        return f"tuned {len(turns)}"

    panel = ChatPanel({"base": counting("base"), "tuned": tuned})
    panel.line.value = "привет\n"
    assert panel.line.value == ""
    panel.line.value = "как дела"
    panel.send.click()
    assert heard[1] == [
        {"role": "user", "content": "привет"},
        {"role": "assistant", "content": "tuned 1"},
        {"role": "user", "content": "как дела"},
    ]
    assert [turn["content"] for turn in panel.turns("base")] == ["привет", "base 1", "как дела", "base 3"]
    assert "base 3" in panel.columns["base"].value
    assert "tuned" not in panel.columns["base"].value
    assert "answered in: base" in panel.message.value


def test_it_says_whom_it_is_asking_and_shows_answers_as_they_come():
    seen = []

    def watch(turns):
        seen.append((panel.message.value, panel.columns["base"].value, panel.line.value))
        return "да"

    panel = ChatPanel({"base": watch, "tuned": watch})
    panel.line.value = "ну?\n"
    assert "asking base… (1 of 2)" in seen[0][0]
    assert "ну?" in seen[0][1]
    assert "asking tuned… (2 of 2)" in seen[1][0]
    assert "да" in seen[1][1]
    assert {line for _, _, line in seen} == {""}


def test_a_failure_is_one_sentence_and_leaves_the_talk_usable():
    asked = []

    def base(turns):
        asked.append(turns)
        if turns[-1]["content"] == "упади":
            raise ValueError("no <b>memory</b>\nand a long tail")
        if turns[-1]["content"] == "молчи":
            raise RuntimeError
        return "да"

    panel = ChatPanel({"base": base, "tuned": counting("tuned")})
    for text in ("раз", "упади", "молчи", "два"):
        panel.ask(text)
    assert [turn["content"] for turn in asked[-1]] == ["раз", "да", "два"]  # user and assistant still alternate
    assert "No answer:</b> no &lt;b&gt;memory&lt;/b&gt;" in panel.columns["base"].value
    assert "long tail" not in panel.columns["base"].value
    assert "RuntimeError" in panel.columns["base"].value
    assert len(panel.turns("tuned")) == 8


def test_the_stop_button_stops_the_round():
    def stop(turns):
        raise KeyboardInterrupt

    panel = ChatPanel({"base": stop, "tuned": counting("tuned")})
    panel.ask("долго?")
    assert "base, tuned did not answer" in panel.message.value
    assert panel.turns("tuned") == []
    assert "stopped" in panel.columns["tuned"].value


def test_texts_are_shown_and_never_run():
    panel = ChatPanel({EVIL: lambda turns: EVIL, "tuned": lambda turns: ""})
    panel.ask(EVIL)
    html = panel.columns[EVIL].value + panel.message.value
    assert "<img" not in html
    assert "<b>жирный" not in html
    assert html.count("**звёзды** {{ 7 * 7 }}") == 4  # name, question, answer, and the time it took
    assert "(empty)" in panel.columns["tuned"].value


def test_clear_and_nothing_to_send():
    panel = ChatPanel({"base": counting("base")})
    panel.send.click()
    assert "Nothing to send:" in panel.message.value
    panel.ask("раз")
    panel.line.value = "недописанное"
    panel.clear.click()
    assert (panel.turns("base"), panel.line.value, panel.message.value) == ([], "", "")
    assert "Nothing said yet" in panel.columns["base"].value
    with pytest.raises(SettingsError, match="at least one"):
        ChatPanel({})


def test_several_lines_pasted_are_one_message_and_what_is_typed_too_early_is_not_said_twice():
    panel = ChatPanel({"base": counting("base")})
    panel.line.value = "первая\nвторая"
    assert panel.turns("base") == []
    for text in ("первая\nвторая\n", "первая\nвторая\nтретья\n"):  # the browser had not heard of the empty line yet
        panel.line.value = text
    assert [turn["content"] for turn in panel.turns("base")[::2]] == ["первая\nвторая", "третья"]


# ------------------------------------------------------------------------------------------ a real model
@pytest.fixture(scope="module")
def tuned_model(random_gemma):
    """A random Gemma 3 with a random adapter that does something."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(random_gemma)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.train()
    return model


TURNS = [{"role": "user", "content": "Где мой заказ?"}]


def test_base_is_the_model_without_its_adapter(tuned_model, tokenizer):
    from transformers import AutoModelForCausalLM

    panel = ChatPanel(tuned_model, tokenizer, max_new_tokens=8, do_sample=False)
    panel.ask(TURNS[0]["content"])
    base, tuned = (panel.turns(name)[1]["content"] for name in ("base", "tuned"))
    assert base != tuned
    plain = AutoModelForCausalLM.from_pretrained(tuned_model.peft_config["default"].base_model_name_or_path)
    batch = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = plain.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert base == tokenizer.decode(out, skip_special_tokens=True).strip()
    assert tuned_model.training  # as it was


def test_sampling_repeats_with_its_seed_and_leaves_the_random_state_alone(tuned_model, tokenizer):
    one, same, other = (chat_candidates(tuned_model, tokenizer, max_new_tokens=12, seed=seed)["tuned"] for seed in (1, 1, 2))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = one(TURNS)
    assert torch.equal(torch.rand(1), expected)
    assert same(TURNS) == first
    assert one(TURNS) == first
    assert other(TURNS) != first


def test_both_start_from_the_same_seed_under_the_same_settings(tuned_model, tokenizer):
    """With an adapter that does nothing, both say the same."""
    added = [p for name, p in tuned_model.named_parameters() if "lora_B" in name]
    before = [p.detach().clone() for p in added]
    with torch.no_grad():
        for p in added:
            p.zero_()
        answers = [ask(TURNS) for ask in chat_candidates(tuned_model, tokenizer, max_new_tokens=12).values()]
        for p, old in zip(added, before, strict=True):
            p.copy_(old)
    assert answers[0] == answers[1]


def test_a_model_without_an_adapter_is_refused(tokenizer):
    with pytest.raises(ModelError, match="model=Linear has no adapter;"):
        chat_candidates(torch.nn.Linear(1, 1), tokenizer, max_new_tokens=12)
