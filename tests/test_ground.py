"""Floor 0: settings, workspace, hardware, catalog, chat."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from gemma_colab import describe_machine
from gemma_colab.core import catalog, door
from gemma_colab.core import machine as machine_module
from gemma_colab.core import workspace as workspace_module
from gemma_colab.core.catalog import CATALOG, TINY, Dimensions, dimensions_of, from_hub, source_of
from gemma_colab.core.chat import MOST, load_tokenizer, stop_token_ids, tokenize_row, with_template
from gemma_colab.core.errors import (
    BlockedError,
    GemmaColabError,
    ModelError,
    SettingsError,
    TrainingError,
    WorkspaceError,
    first_line,
    plain,
    say,
)
from gemma_colab.core.html import render
from gemma_colab.core.machine import GIB, Machine, dtype_name, existing, free_gib, on_kaggle, pick_dtype
from gemma_colab.core.rows import answer, place, prompt, to_messages
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import Workspace, open_workspace, read_sample, samples, whole
from gemma_colab.data.splitting import SplitSettings
from gemma_colab.model import choice
from gemma_colab.model.choice import pick_model, starting_point
from gemma_colab.model.hub import without_account
from gemma_colab.model.lengths import token_lengths
from gemma_colab.model.libraries import stack_versions
from gemma_colab.model.planner import download_gib

CPU = Machine(False, None, None, 0.0, 12.0, 50.0, 2)
T4 = Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2)
A100 = Machine(True, "NVIDIA A100", (8, 0), 39.6, 83.0, 150.0, 12)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (LoraSettings, "r", 0),
        (LoraSettings, "r", 257),
        (LoraSettings, "r", 8.5),
        (TrainSettings, "per_device_train_batch_size", 2.5),
        (TrainSettings, "max_length", 100.5),
        (LoraSettings, "target_modules", "q_proj"),
        (LoraSettings, "target_modules", ".*"),
        (LoraSettings, "target_modules", ".*(_proj|lm_head)"),
        (LoraSettings, "target_modules", ".*(_proj|embed_tokens)"),
        (LoraSettings, "target_modules", r".*\.q_.*"),
        (LoraSettings, "target_modules", ["q_proj", "v_proj"]),
        (LoraSettings, "lora_dropout", 0.9),
        (LoraSettings, "target_modules", "(q_proj"),
        (LoraSettings, "target_modules", "([a-z._0-9]+)+X"),  # would take for ever
        (LoraSettings, "target_modules", "(.|.)(.|.)(.|.)(.|.)(.|.)X"),
        (LoraSettings, "target_modules", ".*.*.*X"),
        (TrainSettings, "learning_rate", 0),
        (TrainSettings, "learning_rate", "2e-4"),
        (TrainSettings, "num_train_epochs", -1),
        (TrainSettings, "per_device_train_batch_size", True),
        (TrainSettings, "lr_scheduler_type", "zigzag"),
        (SplitSettings, "test_size", 1.0),
    ],
)
def test_impossible_settings_are_refused_with_name_value_and_remedy(cls, field, value):
    with pytest.raises(SettingsError, match=re.escape(f"{field}={value!r}")) as caught:
        cls(**{field: value})
    assert "try" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(r=3, lora_alpha=7, lora_dropout=0.123),
        TrainSettings(learning_rate=1.95e-4, num_train_epochs=2.5),
        SplitSettings(seed=9),
    ],
)
def test_settings_come_back_exactly(workspace, settings):
    assert settings.save(workspace) == workspace.path / settings.file
    assert type(settings).load(workspace) == settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (lambda: LoraSettings(r=0), "r=0 must be a whole number from 1 to 256; try r=16"),
        (lambda: LoraSettings(r=8.0), "r=8.0 must be a whole number from 1 to 256; try r=16"),
        (lambda: LoraSettings(lora_dropout=0.51), "lora_dropout=0.51 must be a number from 0 to 0.5; try lora_dropout=0.0"),
        (lambda: TrainSettings(optim="sgd"), "optim='sgd' must be one of adamw_torch_fused, adamw_8bit, paged_adamw_8bit; try optim='adamw_torch_fused'"),
        (lambda: TrainSettings(lr_scheduler_type=None), "lr_scheduler_type=None must be one of linear, cosine, constant, constant_with_warmup; try lr_scheduler_type='linear'"),
        (lambda: TrainSettings(neftune_noise_alpha=0.09), "neftune_noise_alpha=0.09 must be a number from 0.1 to 50; try neftune_noise_alpha=5.0"),
        (lambda: ModelSettings(model=3), "model=3 must be a text; try model='tiny-gemma3'"),
        (lambda: ModelSettings(load_in_4bit=1), "load_in_4bit=1 must be True or False; try load_in_4bit=True"),
        (lambda: ModelSettings(load_in_4bit=None), "load_in_4bit=None must be True or False; try load_in_4bit=False"),
        (lambda: LoraSettings(target_modules="lm_head"), "target_modules='lm_head' must match linear layers of a block by their whole name, and nothing else; try \"all-linear\", \"attention\", or r\".*\\.(q_proj|v_proj)\""),
        (lambda: LoraSettings(target_modules="[9-0]"), "target_modules='[9-0]' must be a plain pattern (bad character range 9-0 at position 1); try \"all-linear\", \"attention\", or r\".*\\.(q_proj|v_proj)\""),
        (lambda: LoraSettings(target_modules="a{3}"), "target_modules='a{3}' must be a plain pattern (names, lists such as (q_proj|v_proj), .* and \\d+; at most two of * and +, and four lists); try \"all-linear\", \"attention\", or r\".*\\.(q_proj|v_proj)\""),
    ],
)  # fmt: skip
def test_a_refusal_of_a_setting_is_one_sentence(settings, said):
    with pytest.raises(SettingsError) as caught:
        settings()
    assert str(caught.value) == said


def test_a_long_value_is_cut_in_its_refusal():
    with pytest.raises(SettingsError) as caught:
        LoraSettings(target_modules="q" * 999)
    assert str(caught.value).startswith(f"target_modules='{'q' * 299} must be a plain pattern (")


def test_the_limits_themselves_are_possible():
    for name, low, high in (("r", 1, 256), ("lora_alpha", 1, 1024), ("lora_dropout", 0, 0.5)):
        assert [getattr(LoraSettings(**{name: value}), name) for value in (low, high)] == [low, high]
    for name, low, high in (("neftune_noise_alpha", 0.1, 50), ("learning_rate", 1e-6, 0.1), ("replay", 0, 0.5), ("max_length", 16, 131_072)):  # fmt: skip
        assert [getattr(TrainSettings(**{name: value}), name) for value in (low, high)] == [low, high]
    assert (TrainSettings().lr_scheduler_type, TrainSettings().optim, TrainSettings().learning_rate) == ("linear", "adamw_torch_fused", 2e-4)  # fmt: skip
    for layer in ("0", "61", "63"):  # the largest Gemma 3 has 62 blocks
        assert LoraSettings(target_modules=rf"model\.layers\.{layer}\..*_proj")
    with pytest.raises(SettingsError, match="match linear layers"):
        LoraSettings(target_modules=r"model\.layers\.64\..*_proj")


def test_what_settings_come_to():
    assert (LoraSettings(r=4, lora_alpha=8).scale, LoraSettings(r=4, lora_alpha=8, use_rslora=True).scale) == (2, 4)
    assert TrainSettings(per_device_train_batch_size=3, gradient_accumulation_steps=5).effective_batch == 15


def test_a_settings_file_that_holds_none_is_refused(workspace):
    workspace.write_json(LoraSettings.file, [])
    with pytest.raises(WorkspaceError, match=r"it holds list, not named fields\); delete it and run notebook 03_lora again"):
        LoraSettings.load(workspace)
    with pytest.raises(SettingsError, match=r"whole\.json holds no settings; delete it"):
        LoraSettings.from_dict([], "whole.json")


def test_before_the_hub_is_asked_for_what_may_be_a_folders_name_it_is_said_once(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clients" / "petrov").mkdir(parents=True)
    said = []

    class Asked:
        @staticmethod
        def from_pretrained(source, **_):
            said.append(capsys.readouterr().out)

    for name in (
        "clients/ivanov",
        "clients/ivanov",
        "clients/petrov",
        "google/gemma-3-1b-it",
        "unsloth/gemma-3-1b-it",
        str(tmp_path),
    ):
        catalog.from_hub(Asked, name, name)
    assert said[0] == "There is no folder clients/ivanov here, so the Hugging Face Hub is asked for a model of that name.\n"
    assert not any(said[1:])
    assert os.environ["DISABLE_SAFETENSORS_CONVERSION"]


def test_a_settings_file_of_another_version_means_what_it_meant(workspace, capsys):
    workspace.write_json(LoraSettings.file, {"rank": 8, "r": 4})
    assert LoraSettings.load(workspace) == LoraSettings(r=4)
    said = "lora_settings.json has settings that this version doesn't know, and they are left out"
    assert capsys.readouterr().out == f"{said}: rank.\n"
    assert LoraSettings.from_dict({"z": 1, "r": 2, "a": 3}, "mine") == LoraSettings(r=2)
    assert capsys.readouterr().out == "mine has settings that this version doesn't know, and they are left out: a, z.\n"
    workspace.write_json(TrainSettings.file, {"seed": 3})  # of a time when the last answer alone was trained
    assert TrainSettings.load(workspace) == TrainSettings(seed=3, last_answer_only=True)


def test_steps_per_epoch_counts_like_the_trainer():
    assert TrainSettings(per_device_train_batch_size=4, gradient_accumulation_steps=2).steps_per_epoch(17) == 3
    assert TrainSettings(per_device_train_batch_size=8, gradient_accumulation_steps=1).steps_per_epoch(16) == 2
    assert TrainSettings(per_device_train_batch_size=4, gradient_accumulation_steps=2).steps_per_epoch(33, processes=2) == 3


def test_workspace_says_what_is_missing_and_which_notebook_makes_it(workspace):
    with pytest.raises(WorkspaceError, match=r"rows/train\.jsonl is missing .* run notebook 01_dataset_prep first"):
        workspace.read_jsonl("rows/train.jsonl")

    with pytest.raises(WorkspaceError) as caught:
        workspace.need("mine.txt")
    assert str(caught.value) == f"mine.txt is missing in the workspace {workspace.path}; run notebook that makes it first"


def test_a_workspace_shows_where_it_is_and_what_it_holds(workspace):
    assert repr(workspace) == f"Workspace('{workspace.path}'): empty"
    for name in ("lora_settings.json", "rows/train.jsonl", "else.txt"):
        workspace.write_text(name, "")
    assert repr(workspace) == f"Workspace('{workspace.path}'): rows/train.jsonl, lora_settings.json"


def test_a_workspace_knows_its_version_and_makes_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    workspace = Workspace("~/a/b")
    assert workspace.path == tmp_path / "a" / "b"
    assert (workspace.path.is_dir(), workspace.version) == (True, 1)
    workspace.write_json("lora_settings.json", {})
    assert json.loads((workspace.path / "workspace.json").read_text()) == {"version": 2}
    assert (Workspace(workspace.path).version, Workspace(workspace.path).path) == (2, workspace.path)
    workspace.write_json("workspace.json", {"version": 3})
    with pytest.raises(WorkspaceError) as caught:
        Workspace(workspace.path)
    said = f"the workspace {workspace.path} has version 3, and this gemma_colab knows 2 at most; update gemma_colab"
    assert str(caught.value) == said
    workspace.write_json("workspace.json", {"version": 2, "projects": {}})  # of Nx
    with pytest.raises(WorkspaceError, match=r"workspace\.json is not what gemma_colab writes there \(it has other fields\)"):
        Workspace(workspace.path)
    assert first_line(ValueError("one\ntwo")) == "one"


def test_what_is_written_is_read_to_the_letter(workspace):
    assert workspace.write_text("a/b.txt", "ё\n\ud83d") == workspace.path / "a" / "b.txt"
    assert (workspace.path / "a" / "b.txt").read_bytes() == "ё\n\\ud83d".encode()
    assert workspace.write_json("c.json", {"ё": [1]}).read_text("utf-8") == '{\n "ё": [\n  1\n ]\n}\n'
    assert workspace.write_jsonl("d.jsonl", [{"ё": 1}, {}]).read_text("utf-8") == '{"ё": 1}\n{}\n'
    workspace.write_text("d.jsonl", '{"ё": 1}\n \n{"x": 2}')
    assert workspace.read_jsonl("d.jsonl") == [{"ё": 1}, {"x": 2}]
    assert workspace.read_jsonl("d.jsonl", each=list) == [["ё"], ["x"]]
    assert workspace.fingerprint("c.json", "d.jsonl") == "c591a56a2a5d7692"


@pytest.mark.parametrize(
    ("name", "holds", "said"),
    [
        ("training.json", "{", "valid JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); delete it and run notebook 04_train again"),
        ("training.json", "[]", "what gemma_colab writes there (it holds list, not named fields); delete it and run notebook 04_train again"),
        ("training.json", '{"model": 3}', "what gemma_colab writes there (model='3'); delete it and run notebook 04_train again"),
        ("training.json", '{"model": "' + "m" * 50 + '", "log_history": "' + "x" * 50 + '"}', f"what gemma_colab writes there (log_history={'x' * 40!r}); delete it and run notebook 04_train again"),
        ("ship_settings.json", "{}", "what gemma_colab writes there (bars='None'); delete it and run notebook that makes it again"),
    ],
)  # fmt: skip
def test_a_spoilt_file_of_the_workspace_is_one_sentence(workspace, name, holds, said):
    (workspace.path / name).write_text(holds)
    with pytest.raises(WorkspaceError) as caught:
        workspace.read_json(name)
    assert str(caught.value) == f"{workspace.path / name} is not {said}"


def test_a_line_that_lacks_a_key_is_said_to(workspace):
    workspace.write_jsonl("rows/test.jsonl", [{"a": 1}])
    with pytest.raises(
        WorkspaceError, match=r"is not what gemma_colab writes there \(it lacks 'b'\); .* run notebook 01_dataset_"
    ):
        workspace.read_jsonl("rows/test.jsonl", each=lambda row: row["b"])
    assert workspace.read_json("rows/test.jsonl", str.strip) == '{"a": 1}'
    workspace.write_json("anything.json", {})
    assert workspace.read_json("anything.json") == {}


def test_what_somebody_else_made_is_not_written_over(tmp_path):
    (tmp_path / "rows").mkdir()
    with pytest.raises(WorkspaceError) as caught:
        Workspace(tmp_path).write_text("rows/train.jsonl", "")
    said = f"{tmp_path / 'rows'} is there, and gemma_colab did not make it; name another workspace, or move it away"
    assert str(caught.value) == said
    (tmp_path / "rows" / "train.jsonl").write_text('{"prompt": [{"role": "user"')  # of version 1
    (tmp_path / "split_settings.json").write_text("{}")
    Workspace(tmp_path).write_text("rows/train.jsonl", "")
    assert Workspace(tmp_path).version == 2


def test_a_failed_write_leaves_the_old_file_and_nothing_else(workspace):
    workspace.write_text("report.html", "old")

    def fail():
        with workspace.writing("report.html") as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (workspace.path / "report.html").read_text() == "old"
    assert set(os.listdir(workspace.path)) == {"report.html", "workspace.json"}


def test_a_folder_is_replaced_as_a_whole(workspace):
    for content in ("a", "b"):
        with workspace.writing("adapter") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert os.listdir(workspace.path / "adapter") == ["b"]
    assert set(os.listdir(workspace.path)) == {"adapter", "workspace.json"}


def test_a_folder_survives_a_failed_replacement(workspace, monkeypatch):
    with workspace.writing("adapter") as part:
        part.mkdir()
        (part / "old").write_text("old")
    with (
        pytest.raises(WorkspaceError, match=r"^nothing was written for adapter; the old one, if any, is kept$"),
        workspace.writing("adapter"),
    ):
        pass

    def fail():
        with workspace.writing("adapter") as part:
            part.mkdir()
            monkeypatch.setattr(type(part), "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))

    with pytest.raises(OSError, match="disk full"):
        fail()
    monkeypatch.undo()
    assert os.listdir(workspace.path / "adapter") == ["old"]
    assert set(os.listdir(workspace.path)) == {"adapter", "workspace.json"}


@pytest.fixture(scope="module")
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def folder_with(path, content):
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text(content)


@pytest.mark.parametrize("name", ["adapter", "merged", "ollama", "data [v2]"])
def test_a_folder_that_a_killed_process_had_moved_aside_is_back_when_it_is_asked_for(workspace, dead, name):
    """`whole` renames twice; the process may be killed in between. The id may be this process's own now, on a new machine."""
    workspace.write_json("workspace.json", {"version": 2})
    for process in (dead, os.getpid()):
        folder_with(workspace.path / f".{name}.{process}.old", "mine")
        (workspace.path / f".{name}.{process}.part").mkdir()
        assert workspace.has(f"{name}/adapter_config.json")
        assert (workspace.need(name) / "adapter_config.json").read_text() == "mine"
        with workspace.writing(name) as part:
            folder_with(part, "new")
        assert {path.name for path in workspace.path.iterdir()} == {name, "workspace.json"}
        assert (workspace.path / name / "adapter_config.json").read_text() == "new"
        shutil.rmtree(workspace.path / name)


