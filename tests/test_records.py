"""Records of runs: written, read, compared in a table and a picture."""

import io
import json
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from gemma_colab.core.curve import history_table
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.training import compare_runs
from gemma_colab.training.records import list_runs, record_run, run_history
from gemma_colab.training.verdict import training_verdict

TRAIN = TrainSettings(learning_rate=3e-3)


def curve(loss, validation, rate=3e-3):
    lines = [{"step": i, "epoch": i / 4, "loss": v, "learning_rate": rate, "grad_norm": 1.0} for i, v in enumerate(loss, 1)]
    return history_table(lines + [{"step": i, "epoch": i / 4, "eval_loss": v} for i, v in validation.items()])


HISTORY = curve([4.0, 3.0, 2.5, 2.4], {2: 2.7, 4: 2.6})


def record(workspace, **changes):
    given = {
        "model": ModelSettings(),
        "lora": LoraSettings(),
        "train": TRAIN,
        "data": "0123456789abcdef",
        "rows": 64,
        "history": HISTORY,
        "seconds": 12.345,
        "gpu": None,
        "status": "finished",
    }
    given |= changes
    verdict = str(training_verdict(given["history"], finished=True))
    return record_run(workspace, **{"verdict": verdict} | given)


def test_a_run_is_recorded_and_read_back(workspace):
    path = record(workspace, gpu="Tesla T4")
    assert path.parent == workspace.path / "history"
    (run,) = list_runs(workspace)
    assert TrainSettings(**run["train"]) == TRAIN
    assert (LoraSettings(**run["lora"]), ModelSettings(**run["model"])) == (LoraSettings(), ModelSettings())
    assert (run["data"], run["rows"], run["machine"]) == ("0123456789abcdef", 64, "Tesla T4")
    assert (run["status"], run["seconds"], run["steps"]) == ("finished", 12.3, 4)
    assert (run["best_eval_loss"], run["best_step"]) == (2.6, 4)
    assert run["verdict"] == str(training_verdict(HISTORY, finished=True))
    assert {"python", "torch", "trl"} <= set(run["versions"])
    pd.testing.assert_frame_equal(run_history(run), HISTORY, check_dtype=False)


def test_records_sort_by_time_and_a_machine_without_a_gpu_is_a_cpu(workspace):
    for status in ("interrupted", "finished", "out of memory"):
        record(workspace, status=status, verdict=f"{status}: so it was")
    runs = list_runs(workspace)
    assert [run["status"] for run in runs] == ["interrupted", "finished", "out of memory"]
    assert {run["machine"] for run in runs} == {"CPU"}
    assert runs[0]["verdict"] == "interrupted: so it was"


def test_a_broken_loss_is_kept_in_valid_json(workspace):
    history = curve([4.0, float("nan"), float("inf")], {})
    path = record(workspace, history=history)
    run = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert run["best_eval_loss"] is run["best_step"] is None
    assert run["verdict"].startswith("unstable")
    pd.testing.assert_frame_equal(run_history(run), history, check_dtype=False)
    assert json.loads(record(workspace, history=history_table([])).read_text())["steps"] == 0


def test_an_unreadable_record_is_left_out_and_said_so(workspace, capsys):
    whole = json.loads(record(workspace).read_text())
    (workspace.path / "history" / "0-half.json").write_text('{"time": ')
    (workspace.path / "history" / "1-list.json").write_text("[1]")
    (workspace.path / "history" / "2-other.json").write_text('{"a": 1}')
    for i, missing in enumerate(("seconds", "status", "verdict", "train", "curves"), 3):
        part = {name: value for name, value in whole.items() if name != missing}
        (workspace.path / "history" / f"{i}-no-{missing}.json").write_text(json.dumps(part))
    for name, spoilt in (("train", None), ("verdict", 5), ("lora", 3)):
        (workspace.path / "history" / f"9-{name}.json").write_text(json.dumps(whole | {name: spoilt}))
    assert len(list_runs(workspace)) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 11
    assert said[0] == "history/0-half.json is no readable record of a run and is left out; delete it"


def test_no_runs_yet(workspace):
    assert list_runs(workspace) == []
    for none in ([], workspace):
        with pytest.raises(SettingsError, match=r"train first"):
            compare_runs(none)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("google/gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("models/mine", "models/mine"),
        ("~/models/mine", "mine"),
        ("/data/ann/models/mine/", "mine"),
        ("./mine", "mine"),
        ("C:\\Users\\ann\\mine", "mine"),
    ],
)
def test_a_model_folder_is_named_without_the_way_there(model, named, workspace):
    record(workspace, model=ModelSettings(model=model))
    assert list_runs(workspace)[0]["model"]["model"] == named


