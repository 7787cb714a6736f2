"""Pushing to the Hub: everything that can go wrong, and what must never leave this machine. The libraries speak to a small Hub here.

The Hub's address is read when huggingface_hub is imported: so one process of its own (`push_them_all`) does it, and the tests read
what it was told and what lies there afterwards.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from fake_hub import EXPIRED, NARROW, READER, WRITER, FakeHub, Repo, put_colab

WEIGHTS = "model.safetensors"


# --------------------------------------------------------------------------------------------- in a process of its own
def push_them_all(adapter: Path, merged: Path, home: Path) -> dict:
    """Case -> the address or the error's message, the repositories that came into being, and how many large files were sent."""
    with FakeHub() as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hub"), "HF_HUB_DISABLE_XET": "1"}
        from huggingface_hub.utils import close_session

        from gemma_colab.cli import main
        from gemma_colab.core.errors import GemmaColabError
        from gemma_colab.export.hub import check_push, push

        time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
        told = {}

        def attempt(case, folder, name, token=WRITER, call=push, **options):
            os.environ["HF_TOKEN"] = token
            first, before, message, url = len(hub.log), set(hub.repos), "", ""
            try:
                url = call(folder, name, **options) if call is push else call(name, **options)[0]
            except GemmaColabError as e:
                message = str(e)
            sent = sum(request["method"] == "PUT" for request in hub.log[first:])
            told[case] = {"url": url, "message": message, "made": sorted(set(hub.repos) - before), "sent": sent}

        def files(name):
            folder = hub.repos[name].folder
            return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

        attempt("no token", adapter, "me", token="")
        attempt("expired", adapter, "me", EXPIRED)
        attempt("another alphabet", adapter, "me", WRITER + "с")
        attempt("may read only", adapter, "me", READER)
        attempt("narrow", adapter, "me", NARROW)
        for name in ("a/b/c", "тест", "a b", "-x", "x" * 97, ""):
            attempt(f"name {name}", adapter, name)
        attempt("somebody else's", adapter, "google/mine")
        attempt("checked", adapter, "first", call=check_push)
        told["made by asking"] = sorted(hub.repos)
        attempt("adapter", adapter, "first")
        told["adapter"]["private"] = hub.repos["learner/first"].private
        told["adapter files"] = sorted(files("learner/first"))
        told["adapter config"] = json.loads(files("learner/first")["adapter_config.json"].read_text())
        told["adapter weights"] = (
            files("learner/first")["adapter_model.safetensors"].read_bytes()
            == (adapter / "adapter_model.safetensors").read_bytes()
        )
        shutil.copytree(hub.repos["learner/first"].folder, home / "adapter on the Hub")
        attempt("again", adapter, "first")
        attempt("again, checked", adapter, "learner/first", call=check_push)
        attempt("merged over it", merged, "first", exist_ok=True)
        told["merged files"] = sorted(files("learner/first"))
        shutil.copytree(hub.repos["learner/first"].folder, home / "merged on the Hub")
        told["messages"] = list(hub.repos["learner/first"].messages)
        attempt("organization, public", merged, "shop/model", private=False, message="for all")
        told["organization, public"]["private"] = hub.repos["shop/model"].private
        attempt("private into public", adapter, "shop/model", exist_ok=True)
        hub.repos["learner/locked"] = Repo(hub.repos["shop/model"].folder, private=True, read_only=True)
        attempt("locked", adapter, "locked", exist_ok=True)
        for status in (429, 503, 409):
            attempt("for status", adapter, f"busy{status}")
            hub.repos[f"learner/busy{status}"].status = status
            attempt(f"status {status}", merged, f"busy{status}", exist_ok=True)
        empty = home / "empty"
        empty.mkdir()
        (empty / ".gitattributes").write_text("")
        hub.repos["learner/lost"] = Repo(empty, private=True, lost=True)
        hub.uploads.clear()  # the storage knew the files already
        attempt("lost", merged, "lost")
        told["after the loss"] = sorted(files("learner/lost"))
        hub.repos["learner/lost"].lost = False
        attempt("lost, again", merged, "lost")
        told["after the second try"] = sorted(files("learner/lost"))
        told["lost, again"]["equal"] = (empty / WEIGHTS).read_bytes() == (merged / WEIGHTS).read_bytes()

        half = shutil.copytree(merged, home / "half")
        (half / WEIGHTS).unlink()
        attempt("half", half, "half")
        careless = shutil.copytree(adapter, home / "careless")
        (careless / "README.md").write_text(f"made with {READER}")
        attempt("careless", careless, "careless")
        hidden = shutil.copytree(adapter, home / "hidden")
        (hidden / "notes.yaml").write_text(f"token: {READER}")
        attempt("careless elsewhere", hidden, "careless")
        linked = shutil.copytree(adapter, home / "linked")
        (linked / "rows.jsonl").symlink_to(adapter.parent / "training.json")
        attempt("a link", linked, "linked")
        (linked / "rows.jsonl").unlink()
        (linked / "README.md").unlink()
        attempt("no card", linked, "linked")
        told["readme"] = (hub.repos["learner/first"].folder / "README.md").read_text()
        attempt("public, but is private", merged, "first", private=False, exist_ok=True)
        told["public, but is private"]["private"] = hub.repos["learner/first"].private
        os.environ["HF_TOKEN"] = WRITER
        command = ["export", "--workspace", str(adapter.parent), "--to", "hub", "--form", "merged", "--repo"]
        told["command, made public"] = main([*command, "seen", "--public"]), hub.repos["learner/seen"].private
        told["command"] = [main([*command, "cli"]), main([*command, "cli"]), main([*command, "cli", "--exist-ok"])]
        told["command, public"] = main([*command, "cli", "--exist-ok", "--public"])
        told["command made"] = hub.repos["learner/cli"].private and sorted(files("learner/cli"))
        told["in Colab"] = {"message": "", "url": "", "made": [], "sent": 0}
        with pytest.MonkeyPatch.context() as patched:
            os.environ.pop("HF_TOKEN")
            put_colab(patched, WRITER)
            told["in Colab"]["url"] = push(adapter, "from-colab")
        close_session()

        def unknown(*args, **kwargs):
            raise socket.gaierror(-2, "Name or service not known")

        with mock.patch("socket.getaddrinfo", unknown):
            attempt("no network", adapter, "net")
        close_session()
        with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            attempt("offline", adapter, "net")
        told["token in the log of requests"] = all(
            request["token"] in ("", WRITER, READER, EXPIRED, NARROW) for request in hub.log
        )
        told["to the storage without a token"] = all(
            request["token"] == "" for request in hub.log if request["path"].startswith("/storage")
        )
        return told


