"""The blind review and the chat in a real JupyterLab, with real keys. Skipped, with the reason, where a part of it is missing.

SCREENSHOTS=docs pytest tests/browser/test_blind_and_chat.py saves their pictures in docs/; use JupyterLab 4 for it.
"""

import csv
import re

import pytest
from lab import nothing_sticks_out, opened, running_browser, running_lab, screenshot, shows, write_notebook

EVIL = "<img src=x onerror='window.hacked = 1'> <b>жирный</b> **звёзды** &lt; {{ 7 * 7 }}"
START = """
import json, time
import pandas as pd
from gemma_colab.ui import BlindPanel, ChatPanel
from gemma_colab.core.workspace import Workspace

workspace = Workspace("work")
EVIL = {evil!r}
answers = pd.DataFrame([
    dict(question=f"Вопрос {{i}}? " + EVIL, wanted=f"Образец {{i}}", base=f"Ответ один {{i}} " + EVIL, tuned=f"Ответ два {{i}}")
    for i in range(8)
])

def parrot(turns):
    time.sleep(0.8)
    if "fall over" in turns[-1]["content"]:
        raise ValueError("no <b>memory</b> left\\nsecond line")
    return f"{{len(turns)}}: " + turns[-1]["content"] + " " + EVIL
"""
CELLS = [
    START.format(evil=EVIL),
    "panel = BlindPanel(answers, workspace)\npanel",
    "chat = ChatPanel({'base': parrot, 'tuned': lambda turns: turns[-1]['content'][::-1]})\nchat",
    "print(json.dumps({name: chat.turns(name) for name in chat.talks}))",
]
BLIND, CHAT, READ = 1, 2, 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with running_lab(folder) as url, running_browser() as browser:
        yield folder / "notebooks", url, browser


@pytest.fixture
def notebook(lab, request):
    folder, url, browser = lab
    (folder / request.node.name).mkdir()
    write_notebook(folder / request.node.name / "evaluate.ipynb", CELLS)
    name = f"{request.node.name}/evaluate.ipynb"
    with opened(browser, url, name, viewport={"width": 1100, "height": 1800}) as notebook:
        notebook.folder = folder / request.node.name
        yield notebook
        assert notebook.page.evaluate("window.hacked === undefined")


def saved(notebook) -> list[dict]:
    """The lines of the CSV, by the time the panel has gone on."""
    (path,) = (notebook.folder / "work" / "review").glob("*.csv")
    with path.open(encoding="utf-8-sig", newline="") as f:
        return list(csv.DictReader(f))


def line(output):
    """The one-line field that takes Enter."""
    return output.locator("textarea[rows='1']")


def cells(notebook) -> list[str]:
    return notebook.page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.type)")


