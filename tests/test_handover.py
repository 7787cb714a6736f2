"""A notebook that starts alone gets its earlier steps, and never somebody else's."""

import errno
import json
import os
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from steps import load_4bit
from transformers import TrainerCallback

from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import BlockedError, GemmaColabError, ModelError, TrainingError, WorkspaceError
from gemma_colab.core.machine import Machine
from gemma_colab.core.rows import answer
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import SPLIT_FILES, SPLITS, Workspace, samples
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows
from gemma_colab.data.review import Review
from gemma_colab.export import export_workspace
from gemma_colab.handover.adapter import ensure_adapter, train_adapter
from gemma_colab.handover.killed import killed_run
from gemma_colab.handover.rows import ensure_rows, prepare_rows, save_rows, saved_source
from gemma_colab.handover.settings import choose_model, settings_for
from gemma_colab.model.choice import starting_point
from gemma_colab.model.memory import memory_plan
from gemma_colab.training.checkpoints import claim
from gemma_colab.training.records import list_runs
from gemma_colab.training.verdict import MORE_EPOCHS, TrainingVerdict


def test_rows_are_made_from_the_sample_once_and_said_aloud(workspace, capsys):
    rows = ensure_rows(workspace)
    assert "Notebook 01 has not run" in capsys.readouterr().out
    assert {name: len(some) for name, some in rows.items()} == {"train": 386, "validation": 51, "test": 77}
    assert ensure_rows(workspace) == rows
    assert capsys.readouterr().out == (
        "Rows of support_ru.jsonl (a sample of this project, not your own data): 386 train, 51 validation, 77 test.\n"
    )


def test_somebodys_rows_are_never_overwritten(workspace):
    mine = [{"messages": [{"role": "user", "content": "mine"}, {"role": "assistant", "content": "mine"}]}]
    workspace.write_jsonl("rows/train.jsonl", mine)
    with pytest.raises(WorkspaceError, match=r"rows/validation.jsonl is missing"):
        ensure_rows(workspace)
    assert workspace.read_jsonl("rows/train.jsonl") == mine


def test_a_blocked_dataset_leaves_the_rows_alone_and_says_why(workspace, support_rows, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "\\ud800", "output": "b"}\n')
    with pytest.raises(
        BlockedError,
        match=r"few.jsonl: blocked: unreadable row, too few rows; correct the file, or go on in spite of it with accept=",
    ) as caught:
        prepare_rows(tmp_path / "few.jsonl", workspace)
    assert caught.value.report.verdict == "blocked"
    assert not (workspace.path / "rows").exists()
    assert "ud800" in (workspace.path / "blocked" / "aside.jsonl").read_text("utf-8")


@pytest.fixture
def own(tmp_path, support_rows):
    """A file of somebody's own, and one that is blocked."""
    rows = [{"question": question(row), "answer": answer(row)} for row in support_rows[2:122]]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "few.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "\\ud800", "output": "b"}\n')
    return tmp_path / "own.jsonl", tmp_path / "few.jsonl"


def test_a_sample_never_replaces_rows_of_your_own(workspace, own, support_rows, capsys):
    prepare_rows(own[0], workspace)
    before = workspace.fingerprint(*SPLIT_FILES, "rows/report.json")
    refused = r"holds the rows of own.jsonl, which those of support_ru_raw.csv would replace; open another one"
    with pytest.raises(WorkspaceError, match=refused):
        prepare_rows(samples() / "support_ru_raw.csv", workspace)
    with pytest.raises(WorkspaceError, match=refused):
        save_rows({"train": support_rows[:9]}, workspace, samples() / "support_ru_raw.csv")
    assert workspace.fingerprint(*SPLIT_FILES, "rows/report.json") == before
    capsys.readouterr()
    rows = ensure_rows(workspace)
    assert capsys.readouterr().out.startswith(f"Rows of own.jsonl: {len(rows['train'])} train,")
    prepare_rows(own[0], workspace, seed=1)  # your own may replace your own
    assert workspace.fingerprint(*SPLIT_FILES) != before


def test_rows_of_an_older_workspace_count_as_your_own(workspace, support_rows):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    (workspace.path / "rows" / "source.json").unlink()
    with pytest.raises(WorkspaceError, match=r"holds the rows of a file of yours"):
        prepare_rows(samples() / "support_en.jsonl", workspace)


