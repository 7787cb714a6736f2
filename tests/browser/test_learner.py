"""What a learner does with notebook 04: moves the sliders, trains, loses the kernel in mid-run, and resumes.

SCREENSHOTS=docs pytest tests/browser/test_learner.py saves the pictures in docs/; use JupyterLab 4 for it.
"""

import json
import re
import time
from pathlib import Path

import psutil
import pytest
from lab import cell_of, lesson, screenshot, shows
from test_panels import HANDLE, line

from gemma_colab.core.settings import ModelSettings
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.rows import save_rows
from gemma_colab.training.checkpoints import whole_checkpoints

PATIENCE = 240  # seconds for a run that takes half a minute on an idle machine
pytestmark = [pytest.mark.long, pytest.mark.learner]


@pytest.fixture
def learner(tmp_path, support_rows, monkeypatch):
    """(notebook 04 open in JupyterLab, its workspace, the sources of its code cells)"""
    workspace = Workspace(tmp_path / "workspace")
    save_rows({"train": support_rows[:96], "validation": support_rows[96:112], "test": support_rows[112:128]}, workspace)
    ModelSettings(model="tiny-gemma3").save(workspace)
    monkeypatch.setenv("GEMMA_COLAB_WORKSPACE", str(workspace.path))
    with lesson(tmp_path, "04_train.ipynb") as (notebook, sources):
        yield notebook, workspace, sources


def press(notebook, cell: int) -> None:
    """Run a cell, and don't wait for its end."""
    notebook.cells.nth(cell).locator(".jp-InputArea-editor").click()
    notebook.page.keyboard.press("Control+Enter")


def wait_for(page, condition, what: str):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}; the page says:\n{page.inner_text('body')[-3000:]}"
        page.wait_for_timeout(100)
    return found


def picture(notebook, name: str, tmp_path: Path, cell: int) -> None:
    screenshot(notebook.cells.nth(cell).locator(".jp-Cell-outputArea"), name, tmp_path, 300_000)


def the_kernel() -> psutil.Process:
    kernels = [p for p in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(p.cmdline())]
    assert len(kernels) == 1
    return kernels[0]


def wait_for_checkpoint(kernel: psutil.Process, folder: Path) -> None:
    """Hold the kernel at its first whole checkpoint, asking the disk: it trains faster than a browser draws."""
    end = time.monotonic() + PATIENCE
    while not whole_checkpoints(folder):
        assert time.monotonic() < end, f"waited {PATIENCE} s for a checkpoint in {folder}"
        time.sleep(0.01)
    kernel.suspend()


def wait_held(page, kernel: psutil.Process, condition, what: str) -> None:
    """Wait for what the page draws while the kernel is held. It goes on for moments only, and rests twice as long after each: what is
    drawn again after a hundred times as long as drawing took is drawn after few steps, however fast they are."""
    for rest in (2, 4, 8, 16, 32, 64, 128):
        end = time.monotonic() + rest
        while time.monotonic() < end:
            if condition():
                return
            page.wait_for_timeout(100)
        kernel.resume()
        time.sleep(max(0.1, rest / 64))  # on a busy machine a tenth of a second is less than a step
        kernel.suspend()
    raise AssertionError(f"waited in vain for {what}; the page says:\n{page.inner_text('body')[-3000:]}")


def test_a_learner_trains_loses_the_kernel_and_resumes(learner, tmp_path):
    notebook, workspace, sources = learner
    page = notebook.page
    setup, panel_cell, train_cell = (
        cell_of(sources, text) for text in ("= describe_machine()", "settings_panel(", "panel.settings, loaded")
    )
    resume_cell = cell_of(sources, "RESUME = False")
    for cell in (setup, setup + 1, setup + 2, panel_cell):
        notebook.run(cell)

    # Three sliders: the rate a notch down, smaller batches, more epochs; the panel counts along.
    panel = notebook.output(panel_cell)
    shows(panel, "24 steps an epoch")
    moves = (
        ("learning_rate", "ArrowLeft", "0.002"),
        ("per_device_train_batch_size", "ArrowLeft", "2"),
        ("num_train_epochs", "ArrowRight", "1.67"),  # of the preset "strong"
        ("num_train_epochs", "ArrowRight", "2"),
    )
    for field, key, value in moves:
        line(panel, field).locator(HANDLE).focus()
        page.keyboard.press(key)
        shows(line(panel, field), f"^{value}$")
        page.wait_for_timeout(500)  # the panel answers, and may lay itself out anew
    wait_for(page, lambda: "48 steps an epoch, 96 in all" in panel.inner_text(), "the panel to count 96 steps")
    picture(notebook, "train_panel_moved", tmp_path, panel_cell)

    # Train: the line moves, the curve grows, a verdict is there. Then the machine is gone.
    kernel = the_kernel()
    press(notebook, train_cell)
    output = notebook.cells.nth(train_cell).locator(".jp-Cell-outputArea")
    wait_for_checkpoint(kernel, workspace.path / "checkpoints")
    wait_held(page, kernel, lambda: output.locator("img").count() == 1, "the curve")
    first = output.locator("img").get_attribute("src")
    wait_held(page, kernel, lambda: output.locator("img").get_attribute("src") != first, "the curve to grow")
    wait_held(page, kernel, lambda: re.search(r"step [1-9]\d* of 96", output.inner_text()), "the line")
    assert output.locator("img").count() == 1  # one figure, in place
    assert re.search(r"(starting|learning|settled|overfitting|not learning|unstable): .*Next: ", output.inner_text(), re.DOTALL)
    picture(notebook, "train_live", tmp_path, train_cell)
    kernel.kill()  # as a machine that is taken away; the server then starts a new, empty one
    kept = whole_checkpoints(workspace.path / "checkpoints")[-1].step
    assert 0 < kept < 96
    assert not workspace.has("adapter")

    # The kernel is a new one. Two cells, the second with RESUME = True.
    page.get_by_role("button", name=re.compile("^(ok|dismiss)$", re.IGNORECASE)).first.click()
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", polling=100
    )
    press(notebook, setup)
    page.wait_for_timeout(1000)  # its number is that of before; while it runs there is none
    wait_for(page, lambda: notebook._ran(setup), "the first cell to run again")
    editor = notebook.cells.nth(resume_cell).locator(".jp-InputArea-editor")
    editor.get_by_text("RESUME = False").click()
    page.keyboard.press("End")
    for _ in "False":
        page.keyboard.press("Backspace")
    page.keyboard.type("True")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+Enter")
    output = notebook.cells.nth(resume_cell).locator(".jp-Cell-outputArea")
    wait_for(page, lambda: "in all" in output.inner_text(), "the end of the run")
    assert "step 96 of 96" in output.inner_text()
    picture(notebook, "train_resumed", tmp_path, resume_cell)
    wait_for(page, lambda: workspace.has("training.json"), "the record")
    record = json.loads((workspace.path / "training.json").read_text())
    assert [entry["step"] for entry in record["log_history"] if "loss" in entry] == list(range(1, 97))
    assert record["status"] == "finished"
