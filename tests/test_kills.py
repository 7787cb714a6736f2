"""A run that is killed, again and again, at any moment, ends as one that was left alone: same losses, same weights."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
from safetensors.torch import load_file

from gemma_colab.core.rows import to_messages
from gemma_colab.training.checkpoints import MARK, whole_checkpoints

PATIENCE = 120  # seconds for a run that takes a few on an idle machine


@pytest.fixture(scope="module")
def start(tmp_path_factory, random_gemma, support_rows):
    """start(folder) -> a process that trains there, or goes on training. The libraries are imported once and inherited."""
    import killed

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed"])
    warm = context.Process(target=killed.nothing)  # the first process waits for all imports
    warm.start()
    warm.join(PATIENCE)
    rows = tmp_path_factory.mktemp("rows") / "rows.json"
    rows.write_text(json.dumps([to_messages(row) for row in support_rows[:30]], ensure_ascii=False), encoding="utf-8")

    def start(folder):
        (folder / "result").mkdir(parents=True, exist_ok=True)
        args = (random_gemma, str(rows), str(folder / "checkpoints"), str(folder / "result"))
        process = context.Process(target=killed.run, args=args)
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The folder of a run that nobody disturbed, and the seconds that it took."""
    folder, begin = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    process = start(folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    return folder, time.monotonic() - begin


def wait_for(condition, process) -> bool:
    """Whether it came true before the process ended."""
    end = time.monotonic() + PATIENCE
    while process.is_alive() and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def is_saving(checkpoints) -> bool:
    """Whether a checkpoint is there that isn't whole yet."""
    return any(not (path / MARK).exists() for path in checkpoints.glob("checkpoint-*"))


def kill(process) -> bool:
    """SIGKILL; whether there was something to kill."""
    if alive := process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE)
    return alive


def assert_same_end(folder, other):
    a, b = (json.loads((f / "result" / "log.json").read_text()) for f in (folder, other))
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert one.keys() == two.keys()
        assert one == pytest.approx(two, abs=1e-6)
    a, b = (load_file(f / "result" / "weights.safetensors") for f in (folder, other))
    assert a.keys() == b.keys()
    assert all((a[name] - b[name]).abs().max() <= 1e-6 for name in a)


def disturbed(start, folder, rng, seconds: float, times: int, in_a_save: float) -> dict[str, int]:
    """Kill it `times` times, with probability `in_a_save` while a checkpoint is being written, else at any moment; then let it end.
    Whoever comes to his end before that begins anew."""
    kills, checkpoints = {"save": 0, "any": 0}, folder / "checkpoints"
    while sum(kills.values()) < times:
        process = start(folder)
        if rng.random() < in_a_save:
            kind = "save"
            for _ in range(rng.randint(1, 2)):  # the first one, or the second
                wait_for(lambda: not is_saving(checkpoints), process)
                wait_for(lambda: is_saving(checkpoints), process)
            time.sleep(rng.uniform(0, 0.05))
        else:
            kind = "any"
            time.sleep(rng.uniform(0.1, 0.6) * seconds)
        if kill(process):
            kills[kind] += 1
        else:
            assert process.exitcode == 0
            shutil.rmtree(checkpoints)
        assert len(whole_checkpoints(checkpoints)) <= 3
    process = start(folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    return kills


def test_killed_runs_end_as_an_undisturbed_one(start, undisturbed, tmp_path):
    """Five here; test_killed_twenty_times goes on with as many as the promise says."""
    reference, seconds = undisturbed
    kills = disturbed(start, tmp_path, random.Random(0), seconds, 5, in_a_save=0.5)
    assert min(kills.values()) >= 1
    assert_same_end(tmp_path, reference)
    assert not is_saving(tmp_path / "checkpoints")  # nothing is left of the half ones


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_twenty_times(start, undisturbed, tmp_path, seed):
    reference, seconds = undisturbed
    disturbed(start, tmp_path, random.Random(seed), seconds, 5, in_a_save=0.4)
    assert_same_end(tmp_path, reference)
