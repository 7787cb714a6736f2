"""What is taken home at the end of the quick start: several forms in one table, and on Colab one zip file for the browser."""

import sys
import types
from zipfile import ZipFile

import pytest

from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.export import take_home
from gemma_colab.handover import take_home as module


@pytest.fixture
def exports(workspace, monkeypatch):
    """The calls of `export_workspace`, which writes a little of each form."""
    calls = []

    def export(work, form, *, rows):
        calls.append((form, rows))
        work.write_text("gguf/model-q8_0.gguf" if form == "gguf" else f"{form}/weights", form)
        made = {form: {"MiB": 1.234} | ({"file": "model-q8_0.gguf", "not_compared": "no llama.cpp"} if form == "gguf" else {})}
        return made | ({"sentence": "4 of 4 answers equal"} if form == "merged" else {})

    monkeypatch.setattr(module, "export_workspace", export)
    return calls


def test_each_form_has_a_line_with_where_it_is(workspace, exports):
    table = take_home(workspace, "adapter", "merged", "gguf", rows=4)
    assert exports == [("adapter", 4), ("merged", 4), ("gguf", 4)]
    assert table["compared"].to_dict() == {
        "adapter": "as it was trained",
        "merged": "4 of 4 answers equal",
        "gguf": "no llama.cpp",
    }
    assert table.loc["gguf", "path"] == str(workspace.path / "gguf" / "model-q8_0.gguf")
    assert table.loc["merged", "MiB"] == 1.2
    assert list(take_home(workspace).index) == []


def test_on_colab_one_zip_goes_to_the_browser(workspace, exports, monkeypatch):
    downloaded = []
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=downloaded.append)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    take_home(workspace, "merged", "gguf")
    (path,) = downloaded
    assert path.endswith(f"{workspace.path.name}.zip")
    assert not path.startswith(str(workspace.path))  # the workspace may be on a Drive
    assert sorted(ZipFile(path).namelist()) == ["gguf/model-q8_0.gguf", "merged/weights"]


def test_a_link_out_of_the_workspace_is_not_packed(workspace, exports, monkeypatch, tmp_path):
    colab = types.ModuleType("google.colab")
    colab.files = types.SimpleNamespace(download=lambda path: pytest.fail("it was sent"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    (tmp_path / "id_rsa").write_text("secret")
    workspace.write_text("merged/weights", "")
    (workspace.path / "merged" / "notes.txt").symlink_to(tmp_path / "id_rsa")
    with pytest.raises(WorkspaceError, match=r"notes\.txt is a link to .*id_rsa, outside the workspace; delete the link"):
        take_home(workspace, "merged")


def test_a_form_that_is_none_is_refused(workspace):
    with pytest.raises(SettingsError, match="to='zip' must be one of adapter, merged"):
        take_home(workspace, "zip")
