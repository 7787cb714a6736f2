"""Checks of the set as a whole: which rows stand out from the others, and which don't."""

import pytest

from gemma_colab.core.rows import answer, to_messages
from gemma_colab.data import checks_set
from gemma_colab.data.cleaning import clean
from gemma_colab.data.finding import CheckContext, Hit
from gemma_colab.data.likeness import jaccard, shingles
from gemma_colab.data.looking import question

WORDS = "оплата доставка возврат гарантия обмен сертификат адрес размер посылка скидка курьер самовывоз чек бонус подарок".split()


def row(instruction="Где заказ?", output="В пути.", input="", **more):
    return to_messages({"instruction": instruction, "input": input, "output": output}) | more


def said(*texts):
    return [row(output=text) for text in texts]


def chat(*texts, **more):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]} | more


def found(check, rows, near=0.72, **thresholds):
    return getattr(checks_set, check)(CheckContext(rows, near_threshold=near), **thresholds)


USUAL = [row(f"Что такое {word}?", f"Раздел «{word}» есть в кабинете.") for word in WORDS]


@pytest.mark.parametrize(
    ("n", "limits", "severity"),
    [
        (0, {}, "E"), (9, {}, "E"), (10, {}, "W"), (49, {}, "W"), (50, {}, "I"), (99, {}, "I"), (100, {}, None), (5000, {}, None),
        (30, {"block": 31}, "E"), (30, {"warn": 30}, "I"), (30, {"warn": 30, "inform": 30}, None),
    ],
)  # fmt: skip
def test_too_few(n, limits, severity):
    assert [f.severity for f in found("too_few", [row()] * n, **limits)] == ([severity] if severity else [])


def test_rows_with_other_keys_are_named():
    (finding,) = found("mixed_schemas", [row(), row(keys="question, answer"), row()])
    assert (finding.severity, finding.hits) == ("W", [Hit(1, note="keys: question, answer")])
    assert not found("mixed_schemas", [row(), row()])


# ---------------------------------------------------------------------------------------------------- duplicates
SIGNS = [
    *(("Сколько будет {}?", a, b, "6", "4") for a, b in (("8 - 2", "8 : 2"), ("8-2", "8/2"), ("x > 5", "x < 5"), ("5!", "5"))),
    ("Что такое {}?", "C++", "C#", "Язык программирования.", "Язык программирования."),
    ("Что значит {} в переписке?", ":)", ":(", "Это смайлик, его пишут в конце.", "Это смайлик, его пишут в конце."),
    ("Что показывает {} на шкале?", "-5", "+5", "Столько градусов сегодня на улице.", "Столько градусов сегодня на улице."),
    ("{}", "?", "!", "Что?", "Что?"),
    ("{}", "👍", "👎", "Спасибо за отзыв!", "Спасибо за отзыв!"),
]


@pytest.mark.parametrize(("asked", "one", "other", "first", "second"), SIGNS)
def test_signs_that_matter_make_another_question(asked, one, other, first, second):
    rows = [row(asked.format(one), first), row(asked.format(other), second)]
    assert not found("exact_duplicates", rows)
    assert not found("contradictions", rows)
    assert clean(rows)[0] == rows  # nor is one dropped as a near twin
    assert found("contradictions", [rows[0], row(asked.format(one), "Не знаю.")])


def test_what_an_answer_asks_is_no_repetition():
    rows = [row("Переведи: He left?", "Он ушёл?"), row("Переведи: He left.", "Он ушёл.")]
    assert not found("exact_duplicates", rows)
    assert not found("contradictions", rows)


