"""What preparing a dataset writes beside the rows, and shows: personal data masked, files for their owner alone."""

import json
import os
import re
import stat
from pathlib import Path

import pandas as pd
import pytest

from gemma_colab.core.errors import BlockedError, SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.core.workspace import private
from gemma_colab.data.cleaning import clean, summarize, undo
from gemma_colab.data.looking import question
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows
from gemma_colab.handover.rows import prepare_rows, save_rows
from gemma_colab.ui import text_table

PHONE, MAIL = "8916555{:04d}", "klient{}@mail.ru"


@pytest.fixture
def private_file(support_rows, tmp_path):
    """100 rows with a phone and an e-mail each; one stands there twice, one is broken, one has no answer."""
    rows = [
        {
            "question": f"<b>{question(row)}</b>\nМой телефон {PHONE.format(i)}, ряд {i}",
            "answer": answer(row),
            "label": MAIL.format(i % 4),
        }
        for i, row in enumerate(support_rows[2:102])
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in [*rows, rows[0], rows[1] | {"answer": None}]]
    path = tmp_path / "private.jsonl"
    path.write_text("\n".join([*lines, lines[2][:-30]]), encoding="utf-8")
    return path


def leaked(path):
    return re.findall(r"8916555\d+|klient\d+@", path.read_text("utf-8"))


HOW = {"also": ["html_to_text", "mask_personal_data"], "accept": ["unreadable row"]}


def test_what_is_changed_or_left_out_is_logged_with_personal_data_masked(workspace, private_file):
    report, said = prepare_rows(private_file, workspace, **HOW)
    files = sorted((workspace.path / "rows").iterdir())
    assert {path.name for path in files} == {
        *(f"{name}.jsonl" for name in ("cleaning_log", "review_log", "aside", "too_long", "train", "validation", "test")),
        "report.json",
        "source.json",
    }
    assert not any(map(leaked, files))
    log, aside = (workspace.read_jsonl(f"rows/{name}.jsonl") for name in ("cleaning_log", "aside"))
    assert {line["step"] for line in log} == {"html_to_text", "mask_personal_data", "drop_exact_duplicates"}
    masked = [line for line in log if "redacted" in line]  # what was dropped had been masked before
    assert {line["step"] for line in masked} == {"html_to_text", "mask_personal_data"}
    assert all(line["redacted"] for line in [*masked, *aside])
    assert "[телефон]" in log[0]["before"]
    assert json.loads(log[-1]["before"])["label"] == "[e-mail 1]"
    assert [bad["line"] for bad in aside] == [102, 103]
    assert f"personal data are masked in {len(masked) + len(aside)} lines of the logs in rows/" in said
    assert "originals=True (--originals)" in said
    assert not leaked_text(f"{report}{report.page().data}{said}")
    with pytest.raises(SettingsError, match=r"personal data are masked in \d+ lines of this log"):
        undo([], pd.DataFrame(log))


def leaked_text(text):
    return re.findall(r"8916555\d+|klient\d+@", text)


def test_the_originals_are_kept_when_asked_in_files_that_say_so(workspace, private_file):
    before = read_rows(private_file, on_bad="aside")
    said = prepare_rows(private_file, workspace, originals=True, **HOW)[1]
    assert "unmasked_*.jsonl in rows/ hold personal data" in said
    lines = workspace.read_jsonl("rows/unmasked_cleaning_log.jsonl")
    assert {next(iter(line)) for line in lines} == {"unmasked"}
    cleaned, _ = clean(before.rows, also=HOW["also"])
    assert undo(cleaned, pd.DataFrame(lines)) == before.rows
    assert workspace.read_jsonl("rows/unmasked_aside.jsonl")[0]["content"] == before.aside[0]["content"]
    prepare_rows(private_file, workspace, **HOW)  # not asked again: of another file, perhaps
    assert not list((workspace.path / "rows").glob("unmasked_*"))