def test_no_sample_stands_ready_where_your_own_file_was_blocked(workspace, own, capsys):
    ensure_rows(workspace)  # the sample's
    with pytest.raises(BlockedError):
        prepare_rows(own[1], workspace)
    with pytest.raises(WorkspaceError, match=r"few.jsonl was blocked, so there are no rows of it .*open another workspace"):
        ensure_rows(workspace)
    prepare_rows(own[0], workspace)
    assert not (workspace.path / "blocked").exists()
    with pytest.raises(BlockedError):
        prepare_rows(own[1], workspace)
    capsys.readouterr()
    ensure_rows(workspace)  # the rows of the last good file stay
    out = capsys.readouterr().out
    assert out.startswith("Rows of own.jsonl: ")
    assert out.endswith("few.jsonl was blocked, and none of its rows are among them.\n")


def test_rows_are_counted_as_the_named_model_counts_them(workspace, own):
    report, _ = prepare_rows(own[0], workspace, model="tiny-gemma3")
    assert report.lengths["total"].max() <= 512
    with pytest.raises(BlockedError) as caught:
        prepare_rows(own[0], workspace, model="tiny-gemma3", max_length=16)
    assert any("max_length" in str(finding) or "cut" in finding.check for finding in caught.value.report.findings)


def test_decisions_of_a_review_are_applied(workspace):
    source = samples() / "support_en.jsonl"
    rows = read_rows(source).rows
    Review(workspace).decide(rows[10], "drop", why="test")
    Review(workspace).decide(rows[11], "edit", {"answer": "Edited by hand."})
    prepare_rows(source, workspace)
    saved = sum(ensure_rows(workspace).values(), [])
    assert len(saved) == len(rows) - 1
    assert sum(answer(row) == "Edited by hand." for row in saved) == 1
    log = workspace.read_jsonl("rows/review_log.jsonl")
    assert [line["line"] for line in log if line["step"] == "review"] == [11, 12]


