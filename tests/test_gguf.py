"""llama.cpp's own converter and llama.cpp itself: the same greedy answers as transformers in float32, and what is refused."""

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gemma_colab.cli import main
from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.settings import LoraSettings, ModelSettings
from gemma_colab.core.workspace import Workspace, samples
from gemma_colab.export import check_gguf, gguf, save_adapter, write_gguf
from gemma_colab.export.gguf import SCRIPT, fetch_converter, find_converter
from gemma_colab.handover.export import NEARLY, SOUND, behind

TOKENS = 48
MERGED = samples() / "tiny-gemma3"  # in the form that merging leaves: plain transformers, with its tokenizer


def user(text):
    return {"role": "user", "content": text}


def prompts() -> list[list[dict]]:
    """15 questions the tiny model can answer, and 5 from the shop, one in a conversation and one after a system text."""
    lines = (samples() / "general_probe.jsonl").read_text("utf-8").splitlines()
    known = [[user(json.loads(line)["question"])] for line in lines[::8]]
    lines = (samples() / "support_ru.jsonl").read_text("utf-8").splitlines()
    shop = [user(f"{row['instruction']}\n\n{row['input']}".strip()) for row in map(json.loads, lines[20:70:10])]
    before = [user("Добрый день"), {"role": "assistant", "content": "Здравствуйте! Чем помочь?"}]
    system = {"role": "system", "content": "Ты продавец.\nОтвечай кратко."}
    return [*known, [*before, shop[0]], [system, shop[1]], [shop[2]], [shop[3]], [shop[4]]]


@pytest.fixture(scope="module")
def expected():
    return answers_of(MERGED)


def answers_of(folder) -> list[str]:
    """transformers' own greedy answers in float32."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    greedy = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=[1, 106], pad_token_id=0)
    answers = []
    for prompt in prompts():
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        out = model.generate(**ids, generation_config=greedy)[0, ids["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(out, skip_special_tokens=True).strip())
    return answers


@pytest.fixture
def llama_cpp():
    """llama.cpp's converter, and a llama.cpp that Python can call."""
    if find_converter() is None or not gguf.can_run():
        pytest.skip("needs llama.cpp and its converter; `make test-all` gets both")


def equal(path, expected) -> int:
    return int(check_gguf(path, prompts(), expected, max_new_tokens=TOKENS, n_ctx=1024, n_threads=1)["equal"].sum())


@pytest.mark.long
@pytest.mark.parametrize(("outtype", "at_least"), [("f32", 20), ("f16", 20), ("bf16", 18), ("q8_0", 18)])
def test_llama_cpp_answers_as_transformers_does(llama_cpp, expected, tmp_path, outtype, at_least):
    start = time.monotonic()
    path = write_gguf(MERGED, tmp_path / f"tiny-{outtype}.gguf", outtype=outtype)
    seconds = time.monotonic() - start
    assert [child.name for child in tmp_path.iterdir()] == [path.name]
    same = equal(path, expected)
    print(f"{outtype}: {same} of {len(expected)} answers equal, {path.stat().st_size:,} bytes, {seconds:.1f} s")
    assert same >= at_least


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace with an adapter that makes the tiny Gemma 3 answer otherwise."""
    from test_export import adapt

    from gemma_colab.core.loading import load_model, load_tokenizer

    workspace = Workspace(tmp_path_factory.mktemp("trained") / "work")
    ModelSettings(model="tiny-gemma3").save(workspace)
    LoraSettings(r=4, lora_alpha=8).save(workspace)
    answer = {"role": "assistant", "content": "Да."}
    workspace.write_jsonl("rows/test.jsonl", [{"messages": [*prompt, answer]} for prompt in prompts()])
    log = [{"step": step, "epoch": 1.0, "loss": 8 - step} for step in range(1, 5)]
    workspace.write_json("training.json", {"model": "tiny-gemma3", "steps": 4, "log_history": log})
    save_adapter(adapt(load_model("tiny-gemma3", torch.float32), std=0.2), load_tokenizer("tiny-gemma3"), workspace)
    return workspace


@pytest.mark.long
def test_llama_cpp_answers_as_the_merged_model_does(llama_cpp, expected, trained, capsys):
    """Merged, converted and compared by the command; and once more here, with transformers' answers of its own."""
    command = ["export", "--workspace", str(trained.path), "--to", "gguf", "--outtype", "f16", "--rows", "20", "--json"]
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["merged"]["text_only"]
    assert (made["gguf"]["file"], made["gguf"]["rows"], made["gguf"]["same"]) == ("model-f16.gguf", 20, True)
    assert made["gguf"]["answers equal"] >= 0.9
    assert sorted(path.name for path in (trained.path / "gguf").iterdir()) == ["model-f16.gguf"]
    mine = answers_of(trained.path / "merged")
    assert sum(a != b for a, b in zip(mine, expected, strict=True)) >= 5  # they are not those of the base
    same = equal(trained.path / "gguf" / "model-f16.gguf", mine)
    print(f"f16 of a merged model: {same} of {len(mine)} answers equal")
    assert same >= 18