def test_no_token_and_no_home_is_written(workspace, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    token = "hf_" + "a1B2" * 8
    text = record(workspace, verdict=f"interrupted: /home/ann/w is full, {token} was refused", status=f"{token}").read_text()
    assert "/home/ann" not in text
    assert token not in text
    assert "~/w is full, *** was refused" in text


def test_a_dollar_in_a_name_begins_no_mathematics(workspace):
    record(workspace)
    _, ax = compare_runs(workspace, names=["a $^ run$"])
    ax.figure.savefig(io.BytesIO())


def test_the_table_shows_what_differs_and_what_came_of_it(workspace):
    low = {"history": curve([4, 4, 3.9, 4], {4: 3.95}), "status": "interrupted", "verdict": "not learning: it stayed; try more"}
    record(workspace, train=TRAIN.replace(learning_rate=3e-4), **low)
    record(workspace, history=curve([4.0, 3.0, 1.0, 0.2], {1: 3.5, 2: 3.0, 4: 4.1}))
    table = compare_runs(workspace)[0]
    assert list(table.index) == ["learning_rate=0.0003", "learning_rate=0.003"]
    columns = ["learning_rate", "best_eval_loss", "best_step", "train_loss", "seconds", "status", "verdict"]
    assert list(table.columns) == columns
    assert table["learning_rate"].tolist() == [3e-4, 3e-3]
    assert table["best_eval_loss"].tolist() == [3.95, 3.0]
    assert table["best_step"].tolist() == [4, 2]
    assert table["train_loss"].tolist() == pytest.approx([3.975, 2.05])
    assert table["status"].tolist() == ["interrupted", "finished"]
    assert table["verdict"].tolist() == ["not learning", "overfitting"]


def test_runs_are_named_by_what_differs_or_by_number(workspace):
    for changes in ({}, {"lora": LoraSettings(r=4)}, {"lora": LoraSettings(r=4)}, {"gpu": "L4"}):
        record(workspace, **changes)
    runs = list_runs(workspace)
    assert list(compare_runs(runs)[0].index) == [
        "r=16, machine=CPU",
        "r=4, machine=CPU",
        "r=4, machine=CPU (run 3)",
        "r=16, machine=L4",
    ]
    assert list(compare_runs(runs[1:3])[0].index) == ["(run 1)", "(run 2)"]
    assert list(compare_runs(runs, "abcd")[0].index) == list("abcd")
    for wrong in ("abc", "aabc"):
        with pytest.raises(SettingsError, match="must be 4 different ones"):
            compare_runs(runs, wrong)


def test_runs_of_another_version_may_lack_a_setting(workspace):
    path = record(workspace)
    run = json.loads(path.read_text())
    del run["train"]["neftune_noise_alpha"]
    path.write_text(json.dumps(run))
    record(workspace, train=TRAIN.replace(neftune_noise_alpha=5.0))
    assert compare_runs(workspace)[0]["neftune_noise_alpha"].iloc[1] == 5.0


def test_short_runs_are_compared_by_their_names():
    table, _ = compare_runs({"a": HISTORY, "b": curve([4.0, 3.0], {})})
    assert list(table.columns) == ["best_eval_loss", "best_step", "train_loss", "verdict"]
    assert table["best_eval_loss"].tolist()[0] == 2.6
    assert pd.isna(table.loc["b", "best_step"])


def test_the_picture_draws_train_thin_and_validation_with_points(workspace):
    runs = {str(i): curve([4.0, 3.0, 2.5 - i / 10, 2.4], {2: 2.7, 4: 2.6 - i / 10}) for i in range(6)}
    _, ax = compare_runs(runs)
    assert isinstance(ax, Axes)
    train, validation = ax.lines[::2], ax.lines[1::2]
    assert len(train) == len(validation) == 6
    for i, (thin, points) in enumerate(zip(train, validation, strict=True)):
        assert thin.get_color() == points.get_color()
        assert thin.get_linewidth() < points.get_linewidth()
        assert thin.get_ydata().tolist() == [4.0, 3.0, 2.5 - i / 10, 2.4]
        assert points.get_xdata().tolist() == [2, 4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"{i}: best {2.6 - i / 10:.2f}" for i in range(6)]
    colors = [to_rgb(line.get_color()) for line in train]
    assert min(math.dist(a, b) for a, b in combinations(colors, 2)) > 0.3
    assert len({line.get_marker() for line in validation}) == 6
    many = compare_runs({str(i): runs["0"] for i in range(12)})[1].lines[1::2]
    assert len({(line.get_color(), line.get_marker()) for line in many}) == 12
    assert compare_runs(runs, x="epoch", ax=plt.subplots()[1])[1].lines[1].get_xdata().tolist() == [0.5, 1.0]
    record(workspace), record(workspace, train=TRAIN.replace(num_train_epochs=10.0))
    table, ax = compare_runs(workspace)
    assert [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()] == list(table.index)


@pytest.mark.parametrize("broken", [400.0, float("inf")])
def test_a_broken_run_does_not_press_the_others_flat(broken):
    _, ax = compare_runs({"good": HISTORY, "broken": curve([4.0, 4.5, broken, broken], {2: 5.0, 4: broken})})
    assert ax.get_ylim()[1] <= 1.3 * 4.0


def test_a_validation_that_rose_is_in_the_picture():
    _, ax = compare_runs({"overfits": curve([4.0, 3.0, 1.0, 0.2], {1: 3.5, 4: 6.27})})
    assert 6.27 < ax.get_ylim()[1] < 7


def test_records_import_without_torch():
    code = "import sys; import gemma_colab.training.records; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
