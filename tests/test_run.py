"""A whole training run: checkpoints in place, resumed or refused, interrupted, out of memory, broken."""

import json
import os
import shutil
import signal

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from gemma_colab.core.errors import TrainingError, WorkspaceError
from gemma_colab.core.loading import load_4bit, load_model
from gemma_colab.core.lora import lora_config
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.training import run as run_module
from gemma_colab.training.checkpoints import (
    WHOLE,
    WRITING,
    KeepCheckpoints,
    differences,
    put_aside,
    to_resume,
    whole_checkpoints,
)
from gemma_colab.training.guard import StopEarly, Tripwire, step_down
from gemma_colab.training.run import train

SETTINGS = TrainSettings(
    learning_rate=5e-3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    num_train_epochs=2,
    warmup_steps=0,
    gradient_checkpointing=False,
)  # 12 steps of 24 rows


@pytest.fixture(scope="module")
def data(support_rows):
    chats = [to_messages(row) for row in support_rows[1:33]]
    return Dataset.from_list(chats[:24]), Dataset.from_list(chats[24:])


@pytest.fixture
def go(random_gemma, tokenizer, data, tmp_path, monkeypatch):
    """go(settings, at={step: function}, **options) -> the Run, in `tmp_path / "checkpoints"`; a function is called after its step."""

    def go(settings=SETTINGS, at=None, model=None, rows=None, **options):
        class At(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if at and state.global_step in at:
                    at[state.global_step](model)

        build = run_module.build_trainer
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "build_trainer", lambda *args: build(*args[:-1], [At(), *args[-1]]))
            train_rows, validation = rows or data
            return train(
                model or load_4bit(random_gemma, torch.float32),
                tokenizer,
                train_rows,
                validation,
                settings,
                lora_config(LoraSettings(r=4)),
                torch.float32,
                tmp_path / "checkpoints",
                **options,
            )

    return go


def losses(run, name="loss"):
    return {line["step"]: line[name] for line in run.trainer.state.log_history if name in line}


def weights(run):
    return {name: p.detach().clone() for name, p in run.trainer.model.named_parameters() if p.requires_grad}


def same(a, b):
    assert len(a) == 28  # 2 blocks x 7 layers x A and B
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def interrupt(model):
    os.kill(os.getpid(), signal.SIGINT)


def test_the_losses_are_those_of_a_plain_trl_script(go, random_gemma, data, tokenizer, tmp_path):
    """Watchers, checkpoints and validation add nothing to the mathematics."""
    ours = go(model=load_model(random_gemma, torch.float32))
    plain = SFTTrainer(
        random_gemma,
        SFTConfig(
            str(tmp_path / "plain"),
            learning_rate=5e-3,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            seed=0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            model_init_kwargs={"dtype": torch.float32},
        ),
        train_dataset=data[0],
        processing_class=tokenizer,
        peft_config=lora_config(LoraSettings(r=4)),
    )
    plain.train()
    theirs = {line["step"]: line["loss"] for line in plain.state.log_history if "loss" in line}
    assert len(theirs) == 12
    assert losses(ours) == pytest.approx(theirs, abs=1e-5)


