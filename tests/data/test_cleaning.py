"""Cleaning: what is right stays, each step, the log of every change, and the way back."""

import copy
import json
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.data import cleaning
from gemma_colab.data.cleaning import CHANGES, DEFAULT, DROPPED, DROPS, LOG_COLUMNS, STEPS, clean, summarize, undo
from gemma_colab.data.looking import AS_READ, fingerprint, question, texts
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows


def row(instruction="Где заказ?", output="В пути.", input="", **more):
    return to_messages({"instruction": instruction, "input": input, "output": output} | more)


def chat(*contents, **more):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]} | more


def bare(rows):
    """The rows without what a changed row says of how it was read."""
    return [{key: value for key, value in r.items() if key != AS_READ} for r in rows]


# ---------------------------------------------------------------------------------------------------- what is right stays
RIGHT = (
    Path(__file__).parent / "right_rows.jsonl"
)  # code, tables, paths, formulas, poems, many scripts; marks and faults explained


@pytest.fixture(scope="module")
def right_rows():
    return read_rows(RIGHT).rows


def test_by_default_every_right_row_stays_as_it_was(right_rows):
    records = [json.loads(line) for line in RIGHT.read_text("utf-8").splitlines()]
    assert len(records) == len({r["instruction"] for r in records}) >= 200
    assert right_rows == [to_messages(r) | {"line": i} for i, r in enumerate(records, 1)]
    done, log = clean(right_rows)
    assert log.empty
    assert done == right_rows


def test_so_it_does_in_a_conversation(right_rows):
    chats = [chat(*(turn["content"] for r in right_rows[i : i + 3] for turn in r["messages"])) for i in range(0, 300, 3)]
    system = {"role": "system", "content": right_rows[0]["messages"][1]["content"]}
    chats += [{"messages": [system, *r["messages"]]} for r in right_rows]
    assert clean(chats)[0] == chats


STORED = [
    ("file_marks", "раз\r\nдва\r\r\nтри", "раз\nдва\nтри"),
    ("file_marks", "раз\rдва", "раз\nдва"),
    ("file_marks", "\ufeffраз\n\ufeffдва", "раз\nдва"),
    ("file_marks", "раз\0 два\0", "раз два"),
    ("mojibake", "РџСЂРёРІРµС‚", "Привет"),
    ("mojibake", "cafÃ© â€“ naÃ¯ve", "café – naïve"),
    ("mojibake", "Ваш заказ: РµРіРѕ РІРµР·СѓС‚", "Ваш заказ: его везут"),
]


@pytest.mark.parametrize(("step", "before", "after"), STORED)
def test_by_default_what_storage_has_spoilt_is_mended(step, before, after):
    done, log = clean([row(output=before), chat(before, "да")])
    assert bare(done) == [row(output=after), chat(after, "да")]
    assert log["step"].tolist() == [step, step]


def test_by_default_only_empty_rows_and_those_equal_to_the_letter_are_left_out():
    code = "if a:\n    b()\nc()"
    rows = [
        row("Run?", code),
        row("Run?", code.replace("\nc", "\n    c")),
        row("run?", code),
        row("Run?", code),
        row("Run?", " "),
    ]
    done, log = clean(rows)
    assert done == rows[:3]
    assert log[["step", "row"]].values.tolist() == [["drop_empty", 4], ["drop_exact_duplicates", 3]]
    assert clean(rows, also=["drop_near_duplicates"])[0] == rows[:1]  # but for case, punctuation and spaces


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("Why do I see cafÃ©?", "UTF-8 was read as Latin-1."),
        ("Почему «РџСЂРёРІРµС‚»?", "Другая кодировка."),
        ("Mend it: cafÃ© au lait", "Café au lait"),
        ("Mend it: cafÃ©", "café"),
        ("What failed?", "Expected: naïve\nActual: naÃ¯ve"),
        ("Исправь: РџРѕРєР°", "Пока"),
    ],
)
def test_mojibake_that_is_the_lesson_stays(asked, said):
    assert clean([row(asked, said)])[0] == [row(asked, said)]


