"""Short runs leave a model as it was; the range test finds a rate on a real curve and on synthetic ones."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from datasets.utils import are_progress_bars_disabled
from steps import load_4bit
from transformers import TrainerControl
from trl import SFTTrainer

from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.training import find_learning_rate, short_run
from gemma_colab.training.short import VALIDATED, LearningRates, _StopWhenBroken, suggest

SETTINGS = TrainSettings(
    learning_rate=5e-3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    num_train_epochs=1,
    warmup_steps=0,
    max_length=128,
    gradient_checkpointing=False,
)
LORA = lora_config(LoraSettings(r=4))


@pytest.fixture(scope="module")
def rows(support_rows):
    return [to_messages(row) for row in support_rows[1:29]]


@pytest.fixture(scope="module")
def model(random_gemma):
    return load_4bit(random_gemma, torch.float32)


@pytest.fixture
def run(model, tokenizer):
    """run(rows, settings, ...) -> what `short_run` returns."""
    return lambda rows, settings=SETTINGS, lora=LORA, **how: short_run(
        model, tokenizer, rows, settings, lora, torch.float32, **how
    )


def fields(model):
    """All that can be told of a model: every field of every module and configuration, and what lies in those that are dicts."""
    configs = {"config": model.config, "generation_config": model.generation_config}
    for where, o in {**dict(model.named_modules()), **configs}.items():
        for name, value in vars(o).items():
            yield (where, name), [(key, id(inner)) for key, inner in value.items()] if isinstance(value, dict) else repr(value)
    yield "needs a gradient", [p.requires_grad for p in model.parameters()]
    yield "has a gradient", [p.grad is not None for p in model.parameters()]


# Tokenizing: the adapter is on by then, but there is no trainer to unload it yet.
@pytest.mark.parametrize("breaks", [None, "training_step", "_prepare_dataset"])
def test_a_short_run_leaves_the_model_as_it_was(breaks, random_gemma, rows, tokenizer, monkeypatch):
    def broken(self, *args, **kwargs):
        raise KeyboardInterrupt  # no ordinary exception, and the one a learner causes

    model, passes = load_4bit(random_gemma, torch.float32), []
    handle = model.get_input_embeddings().register_forward_hook(lambda *args: passes.append(1))
    model.config.use_cache = True
    for parameter in list(model.parameters())[:3:2]:
        parameter.requires_grad_(False)
    weights, before = {name: p.detach().clone() for name, p in model.named_parameters()}, dict(fields(model))
    settings = SETTINGS.replace(gradient_checkpointing=True, neftune_noise_alpha=5.0)
    given = (model, tokenizer, rows[:24], settings, LORA, torch.float32)
    if breaks:
        monkeypatch.setattr(SFTTrainer, breaks, broken)
        with pytest.raises(KeyboardInterrupt):
            short_run(*given, eval_rows=rows[24:], max_steps=2)
    else:
        short_run(*given, eval_rows=rows[24:], max_steps=2)
        assert passes
    assert dict(fields(model)) == before
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not are_progress_bars_disabled()
    passes.clear()
    handle.remove()  # a handle from before still finds its hook
    model(torch.tensor([[2, 110, 111]]))
    assert not passes


def test_a_short_run_is_a_real_run_that_logs_each_step(run, random_gemma, rows, tokenizer, tmp_path, capsys):
    history = run(rows[:24], eval_rows=rows[24:])
    shown = capsys.readouterr().err
    assert "6/6" in shown  # its own bar moved to the end
    assert "Tokenizing" not in shown
    args = sft_config(SETTINGS, tmp_path, 24, torch.float32)
    args.per_device_eval_batch_size = VALIDATED  # in a real run rows are validated one by one
    data = Dataset.from_list(rows[:24]), Dataset.from_list(rows[24:])
    lora = lora_config(LoraSettings(r=4))
    trainer = build_trainer(load_4bit(random_gemma, torch.float32), tokenizer, *data, args, lora)
    trainer.train()
    pd.testing.assert_frame_equal(history, history_table(trainer.state.log_history), atol=1e-6)
    assert history["loss"].notna().all()
    assert len(history["eval_loss"].dropna()) == SETTINGS.evals_per_epoch
    assert LORA.target_modules == "all-linear"  # peft writes into its own copy
    pd.testing.assert_frame_equal(run(rows[:24], lora=LoraSettings(r=4), eval_rows=rows[24:]), history)


def test_a_measure_sees_the_trained_model_and_replay_mixes_general_rows_in(run, rows):
    def measure(model):
        return len(model.peft_config), max(
            p.detach().abs().max().item() for name, p in model.named_parameters() if "lora_B" in name
        )

    adapters, largest = run(rows[:8], measure=measure)
    assert adapters == 1
    assert largest > 0  # where it began
    settings = SETTINGS.replace(replay=0.5)
    mixed = run(rows[:8], settings)
    assert len(mixed) == 4  # 8 more rows


def test_the_config_of_an_adapter_that_was_loaded_to_be_asked_is_trained_all_the_same(run, rows):
    asked = lora_config(LoraSettings(r=4))
    asked.inference_mode = True
    pd.testing.assert_frame_equal(run(rows[:8], lora=asked), run(rows[:8]))
    assert asked.inference_mode  # it is not ours to change


def test_max_steps_and_schedule(run, rows):
    schedule = (1.0, 0.5, 4.0, 0.25)
    history = run(rows[:8], max_steps=4, schedule=lambda i: schedule[min(i, 3)])
    assert history["step"].tolist() == [1, 2, 3, 4]  # though an epoch has two
    assert history["learning_rate"].tolist() == pytest.approx([5e-3, 2.5e-3, 2e-2, 1.25e-3])
    constant = run(rows[:8], max_steps=4, schedule=lambda i: 1.0)
    assert constant["loss"].iloc[1] == history["loss"].iloc[1]  # the same first step
    assert constant["loss"].iloc[3] != history["loss"].iloc[3]  # the optimizer took the scheduled ones


def test_an_adapter_of_an_earlier_run_comes_back(run, random_gemma, rows, tokenizer, tmp_path):
    model = load_4bit(random_gemma, torch.float32)
    args = sft_config(SETTINGS, tmp_path, 8, torch.float32)
    args.eval_strategy, args.load_best_model_at_end, args.save_strategy = "no", False, "no"
    trainer = build_trainer(model, tokenizer, Dataset.from_list(rows[:8]), None, args, lora_config(LoraSettings(r=4)))
    trainer.train()
    trained, before = {name: p.detach().clone() for name, p in model.named_parameters()}, dict(fields(model))
    assert any("lora_" in name for name in trained)
    given = (tokenizer, rows[:8], SETTINGS, LORA, torch.float32)
    pd.testing.assert_frame_equal(short_run(model, *given), run(rows[:8]))  # a fresh one
    assert dict(fields(model)) == before
    assert all(torch.equal(p, trained[name]) for name, p in model.named_parameters())
    with pytest.raises(ModelError, match=r"pass model\.get_base_model\(\)"):
        short_run(trainer.model, *given)


# ------------------------------------------------------------------------------ the range test
def test_the_range_test_on_a_real_model(run, model, rows, tokenizer, monkeypatch):
    given = (model, tokenizer, rows, SETTINGS.replace(replay=0.5), LORA, torch.float32)  # without replay
    found = find_learning_rate(*given, lowest=1e-5, steps=40)
    rates = found.table["learning_rate"]
    assert rates.iloc[0] == 1e-5
    assert np.allclose(rates.iloc[1:].to_numpy() / rates.iloc[:-1].to_numpy(), 1e4 ** (1 / 39))
    assert "lowest at" in found.why
    assert 1e-3 <= found.suggestion <= 5e-2
    ends = [run(rows, SETTINGS.replace(learning_rate=found.suggestion * factor))["loss"].iloc[-1] for factor in (0.1, 1)]
    assert ends[1] < ends[0]
    monkeypatch.setattr("gemma_colab.training.short.BROKEN", 0.5)  # so that any loss has broken
    assert len(find_learning_rate(*given).table) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0.1}, "lowest=0.1 and highest=0.1 must rise from 1e-6 to 0.1"),
        ({"highest": 1.0}, "highest=1.0 must rise from 1e-6 to 0.1"),
        ({"lowest": 0.0}, "lowest=0.0"),
        ({"steps": 19}, "steps=19 must be a whole number from 20 to 1000"),
        ({"steps": 60.0}, "steps=60.0"),
    ],
)
def test_the_range_test_refuses_what_it_cannot_do(changes, message, model, rows, tokenizer):
    with pytest.raises(SettingsError, match=message):
        find_learning_rate(model, tokenizer, rows, SETTINGS, LORA, torch.float32, **changes)


@pytest.mark.parametrize(
    ("losses", "stops_at"),
    [
        ([8, 8, 8, 7, 6, 5, 5, 5, 5, 5, 5, 9, 9, 9, 9], 15),  # the mean of the last five, 8.2 and before 7.4, against 1.5 x 5
        ([8, 8, 8, 8, 8, math.nan], 6),
        ([8, 8, 8, 8, 8, math.inf], 6),
        ([5, 5, 5, 5, 5, 14, 5, 5, 5, 5], None),  # one bad batch is noise: 6.8
    ],
)
def test_the_range_test_stops_when_the_loss_has_broken(losses, stops_at):
    watch, control, stopped = _StopWhenBroken(5), TrainerControl(), None
    for step, loss in enumerate(losses, 1):
        watch.on_log(None, None, control, {"loss": loss})
        watch.on_log(None, None, control, {"eval_loss": 99.0})
        if control.should_training_stop:
            stopped = step
            break
    assert stopped == stops_at


def curve(shape, noise=0.0, seed=0, steps=60):
    """The table of a range test from 1e-6 to 0.1 whose loss is `shape` of the decades, -6 to -1."""
    decades = np.linspace(-6, -1, steps)
    loss = pd.Series([shape(d) for d in decades]) + np.random.default_rng(seed).normal(0, noise, steps)
    return pd.DataFrame({"learning_rate": 10**decades, "loss": loss})


def valley(decade, start=-4.0, bottom=-2.0, high=3.0, low=2.0):
    """Flat up to `start`, then down to `bottom`, then up steeply."""
    if decade > bottom:
        return low + 6 * (decade - bottom)
    return high - (high - low) * min(1.0, max(0.0, decade - start) / (bottom - start))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.2])
def test_the_suggestion_holds_against_the_noise_of_batches(noise):
    for seed in range(10):
        suggestion, why = suggest(curve(valley, noise, seed), 1e-5)
        assert 10**-3.1 < suggestion < 10**-2  # four fifths of the way are at 10 ** -2.4; above the bottom it breaks
        assert "rose behind it" in why


def test_a_higher_valley_gives_a_higher_rate():
    found = [suggest(curve(lambda d, by=by: valley(d, -4 + by, -2 + by)), 1e-5)[0] for by in (-1, 0, 0.5)]
    assert found == sorted(found)
    assert found[1] == pytest.approx(10**-2.4, rel=0.25)  # four fifths of the way from 1e-4 to 1e-2
    assert found[1] / found[0] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize(
    ("shape", "suggested", "word"),
    [
        (lambda d: 3.0, False, "never fell"),
        (lambda d: 3.0 + max(0.0, d + 2), False, "only rose"),
        (lambda d: valley(d, -4, -1), True, "never rose up to 1.0e-01"),
        (lambda d: math.inf if d > -2.2 else valley(d), True, "rose behind it"),
        (lambda d: math.inf, False, "no loss was a number"),
    ],
)
def test_a_curve_without_a_valley_is_named(shape, suggested, word):
    for seed in range(5):
        suggestion, why = suggest(curve(shape, 0.1, seed), 1e-5)
        assert word in why
        assert (suggestion != 1e-5) == suggested
        assert 1e-6 <= suggestion <= 0.1


def test_the_plot_marks_the_suggestion():
    table = pd.DataFrame({"learning_rate": [1e-4, 1e-3, 1e-2], "loss": [4.0, 3.0, 90.0], "smoothed": [3.9, 3.1, 80.0]})
    ax = LearningRates(table, 1e-3, "because").plot()
    assert ax.get_xscale() == "log"
    assert [line.get_ydata().tolist() for line in ax.lines[:2]] == [[4.0, 3.0, 90.0], [3.9, 3.1, 80.0]]
    assert ax.lines[2].get_xdata() == [1e-3, 1e-3]
    assert "suggestion 1.0e-03" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert ax.get_title() == "because"
