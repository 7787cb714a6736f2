"""Two processes train as one does: DDP with two CPU processes, and FSDP on CPUs as far as it can be had there.

Run as a script, this file is the command line with FSDP on CPUs: accelerate looks for FSDP on GPUs only, though torch shards on CPUs
too. It then tells accelerate that the processes have GPUs, and torch that these are CPUs.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import accelerate
import psutil
import pytest
import torch
import trl
from accelerate.commands.launch import launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from conftest import ROOT
from peft import PeftModel
from safetensors.torch import load_file
from steps import load_4bit

from gemma_colab.cli import main
from gemma_colab.core import machine as hardware
from gemma_colab.core.errors import ModelError, SettingsError
from gemma_colab.core.loading import quantization_config
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.trainer import sft_config
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import save_rows
from gemma_colab.training import sharding
from gemma_colab.training.checkpoints import whole_checkpoints

SETTINGS = [
    "learning_rate=5e-3", "gradient_accumulation_steps=1", "num_train_epochs=2", "warmup_steps=0", "save_minutes=1440",
    "early_stopping_patience=0",
]  # fmt: skip
TRAIN, VALIDATION = 24, 9  # rows: whole batches to train on, but not to validate on


@pytest.fixture(autouse=True)
def one_thread():
    """As the launched processes have: they share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_workspace(tmp_path, random_gemma, support_rows):
    """make_workspace(name, load_in_4bit) -> a workspace with rows, the random model, and settings for LoRA."""

    def make(name: str, load_in_4bit: bool = True) -> Workspace:
        workspace = Workspace(tmp_path / name)
        rows = support_rows[1:]
        parts = {"train": rows[:TRAIN], "validation": rows[TRAIN : TRAIN + VALIDATION], "test": rows[40:42]}
        save_rows(parts, workspace)
        ModelSettings(model=random_gemma, load_in_4bit=load_in_4bit).save(workspace)
        LoraSettings(r=8).save(workspace)
        return workspace

    return make


def command(workspace: Workspace, batch: int, *more: str) -> list[str]:
    sets = [f"--set={one}" for one in [*SETTINGS, f"per_device_train_batch_size={batch}"]]
    return ["train", "--workspace", str(workspace.path), *sets, *more]


RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8").replace("\\\n", " ")
# kind -> what the recipe says between "accelerate launch" and "-m gemma_colab"
OPTIONS = {name: shlex.split(line.split(" -m ")[0])[2:] for name in ("multi_gpu", "fsdp2") for line in RECIPES.splitlines()
           if line.startswith("accelerate launch") and f"/{name}.yaml" in line}  # fmt: skip


@pytest.fixture
def launch():
    """launch(kind, workspace, arguments) -> two processes at work, as docs/recipes.md starts them, but on CPUs."""
    started = []

    def launch(kind: str, workspace: Workspace, arguments: list[str]) -> subprocess.Popen:
        file = workspace.path / "launch.yaml"  # only what accelerate must not know is changed: that there is no GPU
        text = (Path(trl.__file__).parent / "accelerate_configs" / f"{kind}.yaml").read_text(encoding="utf-8")
        file.write_text(text.replace("use_cpu: false", "use_cpu: true"), encoding="utf-8")
        options = [str(file) if "$configs" in option else option for option in OPTIONS[kind]]
        script = (__file__,) if kind == "fsdp2" else ("-m", "gemma_colab")
        start = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0", *script, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(start, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield launch
    for process in started:
        process.terminate()  # it ends the two
        process.communicate()


