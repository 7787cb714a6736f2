"""The panel of notebook 04: what it says is what the trainer will do. test_settings_panels.py holds what all panels promise."""

import dataclasses
import math
import re

import numpy as np
import pytest
from test_settings_panels import FOUR, ODD, ODD_TRAIN, T4, text_of, token_table

from gemma_colab.core.catalog import TINY
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import SCHEDULERS, LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.sliders import OFF
from gemma_colab.handover.rows import save_rows
from gemma_colab.handover.settings import settings_for
from gemma_colab.model.choice import starting_point
from gemma_colab.model.memory import memory_plan
from gemma_colab.ui import settings_panel
from gemma_colab.ui.train_panel import CONTROLS, FIRST, PRESETS, learning_rates, presets, schedule_curve, sequences

LENGTHS = [40, 300, 1500, 90] * 30


def a_panel(settings=TrainSettings(), lengths=LENGTHS, machine=T4, answers=0, **more):  # noqa: B008
    how = {"dimensions": FOUR, "lora": LoraSettings(), "start": settings} | more
    return settings_panel(settings, machine, lengths=token_table(lengths, answers / max(1, len(lengths))), **how)


# --------------------------------------------------------------------------------------------- controls
def test_four_numbers_come_first_and_every_other_setting_is_folded():
    panel = a_panel()
    assert list(panel.controls) == list(CONTROLS)
    assert set(panel.controls) == {field.name for field in dataclasses.fields(TrainSettings)}
    assert panel.fold.selected_index is None
    assert panel.fold.get_title(0) == "15 more settings"
    inside = [line.children[0] for line in panel.fold.children[0].children]
    assert inside == [panel.controls[field] for field in CONTROLS if field not in FIRST]
    shown = [line.children[0] for line in panel.widget.children if hasattr(line, "children") and line is not panel.fold]
    assert shown == [panel.presets, *(panel.controls[field] for field in FIRST)]


def test_every_offer_is_a_possible_setting_and_the_default_is_not_at_an_end():
    for field, (values, _) in CONTROLS.items():
        for value in values or []:
            TrainSettings(**{field: value})
        if values and not isinstance(values[0], str) and None not in values and field not in ("weight_decay", "seed", "replay"):
            assert min(values) < getattr(TrainSettings(), field) < max(values), field


def test_noise_can_be_off():
    panel = a_panel()
    control = panel.controls["neftune_noise_alpha"]
    assert control.options[control.index] == ("off", OFF)
    control.value = 5.0
    assert panel.settings == TrainSettings(neftune_noise_alpha=5.0)
    control.value = OFF
    assert panel.settings == TrainSettings()
    assert a_panel(TrainSettings(neftune_noise_alpha=3.3)).controls["neftune_noise_alpha"].options[0] == ("off", OFF)


@pytest.mark.parametrize(
    "changes", [{}, {"neftune_noise_alpha": OFF, "num_train_epochs": 15}, {"optim": "adamw_8bit", "packing": False}]
)
def test_saved_and_restored_exactly(workspace, changes):
    panel = a_panel(ODD_TRAIN)
    for field, value in changes.items():
        panel.controls[field].value = value
    panel.settings.save(workspace)
    again = TrainSettings.load(workspace)
    assert repr(again) == repr(panel.settings)
    assert again == ODD_TRAIN.replace(**{field: None if value is OFF else value for field, value in changes.items()})
    assert a_panel(again).settings is again


