"""A whole training run: checkpoints that are whole, resumed or refused; interrupted, out of memory, broken."""

import copy
import errno
import json
import os
import random
import resource
import shutil
import signal
from types import SimpleNamespace
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from steps import load_4bit, plain_losses
from test_short_runs import fields
from transformers import TrainerCallback

from gemma_colab.core.errors import TrainingError, WorkspaceError
from gemma_colab.core.loading import load_model
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.evaluation.generation import generate
from gemma_colab.training import checkpoints as module
from gemma_colab.training import run as run_module
from gemma_colab.training import watch
from gemma_colab.training.checkpoints import MARK, checkpoint_to_resume, differences, put_aside, whole_checkpoints
from gemma_colab.training.guard import StopOnNonFiniteLoss, save_memory
from gemma_colab.training.run import train

SETTINGS = TrainSettings(
    learning_rate=5e-3,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=1,
    num_train_epochs=2,
    warmup_steps=0,
    gradient_checkpointing=False,
)  # 12 steps of 24 rows


class Program:
    """Its pickle runs when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def data(support_rows):
    rows = [to_messages(row) for row in support_rows[1:33]]
    return Dataset.from_list(rows[:24]), Dataset.from_list(rows[24:])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def go(random_gemma, tokenizer, data, folder, monkeypatch):
    """go(settings, at={step: function}, **options) -> the Run, in `folder`; a function is called with the model after its step."""

    def go(settings=SETTINGS, at=None, model=None, **options):
        class At(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if at and state.global_step in at:
                    at[state.global_step](model)

        build, model = run_module.build_trainer, model or load_4bit(random_gemma, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "build_trainer", lambda *args: build(*args[:-1], [At(), *args[-1]]))
            lora = lora_config(LoraSettings(r=4))
            return train(model, tokenizer, *data, settings, lora, torch.float32, folder, **options)

    return go


def losses(run, name="loss"):
    return {line["step"]: line[name] for line in run.trainer.state.log_history if name in line}


def weights(run):
    return {name: p.detach().clone() for name, p in run.trainer.model.named_parameters() if p.requires_grad}


def steps(folder):
    return [checkpoint.step for checkpoint in whole_checkpoints(folder)]


def rewrite(checkpoint, change_state, change_mark=lambda made_with: None):
    """Change the text of its state and what it was made with, and keep it whole."""
    state, mark = checkpoint / "trainer_state.json", json.loads((checkpoint / MARK).read_text())
    state.write_text(change_state(state.read_text()))
    change_mark(mark["made_with"])
    mark["files"]["trainer_state.json"] = state.stat().st_size
    (checkpoint / MARK).write_text(json.dumps(mark))


def interrupt(model):
    os.kill(os.getpid(), signal.SIGINT)


def spoil(model):
    """From here on everything is worse."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=5.0)


def test_the_losses_are_those_of_a_plain_trl_script(go, random_gemma, data, tokenizer, tmp_path):
    """Watchers, checkpoints and validation add nothing to the mathematics."""
    ours = go(model=load_model(random_gemma, torch.float32))
    whole = {"dtype": torch.float32}
    theirs = plain_losses(random_gemma, tokenizer, list(data[0]), 4, tmp_path, num_train_epochs=2, model_init_kwargs=whole)
    assert len(theirs) == 12
    assert list(losses(ours).values()) == pytest.approx(theirs, abs=1e-5)


# --------------------------------------------------------------------------------------------- checkpoints
def test_asking_while_training_changes_nothing(go, folder, tokenizer, data, monkeypatch):
    monkeypatch.setattr(watch, "display", lambda *shown, **how: SimpleNamespace(update=lambda page: None))
    monkeypatch.setattr(watch, "ASKING", 100.0)  # whatever it takes
    said = []

    def ask(model, seconds):
        prompts = [row["messages"][:-1] for row in data[1].select(range(3)).to_list()]
        said.append(generate(model, tokenizer, prompts, max_new_tokens=6, description=None)["answer"].tolist())
        return dict(zip("abc", said[-1], strict=True))

    noisy = SETTINGS.replace(neftune_noise_alpha=5.0)  # random numbers in each step
    silent = go(noisy, show=watch.LiveCurve())
    asked = go(noisy, show=watch.LiveCurve(None, ask))
    assert losses(asked) == losses(silent)
    assert losses(asked, "eval_loss") == losses(silent, "eval_loss")
    before = weights(silent)
    assert all(torch.equal(p, before[name]) for name, p in weights(asked).items())
    assert asked.answers.to_numpy().tolist() == said
    assert list(asked.answers.index) == [3, 6, 9, 12]
    assert len(silent.answers) == 0
    again = go(noisy, show=watch.LiveCurve(), resume=True)  # a checkpoint brings them back
    assert again.answers.equals(asked.answers)