def test_further_steps_are_taken_in_their_usual_place():
    rows = [row(output="<b> </b>"), row(output="<p>Да</p>")]
    done, log = clean(rows, also=["white_space", "html_to_text"])
    assert [answer(r) for r in done] == ["Да"]
    assert log["step"].tolist() == ["html_to_text", "html_to_text", "white_space", "drop_empty"]
    with pytest.raises(SettingsError, match="step='html' is not a cleaning step"):
        clean(rows, also=["html"])
    hidden = ["anna&#64;mail.ru", "+7&nbsp;912&nbsp;345-67-89", "an<b>na@mail.ru</b>", "anna\u200b@mail.ru", "anna\\u0040mail.ru"]
    for text in hidden:  # a contact shows when the steps before have run
        done, _ = clean([row(output=f"Пишите: {text}")], also=STEPS)
        assert re.fullmatch(r"Пишите: \[(почта|телефон)\]", answer(done[0])), text
    assert set(DEFAULT) < set(STEPS)


def test_a_summary_says_of_each_step_how_many_rows_with_an_example():
    long = "Это длинный ответ о том, как всё устроено. " * 5
    rows = [row(line=1), row(output=f"{long}a\r\nb", line=2), row("x\r\ny", "c\r\nd", line=3), row(output="", line=4)]
    found = list(summarize(rows, clean(rows)[1]))
    assert [(f.check, f.severity, f.count, f.lines) for f in found] == [
        ("cleaned: file_marks", "I", 2, [2, 3]),
        ("cleaned: drop_empty", "I", 1, [4]),
    ]
    assert found[0].what_to_do == "such as line 2: answer “…всё устроено. a\r\nb” became “…всё устроено. a\nb”"
    assert found[1].what_to_do == "such as line 4: left out, nothing to learn"
    (could,) = summarize(rows, clean(rows, ["drop_empty"])[1], done=False)
    assert (could.check, could.rows) == ("not cleaned: drop_empty", [3])
    assert could.what_to_do.startswith(
        "left as it is; with also=['drop_empty'] (on the command line: --also drop_empty), such as"
    )


# ---------------------------------------------------------------------------------------------------- each step
CHANGED = [
    ("html_to_text", "<p>Раз</p><p>Два &amp; <b>три</b></p>", "Раз\nДва &amp; три"),
    ("html_to_text", "строка<br>другая<br/>третья", "строка\nдругая\nтретья"),
    ("html_to_text", "<ul><li>раз</li><li>два</li></ul>", "раз\nдва"),
    ("html_to_text", "<script>alert(1)</script>Текст<style>p{}</style>", "Текст"),
    ("html_to_text", "Если a<b и c>d, <i>то</i> 2 < 3", "Если a<b и c>d, то 2 < 3"),
    ("html_to_text", "![схема](https://a.ru/x.png) ниже", "схема ниже"),
    ("html_to_text", "<p>Код:</p>\n```\n<b>x</b>\n```\n<p>Всё</p>", "Код:\n```\n<b>x</b>\n```\nВсё"),
    ("entities", "5&nbsp;&lt;&nbsp;6, &amp;quot;да&amp;quot; &#8212;", '5\xa0<\xa06, "да" —'),
    ("mojibake", "РџСЂРёРІРµС‚", "Привет"),
    ("mojibake", "cafÃ©", "café"),
    ("control_characters", "раз\x07два\ufffd", "раздва"),
    ("control_characters", "Это \\u2116 12345 и \\u0434\\u0430", "Это № 12345 и да"),
    ("control_characters", 'Первая\\nВторая\\tтретья \\"да\\" \\u0434\\u0430', 'Первая\nВторая третья "да" да'),
    ("invisible_characters", "\ufeffсло\u200bво и мяг\u00adко", "слово и мягко"),
    ("white_space", "  раз \u00a0 два\r\n\r\n\r\n\r\nтри \n четыре  ", "раз два\n\n\nтри\nчетыре"),
    ("white_space", "раз\t\tдва\n \t \n\n\n\nтри", "раз два\n\n\nтри"),
    ("mask_personal_data", "Пишите a@mail.ru", "Пишите [почта]"),
]


