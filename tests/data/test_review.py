"""Decisions of a person: saved at once, found again, applied with a log."""

import json

import pytest

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.data.cleaning import DROPPED, LOG_COLUMNS, STEPS, clean, undo
from gemma_colab.data.looking import AS_READ, fingerprint, fingerprint_of, texts, with_texts
from gemma_colab.data.report import check_rows
from gemma_colab.data.review import FILE, REVIEW_CHECKS, SIDE_BY_SIDE, Review, find_cases

ONE = to_messages({"instruction": "Где заказ?", "output": "В пути.", "line": 2})
OTHER = to_messages({"instruction": "Когда привезут?", "output": "Завтра.", "line": 3})
CHAT = {"messages": [{"role": "user", "content": "Привет"}, {"role": "assistant", "content": "Да?"}], "line": 4}
ROWS = [ONE, OTHER, CHAT]


def test_a_decision_is_saved_at_once(workspace):
    review = Review(workspace)
    assert review.of(ONE) is None
    assert not workspace.has(FILE)
    review.decide(ONE, "drop", why="устарело")
    on_disk = json.loads((workspace.path / FILE).read_text(encoding="utf-8"))
    assert on_disk == {fingerprint(ONE): {"action": "drop", "why": "устарело", "checks": [], "line": 2}}
    review.decide(ONE, "keep")  # a second thought
    assert Review(workspace).of(ONE) == {"action": "keep", "why": "", "checks": [], "line": 2}


def other(row, **new):
    """Another row of the file: texts changed there, not by cleaning."""
    return {key: value for key, value in with_texts(row, new).items() if key != AS_READ}


def test_decisions_are_found_again_after_a_restart_by_the_text_of_the_row(workspace):
    Review(workspace).decide(ONE, "keep")
    Review(workspace).decide(CHAT, "edit", {"answer": "Слушаю."})
    again = Review(workspace)
    assert again.of(ONE | {"line": 99, "label": "x"})["action"] == "keep"  # it may have moved
    assert again.of(other(ONE, answer="Потерян.")) is None  # but not have changed
    assert again.of(other(ONE, question="№1")) is None
    assert again.of(CHAT) == {"action": "edit", "why": "", "checks": [], "line": 4, "new": {"answer": "Слушаю."}}
    assert again.kept == {fingerprint(ONE): set()}


READ = [
    to_messages({"instruction": "Где  <b>заказ</b>?", "output": "В&nbsp;пути.\r\n", "line": 2}),
    to_messages({"instruction": "Когда привезут?", "output": "<p>Завтра.</p>", "line": 3}),
    to_messages({"instruction": "Кто там?", "output": "Почтальон.", "line": 4}),
]
SOME_STEPS = [(), ("white_space",), ("html_to_text", "white_space"), STEPS, ("entities", "file_marks")]


@pytest.mark.parametrize("then", SOME_STEPS)
@pytest.mark.parametrize("now", SOME_STEPS)
def test_a_decision_holds_whatever_steps_clean_the_row(workspace, then, now):
    seen, _ = clean(READ, then)
    Review(workspace).decide(seen[0], "drop")
    Review(workspace).decide(seen[1], "edit", {"answer": "Сегодня."})
    Review(workspace).decide(seen[2], "keep", checks=["style"])
    rows, _ = clean(READ, now)
    review = Review(workspace)
    done, log = review.apply(rows)
    assert [answer(row) for row in done] == ["Сегодня.", "Почтальон."]
    assert undo(done, log) == rows
    assert review.unused(rows, READ) == []
    assert fingerprint(rows[2]) in review.kept


