"""A real SFTTrainer on a small real Gemma 3."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from steps import emulate_fp16, load_4bit, plain_losses
from transformers import AutoModelForCausalLM, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer import utils as trl_utils

from gemma_colab.core import trainer as trainer_module
from gemma_colab.core.chat import tokenize_row, with_template
from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import ATTENTION, LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config, unload_adapters
from gemma_colab.evaluation.loss import answer_losses, mean_loss
from gemma_colab.training import guard
from gemma_colab.training.guard import score_answers_only

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


def test_another_template_gives_way_to_gemmas_or_is_refused(random_gemma, chats, tokenizer, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{# as somebody's copy has it #}" + tokenizer.chat_template
    with pytest.raises(ModelError, match="last_answer_only=True"):
        make(random_gemma, chats, own, tmp_path)
    fed = make(random_gemma, chats, with_template(own, "m"), tmp_path).train_dataset[0]  # as it was loaded
    assert fed["labels"] == tokenize_row(chats[0], tokenizer)["labels"]
    own.chat_template = tokenizer.chat_template.replace("<start_of_turn>", "<start_of_turn>the ")
    with pytest.raises(ModelError, match="last_answer_only=True"):
        make(random_gemma, chats, own, tmp_path)
    fed = make(random_gemma, chats, own, tmp_path, SETTINGS.replace(last_answer_only=True)).train_dataset[0]
    assert {"input_ids": fed["input_ids"], "labels": fed["labels"]} == tokenize_row(chats[0], own)


def as_trl_ships_it(monkeypatch):
    """TRL's loss without `score_answers_only`, which stays in force once a trainer was built on a CPU."""
    monkeypatch.setattr(trl_utils, "_use_triton", guard._USE_TRITON)
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
    monkeypatch.setattr(guard, "_USE_TRITON", getattr(trl_utils, "_use_triton", None))
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


def test_what_the_settings_don_t_say_is_always_so(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    fixed = {
        "output_dir": str(tmp_path / "out"),
        "per_device_eval_batch_size": 1,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "assistant_only_loss": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "use_cpu": True,
        "eval_packing": False,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "report_to": [],
    }
    args = sft_config(TrainSettings(), tmp_path / "out", rows=100, dtype=torch.float32)
    assert {name: getattr(args, name) for name in fixed} == fixed
    others = TrainSettings(last_answer_only=True, gradient_checkpointing=False, evals_per_epoch=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    monkeypatch.setattr(trainer_module, "SFTConfig", type("Made", (), {"__dataclass_fields__": SFTConfig.__dataclass_fields__, "__init__": lambda self, **how: made.append(how)}))  # fmt: skip
    monkeypatch.setattr(trainer_module.torch.cuda, "is_available", lambda: True)
    sft_config(others, tmp_path, rows=100, dtype=torch.bfloat16, report_to="wandb")
    assert (made[0]["assistant_only_loss"], made[0]["gradient_checkpointing_kwargs"], made[0]["report_to"]) == (
        False,
        None,
        "wandb",
    )
    assert (made[0]["use_cpu"], made[0]["dataloader_pin_memory"], made[0]["bf16"], made[0]["fp16"]) == (False, True, True, False)
    assert (made[0]["eval_steps"], made[0]["save_steps"]) == (3, 3)  # seven updates of two processes
    assert not {"replay", "evals_per_epoch", "save_minutes"} & made[0].keys()


def test_lora_config_follows_the_settings():
    settings = LoraSettings(r=3, lora_alpha=7, lora_dropout=0.1, use_rslora=True, use_dora=True)
    made = lora_config(settings)
    assert {name: getattr(made, name) for name in dataclasses.asdict(settings)} == dataclasses.asdict(settings)
    assert made.task_type == "CAUSAL_LM"
    assert lora_config(LoraSettings(target_modules="attention")).target_modules == set(ATTENTION)


def test_adapters_are_taken_off_to_the_last_layer(random_gemma):
    plain = AutoModelForCausalLM.from_pretrained(random_gemma, dtype=torch.float32)
    before = {name: type(module) for name, module in plain.named_modules()}
    get_peft_model(plain, lora_config(LoraSettings(r=2)))
    assert {name: type(module) for name, module in plain.named_modules()} != before
    unload_adapters(plain)
    assert {name: type(module) for name, module in plain.named_modules()} == before
    assert "peft_config" not in vars(plain)
    unload_adapters(plain)  # nothing to take off


def test_one_process_trains_on_one_gpu():
    with pytest.raises(SettingsError) as caught:
        build_trainer(None, None, None, None, SimpleNamespace(n_gpu=2), None)
    remedy = "set CUDA_VISIBLE_DEVICES=0 and restart, or train on all with accelerate launch (docs/recipes.md)"
    assert str(caught.value) == f"n_gpu=2 must be 1, one process trains on one GPU; {remedy}"


def given_to_trl(monkeypatch, tokenizer, train, validation, **changes):
    """What `build_trainer` hands to TRL, and the model with the parameters it gets back."""
    given, parameters = [], [torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16), requires_grad=on) for on in (True, False)]
    model = SimpleNamespace(named_modules=lambda: [], parameters=lambda: parameters)

    def made(**how):
        given.append(how)
        how["removed"] = []
        return SimpleNamespace(model=model, args=how["args"], train_dataset=range(7), remove_callback=how["removed"].append)

    monkeypatch.setattr(trainer_module, "SFTTrainer", made)
    args = sft_config(TrainSettings(evals_per_epoch=1), "out", 40, torch.float32)
    args = dataclasses.replace(args, **changes)
    build_trainer(model, tokenizer, train, validation, args, "lora", callbacks=["mine"])
    return given[0], args, [parameter.dtype for parameter in parameters]