def test_a_longer_run_goes_on_with_the_rate_of_its_own_schedule(go, folder):
    first = go(SETTINGS.replace(warmup_steps=2))
    run = go(SETTINGS.replace(warmup_steps=2, num_train_epochs=3), resume=True, longer=True)
    assert run.notes == ("resumed from step 12, now for 3 epochs",)
    rates = losses(run, "learning_rate")
    assert [rates[step] for step in range(1, 13)] == list(losses(first, "learning_rate").values())
    assert [rates[step] for step in range(14, 19)] == pytest.approx([5e-3 * (19 - step) / 16 for step in range(14, 19)])
    assert losses(run)[12] == losses(first)[12]
    assert run.trainer.state.best_metric == min(losses(run, "eval_loss").values())
    with pytest.raises(WorkspaceError, match=r"learning_rate: 0\.005 then, 0\.001 now"):
        go(SETTINGS.replace(warmup_steps=2, num_train_epochs=4, learning_rate=1e-3), resume=True, longer=True)


def test_a_run_leaves_the_newest_two_and_the_best_whole(go, folder):
    run = go(made_with={"rows": "abc"})
    assert run.status == "finished"
    best = min(losses(run, "eval_loss"), key=losses(run, "eval_loss").get)
    assert set(steps(folder)) == {9, 12, best}
    assert {p.name for p in folder.iterdir()} == {module.OURS, *(f"checkpoint-{step}" for step in steps(folder))}
    newest = whole_checkpoints(folder)[-1]
    assert (newest.made_with["rows"], newest.made_with["train"]["learning_rate"]) == ("abc", 5e-3)
    files = {p.name for p in newest.path.iterdir()}
    assert files >= {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MARK}
    assert "training_args.bin" not in files
    assert run.trainer.state.best_model_checkpoint == str(folder / f"checkpoint-{best}")
    assert list(losses(run)) == list(range(1, 13))  # every step is logged
    assert list(losses(run, "eval_loss")) == [3, 6, 9, 12]
    assert len(run.plot().lines) >= 2


def test_the_best_checkpoint_is_kept_and_loaded_at_the_end(go, folder):
    run = go(SETTINGS.replace(early_stopping_patience=0), at={7: spoil})
    assert run.trainer.state.best_global_step == 6
    assert steps(folder) == [6, 9, 12]  # the best one, though more came
    best = load_file(folder / "checkpoint-6" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in weights(run).items()}
    assert all(torch.equal(best[name], now[name].cpu()) for name in best)


def test_early_stopping_counts_what_earlier_processes_validated(go, folder):
    settings = SETTINGS.replace(evals_per_epoch=6, num_train_epochs=3, early_stopping_patience=3, learning_rate=1e-6)
    run = go(settings, at={4: spoil, 5: interrupt})
    best = run.trainer.state.best_global_step
    assert (run.status, run.trainer.state.global_step) == ("interrupted", 5)
    resumed = go(settings, resume=True)
    assert resumed.status == "stopped early"
    assert resumed.trainer.state.global_step == best + 3


@pytest.mark.parametrize("patience", [(0, 2), (2, 0)])
def test_the_patience_may_change_at_a_resume(go, folder, patience):
    before, after = patience
    settings = SETTINGS.replace(evals_per_epoch=6, num_train_epochs=3, early_stopping_patience=before, learning_rate=1e-6)
    run = go(settings, at={4: spoil, 5: interrupt})
    resumed = go(settings.replace(early_stopping_patience=after), resume=True)
    stopped = run.trainer.state.best_global_step + 2
    assert resumed.trainer.state.global_step == (max(6, stopped) if after else 18)