def test_a_blind_review_by_keyboard_alone_survives_a_new_start_and_is_opened(notebook):
    page, panel = notebook.page, notebook.output(BLIND)
    shows(panel, "Row 1 of 8")
    assert not (notebook.folder / "work" / "review").exists()
    body = panel.inner_text()
    assert "base" not in body
    assert "tuned" not in body
    assert EVIL in panel.evaluate("e => e.textContent")

    # Marks and notes with Tab and Space, the choice with a digit and Enter.
    panel.get_by_role("button", name="yes").first.focus()
    page.keyboard.press("Space")
    shows(panel, "Row 1 of 8")
    panel.locator("textarea[rows='2']").focus()
    page.keyboard.type("=1+1, но вежливо", delay=5)
    page.keyboard.press("Tab")  # to the four buttons, and on to the line
    for _ in range(4):
        page.keyboard.press("Tab")
    assert line(panel).evaluate("e => e === document.activeElement")
    page.keyboard.type("1")
    page.keyboard.press("Enter")
    shows(panel, "Row 2 of 8")
    (first,) = saved(notebook)
    assert first["choice"] == "left"
    assert first["left_correct"] == "yes"
    assert first["notes"] == "'=1+1, но вежливо"
    assert line(panel).input_value() == ""

    # The focus stays in the line, so one goes on typing; as fast as a machine, too.
    for keys, row in (("2", 3), ("3", 4), ("4", 5)):
        page.keyboard.type(keys)
        page.keyboard.press("Enter")
        shows(panel, f"Row {row} of 8")
    assert [row["choice"] for row in saved(notebook)] == ["left", "right", "same", "both bad"]
    page.keyboard.type("7\n")
    shows(panel, "Not known: ?'7'")
    page.keyboard.type("0\n")
    shows(panel, "you chose: both bad")
    page.keyboard.type("2\n")  # another mind
    shows(panel, "Changed to: ?right is better")
    page.keyboard.type("\n")
    shows(panel, "Row 5 of 8")
    assert [row["choice"] for row in saved(notebook)] == ["left", "right", "same", "right"]

    # A button with Enter, and with Space; JupyterLab must not take the keys for itself.
    before = cells(notebook)
    panel.get_by_role("button", name=re.compile("Left is better")).focus()
    page.keyboard.press("Enter")
    shows(panel, "Row 6 of 8")
    page.keyboard.press("Space")
    shows(panel, "Row 7 of 8")
    assert cells(notebook) == before

    # The cell once more: it goes on where it stopped, and shows the first row as it was.
    shown = panel.inner_text()
    notebook.cells.nth(BLIND).locator(".jp-InputArea-editor").click()
    page.wait_for_selector(".jp-Notebook.jp-mod-editMode", state="attached")  # it was in a field of the panel until now
    notebook.run(BLIND)
    panel = notebook.output(BLIND)
    shows(panel, "Row 7 of 8")
    assert panel.inner_text() == shown
    panel.get_by_role("button", name="Show the names").click()
    shows(panel, "Sure\\? ?2 rows are undecided")
    assert "tuned" not in panel.inner_text()
    panel.get_by_role("button", name="Show the names").click()
    shows(panel, "tuned was preferred in [0-5] of 5 rows with a preference .*too few rows to tell")
    shows(panel, "(left|right): tuned")
    assert panel.get_by_role("button", name=re.compile("Left is better")).count() == 0
    assert panel.get_by_role("button", name="yes").first.is_disabled()
    assert [row["choice"] for row in saved(notebook)] == ["left", "right", "same", "right", "left", "left"]


def test_a_talk_with_two_contestants_side_by_side(notebook):
    page, chat = notebook.page, notebook.output(CHAT)
    line(chat).click()
    page.keyboard.type("привет как дела 12345\n")  # without a pause between the last letter and Enter
    shows(chat, "asking base… \\(1 of 2\\)")
    shows(chat, r"answered in: base \d\.\d s, tuned \d\.\d s")
    assert line(chat).input_value() == ""
    assert line(chat).evaluate("e => e === document.activeElement")
    # typed while the first answer is awaited: nothing is lost, nothing is said twice
    page.keyboard.type("второй\n")
    shows(chat, "asking base")
    page.keyboard.type("третий <b>раз</b>\n")
    shows(chat, re.escape("5: третий <b>раз</b> " + EVIL))
    shows(chat, "answered in")
    talks = notebook.read(READ)
    said = ["привет как дела 12345", "второй", "третий <b>раз</b>"]
    assert [turn["content"] for turn in talks["base"][::2]] == said
    assert [turn["content"] for turn in talks["tuned"][1::2]] == [text[::-1] for text in said]
    assert chat.locator("b:has-text('жирный'), b:has-text('раз')").count() == 0

    line(chat).click()
    page.keyboard.type("please fall over")
    page.wait_for_timeout(500)  # the hand goes to the mouse; a click may overtake letters, which Enter can't
    chat.get_by_role("button", name="Send").click()
    shows(chat, "No answer: ?no <b>memory</b> left")
    assert "second line" not in chat.inner_text()
    shows(chat, "answered in: tuned")
    assert [len(turns) for turns in notebook.read(READ).values()] == [6, 8]
    # the end of a long talk is what one sees
    assert chat.get_by_text("revo llaf esaelp").evaluate("e => e.getBoundingClientRect().bottom") < page.evaluate("innerHeight")
    chat.get_by_role("button", name="Clear").click()
    shows(chat, "Nothing said yet")
    assert notebook.read(READ) == {"base": [], "tuned": []}


