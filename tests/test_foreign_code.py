"""A checkpoint may bring Python of its own (`auto_map`). Nothing here runs it, and nobody is asked whether it may run."""

import ast
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import save_file
from test_house import code_of

from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import ModelError
from gemma_colab.core.loading import load_model
from gemma_colab.export.card import model_card
from gemma_colab.export.checkpoint import check_merged, config_of
from gemma_colab.handover.export import _plain

FOLDERS = ("gemma_colab", "notebooks", "tools", "benchmarks", "data_samples")
BY_NAME = {"from_pretrained", "from_config", "pipeline", "load_dataset", "load_dataset_builder"}
NO_CODE = {  # a call that has no such argument -> why
    "PeftModel.from_pretrained": "gets a loaded model, and reads tensors for it",
    "LoraConfig.from_pretrained": "reads numbers and names",
    "datasets.load_dataset": "has run no code of a dataset since version 4",
    "datasets.load_dataset_builder": "the same",
    "load_dataset": "the same, imported by its name",
}


def calls():
    """(where, call) of all that load something by its name."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".ipynb")]
    codes = [(path, code) for path in files for code in code_of(path)]
    codes += [
        (ROOT / page, block)
        for page in ("README.md", "docs/recipes.md")
        for block in python_in((ROOT / page).read_text(encoding="utf-8"))
    ]
    cards = {form: str(model_card(form, {"model": "tiny-gemma3"})) for form in ("adapter", "merged")}
    codes += [(ROOT / f"card of the {form}", block) for form, card in cards.items() for block in python_in(card)]
    for path, code in codes:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in BY_NAME:
                yield f"{path.relative_to(ROOT)}: {ast.unparse(node)[:100]}", node


def python_in(page: str) -> list[str]:
    return [block.split("```")[0] for block in page.split("```python\n")[1:]]


def test_every_call_that_loads_by_name_says_that_no_code_runs():
    found = list(calls())
    assert len(found) > 20
    for where, call in found:
        said = [ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "trust_remote_code"]
        assert said == ["False"] or (not said and ast.unparse(call.func) in NO_CODE), where


def merged_again(name):
    """`merged/` is read again, some time after it was written."""
    return _plain(Path(name), torch.float32)


@pytest.fixture(params=["gemma3_text", "somebodys"])
def planted(request, random_gemma, tmp_path, monkeypatch):
    """A checkpoint with code of its own in config, model and tokenizer, a learner who says yes, and the file that the code would write."""
    folder, mark = shutil.copytree(random_gemma, tmp_path / "planted"), tmp_path / "it ran"
    (folder / "own.py").write_text(
        f"open({str(mark)!r}, 'w')\n"
        "from transformers import GemmaTokenizer, Gemma3ForCausalLM, Gemma3TextConfig\n"
        f"class OwnConfig(Gemma3TextConfig):\n    model_type = {request.param!r}\n"
        "class Own(Gemma3ForCausalLM):\n    config_class = OwnConfig\n"
        "class OwnTokenizer(GemmaTokenizer):\n    pass\n"
    )
    model = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    for name, own in (("config", model), ("tokenizer_config", {"AutoTokenizer": ["own.OwnTokenizer", None]})):
        file = folder / f"{name}.json"
        said = json.loads(file.read_text()) | {"auto_map": own}
        said |= {"model_type": request.param} if name == "config" else {"tokenizer_class": "OwnTokenizer"}
        file.write_text(json.dumps(said))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, mark, request.param


@pytest.mark.parametrize("load", [load_tokenizer, config_of, check_merged, dimensions_of, lambda name: load_model(name, None)])
def test_code_that_comes_with_a_checkpoint_never_runs(planted, load, capsys):
    folder, mark, kind = planted
    if kind == "somebodys":
        with pytest.raises(ModelError, match="brings code of its own, which nothing here runs; take a plain Gemma 3") as said:
            load(str(folder))
        assert "\n" not in str(said.value)
    else:
        load(str(folder))  # Gemma 3 is loaded by the library's own classes
    assert not mark.exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("file", ["w.bin", "../outside.safetensors", "/tmp/outside.safetensors"])
def test_an_index_names_safetensors_beside_it_and_nothing_else(file, random_gemma, tmp_path, monkeypatch):
    folder = shutil.copytree(random_gemma, tmp_path / "indexed")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    names = [*safe_open(folder / "part.safetensors", "pt").keys()]
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")})
    )
    load_model(str(folder), torch.float32)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, file)}))
    monkeypatch.setattr("torch.load", lambda *a, **k: pytest.fail("a pickle was read"))
    for load in (lambda name: load_model(name, torch.float32), merged_again):
        with pytest.raises(
            ModelError, match=rf"takes weights from {re.escape(file)}, which is no .safetensors file in its own folder"
        ):
            load(str(folder))


@pytest.mark.parametrize("indexed", [False, True])
def test_a_config_that_asks_for_more_weights_than_there_are_takes_no_memory(indexed, random_gemma, tmp_path, monkeypatch):
    folder = shutil.copytree(random_gemma, tmp_path / "empty")
    if indexed:
        (folder / "model.safetensors.index.json").write_text(
            '{"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}'
        )
    save_file({"model.norm.weight": torch.zeros(8)}, folder / "model.safetensors", metadata={"format": "pt"})
    with open(folder / "beside.safetensors", "wb") as beside:  # which nobody loads
        beside.truncate(2**30)
    monkeypatch.setattr("transformers.Gemma3ForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("it was made"))
    with pytest.raises(
        ModelError, match=r"holds \d+ bytes, and its config asks for weights of [\d,]+ bytes at least; take a whole"
    ):
        load_model(str(folder), torch.float32)


def test_a_vocabulary_that_is_not_there_takes_no_memory(random_gemma, tmp_path, monkeypatch):
    folder = shutil.copytree(random_gemma, tmp_path / "wide")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"vocab_size": 2**23}))
    monkeypatch.setattr("transformers.Gemma3ForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("it was made"))
    with pytest.raises(ModelError, match=r"holds [\d,]+ bytes, and its config asks for weights of [\d,]+ bytes at least"):
        load_model(str(folder), torch.float32)


@pytest.mark.parametrize("load", [config_of, check_merged, dimensions_of, lambda name: load_model(name, None), merged_again])
def test_an_adapter_beside_a_model_imports_nothing_and_is_not_put_on_it(load, random_gemma, tmp_path, monkeypatch):
    folder = shutil.copytree(random_gemma, tmp_path / "megatron")
    (folder / "payload.py").write_text("")
    more = {"megatron_config": {"a": 1}, "megatron_core": "megatron.payload"}
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]} | more
    (folder / "adapter_config.json").write_text(json.dumps(said))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"is an adapter, not a whole model, or has one beside .*; load its base and put"):
        load(str(folder))
    assert "megatron.payload" not in sys.modules


@pytest.fixture
def strange(random_gemma, tmp_path):
    """A model folder into whose files a test may write: (file, fields of it) -> the folder's name."""
    folder = shutil.copytree(random_gemma, tmp_path / "strange")

    def changed(name, **fields):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
        return str(folder)

    return changed


