"""Small files of somebody else's that ask for enormous work, for modules, for code of the Hub; and a folder that isn't ours."""

import contextlib
import gzip
import json
import os
import resource
import shutil
import sys
import zipfile
from types import SimpleNamespace

import datasets
import numpy as np
import openpyxl
import pyarrow as pa
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from gemma_colab.core import workspace as workspaces
from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import BlockedError, DatasetError, ModelError, SettingsError, WorkspaceError, plain
from gemma_colab.core.settings import ModelSettings
from gemma_colab.core.workspace import Workspace, samples
from gemma_colab.data import json_files, read_rows
from gemma_colab.data.personal import mask
from gemma_colab.evaluation.candidates import kept_answers
from gemma_colab.export.adapter import SETTINGS, check_adapter, load_adapter
from gemma_colab.export.checkpoint import config_of
from gemma_colab.handover.export import _plain
from gemma_colab.handover.rows import prepare_rows
from gemma_colab.model.hub import refuse_links, weights_mark
from gemma_colab.training.checkpoints import OURS, check_ours, whole_checkpoints
from gemma_colab.training.records import list_runs
from gemma_colab.ui.report import write_report

TINY = samples() / "tiny-gemma3"
LIES = [("num_hidden_layers", 10**9), ("num_labels", 10**9), ("vocab_size", 10**12), ("attn_implementation", "a/kernel")]


@pytest.mark.parametrize(("field", "value"), LIES)
def test_a_config_that_asks_for_too_much_is_refused_before_a_library_reads_it(field, value, tmp_path, monkeypatch):
    folder = shutil.copytree(TINY, tmp_path / "model")
    for inside in (False, True):
        said = json.loads((TINY / "config.json").read_text())
        (said.setdefault("text_config", {}) if inside else said)[field] = value
        (folder / "config.json").write_text(json.dumps(said))
        monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: pytest.fail("it was read"))
        with pytest.raises(ModelError, match=f"{folder} .*{field}="):
            dimensions_of(str(folder))


def test_a_config_does_not_choose_how_attention_is_computed(monkeypatch):
    told = {}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **how: told.update(how))
    with pytest.raises(AttributeError):  # nothing was loaded
        _plain(TINY, None)
    assert told["attn_implementation"] == "sdpa"


def test_the_chat_template_of_a_folder_is_not_run(tmp_path, monkeypatch, capsys):
    """It is a program: this one would take for ever."""
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", lambda *a, **k: pytest.fail("it was begun"))
    assert load_tokenizer(str(folder)).chat_template == load_tokenizer("tiny-gemma3").chat_template
    assert (
        capsys.readouterr().out
        == f"{folder} has another chat template than Gemma 3; it is not used, Gemma 3's own takes its place.\n"
    )


def test_a_tokenizer_that_transformers_would_make_of_other_files_is_not_loaded(tmp_path, monkeypatch):
    """Of a tekken.json it takes any pattern, and some search for ever."""
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ModelError, match=r"model has no tokenizer.json; take a checkpoint with Gemma 3's own tokenizer"):
        load_tokenizer(str(folder))


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
STEPS = {
    "normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 30},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a*)*b"}, "behavior": "Isolated", "invert": False},
    "decoder": {"type": "Sequence", "decoders": [DOUBLE] * 30},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}] * 999},
}


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.4.0.0.json"])
@pytest.mark.parametrize("step", STEPS)
def test_a_tokenizer_that_makes_long_texts_of_short_ones_is_not_loaded(step, file, tmp_path, monkeypatch):
    folder = shutil.copytree(TINY, tmp_path / "model")
    load_tokenizer(str(folder))
    (folder / file).write_text(json.dumps(json.loads((TINY / "tokenizer.json").read_text()) | {step: STEPS[step]}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((TINY / "tokenizer_config.json").read_text()) | {"fast_tokenizer_files": [file]})
    )
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ModelError, match=r"changes texts otherwise than Gemma 3's tokenizer, .*; take a checkpoint with"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "change", [{"type": "WordPiece", "max_input_chars_per_word": 10**9}, {"dropout": 0.5}, {"type": "Unigram"}], ids=str
)
def test_a_tokenizer_that_cuts_otherwise_than_gemmas_is_not_loaded(change, tmp_path, monkeypatch):
    folder = shutil.copytree(TINY, tmp_path / "model")
    said = json.loads((TINY / "tokenizer.json").read_text())

    def save(**model):
        (folder / "tokenizer.json").write_text(json.dumps(said | {"model": said["model"] | model}))

    save(dropout=0.0, ignore_merges=None)  # as others write that nothing is dropped or passed over
    load_tokenizer(str(folder))
    save(**change)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("it was read"))
    with pytest.raises(ModelError, match=r"changes texts otherwise than Gemma 3's tokenizer, .*; take a checkpoint with"):
        load_tokenizer(str(folder))