def finish(process: subprocess.Popen) -> str:
    """What it printed. A failure shows its errors; so does a second process that has something to say."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]
    assert "[rank" not in errors, errors  # how torch begins a warning; it once named find_unused_parameters
    assert "Params4bit" not in errors, errors  # how accelerate says that it leaves 4-bit weights whole
    return out


def losses(workspace: Workspace, name: str) -> list[float]:
    return [line[name] for line in workspace.read_json("training.json")["log_history"] if name in line]


def assert_same_run(one: Workspace, two: Workspace, tolerance: float = 1e-4) -> None:
    for name, how_many in {"loss": 6, "eval_loss": 3, "grad_norm": 6}.items():
        a, b = losses(one, name), losses(two, name)
        assert len(a) == how_many
        assert a == pytest.approx(b, abs=tolerance), name
    a, b = (load_file(w.path / "adapter" / "adapter_model.safetensors") for w in (one, two))
    assert a.keys() == b.keys()
    for name in a:  # as a whole: where a gradient is nearly 0, Adam makes a step of its last digit
        assert torch.linalg.norm(a[name] - b[name]) < 100 * tolerance * torch.linalg.norm(a[name]), name


def assert_whole_checkpoints(workspace: Workspace, file: str) -> None:
    """Two checkpoints and perhaps the best; written once, with the random state of both processes."""
    found = whole_checkpoints(workspace.path / "checkpoints")
    assert {c.path.name for c in found} == {p.name for p in (workspace.path / "checkpoints").glob("checkpoint-*")}
    assert found[-1].step == 6
    for checkpoint in found:
        names = {path.name for path in checkpoint.path.iterdir()}
        assert {file, "rng_state_0.pth", "rng_state_1.pth", "scheduler.pt", "trainer_state.json", "whole.json"} <= names
        assert checkpoint.made_with["rows_per_update"] == 8


needs_accelerate = pytest.mark.skipif(
    tuple(map(int, accelerate.__version__.split(".")[:2])) < (1, 15),
    reason="an older accelerate can't, with torch 2.13",
)


def test_two_processes_with_batch_4_train_as_one_with_batch_8(make_workspace, launch, capsys):
    one, two = make_workspace("one"), make_workspace("two")
    process = launch("multi_gpu", two, command(two, 4))
    assert main(command(one, 8)) in (0, 1)
    out = finish(process)
    assert_same_run(one, two)
    assert_whole_checkpoints(two, "adapter_model.safetensors")
    # one process prints, and says at the end what one process says alone
    assert out.count("finished after 6 steps") == out.count("2 processes") == out.count("the adapter is in") == 1
    assert "finished after 6 steps" in capsys.readouterr().out


@pytest.mark.long
def test_two_processes_with_whole_weights_and_accumulation(make_workspace, launch):
    one, two = make_workspace("one", load_in_4bit=False), make_workspace("two", load_in_4bit=False)
    process = launch("multi_gpu", two, command(two, 2, "--set=gradient_accumulation_steps=2"))
    assert main(command(one, 4, "--set=gradient_accumulation_steps=2")) in (0, 1)
    finish(process)
    assert_same_run(one, two)


@pytest.mark.long
@needs_accelerate
@pytest.mark.parametrize(("load_in_4bit", "dtype"), [(True, "float32"), (True, "bfloat16"), (False, "bfloat16")])
def test_a_model_in_pieces_trains_as_a_whole_one(make_workspace, launch, random_gemma, load_in_4bit, dtype, monkeypatch):
    monkeypatch.setenv("TEST_DTYPE", dtype)  # CPUs would compute in float32, and round nothing
    monkeypatch.setattr(hardware, "pick_dtype", _wanted_dtype)
    one, two = make_workspace("one", load_in_4bit), make_workspace("two", load_in_4bit)
    process = launch("fsdp2", two, command(two, 4))
    assert main(command(one, 8)) in (0, 1)
    finish(process)
    # Losses near 7.5 would be off by up to 0.016 if they were rounded to bfloat16.
    assert_same_run(one, two, 1e-4 if dtype == "float32" else 1e-3)
    assert_whole_checkpoints(two, "pytorch_model_fsdp_0")
    PeftModel.from_pretrained(load_4bit(random_gemma, torch.float32), two.path / "adapter")


@pytest.mark.long
@needs_accelerate  # an older one names the device of two CPU processes cpu:0, and torch.load doesn't know such a one
@pytest.mark.parametrize("kind", ["multi_gpu", "fsdp2"])
def test_two_processes_are_interrupted_and_go_on(make_workspace, launch, kind):
    one, two = make_workspace("one"), make_workspace("two")
    longer = ["--set=num_train_epochs=12", "--set=evals_per_epoch=1"]
    process = launch(kind, two, command(two, 4, *longer))
    checkpoints, started = two.path / "checkpoints", time.monotonic()
    while not whole_checkpoints(checkpoints) and process.poll() is None and time.monotonic() - started < 200:
        time.sleep(0.2)
    whom = psutil.Process(process.pid).children()[-1] if kind == "multi_gpu" else process  # one tells the other; or both are told
    whom.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    stopped = whole_checkpoints(checkpoints)[-1].step
    assert 3 <= stopped < 36, errors[-4000:]
    assert process.returncode == 1
    assert two.read_json("training.json")["status"] == "interrupted"
    assert two.has("adapter")
    finish(launch(kind, two, ["train", "--workspace", str(two.path), "--resume"]))
    assert main(command(one, 8, *longer)) in (0, 1)
    for name in ("loss", "eval_loss"):
        a, b = losses(one, name), losses(two, name)
        assert len(a) == len(b)
        assert a[:6] == pytest.approx(b[:6], abs=1e-4)
        assert a == pytest.approx(b, rel=2e-2)  # sums in another order, 36 times


def test_accelerate_knows_every_option_of_the_recipe():
    assert OPTIONS.keys() == {"multi_gpu", "fsdp2"}
    for options in OPTIONS.values():
        found = launch_command_parser().parse_args([*options, "train.py"])  # exits where it doesn't know one
        assert (found.num_processes, found.mixed_precision) == (2, "no")


def test_the_tables_of_positions_are_not_sent_around(tmp_path):
    """In transformers 5.15 each process registers those for its two kinds of attention in another order, and DDP sends them by
    order: where they were mixed up, nothing failed, and the losses were wrong in the third digit."""
    assert sft_config(TrainSettings(), tmp_path, 8, torch.float32).ddp_broadcast_buffers is False


def test_fsdp_that_cannot_work_is_refused():
    def prepare(**changes):
        plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "mixed_precision_policy": None} | changes
        state = SimpleNamespace(fsdp_plugin=SimpleNamespace(set_state_dict_type=lambda kind: None, **plugin))
        sharding.prepare_sharding(SimpleNamespace(is_fsdp_enabled=True, accelerator=SimpleNamespace(state=state)))

    prepare()
    with pytest.raises(SettingsError, match="fsdp_version=1 must be 2"):
        prepare(fsdp_version=1)
    with pytest.raises(SettingsError, match=r"cpu_ram_efficient_loading=True must be False.*docs/recipes\.md"):
        prepare(cpu_ram_efficient_loading=True)


def test_of_two_processes_one_says_what_is_wrong(tmp_path, launch):
    workspace = Workspace(tmp_path / "ws")
    process = launch("multi_gpu", workspace, ["train", "--workspace", str(workspace.path)])
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    assert errors.count("Error: rows/train.jsonl is missing") == 1
    assert not out


def test_4_bit_weights_can_be_cut_only_under_fsdp(random_gemma, monkeypatch):
    assert quantization_config(torch.bfloat16).bnb_4bit_quant_storage == torch.uint8
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for dtype in (torch.bfloat16, torch.float32):
        assert quantization_config(dtype).bnb_4bit_quant_storage == dtype
    weight = load_4bit(random_gemma, torch.float32).model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    assert weight.numel() * 8 == 128 * 256
    with pytest.raises(ModelError, match="bfloat16"):
        load_4bit(random_gemma, torch.float16)


def _wanted_dtype(machine, shape=None) -> tuple[torch.dtype, str]:
    return getattr(torch, os.environ.get("TEST_DTYPE", "float32")), "the test says so"


def _shard_on_cpus() -> None:
    hardware.pick_dtype = _wanted_dtype
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")


if __name__ == "__main__":
    _shard_on_cpus()
    sys.exit(main())