@pytest.mark.parametrize("value", ["и" * 46 + " anna.karenina@mail.example", ["и" * 20 + " anna.karenina@mail.example"]])
def test_what_a_message_quotes_is_masked_before_it_is_cut(workspace, tmp_path, support_rows, value):
    rows = [{"question": question(row), "answer": answer(row)} for row in support_rows[2:62]]
    rows.append(
        {"question": "Кто?", "answer": "Анна.", "image": value}
        if isinstance(value, str)
        else {"question": "Кто?", "answer": value}
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, _ = prepare_rows(tmp_path / "a.jsonl", workspace, accept=["unreadable row"])
    told = [workspace.read_jsonl("rows/aside.jsonl")[0]["sentence"], str(report)]
    assert not any("anna" in text for text in told), told


def test_what_was_typed_in_a_review_is_masked_too(workspace, tmp_path, support_rows):
    rows = [{"question": question(row), "answer": answer(row)} for row in support_rows[2:62]]
    rows[5]["answer"] = "Call hre at +7 912 345-67-89."
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rows(tmp_path / "a.jsonl").rows
    Review(workspace).decide(read[5], "edit", {"answer": "Call her at +7 912 345-67-89."})
    prepare_rows(tmp_path / "a.jsonl", workspace, also=["mask_personal_data"])
    saved = [answer(row) for row in sum(ensure_rows(workspace).values(), [])]
    assert "Call her at [phone]." in saved
    assert not any("345-67-89" in text for text in saved)


def test_rows_of_one_customer_stay_on_one_side(workspace, support_rows, tmp_path):
    rows = [{"question": question(row), "answer": answer(row), "customer": i % 40} for i, row in enumerate(support_rows[2:122])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_rows(tmp_path / "a.jsonl", workspace, groups="customer")
    customers = [{row["conversation"] for row in split} for split in ensure_rows(workspace).values()]
    assert sum(map(len, customers)) == len(set.union(*customers)) == 40
    with pytest.raises(GemmaColabError, match="clerk"):
        prepare_rows(tmp_path / "a.jsonl", workspace, groups="clerk")


CPU = Machine(False, None, None, 0.0, 12.0, 50.0, 2)
T4 = Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2)
A100 = Machine(True, "NVIDIA A100", (8, 0), 39.4, 83.0, 150.0, 12)


@pytest.fixture
def trained(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    LoraSettings(r=4).save(workspace)
    claim(workspace.path / "checkpoints")
    (workspace.path / "checkpoints" / "checkpoint-999").mkdir()  # of an older, longer run
    run = train_adapter(
        workspace, ModelSettings(model=random_gemma), TrainSettings(num_train_epochs=1, per_device_train_batch_size=8)
    )
    return workspace, run


def test_rows_that_change_while_it_trains_are_not_taken_for_those_it_trained_on(random_gemma, workspace, support_rows):
    parts = {"train": support_rows[:8], "validation": support_rows[24:28], "test": support_rows[32:34]}
    save_rows(parts, workspace)
    other = parts | {"train": parts["train"][:6] + parts["test"]}

    class Meanwhile(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            save_rows(other, workspace)

    train_adapter(workspace, ModelSettings(model=random_gemma), TrainSettings(num_train_epochs=1), show=Meanwhile())
    assert workspace.read_json("training.json")["rows"] != workspace.fingerprint(*SPLIT_FILES)


@pytest.mark.parametrize("full", ["train", "validation", "test", "source"])
def test_a_disk_that_is_full_leaves_all_old_rows_or_all_new_ones(full, workspace, support_rows, monkeypatch):
    save_rows(dict.fromkeys(SPLITS, support_rows[:3]), workspace)
    files = [*SPLIT_FILES, "rows/source.json"]
    before, dumps = workspace.fingerprint(*files), json.dumps

    def fails(row, **how):
        if row.get("marked", "source") == full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return dumps(row, **how)

    monkeypatch.setattr("gemma_colab.handover.rows.json.dumps", fails)
    with pytest.raises(OSError, match="No space left"):
        save_rows({split: [row | {"marked": split} for row in support_rows[3:6]] for split in SPLITS}, workspace, "other.csv")
    assert workspace.fingerprint(*files) == before


def test_rows_of_two_preparations_are_refused(workspace, support_rows, monkeypatch):
    """It was killed when train had taken its place, and the others had not; rows that were edited by hand are nobody's business."""
    save_rows(dict.fromkeys(SPLITS, support_rows[:3]), workspace)
    replace = Path.replace

    def killed(self, target):
        replace(self, target)
        if Path(target).name == "train.jsonl":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_rows(dict.fromkeys(SPLITS, support_rows[3:6]), workspace, "other.csv")
    assert [workspace.read_jsonl(f"rows/{split}.jsonl")[0] == support_rows[0] for split in SPLITS] == [False, True, True]
    with pytest.raises(WorkspaceError, match=r"rows mixes old and new rows: notebook 01 was cut off; run it again"):
        ensure_rows(workspace)
    save_rows(dict.fromkeys(SPLITS, support_rows[3:6]), workspace, "other.csv")
    assert saved_source(workspace) == {"file": "other.csv", "sample": False}
    workspace.write_jsonl("rows/test.jsonl", support_rows[6:8])
    assert len(ensure_rows(workspace)["test"]) == 2


def test_training_leaves_adapter_settings_and_record(trained, random_gemma):
    workspace, run = trained
    chosen = ModelSettings(model=random_gemma)
    assert not (workspace.path / "checkpoints" / "checkpoint-999").exists()
    record = ensure_adapter(workspace, chosen)
    assert record["steps"] == run.trainer.state.global_step == 2
    assert (record["status"], record["best_step"]) == ("finished", 2)
    assert record["verdict"] == str(run.verdict)
    saved = settings_for(workspace, chosen, CPU)
    assert saved.lora.r == 4
    assert TrainSettings.load(workspace).num_train_epochs == 1
    assert saved.seconds_per_step == pytest.approx(run.seconds / 2)
    (kept,) = list_runs(workspace)
    assert (kept["status"], kept["rows"], kept["data"]) == ("finished", 24, record["rows"])
    assert kept["curves"]["step"] == [1, 2]


def test_one_call_resumes_with_what_the_workspace_holds(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen = ModelSettings(model=random_gemma)
    settings = TrainSettings(num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=1)

    class Watcher(TrainerCallback):  # somebody who sees the fourth step
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    first = train_adapter(workspace, chosen, settings, show=Watcher())
    assert first.status == "interrupted"
    run = train_adapter(workspace, chosen, resume=True)
    assert run.settings == settings
    assert (run.status, run.trainer.state.global_step) == ("finished", 6)
    assert [kept["status"] for kept in list_runs(workspace)] == ["interrupted", "finished"]
    with pytest.raises(WorkspaceError, match="num_train_epochs: 2 then, 3 now"):
        train_adapter(workspace, chosen, settings.replace(num_train_epochs=3), resume=True)


def test_a_base_that_was_replaced_is_refused_and_a_copy_of_it_is_not(workspace, tmp_path, support_rows, random_gemma):
    save_rows({"train": support_rows[:16], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen = ModelSettings(model=str(shutil.copytree(random_gemma, tmp_path / "model")))
    settings, weights = TrainSettings(num_train_epochs=1, per_device_train_batch_size=8), tmp_path / "model" / "model.safetensors"
    train_adapter(workspace, chosen, settings, show=None)
    os.utime(weights, (1, 1))  # on the disk of another machine
    train_adapter(workspace, chosen, resume=True, show=None)
    same = load_file(weights)
    record = ensure_adapter(workspace, chosen)
    save_file({name: tensor / 2 for name, tensor in same.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(WorkspaceError, match=r"other settings or data \(weights: \w{12} then, \w{12} now\); .* with anyway=True"):
        train_adapter(workspace, chosen, resume=True, show=None)
    merged = partial(export_workspace, workspace, "merged", rows=0)
    for refused in (partial(ensure_adapter, workspace, chosen), merged):
        with pytest.raises(
            ModelError, match=r"model holds other weights than at the training; put those back, or run notebook 04"
        ):
            refused()
    assert not workspace.has("merged")
    workspace.write_json("training.json", {name: value for name, value in record.items() if name != "weights"})
    ensure_adapter(workspace, chosen)  # as an older version left it
    train_adapter(workspace, chosen, resume=True, anyway=True, show=None)
    assert ensure_adapter(workspace, chosen)["weights"] != record["weights"]
    merged()


def test_a_process_is_killed_and_what_it_leaves_goes_on(workspace, tmp_path, support_rows, random_gemma, capfd, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = {"train": support_rows[:24], "validation": support_rows[24:32]}
    chosen, lora = ModelSettings(model=random_gemma), LoraSettings(r=4, lora_alpha=4)
    size = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 128}
    settings = TrainSettings(evals_per_epoch=1, **size)
    lora.save(workspace)
    model, tokenizer = load_4bit(random_gemma, torch.float32), load_tokenizer(random_gemma)
    before = [name for name, _ in model.named_parameters()]
    again = train_adapter(workspace, chosen, settings, loaded=(model, tokenizer), rehearse=rows)
    assert [name for name, _ in model.named_parameters()] == before  # no adapter is left on it
    assert "The second process was killed: its exit code is -9." in capfd.readouterr().out
    assert again.notes[0] in ("resumed from step 6", "resumed from step 12")
    assert not any(map(workspace.has, ("rows", "adapter", "checkpoints", "training.json")))  # it was elsewhere
    save_rows(rows | {"test": []}, workspace)
    losses = [run.history["loss"].dropna().tolist() for run in (again, train_adapter(workspace, chosen, settings))]
    assert len(losses[0]) == 18
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    whose = {"file": "support_ru.jsonl", "sample": True}
    monkeypatch.chdir(tmp_path)  # where somebody has a module of a usual name
    Path("json.py").write_text("open('it_ran', 'w')")
    left = killed_run({"train": support_rows[:24]}, whose, chosen, settings, lora)
    assert saved_source(left) == whose
    said = capfd.readouterr().out
    assert "The second process ended by itself: " in said
    assert not Path("it_ran").exists()
    assert "validation" in said
    assert not left.has("checkpoints")


@pytest.fixture
def says(monkeypatch):
    """says(list of advice) -> each next run ends with one of them; the last one stays."""

    def says(advice):
        def verdict(history, finished=False):
            steps.append(int(history["step"].max()))
            return TrainingVerdict("learning", "it fell", advice[min(len(set(steps)), len(advice)) - 1])

        steps = []
        monkeypatch.setattr("gemma_colab.training.run.training_verdict", verdict)

    return says


@pytest.mark.parametrize(
    ("advice", "rounds", "steps", "limit"),
    [
        ([MORE_EPOCHS, "test it"], 3, [3, 6], False),
        ([MORE_EPOCHS], 2, [3, 6, 9], True),
        (["test it"], 2, [3], False),
        ([MORE_EPOCHS], 0, [3], False),
    ],
)
def test_a_run_goes_on_until_its_verdict_asks_for_no_more(
    advice, rounds, steps, limit, says, workspace, support_rows, random_gemma, capsys
):
    says(advice)
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen = ModelSettings(model=random_gemma)
    settings = TrainSettings(num_train_epochs=1, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    run = train_adapter(workspace, chosen, settings, rounds=rounds)
    assert run.trainer.state.global_step == steps[-1]
    assert [len(kept["curves"]["step"]) for kept in list_runs(workspace)] == steps
    assert run.settings.num_train_epochs == len(steps)
    assert run.trainer.state.best_metric == run.history["eval_loss"].min()  # of all rounds
    record = workspace.read_json("training.json")
    assert (record["steps"], record["adapter_step"]) == (steps[-1], run.trainer.state.best_global_step)
    assert TrainSettings.load(workspace) == run.settings
    said = f"The last round is over, at {len(steps)} epochs, and the verdict still is: train for more epochs"
    assert (said in capsys.readouterr().out) == limit


def test_a_finished_run_goes_on_from_what_the_workspace_holds(says, workspace, support_rows, random_gemma):
    says([MORE_EPOCHS])
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen = ModelSettings(model=random_gemma)
    settings = TrainSettings(num_train_epochs=1, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    train_adapter(workspace, chosen, settings)
    run = train_adapter(workspace, chosen, resume=True, rounds=1, more=0.5)
    assert (run.trainer.state.global_step, run.settings.num_train_epochs) == (5, 1.5)
    says(["test it"])
    assert train_adapter(workspace, chosen, resume=True, rounds=1).trainer.state.global_step == 9  # the advice was the old one
    assert train_adapter(workspace, chosen, resume=True, rounds=1).trainer.state.global_step == 9  # and now it is another


def test_replay_mixes_general_rows_into_the_training_rows_only(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    settings = TrainSettings(num_train_epochs=1, per_device_train_batch_size=8, replay=0.25)
    run = train_adapter(workspace, ModelSettings(model=random_gemma), settings)
    assert (len(run.trainer.train_dataset), len(run.trainer.eval_dataset)) == (32, 8)
    assert list_runs(workspace)[0]["rows"] == 32
    assert len(workspace.read_jsonl("rows/train.jsonl")) == 24


def test_a_run_that_broke_is_recorded_too(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen = ModelSettings(model=random_gemma)
    model = load_4bit(random_gemma, torch.float32)
    model.model.norm.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(TrainingError, match="the loss is no number since step 1"):
        train_adapter(workspace, chosen, TrainSettings(), loaded=(model, load_tokenizer(random_gemma)))
    (kept,) = list_runs(workspace)
    assert kept["status"] == "broken"
    assert kept["verdict"].startswith("broken: the loss is no number")
    assert not workspace.has("adapter")


def test_an_adapter_that_cannot_be_written_ends_with_a_sentence_and_is_resumed(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    chosen, (_, hard) = ModelSettings(model=random_gemma), resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(TrainerCallback):  # a quota is used up in the first step, or when the last checkpoint is written
        def __init__(self, when):
            setattr(self, when, self.fill)

        def fill(self, args, state, control, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))

    try:
        for when, then in (("on_step_begin", "train again: there is no checkpoint"), ("on_train_end", r"go on .*--resume")):
            with pytest.raises(WorkspaceError, match=rf"the adapter could not be written to .*; make room there, and {then}"):
                train_adapter(workspace, chosen, TrainSettings(num_train_epochs=1), show=Full(when))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not workspace.has("adapter")
    assert train_adapter(workspace, chosen, resume=True).trainer.state.global_step == 3
    assert workspace.read_json("training.json")["adapter_step"] == 3


def test_an_adapter_of_another_model_or_other_rows_is_refused(trained, random_gemma, support_rows):
    workspace, _ = trained
    with pytest.raises(WorkspaceError, match=r"was trained on .* in 4 bit, not on 'tiny-gemma3' in 4 bit; choose "):
        ensure_adapter(workspace, ModelSettings(model="tiny-gemma3"))
    with pytest.raises(WorkspaceError, match=r"not on .* in 16 bit"):
        ensure_adapter(workspace, ModelSettings(model=random_gemma, load_in_4bit=False))
    workspace.write_jsonl("rows/test.jsonl", workspace.read_jsonl("rows/train.jsonl")[:8])  # rows that were trained on
    with pytest.raises(WorkspaceError, match="other rows than those now in rows/"):
        ensure_adapter(workspace, ModelSettings(model=random_gemma))


def test_the_choice_of_notebook_02_is_kept_and_made_where_it_is_missing(workspace, capsys, monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_MODEL")
    monkeypatch.setattr("gemma_colab.model.choice.packaged_here", lambda: False)
    chosen, why = choose_model(workspace, CPU)
    assert (chosen.model, chosen.load_in_4bit) == ("tiny-gemma3", True)
    assert "no GPU" in why
    assert "No model was chosen in this workspace yet" in capsys.readouterr().out
    ModelSettings(model="google/gemma-3-4b-it", load_in_4bit=False).save(workspace)
    assert choose_model(workspace, A100)[0] == ModelSettings(model="google/gemma-3-4b-it", load_in_4bit=False)
    assert capsys.readouterr().out == ""
    assert choose_model(workspace, CPU, "gemma-3-270m", load_in_4bit=True)[1] == "chosen by you"
    assert ModelSettings.load(workspace) == ModelSettings(model="gemma-3-270m")


def test_a_choice_that_is_too_large_for_this_machine_is_refused_before_the_download(workspace):
    ModelSettings(model="google/gemma-3-27b-it").save(workspace)  # on the A100; and then there was only a T4, or no GPU
    with pytest.raises(
        ModelError, match=r"has a GPU of 14\.7 GiB, and training takes 1\d\.\d at least; choose another in notebook 02"
    ):
        choose_model(workspace, T4)
    with pytest.raises(ModelError, match="this machine has no GPU; choose another"):
        choose_model(workspace, CPU)
    ModelSettings(model="gemma-3-270m").save(workspace)  # which a CPU can train
    with pytest.raises(ModelError, match="this machine has no GPU; choose another"):
        choose_model(workspace, CPU, "google/gemma-3-27b-it")
    choose_model(workspace, CPU, "tiny-gemma3", save=False)
    assert ModelSettings.load(workspace).model == "gemma-3-270m"  # what was refused, or only asked, is not saved
    assert choose_model(workspace, CPU)[0].model == "gemma-3-270m"
    ModelSettings(model="google/gemma-3-27b-it").save(workspace)
    assert choose_model(workspace, CPU, anyway=True)[0].model == "google/gemma-3-27b-it"


def test_settings_are_used_for_what_they_were_made_for_and_planned_anew_for_anything_else(workspace, support_rows, capsys):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    large, lengths = ModelSettings(model="google/gemma-3-4b-it"), [200] * 32

    def saved(machine=A100, lengths=lengths):
        return settings_for(workspace, large, machine, lengths)

    planned = saved().train
    assert planned.gradient_checkpointing is False
    mine = planned.replace(num_train_epochs=7)
    found = {"activation_factor": 1.5, "overhead_gib": 0.5}
    saved().save(LoraSettings(r=8), mine, correction=found)
    saved().save(train=mine)  # as notebook 04 does: what was measured is kept
    assert workspace.read_json("settings_for.json")["correction"] == saved().correction == found
    assert (saved().train, saved().lora.r) == (mine, 8)
    saved().save(seconds_per_step=2.5)
    saved().save(train=mine)
    assert saved().seconds_per_step == 2.5
    assert saved(T4).seconds_per_step is None
    saved().save(train=mine.replace(max_length=777))  # whatever a step takes now, not that
    assert saved().seconds_per_step is None
    saved().save(train=mine, seconds_per_step=2.5)
    saved().save(LoraSettings(r=64))
    assert saved().seconds_per_step is None
    saved().save(LoraSettings(r=8), seconds_per_step=2.5)
    LoraSettings(r=32).save(workspace)  # without `SavedSettings`: the file is what counts
    assert saved().seconds_per_step is None
    LoraSettings(r=8).save(workspace)
    assert saved().seconds_per_step == 2.5
    capsys.readouterr()
    on_t4 = saved(T4).train
    assert "made for another model, GPU or other rows" in capsys.readouterr().out
    plan = memory_plan(CATALOG[large.model], LoraSettings(r=8), on_t4, tokens=200, dtype="float16")
    assert plan.sum() <= 0.85 * T4.gpu_gib
    assert on_t4.num_train_epochs == TrainSettings().num_train_epochs
    tiny = settings_for(workspace, ModelSettings(model="tiny-gemma3"), CPU, lengths)
    assert (tiny.lora, tiny.train) == starting_point("tiny-gemma3")
    save_rows({"train": support_rows[:20], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    assert saved(lengths=[900] * 28).train.max_length >= 900  # longer rows are not cut by an older plan
    assert saved(lengths=[900] * 28).seconds_per_step is None  # nor do they take as long
    assert saved().correction == found


def test_a_workspace_says_its_version_and_a_newer_one_is_refused(workspace):
    assert workspace.version == 1  # nothing said it before version 2
    LoraSettings().save(workspace)
    assert Workspace(workspace.path).version == 2
    workspace.write_json("workspace.json", {"version": 3})
    with pytest.raises(WorkspaceError, match="has version 3, and this gemma_colab knows 2 at most; update"):
        Workspace(workspace.path)
