"""The review panel, driven in Python: what is shown, what each click saves, where a new session goes on."""

import json

import pytest

from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.core.rows import fingerprint, to_messages, with_texts
from gemma_colab.data.report import check_rows
from gemma_colab.data.review import FILE, SIDE_BY_SIDE
from gemma_colab.ui.review import ReviewPanel

# Twelve ordinary answers, so that a style has a majority to stand out from.
TOPICS = "оплата доставка возврат гарантия обмен сертификат адрес размер посылка скидка курьер самовывоз".split()
USUAL = [
    {"instruction": f"Расскажите, как устроены {word}", "input": "", "output": f"Вы найдёте раздел «{word}» в личном кабинете."}
    for word in TOPICS
]
RIGHT = {"instruction": "Сколько идёт посылка?", "input": "", "output": "Вы получите её за три рабочих дня."}
WRONG = {"instruction": "сколько идёт посылка", "input": "", "output": "Доставка занимает целый месяц, подождите."}


def numbered(*rows):
    return [to_messages(row) | {"line": i + 2} for i, row in enumerate(rows)]


def saved(workspace):
    return json.loads((workspace.path / FILE).read_text(encoding="utf-8")) if workspace.has(FILE) else {}


def panel_of(rows, workspace, checks=None):
    return ReviewPanel(rows, check_rows(rows), workspace, checks)


def shown(panel):
    """The cards on the screen; the panel keeps others for larger cases."""
    return [card for card in panel.cards if card.widget in panel._box.children]


def click(panel, card, action):
    shown(panel)[card].buttons[action].click()


def test_a_contradiction_stands_side_by_side_and_every_click_is_saved_at_once(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG)
    panel = panel_of(rows, workspace, ["contradiction"])
    assert [case.rows for case in panel.cases] == [[0, 13]]
    assert [card.answer.value for card in shown(panel)] == [RIGHT["output"], WRONG["output"]]
    assert "line 2" in shown(panel)[0].head.value
    assert "line 15" in shown(panel)[1].head.value
    assert "contradiction" in shown(panel)[1].head.value
    assert "asked in line 2, line 15" in shown(panel)[1].head.value
    assert RIGHT["instruction"] in shown(panel)[0].question.value
    assert "0 of 2 decided" in panel.progress.value
    assert saved(workspace) == {}

    click(panel, 0, "keep")
    assert saved(workspace) == {fingerprint(rows[0]): {"action": "keep", "why": "contradiction", "checks": ["contradiction"]}}
    assert "1 of 2 decided" in panel.progress.value
    assert "kept" in shown(panel)[0].head.value
    click(panel, 1, "drop")
    assert saved(workspace)[fingerprint(rows[13])]["action"] == "drop"
    assert "2 of 2 decided" in panel.progress.value
    assert "All decided" in panel.message.value
    assert panel.review.apply(rows)[0] == rows[:13]


def test_an_edit_changes_the_answer_and_nothing_else(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG)
    panel = panel_of(rows, workspace, ["contradiction"])
    shown(panel)[1].answer.value = "За три рабочих дня."
    click(panel, 1, "edit")
    assert saved(workspace)[fingerprint(rows[13])]["new"] == {"messages[1]": "За три рабочих дня."}
    assert "edited" in shown(panel)[1].head.value
    assert panel.review.apply(rows)[0] == [*rows[:13], with_texts(rows[13], {"messages[1]": "За три рабочих дня."})]
    # taken back: the text is typed as it was, then kept
    shown(panel)[1].answer.value = WRONG["output"]
    click(panel, 1, "keep")
    assert panel.review.apply(rows)[0] == rows


@pytest.mark.parametrize(
    ("text", "action", "says"),
    [
        (None, "edit", "as it was"),
        ("  \n", "edit", "empty answer"),
        ("Другой текст.", "keep", "you changed this answer"),
    ],
)
def test_a_click_that_would_lose_something_says_so_and_saves_nothing(workspace, text, action, says):
    panel = panel_of(numbered(RIGHT, *USUAL, WRONG), workspace, ["contradiction"])
    if text is not None:
        shown(panel)[0].answer.value = text
    click(panel, 0, action)
    assert saved(workspace) == {}
    assert says in panel.message.value
    click(panel, 1, "drop")  # the message goes with the next click that works, and the text being written stays
    assert says not in panel.message.value
    assert shown(panel)[0].answer.value == (RIGHT["output"] if text is None else text)


