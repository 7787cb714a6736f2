"""The review panel, driven in Python: what is shown, what each click saves, where a new session goes on."""

import json

import pytest

from gemma_colab.core.errors import SettingsError, WorkspaceError
from gemma_colab.core.rows import answer
from gemma_colab.data.looking import fingerprint, with_texts
from gemma_colab.data.report import check_rows
from gemma_colab.data.review import FILE, SIDE_BY_SIDE
from gemma_colab.ui import ReviewPanel


def row(asked, answered):
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


# Twelve ordinary answers, so that a style has a majority to stand out from.
TOPICS = "оплата доставка возврат гарантия обмен сертификат адрес размер посылка скидка курьер самовывоз".split()
USUAL = [row(f"Расскажите, как устроены {word}", f"Вы найдёте раздел «{word}» в личном кабинете.") for word in TOPICS]
RIGHT = row("Сколько идёт посылка?", "Вы получите её за три рабочих дня.")
WRONG = row("сколько идёт посылка", "Доставка занимает целый месяц, подождите.")
LONG = "Клиент просит вернуть деньги за повреждённый товар и прикладывает фотографии упаковки, чека и самой вещи, заказ"
PAID = "Вы получите деньги в течение десяти дней после проверки."


def numbered(*rows):
    return [row | {"line": i + 2} for i, row in enumerate(rows)]


def saved(workspace):
    return json.loads((workspace.path / FILE).read_text(encoding="utf-8")) if workspace.has(FILE) else {}


def panel_of(rows, workspace, checks=None):
    return ReviewPanel(rows, check_rows(rows), workspace, checks)


def cases(panel):
    return [case.rows for case in panel.cases]


def shown(panel):
    """The cards on the screen; the panel keeps others for larger cases."""
    return [card for card in panel.cards if card.widget in panel._box.children]


def click(panel, card, action):
    shown(panel)[card].buttons[action].click()


@pytest.fixture
def rows():
    return numbered(RIGHT, *USUAL, WRONG)


@pytest.fixture
def panel(rows, workspace):
    return panel_of(rows, workspace, ["contradiction"])


def test_a_contradiction_stands_side_by_side_and_every_click_is_saved_at_once(panel, rows, workspace):
    assert cases(panel) == [[0, 13]]
    one, other = shown(panel)
    assert (one.answer.value, other.answer.value) == (answer(RIGHT), answer(WRONG))
    assert "line 2" in one.head.value
    for said in ("line 15", "contradiction", "asked in line 2, line 15"):
        assert said in other.head.value
    assert "Сколько идёт посылка?" in one.question.value
    assert "0 of 2 decided" in panel.place.value
    assert saved(workspace) == {}

    click(panel, 0, "keep")
    kept = {"action": "keep", "why": "contradiction", "checks": ["contradiction"], "line": rows[0]["line"]}
    assert saved(workspace) == {fingerprint(rows[0]): kept}
    assert "1 of 2 decided" in panel.place.value
    assert "kept" in shown(panel)[0].head.value
    click(panel, 1, "drop")
    assert saved(workspace)[fingerprint(rows[13])]["action"] == "drop"
    assert "All decided" in panel.message.value
    assert panel.review.apply(rows)[0] == rows[:13]


def test_an_edit_changes_the_answer_and_is_shown_again(panel, rows, workspace):
    shown(panel)[1].answer.value = "За три рабочих дня."
    click(panel, 1, "edit")
    assert saved(workspace)[fingerprint(rows[13])]["new"] == {"answer": "За три рабочих дня."}
    assert "edited" in shown(panel)[1].head.value
    assert panel.review.apply(rows)[0] == [*rows[:13], with_texts(rows[13], {"answer": "За три рабочих дня."})]
    again = panel_of(rows, workspace, ["contradiction"])
    assert shown(again)[1].answer.value == "За три рабочих дня."
    assert "edited" in shown(again)[1].head.value
    assert answer(WRONG) not in again.cards[1].question.value
    # taken back: the text is typed as it was, then kept
    shown(again)[1].answer.value = answer(WRONG)
    click(again, 1, "keep")
    assert again.review.apply(rows)[0] == rows


@pytest.mark.parametrize(
    ("text", "action", "says"),
    [
        (answer(RIGHT), "edit", "as it was"),
        ("  \n", "edit", "empty answer"),
        ("Другой текст.", "keep", "you changed this answer"),
    ],
)
def test_a_click_that_would_lose_something_says_so_and_saves_nothing(panel, workspace, text, action, says):
    shown(panel)[0].answer.value = text
    click(panel, 0, action)
    assert saved(workspace) == {}
    assert says in panel.message.value
    click(panel, 1, "drop")  # the message goes with the next click that works, and the text being written stays
    assert says not in panel.message.value
    assert shown(panel)[0].answer.value == text


def test_a_decided_case_gives_way_to_the_next_and_a_new_session_goes_on_there(rows, workspace):
    rows += numbered(*(row(f"Вопрос номер {word}", f"Вы увидите {{{word}}} здесь.") for word in TOPICS[:3]))
    panel = panel_of(rows, workspace, ["contradiction", "placeholder"])
    assert cases(panel) == [[0, 13], [14], [15], [16]]
    assert panel.previous.disabled
    click(panel, 0, "keep")
    assert panel.at == 0  # its twin is not decided yet
    click(panel, 1, "drop")
    assert panel.at == 1
    assert len(shown(panel)) == 1
    click(panel, 0, "drop")

    again = panel_of(rows, workspace, ["contradiction", "placeholder"])
    assert again.at == 2
    assert "Case 3 of 4" in again.place.value
    assert "3 of 5 decided" in again.place.value
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


