"""benchmarks/on_gpu.sh, dry: no second of a lent GPU may be lost. Nothing here needs one."""

import importlib
import json
import os
import subprocess
import sys
import time
from types import ModuleType

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def gpu(monkeypatch):
    """benchmarks/gpu.py, whose dry runs are forks of this process; it needn't import what is slow for them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name, value in {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    module = importlib.import_module("gpu")
    monkeypatch.setitem(sys.modules, "memory", ModuleType("memory"))
    monkeypatch.setattr(module.gc, "freeze", lambda: None)
    return module


def measured(recipe, folder, dry):
    """Instead of training."""
    if "raises" in recipe.name:
        raise RuntimeError("no kernel | for this GPU\nand more")
    if "dies" in recipe.name:
        os._exit(7)
    if "hangs" in recipe.name:
        time.sleep(60)
    figures = {
        "speed": 200.0 if "fast" in recipe.name else 100.0,
        "peak_gib": 1.0,
        "plan_gib": 1.1,
        "overhead_gib": 0.5,
        "loss": 2.0,
    }
    return {"gpu": "CPU", "note": "", **figures}


def lines_of(printed: str) -> dict[str, list[str]]:
    """Cells of the table's lines by recipe; of one that comes twice, the last."""
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in rows[2:]}


def test_one_that_fails_costs_its_own_line_only(gpu, monkeypatch, capsys, tmp_path):
    start = gpu.Recipe("start", "start")
    bad = [gpu.like(start, "raises"), gpu.like(start, "dies"), gpu.like(start, "hangs", limit=0.5)]
    monkeypatch.setattr(gpu, "RECIPES", [start, *bad, gpu.like(start, "fast")])
    monkeypatch.setattr(gpu, "measure", measured)
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = lines_of(printed)
    assert found["start, raises"][-1].rstrip(" |") == "not run: RuntimeError: no kernel / for this GPU"
    assert "ended with 7" in found["start, dies"][-1]
    assert "not ready after 0 s" in found["start, hangs"][-1]
    assert found["start, fast"][3:5] == ["200", "2.00 x start"]
    assert printed.rstrip().splitlines()[-1].startswith("| start, fast |")
    assert "torch" in printed.splitlines()[0]
    # What a kill in the middle would leave.
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 5
    assert (tmp_path / "gpu_table.md").read_text() == printed
    assert "no kernel | for this GPU" in (tmp_path / "gpu.log").read_text()


def test_a_speed_is_told_beside_the_nearest_runs_of_its_starting_point(gpu):
    start = gpu.Recipe("start", "start")
    recipes = [start, gpu.like(start, "a"), start, gpu.like(start, "b"), start]
    speeds = [100.0, 300.0, 200.0, 300.0, 400.0]
    results = [{"speed": s, "peak_gib": 1, "plan_gib": 1, "overhead_gib": 0, "loss": 1, "note": "", "gpu": "X"} for s in speeds]
    told = [line.split(" | ")[4] for line in gpu.table(recipes, results).splitlines()[2:]]
    assert told == ["1.00 x start", "2.00 x start", "2.00 x start", "1.00 x start", "4.00 x start"]
    assert gpu.table(recipes, results[:2]).splitlines()[-1].split(" | ")[4] == "3.00 x start"  # killed then


def test_what_the_time_does_not_reach_is_a_line(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "measure", measured)
    start = time.monotonic()
    assert gpu.main(["--dry", "--seconds", "0"]) == 0
    assert time.monotonic() - start < 10
    found = lines_of(capsys.readouterr().out)
    assert found.keys() == {recipe.name for recipe in gpu.RECIPES}
    assert all("not run:" in row[-1] for row in found.values())
    assert "no time left" in found["16 bit"][-1]


def test_what_is_missing_is_named(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "measure", measured)
    monkeypatch.setattr(gpu, "packaged_here", lambda: False)
    monkeypatch.setattr(gpu, "installed", lambda name: name not in ("bitsandbytes", "kernels", "liger_kernel", "trl", "datasets"))
    notes = {r.name: gpu.run(r, tmp_path, False, tmp_path / "log", 0)["note"] for r in gpu.RECIPES}
    assert notes["starting point"] == "not run: bitsandbytes is not installed"
    assert notes["16 bit, Liger's layers"] == "not run: liger_kernel is not installed"
    assert "is not installed" in notes["real 270M"]
    assert notes["16 bit"] == "not run: no time left"  # nothing is missing for it
    with pytest.raises(SystemExit, match="trl and datasets must be installed"):
        gpu.main(["--dry"])


def test_16_bit_does_without_bitsandbytes(monkeypatch, random_gemma):
    for name in ("bitsandbytes", "bitsandbytes.nn"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "gemma_colab.core.loading", raising=False)
    loading = importlib.import_module("gemma_colab.core.loading")
    assert loading.load_model(random_gemma, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("name", ["memory", "training"])
def test_what_runs_after_it_starts_too(name):
    """Where two folders hold a file of one name, the benchmark's own must win."""
    script = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "--sizes" in done.stdout


@pytest.mark.long
def test_every_line_starts(gpu, tmp_path):
    (tmp_path / "wheels").mkdir()  # with nothing in it: pip must pass over what is there, and the script over what isn't
    env = os.environ | {"PYTHON": sys.executable}
    script = [str(ROOT / "benchmarks" / "on_gpu.sh"), str(tmp_path / "out"), str(tmp_path / "wheels"), "--dry"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    found = lines_of(done.stdout)
    assert list(found) == list(dict.fromkeys(recipe.name for recipe in gpu.RECIPES))
    for name, row in found.items():
        assert float(row[3].replace(",", "")) > 0, (name, row)
        assert 5 < float(row[8]) < 10, (name, row)  # of 2,048 tokens, guessed: 7.6
    for what in ("flash-attn2", "flex_attention", "use_liger_kernel", "activation_offloading"):
        assert f"{what}, which needs CUDA" in done.stdout
    half, whole = found["real 270M, float16 as on a T4"], found["real 270M"]
    assert float(half[8]) == pytest.approx(float(whole[8]), abs=0.02)
    assert done.stdout.rstrip().splitlines()[-1].startswith("| ")
    assert {json.loads(line)["recipe"] for line in (tmp_path / "out" / "gpu.jsonl").read_text().splitlines()} == found.keys()