def test_exact_duplicates_aside_case_punctuation_and_spaces():
    rows = [row(line=5), row("Ещё вопрос"), row("где  заказ", "В пути!"), row("еще вопрос?"), row(), row(output="Уже у вас.")]
    (finding,) = found("exact_duplicates", rows)
    assert finding.severity == "W"
    assert finding.hits == [
        Hit(i, note=f"like {place}", twin=twin) for i, place, twin in ((2, "line 5", 0), (3, "row 1", 1), (4, "line 5", 0))
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("What is 2+2?", "4"), row("What is 2*2?", "4")),
        (row("Is -5 < 0?", "Yes"), row("Is 5 < 0?", "Yes")),
        (row("Mood of 😀", "strong"), row("Mood of 😡", "strong")),
        (row("Да?", "Да."), row("Да?", "Да.", input="Нет")),
        (row("C++?", "A language."), row("C#?", "A language.")),
        (chat("а", "б", "в", "г"), chat("а", "б", "в", "д")),
    ],
)
def test_what_differs_in_a_sign_is_no_duplicate(one, other):
    assert not found("exact_duplicates", [one, other])


LONG = "Ваш заказ передан в службу доставки и прибудет в течение трёх рабочих дней, отследить его можно в личном кабинете"


def test_near_duplicates_name_their_twin_and_how_near():
    one, other = (
        row("Где мой заказ, оплаченный вечером?", f"{LONG} на сайте.", line=3),
        row("Где мой заказ, оплаченный вечером картой?", f"{LONG} у нас."),
    )
    rows = [one, *USUAL, other]
    (finding,) = found("near_duplicates", rows)
    near = jaccard(*(shingles(f"{question(r)} {answer(r)}") for r in (one, other)))
    assert finding.severity == "W"
    assert finding.hits == [Hit(16, note=f"{near:.2f} like line 3", twin=0)]
    for threshold, count in ((near - 0.001, 1), (near + 0.001, 0)):
        assert len(found("near_duplicates", rows, near=threshold, threshold=threshold)) == count
        assert len(found("near_duplicates", rows, threshold=threshold)) == count


@pytest.mark.parametrize(("one", "other"), [("7 дней", "5 дней"), ("можно вернуть", "не можно вернуть")])
def test_near_twins_that_say_something_else_only_inform(one, other):
    (finding,) = found("near_duplicates", [row("Где мой заказ?", f"{LONG} {one}."), row("Где же мой заказ?", f"{LONG} {other}.")])
    assert (finding.check, finding.severity) == ("look-alike", "I")


def test_contradictions_and_exact_duplicates_are_not_near_ones_as_well():
    rows = [row("Где мой заказ?", LONG + " на сайте."), row("Где мой заказ?", LONG + " у нас.")]
    assert not found("near_duplicates", rows)
    assert [f.check for f in found("contradictions", rows)] == ["contradiction"]
    assert not found("near_duplicates", said(LONG, LONG + "!"))


PROMPT = (
    "Ты вежливый помощник магазина. Отвечай коротко и по делу, не выдумывай сроки и суммы, не обещай того, чего нет в правилах "
    "магазина. Если не знаешь ответа, предложи передать вопрос специалисту и сообщи, когда он ответит."
)


@pytest.mark.parametrize("shape", ["system", "instruction"])
def test_a_prompt_that_all_rows_share_makes_no_twins(shape):
    pairs = [(f"Что такое {word}?", f"Это {word}, смотрите раздел.") for word in WORDS]
    if shape == "system":
        rows = [to_messages({"system": PROMPT, "instruction": asked, "output": text}) for asked, text in pairs]
    else:
        rows = [row(PROMPT, text, asked) for asked, text in pairs]
    assert not found("near_duplicates", rows)


def test_a_conversation_told_on_is_not_its_own_twin():
    texts = [f"{word}: расскажите об этом подробнее, пожалуйста" for word in WORDS[:8]]
    on = [chat(*texts[:n], conversation="c1") for n in (4, 6, 8)]
    assert not found("near_duplicates", on)
    assert found("near_duplicates", [r | {"conversation": str(i)} for i, r in enumerate(on)])


