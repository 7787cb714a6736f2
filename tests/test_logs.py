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
from gemma_colab.data.looking import AS_READ, question
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


def test_a_text_that_is_json_is_masked_whole(workspace, tmp_path):
    answers = ['{"ivan.petrov@mail.ru": "VIP", "+7 912 345-67-89": "Иван"}', '{"card": "4111 1111 1111 1111", "card": "нет"}']
    answers += [f"Ответ номер {n} о доставке {'абвгдежзиклмнопрстуфх'[n]}" for n in range(20)]
    rows = [
        {"instruction": f"Вопрос о заказе {'абвгдежзиклмнопрстуфхцч'[n] * 9}", "output": text} for n, text in enumerate(answers)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    prepare_rows(path, workspace, also=["mask_personal_data"])
    log = workspace.read_jsonl("rows/cleaning_log.jsonl")
    assert [line["redacted"] for line in log] == [True, True]
    assert not re.findall("ivan.petrov|345-67-89|4111", (workspace.path / "rows" / "cleaning_log.jsonl").read_text())


def test_no_log_holds_the_checksum_of_texts_that_were_masked(workspace, tmp_path):
    rows = [
        {
            "instruction": f"Где мой заказ {'абвгдежзиклмнопрстуфхцч'[n // 2] * 9}?",
            "output": f"Звоните +7 912 345-67-{n // 2 + 10}",
        }
        for n in range(46)
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    prepare_rows(path, workspace, also=["mask_personal_data"])
    dropped = [line for line in workspace.read_jsonl("rows/cleaning_log.jsonl") if line["step"] == "drop_exact_duplicates"]
    assert len(dropped) == 23
    assert not any(AS_READ in json.loads(line["before"]) for line in dropped)
    assert not any("redacted" in line for line in dropped)


def test_an_advice_quotes_no_contact():
    rows = [
        to_messages({"instruction": f"Как вас найти, {n}?", "output": "Пишите {{ivan.petrov@mail.ru}} или {8 912 345-67-89}"})
        for n in range(4)
    ]
    report = check_rows(rows)
    assert "placeholder in use" in {finding.check for finding in report.findings}
    assert not re.findall(r"ivan\.petrov|345-67-89\}: fine", f"{report}{report.page().data}{report.to_dict()}".replace("{{", ""))