def test_while_one_run_trains_another_one_is_refused(go, folder):
    said = []

    def second(model):
        with pytest.raises(WorkspaceError, match=r"another training writes checkpoints to .*; wait for its end") as refused:
            go(SETTINGS.replace(num_train_epochs=1), model=copy.deepcopy(model))
        said.append(refused)

    run = go(at={7: second})
    assert (len(said), run.status, steps(folder)[-1]) == (1, "finished", 12)
    assert go(SETTINGS.replace(num_train_epochs=1)).status == "finished"  # the first is over


def test_a_drive_without_locks_is_trained_on_all_the_same(go, monkeypatch):
    def flock(*how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert go(SETTINGS.replace(num_train_epochs=1)).status == "finished"


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_program_in_a_checkpoint_is_not_run_and_torchs_advice_to_run_it_not_passed_on(go, folder, file, tmp_path):
    go(at={5: interrupt})
    newest, mark = whole_checkpoints(folder)[-1], folder / "checkpoint-5" / MARK
    torch.save(Program(tmp_path / "it_ran"), newest.path / file)
    sizes = json.loads(mark.read_text())
    sizes["files"][file] = (newest.path / file).stat().st_size
    mark.write_text(json.dumps(sizes))
    with pytest.raises(WorkspaceError, match=r"checkpoint-5 holds a file that is not of this training .*; start anew") as refused:
        go(resume=True)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("kind", ["short", "unfolded", "a number more"])
def test_an_optimizer_of_other_sizes_is_refused(go, folder, kind):
    """torch writes beyond what is shorter than its weight, or says that it repeats itself; a long text makes the file as large as it says."""
    go(at={5: interrupt})
    file, mark = folder / "checkpoint-5" / "optimizer.pt", folder / "checkpoint-5" / MARK
    state = torch.load(file, weights_only=True)
    for kept in state["state"].values():
        odd = {"short": torch.full((4,), 1.0), "unfolded": torch.zeros(1).expand(kept["exp_avg"].shape)}.get(kind)
        kept |= {"max_exp_avg_sq": torch.zeros(4)} if odd is None else {"exp_avg": odd}
    state["param_groups"][0]["amsgrad"] = kind == "a number more"
    torch.save(state | {"pad": "x" * file.stat().st_size}, file)
    sizes = json.loads(mark.read_text())
    sizes["files"]["optimizer.pt"] = file.stat().st_size
    mark.write_text(json.dumps(sizes))
    with pytest.raises(WorkspaceError, match=r"optimizer\.pt.*; start anew, with resume=False"):
        go(resume=True)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "optimizer.bin"])
@pytest.mark.parametrize("kind", ["packed", "twice", "views", "lists"])
def test_no_state_of_a_checkpoint_holds_more_than_its_file(tmp_path, monkeypatch, file, kind):
    """Of 40 KB each: zeros that are packed, a record under two names, tensors on the same bytes, lists that hold the same list."""
    path, zeros = tmp_path / "checkpoint-2" / file, torch.zeros(10_000)
    path.parent.mkdir()
    held = {"state": {"packed": [zeros], "twice": [zeros, zeros.clone()], "views": [zeros[:] for _ in range(9)]}.get(kind)}
    if kind == "lists":
        for _ in range(9):
            held = [held] * 10
    torch.save(held, path)
    if kind in ("packed", "twice"):
        with ZipFile(path) as saved:
            records = {part.filename: saved.read(part) for part in saved.infolist()}
        with ZipFile(path, "w", ZIP_DEFLATED if kind == "packed" else ZIP_STORED) as packed:
            for name, record in records.items():
                if not (kind == "twice" and name.endswith("data/1")):
                    packed.writestr(name, record)
            for part in packed.infolist():
                if kind == "twice" and part.filename.endswith("data/0"):
                    again = copy.copy(part)
                    again.filename = part.filename[:-1] + "1"
                    packed.filelist.append(again)
    (path.parent / MARK).write_text(json.dumps({"step": 2, "seconds": 1, "made_with": {}, "files": {file: path.stat().st_size}}))
    if kind in ("packed", "twice"):
        monkeypatch.setattr("torch.load", lambda *a, **k: pytest.fail("it was read"))
    cause = rf"checkpoint-2 holds a file that is not of this training \({file}: it says that it holds more than it does\)"
    with pytest.raises(WorkspaceError, match=cause + r"; start anew"):
        checkpoint_to_resume(tmp_path, {})