@pytest.mark.parametrize(("step", "before", "after"), CHANGED)
def test_what_a_step_changes_and_logs(step, before, after):
    rows, log = clean([row(), row(output=before, line=7), chat("да", before)], (step,))
    assert bare(rows) == [row(), row(output=after, line=7), chat("да", after)]
    assert [r.get(AS_READ) for r in rows] == [None, fingerprint(row(output=before)), fingerprint(chat("да", before))]
    assert list(log.columns) == LOG_COLUMNS == ["step", "row", "line", "field", "before", "after"]
    assert log.astype(object).where(log.notna(), None).values.tolist() == [
        [step, 1, 7, "answer", before, after],
        [step, 2, None, "answer", before, after],
    ]
    assert clean(rows, (step,))[0] == rows  # once is enough


CODE = "```python\ndef f(x):\n\tif x  <  2:\n\n\n\n        return '<b>&nbsp;\\n</b>'\n```"
UNCHANGED = [
    ("html_to_text", "a<b и c>d; List<i> x; <ваше имя>; &nbsp;; [ссылка](http://a.ru)"),
    ("html_to_text", CODE),
    ("entities", "AT&T; R&D; &param; x&y"),
    ("entities", CODE),
    ("mojibake", "Привет, café — «да», Łódź 👨\u200d👩\u200d👧"),
    ("control_characters", 'C:\\new\\table; \\nabla \\theta; print("a\\nb")'),
    ("control_characters", CODE),
    ("invisible_characters", "👨\u200d👩\u200d👧 می\u200cخواهم क्\u200dष"),
    ("white_space", "Тег `<p>` и `b`."),
    ("white_space", "имя    цена\nкот      10\nпёс       5"),
    ("white_space", "- раз\n  - два\n\t- три\n\nfor x in y:\n    if x:\n        print(x)"),
    ("white_space", CODE),
    ("mask_personal_data", "Заказ №89123456789, роутер 192.168.0.1, [почта]"),
    ("fake_input", "None"),
]


@pytest.mark.parametrize(("step", "text"), UNCHANGED)
def test_what_a_step_leaves_alone(step, text):
    rows = [row(output=text, instruction=text), chat(text, text)]
    done, log = clean(rows, (step,))
    assert done == rows
    assert log.empty
    assert list(log.columns) == LOG_COLUMNS


def test_fake_inputs_go_and_answers_of_that_kind_stay():
    assert clean([row(output="В пути.\n\nN/A")], ("fake_input",))[0] == [row(output="В пути.\n\nN/A")]
    rows = [row(input="<noinput>"), row(input="N/A", output="None"), row(input="No entry?")]
    assert [(question(r), answer(r)) for r in clean(rows, ("fake_input",))[0]] == [
        ("Где заказ?", "В пути."), ("Где заказ?", "None"), ("Где заказ?\n\nNo entry?", "В пути."),
    ]  # fmt: skip


def test_dropped_rows_are_in_the_log_whole():
    rows = [row(), row(output=" \u200b", line=4), row(), chat("\ufeff", "б")]
    done, log = clean(rows, ("drop_empty", "drop_exact_duplicates"))
    assert done == [rows[0]]
    assert log[["step", "row", "field", "after"]].values.tolist() == [
        ["drop_empty", 1, "", f"{DROPPED} nothing to learn"],
        ["drop_empty", 3, "", f"{DROPPED} nothing to learn"],
        ["drop_exact_duplicates", 2, "", f"{DROPPED} like row 0"],
    ]
    assert [json.loads(text) for text in log["before"]] == [rows[1], rows[3], rows[2]]
    assert log["line"].dropna().tolist() == [4]


