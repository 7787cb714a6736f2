"""A notebook that starts alone gets its earlier steps, and never somebody else's."""

import pytest

from gemma_colab.data.reading import read_rows
from gemma_colab.data.review import Review
from gemma_colab.errors import BlockedError, WorkspaceError
from gemma_colab.hardware import Machine
from gemma_colab.pipeline import chosen_model, ensure_adapter, ensure_lora, ensure_rows, prepare_rows, save_rows, train_adapter
from gemma_colab.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.workspace import samples


def test_rows_are_made_from_the_sample_once_and_said_aloud(workspace, capsys):
    rows = ensure_rows(workspace)
    assert "Notebook 01 has not run" in capsys.readouterr().out
    assert {len(rows["train"]), len(rows["validation"]), len(rows["test"])} == {386, 51, 77}
    assert ensure_rows(workspace) == rows
    assert capsys.readouterr().out == ""


def test_somebodys_rows_are_never_overwritten(workspace):
    workspace.write_jsonl("rows/train.jsonl", [{"prompt": "mine", "completion": "mine"}])
    with pytest.raises(WorkspaceError, match=r"rows/validation.jsonl is missing"):
        ensure_rows(workspace)
    assert workspace.read_jsonl("rows/train.jsonl")[0]["completion"] == "mine"


def test_a_blocked_dataset_leaves_the_rows_alone_and_says_why(workspace, support_rows, tmp_path):
    (tmp_path / "few.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "\\ud800", "output": "b"}\n')
    with pytest.raises(BlockedError, match=r"few.jsonl: blocked: unreadable row, too few rows; mend that") as caught:
        prepare_rows(tmp_path / "few.jsonl", workspace)
    assert caught.value.report.verdict == "blocked"
    assert not (workspace.path / "rows").exists()
    assert "ud800" in (workspace.path / "blocked" / "aside.jsonl").read_text("utf-8")


def test_decisions_of_a_review_are_applied(workspace):
    source = samples() / "support_en.jsonl"
    rows = read_rows(source).rows
    Review(workspace).decide(rows[10], "drop", why="test")
    Review(workspace).decide(rows[11], "edit", {"output": "Edited by hand."})
    prepare_rows(source, workspace)
    saved = sum(ensure_rows(workspace).values(), [])
    assert len(saved) == len(rows) - 1
    assert sum(row["completion"][0]["content"] == "Edited by hand." for row in saved) == 1
    log = workspace.read_jsonl("rows/review_log.jsonl")
    assert [line["line"] for line in log if line["step"] == "review"] == [11, 12]


@pytest.fixture
def trained(workspace, support_rows, random_gemma):
    save_rows({"train": support_rows[:24], "validation": support_rows[24:32], "test": support_rows[32:40]}, workspace)
    LoraSettings(r=4).save(workspace)
    (workspace.path / "checkpoints" / "checkpoint-999").mkdir(parents=True)  # of an older, longer run
    trainer = train_adapter(
        workspace, ModelSettings(model=random_gemma), TrainSettings(num_train_epochs=1, per_device_train_batch_size=8)
    )
    return workspace, trainer


def test_training_leaves_adapter_settings_and_record(trained, random_gemma):
    workspace, trainer = trained
    assert not (workspace.path / "checkpoints" / "checkpoint-999").exists()
    record = ensure_adapter(workspace, ModelSettings(model=random_gemma))
    assert record["steps"] == trainer.state.global_step == 2
    assert ensure_lora(workspace, random_gemma).r == 4
    assert TrainSettings.load(workspace).num_train_epochs == 1


def test_an_adapter_of_another_model_or_other_rows_is_refused(trained, random_gemma, support_rows):
    workspace, _ = trained
    with pytest.raises(WorkspaceError, match=r"was trained on .* in 4 bit, not on 'tiny-gemma3' in 4 bit; choose "):
        ensure_adapter(workspace, ModelSettings(model="tiny-gemma3"))
    with pytest.raises(WorkspaceError, match=r"not on .* in 16 bit"):
        ensure_adapter(workspace, ModelSettings(model=random_gemma, load_in_4bit=False))
    workspace.write_jsonl("rows/test.jsonl", workspace.read_jsonl("rows/train.jsonl")[:8])  # rows that were trained on
    with pytest.raises(WorkspaceError, match="other rows than those now in rows/"):
        ensure_adapter(workspace, ModelSettings(model=random_gemma))


def test_the_choice_of_notebook_02_is_kept_and_made_where_it_is_missing(workspace, capsys):
    cpu = Machine(False, None, None, 0.0, 12.0, 50.0, 2)
    chosen, why = chosen_model(workspace, cpu)
    assert (chosen.model, chosen.load_in_4bit) == ("tiny-gemma3", True)
    assert "no GPU" in why
    assert "Notebook 02 has not run" in capsys.readouterr().out
    ModelSettings(model="google/gemma-3-4b-it", load_in_4bit=False).save(workspace)
    assert chosen_model(workspace, cpu)[0] == ModelSettings(model="google/gemma-3-4b-it", load_in_4bit=False)
    assert "but this machine has no GPU; choose again in notebook 02" in capsys.readouterr().out
    a100 = Machine(True, "NVIDIA A100", (8, 0), 39.4, 83.0, 150.0, 12)
    chosen_model(workspace, a100)
    assert capsys.readouterr().out == ""
    ModelSettings(model="google/gemma-3-27b-it").save(workspace)  # chosen on the A100, and then there was only a T4
    chosen_model(workspace, Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2))
    assert "a GPU of 14.7 GiB, and training takes" in capsys.readouterr().out