def test_what_8_bit_optimizers_share_and_what_torch_saves_is_read(tmp_path):
    table, path = torch.zeros(256), tmp_path / "checkpoint-2" / "optimizer.pt"
    path.parent.mkdir()
    torch.save({"state": {n: {"exp_avg": torch.zeros(4), "qmap1": table} for n in range(99)}}, path)
    torch.save({"numpy": np.random.get_state(), "python": random.getstate()}, path.with_name("rng_state.pth"))
    sizes = {file.name: file.stat().st_size for file in path.parent.iterdir()}
    (path.parent / MARK).write_text(json.dumps({"step": 2, "seconds": 1, "made_with": {}, "files": sizes}))
    assert checkpoint_to_resume(tmp_path, {}).step == 2


def test_a_checkpoint_under_another_number_is_none(go, folder):
    go(at={5: interrupt})
    mark = folder / "checkpoint-5" / MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"step": 1}))
    assert steps(folder)[-1:] != [5]
    assert 1 not in steps(folder)


def test_a_resumed_run_goes_on_exactly(go, folder):
    whole = go(at={5: interrupt})
    assert whole.status == "interrupted"
    assert steps(folder)[-1] == 5  # in the middle of an epoch
    resumed = go(resume=True)
    assert (resumed.status, resumed.notes) == ("finished", ("resumed from step 5",))
    assert resumed.seconds > whole.seconds
    shutil.rmtree(folder)
    undisturbed = go()
    for name in ("loss", "eval_loss"):
        assert losses(resumed, name) == pytest.approx(losses(undisturbed, name), abs=1e-6)
    a, b = weights(resumed), weights(undisturbed)
    assert len(a) == 28  # 2 blocks x 7 layers x A and B
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_a_checkpoint_of_an_older_version_is_gone_on_from(go, folder, capsys):
    """Its settings lack a field that exists now, and hold one that doesn't; its state knows no early stopping."""
    go(SETTINGS.replace(early_stopping_patience=0, last_answer_only=True), at={5: interrupt})

    def of_then(made_with):
        assert made_with["train"].pop("last_answer_only") is True
        made_with["train"]["fancy"] = 3

    rewrite(
        folder / "checkpoint-5",
        lambda text: json.dumps(json.loads(text) | {"stateful_callbacks": {"TrainerControl": {}}}),
        of_then,
    )
    run = go(SETTINGS.replace(last_answer_only=True), resume=True)
    assert run.trainer.state.global_step == 12
    assert "settings that this version doesn't know, and they are left out: fancy" in capsys.readouterr().out


def test_a_second_interrupt_stops_at_once(go, folder):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        go(at={5: lambda model: (interrupt(model), interrupt(model))})
    assert steps(folder) == [3]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_is_told_to_end_leaves_a_checkpoint_too(go, folder):
    """SIGTERM: so a machine of a cluster, or `kill`, ends a program."""
    before = signal.signal(signal.SIGTERM, lambda *args: pytest.fail("nobody has taken SIGTERM"))
    try:
        run = go(SETTINGS.replace(num_train_epochs=1), at={2: lambda model: os.kill(os.getpid(), signal.SIGTERM)})
    finally:
        assert signal.signal(signal.SIGTERM, before) is not before
    assert (run.status, steps(folder)) == ("interrupted", [2])


def test_other_settings_or_data_are_refused_by_name_unless_told_otherwise(go):
    go(at={5: interrupt}, made_with={"rows": "abc", "lora": {"r": 4}})
    with pytest.raises(WorkspaceError, match=r"checkpoint-5 was made with other settings or data \(rows: abc then, xyz now\)"):
        go(resume=True, made_with={"rows": "xyz", "lora": {"r": 4}})
    other = SETTINGS.replace(learning_rate=1e-3)
    with pytest.raises(WorkspaceError, match=r"learning_rate: 0.005 then, 0.001 now.*anyway=True"):
        go(other, resume=True, made_with={"rows": "abc", "lora": {"r": 4}})
    run = go(other, resume=True, anyway=True, made_with={"rows": "xyz", "lora": {"r": 4}})
    assert run.trainer.state.global_step == 12


