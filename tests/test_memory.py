"""The memory plan against the allocator, and what is made of it: does it fit, what to change first, what would be faster."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from checkpoints import save_random_gemma
from steps import load_4bit, training_peak

from gemma_colab import cli
from gemma_colab.core.catalog import CATALOG, dimensions_of
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.loading import load_model
from gemma_colab.core.machine import GIB
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.model.lengths import token_lengths
from gemma_colab.model.measure import model_bytes
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import GPUS, fit_table, fits, largest_batch, plan_training
from gemma_colab.training.short import Trial, trial_run

B1, B4, B12 = (CATALOG[f"google/gemma-3-{size}-it"] for size in ("1b", "4b", "12b"))
LENGTHS = np.random.default_rng(0).integers(40, 300, 400)


# ------------------------------------------------------------------------------ predicted and measured
@pytest.fixture(scope="module")
def wide_gemma(tmp_path_factory):
    """A Gemma 3 whose MLP is so wide that its activations outweigh the tile of the loss, as in the real ones."""
    return str(save_random_gemma(tmp_path_factory.mktemp("wide"), intermediate_size=8192, sliding_window=512))


TRAIN = TrainSettings(per_device_train_batch_size=1, gradient_accumulation_steps=1, num_train_epochs=1, max_length=256)
CASES = {
    "all kept": ({}, {"gradient_checkpointing": False}, {}),
    "checkpointing": ({}, {}, {}),
    "batch of 2": ({}, {"per_device_train_batch_size": 2}, {}),
    "two batches added up": ({}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": False}, {}),
    "rank 64, Adam in 8 bit": ({"r": 64}, {"optim": "adamw_8bit"}, {}),
    "attention only": ({"target_modules": "attention"}, {"gradient_checkpointing": False}, {}),
    "dora": ({"use_dora": True}, {}, {}),
    "dropout": ({"lora_dropout": 0.1}, {"gradient_checkpointing": False}, {}),
    "not quantized": ({}, {}, {"load_in_4bit": False}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_predicted_peak_is_within_15_percent_of_the_allocators(case, dtype, wide_gemma):
    lora, train, how = CASES[case]
    lora, train = LoraSettings(**lora), TRAIN.replace(**train)
    load = load_4bit if how.get("load_in_4bit", True) else load_model
    measured = training_peak(load(wide_gemma, dtype), dtype, lora, train, 256)
    plan = memory_plan(dimensions_of(wide_gemma), lora, train, tokens=256, dtype=dtype, gpu=False, **how)
    assert plan.sum() == pytest.approx(measured, rel=0.15)
    loaded = model_bytes(load(wide_gemma, dtype)) / GIB
    assert plan[["weights", "embeddings"]].sum() == pytest.approx(loaded, rel=0.03)


def deep_gemma(folder, hidden_size: int) -> str:
    """Forty-two layers with small MLPs: on long rows, what is kept from layer to layer, or the mask, weighs as much as the loss."""
    layers = (["sliding_attention"] * 5 + ["full_attention"]) * 7  # as in the real ones
    changes = {"num_hidden_layers": 42, "layer_types": layers, "intermediate_size": 128, "sliding_window": 64}
    return str(save_random_gemma(folder, hidden_size=hidden_size, **changes))


@pytest.mark.parametrize("case", ["checkpointing", "all kept, with a mask", "packed"])
def test_what_is_kept_and_the_mask_are_counted(case, tmp_path):
    folder = deep_gemma(tmp_path, 768 if case == "checkpointing" else 256)
    train = TRAIN.replace(max_length=1024, gradient_checkpointing=case == "checkpointing", packing=case == "packed")
    if case == "packed":  # two full sequences, computed as one
        train = train.replace(max_length=512, per_device_train_batch_size=2)
    measured = training_peak(load_model(folder, torch.float32), torch.float32, LoraSettings(r=4), train, train.max_length)
    how = {"tokens": train.max_length, "dtype": "float32", "gpu": False, "load_in_4bit": False}
    assert memory_plan(dimensions_of(folder), LoraSettings(r=4), train, **how).sum() == pytest.approx(measured, rel=0.15)


def test_the_plan_for_a_gpu_is_what_the_readme_shows():
    # batch 4 of 1,024 tokens, as in the table there: a change of the formula must be seen
    table = fit_table()
    assert table.loc["google/gemma-3-1b-it", "T4, 14.7 GiB"] == "2.4 fits / 3.2 fits"
    assert table.loc["google/gemma-3-12b-it", "L4, 22.2 GiB"] == "9.9 fits / 12.2 fits"


CHATS = [
    {"messages": [{"role": "user", "content": "Где заказ? " * n}, {"role": "assistant", "content": "В пути."}]}
    for n in (1, 2, 3, 4, 5, 6, 7, 60)
]


def state_of(model):
    """What training may change in a model."""
    hooks = len(model.get_input_embeddings()._forward_hooks)
    return model.training, model.is_gradient_checkpointing, model.config.use_cache, hooks, "forward" in vars(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trial_measures_and_leaves_the_model_as_it_was(checkpointing, random_gemma, tokenizer):
    model, lora = load_4bit(random_gemma, torch.float32), LoraSettings(r=4)
    before, state = {name: p.clone() for name, p in model.named_parameters()}, state_of(model)
    train = TRAIN.replace(per_device_train_batch_size=2, max_length=512, gradient_checkpointing=checkpointing)
    trial = trial_run(model, tokenizer, CHATS, train, lora_config(lora), torch.float32, steps=2)
    assert trial.steps_per_epoch == 4
    assert trial.minutes(3) == pytest.approx(trial.seconds_per_step * 12 / 60)
    assert trial.seconds_per_step > 0
    assert before.keys() == dict(model.named_parameters()).keys()  # the adapter is off again
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert state_of(model) == state
    # the longest row decides the peak
    short = trial_run(model, tokenizer, CHATS[:-1], train, lora_config(lora), torch.float32, steps=1)
    assert short.peak_gib < 0.7 * trial.peak_gib


def test_a_trial_packs_as_many_rows_as_a_real_step_has(random_gemma, tokenizer):
    model, train = (
        load_4bit(random_gemma, torch.float32),
        TRAIN.replace(packing=True, max_length=256, gradient_checkpointing=False),
    )
    packed = trial_run(model, tokenizer, CHATS * 8, train, lora_config(LoraSettings(r=4)), torch.float32, steps=1)
    assert packed.steps_per_epoch < 40  # sequences; 64 rows
    lengths = token_lengths(CHATS, tokenizer, 512)
    scored = lengths["answer"].sum() / lengths["total"].sum()
    how = {"tokens": 256, "dtype": "float32", "gpu": False, "scored": scored}
    plan = memory_plan(dimensions_of(random_gemma), LoraSettings(r=4), train, **how).sum()
    assert packed.peak_gib == pytest.approx(plan, rel=0.25)


def test_a_trial_that_does_not_fit_says_what_to_do_and_cleans_up(random_gemma, tokenizer, monkeypatch):
    model = load_4bit(random_gemma, torch.float32)

    def too_much(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("trl.SFTTrainer.training_step", too_much)
    with pytest.raises(ModelError, match=r"a batch of 1 rows does not fit .* choose what `plan_training` names first"):
        trial_run(model, tokenizer, CHATS, TRAIN, lora_config(LoraSettings(r=4)), torch.float32)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_the_plan_corrects_itself():
    how = {"tokens": 512, "dtype": "bfloat16"}
    plan = memory_plan(B4, LoraSettings(), TrainSettings(), **how)
    found = Trial(plan.sum() + 1.5, 1.1, 1.0, 1).correction(plan)
    corrected = memory_plan(B4, LoraSettings(), TrainSettings(), **how, **found)
    assert corrected.sum() == pytest.approx(plan.sum() + 1.5)
    assert corrected["overhead"] == pytest.approx(1.1)
    assert found["activation_factor"] > 1
    assert Trial(0.0, 0.0, 1.0, 1).correction(plan)["activation_factor"] == 0.1
    table = Trial(plan.sum() / 1.1, 0.0, 1.0, 1).table(plan)
    assert table.loc["peak of training", "prediction is off by"] == "+10.0%"


# ------------------------------------------------------------------------------------- what the plan says
def test_the_plan_moves_the_right_way():
    def peak(shape=B4, lora=None, tokens=1024, dtype="bfloat16", load_in_4bit=True, **train):
        return memory_plan(
            shape, LoraSettings(**(lora or {})), TrainSettings(**train), tokens=tokens, dtype=dtype, load_in_4bit=load_in_4bit
        ).sum()

    assert peak(per_device_train_batch_size=8) > peak() > peak(per_device_train_batch_size=1)
    assert peak(tokens=512) < peak() == peak(tokens=9999)  # max_length cuts
    assert peak(tokens=64, packing=True) > peak(tokens=64)  # a packed sequence is as long as max_length
    assert peak(gradient_checkpointing=False) > 2 * peak()
    assert peak(lora={"r": 64}) > peak() > peak(lora={"target_modules": "attention"})
    assert peak(optim="adamw_8bit") < peak()
    assert peak(load_in_4bit=False) - peak() == pytest.approx((2 - 0.516) * 3209e6 / GIB, rel=0.1)
    assert peak(dtype="float16") > peak()  # the residual stream in float32
    assert peak(gradient_accumulation_steps=2) >= peak(gradient_accumulation_steps=1)


def test_what_fits_and_the_largest_batch():
    assert [fits(g, 10) for g in (8.5, 8.6, 10.1)] == ["fits", "tight", "no"]
    how = {"tokens": 1024, "dtype": "float16"}
    batch = largest_batch(B4, LoraSettings(), TrainSettings(), 14.74, **how)
    peaks = [
        memory_plan(B4, LoraSettings(), TrainSettings(per_device_train_batch_size=n), **how).sum() for n in (batch, 2 * batch)
    ]
    assert peaks[0] <= 0.85 * 14.74 < peaks[1]
    assert largest_batch(B12, LoraSettings(), TrainSettings(), 4, tokens=1024) == 0


# ------------------------------------------------------------------------------------------- the planner
GREEDY = TrainSettings(per_device_train_batch_size=8, gradient_checkpointing=False)


def test_what_saves_memory_is_tried_in_order_until_it_fits():
    planned, steps = plan_training(B12, LoraSettings(), GREEDY, [1024], 14.74, dtype="float16", load_in_4bit=False)
    assert list(steps["fits"])[-1] == "fits"
    assert "fits" not in list(steps["fits"])[:-1]
    assert steps["GiB"].is_monotonic_decreasing
    assert all(steps["why"])
    changes = ["as it is", "load_in_4bit=True", "gradient_checkpointing=True", "per_device_train_batch_size=4, gradient_accum"]
    assert all(found.startswith(change) for found, change in zip(steps["change"], changes, strict=False))
    gib = memory_plan(B12, LoraSettings(), planned, tokens=1024, dtype="float16").sum()
    assert round(gib, 2) == steps["GiB"].iloc[-1]
    assert planned.effective_batch == GREEDY.effective_batch


def test_where_nothing_helps_it_says_so():
    smallest, steps = plan_training(B12, LoraSettings(r=64), GREEDY, [1024], 2, dtype="bfloat16")
    assert steps["change"].iloc[-1] == "a smaller model, or a larger GPU"
    assert np.isnan(steps["GiB"].iloc[-1])
    assert any(change.startswith("r=8") for change in steps["change"])
    assert (smallest.per_device_train_batch_size, smallest.max_length, smallest.optim) == (1, 256, "adamw_8bit")


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dimensions", [B1, B4, B12], ids=["1b", "4b", "12b"])
def test_planned_settings_fit_and_keep_the_rows_of_an_update(dimensions, gpu):
    limit, dtype = GPUS[gpu]
    for wish in (TrainSettings(), GREEDY, TrainSettings(per_device_train_batch_size=3, gradient_accumulation_steps=5)):
        train, _ = plan_training(dimensions, LoraSettings(), wish, LENGTHS, limit, dtype=dtype)
        assert memory_plan(dimensions, LoraSettings(), train, tokens=int(max(LENGTHS)), dtype=dtype).sum() <= 0.85 * limit
        assert train.effective_batch == wish.effective_batch


def test_room_that_is_left_is_used():
    fast, steps = plan_training(B1, LoraSettings(), TrainSettings(), LENGTHS, 39.4, dtype="bfloat16")
    assert (fast.gradient_checkpointing, fast.per_device_train_batch_size) == (False, fast.effective_batch)
    assert "a third less time" in steps["why"][1]
    _, steps = plan_training(B4, LoraSettings(), TrainSettings(), [1024], 9, dtype="bfloat16")
    assert steps["why"][1].startswith("not taken")
    assert steps["fits"][1] != "fits"


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 200), (256, 256), (7, 100)])
def test_the_plan_keeps_an_update_of_any_size(batch, accumulation):
    train = TRAIN.replace(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    planned, _ = plan_training(CATALOG["google/gemma-3-1b-it"], LoraSettings(), train, [1024], 0.5)
    assert (planned.per_device_train_batch_size, planned.gradient_accumulation_steps) == (1, batch * accumulation)


def test_whoever_knows_better_overrules_the_planner():
    fixed = ["gradient_checkpointing", "per_device_train_batch_size"]
    for limit in (3, 39.4):
        planned, steps = plan_training(B4, LoraSettings(), GREEDY, LENGTHS, limit, dtype="bfloat16", fixed=fixed)
        assert all(getattr(planned, name) == getattr(GREEDY, name) for name in fixed)
        assert not any(change.startswith(tuple(fixed)) for change in steps["change"])
    with pytest.raises(SettingsError, match="lengths is empty"):
        plan_training(B4, LoraSettings(), GREEDY, [], 39.4, dtype="bfloat16")


# --------------------------------------------------------------------------------------- gemma-colab plan
def test_plan_on_the_command_line(capsys):
    assert cli.main(["plan", "gemma-3-4b-it"]) == 0
    shown = capsys.readouterr().out
    assert "gemma-3-4b-it on T4, float16, 4 bit; batch 4 of 1,024 tokens, r=16" in shown
    assert "largest batch with 15 % to spare: 8" in shown
    assert cli.main(["plan", "gemma-3-27b-it", "--gpu", "16", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["light"], found["limit_gib"], found["largest_batch"]) == ("no", 16, 0)
    assert sum(found["predicted_gib"].values()) == pytest.approx(found["total_gib"], abs=0.01)
    assert found["savings"][-1]["change"]
    assert cli.main(["plan", "gemma-3-12b-it", "--batch", "4"]) == 1
    assert "what to change first:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "gemma-3-4b-it", "--gpu", "fast"], "gpu='fast' must be one of T4, L4, A100"),
        (["plan", "nothing"], "model='nothing' is not known"),
        (["plan", "auto"], "model='auto' is not known"),
        (["plan", "gemma-3-4b-it", "--r", "0"], "r=0 must be"),
        (["plan", "gemma-3-4b-it", "--tokens", "3"], "max_length=3 must be"),
    ],
)
def test_plan_explains_wrong_usage(arguments, words, capsys):
    assert cli.main(arguments) == 4
    assert words in capsys.readouterr().err


def test_plans_need_neither_network_nor_torch():
    code = (
        "import sys, gemma_colab.model.planner; from gemma_colab.model.memory import memory_plan; "
        "from gemma_colab.core.catalog import dimensions_of; dimensions_of('tiny-gemma3'); dimensions_of('google/gemma-3-27b-pt'); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
