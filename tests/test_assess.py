"""Notebook 05 without a browser: `gemma-colab evaluate` writes report and summary, goes on where it stopped, and says what is missing."""

import json

import pytest
import torch
from peft import get_peft_model

from gemma_colab.cli import main
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.loading import load_4bit
from gemma_colab.core.lora import lora_config
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.evaluation import contest
from gemma_colab.export.adapter import save_adapter
from gemma_colab.handover.assess import assess, enough_tokens, the_contestants
from gemma_colab.handover.rows import ROW_FILES, save_rows
from gemma_colab.training.replay import general_chats, mix_in


@pytest.fixture
def tuned_workspace(workspace, support_rows, tokenizer):
    """Rows, settings and an adapter that notebook 04 might have left; it makes the tiny model a little worse."""
    save_rows({"train": support_rows[:20], "validation": support_rows[20:24], "test": support_rows[24:38]}, workspace)
    ModelSettings(model="tiny-gemma3").save(workspace)
    TrainSettings().save(workspace)
    lora = LoraSettings(r=4)
    lora.save(workspace)
    torch.manual_seed(0)
    model = get_peft_model(load_4bit("tiny-gemma3", torch.float32), lora_config(lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.03)
    save_adapter(model, tokenizer, workspace)
    record = {"model": "tiny-gemma3", "load_in_4bit": True, "rows": workspace.fingerprint(*ROW_FILES)}
    workspace.write_json("training.json", record | {"status": "finished", "verdict": "learning", "steps": 1, "log_history": []})
    return workspace


def test_evaluate_writes_report_and_summary(tuned_workspace, capsys):
    options = ["evaluate", "--workspace", str(tuned_workspace.path), "--rows", "11", "--examples", "2", "--max-new-tokens", "24"]
    status = main(options)
    said = capsys.readouterr().out
    summary = json.loads((tuned_workspace.path / "summary.json").read_text())
    assert status == {"no": 2, "not yet": 1}.get(summary["verdict"]["ship"], 0)
    assert summary["verdict"]["lines"][0] in said
    assert summary["rows"] == {"train": 20, "validation": 4, "test": 11}
    assert {line["rows"] for line in summary["tuned_against_base"]} == {11}
    assert {line["metric"] for line in summary["tuned_against_few_shot"]} >= {"token F1", "chrF", "loss on right answers"}
    assert {line["contestant"] for line in summary["health"]} == {"base", "few-shot", "tuned"}
    assert {line["part"] for line in summary["memorisation"]} == {"train", "test"}
    assert summary["settings"]["generation"] == {"max_new_tokens": 24, "examples": 2}
    assert len(tuned_workspace.read_jsonl("evaluation/rows.jsonl")) == 11
    assert (tuned_workspace.path / "report.html").stat().st_size > 5000
    assert main([*options, "--json"]) == status
    assert json.loads(capsys.readouterr().out) == summary


def test_a_second_run_asks_nothing_again(tuned_workspace, tokenizer, monkeypatch):
    asked, real = [], contest.generate

    def counting(*args, **kwargs):
        before = kwargs["save"].read_text().count("\n") if kwargs["save"].exists() else 0
        table = real(*args, **kwargs)
        asked.append(kwargs["save"].read_text().count("\n") - before)
        return table

    monkeypatch.setattr(contest, "generate", counting)
    chosen = ModelSettings(model="tiny-gemma3")
    first = assess(tuned_workspace, chosen, max_new_tokens=8, test_rows=4)
    assert asked == [4, 4, 4]
    assert first["verdict"]["word"] == "too few rows"
    asked.clear()
    assert assess(tuned_workspace, chosen, max_new_tokens=8, test_rows=4) == first
    assert asked == [0, 0, 0]
    adapter = tuned_workspace.path / "adapter" / "adapter_model.safetensors"
    before = the_contestants(tuned_workspace, chosen, general_chats())
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")  # another adapter's answers are its own
    after = the_contestants(tuned_workspace, chosen, general_chats())
    assert before["tuned"].made_by != after["tuned"].made_by
    assert before["base"] == after["base"]


@pytest.mark.parametrize(
    ("missing", "remedy"), [("adapter", "gemma-colab train"), ("rows/test.jsonl", "gemma-colab prepare FILE")]
)
def test_what_is_missing_is_named(tuned_workspace, missing, remedy, capsys):
    (tuned_workspace.path / missing).rename(tuned_workspace.path / "elsewhere")
    assert main(["evaluate", "--workspace", str(tuned_workspace.path)]) == 4
    error = capsys.readouterr().err
    assert f"{missing} is missing" in error
    assert remedy in error


def test_tokens_suffice_for_the_longest_right_answer(tokenizer, support_rows):
    chats = general_chats()[:20]
    longest = max(len(tokenizer(chat["completion"][0]["content"])["input_ids"]) for chat in chats)
    assert longest < enough_tokens(tokenizer, chats) < 2 * longest + 10
    assert enough_tokens(tokenizer, chats, most=7) == 7


def test_general_rows_are_a_share_of_all(workspace):
    own = [{"prompt": [{"role": "user", "content": str(n)}], "completion": []} for n in range(40)]
    general = general_chats(workspace)
    mixed = mix_in(own, general, 0.2)
    assert mixed[:40] == own
    assert len(mixed) == 50
    assert all(chat in general for chat in mixed[40:])
    assert mix_in(own, general, 0.2) == mixed
    assert mix_in(own, general, 0.0) == own
    with pytest.raises(
        SettingsError, match=r"replay=0\.5 needs 40 general rows for 40 of yours, and there are 3; set it to 0\.06"
    ):
        mix_in(own, general[:3], 0.5)
    workspace.write_jsonl("rows/replay.jsonl", own[:2])
    assert general_chats(workspace) == own[:2]