PICTURES = """
rows = [
    ("Здравствуйте! Заказ №48213 не пришёл, где он?", "Где заказ №48213, видно в разделе «Мои заказы». Если статус не меняется два дня, напишите: займётся старший специалист.",
     "Ваш заказ в пути. Ожидайте.", "Статус заказа №48213 виден в разделе «Мои заказы». Если он не меняется, передадим вопрос старшему специалисту."),
    ("Можно ли вернуть чайник без коробки?", "Да, в течение 14 дней, если чайник цел.",
     "Нет, вернуть товар без упаковки нельзя, к сожалению, таковы правила магазина.", "Да, вы можете вернуть чайник в течение 14 дней."),
] + [(f"Как оплатить заказ, способ {i}?", "", f"Картой или наличными, {i}.", f"Вы можете оплатить картой, {i}.") for i in range(18)]
answers = pd.DataFrame(rows, columns=["question", "wanted", "base", "tuned"])
panel = BlindPanel(answers, Workspace("pictures"), seed=3)
first = next(i for i, row in enumerate(panel.review.rows) if "48213" in row.question)
panel.go(first)
panel.review.decide(first, left_correct="yes", left_tone="no", right_correct="yes", right_tone="yes", notes="справа вежливее")
panel.go(first)
panel
"""
OPENED = """
done = BlindPanel(answers, Workspace("opened"), seed=3)
for i, row in enumerate(done.review.rows):
    done.review.decide(i, choice=["left", "right", "same", "left", "both bad"][i % 5], left_correct="yes", right_correct="no")
done.review.open_mapping()
done = BlindPanel(answers, Workspace("opened"))
done
"""
TALK = """
talk = ChatPanel({"base": lambda turns: "Заказ в пути." if len(turns) < 2 else "Я не знаю, обратитесь в поддержку по телефону.",
                  "tuned": lambda turns: "Откройте раздел «Мои заказы»: там видно, где посылка. Если назовёте номер, передам вопрос дальше." if len(turns) < 2
                  else "О заказе №48213 спросим старшего специалиста, ответ будет в течение 24 часов."})
talk.ask("Где мой заказ?")
talk.ask("Номер 48213, жду уже неделю.")
talk
"""

REVIEWED = """
from gemma_colab import samples
from gemma_colab.data import check_rows, clean, read_rows
from gemma_colab.ui import ReviewPanel
rows = clean(read_rows(samples() / "support_ru_raw.csv", on_bad="aside").rows)[0]
ReviewPanel(rows, check_rows(rows), Workspace("review"), checks=["contradiction"])
"""


def test_the_panels_are_wide_enough_for_what_they_say_in_light_and_dark(lab, tmp_path):
    folder, url, browser = lab
    write_notebook(folder / "pictures.ipynb", [START.format(evil=EVIL), PICTURES, OPENED, TALK, REVIEWED])
    view, panels = (
        {"viewport": {"width": 1100, "height": 2400}, "device_scale_factor": 2},
        ("blind_panel", "blind_result", "chat_panel", "review_panel"),
    )
    with opened(browser, url, "pictures.ipynb", **view) as notebook:
        for theme in ("Light", "Dark"):
            notebook.page.evaluate(
                f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
            )
            light = "true" if theme == "Light" else "false"
            notebook.page.wait_for_selector(f"body[data-jp-theme-light={light}]", state="attached")
            for cell, (name, text) in enumerate(
                zip(panels, ("48213", "fair coin", "answered in", "contradiction"), strict=True), 1
            ):
                panel = notebook.output(cell).locator(".widget-vbox").first
                shows(panel, text)
                notebook.page.wait_for_timeout(300)  # the theme's colors
                assert nothing_sticks_out(panel)
                screenshot(panel, name + "_dark" * (theme == "Dark"), tmp_path)
