"""What is taken home: the merged model against peft's own merge and in plain transformers, the card, the comparison, the command."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from checkpoints import TOKENIZER_FILES, save_random_gemma, save_random_multimodal
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

from gemma_colab.cli import main
from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import SECRET, ModelError, SettingsError, WorkspaceError
from gemma_colab.core.loading import load_model, load_tokenizer
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LINEAR, LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import Workspace, samples, whole
from gemma_colab.data.looking import question
from gemma_colab.export import export_workspace, exported, gguf, load_adapter, merge, save_adapter
from gemma_colab.export import merged as merging
from gemma_colab.export.card import model_card, plain
from gemma_colab.export.checkpoint import text_name
from gemma_colab.export.record import mib
from gemma_colab.handover import export as steps
from gemma_colab.handover.adapter import train_adapter
from gemma_colab.handover.assess import load_tuned
from gemma_colab.handover.export import CLOSE, behind, card_facts
from gemma_colab.model.libraries import pass_over_old_torchao

TINY = samples() / "tiny-gemma3"
PLANTED = "hf_" + 17 * "Zz"


def adapt(model, seed=0, std=0.02, **settings):
    """The model with an adapter that changes something: a fresh one changes nothing. At std=0.2 the tiny Gemma 3 answers otherwise."""
    torch.manual_seed(seed)
    pass_over_old_torchao()  # as `load_model` does: Colab's is too old for peft, and some models here come in plainly
    config = settings.pop("config", None) or lora_config(LoraSettings(**{"r": 4, "lora_alpha": 8} | settings))
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    return adapted.eval()


def save(adapted, folder) -> Path:
    adapted.save_pretrained(folder)
    return Path(folder)


def load(folder, dtype=torch.float32):
    """As anybody loads it, and every weight must come from the file."""
    model, found = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return model.eval()


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in Path(folder).glob("*.safetensors") for name, tensor in load_file(path).items()}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(10, 60)[None]).logits


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rewrite(path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def in_plain(code, *arguments):
    """What a process prints that never sees this package."""
    code += "\nassert not [name for name in sys.modules if name.split('.')[0] == 'gemma_colab']"
    command = [sys.executable, "-c", "import json, sys, torch\n" + code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=samples())
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.fixture(scope="module")
def base32(tmp_path_factory):
    """A random base that is stored in float32."""
    return str(save_random_gemma(tmp_path_factory.mktemp("base32")))


@pytest.fixture(scope="module")
def adapter(base32, tmp_path_factory):
    """The folder of an adapter for it."""
    return save(adapt(load(base32)), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """Two folders with one tiny multimodal Gemma 3: its keys as on the Hub, and as newer transformers name them."""
    folder = tmp_path_factory.mktemp("multimodal")
    save_random_gemma(folder / "text")
    save_random_multimodal(folder / "hub")
    stored = load_file(folder / "hub" / "model.safetensors")
    assert "language_model.model.norm.weight" in stored
    (folder / "hub" / "preprocessor_config.json").write_text("{}")
    shutil.copytree(folder / "hub", folder / "new")
    new = {re.sub(r"^language_model\.model", "model.language_model", name): weight for name, weight in stored.items()}
    new = {name if name.startswith("model.") else f"model.{name}": weight for name, weight in new.items()}
    save_file(new, folder / "new" / "model.safetensors", metadata={"format": "pt"})
    return folder


# --------------------------------------------------------------------------------------------- merging
KINDS = {"LoRA": {}, "rsLoRA": {"use_rslora": True}, "DoRA": {"use_dora": True}, "attention": {"target_modules": "attention"}}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_peft_merges(base32, tmp_path, kind):
    adapted = adapt(load(base32), **KINDS[kind])
    merge(base32, save(adapted, tmp_path / "adapter"), tmp_path / "merged")
    got, expected = load(tmp_path / "merged").state_dict(), adapted.merge_and_unload().state_dict()
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], msg=name)
    before = load(base32).state_dict()
    changed = {name for name in got if not torch.equal(got[name], before[name])}
    assert changed == {name for name in got if re.search(r"(q|k|v|o)_proj" if kind == "attention" else r"_proj", name)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_is_saved_as_bfloat16_rounded_once(base32, tmp_path, dtype):
    load(base32, dtype).save_pretrained(tmp_path / "base")
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, tmp_path / "base")
    wide = adapt(load(tmp_path / "base"))
    merge(str(tmp_path / "base"), save(wide, tmp_path / "adapter"), tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    expected = wide.merge_and_unload().state_dict()  # in float32
    for name, weight in weights(tmp_path / "merged").items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, expected[name].bfloat16()), name


def test_in_shards_it_is_the_same_and_the_base_is_left_as_it_was(base32, adapter, tmp_path):
    before = snapshot(base32)
    merge(base32, adapter, tmp_path / "one")
    merge(base32, adapter, tmp_path / "many", max_shard_bytes=1_100_000)
    assert snapshot(base32) == before
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 2
    assert sorted(set(index["weight_map"].values())) == files
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    load(base32).save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, tmp_path / "sharded")
    merge(str(tmp_path / "sharded"), adapter, tmp_path / "again")
    one = weights(tmp_path / "one")
    assert {weight.dtype for weight in one.values()} == {torch.float32}  # as the base is stored
    assert json.loads((tmp_path / "one" / "config.json").read_text())["dtype"] == "float32"
    for other in (load(tmp_path / "many").state_dict(), weights(tmp_path / "again")):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_files_that_are_not_loaded_are_not_merged_either(base32, adapter, tmp_path):
    """A model of yesterday in the same folder: transformers trains on the files that it knows, and so these are merged."""
    merge(base32, adapter, tmp_path / "one")
    folder = shutil.copytree(base32, tmp_path / "base")
    old = {name: torch.zeros_like(weight) for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(old, folder / "old_model.safetensors", {"format": "pt"})
    merge(str(folder), adapter, tmp_path / "again")
    one, again = weights(tmp_path / "one"), weights(tmp_path / "again")
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"b.safetensors": ["model.norm.weight"]}, "has model.norm.weight in a.safetensors and b.safetensors; take a sound"),
        ({"c.bin": []}, "takes weights from c.bin"),
        ({"c.safetensors": []}, "c.safetensors is not whole"),
    ],
)
def test_an_index_names_whole_files_without_twins(others, words, base32, adapter, tmp_path):
    folder = shutil.copytree(base32, tmp_path / "base")
    all_of_them = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    for file, twins in others.items():
        if twins:
            save_file({name: all_of_them[name] for name in twins}, folder / file, {"format": "pt"})
    said = dict.fromkeys(all_of_them, "a.safetensors") | {f"more {file}": file for file in others}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": said}))
    refused(ModelError, words, str(folder), adapter, tmp_path / "m")


LOGITS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chat = [{"role": "user", "content": "Where is my order?"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        logits = model(**ids).logits[0, -1].tolist()
    told = {"class": type(model).__name__, "ids": ids["input_ids"][0].tolist(), "logits": logits, "config": model.config.eos_token_id}
    found.append(told | {"stops": model.generation_config.eos_token_id, "pad": model.generation_config.pad_token_id})
print(json.dumps(found))
"""