# --------------------------------------------------------------------------------------------- checkpoints
def test_a_run_leaves_the_newest_two_and_the_best_whole_and_in_place(go, tmp_path):
    run = go(made_with={"rows": "abc"})
    assert run.status == "finished"
    folder = tmp_path / "checkpoints"
    kept = {c.step for c in whole_checkpoints(folder)}
    best = min(losses(run, "eval_loss"), key=losses(run, "eval_loss").get)
    assert kept == {9, 12, best}
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"checkpoint-{step}" for step in kept)
    newest = whole_checkpoints(folder)[-1]
    assert (newest.made_with["rows"], newest.made_with["train"]["learning_rate"], newest.step) == ("abc", 5e-3, 12)
    files = {p.name for p in newest.path.iterdir()}
    assert files >= {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", WHOLE}
    assert "training_args.bin" not in files
    assert run.trainer.state.best_model_checkpoint == str(folder / f"checkpoint-{best}")
    assert list(losses(run)) == list(range(1, 13))  # every step is logged
    assert list(losses(run, "eval_loss")) == [3, 6, 9, 12]


def test_the_best_checkpoint_is_loaded_at_the_end(go, tmp_path):
    def spoil(model):  # from here on everything gets worse
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(std=5.0)

    run = go(SETTINGS.replace(early_stopping_patience=0), at={7: spoil})
    assert run.trainer.state.best_global_step == 6
    saved = whole_checkpoints(tmp_path / "checkpoints")
    assert [c.step for c in saved] == [6, 9, 12]  # the best one, though three more came
    from safetensors.torch import load_file

    best = load_file(saved[0].path / "adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in weights(run).items()}
    assert all(torch.equal(best[name], now[name].cpu()) for name in best)


def test_early_stopping_ends_the_run_and_counts_in_the_history(go, tmp_path):
    def spoil(model):
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.normal_(std=5.0)

    settings = SETTINGS.replace(evals_per_epoch=6, num_train_epochs=3, early_stopping_patience=2, learning_rate=1e-6)
    run = go(settings, at={4: spoil})
    assert run.status == "stopped early"
    assert run.trainer.state.global_step == run.trainer.state.best_global_step + 2
    early, control = StopEarly(2), type("Control", (), {"should_training_stop": False})()
    state = type("State", (), {"global_step": 5, "max_steps": 9})()
    state.log_history = [{"eval_loss": v} for v in (3, 2, 2.5, 2.1)]  # two of them before this process began
    early.on_evaluate(None, state, control)
    assert control.should_training_stop


def test_a_resumed_run_goes_on_exactly(go, tmp_path, random_gemma):
    whole = go(at={5: interrupt})
    assert whole.status == "interrupted"
    assert whole_checkpoints(tmp_path / "checkpoints")[-1].step == 5  # in the middle of an epoch
    resumed = go(resume=True)
    assert resumed.status == "finished"
    assert "resumed from step 5" in resumed.notes
    assert resumed.seconds > whole.seconds
    shutil.rmtree(tmp_path / "checkpoints")
    undisturbed = go()
    assert losses(resumed) == pytest.approx(losses(undisturbed), abs=1e-6)
    assert losses(resumed, "eval_loss") == pytest.approx(losses(undisturbed, "eval_loss"), abs=1e-6)
    same(weights(resumed), weights(undisturbed))


def test_a_second_interrupt_stops_at_once(go, tmp_path):
    def twice(model):
        interrupt(model)
        interrupt(model)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(at={5: twice})
    assert [c.step for c in whole_checkpoints(tmp_path / "checkpoints")] == [3]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_settings_or_data_are_refused_by_name_unless_told_otherwise(go, tmp_path):
    go(at={5: interrupt}, made_with={"rows": "abc", "lora": {"r": 4}})
    with pytest.raises(WorkspaceError, match=r"checkpoint-5 was made with other settings or data \(rows: abc then, xyz now\)"):
        go(resume=True, made_with={"rows": "xyz", "lora": {"r": 4}})
    with pytest.raises(WorkspaceError, match=r"learning_rate: 0.005 then, 0.001 now.*anyway=True"):
        go(SETTINGS.replace(learning_rate=1e-3), resume=True, made_with={"rows": "abc", "lora": {"r": 4}})
    run = go(SETTINGS.replace(learning_rate=1e-3), resume=True, anyway=True, made_with={"rows": "xyz", "lora": {"r": 4}})
    assert run.trainer.state.global_step == 12


def test_what_changes_only_time_and_memory_may_differ():
    then = {"rows": "a", "rows_per_update": 8, "train": {"per_device_train_batch_size": 8, "save_minutes": 5, "seed": 0}}
    now = {"rows": "a", "rows_per_update": 8, "train": {"per_device_train_batch_size": 2, "save_minutes": 1, "seed": 0}}
    assert differences(then, now) == []
    assert differences(then, now | {"rows_per_update": 4}) == ["rows_per_update: 8 then, 4 now"]
    assert differences(then, {"rows": "a", "rows_per_update": 8, "train": {"seed": 1}}) == ["seed: 0 then, 1 now"]


def test_only_whole_checkpoints_are_found(go, tmp_path):
    go()
    folder = tmp_path / "checkpoints"
    steps = [c.step for c in whole_checkpoints(folder)]
    (folder / f"checkpoint-{steps[-1]}" / "optimizer.pt").write_bytes(b"cut")
    assert [c.step for c in whole_checkpoints(folder)] == steps[:-1]
    (folder / f"checkpoint-{steps[-2]}" / WHOLE).unlink()
    assert [c.step for c in whole_checkpoints(folder)] == steps[:-2]
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(WorkspaceError, match="holds no whole checkpoint to resume from; start anew"):
        to_resume(folder, {})


def test_a_new_run_puts_the_old_checkpoints_aside(go, tmp_path):
    go(at={4: interrupt})
    run = go(SETTINGS.replace(num_train_epochs=1))
    assert [c.step for c in whole_checkpoints(tmp_path / "checkpoints-before")] == [3, 4]
    assert run.notes == ("the checkpoints of the run before are in checkpoints-before",)
    assert max(c.step for c in whole_checkpoints(tmp_path / "checkpoints")) == 6
    (tmp_path / "rest" / "checkpoint-3").mkdir(parents=True)  # nothing whole: nothing to keep
    assert put_aside(tmp_path / "rest") is None
    assert not (tmp_path / "rest").exists()


def test_a_checkpoint_is_written_after_so_many_minutes(go, tmp_path):
    """0.02 minutes are 1.2 s, which the steps don't take; the clock is turned on by hand."""
    clock, now = [], [0.0]
    real = run_module.KeepCheckpoints

    def keep(*args, **options):
        clock.append(real(*args, **options, clock=lambda: now[0]))
        return clock[0]

    run_module.KeepCheckpoints = keep
    try:
        go(
            SETTINGS.replace(evals_per_epoch=1, num_train_epochs=1),
            at={1: lambda m: now.__setitem__(0, 299), 2: lambda m: now.__setitem__(0, 301)},
        )
    finally:
        run_module.KeepCheckpoints = real
    assert [c.step for c in whole_checkpoints(tmp_path / "checkpoints")] == [2, 6]
    assert [c.seconds for c in whole_checkpoints(tmp_path / "checkpoints")] == [301, 301]


def test_no_room_is_said_before_training_and_survived_in_it(go, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "KeepCheckpoints", lambda *a, **k: KeepCheckpoints(*a, **k, free=lambda path: 0.01))
    with pytest.raises(WorkspaceError, match=r"0\.01 GiB are free where .* lies, and checkpoints need 0\.\d\d; make room"):
        go()
    free, said = [100.0], []
    keep = lambda *a, **k: KeepCheckpoints(*a, **k | {"say": said.append}, free=lambda path: free[0])  # noqa: E731
    monkeypatch.setattr(run_module, "KeepCheckpoints", keep)
    run = go(at={4: lambda m: free.__setitem__(0, 0.0), 10: lambda m: free.__setitem__(0, 100.0)})
    assert run.status == "finished"
    assert [c.step for c in whole_checkpoints(tmp_path / "checkpoints")] == [3, 12]
    assert [line.split(":")[0] for line in said] == ["step 6", "step 9"]


def test_a_checkpoint_moved_to_another_folder_still_finds_its_best(go, tmp_path, random_gemma):
    go(at={7: interrupt})
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "checkpoints")
    state = tmp_path / "checkpoints" / "checkpoint-7" / "trainer_state.json"
    text = state.read_text()
    assert str(tmp_path) in text
    other = text.replace(str(tmp_path), "/another/machine")
    state.write_text(other)
    listed = json.loads((state.parent / WHOLE).read_text())
    listed["files"]["trainer_state.json"] = state.stat().st_size
    (state.parent / WHOLE).write_text(json.dumps(listed))
    run = go(SETTINGS, resume=True)
    assert run.trainer.state.best_model_checkpoint.startswith(str(tmp_path))


# --------------------------------------------------------------------------------------------- memory
class Limit:
    """A forward hook that raises what CUDA raises, for batches of more tokens than fit, until it is lifted."""

    def __init__(self, model, tokens, from_call=0):
        self.tokens, self.calls, self.from_call = tokens, 0, from_call
        self.handle = model.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls += 1
        if self.calls > self.from_call and kwargs["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_halves_the_batch_and_changes_nothing_else(go, tmp_path, random_gemma, data, tokenizer, capsys):
    undisturbed = go()
    longest = max(map(len, undisturbed.trainer.train_dataset["input_ids"]))
    shutil.rmtree(tmp_path / "checkpoints")
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 2 * longest)
    run = go(model=model)
    assert (run.settings.per_device_train_batch_size, run.settings.gradient_accumulation_steps) == (2, 2)
    assert losses(run) == pytest.approx(losses(undisturbed), abs=1e-4)  # sums in another order
    assert "per_device_train_batch_size 4 -> 2, gradient_accumulation_steps 1 -> 2: the same 4 rows" in run.notes[-1]
    assert "the GPU's memory ran out at step 1 (CUDA out of memory. Tried to allocate 2.00 GiB.)" in capsys.readouterr().out


def test_out_of_memory_in_the_middle_keeps_what_was_learnt(go, tmp_path, random_gemma):
    undisturbed = go()
    longest = max(map(len, undisturbed.trainer.train_dataset["input_ids"]))
    shutil.rmtree(tmp_path / "checkpoints")
    model, seen = load_4bit(random_gemma, torch.float32), []
    # Three validations of 8 rows in batches of 4 have gone by, when in step 8 the memory gets short.
    limit = Limit(model, 2 * longest, from_call=10**9)
    run = go(
        model=model,
        at={7: lambda m: setattr(limit, "from_call", 0), **{n: lambda m, n=n: seen.append(n) for n in (1, 2, 3, 8)}},
        plan=lambda s: pd.Series({"weights": 1.0, "activations": 5.0, "overhead": 0.5, "optimizer": 0.1}),
    )
    assert seen == [1, 2, 3, 8]  # no step was made twice
    assert (
        "at step 8 (predicted for these settings 6.6 GiB, most of it activations 5.0, weights 1.0, overhead 0.5)" in run.notes[0]
    )
    assert losses(run) == pytest.approx(losses(undisturbed), abs=1e-4)
    assert losses(run, "eval_loss") == pytest.approx(losses(undisturbed, "eval_loss"), abs=1e-4)


def test_the_ladder_ends_with_a_sentence_and_shorter_rows_need_consent(go, random_gemma, tmp_path):
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 0)
    with pytest.raises(
        TrainingError, match=r"what is left is to cut rows to max_length=\d+ tokens: allow that with shorter_rows"
    ):
        go(model=model)
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 150)
    run = go(model=model, shorter_rows=True)
    assert run.settings.max_length < 200
    assert run.settings.gradient_checkpointing
    assert [note.split("; ")[-1].split(" ")[0] for note in run.notes][-1] == "max_length"


