"""A workspace made by version 1 of the files is resumed, evaluated and exported by today's code."""

import shutil

import pytest
from conftest import ROOT

from gemma_colab.core.settings import ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.adapter import ensure_adapter, train_adapter
from gemma_colab.handover.rows import ensure_rows

TINY = ModelSettings(model="tiny-gemma3")


@pytest.fixture
def old(tmp_path):
    return Workspace(shutil.copytree(ROOT / "tests" / "data" / "workspace_v1", tmp_path / "old"))


def test_its_files_mean_what_they_meant(old):
    assert old.version == 1
    rows = ensure_rows(old)
    assert {split: len(rows[split]) for split in rows} == {"train": 24, "validation": 8, "test": 8}
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows["train"])
    assert TrainSettings.load(old).last_answer_only is True
    assert ensure_adapter(old, TINY)["status"] == "interrupted"


def test_it_is_resumed_with_the_losses_that_it_would_have_had(old):
    run = train_adapter(old, TINY, resume=True)
    assert (run.status, run.trainer.state.global_step) == ("finished", 6)
    assert run.history["loss"].dropna().iloc[-1] == pytest.approx(7.08305549621582, abs=1e-4)  # as the code of then went on
    assert run.history["eval_loss"].dropna().iloc[-1] == pytest.approx(7.223062515258789, abs=1e-4)
    assert old.version == 2


def test_it_is_evaluated_and_exported(old):
    from gemma_colab.evaluation import assess
    from gemma_colab.export import export_workspace

    summary = assess(old, examples=1, max_new_tokens=8)
    assert old.has("report.html")
    assert summary["rows"]["test"] == 8
    assert "adapter" in old.read_json("export.json")
    export_workspace(old, "merged")
    assert (old.path / "merged" / "model.safetensors").is_file()
