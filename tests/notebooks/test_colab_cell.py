"""The first cell of each notebook installs and mounts on Colab, survives a refused Drive, and does nothing elsewhere."""

import sys
import types
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent.parent / "notebooks").glob("0*.ipynb"))


def run_first_cell(path, monkeypatch, *, colab: bool, refuse: bool = False) -> list[str]:
    """Run the cell in IPython with a stand-in for google.colab and for %pip; returns what it called."""
    calls = []

    def mount(folder):
        calls.append(f"mount {folder}")
        if refuse:
            raise ValueError("mount failed")

    shell = InteractiveShell.instance()
    shell.register_magic_function(lambda line: calls.append(f"pip {line}"), "line", "pip")
    if colab:
        drive = types.SimpleNamespace(mount=mount)
        monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
        sys.modules["google.colab"].drive = drive
    cell = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    shell.run_cell(cell.source).raise_error()
    return calls


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_first_cell(path, monkeypatch, capsys):
    assert run_first_cell(path, monkeypatch, colab=False) == []
    install, mounted = run_first_cell(path, monkeypatch, colab=True)
    extra = "[gemma-270m]" * (path.stem == "00_quickstart")
    assert install.startswith(f'pip install -q "gemma_colab{extra} @ git+https://github.com/')
    assert mounted == "mount /content/drive"
    assert len(run_first_cell(path, monkeypatch, colab=True, refuse=True)) == 2
    assert "No Drive (mount failed)" in capsys.readouterr().out
