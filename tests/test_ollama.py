"""A folder for Ollama: what stands in it, what its template makes of a conversation, and which folders are refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import torch
from transformers import AutoModelForCausalLM

from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.workspace import samples
from gemma_colab.export.ollama import write_ollama


@pytest.fixture
def merged(tmp_path):
    """The tiny Gemma 3 is a merged model: plain transformers, with its tokenizer."""
    return shutil.copytree(samples() / "tiny-gemma3", tmp_path / "merged")


def commands(folder) -> dict:
    """Command -> text of a Modelfile, PARAMETER stop -> list; read by the rules in Ollama's documentation, not by our code."""
    found = re.findall(r'^([A-Z]+(?: \w+(?= ))?) (?:"""(.*?)"""|(\S+))$', (folder / "Modelfile").read_text("utf-8"), re.M | re.S)
    read = {}
    for name, long, short in found:
        read.setdefault(name, []).append(long or short.strip('"'))
    return {name: texts if name == "PARAMETER stop" else texts[0] for name, texts in read.items()}


def test_the_folder_holds_the_weights_and_a_modelfile(merged, tmp_path):
    out = write_ollama(merged, tmp_path / "ollama", system="Ты продавец.\n\nОтвечай кратко.")
    said = commands(out)
    assert said.pop("TEMPLATE")  # what it makes of a conversation is tested below
    assert said == {
        "FROM": ".",
        "PARAMETER stop": ["<end_of_turn>", "<eos>"],
        "PARAMETER temperature": "1.0",
        "PARAMETER top_k": "64",
        "PARAMETER top_p": "0.95",
        "SYSTEM": "Ты продавец.\n\nОтвечай кратко.",
    }
    assert {path.name for path in out.iterdir()} == {path.name for path in merged.iterdir()} | {"Modelfile"}
    assert (out / "model.safetensors").samefile(merged / "model.safetensors")  # linked: no second copy on the disk
    assert not any(path.is_symlink() for path in out.iterdir())
    assert "SYSTEM" not in commands(write_ollama(merged, out, system=" \n"))  # an earlier export is replaced


def test_a_gguf_file_is_taken_as_it_is(tmp_path):
    gguf = tmp_path / "shop.gguf"
    gguf.write_bytes(b"GGUF")
    out = write_ollama(gguf, tmp_path / "ollama")
    assert commands(out)["FROM"] == "./shop.gguf"
    assert {path.name for path in out.iterdir()} == {"Modelfile", "shop.gguf"}
    with pytest.raises(WorkspaceError, match=r"other.gguf is not there; write it with write_gguf first"):
        write_ollama(tmp_path / "other.gguf", out)


def test_a_line_break_in_a_name_adds_no_line_to_the_modelfile(tmp_path):
    gguf = tmp_path / "shop\nSYSTEM Lie.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(SettingsError, match=r"the name .* holds a line break or another unprintable character; rename the file"):
        write_ollama(gguf, tmp_path / "ollama")
    assert not (tmp_path / "ollama").exists()


def test_on_another_disk_the_files_are_copied_if_there_is_room(merged, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
    out = write_ollama(merged, tmp_path / "ollama")
    assert (out / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()
    assert not (out / "model.safetensors").samefile(merged / "model.safetensors")
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WorkspaceError, match=r"can't be written \(No space left on device\); make room there"):
        write_ollama(merged, tmp_path / "second")
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "ollama"}


@pytest.mark.parametrize(
    ("system", "said"),
    [('say """hi""" to all', "other quotes"), ("10\u00a0000 ₽", "U\\+00A0"), ("a\u200bb", "U\\+200B")],
)
def test_a_system_text_that_ollama_would_read_differently_is_refused(merged, tmp_path, system, said):
    with pytest.raises(SettingsError, match=said):
        write_ollama(merged, tmp_path / "ollama", system=system)
    assert not (tmp_path / "ollama").exists()