def test_what_is_moved_aside_stays_where_it_is_not_needed_or_somebody_is_at_work(workspace, dead):
    for name, process in (("adapter", dead), ("merged", os.getppid())):
        folder_with(workspace.path / f".{name}.{process}.old", "old")
    folder_with(workspace.path / "adapter", "new")
    assert workspace.has("adapter")
    assert not workspace.has("merged")  # the other process is between the two renames
    assert not workspace.has("adapterr")
    assert (workspace.path / "adapter" / "adapter_config.json").read_text() == "new"
    assert (workspace.path / f".merged.{os.getppid()}.old").exists()


def test_a_write_that_breaks_off_puts_back_even_what_an_earlier_one_had_moved_aside(workspace, dead):
    folder_with(workspace.path / f".adapter.{dead}.old", "mine")

    def fail():
        with workspace.writing("adapter") as part:
            part.mkdir()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {path.name for path in workspace.path.iterdir()} == {"adapter", "workspace.json"}
    assert (workspace.path / "adapter" / "adapter_config.json").read_text() == "mine"


def test_names_that_look_alike_are_left_alone(tmp_path, dead):
    for name in (f".note.{dead}.old", ".out.part", ".out.x.old", f"out.{dead}.part", f".out.gguf.{dead}.part"):
        (tmp_path / name).write_text("")
    before = {path.name for path in tmp_path.iterdir()}
    with whole(tmp_path / "out") as part:
        part.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}