def test_a_decided_case_gives_way_to_the_next_and_a_new_session_goes_on_there(workspace):
    odd = [{"instruction": f"Вопрос номер {word}", "input": "", "output": f"Вы увидите {{{word}}} здесь."} for word in TOPICS[:3]]
    rows = numbered(RIGHT, *USUAL, WRONG, *odd)
    panel = panel_of(rows, workspace, ["contradiction", "placeholder"])
    assert [case.rows for case in panel.cases] == [[0, 13], [14], [15], [16]]
    assert panel.previous.disabled
    click(panel, 0, "keep")
    assert panel.at == 0  # its twin is not decided yet
    click(panel, 1, "drop")
    assert panel.at == 1
    assert len(shown(panel)) == 1
    click(panel, 0, "drop")

    again = panel_of(rows, workspace, ["contradiction", "placeholder"])
    assert again.at == 2
    assert "Case 3 of 4" in again.progress.value
    assert "3 of 5 decided" in again.progress.value
    for _ in range(2):
        again.previous.click()
    assert ["kept" in shown(again)[0].head.value, "dropped" in shown(again)[1].head.value] == [True, True]
    click(again, 1, "keep")  # a change of mind stays at this case, where the other row may have to change too
    assert again.at == 0
    assert saved(workspace)[fingerprint(rows[13])]["action"] == "keep"
    for _ in range(5):
        again.next.click()
    assert again.at == 3
    assert again.next.disabled
    click(again, 0, "keep")  # the last one; the one still open is before it
    assert again.at == 2


def test_an_earlier_edit_is_shown_again(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG)
    panel = panel_of(rows, workspace, ["contradiction"])
    shown(panel)[0].answer.value = "За три дня."
    click(panel, 0, "edit")
    again = panel_of(rows, workspace, ["contradiction"])
    assert shown(again)[0].answer.value == "За три дня."
    assert "edited" in shown(again)[0].head.value
    assert RIGHT["output"] not in again.cards[0].question.value


def test_near_duplicates_stand_beside_their_twin_even_where_lines_repeat(workspace):
    """Rows made of one conversation share their line: the twin is then the one most alike."""
    long = "Клиент просит вернуть деньги за повреждённый товар и прикладывает фотографии упаковки, чека и самой вещи"
    twin = {"instruction": long, "input": "", "output": "Вы получите деньги в течение десяти дней после проверки."}
    near = twin | {"instruction": long + " сегодня"}
    rows = numbered(*USUAL, twin, near)
    rows[11]["line"] = rows[12]["line"]
    panel = panel_of(rows, workspace, ["near duplicate"])
    assert [case.rows for case in panel.cases] == [[12, 13]]
    assert "shown to compare" in panel.cards[0].head.value
    assert "like line 14" in panel.cards[1].head.value
    unnumbered = [{k: v for k, v in row.items() if k != "line"} for row in rows]
    assert [case.rows for case in panel_of(unnumbered, workspace, ["near duplicate"]).cases] == [[12, 13]]


def test_look_alikes_stand_beside_their_twin(workspace):
    long = "Клиент просит вернуть деньги за повреждённый товар и прикладывает фотографии упаковки, чека и самой вещи, заказ"
    one = {"instruction": f"{long} 12345", "input": "", "output": "Вы получите деньги в течение десяти дней после проверки."}
    rows = numbered(*USUAL, one, one | {"instruction": f"{long} 67890"})
    panel = panel_of(rows, workspace)
    (case,) = [case for case in panel.cases if "look-alike" in case.checks]
    assert case.rows == [12, 13]
    assert [case.rows for case in panel_of(rows, workspace, ["look-alike"]).cases] == [[12, 13]]


def test_a_card_names_the_place_as_its_notes_do(workspace):
    """Rows of a JSON list on one line have an item, others nothing but their number."""
    bare = [to_messages(row) for row in (RIGHT, *USUAL, WRONG, RIGHT)]
    for rows, places in (
        ([row | {"line": 1, "item": i + 1} for i, row in enumerate(bare)], ("item 1", "item 14", "item 15")),
        (bare, ("row 0", "row 13", "row 14")),
    ):
        heads = [card.head.value for card in shown(panel_of(rows, workspace, ["contradiction"]))]
        assert f"<b>{places[0]} (the same text in {places[2]}: decided together)</b>" in heads[0]
        assert f"<b>{places[1]}</b>" in heads[1]
        assert f"asked in {places[0]}, {places[1]}" in heads[1]
        assert all("line" not in head.replace("line-height", "") for head in heads)


def test_a_row_that_was_kept_still_stands_beside_the_one_it_contradicts(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG)
    report = check_rows(rows, kept={fingerprint(rows[0]): {"contradiction"}})
    assert [case.rows for case in ReviewPanel(rows, report, workspace, ["contradiction"]).cases] == [[0, 13]]


def test_rows_with_the_same_text_are_shown_once_since_one_decision_goes_for_both(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG, RIGHT)
    panel = panel_of(rows, workspace, ["contradiction"])
    assert [case.rows for case in panel.cases] == [[0, 13]]
    assert "the same text in line 16" in panel.cards[0].head.value


