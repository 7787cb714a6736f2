"""What comes from somebody else's file, or may be a secret, on its way to a terminal; and files of ours that were spoilt."""

import ast
import json
import re
import shutil
import string
from contextlib import suppress

import pytest
import torch
from conftest import ROOT

from gemma_colab.cli import main
from gemma_colab.core.catalog import dimensions_of, from_hub
from gemma_colab.core.errors import CONTROL, GemmaColabError, SettingsError, WorkspaceError, plain, say
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import SPLITS
from gemma_colab.data.reading import read_rows
from gemma_colab.data.review import Review
from gemma_colab.data.splitting import SplitSettings
from gemma_colab.evaluation.generation import _read
from gemma_colab.export.checkpoint import with_added_tokens
from gemma_colab.export.hub import check_push
from gemma_colab.export.record import exported
from gemma_colab.handover.adapter import ensure_adapter
from gemma_colab.handover.assess import run_facts
from gemma_colab.handover.rows import ensure_rows, save_rows
from gemma_colab.handover.settings import settings_for
from gemma_colab.model.choice import pick_model
from gemma_colab.model.lent import describe_machine
from gemma_colab.training.checkpoints import checkpoint_to_resume, whole_checkpoints
from gemma_colab.training.replay import general_rows

EVIL = "\x1b]0;owned\x07\x9b31m\u202e"  # a window's title, a color, letters from right to left
SECRETS = {  # as somebody may put it in a wrong place -> what must not be shown
    "hf_" + "aB3" * 11: "aB3aB3",
    "me/hf_" + "aB3" * 11: "aB3aB3",
    "sk-proj-" + "x9_" * 10: "x9_x9_",
    "https://me:pass-word1@example.org/v1": "pass-word1",
    "https://pass-word1@example.org/rows.csv": "pass-word1",
    "https://example.org/rows.csv?X-Amz-Signature=abcdef0123": "abcdef0123",
    "ghp_" + "Zz7" * 12: "Zz7Zz7",
    "Bearer abcdefghijkl": "abcdefghijkl",
}


# --------------------------------------------------------------------------------------------- secrets
def places(secret):
    """What a beginner may call with a key where a name, a file or a number is wanted."""
    yield lambda: dimensions_of(secret)
    yield lambda: read_rows(secret)
    yield lambda: from_hub(None, secret, secret)
    yield lambda: pick_model(secret if "/" not in secret else f"./{secret}", None)
    yield lambda: TrainSettings(optim=secret)
    yield lambda: TrainSettings(learning_rate=secret)
    yield lambda: LoraSettings(target_modules=secret)


@pytest.mark.parametrize("secret", SECRETS)
def test_no_message_repeats_what_may_be_a_secret(secret):
    for call in places(secret):
        with pytest.raises(GemmaColabError) as said:
            call()
        assert SECRETS[secret] not in str(said.value)


@pytest.mark.parametrize("name", ["hf_" + "aB3" * 11, "me/hf_" + "aB3" * 11])
def test_a_token_in_place_of_a_name_is_not_sent_either(name, monkeypatch):
    monkeypatch.setattr("gemma_colab.export.hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **how: pytest.fail("the Hub was asked"))
    for call in (check_push, read_rows, lambda name: from_hub(None, name, name)):
        with pytest.raises(SettingsError, match="looks like a key or a password, so it was neither shown nor sent; give a name"):
            call(name)


@pytest.mark.parametrize("secret", SECRETS)
def test_the_command_line_repeats_none_either(secret, tmp_path, capsys):
    commands = [
        ["check", secret],
        ["plan", secret],
        ["train", "--workspace", str(tmp_path), "--set", secret],
        ["check", secret, secret],
    ]
    commands += [["export", "--workspace", secret, "--to", "hub"], ["nothing", "--key", secret]]
    for command in commands:
        with suppress(SystemExit):
            assert main(command) != 0
        told = capsys.readouterr()
        assert SECRETS[secret] not in told.out + told.err
        assert told.err


def test_what_is_no_secret_stays():
    for text in ("google/gemma-3-1b-it", "sk-learn", "hf_hub_download_of_a_file_with_a_long_name", "r=0 must be a whole number",
                 "https://huggingface.co/settings/tokens", "it's 8:30 @ the office"):  # fmt: skip
        assert plain(text) == text


# --------------------------------------------------------------------------------------------- control characters
def test_control_characters_are_written_out_and_nothing_else():
    assert plain(EVIL) == r"\u001b]0;owned\u0007\u009b31m\u202e"
    kept = string.printable[:95] + "\n\t Привет, «мир» — 👩‍👧 ½ \xa0 ﷺ"
    assert plain(kept) == kept
    bidi = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    assert all(CONTROL.fullmatch(c) for c in [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), *bidi])


