"""A real SFTTrainer on a small real Gemma 3."""

import copy
import dataclasses

import pytest
import torch
from datasets import Dataset
from steps import emulate_fp16, load_4bit, plain_losses
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from gemma_colab.core import trainer as trainer_module
from gemma_colab.core.chat import tokenize_row, with_template
from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import ModelError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, score_answers_only, sft_config
from gemma_colab.evaluation.loss import answer_losses, mean_loss

SETTINGS = TrainSettings(
    learning_rate=5e-3, per_device_train_batch_size=4, gradient_accumulation_steps=1, num_train_epochs=2, warmup_steps=0
)


@pytest.fixture(scope="module")
def chats(support_rows):
    return [to_messages(row) for row in support_rows[1:33]]


def make(folder, chats, tokenizer, output_dir, settings=SETTINGS, callbacks=None):
    train, validation = Dataset.from_list(chats[:24]), Dataset.from_list(chats[24:])
    args = sft_config(settings, output_dir, len(train), torch.float32)
    return build_trainer(
        load_4bit(folder, torch.float32), tokenizer, train, validation, args, lora_config(LoraSettings(r=8)), callbacks
    )


def test_the_trainer_is_native_and_moves_only_the_adapter(random_gemma, chats, tokenizer, tmp_path):
    trainer = make(random_gemma, chats, tokenizer, tmp_path)
    assert type(trainer) is SFTTrainer
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    history = history_table(trainer.state.log_history)
    assert history["loss"].dropna().iloc[-1] < history["loss"].dropna().iloc[0]
    assert len(history["eval_loss"].dropna()) == 4  # twice an epoch
    assert trainer.state.best_model_checkpoint


def test_only_answers_are_trained(random_gemma, chats, tokenizer, tmp_path):
    trainer = make(random_gemma, chats, tokenizer, tmp_path)
    for chat, fed in zip(chats, trainer.train_dataset, strict=False):
        assert {"input_ids": fed["input_ids"], "labels": fed["labels"]} == tokenize_row(chat, tokenizer)


TALK = [
    ("system", "Будь краток."),
    ("user", "Где заказ?"),
    ("assistant", "В пути 🙂"),
    ("user", "Когда?"),
    ("assistant", " Завтра.\n"),
]


@pytest.mark.parametrize("last_answer_only", [False, True])
def test_all_answers_of_a_conversation_are_trained_unless_the_last_is_asked_for(
    random_gemma, tokenizer, tmp_path, last_answer_only
):
    row = {"messages": [{"role": role, "content": text} for role, text in TALK], "line": 3, "label": "where"}
    settings = SETTINGS.replace(last_answer_only=last_answer_only)
    fed = make(random_gemma, [row] * 32, tokenizer, tmp_path, settings).train_dataset[0]
    assert {"input_ids": fed["input_ids"], "labels": fed["labels"]} == tokenize_row(row, tokenizer, last_answer_only)
    trained = tokenizer.decode([label for label in fed["labels"] if label != -100])
    assert trained == "В пути 🙂<end_of_turn>\n" * (not last_answer_only) + "Завтра.<end_of_turn>\n"


@pytest.mark.parametrize("last_answer_only", [False, True])
def test_an_answer_that_is_not_to_be_learned_is_read_only(random_gemma, tokenizer, tmp_path, last_answer_only):
    """By TRL itself, through the trainer; among rows without such an answer."""
    usual = {"messages": [{"role": role, "content": text} for role, text in TALK]}
    row = {"messages": [turn | {"role": "model", "weight": 0} if i == 2 else turn for i, turn in enumerate(usual["messages"])]}
    settings = SETTINGS.replace(last_answer_only=last_answer_only)
    fed, beside = make(random_gemma, [row, usual] * 16, tokenizer, tmp_path, settings).train_dataset.select([0, 1])
    assert fed["input_ids"] == beside["input_ids"]
    assert {"input_ids": fed["input_ids"], "labels": fed["labels"]} == tokenize_row(row, tokenizer, last_answer_only)
    assert tokenizer.decode([label for label in fed["labels"] if label != -100]) == "Завтра.<end_of_turn>\n"


def test_another_spelling_of_the_template_is_trained_and_another_template_refused(random_gemma, chats, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{# as somebody's copy has it #}" + tokenizer.chat_template
    with pytest.raises(ModelError, match="last_answer_only=True"):
        make(random_gemma, chats, own, tmp_path)
    fed = make(random_gemma, chats, with_template(own), tmp_path).train_dataset[0]  # as it was loaded
    assert fed["labels"] == tokenize_row(chats[0], tokenizer)["labels"]
    own.chat_template = other = tokenizer.chat_template.replace("<start_of_turn>", "<start_of_turn>the ")
    assert with_template(own).chat_template == other
    with pytest.raises(ModelError, match="last_answer_only=True"):
        make(random_gemma, chats, own, tmp_path)
    fed = make(random_gemma, chats, own, tmp_path, SETTINGS.replace(last_answer_only=True)).train_dataset[0]
    assert {"input_ids": fed["input_ids"], "labels": fed["labels"]} == tokenize_row(chats[0], own)


def as_trl_ships_it(monkeypatch):
    """TRL's loss without `score_answers_only`, which stays in force once a trainer was built on a CPU."""
    monkeypatch.setattr(trl_utils, "_use_triton", trainer_module._USE_TRITON)
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32_768)


def test_scoring_answers_only_changes_neither_loss_nor_gradients(random_gemma, chats, tokenizer, tmp_path, monkeypatch):
    trainer = make(random_gemma, chats, tokenizer, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    scored = []
    plain_function = trl_utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl_utils._ChunkedLogProbFunction, "apply", lambda hidden, *a: scored.append(len(hidden)) or plain_function(hidden, *a)
    )

    def step():
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        return loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}

    ours, our_gradients = step()
    as_trl_ships_it(monkeypatch)
    trls, trls_gradients = step()
    assert scored == [(batch["labels"][:, 1:] != -100).sum(), batch["labels"][:, 1:].numel()]
    torch.testing.assert_close(ours, trls, rtol=1e-6, atol=0)
    assert sum(gradient.abs().sum() for gradient in our_gradients.values()) > 0
    torch.testing.assert_close(our_gradients, trls_gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["_use_triton", "_CHUNKED_LOGPROB_CHUNK_SIZE"])