@pytest.mark.parametrize(
    ("batch", "accumulation", "then"), [(8, 1, (4, 2)), (6, 2, (3, 4)), (3, 1, (1, 3)), (5, 2, (2, 5)), (1, 8, (1, 8))]
)
def test_every_rung_keeps_the_rows_behind_an_update(batch, accumulation, then):
    settings = SETTINGS.replace(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    lower, _ = step_down(settings, 300, shorter_rows=False)
    assert (lower.per_device_train_batch_size, lower.gradient_accumulation_steps) == then
    assert lower.effective_batch == settings.effective_batch
    assert lower.gradient_checkpointing == (batch == 1)  # only when the batch can't get smaller


def test_packed_rows_are_never_cut():
    settings = SETTINGS.replace(per_device_train_batch_size=1, gradient_checkpointing=True, packing=True)
    assert step_down(settings, 1024, shorter_rows=True)[0] is None


# --------------------------------------------------------------------------------------------- no number
def nan(model):
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.data.fill_(float("nan"))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_before(go, tmp_path):
    with pytest.raises(
        TrainingError, match=r"the loss is no number since step 8; likely cause: .*; the checkpoint of step 6"
    ) as e:
        go(at={7: nan})
    assert [line["step"] for line in e.value.log_history if "loss" in line][-1] == 8
    from safetensors.torch import load_file

    for checkpoint in whole_checkpoints(tmp_path / "checkpoints"):
        assert all(t.isfinite().all() for t in load_file(checkpoint.path / "adapter_model.safetensors").values())


def trip(lines, skipped=0, fp16=False, rate=1e-3):
    wire = Tripwire(skipped)
    args = type("Args", (), {"fp16": fp16, "learning_rate": rate})()
    state = type("State", (), {"log_history": [], "global_step": 0})()
    control = type("Control", (), {"should_training_stop": False, "should_save": True, "should_evaluate": True})()
    for step, line in enumerate(lines, 1):
        state.global_step = step
        state.log_history.append(line)
        wire.on_log(args, state, control, logs=line)
        if control.should_training_stop:
            assert (control.should_save, control.should_evaluate) == (False, False)
            return step, wire.reason
    return None, wire.reason


NAN = float("nan")


@pytest.mark.parametrize(
    ("lines", "options", "stopped", "says"),
    [
        ([{"loss": 3.0, "grad_norm": 1.0}] * 20, {}, None, ""),
        ([{"loss": 3.0, "grad_norm": NAN}], {}, 1, "the gradient is no number since step 1"),
        ([{"loss": 3.0, "grad_norm": NAN}] * 5 + [{"loss": 3.0, "grad_norm": 1.0}] * 9, {"skipped": 12}, None, ""),
        ([{"loss": 3.0, "grad_norm": NAN}] * 20, {"skipped": 12, "fp16": True}, 13, "float16 overflowed; load the model"),
        ([{"loss": NAN}], {"skipped": 12}, 1, "the loss is no number"),
        ([{"loss": 3.0}, {"loss": 0.0}, {"loss": 0.0}, {"loss": 3.0}, {"loss": 0.0}], {}, None, ""),
        ([{"loss": 3.0}] + [{"loss": 0.0}] * 3, {}, 4, "exactly 0 since step 2; likely cause: no answer token"),
        ([{"loss": 3.0}, {"loss": 9.0}, {"loss": NAN}], {}, 3, "the learning rate 0.001 is too high, the loss rose"),
        ([{"loss": 3.0}, {"eval_loss": NAN}], {}, 2, "the validation loss is no number"),
    ],
)
def test_the_tripwire_tolerates_what_a_scaler_skips_and_names_the_cause(lines, options, stopped, says):
    step, reason = trip(lines, **options)
    assert step == stopped
    assert says in reason


# --------------------------------------------------------------------------------------------- the model afterwards
def test_a_cell_run_twice_trains_a_fresh_adapter_each_time(go, tmp_path, random_gemma):
    model = load_4bit(random_gemma, torch.float32)
    first = go(model=model)
    a = losses(first)
    second = go(model=model)
    assert losses(second) == pytest.approx(a, abs=1e-6)
    layers = [m for m in second.trainer.model.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert not any(isinstance(layer.get_base_layer(), LoraLayer) for layer in layers)


def test_nothing_is_left_of_the_writing(go, tmp_path):
    go()
    assert not (tmp_path / "checkpoints" / WRITING).exists()