def test_plain_transformers_gives_the_adapters_logits(multimodal, tmp_path):
    """Of bases of every kind."""
    cases = [("text", True), ("hub", True), ("new", True), ("hub", False), ("new", False)]
    adapted = {kind: adapt(load_model(str(multimodal / kind), torch.float32)) for kind in ("text", "hub")}
    for kind, model in adapted.items():
        save(model, tmp_path / f"adapter {kind}")
    for kind, text_only in cases:
        of = tmp_path / f"adapter {'text' if kind == 'text' else 'hub'}"
        merge(str(multimodal / kind), of, tmp_path / f"{kind} {text_only}", text_only=text_only)
    found = json.loads(in_plain(LOGITS, *(tmp_path / f"{kind} {text_only}" for kind, text_only in cases)))
    chat = [{"role": "user", "content": "Where is my order?"}]
    tokenizer = load_tokenizer(str(multimodal / "text"))
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    for (kind, text_only), told in zip(cases, found, strict=True):
        with torch.no_grad():
            expected = adapted["text" if kind == "text" else "hub"](input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(torch.tensor(told["logits"]), expected, atol=1e-4, rtol=1e-4)
        assert told["class"] == ("Gemma3ForCausalLM" if text_only else "Gemma3ForConditionalGeneration")
        assert (told["ids"], told["stops"], told["pad"]) == (ids, [1, 106], 0)
        assert text_only is False or told["config"] == [1, 106]


ANSWERS = """
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for question in json.loads(sys.argv[2]):
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
    answers.append(tokenizer.decode(out))
print(json.dumps([str(model.dtype), answers]))
"""


def test_plain_transformers_gives_the_adapters_answers(tmp_path, support_rows):
    """And ends them where they end: with the generation config that was stored."""
    base = tmp_path / "base"
    load(TINY).save_pretrained(base)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        shutil.copy(TINY / name, base)
    adapted, tokenizer = adapt(load(base), std=0.2), load_tokenizer(str(base))
    merge(str(base), save(adapted, tmp_path / "adapter"), tmp_path / "merged")
    known = (samples() / "general_probe.jsonl").read_text(encoding="utf-8").splitlines()[:60:10]
    questions = [json.loads(line)["question"] for line in known] + [question(row) for row in support_rows[20:80:10]]
    dtype, answers = json.loads(in_plain(ANSWERS, tmp_path / "merged", json.dumps(questions)))

    def ask(text):
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = adapted.generate(**ids, do_sample=False, max_new_tokens=24, eos_token_id=[1, 106], pad_token_id=0)
        return tokenizer.decode(out[0, ids["input_ids"].shape[1] :])

    assert dtype == "torch.float32"
    assert answers == list(map(ask, questions))
    assert sum(answer.endswith("<end_of_turn>") for answer in answers) >= 6
    with adapted.disable_adapter():
        assert sum(a != b for a, b in zip(answers, map(ask, questions), strict=True)) >= 3  # the adapter does something


def test_an_adapter_that_was_trained_on_the_whole_model_fits_too_and_the_names_are_those_of_the_kind(multimodal, tmp_path):
    """Its tensors are called model.language_model.layers…, as other tools train multimodal models."""
    base = Gemma3ForConditionalGeneration.from_pretrained(multimodal / "hub", dtype=torch.float32)
    adapted = adapt(base, config=LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)"))
    adapter = save(adapted, tmp_path / "adapter")
    assert all(".language_model.layers." in name for name in load_file(adapter / "adapter_model.safetensors"))

    def text(named):
        return {text_name(name): weight for name, weight in named.items() if text_name(name)}

    whole_model = weights(multimodal / "hub")
    expected, before = text(adapted.merge_and_unload().state_dict()), text(whole_model)
    for text_only in (True, False):
        merge(str(multimodal / "hub"), adapter, tmp_path / f"merged {text_only}", text_only=text_only)
        stored = weights(tmp_path / f"merged {text_only}")
        assert all(name.startswith("model.") for name in stored) if text_only else stored.keys() == whole_model.keys()
        assert all(torch.equal(stored[name], whole_model[name]) for name in stored if not text_name(name))  # what sees images
        assert (tmp_path / f"merged {text_only}" / "preprocessor_config.json").exists() is not text_only
        got = text(stored)
        for name in got:
            torch.testing.assert_close(got[name], expected[name], msg=name)
        changed = {name for name in got if not torch.equal(got[name], before[name])}
        assert changed == {name for name in got if re.search(r"(q|down)_proj", name)}


def test_everything_another_program_needs_is_there(base32, adapter, tmp_path):
    base, out = shutil.copytree(base32, tmp_path / "base"), tmp_path / "merged"
    (base / "chat_template.jinja").unlink()  # as in a base without instruction tuning, which stops at <eos> only
    rewrite(base / "config.json", eos_token_id=1)
    rewrite(base / "generation_config.json", eos_token_id=1, bos_token_id=2, pad_token_id=0)
    merge(str(base), adapter, out)
    assert (out / "tokenizer.model").read_bytes() == (TINY / "tokenizer.model").read_bytes()
    assert (out / "chat_template.jinja").read_text().strip() == (TINY / "chat_template.jinja").read_text().strip()
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / name).read_text())["eos_token_id"] == [1, 106], name
    assert not [path for path in out.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    for path in out.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name


def test_it_gets_the_sampling_that_google_recommends_before_the_work(base32, adapter, tmp_path, monkeypatch):
    base = shutil.copytree(base32, tmp_path / "base")
    rewrite(base / "generation_config.json", temperature=0.1, top_p=0.9, eos_token_id=1)  # sampling that is off, as some have it
    written, real = [], merging.save_file
    monkeypatch.setattr(
        merging, "save_file", lambda *a, **o: written.extend(p.name for p in a[1].parent.iterdir()) or real(*a, **o)
    )
    merge(str(base), adapter, tmp_path / "merged")
    told = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert (told["do_sample"], told["temperature"], told["top_k"], told["top_p"]) == (True, 1.0, 64, 0.95)
    assert (told["eos_token_id"], told["pad_token_id"], told["bos_token_id"]) == ([1, 106], 0, 2)
    assert {"generation_config.json", "config.json", "tokenizer.json"} <= set(written)
    load(tmp_path / "merged")


# --------------------------------------------------------------------------------------------- an adapter of the text part
TARGETS = {
    "all": {},
    "attention": {"target_modules": "attention"},
    "DoRA": {"use_dora": True},
    "one block": {"target_modules": r"model\.layers\.1\.(mlp\.up_proj|self_attn\.q_proj)"},
    "mixed": {"target_modules": r".*(layers\.0\.self_attn\.q_proj|layers\.1\.mlp\.down_proj|layers\.\d+\.self_attn\.v_proj)"},
    "layers to transform": {"config": LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM")},
}
THREE_WAYS = {
    "AutoModelForCausalLM": lambda base: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
    "Gemma3ForConditionalGeneration": lambda base: Gemma3ForConditionalGeneration.from_pretrained(base, dtype=torch.float32),
    "load_model": lambda base: load_model(str(base), torch.float32),
}


def old_names(workspace, tuned, tokenizer):
    """The adapter as it was saved before it had the names of the whole model."""
    tuned.save_pretrained(workspace.path / "adapter")
    tokenizer.save_pretrained(workspace.path / "adapter")


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_of_the_text_part_loads_in_all_usual_ways(multimodal, workspace, tokenizer, targets):
    """Without a warning, and to the last bit; and not one layer of the vision part is wrapped."""
    tuned = adapt(load_model(str(multimodal / "hub"), torch.float32), std=0.2, **TARGETS[targets])
    wanted, trained = logits(tuned), sum("lora_" in name for name in tuned.state_dict())
    save_adapter(tuned, tokenizer, workspace)
    folder = workspace.path / "adapter"
    assert all(n.startswith("base_model.model.model.language_model.layers.") for n in load_file(folder / ADAPTER))
    for load in THREE_WAYS.values():
        base = load(multimodal / "hub")
        with torch.no_grad():
            before = base(input_ids=torch.arange(10, 60)[None]).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            again = PeftModel.from_pretrained(base, folder).eval()
        assert torch.equal(logits(again), wanted)
        assert (before - wanted).abs().max() > 0.01
        assert sum("lora_" in name for name in again.state_dict()) == trained
        assert torch.equal(logits(load_adapter(load(multimodal / "hub"), workspace)), wanted)


def test_vllm_finds_its_layers(multimodal, workspace, tokenizer):
    """As `hf_to_vllm_mapper` of vLLM's Gemma3ForConditionalGeneration renames them; names that it doesn't know do nothing there."""
    save_adapter(adapt(load_model(str(multimodal / "hub"), torch.float32)), tokenizer, workspace)
    modules = {f"language_model.model.layers.{i}.{name}" for i in range(2) for name in LINEAR}
    named = {
        re.sub(r"\.lora_[AB]\.weight$", "", n.removeprefix("base_model.model."))
        for n in load_file(workspace.path / "adapter" / ADAPTER)
    }
    assert {re.sub(r"^model\.language_model\.", "language_model.model.", name) for name in named} == modules


def test_an_adapter_of_a_text_model_has_the_names_it_always_had(base32, workspace, tokenizer):
    tuned = adapt(load_model(base32, torch.float32))
    save_adapter(tuned, tokenizer, workspace)
    tuned.save_pretrained(workspace.path / "plain")
    assert snapshot(workspace.path / "adapter")[Path(ADAPTER)] == snapshot(workspace.path / "plain")[Path(ADAPTER)]
    assert "language_model" not in (workspace.path / "adapter" / "adapter_config.json").read_text()


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_does_not_find_every_place_is_refused_and_leaves_the_base_alone(
    multimodal, workspace, tokenizer, tmp_path
):
    """Of older names, of a model with more layers of the same width, of fewer weights, of none."""
    ways, hub = THREE_WAYS, multimodal / "hub"
    old_names(workspace, adapt(load_model(str(hub), torch.float32), std=0.2), tokenizer)
    wanted = logits(load_adapter(load_model(str(hub), torch.float32), workspace))
    deeper = save_random_gemma(tmp_path / "deeper", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    deep, fewer = Workspace(tmp_path / "deep"), Workspace(tmp_path / "fewer")
    save_adapter(adapt(load(deeper)), tokenizer, deep)
    for name in ("layers.1", ""):  # nothing of the second block; nothing at all
        save_adapter(adapt(load_model(str(hub), torch.float32)), tokenizer, fewer)
        drop(fewer.path / "adapter" / ADAPTER, name)
        for way in ways.values():
            with pytest.raises(WorkspaceError, match=r"doesn't fit this base model \(.*\); load the base it was trained on"):
                load_adapter(way(hub), fewer)
    for way, other in (("AutoModelForCausalLM", workspace), ("Gemma3ForConditionalGeneration", workspace), ("load_model", deep)):
        base = ways[way](hub)
        before = logits(base)
        with pytest.raises(WorkspaceError, match="doesn't fit this base model"):
            load_adapter(base, other)
        assert torch.equal(logits(base), before)
        assert not [name for name in base.state_dict() if "lora_" in name]
    assert not torch.equal(wanted, before)


def test_checkpoints_and_resume_go_on_as_before(multimodal, workspace, support_rows, tokenizer, capsys):
    """Their adapters keep the names of the class that is trained; the run that is resumed ends as the one that wasn't."""
    for split, rows in {"train": support_rows[:16], "validation": support_rows[16:20], "test": support_rows[20:22]}.items():
        workspace.write_jsonl(f"rows/{split}.jsonl", [to_messages(row) for row in rows])
    chosen = ModelSettings(model=str(multimodal / "hub"), load_in_4bit=False)
    chosen.save(workspace)
    settings = TrainSettings(num_train_epochs=2, learning_rate=5e-3, max_length=128, warmup_steps=0, save_minutes=60)
    train_adapter(workspace, chosen, settings, show=None)
    said = capsys.readouterr().out
    assert "hub sees images, and only its text part is tuned here" in said
    whole_run = weights(workspace.path / "adapter")
    newest = max(workspace.path.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert ".language_model." not in next(iter(load_file(newest / ADAPTER)))
    shutil.rmtree(newest)
    train_adapter(workspace, chosen, settings, resume=True, show=None)
    again = weights(workspace.path / "adapter")
    assert again.keys() == whole_run.keys()
    assert ".language_model." in next(iter(again))
    assert all((again[name] - whole_run[name]).abs().max() < 1e-5 for name in again)
    model, _ = load_tuned(workspace)
    assert not torch.equal(logits(model), logits(load_model(str(multimodal / "hub"), torch.float32)))


def test_what_an_export_of_a_model_that_sees_images_leaves_out_is_said(multimodal, work, tokenizer, monkeypatch, capsys):
    """And an adapter that was saved under older names gets today's."""
    hub = str(multimodal / "hub")
    tuned = adapt(load_model(hub, torch.float32), std=0.2)
    wanted = logits(tuned)
    old_names(work, tuned, tokenizer)
    work.write_json("training.json", work.read_json("training.json") | {"model": hub})
    blind = r"hub sees images; only its text part was tuned, and only that is written: {} sees none any more \(.*--whole"
    assert export(work, "adapter") == 0
    said = capsys.readouterr().out
    assert "hub sees images; only its text part was tuned.\n" in said
    assert torch.equal(logits(PeftModel.from_pretrained(THREE_WAYS["AutoModelForCausalLM"](hub), work.path / "adapter")), wanted)
    card = (work.path / "adapter" / "README.md").read_text()
    assert "Its base sees images. Only the text part was tuned." in card
    assert export(work, "merged", "--rows", 1) == 0
    assert re.search(blind.format("merged"), capsys.readouterr().out)
    assert (
        "Only the text part was tuned, and only that is here: this model sees no images."
        in (work.path / "merged" / "README.md").read_text()
    )
    assert torch.equal(logits(load(work.path / "merged")), logits(tuned.merge_and_unload()))
    assert export(work, "ollama") == 0
    assert re.search(blind.format("ollama"), capsys.readouterr().out)
    stand_in_for_llama_cpp(monkeypatch, [True])
    assert export(work, "gguf", "--rows", 1) == 0
    assert re.search(blind.format("gguf"), capsys.readouterr().out)
    assert export(work, "merged", "--whole", "--rows", 0) == 0
    assert "hub sees images; only its text part was tuned.\n" in capsys.readouterr().out
    assert "sees no images" not in (work.path / "merged" / "README.md").read_text()
    work.write_json("training.json", work.read_json("training.json") | {"model": "tiny-gemma3"})
    another_adapter(work, tokenizer)
    for to in ("adapter", "merged"):
        assert export(work, to, "--rows", 0) == 0
    assert "images" not in capsys.readouterr().out
    assert "images" not in (work.path / "merged" / "README.md").read_text()


# --------------------------------------------------------------------------------------------- bad input
def refused(error, match, *arguments, **options):
    """The call raises one sentence, and writes nothing."""
    with pytest.raises(error, match=match) as caught:
        merge(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert not Path(arguments[2]).exists()


def test_an_adapter_of_another_base_is_refused(base32, tmp_path):
    other = save(adapt(load(save_random_gemma(tmp_path / "other", hidden_size=64))), tmp_path / "other adapter")
    words = r"doesn't fit .*_proj.weight is \(.*\) in the adapter, \(.*\) in the base\); merge it into the base it was trained on"
    refused(WorkspaceError, words, base32, other, tmp_path / "m")
    deeper = save_random_gemma(tmp_path / "deeper", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    deep = save(adapt(load(deeper)), tmp_path / "deep adapter")
    refused(WorkspaceError, "doesn't fit .*layers.2.*absent in the base", base32, deep, tmp_path / "m")


def test_an_adapter_of_another_id_is_refused_before_any_download(base32, adapter, tmp_path, monkeypatch):
    adapter = shutil.copytree(adapter, tmp_path / "adapter")
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="google/gemma-3-1b-it")
    config = Gemma3TextConfig.from_pretrained(base32)
    monkeypatch.setattr(merging, "config_of", lambda base: config)
    monkeypatch.setattr(merging, "base_folder", lambda base: pytest.fail("downloaded"))
    words = "trained on google/gemma-3-1b-it, not on google/gemma-3-1b-pt"
    refused(WorkspaceError, words, "gemma-3-1b-pt", adapter, tmp_path / "m")


WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def drop(path, name):
    save_file({key: weight for key, weight in load_file(path).items() if name not in key}, path, {"format": "pt"})


SPOILT = {  # what is done to the adapter or the base -> the sentence that says so
    "cut adapter": ("adapter", lambda a: cut(a / ADAPTER), "not a whole LoRA adapter"),
    "no adapter": ("adapter", lambda a: (a / ADAPTER).unlink(), f"No such file.*{ADAPTER}"),
    "cut settings": ("adapter", lambda a: (a / "adapter_config.json").write_text('{"peft_type": "LO'), "not a whole LoRA adapter"),
    "no settings": ("adapter", lambda a: (a / "adapter_config.json").unlink(), "not a whole .*adapter_config.json"),
    "fewer tensors": ("adapter", lambda a: drop(a / ADAPTER, "layers.0.self_attn.q_proj.lora_A"), "q_proj.weight is only lora_B in the adapter"),
    "lacking": ("base", lambda b: drop(b / WEIGHTS, "model.norm"), "lacks 1 of its weights.*model.norm.weight"),
    "cut base": ("base", lambda b: cut(b / WEIGHTS), "not whole.*download or save"),
    "no weights": ("base", lambda b: (b / WEIGHTS).unlink(), "no weights in the safetensors format"),
    "4 bit": ("base", lambda b: rewrite(b / "config.json", quantization_config={"quant_method": "bitsandbytes"}), "stored quantized.*16-bit"),
    "gone": ("base", shutil.rmtree, "is not there, or no longer"),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_not_whole_or_quantized_or_gone_is_refused(base32, adapter, tmp_path, spoilt):
    which, spoil, words = SPOILT[spoilt]
    folders = {"base": shutil.copytree(base32, tmp_path / "base"), "adapter": shutil.copytree(adapter, tmp_path / "adapter")}
    spoil(folders[which])
    error = {"base": ModelError, "adapter": WorkspaceError}[which]
    refused(error, words, str(folders["base"]), folders["adapter"], tmp_path / "m")


@pytest.mark.parametrize(
    "shape",
    [lambda w: w[0], lambda w: w[0, 0], lambda w: w[:1], lambda w: w[:0], lambda w: w[None]],
    ids=["row", "number", "1", "0", "3d"],
)
@pytest.mark.parametrize("kind", ["lora_A", "lora_B"])
def test_matrices_that_are_none_or_do_not_fit_each_other_are_one_sentence(base32, adapter, tmp_path, shape, kind):
    odd = shutil.copytree(adapter, tmp_path / "odd")
    weights = load_file(odd / ADAPTER)
    name = next(name for name in weights if kind in name)
    save_file(weights | {name: shape(weights[name]).clone().contiguous()}, odd / ADAPTER, {"format": "pt"})
    refused(WorkspaceError, r"_proj.weight is \(.*\) in the adapter, \(.*\) in the base", base32, odd, tmp_path / "m")


def test_an_adapter_that_does_more_or_gives_no_numbers_is_refused(base32, adapter, tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["norm"])
    more = save(get_peft_model(load(base32), config), tmp_path / "more")
    refused(WorkspaceError, "changes more than linear layers.*merge_and_unload", base32, more, tmp_path / "m")
    for other in ({"alpha_pattern": {"q_proj": 1}}, {"alora_invocation_tokens": [1]}):
        rewrite(shutil.copytree(adapter, tmp_path / str(other)) / "adapter_config.json", **other)
        refused(WorkspaceError, "or DoRA.*merge_and_unload", base32, tmp_path / str(other), tmp_path / "m")
    rewrite(shutil.copytree(adapter, tmp_path / "pissa") / "adapter_config.json", init_lora_weights="pissa")
    refused(WorkspaceError, "init_lora_weights .* a plain LoRA with peft", base32, tmp_path / "pissa", tmp_path / "m")
    nan = shutil.copytree(adapter, tmp_path / "nan")
    save_file({name: weight * float("nan") for name, weight in load_file(nan / ADAPTER).items()}, nan / ADAPTER)
    with pytest.raises(WorkspaceError, match="infinite or not a number"), whole(tmp_path / "w" / "merged") as part:
        merge(base32, nan, part)
    assert not list((tmp_path / "w").iterdir())


@pytest.mark.parametrize("out", ["base", "base/merged", "adapter", "adapter/merged", ".", "link", "disk", "mine"])
def test_neither_base_nor_adapter_nor_anything_else_is_written_over(base32, adapter, tmp_path, out):
    base, adapter = shutil.copytree(base32, tmp_path / "base"), shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "link").symlink_to(base)
    for folder in ("disk", "mine"):
        (tmp_path / folder).mkdir()
    (base / WEIGHTS).rename(tmp_path / "disk" / WEIGHTS)
    (base / WEIGHTS).symlink_to(tmp_path / "disk" / WEIGHTS)
    (tmp_path / "mine" / "config.json").symlink_to(base / "config.json")  # to be written through
    before = snapshot(tmp_path)
    with pytest.raises(SettingsError, match=r"are one inside the other; name another|'config.json', which would be lost; name a"):
        merge(str(base), adapter, tmp_path / out)
    assert snapshot(tmp_path) == before
    for _ in range(2):
        merge(str(base), adapter, tmp_path / "out")


def test_too_little_memory_or_disk_is_said_before(base32, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(merging.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**20))
    refused(ModelError, r"takes [\d.]+ .iB of memory.*1.0 MiB of memory is free; close", base32, adapter, tmp_path / "m")
    monkeypatch.undo()
    monkeypatch.setattr(merging, "free_gib", lambda path: 0.001)
    refused(ModelError, "1.0 MiB is free in .*make room", base32, adapter, tmp_path / "m")


# --------------------------------------------------------------------------------------------- the comparison
def test_a_word_as_likely_as_the_models_own_is_rounding(random_gemma):
    model, tokenizer = load_model(random_gemma, torch.float32).eval(), load_tokenizer(random_gemma)
    prompt = [{"role": "user", "content": "Где мой заказ?"}]

    def ids(text):
        return tokenize_row({"messages": [*prompt, {"role": "assistant", "content": text}]}, tokenizer)["input_ids"]

    own, other = ids("Он в пути."), ids("Он ждёт.")
    at = next(i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b)
    with torch.no_grad():
        chances = model(torch.tensor([own[:at]])).logits[0, -1].log_softmax(-1)
    off = behind(model, tokenizer, prompt, "Он в пути.", "Он ждёт.")
    assert off == pytest.approx(float(chances.max() - chances[other[at]]), abs=1e-4)
    assert off > 0
    assert behind(model, tokenizer, prompt, "Он в пути.", "Он в пути.") == 0
    assert behind(model, tokenizer, prompt, "Он в пути.", "Он") > 0  # it stopped too early


# --------------------------------------------------------------------------------------------- the card
RUN = {
    "model": "google/gemma-3-1b-it",
    "load_in_4bit": True,
    "machine": "Tesla T4",
    "seed": 0,
    "rows": {"train": 411, "validation": 55, "test": 82},
    "fingerprint": "be75fc719cf385ec",
    "versions": {"torch": "2.13.0"},
    "settings": {"lora": {"r": 16, "target_modules": r".*\.(q|k)_proj"}, "train": {"learning_rate": 0.0002}},
    "training": {"steps": 156, "seconds": 63.3, "best_step": 150, "best_eval_loss": 2.9, "verdict": "learning"},
    "verdict": {"word": "better", "lines": ["More answers are right."]},
    "loss": {"test": {"base": 8.12, "tuned": 3.01}},
    "tuned_against_base": [
        {"metric": "token F1", "rows": 82, "before": 0.03, "after": 0.13, "difference": 0.1, "low": 0.07, "high": 0.11, "clear": "yes"}
    ],
    "forgetting": [
        {"metric": "general questions, ru", "rows": 60, "before": 1.0, "after": 0.07, "difference": -0.93, "low": -0.98, "high": -0.87, "clear": "yes"}
    ],
    "export": [{"form": "merged", "MiB": 1907.3, "answers equal": 0.9, "rows": 20, "loss": 2.9, "difference": 0.012}],
}  # fmt: skip


def test_the_card_tells_the_run():
    for form in ("adapter", "merged"):
        card = model_card(form, RUN)
        assert card.data.base_model == "google/gemma-3-1b-it"
        assert (card.data.license, card.data.library_name) == ("gemma", {"adapter": "peft", "merged": "transformers"}[form])
        for words in ("411 rows", "be75fc719cf385ec", "| learning\\_rate | 0.0002 |", "Tesla T4", "![", "](loss_curve.png)", "| test | 8.12 | 3.01 |",
            "token F1 | 82 | 0.03 | 0.13 | +0.10 | +0.07 to +0.11 | yes", "general questions, ru | 60 | 1.00 | 0.07", "**better.** More",
            "| merged | 1,907.3 | 90% | 20 | 2.900 | +0.012 |", "## Limits", "82 test rows", "forgot general knowledge", "ai.google.dev/gemma/terms",
            "from_pretrained"):  # fmt: skip
            assert words in str(card), words
    assert "not evaluated" not in str(card).lower()


def test_the_card_of_a_merged_model_says_what_its_figures_are_of():
    words = "The figures under Evaluation are of the adapter on the 4-bit base; this merged model was "
    assert words + "compared with it on 20 questions" in str(model_card("merged", RUN))
    assert words + "not compared with it" in str(model_card("merged", RUN | {"export": []}))
    assert words not in str(model_card("merged", RUN | {"loss": None, "tuned_against_base": None}))  # there are no figures
    assert words not in str(model_card("adapter", RUN))
    assert words not in str(model_card("merged", RUN | {"load_in_4bit": False}))


def test_the_card_of_a_run_that_nobody_evaluated_says_so_and_the_tiny_model_is_not_googles():
    text = str(model_card("adapter", {"model": "google/gemma-3-1b-it"}))
    assert "Not evaluated" in text
    assert not re.search("None|Undefined", text)
    card = model_card("merged", {"model": "tiny-gemma3"})
    assert (card.data.license, card.data.base_model) == ("apache-2.0", None)
    assert "no use for anything else" in str(card)


NASTY = [
    "<script>alert(1)</script>",
    "| a | b\n\n# heading\n\n---\nlicense: mit\n",
    "[click](javascript:x) ![x](http://e.example/x.png) www.e.example",
    "`code` *bold* _em_ ~~no~~ {{ 7*7 }} {% raw %}",
    f"token {PLANTED} in /home/ann/secret/data.jsonl and C:\\Users\\ann\\data.csv and ~/own/file",
]


@pytest.mark.parametrize("text", NASTY)
def test_every_text_is_only_text(text):
    parts = (RUN, RUN["training"], RUN["verdict"], RUN["loss"]["test"], RUN["export"][0], RUN["forgetting"][0])
    keys = {key for part in parts for key in part} | {"lora", "train"}

    def spoilt(value):
        if isinstance(value, dict):
            return {spoilt(key) if key not in keys else key: spoilt(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoilt(inner) for inner in value]
        return text if isinstance(value, str) else value

    for run in (spoilt(RUN), spoilt(RUN) | {"model": "google/gemma-3-1b-it"}):
        card = str(model_card("adapter", run))
        head, _, body = card.removeprefix("---\n").partition("\n---\n")
        assert yaml.safe_load(head)["license"] == "gemma"
        assert set(yaml.safe_load(head)) <= {"base_model", "library_name", "license", "pipeline_tag", "tags"}
        code = body.split("```")[1]
        compile(code.removeprefix("python"), "card", "exec")
        prose = body.replace(code, "")
        assert "<script" not in card
        assert not re.search(r"(?<!\\)\]\((?!loss_curve\.png)", prose)
        assert "http://e" not in prose
        assert "\n# heading" not in card
        assert not SECRET.search(card)
        assert not re.search(r"/home/|Users|secret|/own/", card)
        assert "49" not in prose.replace("0.49", "")
        for line in prose.splitlines():  # no cell breaks out of its table
            if line.startswith("|") and "general" in line:
                assert len(re.findall(r"(?<!\\)\|", line)) == 8


def test_plain_keeps_what_is_harmless():
    for text in ("general questions, ru (60 %): +0.5; learning rate 2e-4", "заказ №12345", "and/or 1/2"):
        assert plain(text) == text


@pytest.mark.plain_peft
def test_the_code_in_the_cards_runs(multimodal, tmp_path):
    """Copied out, with the true places put in."""
    code = []
    for base, sees in (("tiny-gemma3", False), (str(multimodal / "hub"), True)):
        adapter = save_adapter(adapt(load_model(base, torch.float32)), load_tokenizer(base), Workspace(tmp_path / f"{sees}"))
        merge(base, adapter, tmp_path / f"merged {sees}")
        for form, folder in (("adapter", adapter), ("merged", tmp_path / f"merged {sees}")):
            block = re.search(r"```python\n(.*?)```", str(model_card(form, {"model": base})), re.DOTALL)[1]
            block = re.sub(r"path/to/[\w.-]+", str(TINY) if base == "tiny-gemma3" else base, block)
            code.append(re.sub(r"path/or/id/of/this/\w+", str(folder), block).replace("max_new_tokens=128", "max_new_tokens=4"))
    assert "all four ran" in in_plain("\n".join([*code, "print('all four ran')"]))


# --------------------------------------------------------------------------------------------- a whole workspace
@pytest.fixture(scope="module")
def trained(tmp_path_factory, support_rows, tokenizer):
    """A workspace as notebooks 01 to 04 leave it, with an adapter on the tiny Gemma 3."""
    from gemma_colab.core.workspace import SPLIT_FILES

    workspace = Workspace(tmp_path_factory.mktemp("trained") / "work")
    for split, rows in {"train": support_rows[:20], "validation": support_rows[20:26], "test": support_rows[26:34]}.items():
        workspace.write_jsonl(f"rows/{split}.jsonl", rows)
    for settings in (ModelSettings(model="tiny-gemma3"), LoraSettings(r=4, lora_alpha=8), TrainSettings()):
        settings.save(workspace)
    save_adapter(adapt(load_model("tiny-gemma3", torch.float32)), tokenizer, workspace)
    log = [{"step": step, "epoch": step / 4, "loss": 8 - step, "learning_rate": 1e-3, "grad_norm": 1.0} for step in range(1, 5)]
    record = {"model": "tiny-gemma3", "load_in_4bit": True, "rows": workspace.fingerprint(*SPLIT_FILES), "status": "finished"}
    workspace.write_json("training.json", record | {"verdict": "learning", "seconds": 3.0, "log_history": log} | MINE)
    return workspace


MINE = {"steps": 4, "best_step": 4, "best_eval_loss": 3.25}


@pytest.fixture
def work(trained, tmp_path):
    return Workspace(shutil.copytree(trained.path, tmp_path / "work"))


def export(work, to, *options):
    """The exit status of the command."""
    return main(["export", "--workspace", str(work.path), "--to", to, *map(str, options)])


def another_adapter(work, tokenizer):
    save_adapter(adapt(load_model("tiny-gemma3", torch.float32), seed=1), tokenizer, work)


@pytest.fixture
def merges(monkeypatch):
    """The options of each merge."""
    calls = []
    monkeypatch.setattr(steps, "merge", lambda *args, **options: calls.append(options) or merge(*args, **options))
    return calls


@pytest.fixture
def ollama(monkeypatch):
    """The arguments with which an Ollama folder is written."""
    calls = []
    monkeypatch.setattr(
        steps, "write_ollama", lambda merged, out, system: calls.append((merged, system)) or out.mkdir(exist_ok=True)
    )
    return calls


def stand_in_for_llama_cpp(monkeypatch, equal=()):
    """Instead of llama.cpp, which few have: a file of 1 MiB, and answers that are equal or nonsense."""

    def write(merged, out, *, outtype):
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(bytes(2**20))
        return out

    def check(path, prompts, expected, *, max_new_tokens):
        answers = [right if same else "zzz 0 zzz" for right, same in zip(expected, equal, strict=True)]
        return pd.DataFrame({"expected": expected, "answer": answers, "equal": list(equal)})

    for name, stand_in in {
        "ready_converter": lambda: None,
        "write_gguf": write,
        "check_gguf": check,
        "can_run": lambda: True,
    }.items():
        monkeypatch.setattr(steps, name, stand_in)


def test_the_command_writes_the_merged_model_and_proves_it(work, capsys):
    assert export(work, "merged", "--rows", 4, "--json") == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "merging takes" in told.err
    assert found == exported(work)
    lines = {line["form"]: line for line in found["parity"]}
    assert list(lines) == ["adapter on the 4-bit base", "adapter on the 16-bit base", "merged"]
    assert [line["rows"] for line in found["parity"]] == [4, 4, 4]
    assert lines["adapter on the 4-bit base"]["answers equal"] == 1
    for line in lines.values():
        assert line["difference"] == pytest.approx(line["loss"] - found["parity"][0]["loss"], abs=2e-6)
    assert found["same"]
    assert abs(lines["merged"]["loss"] - lines["adapter on the 16-bit base"]["loss"]) < CLOSE
    assert lines["merged"]["MiB"] == pytest.approx(mib(work.path / "merged"), rel=0.02)
    card = (work.path / "merged" / "README.md").read_text()
    for words in ("| merged |", found["sentence"], "loss_curve.png"):
        assert words in card
    assert (work.path / "merged" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in work.path.iterdir() if path.name.startswith(".")]
    for path in (work.path / "merged").iterdir():  # no folder of this machine gets into what is given away
        if path.suffix in (".md", ".json", ".jinja"):
            assert str(work.path.parent) not in path.read_text(), path.name
            assert str(samples()) not in path.read_text(), path.name
    assert export(work, "merged", "--rows", 2) == 0
    told = capsys.readouterr().out
    assert "answers equal" in told
    assert "merged against adapter on the 16-bit base" in told


def test_a_merged_model_that_differs_is_said_with_status_1(work, monkeypatch, capsys):
    def other(folder, dtype):
        model, tokenizer = load_model("tiny-gemma3", dtype), load_tokenizer("tiny-gemma3")
        torch.nn.init.normal_(model.model.layers[0].mlp.down_proj.weight)
        return model, tokenizer

    with monkeypatch.context() as patched:
        patched.setattr(steps, "_plain", other)
        assert export(work, "merged", "--rows", 2) == 1
        assert "too much for rounding" in capsys.readouterr().out
    assert exported(work)["same"] is False
    assert export(work, "merged", "--rows", 2) == 0


def test_a_model_too_large_to_run_is_exported_and_not_compared(work, monkeypatch, capsys):
    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(steps, "mib", lambda folder: 2**30)
        assert export(work, "merged") == 0
    assert "not compared: running the merged model takes about" in capsys.readouterr().out
    load(work.path / "merged")
    stand_in_for_llama_cpp(monkeypatch)
    monkeypatch.setattr(steps, "generate_answers", full)
    for to in ("merged", "gguf"):
        assert export(work, to) == 0
        assert "not compared: the GPU's memory was full" in capsys.readouterr().out
    assert "parity" not in exported(work)
    assert exported(work)["gguf"]["file"] == "model-q8_0.gguf"
    (work.path / "rows" / "test.jsonl").unlink()
    for to in ("merged", "gguf"):
        assert export(work, to) == 0
        assert "not compared: there are no test rows" in capsys.readouterr().out


def test_the_room_for_a_comparison_is_that_of_the_weights_as_they_are_loaded(work, monkeypatch):
    export_workspace(work, "merged", rows=0)
    stored = mib(work.path / "merged") / 1024  # bfloat16
    for free, half, single in ((0.5 + 1.2 * stored, True, False), (0.5 + 2.3 * stored, True, True)):
        memory = types.SimpleNamespace(available=free * 2**30)
        monkeypatch.setattr(steps.psutil, "virtual_memory", lambda memory=memory: memory)
        for dtype, fits in ((torch.bfloat16, half), (torch.float32, single)):
            assert ("rows" in steps._if_it_fits(work, 3, dtype, lambda asked: {"rows": asked})) is fits


def test_a_gguf_file_that_talks_nonsense_is_said_with_status_1(work, monkeypatch, capsys):
    stand_in_for_llama_cpp(monkeypatch, [True, True, True, False])
    assert export(work, "gguf", "--rows", 4, "--outtype", "f16") == 1
    told = capsys.readouterr().out
    assert "looks broken: llama.cpp gives the answers of the merged model to 75% of 4 test rows" in told
    assert "with those that part at a word nearly as likely, which is rounding, it is 75%; a sound file has 80% or more" in told
    assert "export it again with outtype f16" in told
    made = exported(work)["gguf"]
    assert made | {"adapter": "", "sentence": ""} == {
        "MiB": 1.0, "adapter": "", "file": "model-f16.gguf", "answers equal": 0.75, "nearly": 0.75, "rows": 4, "same": False, "sentence": ""
    }  # fmt: skip
    stand_in_for_llama_cpp(monkeypatch, [True] * 4)
    assert export(work, "gguf", "--rows", 4) == 0
    assert "broken:" not in capsys.readouterr().out
    assert exported(work)["gguf"]["MiB"] == 1.0  # of the one file, not of both


def test_what_is_exported_next_leaves_a_whole_model_as_it_is(work, merges, ollama):
    assert export(work, "merged", "--whole", "--rows", 2) == 0
    before = exported(work)
    assert before["merged"]["text_only"] is False
    assert export(work, "ollama", "--system", "Отвечай кратко.") == 0
    assert ollama == [(work.path / "merged", "Отвечай кратко.")]
    assert {name: exported(work)[name] for name in before} == before
    export_workspace(work, "ollama", text_only=True)  # when it is asked for
    export_workspace(work, "merged", rows=0)
    assert [options["text_only"] for options in merges] == [False, True, True]


def test_merged_again_only_for_another_adapter_and_what_is_of_the_old_one_is_forgotten(
    work, merges, ollama, monkeypatch, tokenizer
):
    stand_in_for_llama_cpp(monkeypatch, [True])
    for to in ("merged", "gguf", "adapter", "ollama"):
        export_workspace(work, to, rows=1)
    assert len(merges) == 1
    assert {"merged", "parity", "sentence", "gguf", "adapter", "ollama"} <= exported(work).keys()
    assert card_facts(work)["export"]
    another_adapter(work, tokenizer)
    assert exported(work) == {}
    assert not card_facts(work)["export"]
    export_workspace(work, "adapter")
    assert set(exported(work)) == {"adapter"}
    export_workspace(work, "ollama")
    assert len(merges) == 2
    assert set(work.read_json("export.json")) == {"adapter", "merged", "ollama"}


def test_an_export_of_yesterday_is_taken_for_what_it_is(work, merges, ollama):
    """With its rows as prompt and completion, and an `export.json` that knows no sentence of a GGUF file."""
    export_workspace(work, "merged", rows=0)
    today = work.fingerprint("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    merged = {"MiB": 7.5, "adapter": today, "text_only": True}
    compared = {"parity": [{"form": "merged", "MiB": 7.5, "loss": 3.0}], "same": True, "sentence": "merged against adapter"}
    gguf = {
        "MiB": 4.0,
        "adapter": today,
        "file": "model-q8_0.gguf",
        "answers equal": 1.0,
        "nearly": 1.0,
        "rows": 20,
        "same": True,
    }
    old = {"merged": merged, "gguf": gguf, "hub": {"repo": "https://h/me/mine", "form": "adapter", "private": True}} | compared
    work.write_json("export.json", old)
    rows = work.read_jsonl("rows/test.jsonl")
    work.write_jsonl("rows/test.jsonl", [{"prompt": r["messages"][:-1], "completion": r["messages"][-1:]} for r in rows])
    export_workspace(work, "ollama")
    assert len(merges) == 1
    assert {name: made for name, made in exported(work).items() if name != "ollama"} == old
    assert export_workspace(work, "merged", rows=2)["same"]


def test_the_report_and_the_card_that_is_pushed_have_what_was_measured_since(work, monkeypatch):
    seen, reports = [], []
    monkeypatch.setattr(steps, "write_report", reports.append)
    monkeypatch.setattr(steps, "check_push", lambda repo_id, **options: (f"me/{repo_id}", True, set()))
    monkeypatch.setattr(steps, "push", lambda folder, *a, **o: seen.append((folder / "README.md").read_text()) or "address")
    export_workspace(work, "merged", rows=1)
    assert "Not evaluated" in (work.path / "merged" / "README.md").read_text()
    assert not work.has("summary.json")
    work.write_json("summary.json", {"model": "tiny-gemma3", "training": MINE, "loss": {"test": {"base": 8.25, "tuned": 3.5}}})
    for name in ("report.html", "evaluation/rows.jsonl"):
        work.write_text(name, "")
    for form in ("merged", "adapter"):
        found = export_workspace(work, "hub", repo_id="mine", form=form, private=False)
        assert "| test | 8.25 | 3.50 |" in seen[-1]
        assert found["hub"] == {"repo": "address", "form": form, "private": True}  # as the repository is
    assert work.read_json("summary.json")["export"] == found["parity"]
    assert reports == [work, work]


def test_an_evaluation_of_another_run_gets_neither_into_the_card_nor_told(work, capsys):
    summary = {
        "model": "tiny-gemma3",
        "fingerprint": card_facts(work)["fingerprint"],
        "loss": {"test": {"base": 8.0, "tuned": 3.0}},
    }
    work.write_json("summary.json", summary | {"training": MINE})
    assert card_facts(work)["loss"] == summary["loss"]
    today = work.fingerprint("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    work.write_json("summary.json", summary | {"training": MINE, "adapter": today})
    assert card_facts(work)["loss"] == summary["loss"]
    others = [
        {"training": MINE | {"best_eval_loss": 3.5}},
        {"model": "google/gemma-3-1b-it"},
        {"fingerprint": "0"},
        {"adapter": "0"},
    ]
    for changed in others:
        work.write_json("summary.json", summary | {"training": MINE} | changed)
        export_workspace(work, "adapter")
        assert "of another training run" in capsys.readouterr().out
        assert "Not evaluated" in (work.path / "adapter" / "README.md").read_text()
        assert "export" not in work.read_json("summary.json")


def test_what_somebody_put_into_the_folders_stays(work, tokenizer, monkeypatch, capsys):
    cards = [work.path / form / "README.md" for form in ("adapter", "merged")]
    export_workspace(work, "merged", rows=0)
    export_workspace(work, "adapter")
    assert "Not evaluated" in cards[0].read_text()
    work.write_json("summary.json", {"model": "tiny-gemma3", "training": MINE, "loss": {"test": {"base": 8.25, "tuned": 3.5}}})
    export_workspace(work, "adapter")
    assert "Not evaluated" not in cards[0].read_text()  # ours is written anew
    assert "stays as it is" not in capsys.readouterr().out
    for card in cards:
        card.write_text(card.read_text().replace("## License", "## What I found\n\n## License"))
    (work.path / "adapter" / "notes").mkdir()
    for note in (work.path / "adapter" / "mine.gguf", work.path / "adapter" / "notes" / "a.txt"):
        note.write_text("mine")
    before = [card.read_bytes() for card in cards]
    another_adapter(work, tokenizer)
    for to in ("adapter", "merged"):
        export_workspace(work, to, rows=0)
    assert [card.read_bytes() for card in cards] == before
    said = capsys.readouterr().out
    assert all(said.count(f"{card} is not as gemma_colab wrote it, so it stays as it is; to have it") == 1 for card in cards)
    assert (work.path / "adapter" / "mine.gguf").read_text() == (work.path / "adapter" / "notes" / "a.txt").read_text() == "mine"
    monkeypatch.setattr(steps, "check_push", lambda repo_id, **options: (f"me/{repo_id}", True, set()))
    monkeypatch.setattr(steps, "push", lambda folder, *a, **o: (folder / "README.md").read_text())
    assert "What I found" in export_workspace(work, "hub", repo_id="mine", form="merged")["hub"]["repo"]
    (work.path / "merged" / "merged-F16.gguf").write_text("mine")
    (work.path / "merged" / ".DS_Store").write_text("a Mac's")
    monkeypatch.setattr(steps, "merge", lambda *args, **options: pytest.fail("merged"))
    with pytest.raises(SettingsError, match=r"holds 'merged-F16.gguf', which would be lost; .*or move it elsewhere"):
        export_workspace(work, "merged", rows=0)
    assert (work.path / "merged" / "merged-F16.gguf").read_text() == "mine"


def pefts_card(folder):
    """As peft wrote it when it saved an adapter."""
    get_peft_model(load(TINY), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("\n", "\r\n"),
        ("[More Information Needed]", "Three evenings of work."),
        ("### Framework versions", "Results: see the table.\n\n### Framework versions"),
        ("library_name: peft", "library_name: peft\nlicense: gemma"),
        ("- lora", "- lora\n- my-shop"),
        ("# Model Card for Model ID", "# Model Card for Model ID\n\nMine."),
    ],
)
def test_only_a_card_that_nobody_filled_in_is_replaced(work, tokenizer, tmp_path, old, new):
    card = work.path / "adapter" / "README.md"
    card.write_bytes(before := pefts_card(tmp_path / "saved").replace(old, new, 1 if old != "\n" else -1).encode())
    another_adapter(work, tokenizer)
    export_workspace(work, "adapter")
    assert (card.read_bytes() == before) == bool(new.strip())


@pytest.mark.parametrize("name", ["tokenizer.model", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"])
def test_what_is_not_written_anew_stays_whatever_it_is_called(work, tokenizer, name, monkeypatch):
    export_workspace(work, "merged", rows=0)
    merge = steps.merge

    def without(base, adapter, out, **how):  # of a base that has no such file
        memory = merge(base, adapter, out, **how)
        (out / name).unlink(missing_ok=True)
        return memory

    monkeypatch.setattr(steps, "merge", without)
    for form in ("adapter", "merged"):
        (work.path / form / name).write_bytes(b"mine")
    stale = work.path / "merged" / "model-00001-of-00002.safetensors"
    stale.write_bytes(b"ours")
    another_adapter(work, tokenizer)
    export_workspace(work, "merged", rows=0)
    assert [(work.path / form / name).read_bytes() for form in ("adapter", "merged")] == [b"mine"] * 2
    assert not stale.exists()
    # of another base: with its tokenizer.model Ollama would talk nonsense
    (work.path / "merged" / "tokenizer.json").write_text("{}")
    export_workspace(work, "merged", rows=0)
    assert (work.path / "merged" / name).exists() == (name != "tokenizer.model")


def test_the_merged_model_of_an_earlier_round_is_not_replaced_by_the_next(work):
    export_workspace(work, "merged", rows=0)
    before = snapshot(work.path / "merged")
    work.write_json("training.json", work.read_json("training.json") | {"model": str(work.path / "merged")})
    with pytest.raises(SettingsError, match="are one inside the other; name another folder"):
        export_workspace(work, "merged", rows=0)
    assert snapshot(work.path / "merged") == before


@pytest.fixture
def dead():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_killed_exports_are_removed(work, dead):
    alive = work.path / "gguf" / f".model-f16.gguf.{os.getppid()}.part"
    names = (f".merged.{dead}.old", f".ollama.{dead}.part", f".ollama.{dead}.old", f"gguf/.model-q8_0.gguf.{dead}.part")
    names += (f".adapter.{dead}.part",)
    for folder in (alive, work.path / "merged", *(work.path / name for name in names)):
        folder.mkdir(parents=True)
        (folder / "model").write_text("")
    export_workspace(work, "adapter")
    assert list((work.path / "gguf").iterdir()) == [alive]
    assert [path.name for path in (work.path / "ollama").iterdir()] == ["model"]  # the last whole one, moved aside
    assert not [path for path in work.path.iterdir() if path.name.startswith(".")]


def test_nothing_half_written_stays(work, monkeypatch, dead):
    export_workspace(work, "merged", rows=0)
    before = snapshot(work.path)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "save_file", full)
    left, living = work.path / f".merged.{dead}.part", work.path / f".merged.{os.getppid()}.part"
    left.mkdir()
    living.mkdir()
    with pytest.raises(WorkspaceError, match=r"can't be written .*No space left.*make room"):
        export_workspace(work, "merged", rows=0)
    assert living.exists()  # another export is at work on it
    living.rmdir()
    assert snapshot(work.path) == before
    assert not left.exists()


def test_what_a_gguf_file_needs_is_checked_before_the_merge(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "merge", lambda *args, **options: pytest.fail("merged"))

    def said(words, *arguments):
        assert export(work, *arguments) == 4
        assert re.search(words, capsys.readouterr().err)

    with monkeypatch.context() as patched:
        patched.setattr(gguf, "find_spec", lambda name: None)
        said("pip install sentencepiece", "gguf")
    with monkeypatch.context() as patched:
        patched.setenv("LLAMA_CPP", str(tmp_path))
        said("has no convert_hf_to_gguf.py", "gguf")
    said("take other quotes", "ollama", "--system", '"""')
    with pytest.raises(SettingsError, match="is for Ollama only"):
        export_workspace(work, "gguf", system="Be brief.")


@pytest.mark.plain_peft
def test_the_adapter_comes_back_from_its_folder_in_plain_peft(work):
    before = logits(load_adapter(load(TINY), work).eval())
    found = export_workspace(work, "adapter")
    assert found["adapter"]["MiB"] == pytest.approx(mib(work.path / "adapter"), abs=0.01)
    code = """
from peft import PeftModel
from transformers import Gemma3ForCausalLM
model = PeftModel.from_pretrained(Gemma3ForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32), sys.argv[2]).eval()
torch.save(model(input_ids=torch.arange(10, 60)[None]).logits.detach(), sys.argv[3])
"""
    out = work.path.parent / "logits.pt"
    in_plain(code, TINY, work.path / "adapter", out)
    torch.testing.assert_close(torch.load(out), before)
    assert "Not evaluated" in (work.path / "adapter" / "README.md").read_text()


def test_wrong_input_of_the_command(work, workspace, capsys):
    for folder, to, options, words in (
        (workspace, "merged", [], "training.json is missing"),
        (work, "hub", [], "--repo"),
        (work, "merged", ["--rows", -1], "rows=-1 must be 0 or more"),
    ):
        assert export(folder, to, *options) == 4
        assert words in capsys.readouterr().err
    with pytest.raises(SettingsError, match="must be one of adapter, merged"):
        export_workspace(work, "onnx")
    with pytest.raises(SettingsError, match=r"outtype='q4_0' must be one of"):
        export_workspace(work, "gguf", outtype="q4_0")
    with pytest.raises(SystemExit):
        export(work, "onnx")
    (work.path / "adapter" / "adapter_model.safetensors").unlink()
    assert export(work, "merged") == 4
    assert "not a whole LoRA adapter" in capsys.readouterr().err
    assert not (work.path / "merged").exists()