def test_rows_with_odd_line_separators_come_back(workspace):
    rows = [{"instruction": "a\u2028b", "output": "c\x85d"}]
    workspace.write_jsonl("rows/train.jsonl", rows)
    assert workspace.read_jsonl("rows/train.jsonl") == rows


def test_fingerprint_changes_with_any_byte(workspace):
    workspace.write_text("a", "1")
    workspace.write_text("b", "2")
    before = workspace.fingerprint("a", "b")
    assert before == workspace.fingerprint("a", "b") != workspace.fingerprint("b", "a")
    workspace.write_text("b", "3")
    assert workspace.fingerprint("a", "b") != before


def test_broken_json_names_file_and_remedy(workspace):
    (workspace.path / "training.json").write_text("{")
    with pytest.raises(WorkspaceError, match=r"training\.json is not valid JSON .* run notebook 04_train again"):
        workspace.read_json("training.json")


def test_workspace_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError) as caught:
        Workspace(tmp_path / "file" / "inside")
    said = f"workspace={str(tmp_path / 'file' / 'inside')!r} can't be made (Not a directory); name a folder you may write to"
    assert str(caught.value) == said


def test_workspace_is_on_drive_when_it_is_mounted(tmp_path, monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_workspace().path == tmp_path / "workspace"
    monkeypatch.setattr(workspace_module, "KAGGLE", tmp_path / "working")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert open_workspace().path == tmp_path / "working" / "gemma_colab"
    assert open_workspace("here").path == tmp_path / "here"
    (tmp_path / "MyDrive").mkdir()
    monkeypatch.setattr(workspace_module, "DRIVE", tmp_path / "MyDrive")
    assert open_workspace().path == tmp_path / "MyDrive" / "gemma_colab"
    monkeypatch.setenv("GEMMA_COLAB_WORKSPACE", str(tmp_path / "mine"))
    assert open_workspace().path == tmp_path / "mine"


def test_samples_are_found_inside_the_package_first_and_missed_by_a_sentence(tmp_path, monkeypatch):
    assert samples() == workspace_module.PACKAGE.parent / "data_samples"
    monkeypatch.setattr(workspace_module, "PACKAGE", tmp_path / "package")
    with pytest.raises(WorkspaceError, match=r"^the sample data is not installed; install gemma_colab from its repository$"):
        samples()
    for folder in ("data_samples", "package/samples"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "support_ru.jsonl").write_text('{"a": "ё"}\n{"b": 2}\n', encoding="utf-8")
        assert samples() == tmp_path / folder
    assert read_sample("support_ru") == [{"a": "ё"}, {"b": 2}]


def test_the_precision_comes_with_its_reason():
    def gpu(*capability):
        return Machine(False, "GPU", capability, 14.0, 12.0, 50.0, 2)

    fp16 = "Gemma 3 overflows in plain float16, so its residual stream is kept in float32"
    assert dtype_name(gpu(8, 0)) == ("bfloat16", "GPU (capability 8.0) has bf16 tensor cores")
    assert dtype_name(gpu(7, 5)) == ("float16", f"GPU (capability 7.5) has fp16 tensor cores only; {fp16}")
    assert dtype_name(gpu(7, 0)) == ("float16", f"GPU (capability 7.0) has fp16 tensor cores only; {fp16}")
    old = "GPU (capability 6.1) is too old for tensor cores: this will be slow, and newer torch may refuse it"
    assert dtype_name(gpu(6, 1)) == ("float16", old)
    safe = "float32", "no GPU: a CPU computes Gemma 3 safely in float32"
    quick = Machine(False, None, None, 0.0, 12.0, 50.0, 2, cpu_bf16=True)
    enough, less = (Dimensions(1000, 1, 1, 0, 1, size, 10) for size in (16_666, 16_665))
    assert (enough.linear_parameters, less.linear_parameters) == (50_000_000, 49_997_000)
    for machine, dimensions in ((CPU, enough), (quick, None), (quick, less)):
        assert dtype_name(machine, dimensions) == safe
    fast = "bfloat16", "no GPU, and this CPU has bf16 instructions, which are faster for a model of this size"
    assert dtype_name(quick, enough) == fast
    torch_dtype, why = pick_dtype(quick, CATALOG["gemma-3-270m"])
    assert (str(torch_dtype), why) == ("torch.bfloat16", fast[1])


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing("~/a/b") == existing(tmp_path) == tmp_path
    asked = []
    monkeypatch.setattr(machine_module.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=3 * GIB))
    assert free_gib(tmp_path / "a" / "b") == 3
    assert asked == [tmp_path]
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert not on_kaggle()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert on_kaggle()