def test_what_was_edited_may_be_judged_again(workspace):
    review = Review(workspace)
    review.decide(ONE, "edit", {"question": "Где?"})
    (edited,), _ = review.apply([ONE])
    review.decide(edited, "edit", {"answer": "Едет."})
    assert texts(review.apply([ONE])[0][0]) == {"question": "Где?", "answer": "Едет."}
    (edited,), _ = review.apply([ONE])
    review.decide(edited, "keep", checks=["style"])  # as it is now
    assert texts(review.apply([ONE])[0][0]) == {"question": "Где?", "answer": "Едет."}
    assert review.kept == {fingerprint(ONE): {"style"}}
    review.decide(ONE, "keep")  # as it was
    assert review.apply([ONE])[0] == [ONE]
    review.decide(edited, "drop")
    assert review.apply([ONE])[0] == []


def test_decisions_that_fit_no_row_are_said(workspace):
    review = Review(workspace)
    assert review.unused(ROWS, ROWS) == []
    for row, action in ((ONE, "drop"), (OTHER, "keep"), (CHAT, "drop")):
        review.decide(row, action)
    assert review.unused(ROWS, ROWS) == []
    (found,) = review.unused([other(ONE, answer="Потерян."), OTHER, CHAT], ROWS[1:])
    assert (found.check, found.severity, found.count, found.lines) == ("unused decision", "W", 1, [2])
    assert found.what_to_do.startswith("1 in review.json fit no row, as its text changed")
    assert review.unused([OTHER], ROWS) == []  # cleaning dropped what was to be dropped
    assert review.unused([], ROWS)[0].lines == [3]  # but not what was to be kept


def test_decisions_kept_by_the_text_after_cleaning_are_understood(workspace):
    """As the review kept them before rows said how they were read."""
    rows, _ = clean(READ, STEPS)
    workspace.write_json(FILE, {fingerprint(rows[0], now=True): {"action": "drop", "why": "", "checks": []}})
    assert Review(workspace).apply(rows)[0] == rows[1:]
    (found,) = Review(workspace).unused(READ, READ)
    assert (found.count, found.lines) == (0, [])
    assert found.what_to_do.startswith("1 in review.json fit no row")


def test_two_sessions_do_not_overwrite_each_other(workspace):
    first, second = Review(workspace), Review(workspace)
    first.decide(ONE, "keep")
    second.decide(OTHER, "drop")
    assert set(Review(workspace).decisions) == {fingerprint(ONE), fingerprint(OTHER)} == set(second.decisions)


def test_edits_and_drops_are_made_and_logged(workspace):
    review = Review(workspace)
    review.decide(ONE, "edit", {"answer": "Уже у вас.", "question": "№12"}, why="style")
    review.decide(OTHER, "drop", why="contradiction")
    review.decide(CHAT, "keep")
    done, log = review.apply(ROWS)
    assert done == [with_texts(ONE, {"answer": "Уже у вас.", "question": "№12"}), CHAT]
    assert list(log.columns) == LOG_COLUMNS
    assert log.values.tolist() == [
        ["review", 0, 2, "question", "Где заказ?", "№12"],
        ["review", 0, 2, "answer", "В пути.", "Уже у вас."],
        ["review", 1, 3, "", json.dumps(OTHER, ensure_ascii=False), f"{DROPPED} contradiction"],
    ]
    assert ROWS[0]["messages"][1]["content"] == "В пути."
    assert undo(done, log) == ROWS


def test_decisions_of_version_1_about_a_conversation_are_understood(workspace):
    long = {"messages": [*CHAT["messages"], *CHAT["messages"]]}
    workspace.write_json(
        FILE, {fingerprint(long): {"action": "edit", "why": "", "checks": [], "new": {"messages[3]": "Слушаю."}}}
    )
    done, log = Review(workspace).apply([long])
    assert answer(done[0]) == "Слушаю."
    assert log["field"].tolist() == ["answer"]


def test_without_decisions_nothing_changes(workspace):
    done, log = Review(workspace).apply(ROWS)
    assert done == ROWS
    assert log.empty
    assert list(log.columns) == LOG_COLUMNS


