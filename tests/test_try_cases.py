"""tools/try_cases.py: one line for each file of a folder of other people's data."""

import shutil
import sys

from conftest import ROOT

from gemma_colab import data
from gemma_colab.core.workspace import samples

sys.path.insert(0, str(ROOT / "tools"))


def test_each_file_gets_a_line_and_a_traceback_is_a_failure(tmp_path, monkeypatch, capsys):
    import try_cases

    (tmp_path / "deep").mkdir()
    shutil.copy(samples() / "support_ru_raw.csv", tmp_path / "deep")
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "README.md").write_text("not a case")
    monkeypatch.setattr(sys, "argv", ["try_cases", str(tmp_path)])
    assert try_cases.main() == 0
    _, broken, raw_line, counts = capsys.readouterr().out.splitlines()
    assert broken.startswith("broken.jsonl")
    assert "refused" in broken
    rows_in, rows_out = map(int, raw_line.split("blocked")[1].split()[:2])
    assert rows_in > rows_out > 0
    assert "drop_exact_duplicates" in raw_line
    assert counts == "refused 1, blocked 1"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["README.md", "broken.jsonl", "deep", "support_ru_raw.csv"]

    def fails(*_, **__):
        raise KeyError("a fault\x1b[2J")

    monkeypatch.setattr(data, "prepare_rows", fails)
    assert try_cases.main() == 1
    said = capsys.readouterr().out
    assert "TRACEBACK 2" in said
    assert "\x1b" not in said