def test_a_blocked_file_is_logged_alike(workspace, private_file):
    with pytest.raises(BlockedError):
        prepare_rows(private_file, workspace, also=HOW["also"])
    files = sorted((workspace.path / "blocked").iterdir())
    assert len(files) == 6
    assert not any(map(leaked, files))


def test_logs_that_a_notebook_saves_are_masked_too(workspace, private_file, capsys):
    rows, log = clean(read_rows(private_file, on_bad="aside").rows, also=HOW["also"])
    save_rows({"train": rows}, workspace, cleaning_log=log)
    assert not leaked(workspace.path / "rows" / "cleaning_log.jsonl")
    assert "masked in" in capsys.readouterr().out
    shown = text_table(log.groupby("step").first().reset_index()).data
    assert not leaked_text(shown)
    assert "[телефон]" in shown
    assert leaked_text(text_table(log, masked=False).data)


# ---------------------------------------------------------------------------------------------------- what is shown
def shown_row(text, **more):
    return to_messages({"instruction": "Как быть?", "output": text} | more) | {"line": 1}


def test_a_page_marks_the_mask_in_its_place_and_never_shows_half_of_a_find():
    text = "слово " * 400 + f"Пишите {MAIL.format(7)} или {PHONE.format(7)}. " + "слово " * 400
    page = check_rows([shown_row(text), shown_row(f"`{MAIL.format(8)}`", label=PHONE.format(8))]).page().data
    assert not leaked_text(page)
    assert re.search(r"Пишите <mark>\[почта\]</mark> или <mark>\[телефон\]</mark>\. слово", page)
    assert "beside: label:</span> <mark>[phone]</mark>" in page
    html = "<b>" + "слово " * 58 + PHONE.format(9) + " слово" * 100  # the page would be cut within the number
    assert not re.search(
        r"8916|5550009", check_rows([shown_row(html), shown_row("<i>" + f"{PHONE.format(9)} " * 60)]).page().data
    )


def test_an_example_of_what_a_step_does_is_masked():
    rows = [shown_row(f"<p>{PHONE.format(1)}</p> да")]
    said = [f.what_to_do for f in summarize(rows, clean(rows, ["html_to_text", "mask_personal_data"])[1])]
    assert said == [
        "such as line 1: answer “<p>[телефон]</p> да” became “[телефон]\n да”",
        "such as line 1: answer became “[телефон]\n да”",
    ]


def test_what_the_terminal_says_of_a_bad_row_is_masked(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "\n".join(
            [json.dumps({"question": f"Что {i}?", "answer": "Это."}) for i in range(9)]
            + [json.dumps({"question": [MAIL.format(1)], "answer": "а"})]
        )
    )
    found = read_rows(tmp_path / "a.jsonl", on_bad="aside")
    assert leaked_text(str(found.aside[0]["content"]))  # what `undo` and the owner need
    assert not leaked_text(found.aside[0]["sentence"])
    report = check_rows(found.rows, aside=found.aside)
    assert not leaked_text(f"{report}{report.page().data}")


# ---------------------------------------------------------------------------------------------------- whose the files are
def test_what_a_workspace_writes_is_its_owners_from_the_first_byte(workspace, monkeypatch):
    modes, replace = [], Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda part, target: modes.append(stat.S_IMODE(part.stat().st_mode)) or replace(part, target)
    )
    monkeypatch.setattr(os, "chmod", None)  # afterwards would be too late
    mask = os.umask(0)
    try:
        path = workspace.write_jsonl("rows/cleaning_log.jsonl", [{"before": MAIL}])
        with open(workspace.path / "answers.jsonl", "a", opener=private) as f:
            f.write("x")
            modes.append(stat.S_IMODE(os.fstat(f.fileno()).st_mode))
    finally:
        os.umask(mask)
    assert [*modes, stat.S_IMODE(path.stat().st_mode)] == [0o600] * 4  # workspace.json, too