LONG = "Ваш заказ передан в службу доставки и прибудет в течение 3 дней, отследить его можно в личном кабинете на нашем сайте"
ASKED = "Скажите, пожалуйста, где сейчас находится мой заказ и когда его доставят"


def test_near_duplicates_go():
    assert clean([row(ASKED, "Да."), row(ASKED + " мне", "Да.")], ("drop_near_duplicates",))[0] == [row(ASKED, "Да.")]
    rows = [row(ASKED, LONG), row(ASKED + " мне?", LONG + " всегда.")]
    done, log = clean(rows, ("drop_near_duplicates",))
    assert done == rows[:1]
    assert log["after"][0].startswith(f"{DROPPED} 0.9")
    assert log["after"][0].endswith("like row 0")


FIRST = (ASKED, LONG)
NEAR = [
    (FIRST, (ASKED + "?", LONG.replace("3", "5"))),  # another number
    (FIRST, (ASKED + " №12", LONG)),
    (FIRST, (ASKED + "?", LONG.replace("можно", "не можно"))),
    (FIRST, (ASKED + " мне", LONG.replace("прибудет", "неприбудет"))),
    (FIRST, (ASKED, LONG + " всегда")),  # one question, two answers
    (FIRST, ("Куда?", LONG + "!")),  # another question with a canned answer
    (FIRST, (ASKED + " мне", "Да.")),
    *(((ASKED, one), (ASKED + " мне", other)) for one, other in (("Да.", "Конечно."), ("positive", "negative"), ("кот", "код"))),
    # a word put for another is for a person
    *(
        tuple((f"{ASKED} Хочу {word} уведомления о доставке.", f"{LONG} Так можно {word} их.") for word in words)
        for words in (("включить", "выключить"), ("на Android", "на iPhone"))
    ),
    # signs, numbers in another order, nots
    *(
        tuple((f"Say it {text.format(word)}", text.format(word)) for word in words)
        for text, words in (
            ("The parcel {} arrive at the door of your house in the morning hours", ("will", "won't")),
            ("You {} return the blanket to our shop near the river", ("can", "cannot")),
            ("The first train goes from platform {} in the morning", ("5 to platform 7", "7 to platform 5")),
            ("Сколько всего получится, если посчитать 17 {} 25 на бумаге", "+*"),
            ("The value of the variable x {} 5 at the end of the loop", "><"),
        )
    ),
]


@pytest.mark.parametrize(("one", "other"), NEAR)
def test_near_rows_that_say_something_else_stay(one, other):
    rows = [row(*one), row(*other)]
    assert clean(rows, ("drop_near_duplicates",))[0] == rows


def test_however_many_words_there_are_their_endings_are_told_from_other_words():
    assert cleaning._adds_only({"answer": "слово " * 500}, {"answer": "иное " * 500 + "слова"})
    once, other, ending = ({"answer": " ".join(f"{i}{word}" for i in range(1001, 3001))} for word in ("раз", "два", "разов"))
    assert not cleaning._adds_only(once, other)
    assert cleaning._adds_only(once, ending)


def test_rows_under_one_prompt_are_not_twins():
    prompt = "Определи тональность отзыва и ответь одним словом, позитив или негатив, без пояснений и знаков препинания. " * 3
    words = "дом река окно небо трава книга стол море город улица".split()
    rows = [row(prompt, ("позитив", "негатив")[i % 2], f"{word} мне очень нравится") for i, word in enumerate(words)]
    assert clean(rows, also=["drop_near_duplicates"])[0] == rows


