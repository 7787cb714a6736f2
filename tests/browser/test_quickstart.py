"""What an analyst does with notebook 00 and an Excel file: edits two cells, presses Run all; and what the notebook does with a bad file.

SCREENSHOTS=folder pytest tests/browser/test_quickstart.py saves the pictures there.
"""

import datetime
import json
import re
import time

import openpyxl
import pytest
from lab import cell_of, lesson, screenshot, shows

from gemma_colab.core.rows import answer
from gemma_colab.core.workspace import Workspace
from gemma_colab.data.looking import question

PATIENCE = 300  # seconds for what takes one minute on an idle machine
ERROR = re.compile(r"^\s*(-{20,}|\w+Error: )")  # how the output of a cell that failed begins
COLUMNS = ["№", "Дата", "Клиент", "Обращение", "Решение", "Закрыл"]
MAPPING = {"instruction": "Обращение", "output": "Решение"}


def excel(path, support_rows, bad=()):
    """Some eighty rows with columns of natural names, an empty answer and a row that stands twice. bad: answers that are no texts, such as a formula."""
    book = openpyxl.Workbook()
    book.active.append(COLUMNS)
    pairs = [(question(row), answer(row)) for row in support_rows[:84]]
    pairs += [pairs[3], ("Где мой заказ №55501? Жду вторую неделю.", ""), *(("Когда привезёте?", one) for one in bad)]
    for number, pair in enumerate(pairs, 1):
        day = datetime.date(2026, 3, 1 + number % 28)
        book.active.append([number, day, "Анна К.", *pair, "Олег"])
    book.save(path)
    return path


@pytest.fixture
def analyst(tmp_path, monkeypatch):
    """(notebook 00 open in JupyterLab, its workspace for own files, the sources of its code cells)"""
    monkeypatch.setenv("GEMMA_COLAB_WORKSPACE", str(tmp_path / "workspace"))
    with lesson(tmp_path, "00_quickstart.ipynb") as (notebook, sources):
        yield notebook, Workspace(tmp_path / "workspace" / "my_model"), sources


def edit(notebook, cell, line, new):
    """Put a line of a cell in the place of the one that begins so."""
    editor = notebook.cells.nth(cell).locator(".jp-InputArea-editor")
    editor.get_by_text(re.compile(f"^{re.escape(line)}")).first.click()
    notebook.page.keyboard.press("Home")
    notebook.page.keyboard.press("Shift+End")
    notebook.page.keyboard.insert_text(new)


def failed(notebook):
    return notebook.page.locator(".jp-OutputArea-output").filter(has_text=ERROR)


def run_all(notebook, until, what):
    notebook.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    end = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < end, (
            f"waited {PATIENCE} s for {what}; the page says:\n{notebook.page.inner_text('body')[-3000:]}"
        )
        notebook.page.wait_for_timeout(200)


@pytest.mark.long
def test_two_cells_and_run_all_end_with_an_own_model(analyst, support_rows, tmp_path):
    notebook, work, sources = analyst
    path = excel(tmp_path / "обращения.xlsx", support_rows)
    file_cell, goal_cell, answers_cell = (cell_of(sources, text) for text in ("FILE, UPLOAD", "EXPORT =", "side_by_side("))
    edit(notebook, file_cell, "FILE, UPLOAD", f"FILE, UPLOAD = {str(path)!r}, False")
    edit(notebook, file_cell, "mapping", f"mapping = {MAPPING}")
    edit(notebook, goal_cell, "EXPORT", 'EXPORT = ["adapter"]')
    last = len(sources) - 1
    run_all(notebook, lambda: notebook._ran(last) or failed(notebook).count(), "the last cell")
    assert failed(notebook).count() == 0

    assert (work.path / "adapter" / "adapter_model.safetensors").stat().st_size > 100_000
    assert work.read_json("rows/source.json") == {"file": path.name, "sample": False}
    assert not (work.path.parent / "quickstart").exists()
    table = notebook.output(answers_cell).locator("table").first
    assert table.locator("tr").count() == 11  # a head, and ten answers
    asked = {question(row) for row in work.read_jsonl("rows/test.jsonl")}
    shown = table.locator("tr td:first-child").all_inner_texts()
    assert {" ".join(text.split()) for text in shown} <= {" ".join(text.split()) for text in asked}
    # Time and memory stand above the training.
    cost = notebook.output(cell_of(sources, "= trial_run(")).last.inner_text()
    assert re.search(r"memory: \d+\.\d GiB .*\ntime: about \d+\.\d minutes", cost)
    shows(notebook.output(cell_of(sources, "ChatPanel(")), "tuned")
    home = cell_of(sources, "take_home(")
    shows(notebook.output(home), str(work.path / "adapter"))
    shows(notebook.output(last), "Only a merged model")
    assert "there is nothing to count" in notebook.output(cell_of(sources, "mixed_up")).first.inner_text()
    for name, cell in {"columns": file_cell, "answers": answers_cell, "home": home}.items():
        screenshot(notebook.cells.nth(cell), f"quickstart_{name}", tmp_path, 900_000)


@pytest.mark.long
def test_a_bad_file_stops_it_with_what_was_found_and_goes_on_by_name(analyst, support_rows, tmp_path):
    notebook, work, sources = analyst
    path = excel(tmp_path / "обращения.xlsx", support_rows, bad=["=VLOOKUP(A2,B:C,2)", "#N/A"])
    file_cell, rows_cell = cell_of(sources, "FILE, UPLOAD"), cell_of(sources, "= prepare_rows(")
    error = failed(notebook)

    # Columns that nobody knows: a guess, and a stop.
    edit(notebook, file_cell, "FILE, UPLOAD", f"FILE, UPLOAD = {str(path)!r}, False")
    run_all(notebook, error.count, "a stop at the columns")
    guess = notebook.output(file_cell).first
    assert notebook.output(file_cell).count() == 2  # the page, once, and a sentence
    assert "so this is a guess by what the columns hold" in guess.inner_text()
    assert guess.locator("tr").count() == 4
    told = guess.locator("code").inner_text()
    assert json.loads(told.removeprefix("mapping=").replace("'", '"')) == MAPPING
    screenshot(notebook.cells.nth(file_cell), "quickstart_guess", tmp_path, 900_000)
    assert not any(work.path.iterdir())

    # The line from the page, and the rows are bad: what was found, one sentence, and nothing below has run.
    edit(notebook, file_cell, "mapping", told)
    run_all(notebook, lambda: notebook._ran(rows_cell), "a stop at the rows")
    assert notebook.output(rows_cell).first.locator("details").filter(has_text="unreadable row · 2 rows").count() == 1
    said = error.inner_text().strip()
    assert said.startswith("BlockedError: ")
    assert len(said.splitlines()) == 1
    (accept,) = re.findall(r"accept=\[.*?\]", said)
    screenshot(notebook.cells.nth(rows_cell), "quickstart_blocked", tmp_path, 900_000)
    assert [notebook._ran(cell) for cell in range(rows_cell + 1, len(sources))] == [0] * (len(sources) - rows_cell - 1)
    assert not any(map(work.has, ("rows", "adapter", "checkpoints")))
    assert not (work.path.parent / "quickstart").exists()

    # By its name it goes on.
    edit(notebook, file_cell, "accept", accept)
    for cell in (file_cell, rows_cell):
        notebook.run(cell)
    assert error.count() == 0
    assert work.read_json("rows/source.json") == {"file": path.name, "sample": False}
    assert len(work.read_jsonl("rows/train.jsonl")) > 50