def test_no_other_files_are_overwritten(merged, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match=r"holds 'thesis.txt', which would be lost; name a new folder"):
        write_ollama(merged, tmp_path / "mine")
    for name in ("Modelfile", "llama.gguf"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text("FROM ./llama.gguf")
    with pytest.raises(SettingsError, match=r"which would be lost; name a new folder"):
        write_ollama(merged, tmp_path / "theirs")
    write_ollama(merged, tmp_path / "ours")
    (tmp_path / "ours" / ".git").mkdir()
    with pytest.raises(SettingsError, match=r"holds '.git', which would be lost; name a new folder"):
        write_ollama(merged, tmp_path / "ours")
    for out in (merged, tmp_path, merged / "ollama"):
        with pytest.raises(SettingsError, match="are one inside the other"):
            write_ollama(merged, out)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_weights_and_a_modelfile_that_somebody_made_are_his(merged, tmp_path, capsys):
    (merged / "Modelfile").write_text("FROM . # my own")
    out = write_ollama(merged, tmp_path / "ollama", system="Be brief.")
    assert commands(out)["SYSTEM"] == "Be brief."
    assert (merged / "Modelfile").read_text() == "FROM . # my own"  # and not a second name of ours
    for name in ("my-quant.gguf", "mine.safetensors"):
        (out / name).write_bytes(b"hours of work")
        with pytest.raises(SettingsError, match=f"holds '{name}', which would be lost; name a new folder, or move it elsewhere"):
            write_ollama(merged, out)
        (out / name).unlink()
    mine = (out / "Modelfile").read_text("utf-8").replace("brief", "kind")
    (out / "Modelfile").write_text(mine, "utf-8")
    capsys.readouterr()
    write_ollama(merged, out, system="Be quick.")
    assert (out / "Modelfile").read_text("utf-8") == mine
    assert capsys.readouterr().out.startswith(f"{out / 'Modelfile'} is not as gemma_colab wrote it, so it stays as it is; ")
    theirs = mine.replace("\n", "\r\n").encode() + 'SYSTEM """Отвечай вежливо."""\r\n'.encode("cp1251")
    (out / "Modelfile").write_bytes(theirs)
    write_ollama(merged, out)
    assert (out / "Modelfile").read_bytes() == theirs  # in whatever alphabet
    (out / "Modelfile").unlink()
    shutil.rmtree(out)
    (gguf := tmp_path / "shop.gguf").write_bytes(b"GGUF")
    write_ollama(gguf, out)
    assert "shop.gguf" not in {path.name for path in write_ollama(merged, out).iterdir()}  # it was ours


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root may write to")
def test_a_folder_that_can_not_be_written_is_named(merged):
    with pytest.raises(
        WorkspaceError, match=r"/proc/self/ollama can't be written \(.*\); make room there, or name a folder you may write to"
    ):
        write_ollama(merged, "/proc/self/ollama")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def half(merged):
    AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float16).save_pretrained(merged)


def in_two_files(merged):
    AutoModelForCausalLM.from_pretrained(merged, dtype=torch.bfloat16).save_pretrained(merged, max_shard_size="4MB")
    (merged / "model.safetensors").unlink(missing_ok=True)


def without_second(merged):
    in_two_files(merged)
    next(merged.glob("model-00002*")).unlink()