def test_a_list_in_a_gguf_file_ends_where_the_file_does(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    from gemma_colab.model.unpack import unpack_gguf

    text = lambda word: np.uint64(len(word)).tobytes() + word  # noqa: E731
    head = b"GGUF" + np.uint32(3).tobytes() + np.uint64(0).tobytes() + np.uint64(1).tobytes()
    file = tmp_path / "lie.gguf"
    file.write_bytes(head + text(b"a.list") + np.uint32([9, 4]).tobytes() + np.uint64(10**12).tobytes() + bytes(64))
    asked, parts = [], gguf.GGUFReader._get_field_parts

    def counted(*args):
        asked.append(1)
        assert len(asked) < 1000, "it reads on behind the end"
        return parts(*args)

    monkeypatch.setattr(gguf.GGUFReader, "_get_field_parts", counted)
    with pytest.raises(ModelError, match="holds more than it does"):
        unpack_gguf(file, tmp_path / "out")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(TINY)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        folder := tmp_path_factory.mktemp("w") / "adapter"
    )
    return folder


BLOCKS = "|".join([r"model\.(language_model\.)?layers\.(0|1)\.(self_attn\.q_proj)"] * 40)
ODD = {
    "megatron_config": {"a": 1},
    "layer_replication": [[0, 10**6]],
    "target_modules": r"([a-z._0-9]+)+X",
    "exclude_modules": r"([a-z._0-9]+)+X",
    "rank_pattern": {r"([a-z._0-9]+)+X": 2},
    "alpha_pattern": {r"([a-z._0-9]+)+X": 2},
    "layers_pattern": r"([a-z._0-9]+)+X",
    "r": 10**9,
    "rank_pattern, long": {f"x{i}[0-9]+": 2 for i in range(301)},
    "alpha_pattern, long": {f"x{i}": 2 for i in range(301)},
    "target_modules, long": ["q_proj", *(f"x{i}" for i in range(301))],
    "exclude_modules, long": [f"x{i}" for i in range(301)],
    "modules_to_save, long": [f"x{i}" for i in range(301)],
    "layers_to_transform, long": [*range(301)],
    "target_modules, 3000": f"{BLOCKS[:-1]}{'q' * (3000 - len(BLOCKS))})|([a-z._0-9]+)+X",  # behind letters that are plain
    "peft_type": "VERA",
    "init_lora_weights": "pissa_niter_1000000000",
}