def test_a_question_asked_many_times_is_shown_in_parts(workspace):
    rows = numbered(*({"instruction": "Опишите товар", "input": "", "output": f"Вы выбрали: {i * 'а'}б."} for i in range(30)))
    panel = panel_of(rows, workspace, ["contradiction"])
    assert [len(case.rows) for case in panel.cases] == [SIDE_BY_SIDE, SIDE_BY_SIDE, 6]
    for _ in range(2):
        panel.next.click()
    assert len(shown(panel)) == 6
    assert len(panel.cards) == SIDE_BY_SIDE  # widgets are used again


def test_conversations_show_every_turn_and_edit_the_last_answer(workspace):
    def chat(last):
        turns = [("system", "Будьте кратки."), ("user", "Привет"), ("assistant", "Слушаю вас."), ("user", "Где мой заказ?")]
        return {"messages": [{"role": r, "content": c} for r, c in [*turns, ("assistant", last)]]}

    rows = numbered(chat("Вы увидите его завтра."), *USUAL, chat("Он потерян."))
    panel = panel_of(rows, workspace, ["contradiction"])
    assert [case.rows for case in panel.cases] == [[0, 13]]
    assert all(text in panel.cards[1].question.value for text in ("system", "Будьте кратки.", "Слушаю вас.", "Где мой заказ?"))
    assert panel.cards[1].answer.value == "Он потерян."
    panel.cards[1].answer.value = "Он найден."
    click(panel, 1, "edit")
    assert saved(workspace)[fingerprint(rows[13])]["new"] == {"messages[4]": "Он найден."}


def test_texts_are_escaped_and_the_span_is_marked(workspace):
    bad = "</td></textarea><script>alert(1)</script>"
    mixed = {"instruction": f"{bad} Где мой заkаз?", "input": "", "output": f"{bad} Вы увидите [ссылка] в письме."}
    report = check_rows(rows := numbered(*USUAL, mixed))
    panel = ReviewPanel(rows, report, workspace, ["mixed script", "placeholder"])
    (card,) = shown(panel)
    html = card.question.value
    assert "<mark>заkаз</mark>" in html
    assert "<mark>[ссылка]</mark>" in html
    assert "&lt;/td&gt;&lt;/textarea&gt;&lt;script&gt;" in html
    for widget in (card.question, card.head, panel.progress, panel.message):
        assert "<script" not in widget.value
        assert "</td" not in widget.value
    assert card.answer.value == mixed["output"]


def test_notes_of_checks_are_escaped_too(workspace):
    rows = numbered(*USUAL, RIGHT | {"output": "Вы увидите <имя> и {<b>} здесь."})
    card = shown(panel_of(rows, workspace, ["placeholder"]))[0]
    assert "placeholder</b>: &lt;имя&gt;" in card.head.value


def test_the_checks_of_the_default_are_those_that_need_a_person(workspace):
    rows = numbered(RIGHT, *USUAL, WRONG, RIGHT | {"instruction": "<b>Жирный</b> вопрос?", "output": "Ты увидишь его завтра."})
    panel = panel_of(rows, workspace)
    found = {check for case in panel.cases for check in case.checks}
    assert {"contradiction", "style: address"} <= found
    assert "HTML" not in found
    assert panel_of(rows, workspace, ["style"]).cases[0].checks == ["style: address"]
    assert panel_of(rows, workspace, ["HTML"]).cases[0].rows == [14]


def test_nothing_to_decide_is_said(workspace):
    panel = panel_of(numbered(*USUAL), workspace, ["contradiction", "refusal"])
    assert panel.cases == []
    assert "Nothing to decide" in panel.message.value
    assert panel.message in panel.widget.children
    assert "contradiction, refusal" in panel.message.value


def test_a_decision_that_cant_be_saved_is_not_passed_over(workspace, monkeypatch):
    def full(*_):
        raise WorkspaceError("<the disk is full>")

    panel = panel_of(numbered(RIGHT, *USUAL, WRONG), workspace, ["contradiction"])
    monkeypatch.setattr(workspace, "write_json", full)
    click(panel, 0, "keep")
    assert "Not saved" in panel.message.value
    assert "&lt;the disk is full" in panel.message.value


def test_wrong_arguments_are_named(workspace):
    rows = numbered(*USUAL)
    with pytest.raises(SettingsError, match=r"'contradictions' is not a finding; choose from .*contradiction"):
        panel_of(rows, workspace, ["contradictions"])
    with pytest.raises(SettingsError, match="about other rows"):
        ReviewPanel(rows[1:], check_rows(rows), workspace)


def test_a_notebook_shows_the_widget(workspace, monkeypatch):
    panel, calls = panel_of(numbered(*USUAL), workspace), []
    monkeypatch.setattr("gemma_colab.ui.review.display", calls.append)
    panel._ipython_display_()
    assert calls == [panel.widget]
