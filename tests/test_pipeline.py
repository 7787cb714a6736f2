"""A notebook that starts alone gets its earlier steps, and never somebody else's."""

import pytest

from gemma_colab.errors import WorkspaceError
from gemma_colab.pipeline import ROW_FILES, ensure_adapter, ensure_lora, ensure_rows, train_adapter
from gemma_colab.settings import LoraSettings, TrainSettings


def test_rows_are_made_from_the_sample_once_and_said_aloud(workspace, capsys):
    rows = ensure_rows(workspace)
    assert "Notebook 01 has not run" in capsys.readouterr().out
    assert {len(rows["train"]), len(rows["validation"]), len(rows["test"])} == {251, 33, 50}
    assert ensure_rows(workspace) == rows
    assert capsys.readouterr().out == ""


def test_somebodys_rows_are_never_overwritten(workspace):
    workspace.write_jsonl("rows/train.jsonl", [{"instruction": "mine", "input": "", "output": "mine"}])
    with pytest.raises(WorkspaceError, match=r"rows/validation.jsonl is missing"):
        ensure_rows(workspace)
    assert workspace.read_jsonl("rows/train.jsonl")[0]["output"] == "mine"


@pytest.fixture
def trained(workspace, support_rows, random_gemma):
    for name, some in zip(ROW_FILES, (support_rows[:24], support_rows[24:32], support_rows[32:40]), strict=True):
        workspace.write_jsonl(name, some)
    LoraSettings(r=4).save(workspace)
    (workspace.path / "checkpoints" / "checkpoint-999").mkdir(parents=True)  # of an older, longer run
    trainer = train_adapter(workspace, random_gemma, TrainSettings(num_train_epochs=1, per_device_train_batch_size=8))
    return workspace, trainer


def test_training_leaves_adapter_settings_and_record(trained, random_gemma):
    workspace, trainer = trained
    assert not (workspace.path / "checkpoints" / "checkpoint-999").exists()
    record = ensure_adapter(workspace, random_gemma)
    assert record["steps"] == trainer.state.global_step == 2
    assert ensure_lora(workspace, random_gemma).r == 4
    assert TrainSettings.load(workspace).num_train_epochs == 1


def test_an_adapter_of_another_model_or_other_rows_is_refused(trained, random_gemma, support_rows):
    workspace, _ = trained
    with pytest.raises(WorkspaceError, match=r"was trained on .* set MODEL ="):
        ensure_adapter(workspace, "tiny-gemma3")
    workspace.write_jsonl("rows/test.jsonl", support_rows[:8])  # rows that were trained on
    with pytest.raises(WorkspaceError, match="other rows than those now in rows/"):
        ensure_adapter(workspace, random_gemma)
