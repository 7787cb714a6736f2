"""JupyterLab in a browser, for tests: the `jupyter lab` of this Python, with everything it writes in one folder.

JupyterLab 3.6 and 4 differ in menus and in what they put around a notebook; commands, cells and outputs are called the same.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

# Where the front end is another one than this Python's: Colab's is, and its twin's.
PYTHON = os.environ.get("JUPYTER_LAB_PYTHON", sys.executable)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = {
    "Chromium (on Debian: apt install chromium)": CHROMIUM is None,
    "playwright (pip install playwright)": importlib.util.find_spec("playwright") is None,
    "JupyterLab (pip install -e '.[dev]')": sys.executable == PYTHON and importlib.util.find_spec("jupyterlab") is None,
}
PATIENCE = 60  # seconds for what takes one or two on an idle machine
CONFIG = """
c.ServerApp.open_browser = c.LabApp.open_browser = False
c.ServerApp.allow_root = True
c.ServerApp.token = c.ServerApp.password = c.IdentityProvider.token = ""
c.ServerApp.port_retries = 0
c.LabApp.expose_app_in_browser = True  # window.jupyterapp: its commands have the same names in 3.6 and 4
"""
NEW = """  # unknown before 4, or 3.6: asks nobody
c.LabApp.extension_manager = "readonly"
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"
"""
SETTINGS = {  # no question about news in the corner; and every cell in the page, wherever it is scrolled to
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@contextlib.contextmanager
def running_lab(folder: Path):
    """The address of a `jupyter lab` that serves `folder / "notebooks"`; it is stopped at the end, whatever happens."""
    if missing := [name for name, lacks in MISSING.items() if lacks]:
        pytest.skip(f"needs {', '.join(missing)}")
    lab = [PYTHON, "-W", "ignore", "-m", "jupyterlab"]
    own = {"HOME": "home", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    own |= {"IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    for name in (*own.values(), "notebooks"):
        (folder / name).mkdir()
    new = int(subprocess.run([*lab, "--version"], capture_output=True, text=True, check=True).stdout.split(".")[0]) >= 4
    (folder / "config" / "jupyter_lab_config.py").write_text(CONFIG + NEW * new)
    for name, values in SETTINGS.items():
        if name.startswith("notebook") and not new:  # always so there, and an unknown setting is refused
            continue
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY_"))}
    environment |= {name: str(folder / sub) for name, sub in own.items()} | {"PYTHONPATH": str(ROOT)}
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [*lab, f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder / 'notebooks'}"]
    with (folder / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/api/status", process, folder / "lab.log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"jupyter lab did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)


@contextlib.contextmanager
def running_browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def write_notebook(path: Path, sources: list[str]) -> None:
    cells = [{"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": [], "source": s} for s in sources]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}))


class Notebook:
    """A notebook open in JupyterLab, in `page`. Cells are counted from 0."""

    def __init__(self, page, url: str, name: str):
        self.page = page
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{url}/doc/tree/{name}?reset")  # 3.5 would open the notebook of an earlier page beside it
        # The kernel must be there before a cell is run: JupyterLab 3.6 drops the cell otherwise.
        page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", polling=100
        )
        self.cells = page.locator(".jp-Notebook .jp-CodeCell")

    def _ran(self, cell: int) -> int:
        """The number in front of a cell that has been run; 0 before and while it runs."""
        prompt = self.cells.nth(cell).locator(".jp-InputPrompt").inner_text()
        return int("".join(c for c in prompt if c.isdigit()) or 0)

    def run(self, cell: int) -> None:
        """Run one cell, as Ctrl+Enter in it does, and wait for its end."""
        before = self._ran(cell)
        self.cells.nth(cell).locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")
        self._wait(lambda: self._ran(cell) > before, f"cell {cell} to run")

    def run_all(self) -> None:
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self._wait(lambda: self._ran(self.cells.count() - 1), "all cells to run")

    def output(self, cell: int):
        return self.cells.nth(cell).locator(".jp-OutputArea-output")

    def read(self, cell: int):
        """The JSON that a cell prints, run now."""
        self.run(cell)
        return json.loads(self.output(cell).inner_text())

    def _wait(self, condition, what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {PATIENCE} s for {what}; the page says:\n{self.page.inner_text('body')[-2000:]}")
            self.page.wait_for_timeout(50)


@contextlib.contextmanager
def opened(browser, url: str, name: str, *, run_all: bool = True, **view):
    """A `Notebook` in a page of its own, run from top to bottom unless told otherwise; the page must raise no error until the end."""
    page, errors = browser.new_page(**view), []
    page.on("pageerror", lambda error: errors.append(error))  # playwright marks what it calls
    notebook = Notebook(page, url, name)
    if run_all:
        notebook.run_all()
    yield notebook
    assert errors == []
    page.close()


@contextlib.contextmanager
def lesson(folder: Path, name: str):
    """(one of the series, open without outputs in a JupyterLab of its own, the sources of its code cells)"""
    read = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs = []
    (folder / "lab").mkdir()
    with running_lab(folder / "lab") as url, running_browser() as browser:
        nbformat.write(read, folder / "lab" / "notebooks" / name)
        with opened(browser, url, name, run_all=False, viewport={"width": 1100, "height": 1300}) as notebook:
            yield notebook, [cell.source for cell in code]


def cell_of(sources: list[str], text: str) -> int:
    (found,) = [i for i, source in enumerate(sources) if text in source]
    return found


def shows(locator, text: str) -> None:
    """Wait for a text, a regular expression, somewhere in it."""
    locator.get_by_text(re.compile(text)).first.wait_for()


def screenshot(locator, name: str, folder: Path, most: int = 250_000) -> None:
    """Save a picture in `folder`, or where SCREENSHOTS says, of at most so many bytes."""
    path = Path(os.environ.get("SCREENSHOTS", folder)) / f"{name}.png"
    locator.screenshot(path=path)
    assert path.stat().st_size < most


def nothing_sticks_out(panel) -> bool:
    """Whether a panel is wide enough for all that is in it."""
    return panel.evaluate("all => [...all.querySelectorAll('*')].every(e => e.scrollWidth <= all.clientWidth)")