def test_contradictions_are_never_dropped(support_rows):
    rng = random.Random(5)
    rows = [row(question(r), answer(r)) for r in support_rows[:60]]
    other = [
        row(question(r), rng.choice([f"{answer(r)} Да.", "Нет.", answer(r).replace("заказ", "товар") + " Вот."])) for r in rows
    ]
    mixed = rng.sample(rows + other, 120)
    assert clean(mixed, tuple(DROPS))[0] == mixed


def test_only_the_steps_asked_for_in_that_order():
    rows = [row(output="<b> </b>"), row(output="  да  ")]
    assert clean(rows, ())[0] == rows
    assert [answer(r) for r in clean(rows, ("drop_empty", "html_to_text"))[0]] == [" ", "  да  "]
    assert [answer(r) for r in clean(rows, ("html_to_text", "drop_empty"))[0]] == ["  да  "]
    assert set(clean(rows, STEPS)[1]["step"]) == {"html_to_text", "white_space", "drop_empty"}
    with pytest.raises(
        SettingsError, match=r"step='magic' is not a cleaning step; choose from file_marks, html_to_text, .*drop_near_duplicates"
    ):
        clean(rows, ("white_space", "magic"))
    assert set(STEPS) == {*CHANGES, *DROPS}


def test_a_cleaned_set_is_clean():
    spoilt = [text for step, text, _ in CHANGED]
    rows = [row(f"Вопрос о деле: {text}", text, input="[no input]") for text in spoilt] + [row(output="")]
    mended = "HTML|empty text|fake input|mojibake|control characters|invisible characters|personal data".split("|")
    assert not {f.check for f in check_rows(clean(rows, STEPS)[0]).findings} & set(mended)