# --------------------------------------------------------------------------------------------- presets
STARTS = {
    "default": TrainSettings(),
    "tiny": starting_point(TINY)[1],
    "odd": ODD_TRAIN,
    "at the end of the range": TrainSettings(learning_rate=0.1, num_train_epochs=100),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_given_back_exactly(start, name):
    panel = a_panel(start)
    panel.presets.value = name
    assert panel.settings == start.replace(**presets(start)[name])
    for field, value in presets(start)[name].items():
        assert panel.controls[field].value == value
    assert panel.note.value == a_panel(panel.settings).note.value


def test_the_preset_that_the_settings_are_is_marked_and_no_other():
    panel = a_panel()
    assert panel.presets.value == "normal"
    panel.controls["max_length"].value = 512  # no business of a preset's
    assert panel.presets.value == "normal"
    panel.presets.value = "strong"
    assert panel.settings == TrainSettings(max_length=512, learning_rate=5e-4, num_train_epochs=5.0)
    panel.controls["learning_rate"].value = 1e-3
    assert panel.presets.value is None
    assert panel.settings == TrainSettings(max_length=512, learning_rate=1e-3, num_train_epochs=5.0)
    panel.controls["learning_rate"].value = 5e-4
    assert panel.presets.value == "strong"
    panel.presets.value = "normal"
    assert panel.settings == TrainSettings(max_length=512)


def test_presets_start_where_they_are_told_to():
    panel = a_panel(TrainSettings(learning_rate=5e-5, num_train_epochs=2.0), start=TrainSettings())
    assert panel.presets.value == "cautious"
    panel.presets.value = "normal"
    assert panel.settings == TrainSettings()
    mine = TrainSettings(learning_rate=7.7e-4)
    panel = a_panel(mine, start=TrainSettings())
    assert (panel.presets.value, panel.settings) == (None, mine)


def test_without_a_starting_point_there_are_no_presets():
    panel = a_panel(TrainSettings(learning_rate=5e-4, num_train_epochs=5.0), start=None)  # "strong", once
    assert panel.presets.options == ()
    assert panel.presets not in [line.children[0] for line in panel.widget.children if hasattr(line, "children")]


def test_a_preset_that_was_saved_is_that_preset_when_the_panel_is_opened_again(workspace, support_rows):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    for _ in range(3):  # the notebook of three days
        saved = settings_for(workspace, ModelSettings(model="google/gemma-3-4b-it"), T4, [200] * 32)
        panel = a_panel(saved.train, start=saved.start)
        panel.presets.value = "strong"
        assert panel.settings.learning_rate == 5e-4  # 2.5 times the starting point, not 2.5 times what was saved
        saved.save(train=panel.settings)
    assert a_panel(saved.train, start=saved.start).presets.value == "strong"


# --------------------------------------------------------------------------------------------- the learning rate
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("steps", "warmup"), [(100, 0), (100, 10), (100, 1), (1, 0), (1, 5), (7, 6), (7, 7), (7, 50)])
def test_the_rates_are_those_of_transformers(scheduler, steps, warmup):
    import torch
    from transformers import get_scheduler

    settings = TrainSettings(lr_scheduler_type=scheduler, warmup_steps=warmup, learning_rate=3.3e-3)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    theirs, reference = [], get_scheduler(scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for _ in range(steps):
        theirs.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    mine = learning_rates(settings, steps)
    assert mine.shape == (steps,)
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9 * settings.learning_rate)


def points_of(markup: str) -> np.ndarray:
    return np.array([[float(n) for n in p.split(",")] for p in re.search(r'points="([^"]+)"', markup)[1].split()])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (40, 5), (40, 60), (100_000, 17)])
def test_the_curve_is_drawn_through_them(scheduler, steps, warmup):
    settings = TrainSettings(lr_scheduler_type=scheduler, warmup_steps=warmup)
    points = points_of(schedule_curve(settings, steps, steps).data)
    assert 2 <= len(points) <= 203
    assert (points[0, 0], points[-1, 0]) == (60, 392)
    height = (96 - points[:, 1]) / 76
    expected = learning_rates(settings, steps) / settings.learning_rate
    at = (points[:, 0] - 60) / 332 * (steps - 1)  # which step each point is
    np.testing.assert_allclose(height, np.interp(at, np.arange(steps), expected), atol=0.02 if steps < 1000 else 0.5)
    assert height.max() == pytest.approx(expected.max(), abs=0.001)  # the corner is not cut off


def test_a_line_for_the_end_of_each_epoch():
    def lines(steps, per_epoch):
        return schedule_curve(TrainSettings(), steps, per_epoch).data.count("<line")

    assert [lines(30, 10), lines(10, 10), lines(35, 10), lines(1000, 10)] == [2, 0, 3, 0]


def test_a_warm_up_longer_than_the_training_is_said():
    panel = a_panel(TrainSettings(warmup_steps=5))
    assert "Never at the full rate" not in text_of(panel)
    panel.controls["warmup_steps"].value = 50
    assert "Never at the full rate: warmup_steps=50, and there are only 45 steps; try warmup_steps=4." in text_of(panel)
    panel.controls["lr_scheduler_type"].value = "constant"
    assert "Never at the full rate" not in text_of(panel)


# --------------------------------------------------------------------------------------------- steps
def test_steps_and_rates_are_those_of_a_real_run(random_gemma, tokenizer, support_rows, tmp_path):
    import torch
    from datasets import Dataset

    from gemma_colab.core.loading import load_model
    from gemma_colab.core.rows import to_messages
    from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
    from gemma_colab.model.lengths import token_lengths

    chats = [to_messages(row) for row in support_rows[:5]]
    settings = TrainSettings(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=1.2,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        max_length=256,
        gradient_checkpointing=False,
    )
    args = sft_config(settings, tmp_path, len(chats), torch.float32)
    args.logging_steps, args.eval_strategy, args.save_strategy, args.load_best_model_at_end = 1, "no", "no", False
    model = load_model(random_gemma, torch.float32, None)
    trainer = build_trainer(model, tokenizer, Dataset.from_list(chats), None, args, lora_config(LoraSettings(r=4)))
    trainer.train()
    lengths = token_lengths(chats, tokenizer, settings.max_length)["total"]
    steps = trainer.state.global_step
    assert steps == 3
    assert "rows = 2 × 2 2 steps an epoch, 3 in all" in text_of(a_panel(settings, lengths))
    logged = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    np.testing.assert_allclose(logged, learning_rates(settings, steps), rtol=1e-9)


