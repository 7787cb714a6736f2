"""Notebook 05 without a browser: `gemma-colab evaluate` writes report and summary, goes on where it stopped, and says what is missing."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from steps import load_4bit

from gemma_colab.cli import main
from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.trainer import lora_config, unload_adapters
from gemma_colab.core.workspace import ADAPTER_FILES, SPLIT_FILES, read_sample, samples
from gemma_colab.evaluation import assess, candidates, evaluate, load_tuned
from gemma_colab.evaluation.candidates import enough_tokens, kept_answers
from gemma_colab.export.adapter import save_adapter
from gemma_colab.handover.rows import save_rows


def tuned_workspace(workspace, rows, tokenizer):
    """Rows, settings and an adapter that notebook 04 might have left; it makes the tiny model a little worse."""
    save_rows({"train": rows[:20], "validation": rows[20:24], "test": rows[24:38]}, workspace)
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
    record = {"model": "tiny-gemma3", "load_in_4bit": True, "rows": workspace.fingerprint(*SPLIT_FILES)}
    workspace.write_json("training.json", record | {"status": "finished", "verdict": "learning", "steps": 1, "log_history": []})
    return workspace


@pytest.fixture
def tuned(workspace, support_rows, tokenizer):
    return tuned_workspace(workspace, [to_messages(row) for row in support_rows[:38]], tokenizer)


def test_evaluate_writes_report_and_summary(tuned, capsys):
    options = ["evaluate", "--workspace", str(tuned.path), "--rows", "11", "--examples", "2", "--max-new-tokens", "24"]
    status = main(options)
    said = capsys.readouterr().out
    summary = json.loads((tuned.path / "summary.json").read_text())
    assert status == {"no": 2, "not yet": 1}.get(summary["verdict"]["ship"], 0)
    assert summary["verdict"]["lines"][0] in said
    assert summary["rows"] == {"train": 20, "validation": 4, "test": 11}
    assert {line["rows"] for line in summary["tuned_against_base"]} == {11}
    assert {line["metric"] for line in summary["tuned_against_few_shot"]} >= {"token F1", "chrF", "loss on right answers"}
    assert {line["contestant"] for line in summary["health"]} == {"base", "few-shot", "tuned"}
    assert {line["part"] for line in summary["memorisation"]} == {"train", "test"}
    assert summary["settings"]["generation"] == {"max_new_tokens": 24, "examples": 2}
    assert summary["adapter"] == tuned.fingerprint(*ADAPTER_FILES)
    assert len(tuned.read_jsonl("evaluation/rows.jsonl")) == 11
    assert (tuned.path / "report.html").stat().st_size > 5000
    assert main([*options, "--json"]) == status
    assert json.loads(capsys.readouterr().out) == summary


def test_a_second_run_asks_nothing_again_and_takes_what_it_is_given(tuned, tokenizer, monkeypatch):
    asked, real = [], candidates.generate

    def counting(*args, **kwargs):
        before = kwargs["save"].read_text().count("\n") if kwargs["save"].exists() else 0
        table = real(*args, **kwargs)
        asked.append(kwargs["save"].read_text().count("\n") - before)
        return table

    monkeypatch.setattr(candidates, "generate", counting)
    first = assess(tuned, max_new_tokens=8, test_rows=4)
    assert asked == [4, 4, 4]
    assert first["verdict"]["word"] == "too few rows"
    model, tokenizer = load_tuned(tuned)
    rows = {split: tuned.read_jsonl(f"rows/{split}.jsonl") for split in ("train", "test")}
    found = evaluate(model, tokenizer, rows["test"], workspace=tuned, train_rows=rows["train"], max_new_tokens=8)
    assert asked[3:] == [10, 10, 10]
    asked.clear()
    again = assess(tuned, loaded=(model, tokenizer), evaluation=found)
    assert asked == []
    assert again["rows"]["test"] == 14
    assert assess(tuned, max_new_tokens=8, test_rows=4) == first
    assert asked == [0, 0, 0]


def holding(workspace):
    """A model with the adapter that is in this workspace, as far as `kept_answers` looks at it."""
    loaded = {"default": SimpleNamespace(saved_as=workspace.fingerprint(*ADAPTER_FILES))}
    return SimpleNamespace(dtype=torch.float32, peft_config=loaded)


def test_another_adapters_answers_are_its_own(tuned):
    adapter = tuned.path / "adapter" / "adapter_model.safetensors"
    before = {name: kept_answers(tuned, name, holding(tuned))["made_by"] for name in ("base", "few-shot", "tuned")}
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"x")
    after = {name: kept_answers(tuned, name, holding(tuned))["made_by"] for name in ("base", "few-shot", "tuned")}
    assert before["tuned"] != after["tuned"]
    assert before["base"] == after["base"] == after["few-shot"] == "tiny-gemma3 True float32"


def test_what_is_in_memory_is_what_is_on_the_disk_or_its_answers_count_for_nobody(tuned, tokenizer, tmp_path):
    rows, how = tuned.read_jsonl("rows/test.jsonl")[:2], {"workspace": tuned, "candidates": ("tuned",), "max_new_tokens": 4}
    model, _ = load_tuned(tuned)
    evaluate(model, tokenizer, rows, **how)
    assert len((tuned.path / "evaluation" / "answers.jsonl").read_text().split()) > 0
    weights = tuned.path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * 6 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(WorkspaceError, match=r"what is in memory is not the adapter in .* as it is now; run this notebook from"):
        evaluate(model, tokenizer, rows, **how)
    before = tuned.read_json("training.json")
    with pytest.raises(WorkspaceError, match="not the adapter in"):
        assess(tuned, loaded=(model, tokenizer), evaluation=evaluate(model, tokenizer, rows), max_new_tokens=4)
    assert (tuned.has("summary.json"), tuned.read_json("training.json")) == (False, before)
    model, _ = load_tuned(tuned)
    evaluate(model, tokenizer, rows, **how)
    base = model.get_base_model()
    unload_adapters(base)  # as the next training does it
    assert kept_answers(tuned, "tuned", model) == {}
    unsaved = get_peft_model(base, lora_config(LoraSettings(r=4)))
    assert kept_answers(tuned, "tuned", unsaved) == {}  # nobody knows it
    save_adapter(unsaved, tokenizer, tuned)
    assert kept_answers(tuned, "tuned", unsaved)["made_by"].endswith(tuned.fingerprint(*ADAPTER_FILES))
    for other in ({"load_in_4bit": False}, {"model": str(shutil.copytree(samples() / "tiny-gemma3", tmp_path / "model"))}):
        chosen = ModelSettings(model="tiny-gemma3").replace(**other)
        chosen.save(tuned)
        refused = rf"what is in memory is not {chosen.model} in {4 if chosen.load_in_4bit else 16} bit as it is now"
        with pytest.raises(WorkspaceError, match=refused):
            kept_answers(tuned, "base", base)
    for file in ("model.safetensors", "config.json"):
        base = load_4bit(chosen.model, torch.float32)
        assert chosen.model in kept_answers(tuned, "base", base)["made_by"]
        os.utime(tmp_path / "model" / file, (1, 1))  # another one took its place
        with pytest.raises(WorkspaceError, match=refused):
            kept_answers(tuned, "base", base)


@pytest.mark.parametrize("name", ["model", "model.gguf"])
def test_answers_of_weights_that_were_replaced_do_not_count(tuned, tmp_path, name):
    chosen, model = tmp_path / name, SimpleNamespace(dtype=torch.float32)
    weights = chosen if chosen.suffix else shutil.copytree(samples() / "tiny-gemma3", chosen) / "model.safetensors"
    weights.write_bytes(b"x" * 10)
    ModelSettings(model=str(chosen)).save(tuned)
    before = kept_answers(tuned, "base", model)["made_by"]
    assert kept_answers(tuned, "base", model)["made_by"] == before
    weights.write_bytes(b"y" * 10)
    os.utime(weights, (1, 1))
    assert kept_answers(tuned, "base", model)["made_by"] != before


def test_another_precisions_answers_are_its_own(tuned):
    model, made_by = holding(tuned), []
    for load_in_4bit in (True, False):
        ModelSettings(model="tiny-gemma3", load_in_4bit=load_in_4bit).save(tuned)
        for model.dtype in (torch.float32, torch.bfloat16):
            made_by += [kept_answers(tuned, name, model)["made_by"] for name in ("base", "tuned")]
    assert len(set(made_by)) == len(made_by)


def test_fields_of_json_answers_are_measured_and_bars_on_others_are_ignored(workspace, tokenizer, capsys):
    rows = [to_messages(row) for row in read_sample("tickets_ru")[:38]]
    tuned_workspace(workspace, rows, tokenizer)
    bars = {"valid JSON": 0.95, "order": 0.9, "mark": 0.5}
    summary = assess(workspace, max_new_tokens=8, test_rows=10, other_rows=4, bars=bars)
    assert [line["rows"] for line in summary["memorisation"]] == [4, 10]
    assert {line["rows"] for line in summary["forgetting"] if line["metric"].startswith("general")} == {2}
    assert list(summary["mixed_up"]["needs_human"]) == ["something else"]  # of eight tokens comes no form
    assert "Left out are bars on what these rows don't have: mark." in capsys.readouterr().out
    assert workspace.read_json("ship_settings.json")["bars"] == {"valid JSON": 0.95, "order": 0.9}
    assert "order is 0%, and the bar is 90%" in summary["verdict"]["against"]
    assert {"all fields", "valid JSON", "topic", "order", "nothing but JSON"} <= summary["measures"].keys()
    assert "token F1" not in summary["measures"]
    assert summary["always_the_same"]["valid JSON"] == 1
    assert summary["sorted_by"] == "all fields"
    with pytest.raises(SettingsError, match="must be a number from 0 to 1"):
        assess(workspace, bars={"order": 2})


def test_the_tuned_model_is_loaded_with_a_reason(tuned, capsys, monkeypatch):
    model, _ = load_tuned(tuned)
    assert not model.training
    assert "tiny-gemma3, because it is the choice saved in this workspace; torch.float32, because" in capsys.readouterr().out
    ModelSettings(model="google/gemma-3-27b-it").save(tuned)
    with pytest.raises(ModelError, match="27b-it was chosen in this workspace, but this machine has"):
        load_tuned(tuned)


@pytest.mark.parametrize(
    ("missing", "remedy"), [("adapter", "gemma-colab train"), ("rows/test.jsonl", "gemma-colab prepare FILE")]
)
def test_what_is_missing_is_named(tuned, missing, remedy, capsys):
    (tuned.path / missing).rename(tuned.path / "elsewhere")
    assert main(["evaluate", "--workspace", str(tuned.path)]) == 4
    error = capsys.readouterr().err
    assert f"{missing} is missing" in error
    assert remedy in error


def test_tokens_suffice_for_the_longest_right_answer(tokenizer):
    rows = [to_messages(row) for row in read_sample("general_rows")[:20]]
    longest = max(len(tokenizer(answer(row))["input_ids"]) for row in rows)
    assert longest < enough_tokens(tokenizer, rows) < 2 * longest + 10