def test_a_trl_without_these_names_is_left_as_it_is(name, monkeypatch):
    as_trl_ships_it(monkeypatch)
    monkeypatch.delattr(trl_utils, name)
    monkeypatch.setattr(trainer_module, "_USE_TRITON", getattr(trl_utils, "_use_triton", None))
    before = dict(vars(trl_utils))
    assert score_answers_only() is False
    assert dict(vars(trl_utils)) == before


def test_losses_equal_those_of_plain_trl(random_gemma, chats, tokenizer, tmp_path, monkeypatch):
    ours = make(random_gemma, chats, tokenizer, tmp_path / "ours", SETTINGS.replace(num_train_epochs=1))
    ours.train()
    as_trl_ships_it(monkeypatch)
    theirs = plain_losses(
        load_4bit(random_gemma, torch.float32), tokenizer, chats[:24], 8, tmp_path / "plain", num_train_epochs=1
    )
    assert len(theirs) == 6
    assert [line["loss"] for line in ours.state.log_history if "loss" in line] == pytest.approx(theirs, abs=1e-5)


def test_sft_config_follows_the_settings(tmp_path):
    settings = TrainSettings(num_train_epochs=3, evals_per_epoch=2, lr_scheduler_type="cosine", max_length=77)
    args = sft_config(settings, tmp_path, rows=100, dtype=torch.float32)
    assert type(args) is SFTConfig
    others = settings.replace(weight_decay=0.25, max_grad_norm=0.5, learning_rate=3e-3, seed=7, packing=True, warmup_steps=9)
    others = others.replace(
        optim="adamw_8bit", neftune_noise_alpha=4.0, gradient_checkpointing=False, gradient_accumulation_steps=5
    )
    made = sft_config(others, tmp_path, rows=100, dtype=torch.float32)
    for name, value in dataclasses.asdict(others).items():
        if name not in ("evals_per_epoch", "early_stopping_patience", "save_minutes", "replay", "last_answer_only"):  # our own
            assert getattr(made, name) == value, name
    assert args.eval_steps == args.save_steps == 7  # twice in 13 steps
    assert (args.max_length, args.lr_scheduler_type) == (77, "cosine")
    assert args.report_to in ([], ["none"], "none")


@pytest.mark.parametrize(("dtype", "flags"), [(torch.float32, (0, 0)), (torch.float16, (1, 0)), (torch.bfloat16, (0, 1))])
def test_sft_config_computes_in_the_precision_of_the_model(tmp_path, dtype, flags):
    args = sft_config(TrainSettings(), tmp_path, rows=100, dtype=dtype)
    assert (args.fp16, args.bf16) == flags


def test_training_in_float16_follows_float32(hot_gemma, chats, tokenizer, tmp_path):
    """CUDA's mixed precision with its GradScaler, as on a T4, emulated on the CPU: finite, and close to float32."""
    losses = {}
    for dtype in (torch.float32, torch.float16):
        train, validation = Dataset.from_list(chats[:24]), Dataset.from_list(chats[24:])
        args = sft_config(SETTINGS.replace(learning_rate=1e-3), tmp_path / str(dtype), len(train), torch.float32)
        args.logging_steps = 1
        trainer = build_trainer(load_4bit(hot_gemma, dtype), tokenizer, train, validation, args, lora_config(LoraSettings(r=8)))
        if dtype == torch.float16:
            emulate_fp16(trainer)
        trainer.train()
        history = history_table(trainer.state.log_history)
        losses[dtype] = history["loss"].dropna(), history["eval_loss"].dropna()
        assert mean_loss(answer_losses(trainer.model, tokenizer, chats[24:])) < 20  # finite outside of the trainer too
    for a, b in zip(*losses.values(), strict=True):
        assert ((a - b).abs() < 0.05 * a).all()


def test_packed_rows_are_validated_as_often_in_an_epoch_and_apart(random_gemma, tokenizer, support_rows, tmp_path):
    rows = Dataset.from_list([to_messages(row) for row in support_rows[:40]])
    settings = TrainSettings(
        packing=True,
        max_length=512,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_train_epochs=2,
        evals_per_epoch=1,
    )
    args = sft_config(settings, tmp_path, len(rows), torch.float32)
    trainer = build_trainer(
        load_4bit(random_gemma, torch.float32), tokenizer, rows, rows.select(range(8)), args, lora_config(LoraSettings(r=4))
    )
    assert len(trainer.train_dataset) < 20  # sequences
    assert len(trainer.eval_dataset) == 8  # rows
    trainer.train()
    assert [round(line["epoch"]) for line in trainer.state.log_history if "eval_loss" in line] == [1, 2]