# ---------------------------------------------------------------------------------------------------- contradictions
def test_one_question_two_answers():
    (finding,) = found(
        "contradictions", [row(line=2), row("Где заказ", "Потерян.", line=9), *USUAL, chat("где заказ?", "Не знаю")]
    )
    assert finding.severity == "W"
    assert finding.hits == [Hit(i, "answer", note="asked in line 2, line 9, row 17") for i in (0, 1, 17)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row(), row(output="в пути!")),
        (row(input="№1"), row(input="№2", output="Потерян.")),
        (row("2+2", "4"), row("2*3", "6")),
        (row("What is 7 - 5?", "2"), row("What is 7 + 5?", "12")),
        (row("C++", "раз"), row("C#", "два")),
        (row("Тональность: 😀", "плюс"), row("Тональность: 😡", "минус")),
        (row("?", "раз"), row("!", "два")),  # nothing is asked
        (chat("Привет", "Да?", "а", "б"), chat("Привет", "Слушаю", "а", "в")),
    ],
)
def test_no_contradiction(one, other):
    assert not found("contradictions", [one, other])


# ---------------------------------------------------------------------------------------------------- language
RUSSIAN = said(*(f"Ваш заказ передан в службу доставки, {word} будет готова через несколько дней." for word in WORDS))
ENGLISH = "Your parcel has been handed over to the courier and will arrive within three days."
UKRAINIAN = (
    "Ваше замовлення передано до служби доставки, і воно прибуде протягом трьох робочих днів. Відстежити його можна в особистому "
    "кабінеті на нашому сайті, а якщо щось піде не так, напишіть нам, і ми обов'язково допоможемо."
)


def test_another_language_stands_out():
    (finding,) = found("language", [*RUSSIAN, *said(ENGLISH, UKRAINIAN)])
    assert finding.severity == "I"
    notes = {15: "looks like 'en', most answers are 'ru'", 16: "looks like 'uk', most answers are 'ru'"}
    assert finding.hits == [Hit(i, "answer", note=note) for i, note in notes.items()]


def test_short_answers_and_words_of_another_language_do_not():
    odd = ["OK", "iPhone 15 Pro Max", "https://shop.ru", "12345 67890 12345 67890", "Нажмите кнопку Settings, затем Privacy."]
    assert not found("language", [*RUSSIAN, *said(*odd, answer(RUSSIAN[0]).encode().decode("latin-1"))])


@pytest.mark.parametrize(
    ("thresholds", "stands_out"),
    [({"letters": 70}, False), ({"share": 0.95}, False), ({"minority": 0.05}, False), ({"minority": 0.07}, True)],
)  # the English answer has fewer letters; no language has that share; one of sixteen is no longer rare
def test_the_thresholds_of_language(thresholds, stands_out):
    assert bool(found("language", [*RUSSIAN, *said(ENGLISH)], **thresholds)) == stands_out


def test_which_language_is_meant():
    assert not found("language", [r for one in RUSSIAN for r in (one, *said(ENGLISH))])  # translations: two are meant
    rows = [*said(*[ENGLISH] * 3), *RUSSIAN]
    assert [f.rows for f in found("language", rows, minority=0.5)] == [[0, 1, 2]]
    first = found("language", rows, sample=3, minority=0.5)  # the first answers say it
    assert not any("'ru'" in hit.note.split(",")[1] for f in first for hit in f.hits)


# ---------------------------------------------------------------------------------------------------- style
POLITE = said(*(f"Вы найдёте раздел «{word}» в кабинете." for word in WORDS))


def style_hits(*answers, among=POLITE, **thresholds):
    findings = found("style", [*among, *said(*answers)], **thresholds)
    return {f.check: [h for h in f.hits if h.row >= len(among)] for f in findings}


@pytest.mark.parametrize(
    ("check", "text", "piece"),
    [
        ("style: address", "Попробуй ещё раз.", "Попробуй"),
        ("style: address", "Когда ты получил посылку, её вскрыли.", "ты"),
        ("style: address", "Нажимаешь на кнопку.", "Нажимаешь"),
        ("style: greeting", "Здравствуйте! Вы найдёте его там.", "Здравствуйте"),
        ("style: greeting", "Вы найдёте его. С уважением, магазин.", "С уважением"),
        ("style: ending", "Вы найдёте его в кабинете", ""),
        ("style: length", "Вы найдёте его. " * 20, ""),
    ],
)
def test_what_stands_out_from_the_others(check, text, piece):
    hits = style_hits(text)
    assert list(hits) == [check]
    (hit,) = hits[check]
    assert (hit.row, hit.field, text[hit.start : hit.end]) == (15, "answer", piece)