@pytest.mark.parametrize("field", ODD)
def test_an_adapter_that_asks_peft_for_more_is_refused_before_peft_reads_it(field, adapter, tmp_path, monkeypatch):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    check_adapter(folder)
    (folder / SETTINGS).write_text(
        json.dumps(json.loads((folder / SETTINGS).read_text()) | {field.partition(",")[0]: ODD[field]})
    )
    monkeypatch.setattr("peft.PeftModel.from_pretrained", lambda *a: pytest.fail("it was read"))
    with pytest.raises(WorkspaceError, match="not a whole LoRA adapter"):
        load_adapter(None, Workspace(tmp_path))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_what_is_packed_in_a_folder_unpacks_to_so_much_and_no_more(ending, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_colab.data.sources.ROOM", 2**16)
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("it was unpacked"))
    text = {"jsonl": '{"question": "%s", "answer": "a"}\n', "csv": 'question,answer\n"%s",a\n'}[ending] % ("a" * 2**20)
    (tmp_path / f"train.{ending}.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DatasetError, match="unpacks to more than"):
        read_rows(tmp_path)


@pytest.mark.parametrize("head", [b"\xfd7zXZ\0", b"BZh9", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"\x04\x22\x4d\x18"])
def test_what_is_packed_otherwise_is_refused_in_a_folder_whatever_its_name_says(head, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("it was unpacked"))
    (tmp_path / "train.jsonl").write_bytes(head + bytes(100))
    with pytest.raises(DatasetError, match=r", train\.jsonl (is|can't be read)"):
        read_rows(tmp_path)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_a_small_file_takes_no_more_memory_than_some_gigabytes_whatever_it_holds(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_colab.data.sources.MEMORY", 2**28)
    before = resource.getrlimit(resource.RLIMIT_AS)
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * 2000, pa.int32()), pa.array(["a" * 2**20])
    )  # one text in each row: 2 GiB
    data = datasets.Dataset(pa.table({"question": texts.dictionary.take(pa.array([0])), "answer": ["b"]}))
    table = pa.table({"question": texts, "answer": ["b"] * 2000})
    if saved:
        data.save_to_disk(str(tmp_path))
    (file,) = tmp_path.glob("*.arrow") if saved else [tmp_path / "train.arrow"]
    with pa.ipc.new_stream(str(file), table.schema) as out:
        out.write_table(table)
    with pytest.raises(DatasetError, match="takes more memory than a file of its size should; look at what is in it"):
        read_rows(tmp_path)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_folder_reads_nothing_beside_it(tmp_path):
    private, one = tmp_path / "private", {"question": ["pin?"], "answer": ["1234"]}
    datasets.Dataset.from_dict(one).save_to_disk(str(private / "saved"))
    (private / "mine.jsonl").write_text('{"question": "pin?", "answer": "1234"}\n')
    joined = tmp_path / "joined"
    joined.mkdir()
    (joined / "train::x.jsonl").write_text('{"question": "a", "answer": "b"}\n')  # for datasets, x.jsonl packed in "train"
    (joined / "train").symlink_to(private / "mine.jsonl")
    nested = tmp_path / "nested"
    for split in ("train", "x/y"):
        datasets.Dataset.from_dict(one).save_to_disk(str(nested / split))
    state = json.loads((nested / "x/y/state.json").read_text())
    state["_data_files"] = [{"filename": "../../../private/saved/data-00000-of-00001.arrow"}]
    (nested / "x/y/state.json").write_text(json.dumps(state))
    (nested / "dataset_dict.json").write_text('{"splits": ["train", "x/y"]}')
    for folder, split in ((joined, "train"), (nested, "train"), (nested, "x/y")):
        with pytest.raises(DatasetError, match=r"takes its rows from .*, which is not in it"):
            read_rows(folder, split=split)