def test_precision_follows_the_compute_capability():
    import torch

    assert pick_dtype(CPU)[0] == torch.float32
    assert pick_dtype(A100)[0] == torch.bfloat16
    dtype, why = pick_dtype(T4)
    assert dtype == torch.float16
    assert "float32" in why  # says what is done about the overflow


def test_this_machine_is_described():
    machine = describe_machine()
    assert machine.ram_gib > 0.5
    assert machine.cores >= 1
    assert "missing" not in stack_versions().values()


@pytest.mark.parametrize(
    ("machine", "expected"), [(CPU, "tiny-gemma3"), (T4, "google/gemma-3-1b-it"), (A100, "google/gemma-3-4b-it")]
)
def test_auto_picks_by_machine_and_says_why(machine, expected, monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_MODEL")
    monkeypatch.setattr(choice, "packaged_here", lambda: False)
    name, why = pick_model("auto", machine)
    assert name == expected
    assert why


def test_model_names():
    assert pick_model("gemma-3-12b-it", CPU)[0] == "google/gemma-3-12b-it"
    assert pick_model("google/gemma-3-4b-pt", CPU)[0] == "google/gemma-3-4b-pt"
    assert pick_model("somebody/her-gemma", CPU)[0] == "somebody/her-gemma"
    for wrong in ("gemma-9b", "./nowhere", "", "a/b/c", "my models/tiny", "/models/gone"):
        with pytest.raises(ModelError, match=r"is not known; .*name 'tiny-gemma3'"):
            pick_model(wrong, CPU)
    with pytest.raises(ModelError, match=r"did you mean 'gemma-3-4b-it'\?"):
        pick_model("gemma-3-4b", CPU)


def test_a_folder_is_found_again_from_any_other_and_shown_without_the_way_there(random_gemma, tmp_path, monkeypatch):
    shutil.copytree(random_gemma, tmp_path / "my models" / "tiny copy")
    shutil.copy(os.path.join(random_gemma, "config.json"), tmp_path / "one.gguf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in ("my models/tiny copy", "./my models/tiny copy/", "../x/my models/tiny copy", "~/my models/tiny copy"):
        (tmp_path.parent / "x").unlink(missing_ok=True)
        (tmp_path.parent / "x").symlink_to(tmp_path)
        name, _ = pick_model(named, CPU)
        assert os.path.isabs(name)
        assert choice.shown_name(name) == "tiny copy"
        monkeypatch.chdir("/")
        assert dimensions_of(name).num_hidden_layers == 2
        monkeypatch.chdir(tmp_path)
    assert pick_model("one.gguf", CPU)[0] == str(tmp_path / "one.gguf")


@pytest.mark.parametrize("gone", ["/models/gone", "my models/tiny", "./gone", "~/gone", "a/b/c"])
def test_a_model_folder_that_is_gone_is_said_to_be_gone(gone):
    for ask in (dimensions_of, load_tokenizer):
        with pytest.raises(ModelError, match=rf"the model folder {gone} is not there, or no longer; put it back"):
            ask(gone)
    with pytest.raises(ModelError, match=r"there is no such file or folder, or no longer; name 'tiny-gemma3'"):
        pick_model(gone, CPU)


def test_which_models_see_images_is_known_without_a_download(random_gemma, tmp_path):
    from checkpoints import save_random_multimodal

    save_random_multimodal(tmp_path / "sees")
    sees = {name for name in (*CATALOG, *map(without_account, CATALOG), *catalog.SHORT) if name and choice.sees_images(name)}
    assert sees == {
        name for name in (*CATALOG, *map(without_account, CATALOG), *catalog.SHORT) if name and re.search("-(4|12|27)b", name)
    }
    assert choice.sees_images(str(tmp_path / "sees"))
    for blind in (random_gemma, "tiny-gemma3", "somebody/unknown", "/gone", "gone.gguf", str(tmp_path)):
        assert not choice.sees_images(blind)


def test_short_names_mean_the_same_everywhere():
    assert catalog.source_of("gemma-3-1b-it") == "google/gemma-3-1b-it"
    assert dimensions_of("gemma-3-1b-it") == CATALOG["google/gemma-3-1b-it"]
    assert pick_model(" gemma-3-1b-it ", CPU)[0] == "google/gemma-3-1b-it"


def test_the_linear_layers_of_a_block():
    shape = Dimensions(10, 3, 4, 2, 7, 50, 100)
    attention = {"q_proj": (10, 28), "k_proj": (10, 14), "v_proj": (10, 14), "o_proj": (28, 10)}
    assert shape.linear_layers == attention | {"gate_proj": (10, 50), "up_proj": (10, 50), "down_proj": (50, 10)}
    assert shape.linear_parameters == 3 * (2 * 280 + 2 * 140 + 3 * 500)
    assert shape.embedding_parameters == 1000
    assert shape.sliding_window == 512


def test_a_name_that_is_none_is_refused_with_those_there_are(tmp_path, monkeypatch, random_gemma):
    with pytest.raises(ModelError) as caught:
        dimensions_of("gemma-9")
    said = f"model='gemma-9' is not known; name 'tiny-gemma3', a folder with a config.json, or one of {', '.join(catalog.SHORT)}"
    assert str(caught.value) == said
    shutil.copytree(random_gemma, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert dimensions_of("mine") == dimensions_of(random_gemma)  # a folder may have a name of one word
    assert dimensions_of(TINY).vocab_size == json.loads((samples() / TINY / "config.json").read_text())["vocab_size"]
    for known in ("gemma3", "gemma3_text"):
        catalog.refuse_other_models("x", known)
    with pytest.raises(ModelError, match=r"^x is a 'gemma2' model; this project loads Gemma 3 \(gemma3, gemma3_text\) only$"):
        catalog.refuse_other_models("x", "gemma2")


def test_where_each_name_leads(monkeypatch):
    monkeypatch.setattr(catalog, "plugged", lambda plug: lambda name: (plug, name))
    assert source_of("gemma-3-270m") == "('unpacked', 'gemma-3-270m')"
    assert source_of("a/b.gguf") == "('unpacked', 'a/b.gguf')"
    assert source_of(TINY) == str(samples() / TINY)
    assert source_of("somebody/her-gemma") == "somebody/her-gemma"


def test_what_is_asked_of_a_library_passes_the_rooms_above_and_runs_no_foreign_code(monkeypatch):
    passed = []

    def plug(name):
        if name == "explain":
            return lambda *given: ("it can't be had", "", f"{given}")
        return lambda *given: passed.append((name, *given)) or given[-1]

    class Asked:
        @staticmethod
        def from_pretrained(source, **options):
            return 1 / len(source), options

    monkeypatch.setattr(catalog, "plugged", plug)
    assert from_hub(Asked, "name", "ab", dtype=3) == (0.5, {"trust_remote_code": False, "dtype": 3})
    loaded = (0.5, {"trust_remote_code": False, "dtype": 3})
    assert passed == [("before_asking", "name", "ab"), ("before_reading", "name", "ab", Asked), ("after_reading", "name", loaded)]
    with pytest.raises(ModelError) as caught:
        from_hub(Asked, "name", "")
    assert str(caught.value) == "it can't be had; ('name', ZeroDivisionError('division by zero'))"


def test_a_door_hands_out_its_names_when_they_are_asked_for(monkeypatch):
    room = ModuleType("a_room")
    monkeypatch.setitem(sys.modules, "a_room", room)
    names, get, listed = door.door("a_room", {"json": "loads dumps"})
    assert names == listed() == ["dumps", "loads"]
    assert get("loads") is vars(room)["loads"] is json.loads
    assert "dumps" not in vars(room)
    with pytest.raises(AttributeError, match=r"^a_room has no 'load'; it has loads, dumps$"):
        get("load")
    monkeypatch.setitem(door.plugs, "dumps", "json")
    assert door.plugged("dumps") is json.dumps


def test_shapes_give_the_known_sizes():
    # facts: linear and embedding weights in millions, by transformers' convert_gemma3_weights.py
    known = {"270m": (100, 168), "1b": (698, 302), "4b": (3209, 671), "12b": (10758, 1007), "27b": (25598, 1410)}
    for name, shape in CATALOG.items():
        linear, embedding = known[name.split("-")[2]]
        assert round(shape.linear_parameters / 1e6) == linear
        assert round(shape.embedding_parameters / 1e6) == embedding
    assert dimensions_of("google/gemma-3-4b-pt") == CATALOG["google/gemma-3-4b-it"]
    with pytest.raises(ModelError, match="no connection"):
        dimensions_of("somebody/unknown")


def test_copies_on_the_hub_are_planned_like_their_originals():
    for name in filter(without_account, CATALOG):
        copy = without_account(name)
        assert dimensions_of(copy) == CATALOG[name]
        assert download_gib(copy) == download_gib(name) > 0
        assert starting_point(copy) == starting_point(name)
    assert pick_model("unsloth/gemma-3-1b-it", CPU)[0] == "unsloth/gemma-3-1b-it"


def test_shape_of_a_multimodal_folder_and_of_another_architecture(tmp_path):
    from transformers import Gemma3Config, LlamaConfig

    Gemma3Config(text_config={"hidden_size": 96, "num_hidden_layers": 2}).save_pretrained(tmp_path / "multimodal")
    config = json.loads((tmp_path / "multimodal" / "config.json").read_text())
    config["text_config"] = {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "model_type": "gemma3_text",
    }  # the Hub's leave defaults out
    (tmp_path / "multimodal" / "config.json").write_text(json.dumps(config))
    shape = dimensions_of(str(tmp_path / "multimodal"))
    assert (shape.hidden_size, shape.num_attention_heads, shape.head_dim) == (96, 8, 256)
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="'llama' model; this project loads Gemma 3"):
        dimensions_of(str(tmp_path / "llama"))
    for broken in ("{", "[]"):
        (tmp_path / "llama" / "config.json").write_text(broken)
        with pytest.raises(ModelError, match="can't be loaded"):
            dimensions_of(str(tmp_path / "llama"))


def test_shape_of_a_folder_is_read_from_its_config(random_gemma):
    from transformers import AutoModelForCausalLM

    shape, model = dimensions_of(random_gemma), AutoModelForCausalLM.from_pretrained(random_gemma)
    linear = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith("proj"))
    assert shape.linear_parameters == linear
    assert shape.embedding_parameters == model.get_input_embeddings().weight.numel()


def test_every_model_has_its_starting_point():
    found = {name: starting_point(name) for name in [catalog.TINY, *CATALOG]}
    rates = {name: (lora.r, lora.scale, train.learning_rate, train.effective_batch) for name, (lora, train) in found.items()}
    assert rates.pop(catalog.TINY) == (32, 2.0, 3e-3, 4)
    small = {name for name in rates if "270m" in name}
    assert small
    assert {name: (16, 2.0, 4e-4, 8) if name in small else (16, 1.0, 2e-4, 8) for name in rates} == rates
    assert {found[name][1] for name in rates if name not in small} == {TrainSettings()}


def test_errors_show_one_sentence_in_a_notebook(monkeypatch):
    assert GemmaColabError("r=0 is too small")._render_traceback_() == ["GemmaColabError: r=0 is too small"]
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    error = BlockedError("no row", "page")
    said = error._render_traceback_(), error._render_traceback_()  # a kernel asks twice
    assert (said, shown) == ((["BlockedError: no row"],) * 2, ["page"])


def test_errors_carry_what_belongs_to_them(capsys):
    assert str(GemmaColabError()) == ""
    blocked = BlockedError("no row", {"a": 1})
    assert (str(blocked), blocked.report, blocked.status) == ("no row", {"a": 1}, 3)
    log = [{"loss": 1.0}]
    stopped = TrainingError("no number", log)
    assert (str(stopped), stopped.log_history, stopped.status) == ("no number", log, 2)
    assert stopped.log_history is not log
    assert TrainingError("").log_history == []
    assert plain("see https://a.org/?key=abc&b=1 and Bearer xyz") == "see https://a.org/?key=***&b=1 and ***"
    assert plain(12) == "12"
    GemmaColabError.say("a\0", end="!")
    say("b", end="?")
    assert capsys.readouterr().out == "a\\u0000!b?"


def test_values_in_templates_are_escaped():
    assert "&lt;b&gt;" in render("core/panel", "hint", "<b>")
    assert "<b>" not in render("core/panel", "hint", "<b>")
    assert render("core/panel", "hint", text="x") == render("core/panel", "hint", "x")


def test_chat_rows():
    row = {"instruction": "A", "input": "B", "output": "C"}
    asked, said = {"role": "user", "content": "A\n\nB"}, {"role": "assistant", "content": "C"}
    assert to_messages(row | {"line": 2}) == {"messages": [asked, said], "line": 2}
    assert to_messages(row | {"input": ""})["messages"][0]["content"] == "A"
    assert to_messages(row | {"system": "S"}) == {"messages": [{"role": "system", "content": "S"}, asked, said]}
    assert to_messages({"instruction": "A", "output": "C", "system": ""})["messages"] == [asked | {"content": "A"}, said]
    older = {"prompt": [asked], "completion": [said], "line": 3, "label": "x"}  # of an older workspace
    assert to_messages(older) == {"messages": [asked, said], "line": 3, "label": "x"}
    ready = {"messages": [asked, said], "output": "kept"}
    assert to_messages(ready) is ready
    for spoilt in ({"role": "user"}, {"content": "x"}):
        with pytest.raises(KeyError):
            to_messages({"messages": [spoilt]})
    with pytest.raises(TypeError):
        to_messages({"messages": [{"role": "user", "content": 3}]})


def test_a_row_is_asked_and_answered_and_found_again():
    turns = [("system", "S"), ("user", "A"), ("model", "B"), ("user", "C"), ("assistant", "D")]
    row = {"messages": [{"role": role, "content": text, "weight": 0} for role, text in turns]}
    assert [(turn["role"], turn["content"], turn["weight"]) for turn in prompt(row)] == [
        ("system", "S", 0),
        ("user", "A", 0),
        ("assistant", "B", 0),
        ("user", "C", 0),
    ]
    assert row["messages"][2]["role"] == "model"
    assert answer(row) == "D"
    assert place({"line": 0, "item": None}, 5) == "line 0"
    assert (place({"line": 3, "item": 4}, 5), place({}, 5)) == ("item 4", "row 5")


def test_only_the_answer_and_its_end_are_trained(tokenizer, support_rows):
    for row in support_rows[:20]:
        tokens = tokenize_row(row, tokenizer)
        trained = [i for i in tokens["labels"] if i != -100]
        assert tokenizer.decode(trained) == row["messages"][-1]["content"] + "<end_of_turn>\n"
        assert tokens["input_ids"].count(tokenizer.bos_token_id) == 1
    assert stop_token_ids(tokenizer) == [1, 106]


def test_each_answer_of_a_conversation_is_trained_in_its_place(tokenizer):
    turns = [("user", "A"), ("assistant", "B"), ("user", "C"), ("model", "D"), ("user", "E"), ("assistant", "F")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}

    def trained(**how):
        tokens = tokenize_row(row, tokenizer, **how)
        assert list(tokens) == ["input_ids", "labels"]
        assert all(label in (-100, token) for token, label in zip(*tokens.values(), strict=True))
        return "".join("·" if label == -100 else tokenizer.decode([label]) for label in tokens["labels"])

    assert re.findall("[^·]+", trained()) == ["B<end_of_turn>\n", "F<end_of_turn>\n"]
    assert re.findall("[^·]+", trained(last_answer_only=True)) == ["F<end_of_turn>\n"]
    assert trained().endswith("F<end_of_turn>\n")
    assert len(trained()) == len(trained(last_answer_only=True)) + len("B<end_of_turn>\n") - 3


def test_another_template_is_never_run_and_gemmas_takes_its_place_aloud(tokenizer, capsys, monkeypatch):
    own = copy.deepcopy(tokenizer)
    monkeypatch.setattr(type(own), "apply_chat_template", lambda *a, **k: pytest.fail("it was run"))
    said = "somebody/model has another chat template than Gemma 3; it is not used, Gemma 3's own takes its place.\n"
    for other in ("{% for a in range(99999) %}{% endfor %}" + tokenizer.chat_template, {"default": "x", "tools": "y"}):
        own.chat_template = other
        assert with_template(own, "somebody/model").chat_template == tokenizer.chat_template
        assert capsys.readouterr().out == said
    for same in (None, "", "\n" + tokenizer.chat_template.replace("\n", " \n\n")):
        own.chat_template = same
        assert with_template(own, "somebody/model").chat_template == tokenizer.chat_template
    assert capsys.readouterr().out == ""


def test_a_template_that_writes_a_turn_otherwise_when_others_follow_is_refused(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    row = {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}
    cause = "writes a turn otherwise when others follow, so it can't be told which tokens are answers"
    with pytest.raises(ModelError) as caught:
        tokenize_row(row, own)
    said = f"the chat template of {own.name_or_path} {cause}; take a checkpoint with Gemma 3's own template"
    assert str(caught.value) == said


def test_a_long_conversation_is_not_written_anew_for_each_answer(tokenizer, monkeypatch):
    texts = ["Где заказ?", "  В пути 🙂\n", "<bos>", "a\n\n\nb<end_of_turn>\n", "٣ ﬁ"]
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"{texts[i % 5]}{i}"} for i in range(2 * 100)]
    row, other = {"messages": [{"role": "system", "content": "Будь краток."}, *turns]}, copy.deepcopy(tokenizer)
    row["messages"][6] = row["messages"][6] | {"role": "model", "weight": 0}
    other.chat_template = "{# written anew for each #}" + tokenizer.chat_template
    found, written, write = tokenize_row(row, other), [], tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda part, **how: written.append(len(part)) or write(part, **how))
    assert tokenize_row(row, tokenizer) == found
    assert sum(written) < 3 * len(row["messages"])