# ---------------------------------------------------------------------------------------------------- the way back
NASTY = [
    "", " ", "\t", "\n", "\r\n", "\u00a0", "\ufeff", "\u200b", "\u200d", "\u00ad", "\x00", "\x07", "\ufffd", "\\n", "\\u0434", '\\"', "<b>",
    "</b>", "<br>", "<p>", "<script>", "</script>", "&nbsp;", "&amp;lt;", "`", "```", "![a](b)", "a@mail.ru", "+7 912 345-67-89",
    "[no input]", "N/A", "(dropped)", "Где", "заказ", "да", "не", "12", "РџСЂ", "Ã©", "👨\u200d👩", "\u2028", "<", "&",
]  # fmt: skip
text = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=4)), max_size=8).map("".join)
single = st.fixed_dictionaries(
    {"instruction": text, "input": text, "output": text},
    optional={"line": st.integers(1, 99), "label": text, "conversation": text},
).map(to_messages)
talk = st.lists(text, min_size=2, max_size=5).map(lambda contents: chat(*contents, line=3))
some_rows = st.lists(st.one_of(single, talk), max_size=8).flatmap(
    lambda rows: st.permutations(rows + rows[:2])  # with duplicates
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(some_rows, st.lists(st.sampled_from(STEPS), max_size=len(STEPS) + 2))
def test_undo_gives_back_the_very_rows(rows, steps):
    before = copy.deepcopy(rows)
    done, log = clean(rows, tuple(steps))
    assert rows == before  # what was given is not touched
    back = undo(done, log)
    assert back == before
    assert [list(r) for r in back] == [list(r) for r in before]
    assert (log["before"] != log["after"]).all()
    assert set(log["step"]) <= set(steps)
    # What is not in the log has not changed.
    dropped = set(log["row"][log["field"] == ""])
    touched = set(zip(log["row"], log["field"], strict=True))
    kept = [i for i in range(len(rows)) if i not in dropped]
    assert len(kept) == len(done)
    for i, new in zip(kept, done, strict=True):
        differing = {(i, field) for field, value in texts(new).items() if value != texts(rows[i])[field]}
        assert differing <= touched


def test_undo_of_a_log_that_was_saved(workspace):
    rows = [row(output="<b>да</b>", line=1), row(output=" "), chat("а&nbsp;б", "в"), row(output="<b>да</b>", line=9)]
    done, log = clean(rows, STEPS)
    workspace.write_jsonl("log.jsonl", log.to_dict("records"))
    assert undo(done, pd.DataFrame(workspace.read_jsonl("log.jsonl"), columns=LOG_COLUMNS)) == rows
    assert undo([], clean([])[1]) == []


def test_undo_takes_back_one_cleaning_of_two():
    rows = [row(output="<b>да</b> "), row("Второй?", output="нет")]
    once, log = clean(rows, ("html_to_text",))
    twice, again = clean(once, ("white_space",))
    assert "as_read" in once[0]
    assert undo(twice, again) == once  # which still says how it was read
    assert undo(undo(twice, again), log) == rows


def test_a_chain_of_twins_never_loses_both_ends():
    words = "один два три четыре пять шесть семь восемь девять десять".split()
    rows = [row(f"{ASKED} {' '.join(words[:n])}", f"{LONG} {' '.join(words[:n])}") for n in range(10)]
    done, log = clean(rows, ("drop_near_duplicates",))
    assert done[0] == rows[0]
    for line in log.itertuples():  # every row that went has its twin among those that stayed
        assert line.after.endswith(tuple(f"like row {rows.index(one)}" for one in done))


def test_control_characters_that_end_a_line_leave_one():
    assert CHANGES["control_characters"]("страницы\x0cНачало\x0bновой\x07!") == "страницы\nНачало\nновой!"
    assert CHANGES["control_characters"]("символ \\n означает") == "символ \\n означает"
    assert CHANGES["entities"]("&lt;p&gt;Да&lt;/p&gt;") == "Да"
    assert CHANGES["entities"]("<b>да</b> &amp; нет") == "<b>да</b> & нет"  # these were tags before
    assert CHANGES["entities"]("<b>да</b>") == "<b>да</b>"


@pytest.mark.parametrize(
    "text", ["а" + " " * 100_000 + "б", "\t" * 5_000 + "\n" * 50_000, "![" * 50_000, "x<i>" * 25_000, "я" + " " * 100_000]
)
def test_long_odd_texts_take_no_time_to_speak_of(text):
    assert len(clean([row(ASKED, text + "конец")], STEPS)[0]) == 1
    check_rows([row(ASKED, text + "конец")])


# ---------------------------------------------------------------------------------------------------- the house's own
def test_own_contacts_stay_and_a_customers_go():
    ours = "Напишите на help@shop.ru или позвоните: +7 495 123-45-67."
    rows = [row(f"Вопрос {i} от anna@mail.ru", f"Ответ {i}. {ours} Ответим на anna@mail.ru.", line=i) for i in range(80)]
    cleaned, log = clean(rows, ("mask_personal_data",))
    assert answer(cleaned[7]) == f"Ответ 7. {ours} Ответим на [почта]."
    assert question(cleaned[7]) == "Вопрос 7 от [почта]"
    assert clean(cleaned, ("mask_personal_data",))[0] == cleaned
    assert undo(cleaned, log) == rows
    assert "anna@mail.ru" in answer(clean(rows, ("mask_personal_data",), keep=["anna@mail.ru"])[0][7])
    only = answer(clean(rows, ("mask_personal_data",), keep=["only", "8 495 1234567"])[0][7])
    assert only == "Ответ 7. Напишите на [почта] или позвоните: +7 495 123-45-67. Ответим на [почта]."


def test_a_summary_names_items_of_a_list_that_stands_on_one_line(tmp_path):
    records = [
        {"instruction": f"Что такое {word}?", "output": "" if word == "дом" else "Слово."} for word in ("лес", "дом", "мир")
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    rows = read_rows(tmp_path / "a.json").rows
    (found,) = summarize(rows, clean(rows)[1])
    assert check_rows(rows).places(found) == "item 2"