@pytest.mark.parametrize(
    ("text", "informal"),
    [
        *((text, False) for text in ("Это лишь часть слишком большого списка.", "Лишь вы решаете.", "Они пришли, слышь.")),
        *((text, False) for text in ("Мышь и тишь, камыш и финиш.", "Стыдно.")),
        *((f"Ну что, {word} тут.", True) for word in "ты тебя твоего знаешь найдёшь хочешь посмотришь напиши".split()),
        ("Ну что, не волнуйся тут.", True),
    ],
)
def test_informal_words_and_those_that_only_look_it(text, informal):
    assert ("style: address" in style_hits(text)) == informal


def test_the_other_way_round_too():
    informal = said(*(f"Ты найдёшь раздел «{word}» в кабинете." for word in WORDS))
    assert [h.note for h in style_hits("Вы найдёте его там.", among=informal)["style: address"]] == ["«вы» among «ты»"]


@pytest.mark.parametrize(
    ("odd", "majority", "stands_out"), [(3, 0.8, True), (4, 0.8, False), (4, 0.78, True), (3, 0.85, False)]
)  # 15 of 18, 15 of 19
def test_a_habit_needs_a_majority(odd, majority, stands_out):
    assert ("style: address" in style_hits(*["Ты найдёшь его."] * odd, majority=majority)) == stands_out


def test_one_word_labels_have_a_style_of_their_own():
    for rows in ([row(f"Отзыв {i}", ("позитив", "негатив")[i % 2]) for i in range(30)], [], said(*[" "] * 20)):
        assert not found("style", rows)


def test_length_is_counted_in_medians():
    for size, options, long in ((40, {}, False), (41, {}, True), (41, {"length": 5}, False)):
        findings = [f for f in found("style", said(*["а" * 10] * 10, "а" * size), **options) if f.check == "style: length"]
        assert bool(findings) == long
        if long:
            assert findings[0].hits == [Hit(10, "answer", note="41 characters")]
            assert "median answer has 10 characters" in findings[0].what_to_do


# ---------------------------------------------------------------------------------------------------- diversity
def test_few_distinct_questions():
    rows = [row(f"Вопрос {word}", word) for word in WORDS[:8]]
    assert not found("diversity", rows + rows[:1])  # too few rows to say anything
    for repeats, few in ((2, False), (3, True)):
        assert any("questions are distinct" in f.what_to_do for f in found("diversity", rows + rows[:repeats])) == few
    assert not found("diversity", rows + rows[:3], prompts=0.7)


def test_one_group_of_look_alikes():
    rows = [row(f"Где мой заказ {i}?", LONG + f" {word}") for i, word in enumerate(WORDS[:4])]
    rows += [row(f"{a} {b} зачем", f"{b} {b} {a}") for a in WORDS for b in WORDS[:6]]
    assert not [f for f in found("diversity", rows) if "look-alikes" in f.what_to_do]  # 4 of 94
    (finding,) = (f for f in found("diversity", rows, cluster=0.04) if "look-alikes" in f.what_to_do)
    assert finding.rows == [0, 1, 2, 3]
    assert "4 rows (4%)" in finding.what_to_do


def test_the_same_opening():
    rows = [row(f"Вопрос {a}", f"Спасибо за обращение, {a} уже ждёт") for a in WORDS[:3]]
    rows += [row(f"Ответь {a}", f"{a} придёт к вам завтра") for a in WORDS[3:10]]
    assert not found("diversity", rows)  # 3 of 10
    (finding,) = found("diversity", rows, opening=0.29)
    assert "3 answers (30%) open with “спасибо за обращение”" in finding.what_to_do
    assert not found("diversity", rows, opening=0.29, words=4)
