"""Floor 0: settings, workspace, hardware, catalog, chat."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from gemma_colab import describe_machine
from gemma_colab.core import catalog
from gemma_colab.core import workspace as workspace_module
from gemma_colab.core.catalog import CATALOG, dimensions_of
from gemma_colab.core.chat import load_tokenizer, stop_token_ids, tokenize_row
from gemma_colab.core.errors import GemmaColabError, ModelError, SettingsError, WorkspaceError
from gemma_colab.core.machine import Machine, pick_dtype
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.workspace import Workspace, open_workspace, whole
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
    settings.save(workspace)
    assert type(settings).load(workspace) == settings


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
    assert "doesn't know, and they are left out: rank" in capsys.readouterr().out
    workspace.write_json(TrainSettings.file, {"seed": 3})  # of a time when the last answer alone was trained
    assert TrainSettings.load(workspace) == TrainSettings(seed=3, last_answer_only=True)


def test_steps_per_epoch_counts_like_the_trainer():
    assert TrainSettings(per_device_train_batch_size=4, gradient_accumulation_steps=2).steps_per_epoch(17) == 3
    assert TrainSettings(per_device_train_batch_size=8, gradient_accumulation_steps=1).steps_per_epoch(16) == 2


def test_workspace_says_what_is_missing_and_which_notebook_makes_it(workspace):
    with pytest.raises(WorkspaceError, match=r"rows/train\.jsonl is missing .* run notebook 01_dataset_prep first"):
        workspace.read_jsonl("rows/train.jsonl")


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
    with pytest.raises(WorkspaceError, match="nothing was written"), workspace.writing("adapter"):
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
    with pytest.raises(WorkspaceError, match="can't be made"):
        Workspace(tmp_path / "file" / "inside")


def test_workspace_is_on_drive_when_it_is_mounted(tmp_path, monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert open_workspace().path == tmp_path / "workspace"
    (tmp_path / "MyDrive").mkdir()
    monkeypatch.setattr(workspace_module, "DRIVE", tmp_path / "MyDrive")
    assert open_workspace().path == tmp_path / "MyDrive" / "gemma_colab"
    monkeypatch.setenv("GEMMA_COLAB_WORKSPACE", str(tmp_path / "mine"))
    assert open_workspace().path == tmp_path / "mine"


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
    assert rates.pop(catalog.TINY) == (32, 2.0, 3e-3, 8)
    small = {name for name in rates if "270m" in name}
    assert small
    assert {name: (16, 2.0, 4e-4, 8) if name in small else (16, 1.0, 2e-4, 8) for name in rates} == rates
    assert {found[name][1] for name in rates if name not in small} == {TrainSettings()}


def test_errors_show_one_sentence_in_a_notebook():
    assert GemmaColabError("r=0 is too small")._render_traceback_() == ["GemmaColabError: r=0 is too small"]


def test_chat_rows():
    row = {"instruction": "A", "input": "B", "output": "C"}
    asked, said = {"role": "user", "content": "A\n\nB"}, {"role": "assistant", "content": "C"}
    assert to_messages(row | {"line": 2}) == {"messages": [asked, said], "line": 2}
    assert to_messages(row | {"input": ""})["messages"][0]["content"] == "A"
    assert to_messages(row | {"system": "S"})["messages"] == [{"role": "system", "content": "S"}, asked, said]
    assert to_messages({"prompt": [asked], "completion": [said]}) == {"messages": [asked, said]}  # of an older workspace


def test_only_the_answer_and_its_end_are_trained(tokenizer, support_rows):
    for row in support_rows[:20]:
        tokens = tokenize_row(row, tokenizer)
        trained = [i for i in tokens["labels"] if i != -100]
        assert tokenizer.decode(trained) == row["messages"][-1]["content"] + "<end_of_turn>\n"
        assert tokens["input_ids"].count(tokenizer.bos_token_id) == 1
    assert stop_token_ids(tokenizer) == [1, 106]


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