def test_trl_gets_messages_or_the_last_turn_or_tokens(monkeypatch, tokenizer):
    row = {"messages": [{"role": role, "content": text} for role, text in TALK], "line": 3}
    rows = Dataset.from_list([row] * 40)
    given, args, types = given_to_trl(monkeypatch, tokenizer, rows, rows.select([0]), disable_tqdm=True)
    assert (given["train_dataset"].column_names, len(given["eval_dataset"])) == (["messages"], 1)
    assert (given["args"], given["processing_class"], given["peft_config"], given["callbacks"]) == (
        args,
        tokenizer,
        "lora",
        ["mine"],
    )
    assert given["removed"] == [PrinterCallback]
    assert types == [torch.float32, torch.bfloat16]
    assert (args.eval_steps, args.save_steps) == (5, 5)
    given, *_ = given_to_trl(monkeypatch, tokenizer, rows, None, assistant_only_loss=False, disable_tqdm=False)
    assert given["train_dataset"][0] == {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    assert (given["eval_dataset"], given["removed"]) == (None, [])
    tokens = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}] * 3)
    given, args, _ = given_to_trl(monkeypatch, tokenizer, tokens, rows.select([0]))
    assert (given["train_dataset"], given["args"].assistant_only_loss, args.assistant_only_loss) == (tokens, False, True)
    assert given["eval_dataset"].column_names == ["prompt", "completion"]


def test_packing_validates_as_often_by_the_number_of_its_sequences(monkeypatch, tokenizer):
    rows = Dataset.from_list([{"messages": []}] * 40)
    how = {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "save_steps": 20}
    given, *_ = given_to_trl(monkeypatch, tokenizer, rows, None, eval_steps=10, load_best_model_at_end=False, **how)
    assert (given["args"].eval_steps, given["args"].save_steps) == (2, 4)  # four updates instead of twenty
    given, *_ = given_to_trl(monkeypatch, tokenizer, rows, None, eval_steps=2, load_best_model_at_end=False, **how)
    assert given["args"].eval_steps == 1


def test_a_template_that_trl_does_not_know_is_refused_by_a_sentence(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template, own.name_or_path = "mine", "somebody/model"
    rows = Dataset.from_list([{"messages": []}])
    model = SimpleNamespace(named_modules=lambda: [])
    with pytest.raises(ModelError) as caught:
        build_trainer(model, own, rows, None, sft_config(TrainSettings(), "out", 1, torch.float32), None)
    remedy = "set last_answer_only=True, or take a checkpoint with Gemma 3's own template"
    assert str(caught.value) == f"TRL can't tell which tokens of the chat template of somebody/model are answers; {remedy}"


def test_on_a_cpu_answers_are_scored_in_pieces_that_fit_and_on_a_gpu_as_trl_does(monkeypatch):
    as_trl_ships_it(monkeypatch)
    asked = []
    monkeypatch.setattr(guard, "_USE_TRITON", lambda device: asked.append(device.type) or "as TRL says")
    assert score_answers_only() is True
    assert trl_utils._use_triton(torch.device("cpu")) is True
    assert trl_utils._use_triton(torch.device("cuda")) == "as TRL says"
    assert (asked, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE) == (["cuda"], 4096)


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