@pytest.mark.long
def test_the_check_notices_a_model_that_talks_nonsense(llama_cpp, expected, tmp_path, monkeypatch):
    """Both things that llama.cpp's converter doesn't find out by itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MERGED, dtype=torch.float32), AutoTokenizer.from_pretrained(MERGED)

    def found(name) -> tuple[int, float]:
        """Answers equal, and the share that is equal or parts at a word nearly as likely."""
        table = check_gguf(
            write_gguf(MERGED, tmp_path / name, outtype="f32"), prompts(), expected, max_new_tokens=TOKENS, n_threads=1
        )
        off = [behind(model, tokenizer, *row) for row in zip(prompts(), table["expected"], table["answer"], strict=True)]
        print(f"{name}: {table['equal'].sum()} equal; off by {', '.join(f'{nats:.2f}' for nats in sorted(off) if nats)}")
        return table["equal"].sum(), sum(nats <= NEARLY for nats in off) / len(off)

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "RUN", gguf.RUN.replace("if sliding:", "if False:"))
        equal, _ = found("layers.gguf")
    assert 12 <= equal < 20  # the short questions hardly need a layer that sees far
    monkeypatch.setattr(gguf, "with_added_tokens", lambda merged: (merged / "tokenizer_config.json").read_text())
    equal, near = found("tokens.gguf")
    assert equal < 12
    assert near < SOUND


# --------------------------------------------------------------------------------------------- where the converter is
@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without llama.cpp."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


HALF = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write('half a model'); "


def put(folder, text="") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / SCRIPT
    script.write_text(text)
    script.chmod(0o755)
    return script


def test_only_a_converter_that_was_named_or_fetched_here_is_run(bare, monkeypatch):
    for folder in ("home/llama.cpp", "here/llama.cpp", "bin", "here"):  # what merely lies there
        put(bare / folder)
        assert find_converter() is None
    fetched = put(gguf.CACHE.expanduser())
    assert find_converter() == fetched
    named = put(bare / "named")
    monkeypatch.setenv("LLAMA_CPP", str(bare / "named"))
    assert find_converter() == named
    monkeypatch.setenv("LLAMA_CPP", str(bare))
    with pytest.raises(WorkspaceError, match=r"LLAMA_CPP='.*' has no convert_hf_to_gguf.py; name llama.cpp's sources"):
        find_converter()


def test_a_folder_of_something_else_is_no_place_for_a_converter(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(WorkspaceError, match=r"holds 'thesis.txt', which would be lost; name a new folder"):
        gguf.fetch_converter(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("planted", ["json.py", "numpy.py", "pip.py"])
def test_nothing_in_the_current_folder_is_run(bare, monkeypatch, planted):
    (bare / "here" / planted).write_text(f"open({str(bare / 'ran')!r}, 'w')")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if planted != "pip.py":
        put(gguf.CACHE.expanduser(), HALF + "import numpy")
        write_gguf(MERGED, bare / "tiny.gguf")
    else:
        with pytest.raises(WorkspaceError, match="No matching distribution"):
            gguf.fetch_converter()
    assert not (bare / "ran").exists()


def test_without_a_network_the_converter_can_not_be_fetched(bare, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        WorkspaceError, match=r"pip can't download llama-cpp-python==.*No matching distribution.*; check the network"
    ):
        write_gguf(MERGED, bare / "tiny.gguf")
    assert not (bare / "tiny.gguf").exists()
    assert list(bare.rglob("*.part")) == list(gguf.CACHE.expanduser().parent.iterdir()) == []


def test_pip_is_told_to_require_the_checksum(bare, monkeypatch):
    """It does so unasked where one is named, and should go on where somebody's pip doesn't."""
    monkeypatch.setattr(gguf, "run", lambda command, *args: commands.append(command) or "seen")
    commands = []
    with pytest.raises(WorkspaceError, match="seen"):
        fetch_converter(bare / "into")
    assert {"--require-hashes", "--no-deps", "--no-build-isolation"} <= set(commands[0])


# --------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        (
            HALF + "sys.exit('Unknown layout')",
            ModelError,
            r"can't convert .*tiny-gemma3 \(Unknown layout\); make room on a full disk; if it is your own llama.cpp",
        ),
        (
            HALF + "raise OSError(28, 'No space left on device')",
            ModelError,
            r"No space left on device\); make room on a full disk",
        ),
        ("", ModelError, r"can't convert .* \(\); make room"),
    ],
)
def test_a_converter_that_fails_leaves_nothing_behind_and_an_older_file_alone(bare, script, error, said):
    put(gguf.CACHE.expanduser(), script)
    (bare / "out").mkdir()
    (bare / "out" / "tiny.gguf").write_text("older")
    with pytest.raises(error, match=said):
        write_gguf(MERGED, bare / "out" / "tiny.gguf")
    assert [path.name for path in (bare / "out").iterdir()] == ["tiny.gguf"]
    assert (bare / "out" / "tiny.gguf").read_text() == "older"


def test_an_interrupted_converter_is_stopped_and_leaves_nothing_behind(bare):
    put(
        gguf.CACHE.expanduser(),
        f"import os, pathlib, time; pathlib.Path({str(bare / 'pid')!r}).write_text(str(os.getpid())); time.sleep(99)",
    )

    def interrupt():
        while not ((bare / "pid").exists() and (bare / "pid").read_text()):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        write_gguf(MERGED, bare / "out" / "tiny.gguf")
    assert list((bare / "out").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((bare / "pid").read_text()), 0)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source package that pip finds here instead of llama-cpp-python's. Its own code would leave a file."""
    root, ran = tmp_path / "llama_cpp_python-0.3.36", tmp_path / "ran"
    vendor = root / "vendor" / "llama.cpp"
    (vendor / "conversion").mkdir(parents=True)
    (vendor / SCRIPT).write_text("print('a converter')")
    (vendor / "conversion" / "gemma.py").write_text("")
    (vendor / "other.py").write_text("")
    (root / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n")
    (root / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "scikit_build_core.build"\n')
    (root / "scikit_build_core").mkdir()
    (root / "scikit_build_core" / "build.py").write_text(f"open({str(ran)!r}, 'w')")
    (tmp_path / "found").mkdir()
    archive = shutil.make_archive(str(tmp_path / "found" / root.name), "gztar", tmp_path, root.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "found"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(gguf, "SHA256", hashlib.sha256(Path(archive).read_bytes()).hexdigest())
    return ran


def test_the_converter_comes_alone_and_nothing_of_its_package_runs(source, tmp_path):
    script = fetch_converter(tmp_path / "into")
    assert script.read_text() == "print('a converter')"
    assert sorted(path.name for path in (tmp_path / "into").rglob("*")) == ["conversion", SCRIPT, "gemma.py"]
    assert not source.exists()


def test_a_source_package_with_another_checksum_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "SHA256", "0" * 64)
    with pytest.raises(WorkspaceError, match=r"pip can't download llama-cpp-python==0.3.36 .*fetch llama.cpp's sources yourself"):
        fetch_converter(tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_wrong_settings_a_full_disk_and_a_missing_library_are_named_at_once(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=r"outtype='q4_0' must be one of f32, bf16, f16, q8_0"):
        write_gguf(MERGED, tmp_path / "tiny.gguf", outtype="q4_0")
    with pytest.raises(SettingsError, match=r"must be a file that ends in .gguf, such as .*tiny.gguf"):
        write_gguf(MERGED, tmp_path / "tiny.bin")
    merged = shutil.copytree(MERGED, tmp_path / "merged")
    (merged / "tokenizer.model").unlink()
    with pytest.raises(ModelError, match=r"tokenizer.model is missing in .*;? .*copy it from the base model"):
        write_gguf(merged, tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(WorkspaceError, match="needs sentencepiece, which isn't installed: pip install sentencepiece"):
        write_gguf(MERGED, tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "free_gib", lambda _: 0.01)
    with pytest.raises(WorkspaceError, match=r"tiny.gguf takes 22.0 MiB and 10.2 MiB is free in .*; make room there"):
        write_gguf(MERGED, tmp_path / "tiny.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root may write to")
def test_a_folder_that_can_not_be_written_is_named(bare, monkeypatch):
    put(gguf.CACHE.expanduser())
    monkeypatch.setattr(gguf, "free_gib", lambda _: 100.0)
    with pytest.raises(WorkspaceError, match=r"/proc/self/tiny.gguf can't be written \(.*\); name a folder you may write to"):
        write_gguf(MERGED, "/proc/self/tiny.gguf")


def test_a_check_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "RUNTIME", "no_such_llama")
    with pytest.raises(WorkspaceError, match=r"no_such_llama isn't installed; pip install"):
        check_gguf(tmp_path / "tiny.gguf", [], [])


@pytest.mark.skipif(not gguf.can_run(), reason="needs a llama.cpp; `make test-all` gets it")
def test_a_check_refuses_what_is_no_whole_gguf_file(tmp_path):
    for content in (None, b"text", b"GGUF\3\0\0\0"):
        if content:
            (tmp_path / "tiny.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"llama.cpp can't load .*tiny.gguf \(.*\); write it again, with write_gguf"):
            check_gguf(tmp_path / "tiny.gguf", [], [])