@pytest.mark.parametrize("large", ["xl/styles.xml", "xl/book.xml", "xl/_rels/book.xml.rels", "[Content_Types].xml"])
def test_styles_without_end_are_not_parsed(large, tmp_path, monkeypatch):
    """Nor anything else that becomes objects, whatever the workbook is called."""
    book = openpyxl.Workbook()
    book.active.append(["question", "answer"])
    book.active.append(["a", "b"])
    book.save(tmp_path / "book.xlsx")
    assert len(read_rows(tmp_path / "book.xlsx").rows) == 1
    with (
        zipfile.ZipFile(tmp_path / "book.xlsx") as old,
        zipfile.ZipFile(tmp_path / "styled.xlsx", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        parts = {name: old.read(name).replace(b"xl/workbook.xml", b"xl/book.xml") for name in old.namelist()}
        parts["xl/book.xml"] = parts.pop("xl/workbook.xml")
        for name, text in ({large: b""} | parts).items():
            new.writestr(name, text + b" " * 2_500_000 * (name == large))
    monkeypatch.setattr("openpyxl.reader.excel.ExcelReader", lambda *a, **k: pytest.fail("it was parsed"))
    with pytest.raises(DatasetError, match=r"has more than 2 MiB of styles .*; save its sheet as \.csv"):
        read_rows(tmp_path / "styled.xlsx")


@pytest.mark.parametrize("name", ["adapter/x.json", "merged", "report.html"])
def test_what_a_folder_holds_that_is_no_workspace_of_ours_is_never_replaced(name, tmp_path):
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("years of work")
    with pytest.raises(WorkspaceError, match="is there, and gemma_colab did not make it"):
        Workspace(tmp_path).write_text(name.split("/")[0], "ours")
    assert theirs.read_text() == "years of work"
    ours = Workspace(tmp_path / "new")
    assert [ours.write_text("report.html", text).read_text() for text in "ab"] == ["a", "b"]


@pytest.mark.parametrize("name", sorted(workspaces.WRITTEN))
def test_whatever_is_ever_written_is_looked_for_before_the_first_write(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(WorkspaceError, match=f"{name} is there, and gemma_colab did not make it; name another workspace"):
        Workspace(tmp_path).write_text("rows/report.json", "ours")
    assert [path.name for path in tmp_path.iterdir()] == [name]


OWN = {
    "rows of another project": {"rows/train.jsonl": '{"prompt_id": 1}\n', "split_settings.json": "{}", "report.html": "mine"},
    "rows as TRL reads them": {"rows/train.jsonl": '{"prompt": [{"role": "user"', "review.json": "{}"},
    "Nx": {"workspace.json": '{"version": 1, "projects": {}}'},
    "Nx, and rows": {"workspace.json": '{"version": 2, "projects": {}}', "rows/train.jsonl": "mine", "split_settings.json": "{}"},
    "an editor's": {"workspace.json": '{"folders": []}'},
}


@pytest.mark.parametrize("what", OWN)
def test_the_folder_of_another_program_is_no_workspace(what, tmp_path):
    for name, text in OWN[what].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(WorkspaceError, match="name another workspace"):
        Workspace(tmp_path).write_jsonl("rows/train.jsonl", [])
    assert {name: (tmp_path / name).read_text() for name in OWN[what]} == OWN[what]


def test_a_workspace_of_version_1_is_known_by_its_rows(tmp_path):
    (tmp_path / "report.html").write_text("of then")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"prompt": [{"role": "user", "content": "a?"}], "completion": []}')
    (tmp_path / "split_settings.json").write_text("{}")
    Workspace(tmp_path).write_text("report.html", "of now")
    assert Workspace(tmp_path).version == 2


KEYS = [
    "sk_live_" + "aB3" * 8,
    "123456789:AA" + "b" * 33,
    "eyJ" + "a" * 20 + ".eyJ" + "b" * 30 + "." + "c" * 30,
    "ASIA" + "A1" * 8,
]
KEYS += ["npm_" + "a1" * 18, "pypi-" + "aB_" * 20, "vk1.a." + "aB3" * 20, "github_pat_" + "a1_" * 12, "hf_" + "aB3" * 11]
MARKS = "gsk_ xai- pplx- r8_ tgp_v1_ dop_v1_ shpat_ ntn_ lin_api_ dckr_pat_ hvs. xapp- whsec_ hf_oauth_ NRAK- glpat- glcbt-"
KEYS += [mark + "aB3" * 8 for mark in MARKS.split()]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_a_key_in_rows_and_in_messages(key):
    assert mask(f"my key is {key} ok") == "my key is [key] ok"
    assert plain(f"my key is {key} ok") == "my key is *** ok"


def test_what_is_masked_in_json_is_json_still():
    told = json.loads(plain(json.dumps({"file": 'x?key=secret"b', "path": r"y?token=sec\ret"})))
    assert told == {"file": 'x?key=***"b', "path": "y?token=***"}


def test_a_link_that_is_replaced_goes_and_what_it_led_to_stays(tmp_path):
    theirs, ours = tmp_path / "theirs", Workspace(tmp_path / "ours")
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    ours.write_json("model_settings.json", {})
    (ours.path / "adapter").symlink_to(theirs)
    with ours.writing("adapter") as part:
        part.mkdir()
    assert (theirs / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in ours.path.iterdir()} == {"adapter", "model_settings.json", "workspace.json"}
    assert not (ours.path / "adapter").is_symlink()


@pytest.fixture
def planted(tmp_path):
    """A workspace in which each folder and file leads to the same of somebody else; and that one."""
    theirs, planted = Workspace(tmp_path / "theirs"), Workspace(tmp_path / "planted")
    for name in ("rows/train.jsonl", "gguf/.model.gguf.1.part", "evaluation/answers.jsonl", "checkpoints/checkpoint-7/half.bin"):
        theirs.write_text(name, "years of work")
    ModelSettings(model="tiny-gemma3").save(planted)
    for name in ("rows", "gguf", "evaluation", "checkpoints"):
        (planted.path / name).symlink_to(theirs.path / name)
    yield planted
    names = {str(path.relative_to(theirs.path)) for path in theirs.path.rglob("*") if path.is_file()}
    left = {name for name in names if (theirs.path / name).read_text() == "years of work"}
    assert (len(left), names) == (4, left | {"workspace.json"})


def test_nothing_is_written_moved_or_deleted_through_a_link(planted):
    for refused in (
        lambda: planted.write_text("rows/train.jsonl", "ours"),
        lambda: planted.write_text("rows/new/train.jsonl", "ours"),
        lambda: prepare_rows(samples() / "support_en.jsonl", planted),
        lambda: planted.own("gguf"),
        lambda: kept_answers(planted, "base", SimpleNamespace(dtype="float32")),
    ):
        with pytest.raises(WorkspaceError, match="nothing is written through a link, so delete the link"):
            refused()
    (planted.path / "evaluation").unlink()
    (planted.path / "evaluation").mkdir()
    (planted.path / "evaluation" / "answers.jsonl").symlink_to(planted.path.parent / "theirs" / "evaluation" / "answers.jsonl")
    with pytest.raises(WorkspaceError, match=r"answers.jsonl leads to .*theirs"):
        planted.own("evaluation/answers.jsonl")
    (planted.path.parent / "other name").symlink_to(planted.path)
    assert Workspace(planted.path.parent / "other name").write_text("report.html", "ours").read_text() == "ours"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints",
        "checkpoints-before",
        "checkpoints/checkpoint-7",
        f"checkpoints/{OURS}",
        "checkpoints/checkpoint-7/README.md",
    ],
)
def test_training_begins_in_no_folder_that_is_or_holds_a_link(planted, name):
    folder = planted.path / "own" / "checkpoints"
    (folder.parent / name).parent.mkdir(parents=True)
    (folder.parent / name).symlink_to(planted.path.parent / "theirs" / "checkpoints")
    with pytest.raises(WorkspaceError, match=f"{name} is a link, and training moves and deletes only what is here"):
        check_ours(folder)


