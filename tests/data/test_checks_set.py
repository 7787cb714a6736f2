"""Checks of the set as a whole: which rows stand out from the others, and which don't."""

import pytest

from gemma_colab.core.rows import answer, question, to_messages
from gemma_colab.data.checks_set import (
    INFORMAL,
    contradictions,
    diversity,
    exact_duplicates,
    language,
    mixed_schemas,
    near_duplicates,
    style,
    too_few,
)
from gemma_colab.data.finding import CheckContext, Hit
from gemma_colab.data.text import jaccard, shingles

WORDS = "оплата доставка возврат гарантия обмен сертификат адрес размер посылка скидка курьер самовывоз чек бонус подарок".split()


def row(instruction="Где заказ?", output="В пути.", input="", **more):
    return to_messages({"instruction": instruction, "input": input, "output": output}) | more


USUAL = [row(f"Что такое {word}?", f"Раздел «{word}» есть в кабинете.") for word in WORDS]


def chat(*texts, system=None, **more):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns} | more


def rows_of(findings, check=None):
    return {f.check: f.rows for f in findings if check in (None, f.check)}


# ---------------------------------------------------------------------------------------------------- too few
@pytest.mark.parametrize(
    ("n", "severity"), [(0, "E"), (9, "E"), (10, "W"), (49, "W"), (50, "I"), (99, "I"), (100, None), (5000, None)]
)
def test_too_few(n, severity):
    assert [f.severity for f in too_few(CheckContext([row()] * n))] == ([severity] if severity else [])


@pytest.mark.parametrize(("name", "value", "severity"), [("block", 31, "E"), ("warn", 30, "I"), ("inform", 30, None)])
def test_too_few_has_three_limits(name, value, severity):
    assert [f.severity for f in too_few(CheckContext([row()] * 30))] == ["W"]
    limits = {"block": 10, "warn": 50, "inform": 100} | {name: value} | ({"warn": 30} if name == "inform" else {})
    assert [f.severity for f in too_few(CheckContext([row()] * 30), **limits)] == ([severity] if severity else [])


def test_rows_with_other_keys_are_named():
    (finding,) = mixed_schemas(CheckContext([row(), row(keys="question, answer"), row()]))
    assert (finding.severity, finding.hits) == ("W", [Hit(1, note="keys: question, answer")])
    assert not list(mixed_schemas(CheckContext([row(), row()])))