if __name__ == "__main__":
    print(json.dumps(push_them_all(*map(Path, sys.argv[1:]))))
    sys.exit()


# --------------------------------------------------------------------------------------------- what it was told
@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workspace with adapter and merged model, exported by the package."""
    import torch
    from test_export import adapt
    from transformers import AutoTokenizer

    from gemma_colab.core.loading import load_model
    from gemma_colab.core.workspace import Workspace, samples
    from gemma_colab.export import export_workspace, save_adapter

    workspace = Workspace(tmp_path_factory.mktemp("place") / "work")
    log = [{"step": step, "epoch": 1.0, "loss": 8 - step} for step in range(1, 5)]
    workspace.write_json("training.json", {"model": "tiny-gemma3", "steps": 4, "log_history": log})
    save_adapter(
        adapt(load_model("tiny-gemma3", torch.float32)), AutoTokenizer.from_pretrained(samples() / "tiny-gemma3"), workspace
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_TOKEN", WRITER)
        export_workspace(workspace, "adapter")
        export_workspace(workspace, "merged", rows=0)
    (workspace.path / "adapter" / ".DS_Store").write_text("not for the Hub")
    return workspace.path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def output(place, home):
    run = subprocess.run(
        [sys.executable, __file__, place / "adapter", place / "merged", home],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug", "HF_DEBUG": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def told(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"no token"')))


WRITE = "make a token of the type 'write' at https://huggingface.co/settings/tokens, and store it"
REFUSED = {  # case -> words of its sentence: what is wrong, and what to do
    "no token": ("there is no token here", WRITE),
    "expired": ("refused your token, from HF_TOKEN in the environment", WRITE),
    "another alphabet": ("refused your token", WRITE),
    "may read only": ("your token, from HF_TOKEN in the environment, may only read", WRITE),
    "narrow": ("has no right to write to learner/me", WRITE, "fine-grained"),
    "name a/b/c": ("can't be pushed: HFValidationError",),
    "name тест": ("can't be pushed: HFValidationError",),
    "name a b": ("can't be pushed: HFValidationError",),
    "name -x": ("can't be pushed: HFValidationError",),
    f"name {'x' * 97}": ("can't be pushed: HFValidationError",),
    "name ": ("can't be pushed: HFValidationError",),
    "somebody else's": ("has no right to write to google/mine", "take a name under your own account"),
    "again": ("learner/first exists already, with", "another name", "exist_ok=True (--exist-ok)"),
    "again, checked": ("learner/first exists already, with", "another name"),
    "private into public": ("shop/model is public", "private=False (--public)"),
    "locked": ("has no right to write to learner/locked", WRITE),
    "status 429": ("the Hugging Face Hub has a problem", "429", "run this again in five minutes"),
    "status 503": ("the Hugging Face Hub has a problem", "503", "run this again in five minutes"),
    "status 409": ("nothing of it is visible there", "409", "run this again in five minutes"),
    "half": ("half has no weights in the safetensors format", "save it so"),
    "careless elsewhere": ("notes.yaml holds what looks like a token", "take it out"),
    "a link": ("rows.jsonl is a link to", "training.json, outside the folder", "copy that file here, or delete the link"),
    "no card": ("linked has no README.md, the card", "gemma-colab export --workspace /", "--to adapter writes it"),
    "careless": ("README.md holds what looks like a token", "take it out"),
    "no network": ("or the connection to it broke off", "check the network"),
    "offline": ("offline mode is enabled", "unset the `HF_HUB_OFFLINE`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_refusal_is_one_sentence_before_any_upload(told, case):
    for words in REFUSED[case]:
        assert words in told[case]["message"]
    assert "\n" not in told[case]["message"]
    assert (told[case]["url"], told[case]["made"], told[case]["sent"]) == ("", [], 0)


def test_the_adapter_is_there_private_and_whole_and_asking_first_changes_nothing(told):
    assert (told["checked"]["url"], told["made by asking"]) == ("learner/first", [])
    assert re.fullmatch(r"http://127.0.0.1:\d+/learner/first", told["adapter"]["url"])
    assert (told["adapter"]["made"], told["adapter"]["private"]) == (["learner/first"], True)
    assert told["adapter weights"]
    needed = {"README.md", "adapter_config.json", "adapter_model.safetensors", "loss_curve.png", "tokenizer.json"}
    assert needed <= set(told["adapter files"])
    assert ".DS_Store" not in told["adapter files"]
    assert told["adapter config"]["base_model_name_or_path"] == "tiny-gemma3"  # not the folder it lies in here


@pytest.mark.plain_peft
def test_what_lies_on_the_hub_loads_in_plain_libraries(told, place, home):
    code = (
        "import sys, torch; from peft import PeftModel; from transformers import AutoModelForCausalLM as A;"
        "ids = torch.arange(10, 60)[None]; f = torch.float32;"
        "base = PeftModel.from_pretrained(A.from_pretrained(sys.argv[1], dtype=f), sys.argv[2]).eval()(input_ids=ids).logits;"
        "merged = A.from_pretrained(sys.argv[3], dtype=f).eval()(input_ids=ids).logits;"
        "print((base - merged).abs().max().item())"
    )
    from gemma_colab.core.workspace import samples

    run = subprocess.run(
        [sys.executable, "-c", code, samples() / "tiny-gemma3", home / "adapter on the Hub", home / "merged on the Hub"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(run.stdout.splitlines()[-1]) < 0.2  # weights of bfloat16


def test_a_new_version_leaves_no_file_of_the_old_one(told):
    """An adapter left beside a merged model would be added to it a second time when transformers loads that."""
    assert WEIGHTS in told["merged files"]
    assert not [name for name in told["merged files"] if name.startswith("adapter")]
    assert ".gitattributes" in told["merged files"]
    assert told["messages"] == ["adapter of gemma_colab", "merged of gemma_colab"]


def test_public_and_for_an_organization_only_when_asked_and_what_is_private_already_is_not_called_public(told, output):
    assert (told["organization, public"]["made"], told["organization, public"]["private"]) == (["shop/model"], False)
    assert "MiB to shop/model, public\n" in output
    assert told["public, but is private"]["url"].endswith("learner/first")
    assert told["public, but is private"]["private"]
    assert "MiB to learner/first, private, as it is already" in output


def test_the_code_in_the_card_names_the_repository(told, place):
    assert told["readme"].count('from_pretrained("learner/first"') == 2
    assert "path/or/id" not in told["readme"]
    assert (place / "merged" / "README.md").read_text().count("path/or/id/of/this/model") == 2


def test_a_broken_upload_leaves_nothing_and_goes_through_the_second_time(told):
    assert "broke off, and nothing of it is visible" in told["lost"]["message"]
    assert "run this again" in told["lost"]["message"]
    assert told["after the loss"] == [".gitattributes"]
    assert told["lost, again"]["url"].endswith("learner/lost")
    assert WEIGHTS in told["after the second try"]
    assert told["lost, again"]["equal"]


def test_the_command_pushes_and_refuses_the_same_name_twice(told, output, place):
    assert told["command"] == [0, 4, 0]
    assert told["command, public"] == 0
    assert told["command, made public"] == [0, False]
    assert WEIGHTS in told["command made"]
    assert re.search(r"pushed the merged to http://127.0.0.1:\d+/learner/cli", output)
    assert "learner/cli exists already" in output
    made = json.loads((place / "export.json").read_text())["hub"]
    assert made == {"repo": made["repo"], "form": "merged", "private": True}


def test_no_token_is_printed_or_written(told, output, place, home):
    tokens = (WRITER, READER, EXPIRED, NARROW)
    assert told["in Colab"]["url"].endswith("learner/from-colab")  # the token of Colab's secrets is enough
    assert told["token in the log of requests"]
    assert told["to the storage without a token"]
    assert not [token for token in tokens if token in output]
    for planted in ("careless/README.md", "hidden/notes.yaml"):  # by this test
        (home / planted).unlink()
    for folder in (place, home):
        for path in filter(Path.is_file, folder.rglob("*")):
            content = path.read_bytes()
            assert not [token for token in tokens if token.encode() in content], path


def test_no_folder_of_this_machine_is_pushed(told, place, home):
    from gemma_colab.core.workspace import samples

    for name in ("adapter on the Hub", "merged on the Hub"):
        for path in filter(Path.is_file, (home / name).rglob("*")):
            content = path.read_bytes()
            for folder in (place, samples(), Path.home()):
                assert str(folder).encode() not in content, (path, folder)