MIXES = {
    "short": np.random.default_rng(0).integers(20, 200, 400),
    "some too long": np.random.default_rng(1).lognormal(5.5, 1, 400).astype(int) + 10,
    "just over half": np.full(50, 600),
    "one": np.array([7]),
}


@pytest.mark.parametrize("lengths", MIXES.values(), ids=MIXES)
def test_packed_sequences_are_about_as_many_as_trl_makes(lengths):
    from datasets import Dataset
    from trl import pack_dataset

    rows = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    theirs = len(pack_dataset(rows, seq_length=1024, strategy="bfd"))
    assert sequences(lengths, 1024) <= theirs <= math.ceil(1.05 * sequences(lengths, 1024))


def test_packing_counts_sequences():
    settings = TrainSettings(packing=True, max_length=1024, num_train_epochs=2)
    text = text_of(a_panel(settings))
    kept = sum(min(n, 1024) for n in LENGTHS)
    n = math.ceil(kept / 1024)
    assert f"effective batch 8 packed sequences, about {8 * 120 / n:.0f} rows" in text
    assert f"about {settings.steps_per_epoch(n)} steps an epoch, about {2 * settings.steps_per_epoch(n)} in all" in text
    assert f"{2 * kept:,} tokens in all" in text
    separate = settings.replace(packing=False, max_length=1500)  # no row is cut: TRL may leave out those that are
    assert "effective batch 8 rows = 4 × 2 15 steps an epoch, 30 in all" in text_of(a_panel(separate))


def test_tokens_answers_and_cut_rows():
    kept = sum(min(n, 1024) for n in LENGTHS)
    text = text_of(a_panel(answers=7200))
    assert f"{3 * kept:,} tokens in all, at most 21,600 of them answers" in text
    assert "30 of 120 rows are longer than max_length: they lose their end" in text
    text = text_of(a_panel(TrainSettings(max_length=1500, num_train_epochs=0.5), answers=7200))
    assert f"about {sum(LENGTHS) / 2:,.0f} tokens in all, 3,600 of them answers" in text
    assert "no row is cut" in text


# --------------------------------------------------------------------------------------------- time
def seconds_of(panel) -> float:
    said = re.search(r"time: about ([\d.]+) (second|minute|hour)s, without validation", text_of(panel))
    return float(said[1]) * {"second": 1, "minute": 60, "hour": 3600}[said[2]]


def test_time_is_said_once_it_was_measured():
    assert "time: not measured yet: notebook 03 measures it" in text_of(a_panel())
    for per_step, said in {0.5: "22 seconds", 40: "30 minutes", 400: "5.0 hours"}.items():  # 45 steps
        assert f"time: about {said}, without validation" in text_of(a_panel(seconds_per_step=per_step))


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"num_train_epochs": 1}, 1 / 3),
        ({"gradient_accumulation_steps": 8}, 1.0),  # fewer steps, each as much longer
        ({"gradient_checkpointing": False}, 1 / 1.5),
        ({"learning_rate": 1e-3, "weight_decay": 0.1, "seed": 3}, 1.0),
        ({"max_length": 64}, None),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, None),
        ({"packing": True}, None),
    ],
)
def test_time_follows_what_is_computed_not_the_number_of_steps(changes, factor):
    panel = a_panel(seconds_per_step=100)
    measured = 100 * 45
    assert seconds_of(panel) == pytest.approx(measured, rel=0.02)
    for field, value in changes.items():
        panel.controls[field].value = value
    if factor is None:
        assert seconds_of(panel) < 0.97 * measured
        return
    assert seconds_of(panel) == pytest.approx(measured * factor, rel=0.04)


# --------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("plan", [{}, {"load_in_4bit": False, "activation_factor": 1.1}, {"tokens": 200}])
def test_the_memory_is_that_of_the_plan(plan):
    panel = a_panel(lora=ODD, **plan)
    for field, value in {"per_device_train_batch_size": 2, "max_length": 768, "optim": "adamw_8bit"}.items():
        panel.controls[field].value = value
    parts = memory_plan(FOUR, ODD, panel.settings, **({"tokens": 1500, "dtype": "float16"} | plan))
    assert f"{parts.sum():.2f} of 14.74 GiB predicted" in text_of(panel)
    assert f"batches of 2 rows of {plan.get('tokens', 768)} tokens" in text_of(panel)


def test_no_rows_is_one_sentence():
    with pytest.raises(SettingsError, match="lengths is empty"):
        a_panel(lengths=[])