@pytest.mark.parametrize("file", ["x.safetensors.index.json", "adapter_model.bin", "other.safetensors"])
def test_a_config_can_not_name_other_weights(file, strange, monkeypatch):
    monkeypatch.setattr("torch.load", lambda *a, **k: pytest.fail("a pickle was read"))
    folder = strange("config.json", transformers_weights=file)
    (Path(folder) / file).write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": "x.bin"}}))
    for load in (lambda name: load_model(name, torch.float32), config_of, dimensions_of):
        with pytest.raises(ModelError, match=f"names code or weights elsewhere, transformers_weights='{file}'"):
            load(folder)


def test_a_config_whose_tokens_see_those_behind_them_is_refused(strange):
    folder = strange("config.json", use_bidirectional_attention=True)  # all losses would mean nothing
    for load in (lambda name: load_model(name, torch.float32), config_of):
        with pytest.raises(
            ModelError, match="use_bidirectional_attention=True: its tokens see those behind them, so it can't write"
        ):
            load(folder)


@pytest.mark.parametrize(
    "fields", [{"gguf_file": "vocab.gguf"}, {"split_special_tokens": True}, {"tokenizer_class": "BertTokenizer"}], ids=str
)
def test_a_tokenizer_of_another_kind_is_refused(fields, strange):
    with pytest.raises(ModelError, match="take a checkpoint with Gemma 3's own tokenizer"):
        load_tokenizer(strange("tokenizer_config.json", **fields))


def test_a_list_without_end_is_refused(strange):
    with pytest.raises(ModelError, match="eos_token_id=100000, and 1024 is the most"):
        load_model(strange("config.json", eos_token_id=[1] * 100_000), torch.float32)


def test_code_is_not_handed_on_with_what_is_saved(strange, tmp_path):
    folder = strange("config.json", auto_map={"AutoConfig": "somebody/else--own.Config"})
    strange("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    load_tokenizer(folder).save_pretrained(tmp_path / "saved")
    config_of(folder).save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*config.json"):
        assert "auto_map" not in file.read_text(), file.name