@pytest.mark.parametrize(
    ("action", "new", "message"),
    [
        ("delete", None, r"action='delete' must be one of keep, edit, drop"),
        ("edit", None, r"an edit names the fields it changes"),
        ("edit", {}, r"an edit names the fields it changes"),
        ("drop", {"output": "x"}, r"nothing else does"),
        ("edit", {"turn 1": "x"}, r"new='turn 1' is not a field of this row; it has question, answer"),
        ("edit", {"output": "x"}, r"is not a field of this row"),
    ],
)
def test_what_cannot_be_decided(workspace, action, new, message):
    review = Review(workspace)
    with pytest.raises(SettingsError, match=message):
        review.decide(ONE, action, new)
    assert review.decisions == {}
    assert not workspace.has(FILE)


# ---------------------------------------------------------------------------------------------------- cases
def numbered(*pairs):
    return [to_messages({"instruction": q, "output": a, "line": i + 2}) for i, (q, a) in enumerate(pairs)]


def cases_of(rows, **kept):
    return find_cases(rows, check_rows(rows, **kept))


TOPICS = "оплата доставка возврат гарантия обмен сертификат адрес размер посылка скидка курьер самовывоз".split()
USUAL = [(f"Расскажите, как устроены {word}", f"Раздел «{word}» есть в личном кабинете.") for word in TOPICS]


def test_contradicting_rows_are_one_case():
    rows = numbered(("Сколько идёт посылка?", "Три дня."), *USUAL, ("сколько идёт посылка", "Целый месяц."))
    cases, said = cases_of(rows)
    assert ([0, 13], ["contradiction"]) in cases
    assert [check for check, _ in said[13]] == ["contradiction"]


def test_of_the_same_rows_only_the_first_is_shown():
    rows = numbered(("Сколько идёт?", "Три дня."), ("Сколько идёт?", "Месяц."), ("Сколько идёт?", "Три дня."), *USUAL)
    assert [case.rows for case in cases_of(rows)[0] if "contradiction" in case.checks] == [[0, 1]]


def test_kept_rows_stand_beside_the_one_that_contradicts_them():
    rows = numbered(("Сколько идёт?", "Три дня."), ("Сколько идёт?", "Месяц."), *USUAL)
    cases, _ = cases_of(rows, kept={fingerprint(rows[0]): {"contradiction"}})
    assert [0, 1] in [case.rows for case in cases]
    assert cases_of(rows, kept={fingerprint(row): {"contradiction"} for row in rows[:2]})[0] == []


def test_large_cases_are_shown_in_parts():
    rows = numbered(*[("Сколько идёт?", f"Ответ: {word}") for word in [*TOPICS, "чек", "бонус"]])
    cases = [case.rows for case in cases_of(rows)[0]]
    assert cases == [list(range(SIDE_BY_SIDE)), list(range(SIDE_BY_SIDE, 14))]


def test_checks_can_be_chosen():
    rows = numbered(*USUAL, ("Что это?", "Напиши нам"), ("Куда идти?", "Вы знаете."), ("Куда идти", "{{адрес}}"))
    report = check_rows(rows)
    chosen = {check for case in find_cases(rows, report, ["placeholder"])[0] for check in case.checks}
    assert chosen == {"placeholder"}
    assert find_cases(rows, report, [])[0] == []
    assert {"contradiction", "near duplicate"} <= set(REVIEW_CHECKS)


def test_decisions_of_version_1_are_found_again(workspace):
    old = {"instruction": "Клиент спрашивает.", "input": "Где заказ?\n\nУже неделя.", "output": "В пути."}
    key = fingerprint_of(old)
    row = to_messages(old)
    workspace.write_json("review.json", {key: {"action": "edit", "why": "", "checks": [], "new": {"output": "Едет."}}})
    rows, log = Review(workspace).apply([row])
    assert rows[0]["messages"] == [row["messages"][0], {"role": "assistant", "content": "Едет."}]
    assert list(log["field"]) == ["answer"]
    workspace.write_json("review.json", {key: {"action": "drop", "why": "wrong", "checks": []}})
    assert Review(workspace).apply([row])[0] == []
    assert Review(workspace).of(to_messages(old | {"output": "Нет."})) is None