def test_near_duplicates_stand_beside_their_twin_even_where_lines_repeat(workspace):
    """Rows made of one conversation share their line: the twin is then the one most alike."""
    rows = numbered(*USUAL, row(LONG, PAID), row(LONG + " сегодня", PAID))
    rows[11]["line"] = rows[12]["line"]
    panel = panel_of(rows, workspace, ["near duplicate"])
    assert cases(panel) == [[12, 13]]
    assert "shown to compare" in panel.cards[0].head.value
    assert "like line 14" in panel.cards[1].head.value
    unnumbered = [{k: v for k, v in one.items() if k != "line"} for one in rows]
    assert cases(panel_of(unnumbered, workspace, ["near duplicate"])) == [[12, 13]]


def test_look_alikes_stand_beside_their_twin(workspace):
    rows = numbered(*USUAL, row(f"{LONG} 12345", PAID), row(f"{LONG} 67890", PAID))
    (case,) = [case for case in panel_of(rows, workspace).cases if "look-alike" in case.checks]
    assert case.rows == [12, 13]


def test_a_card_names_the_place_as_its_notes_do_and_equal_texts_are_decided_together(workspace):
    """Rows of a JSON list on one line have an item, others nothing but their number."""
    bare = [RIGHT, *USUAL, WRONG, RIGHT]
    for rows, places in (
        ([row | {"line": 1, "item": i + 1} for i, row in enumerate(bare)], ("item 1", "item 14", "item 15")),
        (bare, ("row 0", "row 13", "row 14")),
    ):
        panel = panel_of(rows, workspace, ["contradiction"])
        assert cases(panel) == [[0, 13]]
        heads = [card.head.value for card in shown(panel)]
        assert f"<b>{places[0]} (the same text in {places[2]}: decided together)</b>" in heads[0]
        assert f"<b>{places[1]}</b>" in heads[1]
        assert f"asked in {places[0]}, {places[1]}" in heads[1]


def test_a_row_that_was_kept_still_stands_beside_the_one_it_contradicts(rows, workspace):
    report = check_rows(rows, kept={fingerprint(rows[0]): {"contradiction"}})
    assert cases(ReviewPanel(rows, report, workspace, ["contradiction"])) == [[0, 13]]


def test_a_question_asked_many_times_is_shown_in_parts(workspace):
    rows = numbered(*(row("Опишите товар", f"Вы выбрали: {i * 'а'}б.") for i in range(30)))
    panel = panel_of(rows, workspace, ["contradiction"])
    assert [len(case) for case in cases(panel)] == [SIDE_BY_SIDE, SIDE_BY_SIDE, 6]
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
    assert all(text in panel.cards[1].question.value for text in ("system", "Будьте кратки.", "Слушаю вас.", "Где мой заказ?"))
    assert panel.cards[1].answer.value == "Он потерян."
    panel.cards[1].answer.value = "Он найден."
    click(panel, 1, "edit")
    assert saved(workspace)[fingerprint(rows[13])]["new"] == {"answer": "Он найден."}


def test_texts_and_notes_are_escaped_and_the_span_is_marked(workspace):
    bad = "</td></textarea><script>alert(1)</script>"
    rows = numbered(*USUAL, row(f"{bad} Где мой заkаз?", f"{bad} Вы увидите [ссылка] в письме <имя>."))
    panel = panel_of(rows, workspace, ["mixed script", "placeholder"])
    (card,) = shown(panel)
    for text in ("<mark>заkаз</mark>", "<mark>[ссылка]</mark>", "&lt;/td&gt;&lt;/textarea&gt;&lt;script&gt;"):
        assert text in card.question.value
    assert "&lt;имя&gt;" in card.head.value
    for widget in (card.question, card.head, panel.place, panel.message):
        assert "<script" not in widget.value
        assert "</td" not in widget.value
    assert card.answer.value == answer(rows[-1])


def test_the_checks_of_the_default_are_those_that_need_a_person(rows, workspace):
    rows += numbered(row("<b>Жирный</b> вопрос?", "Ты увидишь его завтра."))
    found = {check for case in panel_of(rows, workspace).cases for check in case.checks}
    assert {"contradiction", "style: address"} <= found
    assert "HTML" not in found
    assert panel_of(rows, workspace, ["style"]).cases[0].checks == ["style: address"]
    assert cases(panel_of(rows, workspace, ["HTML"])) == [[14]]


def test_nothing_to_decide_is_said(workspace):
    panel = panel_of(numbered(*USUAL), workspace, ["contradiction", "refusal"])
    assert panel.cases == []
    assert panel.widget.children == (panel.message,)
    assert "Nothing to decide:</b> no row was hit by contradiction, refusal" in panel.message.value


def test_a_decision_that_cant_be_saved_is_not_passed_over(panel, workspace, monkeypatch):
    def full(*_):
        raise WorkspaceError("<the disk is full>")

    monkeypatch.setattr(workspace, "write_json", full)
    click(panel, 0, "keep")
    assert "Not saved:</b> &lt;the disk is full" in panel.message.value


def test_wrong_arguments_are_named(workspace):
    rows = numbered(*USUAL)
    with pytest.raises(SettingsError, match=r"'contradictions' is not a finding; choose from .*contradiction"):
        panel_of(rows, workspace, ["contradictions"])
    with pytest.raises(SettingsError, match="about other rows"):
        ReviewPanel(rows[1:], check_rows(rows), workspace)


def test_a_notebook_shows_the_widget(panel, monkeypatch):
    calls = []
    monkeypatch.setattr("gemma_colab.ui.common.display", calls.append)
    panel._ipython_display_()
    assert calls == [panel.widget]