def test_more_answers_than_another_template_can_be_searched_for_are_refused(tokenizer):
    own, turns = copy.deepcopy(tokenizer), [{"role": role, "content": "x"} for role in ("user", "assistant") * (MOST + 1)]
    own.chat_template = tokenizer.chat_template.replace("<start_of_turn>", "<start_of_turn>the ")
    with pytest.raises(ModelError) as caught:
        tokenize_row({"messages": turns}, own)
    said = f"a row has {MOST + 1} answers, and {MOST} is the most with the chat template of {own.name_or_path}; split the row"
    assert str(caught.value).startswith(said)
    assert tokenize_row({"messages": turns}, own, last_answer_only=True)["labels"][-1] != -100


def test_token_lengths_count_the_part_of_the_answer_that_is_cut(tokenizer):
    chat = to_messages({"instruction": "Вопрос", "input": "", "output": "Ответ"})
    whole = token_lengths([chat], tokenizer, 1000).iloc[0]
    assert whole["prompt"] + whole["answer"] == whole["total"] == len(tokenize_row(chat, tokenizer)["input_ids"])
    assert whole["answer_tokens_cut"] == 0
    assert token_lengths([chat], tokenizer, int(whole["total"]) - 2).iloc[0]["answer_tokens_cut"] == 2
    assert token_lengths([chat], tokenizer, 1).iloc[0]["answer_tokens_cut"] == whole["answer"]


def test_settings_file_is_plain_json(workspace):
    LoraSettings(r=8).save(workspace)
    assert json.loads((workspace.path / "lora_settings.json").read_text())["r"] == 8