def test_what_changes_only_time_and_memory_may_differ():
    then = {"rows": "a", "rows_per_update": 8, "train": {"per_device_train_batch_size": 8, "save_minutes": 5, "seed": 0}}
    now = {"rows": "a", "rows_per_update": 8, "train": {"per_device_train_batch_size": 2, "save_minutes": 1, "seed": 0}}
    assert differences(then, now, "") == []
    assert differences(then, now | {"rows_per_update": 4}, "") == ["rows_per_update: 8 then, 4 now"]
    assert differences(then, now | {"train": {"seed": 1}}, "") == ["seed: 0 then, 1 now"]


def test_only_whole_checkpoints_are_found_and_half_ones_make_room(go, folder):
    go()
    *first, last = steps(folder)
    (folder / f"checkpoint-{last}" / "optimizer.pt").write_bytes(b"cut")
    assert steps(folder) == first
    (folder / f"checkpoint-{first[-1]}" / MARK).unlink()
    assert steps(folder) == first[:-1]
    if first[:-1]:
        go(resume=True)
        assert steps(folder)[-1] == 12
    shutil.rmtree(folder)
    with pytest.raises(WorkspaceError, match="holds no whole checkpoint to resume from; start anew"):
        checkpoint_to_resume(folder, {})


@pytest.mark.parametrize("spoilt", [{"best_global_step": "x"}, {"log_history": {}}, {"unknown": 1}, {"global_step": None}])
def test_a_spoilt_state_is_refused_in_a_sentence(go, folder, spoilt):
    go(at={5: interrupt})
    rewrite(folder / "checkpoint-5", lambda text: json.dumps(json.loads(text) | spoilt))
    with pytest.raises(WorkspaceError, match=r"checkpoint-5/trainer_state.json is spoilt \(.*\); start anew"):
        go(resume=True)


def test_only_its_owner_reads_what_a_checkpoint_logs(go, folder):
    folder.mkdir(mode=0o755)
    go(SETTINGS.replace(num_train_epochs=1))
    assert folder.stat().st_mode & 0o077 == 0


def test_a_new_run_puts_the_old_one_aside(go, folder):
    go(at={5: interrupt})
    run = go(at={4: interrupt})
    assert run.notes == ("the checkpoints of the run before are in checkpoints-before",)
    assert steps(folder.with_name("checkpoints-before"))[-1] == 5
    assert steps(folder)[-1] == 4
    (folder.parent / "rest" / "checkpoint-3").mkdir(parents=True)  # nothing whole: nothing to keep
    assert put_aside(folder.parent / "rest") is None


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


@pytest.mark.parametrize("name", ["thesis.docx", ".git/config", "checkpoint-3/adapter_model.safetensors", "README.md"])
@pytest.mark.parametrize("place", ["checkpoints", "checkpoints-before"])
def test_a_folder_of_something_else_is_refused_and_stays(go, folder, place, name):
    made(folder.with_name(place), name)
    with pytest.raises(WorkspaceError, match=rf"{place}' holds '{name.partition('/')[0]}', which no run .*; name a new folder"):
        go()
    assert (folder.with_name(place) / name).read_text() == "mine"
    assert len(list(folder.parent.rglob("*"))) == 2 + name.count("/")


def test_only_checkpoints_are_moved_or_deleted(go, folder):
    before, mine = folder.with_name("checkpoints-before"), ["README.md", "notes/a.txt", "checkpoint-best/a", ".git/config"]
    go(at={1: interrupt})
    made(folder, *mine)
    for _ in range(2):
        go(at={1: interrupt})
    assert all((folder / name).read_text() == "mine" for name in mine)
    made(before, *mine)
    go(at={1: interrupt})
    assert all((place / name).read_text() == "mine" for place in (folder, before) for name in mine)
    assert steps(folder) == steps(before) == [1]


def test_checkpoints_of_a_version_that_left_no_sign_are_ours(go, folder):
    go(at={1: interrupt})
    (folder / module.OURS).unlink()
    go(at={2: interrupt})
    assert steps(folder) == [2]
    assert steps(folder.with_name("checkpoints-before")) == [1]