def test_a_result_in_json_can_be_read_back(capsys):
    say(json.dumps({EVIL: [EVIL]}, ensure_ascii=False, indent=1))
    assert json.loads(capsys.readouterr().out) == {EVIL: [EVIL]}


def test_all_that_is_printed_goes_through_one_printer():
    """Its own line that moves is the one exception: it has to tell the terminal to go back to its start."""
    for path in (ROOT / "gemma_colab").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
        printed = sum(name in ("print", "sys.stdout.write", "sys.stderr.write") for name in names)
        assert printed == (path.name in ("errors.py", "watch.py")), path


@pytest.mark.parametrize(
    ("file", "holds"),
    [
        ("model_settings.json", {"model": EVIL}),
        ("model_settings.json", {"model": "tiny-gemma3", EVIL: 1}),
        ("train_settings.json", {"optim": EVIL}),
        ("lora_settings.json", {"target_modules": EVIL}),
        ("training.json", {"model": EVIL, "log_history": [], "rows": "x"}),
    ],
)
def test_nothing_foreign_steers_a_terminal(tuned_rows, file, holds, capsys):
    tuned_rows.write_json(file, holds)
    for command in ("train", "evaluate", "export --to adapter"):
        main([*command.split(), "--workspace", str(tuned_rows.path), "--set", "nothing=1"][: None if command == "train" else -2])
    told = capsys.readouterr()
    assert "owned" in told.out + told.err
    assert not CONTROL.search(told.out + told.err)


@pytest.fixture
def tuned_rows(workspace, support_rows):
    """A workspace with rows, and with what `evaluate` looks for first."""
    save_rows(dict.fromkeys(SPLITS, support_rows[:20]), workspace)
    workspace.write_json("training.json", {"model": "tiny-gemma3", "log_history": [], "rows": "x"})
    (workspace.path / "adapter").mkdir()
    return workspace


# --------------------------------------------------------------------------------------------- files of ours that were spoilt
SPOILT = [
    "",
    "not JSON",
    "[]",
    "null",
    "3",
    '"text"',
    "{}",
    '{"version": "x"}',
    '{"a": null}',
    "[" * 100_000,
    '{"a": {"action": 1}}',
    '["a"]',
]


def readers(ws):
    """File -> what reads it."""
    chosen = ModelSettings()
    return {
        "workspace.json": lambda: ws.version,
        "model_settings.json": lambda: ModelSettings.load(ws),
        "lora_settings.json": lambda: LoraSettings.load(ws),
        "train_settings.json": lambda: TrainSettings.load(ws),
        "split_settings.json": lambda: SplitSettings.load(ws),
        "review.json": lambda: Review(ws),
        "training.json": lambda: (ensure_adapter(ws, chosen), run_facts(ws)),
        "export.json": lambda: exported(ws),
        "settings_for.json": lambda: settings_for(ws, chosen, describe_machine()),
        "rows/train.jsonl": lambda: ensure_rows(ws),
        "rows/replay.jsonl": lambda: general_rows(ws),
    }


@pytest.mark.parametrize("file", readers(None))
def test_a_spoilt_file_is_one_sentence_that_names_it(tuned_rows, file):
    path, read = tuned_rows.path / file, readers(tuned_rows)[file]
    for text in SPOILT:
        path.write_text(text)
        said = f"{file};"
        try:  # some of them mean what an empty file of ours means
            read()
        except GemmaColabError as e:
            said = str(e)
        assert "\n" not in said
        assert ";" in said
        assert file in said or "the adapter in" in said


@pytest.mark.parametrize(
    ("file", "holds", "words"),
    [
        ("training.json", {"model": 5, "log_history": []}, "model='5'"),
        ("training.json", {"log_history": []}, "model='None'"),
        ("model_settings.json", {"model": 5}, "model=5 must be a text"),
        ("export.json", {"merged": "yes"}, "merged='yes'"),
        ("settings_for.json", {"correction": 3}, "correction='3'"),
        ("review.json", {"a": {"action": "burn", "why": "", "checks": []}}, "action='burn'"),
        ("review.json", {"a": {"action": "keep", "why": ""}}, "it lacks 'checks'"),
        ("review.json", {"a": {"action": "edit", "why": "", "checks": [], "new": {"answer": None}}}, "review.json is not what"),
        ("rows/replay.jsonl", {"messages": [{"role": "user", "content": None}]}, "replay.jsonl is not what"),
        ("rows/replay.jsonl", {"text": "a"}, "it lacks 'instruction'"),
        *(
            ("rows/replay.jsonl", {"messages": [{"role": role, "content": "a"} for role in roles.split()]}, "must take turns")
            for roles in (
                "",
                "assistant",
                "user",
                "user assistant user",
                "user user assistant",
                "user system assistant",
                "user tool",
            )
        ),
    ],
)
def test_what_is_wrong_in_it_is_said(tuned_rows, file, holds, words):
    (tuned_rows.path / file).write_text(json.dumps(holds))
    with pytest.raises((WorkspaceError, SettingsError), match=re.escape(words)):
        readers(tuned_rows)[file]()