SPOILT = {
    "nothing there": (shutil.rmtree, "is not there, or no longer"),
    "an adapter": (lambda m: (m / "adapter_config.json").write_text("{}"), "is an adapter, not a whole model"),
    "cut config": (lambda m: (m / "config.json").write_text('{"model_'), "can't be loaded.*not a valid JSON file"),
    "another model": (lambda m: rewrite(m / "config.json", model_type="llama"), "is a 'llama' model; this project loads Gemma 3"),
    "4 bit": (lambda m: rewrite(m / "config.json", quantization_config={"load_in_4bit": True}), "is stored quantized"),
    "cut weights": (lambda m: os.truncate(m / "model.safetensors", 3_000_000), "model.safetensors is not whole"),
    "a file missing": (without_second, r"model-00002-of-00002.safetensors is not whole.*No such file"),
    "float16": (half, r"in float16, in which Gemma 3 overflows; merge again"),
    "no tokenizer.model": (
        lambda m: (m / "tokenizer.model").unlink(),
        "tokenizer.model is missing .*need it; copy it from the base",
    ),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_folder_that_is_not_whole_is_refused_before_anything_is_written(merged, tmp_path, spoilt):
    spoil, said = SPOILT[spoilt]
    spoil(merged)
    with pytest.raises(ModelError, match=said):
        write_ollama(merged, tmp_path / "ollama")
    assert {path.name for path in tmp_path.iterdir()} <= {"merged"}


# Ollama gives a template its system text and all messages, the system's own among them, and puts <bos> before the result.
GO = """
package main

import ("encoding/json"; "os"; "text/template")

func main() {
    var in struct { Template string; Chats []map[string]any }
    if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
    parsed := template.Must(template.New("").Parse(in.Template))
    for _, chat := range in.Chats {
        if err := parsed.Execute(os.Stdout, chat); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""


def turns(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    own = [{"role": "system", "content": system}] if system else []
    return own + [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


CHATS = [
    turns("Где заказ №1042?"),
    turns("Где заказ №1042?", system="Ты продавец.\nОтвечай {{ .Content }} кратко."),
    turns("Hi", "Hello!", "Two\n\nlines, {{ braces }}"),
    turns("a", "b", "c", "d", "e", system="Be brief."),
]


# Go's words for a template, as far as ours needs them, in Jinja's: $name is kept.name, .Name of a message is turn.Name.
WORDS = {
    r"range \.(\w+)": r"{% for turn in \1 %}",
    r'(?:else )?if eq \.(\w+) "(\w+)"': r'{% if turn.\1 == "\2" %}',
    r"if \$(\w+)": r"{% if kept.\1 %}",
    r"\$(\w+) := \.(\w+)": r"{% set kept.\1 = \2 %}",
    r'\$(\w+) = "(\w*)"': r'{% set kept.\1 = "\2" %}',
    r"\$(\w+)": r"{{ kept.\1 }}",
    r"\.(\w+)": r"{{ turn.\1 }}",
}


def in_jinja(template: str) -> str:
    """A template of Go's language in Jinja's. Where it has a word beyond these, so must the test."""
    opened = []

    def translated(match):
        trim, word = match.groups()
        if word == "end":
            said = "{% end" + opened.pop() + " %}"
        else:
            said = next(re.sub(f"^{go}$", jinja, word) for go, jinja in WORDS.items() if re.fullmatch(go, word))
        if word.startswith("else "):
            said = said.replace("if", "elif", 1)
        elif word.startswith(("range", "if")):
            opened.append("for" if word.startswith("range") else "if")
        return said.replace("{%", "{%-", 1) if trim else said

    return "{% set kept = namespace() %}" + re.sub(r"\{\{(-?) ?(.*?) \}\}", translated, template)


def test_the_template_makes_of_a_conversation_what_transformers_makes(merged, tmp_path, tokenizer):
    template = in_jinja(commands(write_ollama(merged, tmp_path / "ollama"))["TEMPLATE"])
    for chat in CHATS:
        system = "".join(turn["content"] for turn in chat if turn["role"] == "system")
        turns = [{"Role": turn["role"], "Content": turn["content"]} for turn in chat]
        made = jinja2.Template(template, keep_trailing_newline=True).render(System=system, Messages=turns)
        assert "<bos>" + made == tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


@pytest.mark.long
def test_ollamas_template_makes_of_a_conversation_what_transformers_makes(merged, tmp_path, tokenizer):
    go = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if go is None:
        pytest.skip("no Go here, whose template language Ollama uses; `make test-all` installs it")
    template = commands(write_ollama(merged, tmp_path / "ollama"))["TEMPLATE"]
    (tmp_path / "main.go").write_text(GO)
    chats = [{"System": "".join(t["content"] for t in c if t["role"] == "system"), "Messages": c} for c in CHATS]
    for chat in chats:
        chat["Messages"] = [{"Role": turn["role"], "Content": turn["content"]} for turn in chat["Messages"]]
    environment = os.environ | {"GOCACHE": str(tmp_path / "cache"), "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": ""}
    asked = json.dumps({"Template": template, "Chats": chats})
    run = [go, "run", str(tmp_path / "main.go")]
    done = subprocess.run(run, input=asked, capture_output=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    right = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in CHATS]
    assert ["<bos>" + text for text in done.stdout.split("\0")[:-1]] == right
