"""What a push sends and refuses, against a Hub on this machine, in this process: the quick half of test_hub_push."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import READER, WRITER, FakeHub, Repo
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from peft import get_peft_model
from safetensors.torch import save_file

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import ModelError, WorkspaceError
from gemma_colab.core.loading import load_model
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import Workspace
from gemma_colab.export import merge, push, save_adapter, write_ollama
from gemma_colab.export.hub import _files, check_push
from gemma_colab.handover.export import export_workspace

CARD = "---\nlibrary_name: peft\n---\nLoad it from path/or/id/of/this/adapter, and again from path/or/id/of/this/adapter."


@pytest.fixture
def hub(monkeypatch):
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        close_session()
        yield hub
        close_session()


@pytest.fixture
def adapter(tmp_path):
    """A whole adapter, as small as can be, on a base in a folder of this machine, and what a Mac leaves beside it."""
    folder = tmp_path / "work" / "adapter"
    folder.mkdir(parents=True)
    save_file({"lora_A.weight": torch.zeros(1, 1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/home/anna/my-gemma"})
    )
    (folder / "README.md").write_text(CARD)
    (folder / ".DS_Store").write_text("not for the Hub")
    return folder


def test_a_new_repository_is_private_and_holds_the_adapter_and_nothing_of_this_machine(hub, adapter, capsys):
    assert check_push("first") == ("learner/first", True, None)
    assert hub.repos == {}
    assert push(adapter, "first") == f"{hub.url}/learner/first"
    repo = hub.repos["learner/first"]
    sent = {path.name: path.read_bytes() for path in repo.folder.iterdir()}
    assert set(sent) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert sent["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert sent["adapter_config.json"] == b'{\n  "base_model_name_or_path": "my-gemma",\n  "peft_type": "LORA"\n}\n'
    assert sent["README.md"].decode() == CARD.replace("path/or/id/of/this/adapter", "learner/first")
    assert (repo.private, repo.messages) == (True, ["adapter of gemma_colab"])
    names = "README.md, adapter_config.json, adapter_model.safetensors"
    assert capsys.readouterr().out == f"what is sent: {names}\n0.0 MiB to learner/first, private\n"


def test_a_new_version_takes_the_old_files_away_and_leaves_the_repository_as_private_as_it_is(hub, adapter, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for name in (".gitattributes", "old.safetensors", "README.md"):
        (tmp_path / "there" / name).write_text("old")
    repo = hub.repos["shop/model"] = Repo(tmp_path / "there", private=True)
    with pytest.raises(ModelError, match=r"shop/model exists already, with 2 files; take another name, or .*exist_ok=True"):
        push(adapter, "shop/model", private=False)
    assert repo.messages == []
    push(adapter, "shop/model", private=False, exist_ok=True, message="the second")
    there = {path.name for path in repo.folder.iterdir()}
    assert there == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (repo.private, repo.messages) == (True, ["the second"])
    assert capsys.readouterr().out.endswith("MiB to shop/model, private, as it is already\n")
    assert check_push("shop/model", exist_ok=True) == ("shop/model", True, there)
    repo.private = False
    assert check_push("shop/model", private=False, exist_ok=True) == ("shop/model", False, there)
    with pytest.raises(
        ModelError, match=r"shop/model is public, and this would be seen by everybody; .*private=False \(--public\)"
    ):
        check_push("shop/model", exist_ok=True)


def test_a_repository_that_was_made_and_never_filled_is_filled(hub, adapter, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".gitattributes").write_text("")
    hub.repos["learner/made"] = Repo(tmp_path / "made", private=True)
    push(adapter, "made")
    assert (tmp_path / "made" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("plant", "error", "said"),
    [
        (lambda a: (a / "README.md").unlink(), WorkspaceError, r"has no README.md, the card; gemma-colab export --workspace \S+/work --to adapter writes"),
        (lambda a: (a / "README.md").write_text(READER), WorkspaceError, r"README.md holds what looks like a token; take it out"),
        (lambda a: (a / "tokenizer.json").symlink_to("/etc/hostname"), WorkspaceError, r"is a link to /etc/hostname, outside the folder"),
        (lambda a: (a / "adapter_config.json").write_text("{}"), WorkspaceError, r"is not a whole LoRA adapter"),
        (lambda a: (a / "adapter_config.json").unlink(), Exception, r"config"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_not_for_others_is_refused_before_the_hub_is_asked(hub, adapter, plant, error, said):
    plant(adapter)
    with pytest.raises(error, match=said):
        push(adapter, "first")
    assert hub.log == []


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (READER, "first", r"your token, from HF_TOKEN in the environment, may only read; make a token of the type 'write'"),
        ("hf_" + 17 * "Zz", "first", r"refused your token, from HF_TOKEN in the environment: mistyped, deleted or expired; make"),
        (WRITER, "google/mine", r"your token, from HF_TOKEN in the environment, has no right to write to google/mine; make"),
        (WRITER, "a b", r"^a b can't be pushed: HFValidationError: .*; if the next try fails too, report it with this sentence$"),
    ],
)
def test_a_refusal_names_the_cause_and_the_next_step_and_no_token(hub, adapter, token, name, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelError, match=said) as caught:
        push(adapter, name)
    assert token not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hub.repos == {}


def test_an_error_that_repeats_the_token_does_not_reach_the_reader(hub, adapter, monkeypatch):
    monkeypatch.setattr("gemma_colab.export.hub.validate_repo_id", lambda name: Path(f"/nowhere/{WRITER}").read_text())
    with pytest.raises(ModelError, match=r"first can't be pushed: FileNotFoundError: .*\*\*\*") as caught:
        check_push("first")
    assert WRITER not in str(caught.value)


# --------------------------------------------------------------------------------------------- what belongs to a model
@pytest.mark.parametrize(
    "name", ["notes.txt", "rows.csv", "optimizer.pt", "training_args.bin", "own.py", "rows/train.jsonl", "config.json"]
)
def test_what_is_no_part_of_the_model_is_refused_by_its_name_and_sent_only_by_its_name(hub, adapter, name):
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_text("{}")
    said = rf"{name} is no part of the model; move it out of this folder, or, .*also=\['{name}'\] \(--also {name}\)"
    with pytest.raises(WorkspaceError, match=said):
        push(adapter, "first")
    with pytest.raises(WorkspaceError, match=said):
        push(adapter, "first", also=["*"])
    assert hub.log == []
    push(adapter, "first", also=[name])
    assert (hub.repos["learner/first"].folder / name).is_file()


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_personal_data_in_a_text_are_named_and_sent_only_by_the_name_of_the_file(hub, adapter, name):
    text = json.loads((adapter / name).read_text()) if name == "adapter_config.json" else {}
    mine = "Write to anna.petrova@shop-example.ru or +7 916 123-45-67."
    (adapter / name).write_text(json.dumps(text | {"note": mine}))
    with pytest.raises(
        WorkspaceError, match=rf"{name} holds what looks like personal data \(e-mail, phone\); take it out, or, .*--also"
    ):
        push(adapter, "first")
    assert hub.log == []
    push(adapter, "first", also=[name])
    assert mine in (hub.repos["learner/first"].folder / name).read_text()


def test_a_file_of_the_model_that_is_no_text_is_sent_as_it_is(hub, adapter):
    (adapter / "chat_template.jinja").write_bytes("ё".encode("cp1251"))
    (adapter / "loss_curve.png").write_bytes(b"\x89PNG anna@mail.ru")  # a picture is searched for keys only
    push(adapter, "first")
    sent = hub.repos["learner/first"].folder
    assert (sent / "chat_template.jinja").read_bytes() == "ё".encode("cp1251")
    assert (sent / "loss_curve.png").read_bytes() == b"\x89PNG anna@mail.ru"


ESCAPES = {"personal data \\(e-mail\\)": r"ivan\.petrov\@corp\-mail\.ru", "a token": READER.replace("_", r"\_")}


@pytest.mark.parametrize("holds", ESCAPES)
def test_what_markdown_escapes_is_found_in_a_card(hub, adapter, holds):
    (adapter / "README.md").write_text(f"base model: {ESCAPES[holds]}")
    with pytest.raises(WorkspaceError, match=f"README.md holds what looks like {holds}"):
        push(adapter, "first")
    assert hub.log == []


def test_a_card_in_another_alphabet_is_not_sent_in_pieces(hub, adapter):
    (adapter / "README.md").write_bytes("Моя карточка".encode("cp1251"))
    with pytest.raises(WorkspaceError, match=r"README.md is not in UTF-8, as the Hub wants it; open it in an editor"):
        push(adapter, "first")
    assert hub.log == []


def test_a_key_is_sent_by_no_name(hub, adapter):
    for key in ("sk-proj-" + "x9_" * 10, "https://me:pass-word1@example.org/v1", READER):
        (adapter / "notes.txt").write_text(f"with {key}")
        with pytest.raises(WorkspaceError, match=r"notes\.txt holds what looks like a token"):
            push(adapter, "first", also=["notes.txt"])
    assert hub.log == []


HIDDEN = {
    "loss_curve.png": b"\x89PNG\xff" + READER.encode(),
    "tokenizer.model": b"\0\1" + READER.encode(),
    "README.md": READER.encode("utf-16"),
    "tokenizer_config.json": ('{"a": "\\u0068' + READER[1:] + '"}').encode(),
    "special_tokens_map.json": ('{"a": "\\n' + READER + '"}').encode(),
    "added_tokens.json": ('{"a": "my_' + READER + '"}').encode(),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_key_is_found_however_it_is_written(hub, adapter, name):
    (adapter / name).write_bytes(HIDDEN[name])
    with pytest.raises(WorkspaceError, match=rf"{name} holds what looks like a token"):
        push(adapter, "first", also=[name])
    assert hub.log == []


def test_what_weights_say_about_themselves_is_searched(hub, adapter):
    weights = {"lora_A.weight": torch.zeros(1, 1)}
    for said, holds in ((READER, "a token"), ("by anna@mail.ru", r"personal data \(e-mail\)")):
        save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt", "note": said})
        with pytest.raises(WorkspaceError, match=f"adapter_model.safetensors holds what looks like {holds}"):
            push(adapter, "first")
    (adapter / "tokenizer_config.json").write_text('{"by": "anna\\u0040mail.ru"}')
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(WorkspaceError, match=r"tokenizer_config.json holds what looks like personal data \(e-mail\)"):
        push(adapter, "first")
    assert hub.log == []


@pytest.mark.parametrize("name", ["model-old/rows.safetensors", "model-of-anna.safetensors"])
def test_only_the_forms_own_weights_belong_to_it(exported, tmp_path, name):
    folder = shutil.copytree(exported / "merged", tmp_path / "merged")
    (folder / "README.md").write_text(CARD)
    (folder / name).parent.mkdir(exist_ok=True)
    save_file({"x": torch.zeros(1)}, folder / name)
    with pytest.raises(WorkspaceError, match=f"{name} is no part of the model"):
        _files(folder, ())


@pytest.mark.parametrize("name", ["tokenizer_config.json", "adapter_model.safetensors"])
def test_what_is_sent_is_what_was_checked(hub, adapter, name, tmp_path, monkeypatch):
    (adapter / "tokenizer_config.json").write_text("{}")
    (tmp_path / "id_rsa").write_text("-----BEGIN PRIVATE KEY-----")

    def swapped(*args, **how):
        (adapter / name).unlink()
        (adapter / name).symlink_to(tmp_path / "id_rsa")
        return check_push(*args, **how)

    monkeypatch.setattr("gemma_colab.export.hub.check_push", swapped)
    if name == "tokenizer_config.json":
        push(adapter, "first")
        assert (hub.repos["learner/first"].folder / name).read_text() == "{}"
    else:
        with pytest.raises(
            WorkspaceError, match=f"{name} was changed after it was checked, and nothing was sent; run this again"
        ):
            push(adapter, "first")
        assert hub.repos == {}


def test_the_names_are_shown_before_anything_is_sent(hub, adapter, capsys, monkeypatch):
    monkeypatch.setattr("gemma_colab.export.hub.HfApi.create_repo", lambda *args, **how: 1 / 0)
    with pytest.raises(ModelError):
        push(adapter, "first")
    assert "what is sent: README.md, adapter_config.json, adapter_model.safetensors\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def exported(random_gemma, tmp_path_factory):
    """An adapter and a merged model, as export writes them."""
    workspace = Workspace(tmp_path_factory.mktemp("exported"))
    model = get_peft_model(load_model(random_gemma, torch.float32), lora_config(LoraSettings(r=2)))
    adapter = save_adapter(model, load_tokenizer(random_gemma), workspace)
    merge(random_gemma, adapter, workspace.path / "merged", max_shard_bytes=100_000)
    return workspace.path


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_all_that_export_writes_belongs_to_the_model(exported, form):
    folder = exported / form
    (folder / "README.md").write_text(CARD)
    (folder / "loss_curve.png").write_text("")
    assert set(_files(folder, ())) == {path.name for path in folder.iterdir()}
    assert len(list(folder.glob("*.safetensors"))) == 1 if form == "adapter" else len(list(folder.glob("*.safetensors"))) >= 2


# --------------------------------------------------------------------------------------------- links
@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "tokenizer_config.json", "config.json", "additional_chat_templates/key.jinja", "notes.safetensors"],
)
def test_a_base_with_a_link_out_of_it_takes_nothing_along(exported, random_gemma, tmp_path, name):
    base, secret = shutil.copytree(random_gemma, tmp_path / "base"), tmp_path / "token"
    secret.write_text((base / name).read_text() if name.endswith(".json") else "somebody's token")
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(secret)
    for taken in (
        lambda: merge(str(base), exported / "adapter", tmp_path / "out"),
        lambda: write_ollama(base, tmp_path / "out"),
        lambda: load_tokenizer(str(base)),
    ):
        with pytest.raises(ModelError, match=rf"{name} is a link to {secret}, outside the folder; copy that file here"):
            taken()
    assert not (tmp_path / "out").exists()


def test_an_adapter_with_a_link_out_of_it_is_not_exported(exported, tmp_path):
    workspace = Workspace(shutil.copytree(exported, tmp_path / "w"))
    workspace.write_json("training.json", {"model": "google/gemma-3-4b-it", "log_history": []})  # it sees images
    (tmp_path / "id_rsa").write_text("secret")
    (workspace.path / "adapter" / "chat_template.jinja").unlink(missing_ok=True)
    (workspace.path / "adapter" / "chat_template.jinja").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is a link to .*id_rsa, outside the folder"):
        export_workspace(workspace, "adapter")
    assert (workspace.path / "adapter" / "chat_template.jinja").is_symlink()


def test_an_adapter_that_is_trained_anew_while_it_is_merged_is_not_taken_for_the_old_one(
    exported, random_gemma, tmp_path, monkeypatch
):
    workspace = Workspace(shutil.copytree(exported, tmp_path / "w"))
    workspace.write_json("training.json", {"model": random_gemma, "log_history": []})

    before = workspace.fingerprint("merged/config.json")
    settings = workspace.path / "adapter" / "adapter_config.json"

    def merge_meanwhile(*args, **how):
        merge(*args, **how)
        settings.write_text(settings.read_text() + "\n")

    monkeypatch.setattr("gemma_colab.handover.export.merge", merge_meanwhile)
    with pytest.raises(WorkspaceError, match="was replaced while it was merged; export again"):
        export_workspace(workspace, "merged", rows=0)
    assert workspace.fingerprint("merged/config.json") == before
    assert not workspace.has("export.json")


@pytest.mark.parametrize("name", ["handler.py", "tokenizer.model"])
def test_a_private_key_is_not_sent_whatever_it_is_called(hub, adapter, name):
    (adapter / name).write_text(f"{'-' * 5}BEGIN OPENSSH PRIVATE KEY{'-' * 5}\nb3BlbnNzaC1rZXk\n")
    with pytest.raises(WorkspaceError, match=f"{name} holds what looks like a private key; take it out"):
        push(adapter, "first", also=[name])
    assert hub.log == []


def test_a_base_in_the_cache_of_the_hub_is_all_links_and_weights_may_lie_on_another_disk(exported, random_gemma, tmp_path):
    """There each file of a snapshot leads to ../../blobs."""
    blobs, snapshot = tmp_path / "models--me--own" / "blobs", tmp_path / "models--me--own" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(Path(random_gemma).iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    merge(str(snapshot), exported / "adapter", tmp_path / "out")
    base = shutil.copytree(random_gemma, tmp_path / "base")
    (base / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (base / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    merge(str(base), exported / "adapter", tmp_path / "out2")
    one, two = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("out", "out2"))
    assert one == two


def test_a_header_that_is_not_searched_to_its_end_is_not_sent(hub, adapter):
    about = {"note": " " * 2**20 + "hf_" + "a1B2" * 8}
    save_file({"lora_A.weight": torch.zeros(1, 1)}, adapter / "adapter_model.safetensors", metadata=about)
    with pytest.raises(
        WorkspaceError, match=r"adapter_model.safetensors has a header of 1,048,\d+ bytes, and 1 MiB of it is searched"
    ):
        push(adapter, "first")
    assert not hub.repos