# ---------------------------------------------------------------------------------------------------- duplicates
def test_exact_duplicates_aside_case_punctuation_and_spaces():
    rows = [row(line=5), row("Ещё вопрос"), row("где  заказ", "В пути!"), row("еще вопрос?"), row(), row(output="Уже у вас.")]
    (finding,) = exact_duplicates(CheckContext(rows))
    assert finding.severity == "W"
    assert finding.hits == [
        Hit(2, note="like line 5", twin=0),
        Hit(3, note="like row 1", twin=1),
        Hit(4, note="like line 5", twin=0),
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
    assert not list(exact_duplicates(CheckContext([one, other])))


def test_both_shapes_repeat_each_other():
    assert rows_of(exact_duplicates(CheckContext([row(), chat("Где заказ?", "В пути.")]))) == {"exact duplicate": [1]}


LONG = "Ваш заказ передан в службу доставки и прибудет в течение трёх рабочих дней, отследить его можно в личном кабинете"


def test_near_duplicates_name_their_twin_and_how_near():
    rows = [
        row("Где мой заказ, оплаченный вечером?", LONG + " на сайте."),
        *USUAL,
        row("Где мой заказ, оплаченный вечером картой?", LONG + " у нас."),
        row(output=LONG),
    ]
    rows[0]["line"] = 3
    context = CheckContext(rows[:-1])
    (finding,) = near_duplicates(context)
    near = jaccard(*(shingles(f"{question(r)} {answer(r)}") for r in (rows[0], rows[-2])))
    assert finding.severity == "W"
    assert finding.hits == [Hit(16, note=f"{near:.2f} like line 3", twin=0)]
    for threshold, found in ((near - 0.001, 1), (near + 0.001, 0)):
        assert len(list(near_duplicates(CheckContext(rows[:-1], near_threshold=threshold), threshold=threshold))) == found
        assert len(list(near_duplicates(context, threshold=threshold))) == found


def test_near_twins_that_say_something_else_only_inform():
    for a, b in (("7 дней", "5 дней"), ("можно вернуть", "не можно вернуть")):
        (finding,) = near_duplicates(
            CheckContext([row("Где мой заказ?", f"{LONG} {a}."), row("Где же мой заказ?", f"{LONG} {b}.")])
        )
        assert (finding.check, finding.severity) == ("look-alike", "I")


def test_two_answers_to_one_question_are_a_contradiction_and_nothing_else():
    context = CheckContext([row("Где мой заказ?", LONG + " на сайте."), row("Где мой заказ?", LONG + " у нас.")])
    assert not list(near_duplicates(context))
    assert [f.check for f in contradictions(context)] == ["contradiction"]


def test_exact_duplicates_are_not_near_ones_as_well():
    assert not list(near_duplicates(CheckContext([row(output=LONG), row(output=LONG + "!")])))


PROMPT = (
    "Ты вежливый помощник магазина. Отвечай коротко и по делу, не выдумывай сроки и суммы, не обещай того, чего нет в правилах "
    "магазина. Если не знаешь ответа, предложи передать вопрос специалисту и сообщи, когда он ответит."
)


@pytest.mark.parametrize("shape", ["system", "instruction"])
def test_a_prompt_that_all_rows_share_makes_no_twins(shape):
    pairs = [(f"Что такое {word}?", f"Это {word}, смотрите раздел.") for word in WORDS]
    if shape == "system":
        rows = [chat(question, answer, system=PROMPT) for question, answer in pairs]
    else:
        rows = [row(PROMPT, answer, question) for question, answer in pairs]
    assert not list(near_duplicates(CheckContext(rows)))
    assert (
        list(near_duplicates(CheckContext([*rows, rows[0] | {"conversation": "x"}, *rows[:0]]))) == []
    )  # an exact one is not near


def test_a_conversation_told_on_is_not_its_own_twin():
    texts = [f"{word}: расскажите об этом подробнее, пожалуйста" for word in WORDS[:8]]
    on = [chat(*texts[:n], conversation="c1") for n in (4, 6, 8)]
    assert not list(near_duplicates(CheckContext(on)))
    assert rows_of(near_duplicates(CheckContext([r | {"conversation": str(i)} for i, r in enumerate(on)])))


# ---------------------------------------------------------------------------------------------------- contradictions
def test_one_question_two_answers():
    rows = [row(line=2), row("Где заказ", "Потерян.", line=9), *USUAL, chat("где заказ?", "Не знаю")]
    (finding,) = contradictions(CheckContext(rows))
    note = f"asked in line 2, line 9, row {len(rows) - 1}"
    assert finding.severity == "W"
    assert finding.hits == [Hit(0, "answer", note=note), Hit(1, "answer", note=note), Hit(17, "answer", note=note)]


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
    assert not list(contradictions(CheckContext([one, other])))


# ---------------------------------------------------------------------------------------------------- language
RUSSIAN = [row(output=f"Ваш заказ передан в службу доставки, {word} будет готова через несколько дней.") for word in WORDS]
ENGLISH = "Your parcel has been handed over to the courier and will arrive within three days."
UKRAINIAN = (
    "Ваше замовлення передано до служби доставки, і воно прибуде протягом трьох робочих днів. Відстежити його можна в особистому "
    "кабінеті на нашому сайті, а якщо щось піде не так, напишіть нам, і ми обов'язково допоможемо."
)


def test_another_language_stands_out():
    (finding,) = language(CheckContext([*RUSSIAN, row(output=ENGLISH), row(output=UKRAINIAN)]))
    assert finding.severity == "I"
    assert finding.hits == [
        Hit(15, "answer", note="looks like 'en', most answers are 'ru'"),
        Hit(16, "answer", note="looks like 'uk', most answers are 'ru'"),
    ]


def test_short_answers_and_words_of_another_language_do_not():
    spoilt = answer(RUSSIAN[0]).encode().decode("latin-1")
    odd = [
        "OK",
        "iPhone 15 Pro Max",
        "https://shop.ru",
        "12345 67890 12345 67890",
        "Нажмите кнопку Settings, затем Privacy.",
        spoilt,
    ]
    assert not list(language(CheckContext([*RUSSIAN, *(row(output=text) for text in odd)])))


def test_the_thresholds_of_language():
    rows = [*RUSSIAN, row(output=ENGLISH)]
    assert not list(language(CheckContext(rows), letters=70))  # the English answer has fewer
    assert not list(language(CheckContext(rows), share=0.95))  # no language has as many
    assert not list(language(CheckContext(rows), minority=0.05))  # one of sixteen is no longer rare
    assert list(language(CheckContext(rows), minority=0.07))
    half = [r for pair in zip(RUSSIAN, [row(output=ENGLISH)] * 15, strict=True) for r in pair]
    assert not list(language(CheckContext(half)))  # translations: two languages are meant


def test_the_first_answers_say_which_language_is_meant():
    rows = [row(output=ENGLISH)] * 3 + RUSSIAN
    assert [f.rows for f in language(CheckContext(rows), minority=0.5)] == [[0, 1, 2]]
    assert not any("'ru'" in h.note.split(",")[1] for f in language(CheckContext(rows), sample=3, minority=0.5) for h in f.hits)


# ---------------------------------------------------------------------------------------------------- style
POLITE = [row(output=f"Вы найдёте раздел «{word}» в кабинете.") for word in WORDS]


def style_hits(*answers, among=POLITE, **thresholds):
    rows = [*among, *(row(output=text) for text in answers)]
    return {f.check: [h for h in f.hits if h.row >= len(among)] for f in style(CheckContext(rows), **thresholds)}


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
    found = style_hits(text)
    assert list(found) == [check]
    (hit,) = found[check]
    assert (hit.row, hit.field, text[hit.start : hit.end]) == (15, "answer", piece)


@pytest.mark.parametrize(
    "text",
    [
        "Это лишь часть слишком большого списка.",
        "Лишь вы решаете.",
        "Они пришли, слышь.",
        "Мышь и тишь, камыш и финиш.",
        "Стыдно.",
    ],
)
def test_words_that_only_look_informal(text):
    assert "style: address" not in style_hits(text)


@pytest.mark.parametrize("word", ["ты", "тебя", "твоего", "знаешь", "найдёшь", "хочешь", "посмотришь", "напиши", "не волнуйся"])
def test_informal_words(word):
    assert INFORMAL.fullmatch(word)
    assert style_hits(f"Ну что, {word} тут.")["style: address"]


def test_the_other_way_round_too():
    informal = [row(output=f"Ты найдёшь раздел «{word}» в кабинете.") for word in WORDS]
    assert [h.note for h in style_hits("Вы найдёте его там.", among=informal)["style: address"]] == ["«вы» among «ты»"]


def test_a_habit_needs_a_majority():
    assert style_hits(*["Ты найдёшь его."] * 3)["style: address"]
    assert "style: address" not in style_hits(*["Ты найдёшь его."] * 4)  # 15 of 19
    assert style_hits(*["Ты найдёшь его."] * 4, majority=0.78)["style: address"]
    assert "style: address" not in style_hits(*["Ты найдёшь его."] * 3, majority=0.85)


def test_one_word_labels_have_a_style_of_their_own():
    labels = [row(f"Отзыв {i}", ("позитив", "негатив")[i % 2]) for i in range(30)]
    assert not list(style(CheckContext(labels)))
    assert not list(style(CheckContext([])))
    assert not list(style(CheckContext([row(output=" ")] * 20)))


def test_length_is_counted_in_medians():
    answers = [row(output="а" * 10)] * 10
    for size, found in ((40, False), (41, True)):
        assert bool([f for f in style(CheckContext([*answers, row(output="а" * size)])) if f.check == "style: length"]) == found
    longer = CheckContext([*answers, row(output="а" * 41)])
    assert not [f for f in style(longer, length=5) if f.check == "style: length"]
    (finding,) = (f for f in style(longer) if f.check == "style: length")
    assert finding.hits == [Hit(10, "answer", note="41 characters")]
    assert "median answer has 10 characters" in finding.what_to_do


# ---------------------------------------------------------------------------------------------------- diversity
def test_few_distinct_questions():
    rows = [row(f"Вопрос {word}", word) for word in WORDS[:8]]
    assert not list(diversity(CheckContext(rows + rows[:1])))  # too few rows to say anything
    for repeats, found in ((2, False), (3, True)):
        advice = [f.what_to_do for f in diversity(CheckContext(rows + rows[:repeats]))]
        assert any("questions are distinct" in text for text in advice) == found
    assert not list(diversity(CheckContext(rows + rows[:3]), prompts=0.7))


def test_one_group_of_look_alikes():
    twins = [row(f"Где мой заказ {i}?", LONG + f" {word}") for i, word in enumerate(WORDS[:4])]
    others = [row(f"{a} {b} зачем", f"{b} {b} {a}") for a in WORDS for b in WORDS[:6]]
    found = [f for f in diversity(CheckContext(twins + others)) if "look-alikes" in f.what_to_do]
    assert [f.rows for f in found] == []  # 4 of 94
    found = [f for f in diversity(CheckContext(twins + others), cluster=0.04) if "look-alikes" in f.what_to_do]
    assert [f.rows for f in found] == [[0, 1, 2, 3]]
    assert "4 rows (4%)" in found[0].what_to_do


def test_the_same_opening():
    rows = [row(f"Вопрос {a}", f"Спасибо за обращение, {a} уже ждёт") for a in WORDS[:3]] + [
        row(f"Ответь {a}", f"{a} придёт к вам завтра") for a in WORDS[3:10]
    ]
    assert not list(diversity(CheckContext(rows)))  # 3 of 10
    (finding,) = diversity(CheckContext(rows), opening=0.29)
    assert "3 answers (30%) open with “спасибо за обращение”" in finding.what_to_do
    assert not list(diversity(CheckContext(rows), opening=0.29, words=4))
