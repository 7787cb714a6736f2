"""Colab's and Kaggle's machines by stand-ins: secrets, where the work is kept, and one GPU of two for each process."""

import json
import os
import subprocess
import sys
import types
from unittest import mock

import nbformat
import pytest
from conftest import ROOT

from gemma_colab.core.settings import ModelSettings
from gemma_colab.core.workspace import open_workspace
from gemma_colab.model import lent
from gemma_colab.model.preflight import token_source
from gemma_colab.ui import settings_panel

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
VARIABLES = "HF_TOKEN CUDA_VISIBLE_DEVICES LOCAL_RANK KAGGLE_KERNEL_RUN_TYPE GEMMA_COLAB_WORKSPACE".split()


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (*VARIABLES, lent.HIDDEN):
        monkeypatch.setenv(name, "")  # so that it is put back at the end, whatever the code under test does
        monkeypatch.delenv(name)


@pytest.fixture
def kaggle(monkeypatch):
    """Kaggle with one secret, as far as this project asks it."""
    secrets = {"HF_TOKEN": "hf_of_kaggle"}
    client = types.SimpleNamespace(get_secret=secrets.__getitem__)  # a KeyError in the place of its BackendError
    monkeypatch.setitem(sys.modules, "kaggle_secrets", types.SimpleNamespace(UserSecretsClient=lambda: client))
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """driver(script): what `nvidia-smi` is here."""

    def driver(script):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return driver


@pytest.fixture
def two_gpus(driver):
    driver("echo 'GPU 0: Tesla T4 (UUID: a)'; echo 'GPU 1: Tesla T4 (UUID: b)'")


@pytest.mark.parametrize(("script", "sees"), [("echo 'GPU 0: Tesla T4 (UUID: x)'", 1), ("echo NVIDIA-SMI has failed; exit 9", 0)])
def test_the_driver_is_asked_not_only_looked_for(script, sees, driver, monkeypatch):
    driver(script)
    assert lent.driver_gpus() == sees
    lent.use_one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    monkeypatch.setattr(lent.subprocess, "run", mock.Mock(side_effect=subprocess.TimeoutExpired("nvidia-smi", 3)))
    assert lent.driver_gpus() == 0  # a driver that hangs


def test_one_process_computes_on_one_of_two_gpus(two_gpus, monkeypatch):
    for _ in range(2):  # a cell that is run twice
        lent.use_one_gpu()
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ[lent.HIDDEN]) == ("0", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that accelerate starts from there needs the other one
    lent.use_one_gpu()
    assert not {"CUDA_VISIBLE_DEVICES", lent.HIDDEN} & os.environ.keys()


@pytest.mark.parametrize("chosen", [{"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_RANK": "0"}])
def test_who_chose_gpus_keeps_them(two_gpus, monkeypatch, chosen):
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    lent.use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen["CUDA_VISIBLE_DEVICES"]
    assert lent.HIDDEN not in os.environ


BEFORE_TORCH_LOOKS = """
import json, sys, torch
def looked(*_):
    import os
    print(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
    sys.exit()
torch.cuda.is_available = torch.cuda.device_count = torch._C._cuda_getDeviceCount = looked  # whoever asks first
for cell in json.load(sys.stdin):
    exec(cell)
"""


LOOKING = [
    p for p in NOTEBOOKS if "describe_machine" in p.read_text() and p.stem != "01_dataset_prep"
]  # 01: for your own file only


@pytest.mark.parametrize("path", LOOKING, ids=lambda p: p.stem)
def test_a_notebook_decides_before_torch_looks_for_gpus(two_gpus, path, tmp_path):
    """Whoever asks torch first, bitsandbytes when it is imported or the notebook itself, already sees one."""
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and "%pip" not in c.source]
    env = os.environ | {"GEMMA_COLAB_WORKSPACE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BEFORE_TORCH_LOOKS]
    done = subprocess.run(command, input=json.dumps(cells), capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.stdout.splitlines()[-1:] == ['"0"'], done.stdout + done.stderr


def test_kaggles_secrets_and_folder(kaggle, two_gpus, tmp_path, monkeypatch):
    lent.describe_machine()  # settles both
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["HF_TOKEN"]) == ("0", "hf_of_kaggle")
    assert token_source() == "HF_TOKEN in the environment"
    monkeypatch.setattr("gemma_colab.core.workspace.DRIVE", tmp_path / "no drive")
    monkeypatch.setattr("gemma_colab.core.workspace.KAGGLE", tmp_path / "working")
    assert open_workspace().path == tmp_path / "working" / "gemma_colab"


def test_a_panel_that_is_shown_first_decides_too(two_gpus):
    settings_panel(ModelSettings())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_token_that_is_there_or_can_not_be_had_is_left_as_it_is(kaggle, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    lent.describe_machine()
    assert os.environ["HF_TOKEN"] == "hf_mine"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setitem(sys.modules, "kaggle_secrets", None)  # an ImportError, in the place of its BackendError
    lent.describe_machine()
    assert "HF_TOKEN" not in os.environ


def test_a_trainer_that_would_share_out_its_batches_is_refused(random_gemma, tokenizer, tmp_path):
    import torch
    from datasets import Dataset
    from peft import LoraConfig

    from gemma_colab.core.errors import SettingsError
    from gemma_colab.core.loading import load_model
    from gemma_colab.core.settings import TrainSettings
    from gemma_colab.core.trainer import build_trainer, sft_config

    args = sft_config(TrainSettings(), tmp_path, 2, torch.float32)
    args._n_gpu = 2
    rows = Dataset.from_list([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    with pytest.raises(SettingsError, match=r"n_gpu=2 must be 1.*CUDA_VISIBLE_DEVICES=0.*accelerate launch"):
        build_trainer(load_model(random_gemma, torch.float32), tokenizer, rows, rows, args, LoraConfig())