def test_a_checkpoint_is_written_after_so_many_minutes(go, folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    turn = {1: lambda m: now.__setitem__(0, 299), 2: lambda m: now.__setitem__(0, 301)}
    go(SETTINGS.replace(evals_per_epoch=1, num_train_epochs=1), at=turn)
    assert steps(folder) == [2, 6]
    assert [c.seconds for c in whole_checkpoints(folder)] == [301, 301]


def test_no_room_is_said_before_training_and_survived_in_it(go, folder, monkeypatch, capsys):
    free = [0.01]
    monkeypatch.setattr(module, "free_gib", lambda path: free[0])
    with pytest.raises(WorkspaceError, match=r"0\.01 GiB are free for .*, and checkpoints need 0\.\d\d; make room"):
        go()
    free[0] = 100.0
    run = go(at={4: lambda m: free.__setitem__(0, 0.0), 10: lambda m: free.__setitem__(0, 100.0)})
    assert run.status == "finished"
    assert steps(folder) == [3, 12]
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "no room for a checkpoint" in line]
    assert said == ["step 6", "step 9"]


@pytest.fixture
def longest():
    """longest(n) lets no file be longer than n bytes, a real error of writing, as of a quota; longest() sets it back."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda n=hard: resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_checkpoint_that_cannot_be_written_ends_no_run_and_leaves_nothing(go, folder, longest, capsys):
    run = go(at={4: lambda model: longest(60_000), 10: lambda model: longest()})
    assert run.status == "finished"
    assert list(losses(run)) == list(range(1, 13))
    assert steps(folder) == [3, 12]
    assert {path.name for path in folder.iterdir()} == {module.OURS, "checkpoint-3", "checkpoint-12"}
    said = [line for line in capsys.readouterr().out.splitlines() if "no checkpoint was written to" in line]
    assert [line.split(":")[0] for line in said] == ["step 6", "step 9"]
    assert all("Error: " in line and line.endswith("training goes on, make room there") for line in said)


@pytest.mark.parametrize("write", ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"])
def test_wherever_writing_breaks_off_no_half_checkpoint_is_left(go, folder, monkeypatch, write):
    from trl import SFTTrainer

    whole = getattr(SFTTrainer, write)

    def broken(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        raise Exception("Disk quota exceeded (os error 122)")  # as tokenizers does

    monkeypatch.setattr(SFTTrainer, write, broken)
    run = go(SETTINGS.replace(num_train_epochs=1))
    assert run.status == "finished"
    assert [path.name for path in folder.iterdir()] == [module.OURS]
    assert run.adapter_step == 6


def test_the_run_says_which_step_the_adapter_is_of_when_the_best_could_not_be_saved(go, folder, longest, capsys):
    at = {5: lambda model: longest(60_000), 7: lambda model: (longest(), spoil(model))}  # step 6 is the best, and isn't saved
    run = go(SETTINGS.replace(early_stopping_patience=0), at=at)
    assert min(losses(run, "eval_loss"), key=losses(run, "eval_loss").get) == 6
    assert run.adapter_step == run.trainer.state.best_global_step == 3  # the best of those that were
    assert run.trainer.state.best_metric == losses(run, "eval_loss")[3]
    note = "step 6, the best on the validation rows, could not be saved: the adapter is that of step 3"
    assert note == run.notes[-1]
    assert note in capsys.readouterr().out
    assert steps(folder) == [3, 9, 12]
    best = load_file(folder / "checkpoint-3" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in weights(run).items()}
    assert all(torch.equal(best[name], now[name].cpu()) for name in best)


def test_a_best_that_is_the_last_and_could_not_be_saved_stays_in_memory(go, folder, longest):
    run = go(at={10: lambda model: longest(60_000)})
    longest()
    assert min(losses(run, "eval_loss"), key=losses(run, "eval_loss").get) == run.adapter_step == 12
    assert run.notes == ()
    older = load_file(folder / "checkpoint-9" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in weights(run).items()}
    assert not any(torch.equal(older[name], now[name].cpu()) for name in older if "lora_B" in name)


def test_no_room_at_the_best_point_is_recorded_too(go, folder, monkeypatch):
    free = [100.0]
    monkeypatch.setattr(module, "free_gib", lambda path: free[0])
    at = {5: lambda m: free.__setitem__(0, 0.0), 7: lambda m: (free.__setitem__(0, 100.0), spoil(m))}
    run = go(SETTINGS.replace(early_stopping_patience=0), at=at)
    assert (run.adapter_step, steps(folder)) == (3, [3, 9, 12])
    assert "the adapter is that of step 3" in run.notes[-1]


def test_an_error_that_says_nothing_is_told_by_its_name(go, folder, monkeypatch, capsys):
    def nothing(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("trl.SFTTrainer._save_rng_state", nothing)
    assert go(SETTINGS.replace(num_train_epochs=1)).status == "finished"
    assert "MemoryError: MemoryError; training goes on" in capsys.readouterr().out


def test_a_finished_run_moved_to_another_folder_still_gives_its_best(go, folder):
    go(SETTINGS.replace(early_stopping_patience=0), at={7: spoil})
    rewrite(folder / "checkpoint-12", lambda text: text.replace(str(folder.parent), "/another/machine"))
    resumed = go(SETTINGS.replace(early_stopping_patience=0), resume=True)
    assert resumed.adapter_step == 6
    best = load_file(folder / "checkpoint-6" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): p for name, p in weights(resumed).items()}
    assert all(torch.equal(best[name], now[name].cpu()) for name in best)


def test_a_checkpoint_moved_to_another_folder_still_finds_its_best(go, folder):
    go(at={7: interrupt})
    assert str(folder) in (folder / "checkpoint-7" / "trainer_state.json").read_text()
    rewrite(folder / "checkpoint-7", lambda text: text.replace(str(folder.parent), "/another/machine"))
    assert go(resume=True).trainer.state.best_model_checkpoint.startswith(str(folder))


# --------------------------------------------------------------------------------------------- memory
class Limit:
    """A forward hook that raises what CUDA raises, for batches of more tokens than fit, from some call on."""

    def __init__(self, model, tokens, from_call=0):
        self.tokens, self.calls, self.from_call = tokens, 0, from_call
        model.model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.calls += 1
        if self.calls > self.from_call and kwargs["input_ids"].numel() > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_halves_the_batch_and_keeps_what_was_learned(go, folder, random_gemma, capsys):
    undisturbed = go()
    longest = max(map(len, undisturbed.trainer.train_dataset["input_ids"]))
    shutil.rmtree(folder)
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 2 * longest)
    run = go(model=model)
    assert (run.settings.per_device_train_batch_size, run.settings.gradient_accumulation_steps) == (2, 2)
    assert losses(run) == pytest.approx(losses(undisturbed), abs=1e-4)  # sums in another order
    assert "per_device_train_batch_size 4 -> 2, gradient_accumulation_steps 1 -> 2: the same 4 rows" in run.notes[-1]
    assert "the GPU's memory ran out at step 1 (CUDA out of memory. Tried to allocate 2.00 GiB.)" in capsys.readouterr().out
    shutil.rmtree(folder)
    model, seen = load_4bit(random_gemma, torch.float32), []
    limit = Limit(model, 2 * longest, from_call=10**9)  # until step 8
    run = go(
        model=model,
        at={7: lambda m: setattr(limit, "from_call", 0), **{n: lambda m, n=n: seen.append(n) for n in (1, 6, 8)}},
        plan=lambda s: pd.Series({"weights": 1.0, "activations": 5.0, "overhead": 0.5, "optimizer": 0.1}),
    )
    assert seen == [1, 6, 8]  # from the checkpoint of step 6, not from the start
    predicted = "predicted for these settings 6.6 GiB, most of it activations 5.0, weights 1.0, overhead 0.5"
    assert f"at step 8 (CUDA out of memory. Tried to allocate 2.00 GiB; {predicted}); per_device" in run.notes[0]
    for name in ("loss", "eval_loss"):
        assert losses(run, name) == pytest.approx(losses(undisturbed, name), abs=1e-4)


def test_saving_memory_ends_with_a_sentence_and_shorter_rows_need_consent(go, random_gemma):
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 0)
    with pytest.raises(TrainingError, match=r"what is left is to cut rows to max_length=\d+ tokens: .* with shorter_rows"):
        go(model=model)
    model = load_4bit(random_gemma, torch.float32)
    Limit(model, 150)
    run = go(model=model, shorter_rows=True)
    assert run.settings.max_length < 200
    assert run.settings.gradient_checkpointing
    assert [note.split("; ")[-1].split()[0] for note in run.notes if "memory ran out" in note][-1] == "max_length"
    assert [note for note in run.notes if note.startswith("cut: ")]  # and which rows that cuts
    packed = SETTINGS.replace(per_device_train_batch_size=1, gradient_checkpointing=True, packing=True)
    assert save_memory(packed, 1024, shorter_rows=True)[0] is None  # packed rows are never cut


@pytest.mark.parametrize(
    ("batch", "accumulation", "then"),
    [(8, 1, (4, 2)), (6, 2, (3, 4)), (3, 1, (1, 3)), (5, 2, (2, 5)), (1, 8, (1, 8)), (2, 200, (1, 400)), (3, 256, (1, 768))],
)
def test_saving_memory_keeps_the_rows_behind_an_update(batch, accumulation, then):
    settings = SETTINGS.replace(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    lower, said = save_memory(settings, 300, shorter_rows=False)
    assert lower.effective_batch == batch * accumulation
    assert batch == 1 or f"the same {batch * accumulation} rows behind each update" in said
    assert (lower.per_device_train_batch_size, lower.gradient_accumulation_steps) == then
    assert lower.gradient_checkpointing == (batch == 1)  # only when the batch can't get smaller


# --------------------------------------------------------------------------------------------- no number
def nan(model):
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.data.fill_(float("nan"))


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_before(go, folder, random_gemma):
    model = load_4bit(random_gemma, torch.float32)
    whole = dict(fields(model))
    said = r"the loss is no number since step 8; likely cause: .*; the checkpoint of step 6"
    with pytest.raises(TrainingError, match=said) as e:
        go(at={7: nan}, model=model)
    assert dict(fields(model)) == whole  # no adapter, no checkpointing: it can be trained again
    assert [line["step"] for line in e.value.log_history if "loss" in line][-1] == 8
    for checkpoint in whole_checkpoints(folder):
        assert all(t.isfinite().all() for t in load_file(checkpoint.path / "adapter_model.safetensors").values())


NAN = float("nan")


@pytest.mark.parametrize(
    ("lines", "skipped", "fp16", "stopped", "says"),
    [
        ([{"loss": 3.0, "grad_norm": 1.0}] * 20, 0, False, None, ""),
        ([{"loss": 3.0, "grad_norm": NAN}], 0, False, 1, "the gradient is no number since step 1"),
        ([{"loss": 3.0, "grad_norm": NAN}] * 5 + [{"loss": 3.0, "grad_norm": 1.0}] * 9, 12, True, None, ""),
        ([{"loss": 3.0, "grad_norm": NAN}] * 20, 12, True, 13, "float16 overflowed; load the model"),
        ([{"loss": NAN}], 12, True, 1, "the loss is no number"),
        ([{"loss": 3.0}, {"loss": 0.0}, {"loss": 0.0}, {"loss": 3.0}, {"loss": 0.0}], 0, False, None, ""),
        ([{"loss": 3.0}] + [{"loss": 0.0}] * 3, 0, False, 4, "exactly 0 since step 2; likely cause: float16 overflowed"),
        ([{"loss": 3.0}, {"loss": 9.0}, {"loss": NAN}], 0, False, 3, "the learning rate 0.001 is too high, the loss rose"),
        ([{"loss": 3.0}, {"eval_loss": NAN}], 0, False, 2, "the validation loss is no number"),
    ],
)
def test_what_a_scaler_skips_is_tolerated_and_the_cause_is_named(lines, skipped, fp16, stopped, says):
    callback = StopOnNonFiniteLoss(skipped)
    args = type("Args", (), {"fp16": fp16, "learning_rate": 1e-3})()
    state = type("State", (), {"log_history": [], "global_step": 0})()
    control = type("Control", (), {"should_training_stop": False, "should_save": True, "should_evaluate": True})()
    for step, line in enumerate(lines, 1):
        state.global_step = step
        state.log_history.append(line)
        callback.on_log(args, state, control, logs=line)
        if control.should_training_stop:
            assert (control.should_save, control.should_evaluate) == (False, False)
            break
    assert (step if control.should_training_stop else None) == stopped
    assert says in callback.reason


def test_a_cell_run_twice_trains_a_fresh_adapter_each_time(go, random_gemma):
    model = load_4bit(random_gemma, torch.float32)
    first = losses(go(model=model))
    second = go(model=model)
    assert losses(second) == pytest.approx(first, abs=1e-6)
    layers = [m for m in second.trainer.model.modules() if isinstance(m, LoraLayer)]
    assert layers
    assert not any(isinstance(layer.get_base_layer(), LoraLayer) for layer in layers)
