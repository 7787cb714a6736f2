"""Answers in batches are those of one by one; what was answered is kept, and never mistaken for another model's."""

import json
import os

import pytest
import torch
from steps import load_4bit

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.evaluation.generation import GREEDY, SAMPLING, _keys, _read, generate, generate_answers

QUESTIONS = ["Какая столица Японии?", "Count from 3 to 6.", "Сложи 2 и 3.", "Повтори слова: кот мост лампа"]
PROMPTS = [[{"role": "user", "content": q}] for q in QUESTIONS]


@pytest.fixture(scope="module")
def tiny():
    return load_4bit("tiny-gemma3", torch.float32)


def test_batched_answers_equal_one_by_one_in_the_order_asked(tiny, tokenizer):
    batched = generate_answers(tiny, tokenizer, PROMPTS, max_new_tokens=24, batch_size=3)
    single = [generate_answers(tiny, tokenizer, [p], max_new_tokens=24)[0] for p in PROMPTS]
    assert batched == single
    assert "Токио" in batched[0]
    assert "<end_of_turn>" not in "".join(batched)


def test_the_head_multiplies_whole_tensors_and_no_hook_stays(tiny, tokenizer, monkeypatch):
    """Cut out of a larger one, a tensor costs a copy of the head for each row on a CPU: nine tenths of the time at 270M."""
    head, whole = tiny.get_output_embeddings(), []
    plain = type(head).forward
    monkeypatch.setattr(type(head), "forward", lambda self, x: whole.append(x.is_contiguous()) or plain(self, x))
    generate_answers(tiny, tokenizer, PROMPTS, max_new_tokens=4)
    assert len(whole) >= 4
    assert all(whole)
    assert not head._forward_pre_hooks


def test_tokens_are_counted_up_to_the_stop(tiny, tokenizer):
    table = generate(tiny, tokenizer, PROMPTS, max_new_tokens=24)
    assert table["finished"].all()
    for answer, tokens in zip(table["answer"], table["tokens"], strict=True):
        assert abs(tokens - len(tokenizer(answer, add_special_tokens=False)["input_ids"])) <= 1
    cut = generate(tiny, tokenizer, PROMPTS, max_new_tokens=2)
    assert not cut["finished"].any()
    assert (cut["tokens"] == 2).all()


def test_the_model_stays_in_its_mode_also_after_an_error(tiny, tokenizer, monkeypatch):
    tiny.train()
    generate_answers(tiny, tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert tiny.training
    monkeypatch.setattr(type(tiny), "generate", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_answers(tiny, tokenizer, PROMPTS[:1], max_new_tokens=2)
    assert tiny.training
    tiny.eval()


@pytest.mark.parametrize("make", [lambda path, other: path.symlink_to(other), lambda path, other: os.mkfifo(path)])
def test_answers_are_added_to_no_link_and_no_pipe(tiny, tokenizer, tmp_path, make):
    (tmp_path / "theirs").write_text("years of work")
    make(tmp_path / "answers.jsonl", tmp_path / "theirs")
    with pytest.raises(WorkspaceError, match=r"answers\.jsonl' is a link or no file, .*; name another one"):
        generate(tiny, tokenizer, PROMPTS[:1], max_new_tokens=2, save=tmp_path / "answers.jsonl")
    assert (tmp_path / "theirs").read_text() == "years of work"


class Interrupted(Exception):
    pass


def test_a_run_that_broke_goes_on_where_it_stopped(tiny, tokenizer, tmp_path, monkeypatch):
    expected = generate_answers(tiny, tokenizer, PROMPTS, max_new_tokens=24, batch_size=1)
    path, real, calls = tmp_path / "answers.jsonl", type(tiny).generate, []

    def breaks(self, **kwargs):
        if len(calls) == 2:
            raise Interrupted
        calls.append(1)
        return real(self, **kwargs)

    options = {"max_new_tokens": 24, "batch_size": 1, "save": path, "made_by": "tiny"}
    monkeypatch.setattr(type(tiny), "generate", breaks)
    with pytest.raises(Interrupted):
        generate(tiny, tokenizer, PROMPTS, **options)
    path.write_bytes(path.read_bytes()[:-5])  # the last line was cut off with the machine
    counted = []
    monkeypatch.setattr(type(tiny), "generate", lambda self, **kwargs: (counted.append(1), real(self, **kwargs))[1])
    assert generate_answers(tiny, tokenizer, PROMPTS, **options) == expected
    assert len(counted) == 3  # one of the two was whole
    assert generate_answers(tiny, tokenizer, PROMPTS, **options) == expected
    assert len(counted) == 3
    assert all(json.loads(line) for line in path.read_text().split("\n")[1:] if line.endswith("}"))


@pytest.mark.parametrize("change", [{"made_by": "another"}, {"max_new_tokens": 3}, {"sampling": SAMPLING}])
def test_answers_of_another_model_or_with_other_settings_are_not_taken(tiny, tokenizer, tmp_path, change):
    path = tmp_path / "answers.jsonl"
    options = {"max_new_tokens": 24, "save": path, "made_by": "tiny"}
    generate(tiny, tokenizer, PROMPTS[:1], **options)
    generate(tiny, tokenizer, PROMPTS[:1], **options | change)
    assert len([line for line in path.read_text().split("\n") if line]) == 2


def test_a_line_that_was_cut_inside_a_letter_loses_no_other_answer(tmp_path):
    lines = [json.dumps({"key": key, "answer": "Да", "tokens": 1, "finished": True}, ensure_ascii=False) for key in "ab"]
    whole, half = (line.encode() for line in lines)
    (tmp_path / "answers.jsonl").write_bytes(whole + b"\n" + half[: half.index("Д".encode()) + 1])
    assert list(_read(tmp_path / "answers.jsonl")) == ["a"]
    with open(tmp_path / "answers.jsonl", "a") as file:
        file.write("\n" + "[" * 100_000 + "]" * 100_000)
    assert list(_read(tmp_path / "answers.jsonl")) == ["a"]


def test_answers_that_an_older_version_kept_are_found():
    assert _keys([[2, 5], [2, 5]], "tiny-gemma3 True float32", 24, GREEDY) == [
        "e5eac980045b477a12f0750a6cae89ab",
        "be31607695abf6e16894fd18b2f98b73",
    ]


def test_sampling_is_by_chance_and_repeatable(tiny, tokenizer):
    prompt = [[{"role": "user", "content": "Расскажи что-нибудь"}]] * 4
    hot = SAMPLING | {"temperature": 5.0}  # the tiny model is very sure of itself
    torch.manual_seed(1)
    first = generate_answers(tiny, tokenizer, prompt, max_new_tokens=16, sampling=hot)
    torch.manual_seed(1)
    assert generate_answers(tiny, tokenizer, prompt, max_new_tokens=16, sampling=hot) == first
    assert len(set(first)) > 1