def test_a_folder_of_somebody_elses_is_no_workspace_whatever_is_written_first(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.txt").write_text("years of work")
    with pytest.raises(WorkspaceError, match="merged is there, and gemma_colab did not make it; name another workspace"):
        prepare_rows(samples() / "support_en.jsonl", Workspace(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}


def test_a_folder_that_holds_the_workspace_is_no_source(tmp_path):
    shutil.copy(samples() / "support_en.jsonl", tmp_path)
    prepare_rows(tmp_path, Workspace(tmp_path.with_name("elsewhere")))
    with pytest.raises(SettingsError, match=r"holds the workspace .*, whose rows would be read as new ones; name the file"):
        prepare_rows(tmp_path, Workspace(tmp_path / "workspace"))


def test_what_else_lies_beside_the_report_of_a_blocked_file_stays(tmp_path):
    ours, few = Workspace(tmp_path / "ours"), tmp_path / "few.jsonl"
    few.write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(BlockedError):
        prepare_rows(few, ours)
    mine = ours.path / "blocked" / "mine.jsonl"
    shutil.copy(samples() / "support_en.jsonl", mine)
    with pytest.raises(SettingsError, match="blocked, which would be overwritten; copy it elsewhere first"):
        prepare_rows(mine, ours)
    prepare_rows(samples() / "support_en.jsonl", ours)
    assert [path.name for path in (ours.path / "blocked").iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize("verdict", [{}, {"word": "improved", "ship": "yes"}, {"word": ["x"], "ship": "no"}, None])
def test_a_verdict_that_is_none_of_ours_is_one_sentence(tmp_path, verdict):
    Workspace(tmp_path).write_json("summary.json", {"verdict": verdict, "training": None, "review": None})
    with pytest.raises(WorkspaceError, match=r"summary\.json is not what gemma_colab writes there .* run notebook 05_evaluate"):
        write_report(Workspace(tmp_path))


def test_a_file_that_would_never_end_is_not_read(tmp_path):
    workspace = Workspace(tmp_path)
    for name in ("rows/test.jsonl", "history/x.json"):
        (tmp_path / name).parent.mkdir()
        os.mkfifo(tmp_path / name)
    with pytest.raises(WorkspaceError, match=r"rows/test\.jsonl is missing"):
        workspace.read_jsonl("rows/test.jsonl")
    assert list_runs(workspace) == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_pipe_is_refused_before_it_is_read(name, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(WorkspaceError, match=f"is not a whole LoRA adapter .*{name}"):
        check_adapter(folder)


@pytest.mark.parametrize("said", ["[]", '{"peft_type": "LORA", "rank_pattern": ["q_proj"]}', "[" * 100_000], ids=len)
def test_settings_of_an_adapter_that_are_none_are_one_sentence(said, adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / SETTINGS).write_text(said)
    with pytest.raises(WorkspaceError, match="is not a whole LoRA adapter"):
        check_adapter(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "notes/a.txt"])
def test_a_model_with_a_pipe_is_refused_before_it_is_read(name, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    for load in (dimensions_of, load_tokenizer, config_of):
        with pytest.raises(ModelError, match=f"{name} is no plain file; delete it, and copy the model's own"):
            load(str(folder))


@pytest.mark.parametrize("name", [OURS, "checkpoint-7/whole.json", "checkpoint-7/optimizer.pt"])
def test_checkpoints_with_a_pipe_are_refused_before_they_are_read(name, tmp_path):
    (tmp_path / "checkpoints" / name).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / "checkpoints" / name)
    assert whole_checkpoints(tmp_path / "checkpoints") == []
    with pytest.raises(WorkspaceError, match=f"{name} is no plain file, .*; delete it"):
        check_ours(tmp_path / "checkpoints")


def test_an_index_of_any_length_is_searched_once_for_each_file(tmp_path, monkeypatch):
    looked = []

    class Named(type(tmp_path)):
        def __eq__(self, other):
            looked.append(1)
            return super().__eq__(other)

        __hash__ = type(tmp_path).__hash__

    monkeypatch.setattr(
        "gemma_colab.model.hub.weights_of", lambda *a: [Named(tmp_path / f"{i}.safetensors") for i in range(1000)]
    )
    for i in range(100):
        (tmp_path / f"f{i}").touch()
    refuse_links(tmp_path)
    assert len(looked) < 1000


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"]
)
def test_another_file_from_which_answers_come_is_another_model(name, dated, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "model")
    before = weights_mark(str(folder), dated)
    (folder / "README.md").write_text("mine")
    assert weights_mark(str(folder), dated) == before
    with (folder / name).open("r+b") as file:  # as long as before
        file.seek(-min(50_000, (folder / name).stat().st_size) if name == "tokenizer.json" else 0, 2 * (name == "tokenizer.json"))
        file.write(b"#")
    assert weights_mark(str(folder), dated) != before


WRITTEN = {
    "паспорт серия 4510 номер 123456": "паспорт серия [паспорт]",
    "СНИЛС 11223344595": "СНИЛС [СНИЛС]",
    "номер 11223344595": "номер 11223344595",
    "пишите на ivan%40mail.ru и ivan＠mail.ru": "пишите на [почта] и [почта]",
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_is_written_otherwise_is_found_too(text):
    assert mask(text) == WRITTEN[text]


def test_a_long_cell_is_not_read_as_python(tmp_path, monkeypatch):
    """Python's own reader takes hundreds of bytes a character."""
    read = []
    monkeypatch.setattr("gemma_colab.data.schema.ast.literal_eval", lambda text: read.append(len(text)) or [{"role": "user"}])
    rows = [{"question": "[{'role':'user'}," + "1," * count + "]", "answer": "b"} for count in (100, 100_000)] + [
        {"question": "a", "answer": "b"}
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read_rows(tmp_path / "a.jsonl", on_bad="aside")
    assert read == [len(rows[0]["question"])]


@pytest.mark.parametrize("row", ["{x},\n", '{"a":[' + "1," * 400 + '1],"b":\n'], ids=["broken", "never closed"])
def test_broken_rows_of_json_cost_no_more_each_where_there_are_many(row, tmp_path, monkeypatch):
    """The work is counted: the characters that the decoder reads, and the lines that an error counts."""
    work, decoder = [0], json_files.DECODER

    class Counting:
        def raw_decode(self, text, start):
            try:
                value, end = decoder.raw_decode(text, start)
            except json.JSONDecodeError as error:
                work[-1] += error.lineno + error.pos - start
                raise
            work[-1] += end - start
            return value, end

    monkeypatch.setattr(json_files, "DECODER", Counting())
    monkeypatch.setattr(json_files, "AGAIN", 2, raising=False)
    for count in (200, 800):
        work.append(0)
        (tmp_path / "a.json").write_text("[\n" + row * count + '{"question":"a b","answer":"c d"}\n]')
        with contextlib.suppress(DatasetError):
            read_rows(tmp_path / "a.json", on_bad="aside")
    assert work[2] < 6 * work[1]


def test_a_broken_row_far_below_is_told_by_its_true_line(tmp_path):
    text = (
        "[\n"
        + '{"question": "a",\n "answer": "b"},\n' * 3
        + '{"question": "a",\n "answer": x},\n' * 2
        + '{"question": "c", "answer": "d"}]'
    )
    (tmp_path / "a.json").write_text(text)
    told = [bad["problem"] for bad in read_rows(tmp_path / "a.json", on_bad="aside").aside]
    assert told == [f"not valid JSON (Expecting value at character 12 of line {line})" for line in (9, 11)]