@pytest.mark.parametrize("text", [*SPOILT, *(json.dumps({"step": 1, "seconds": 1, "made_with": {}, "files": {"a": 0}} | change) for change in (
    {"files": []}, {"files": {}}, {"files": None}, {"files": {"a\0b": 1}}, {"step": "x"}, {"step": None}, {"made_with": 3}, {"seconds": []}))])  # fmt: skip
def test_a_mark_that_was_spoilt_makes_no_checkpoint(tmp_path, text):
    """As one that was cut off in the middle."""
    good, bad = tmp_path / "checkpoint-2", tmp_path / "checkpoint-9"
    for folder in (good, bad):
        folder.mkdir()
        (folder / "a").touch()
        (folder / "whole.json").write_text(json.dumps({"step": 2, "seconds": 1, "made_with": {}, "files": {"a": 0}}))
    (bad / "whole.json").write_text(text)
    assert [one.path.name for one in whole_checkpoints(tmp_path)] == ["checkpoint-2"]
    shutil.rmtree(good)
    with pytest.raises(WorkspaceError, match="holds no whole checkpoint to resume from; start anew"):
        checkpoint_to_resume(tmp_path, {})


def test_another_adapter_inside_a_checkpoint_is_not_resumed_with(tmp_path):
    """The trainer would load and save it beside ours, unseen."""
    (tmp_path / "checkpoint-2" / "extra").mkdir(parents=True)
    (tmp_path / "checkpoint-2" / "a").touch()
    mark = {"step": 2, "seconds": 1, "made_with": {}, "files": {"a": 0}}
    (tmp_path / "checkpoint-2" / "whole.json").write_text(json.dumps(mark))
    assert checkpoint_to_resume(tmp_path, {}).step == 2
    (tmp_path / "checkpoint-2" / "extra" / "adapter_config.json").touch()
    with pytest.raises(WorkspaceError, match="checkpoint-2 holds folders with other adapters, which no run here writes"):
        checkpoint_to_resume(tmp_path, {})


def test_what_a_mark_says_was_otherwise_is_said_without_steering(tmp_path):
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "a").touch()
    mark = {"step": 2, "seconds": 1, "made_with": {"model": EVIL}, "files": {"a": 0}}
    (folder / "whole.json").write_text(json.dumps(mark))
    with pytest.raises(WorkspaceError, match=r"model: \\u001b\]0;owned") as said:
        checkpoint_to_resume(tmp_path, {"model": "tiny-gemma3"})
    assert not CONTROL.search(str(said.value))


def test_answers_that_were_spoilt_are_asked_again(tmp_path):
    good = {"key": "k", "answer": "да", "tokens": 1, "finished": True}
    lines = ["[]", "null", "{}", '"x"', json.dumps(good | {"answer": None}), json.dumps({"key": "b", "answer": "да"})]
    (path := tmp_path / "answers.jsonl").write_text("\n".join([*lines, json.dumps(good)]))
    assert _read(path) == {"k": {"answer": "да", "tokens": 1, "finished": True}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"added_tokens": [3]}', '{"added_tokens": null}'])
def test_a_tokenizer_that_was_spoilt_is_named(tmp_path, text):
    for name in ("tokenizer", "tokenizer_config"):
        (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(GemmaColabError, match=r"can't be read .*; copy them from the base model"):
        with_added_tokens(tmp_path)


def test_names_of_tensors_are_foreign_too(tmp_path, random_gemma):
    from peft import get_peft_model
    from safetensors.torch import save_file

    from gemma_colab.core.chat import load_tokenizer
    from gemma_colab.core.loading import load_model
    from gemma_colab.core.trainer import lora_config
    from gemma_colab.core.workspace import Workspace
    from gemma_colab.export import merge, save_adapter

    workspace = Workspace(tmp_path / "ws")
    model = get_peft_model(load_model(random_gemma, torch.float32), lora_config(LoraSettings(r=2)))
    folder = save_adapter(model, load_tokenizer(random_gemma), workspace)
    save_file({f"{EVIL}.lora_A": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(WorkspaceError, match="owned") as said:
        merge(random_gemma, folder, tmp_path / "out")
    assert not CONTROL.search(str(said.value))
