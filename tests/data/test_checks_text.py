"""Checks of single texts: the exact place of each hit, and what looks like one and is none."""

import json

import pytest

from gemma_colab.core.rows import to_messages
from gemma_colab.data.checks_text import GOPHER, TEXT_CHECKS, placeholders
from gemma_colab.data.finding import Hit, Look

CHECKS = {name: function for name, _, function, _ in TEXT_CHECKS}
PLAIN = {"instruction": "Где мой заказ?", "input": "", "output": "Заказ уже в пути."}


def look_at(records):
    return Look([to_messages(record) for record in records])


def found(check, text, **thresholds):
    """What a check hits in an answer that stands in the second row: the pieces of text, in order."""
    hits = list(CHECKS[check](look_at([PLAIN, PLAIN | {"output": text}]), **thresholds))
    assert {(hit.row, hit.field) for hit in hits} <= {(1, "messages[1]")}
    return [text[hit.start : hit.end] for hit in sorted(hits)]


def talk(*texts, system=""):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + turns}


HITS = [
    ("HTML", "Нажмите <b>сюда</b>, пожалуйста", ["<b>", "</b>"]),
    ("HTML", "слово<b>жирное</b>", ["<b>", "</b>"]),
    ("HTML", "строка<br>строка<BR />ещё", ["<br>", "<BR />"]),
    ("HTML", '<a href="http://a.ru">тут</a>', ['<a href="http://a.ru">', "</a>"]),
    ("HTML", "100&nbsp;₽ &#8212; &lt;цена&gt; &#x41;", ["&nbsp;", "&#8212;", "&lt;", "&gt;", "&#x41;"]),
    ("HTML", "Схема: ![план](https://a.ru/p.png) и <img src='x.png'>", ["![план](https://a.ru/p.png)", "<img src='x.png'>"]),
    ("HTML", "`<b>` в коде, а <i>тут</i> нет", ["<i>", "</i>"]),
    ("chat markers", "Да.<end_of_turn>", ["<end_of_turn>"]),
    ("chat markers", "<|im_start|>user\nДа [/INST]", ["<|im_start|>", "[/INST]"]),
    ("merged examples", "Да.\n12. Instruction: Name a fruit.", ["12. Instruction:"]),
    ("merged examples", "Нет. 3) Вопрос: а почему?", ["3) Вопрос:"]),
    ("merged examples", "Ответ.\n### Инструкция:\nНапиши", ["### Инструкция:"]),
    ("merged examples", "Apples.\n\n### Instruction\nName one", ["### Instruction"]),
    ("control characters", "раз\x07два\x00\x01три", ["\x07", "\x00\x01"]),
    ("control characters", "знак \ufffd потерян", ["\ufffd"]),
    ("control characters", "Первая строка\\nВторая\\tстрока", ["\\n", "\\t"]),
    ("control characters", 'Он сказал \\"да\\" и \\u0434а', ['\\"', '\\"', "\\u0434"]),
    ("invisible characters", "сло\u200bво и мяг\u00adко", ["\u200b", "\u00ad"]),
    ("invisible characters", "\ufeffначало", ["\ufeff"]),
    ("invisible characters", "по\u200dезд", ["\u200d"]),
    ("personal data", "Пишите на ivan.petrov@mail.ru сегодня", ["ivan.petrov@mail.ru"]),
    ("personal data", "Звоните +7 912 345-67-89.", ["+7 912 345-67-89"]),
    ("refusal", "As an AI language model, I cannot do that.", ["As an AI language model"]),
    ("refusal", "As an AI, I have no taste.", ["As an AI"]),
    ("refusal", "I'm just an AI.", ["I'm just an AI"]),
    ("refusal", "I can't help with that.", ["I can't help with that"]),
    ("refusal", "Как языковая модель, я не ем.", ["Как языковая модель"]),
    ("refusal", "Будучи искусственным интеллектом, не могу.", ["Будучи искусственным интеллектом"]),
    ("refusal", "Я всего лишь языковая модель.", ["Я всего лишь языковая модель"]),
    ("mixed script", "Ваш зaказ готов", ["зaказ"]),  # a Latin a
    ("mixed script", "болел СОVID дважды", ["СОVID"]),  # Cyrillic С and О
    ("mixed script", "Pочта открыта", ["Pочта"]),
]


@pytest.mark.parametrize(("check", "text", "pieces"), HITS)
def test_the_very_place_is_named(check, text, pieces):
    assert found(check, text) == pieces


MISSES = [
    ("HTML", "Если a<b и c>d, то что?"),
    ("HTML", "if x<s and s>y then"),
    ("HTML", "2 < 3 > 1, I <3 you, <ваше имя>, <- и ->"),
    ("HTML", "Так: `<b>` и\n```html\n<p>&nbsp;</p>\n```"),
    ("HTML", "Незакрытый блок:\n```\n<p>текст"),
    ("HTML", "List<i> items; std::vector<a> v;"),
    ("HTML", "AT&T; R&D; int f(T &param; &region;) ?a=1&copy=2"),
    ("HTML", "См. [ссылка](http://ya.ru) и [1](a)"),
    ("merged examples", "1. Яблоко\n2. Груша\n3. Пример: слива"),
    ("merged examples", "### Example\nВот пример.\n## Вопросы и ответы\n## Input devices\nМышь."),
    ("merged examples", "Инструкция: смотрите раздел 12. Вопрос в другом."),
    ("mojibake", "Привет, café, naïve, Łódź, 你好, “кавычки” — тире…"),
    ("mojibake", "РАСПРОДАЖА, ГОСТ Р и СССР; Ру́сский"),
    ("control characters", "Обычный\tтекст\nв две строки\r\n"),
    ("control characters", "C:\\new\\table\\read и \\nabla, \\theta, \\rho, \\[x\\]"),
    ("control characters", "print(\"a\\nb\")\nprintf('%d\\n')"),
    ("control characters", 'Код `a\\nb` и\n```\nx\\ty\\"\n```'),
    ("invisible characters", "Семья 👨\u200d👩\u200d👧, сердце ❤\ufe0f\u200d🔥"),
    ("invisible characters", "می\u200cخواهم और क्\u200dष"),
    ("refusal", "Как нейросети распознают картинки? Как ИИ меняет мир."),
    ("refusal", "She works as an AI engineer. I'm an AI researcher."),
    ("refusal", "Я лишь напомню: модель телефона указана на коробке."),
    ("mixed script", "USB-кабель, Wi-Fi роутер, e-mail и T-банк"),
    ("mixed script", "PDFки и CRMка, JSONом, iPhone'ом, 3D-модель, 5G_сеть"),
    ("repetition", "да да да да да да"),
    ("repetition", "Яблоки полезны, потому что в них много клетчатки, витаминов и воды, а сахара в них не так уж много."),
    ("repetition", "2 x 1 = 2\n2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12\n2 x 7 = 14"),
    ("repetition", "```\n" + "x = foo(bar, baz, one, two)\n" * 9 + "```"),
]


@pytest.mark.parametrize(("check", "text"), MISSES)
def test_what_only_looks_like_it(check, text):
    assert found(check, text) == []


@pytest.mark.parametrize(
    ("check", "severity"),
    [
        ("empty text", "E"), ("HTML", "W"), ("fake input", "W"), ("merged examples", "W"), ("mojibake", "W"),
        ("control characters", "W"), ("invisible characters", "W"), ("personal data", "W"), ("repetition", "W"),
        ("refusal", "I"), ("mixed script", "I"),
    ],
)  # fmt: skip
def test_how_bad_each_is(check, severity):
    assert {name: s for name, s, _, _ in TEXT_CHECKS}[check] == severity
    assert {name for name, _, _, advice in TEXT_CHECKS if advice} == set(CHECKS)


# ---------------------------------------------------------------------------------------------------- empty, fake
@pytest.mark.parametrize("nothing", ["", " ", "\n\t ", "\ufeff", "\u200b\u200c\u200d\u2060", " \u00ad\u00a0"])
def test_empty_and_invisible_texts(nothing):
    rows = [PLAIN, PLAIN | {"instruction": nothing}, PLAIN | {"output": nothing}, PLAIN | {"input": nothing}]
    assert list(CHECKS["empty text"](look_at(rows))) == [Hit(1, "messages[0]"), Hit(2, "messages[1]")]
    chats = [talk("Привет", "Да"), talk("Привет", nothing), talk("Привет", "Да", nothing, "Да")]
    assert list(CHECKS["empty text"](look_at(chats))) == [Hit(1, "messages[1]"), Hit(2, "messages[2]")]


@pytest.mark.parametrize("text", [".", "0", "👍", "нет", "None", "N/A"])
def test_a_short_answer_is_not_empty(text):
    assert found("empty text", text) == []


@pytest.mark.parametrize(
    "text",
    ["[no input]", "<noinput>", "N/A", "n/a", "<No Output>", "No input.", "None", "null", "NaN", "Нет данных", "(не указано)"],
)
def test_words_that_stand_for_nothing(text):
    rows = [PLAIN, PLAIN | {"input": text}, PLAIN | {"output": text}, PLAIN | {"instruction": text}, talk(text, text)]
    asked = PLAIN["instruction"]
    answers = [Hit(2, "messages[1]"), Hit(4, "messages[1]")] if text in ("N/A", "n/a", "<No Output>") else []
    assert list(CHECKS["fake input"](look_at(rows))) == [
        Hit(1, "messages[0]", len(asked) + 2, len(asked) + 2 + len(text)),
        *answers,
    ]  # as an answer, "None" may well be right


@pytest.mark.parametrize(
    "text", ["", "нет", "No input device is found", "none of them", "0", "Nancy", "n", "Нет данных о заказе"]
)
def test_inputs_that_mean_something(text):
    assert list(CHECKS["fake input"](look_at([PLAIN | {"input": text}]))) == []


# ---------------------------------------------------------------------------------------------------- fields
def test_every_field_is_looked_at_but_answers_alone_where_only_they_are_learnt():
    bad = "<b>As an AI, I</b> can't"
    row = {"instruction": bad, "input": bad, "output": bad}
    assert [hit.field for hit in CHECKS["HTML"](look_at([row]))] == ["messages[0]"] * 4 + ["messages[1]"] * 2
    assert [hit.field for hit in CHECKS["refusal"](look_at([row, talk(bad, bad, bad, bad)]))] == ["messages[1]", "messages[3]"]
    chat = talk("<i>раз</i>", "два", "три<br>", "четыре", system="<p>")
    assert [(hit.field, hit.start, hit.end) for hit in CHECKS["HTML"](look_at([chat]))] == [
        ("messages[0]", 0, 3), ("messages[1]", 0, 3), ("messages[1]", 6, 10), ("messages[3]", 3, 7),
    ]  # fmt: skip


def test_mojibake_is_shown_mended():
    text = "Да: " + "Привет, клиент".encode().decode("cp1252", "ignore")
    good = "Привет".encode().decode("cp1251")
    for spoilt, mended in [(good, "Привет"), ("cafÃ© ouvert", "café ouvert")]:
        hit = next(CHECKS["mojibake"](look_at([PLAIN, PLAIN | {"output": spoilt}])))
        assert (hit.row, hit.field, hit.note) == (1, "messages[1]", f"probably: {mended}")
        assert 0 <= hit.start < hit.end <= len(spoilt)
    assert text  # undecodable remains are no reason to stop
    list(CHECKS["mojibake"](look_at([PLAIN | {"output": text}])))


# ---------------------------------------------------------------------------------------------------- placeholders
PLACES = [
    ("Здравствуйте, {{name}}!", ["{{name}}"]),
    ("Здравствуйте, {имя клиента}!", ["{имя клиента}"]),
    ("Вот: [ссылка] и [link here]", ["[ссылка]", "[link here]"]),
    ("Уважаемый <имя>, TODO дописать", ["<имя>", "TODO"]),
    ("Звоните 8-XXX-12 FIXME", ["XXX", "FIXME"]),
    ("[документация](https://a.ru) и [текст][1], сноска [1], вариант [a]", []),
    ("return arr[index] + list[key][item]", []),
    ("`{name}` и\n```python\nx = {user}\n[link]\n```", []),
    ("print(f\"Hello {name}\") and f'{user}'", []),
    ("\\frac{ab}{cd}, x^{nm}, \\text{if}, ${total}", []),
    ("Сделайте todo-список; TODO list app; dict = {key: value}; {} и []", []),
    ("Ваша почта: [почта], тел. [телефон], [E-Mail], [IP]", []),  # what our own masking leaves
]


@pytest.mark.parametrize(("text", "pieces"), PLACES)
def test_placeholders(text, pieces):
    hits = placeholders(look_at([PLAIN, PLAIN | {"output": text}, talk("а", text), PLAIN | {"instruction": text, "input": text}]))
    assert [(hit.row, hit.field, text[hit.start : hit.end], hit.note) for hit in hits] == [
        (row, field, piece, piece) for row, field in ((1, "messages[1]"), (2, "messages[1]")) for piece in pieces
    ]


def test_placeholders_of_your_own_program_are_allowed():
    look = look_at([PLAIN | {"output": "Привет, {{NAME}}: [ссылка]"}])
    assert [hit.note for hit in placeholders(look, ("{{name}}",))] == ["[ссылка]"]
    assert placeholders(look, ("{{name}}", "[ссылка]")) == []


# ---------------------------------------------------------------------------------------------------- repetition
LOOP = "наш магазин работает каждый день "
COUNTING = " ".join(f"слово{chr(1072 + i)}" for i in range(30))


def test_loops_are_found_and_named():
    rows = [PLAIN | {"output": COUNTING}, PLAIN | {"output": LOOP * 6}, talk("что?", "очень быстро " * 8)]
    hits = list(CHECKS["repetition"](look_at(rows)))
    assert [(hit.row, hit.field, hit.end) for hit in hits] == [(1, "messages[1]", 0), (2, "messages[1]", 0)]
    assert hits[0].note == "5 words in a row are repeated"


def test_two_words_again_and_again():
    text = "очень быстро едет машина очень быстро летит птица очень быстро плывёт рыба очень быстро ползёт змея"
    (hit,) = CHECKS["repetition"](look_at([PLAIN | {"output": text}]))
    assert hit.note == "two words again and again"
    share = 4 * len("оченьбыстро") / len(text.replace(" ", ""))
    assert not list(CHECKS["repetition"](look_at([PLAIN | {"output": text}]), top_2gram=share + 0.001))
    assert list(CHECKS["repetition"](look_at([PLAIN | {"output": text}]), top_2gram=share - 0.001))


def test_the_share_of_repeated_runs_decides():
    gram = "один вдруг прочёл другую книгу"
    text = f"{gram} {COUNTING} {gram}"
    share = len(gram.replace(" ", "")) / len(text.replace(" ", ""))
    look = look_at([PLAIN | {"output": text}])
    assert list(CHECKS["repetition"](look, duplicate={5: share - 0.001}))
    assert not list(CHECKS["repetition"](look, duplicate={5: share + 0.001}))
    assert GOPHER == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def test_short_answers_may_repeat():
    text = "очень быстро " * 5
    assert not list(CHECKS["repetition"](look_at([PLAIN | {"output": text}])))
    assert list(CHECKS["repetition"](look_at([PLAIN | {"output": text}]), words=10))
    assert not list(CHECKS["repetition"](look_at([PLAIN | {"output": text}]), words=11))


def test_regions_decide_which_national_phones_are_known():
    text = "Call (212) 555-0143 or +44 20 7946 0958"
    assert found("personal data", text) == ["+44 20 7946 0958"]
    assert found("personal data", text, regions=("US",)) == ["(212) 555-0143", "+44 20 7946 0958"]


def test_nasty_texts_stop_no_check():
    nasty = [
        "\x00",
        "\\",
        "`",
        "```",
        "<",
        "&",
        "&;",
        "![](",
        "{",
        "[" * 500,
        "<" * 500,
        "@" * 500,
        "1" * 500,
        "👨\u200d",
        "\u0301",
    ]
    for text in [*nasty, "".join(nasty)]:
        for check in CHECKS.values():
            json.dumps(list(check(look_at([PLAIN | {"input": text, "output": text}, talk(text, text)]))))


def test_markup_that_is_the_lesson_is_no_left_over():
    about = [
        {"instruction": "Напиши страницу на HTML", "input": "", "output": "<p>Да</p>"},
        {"instruction": "What does this tag do?", "input": "", "output": "<b> makes text bold"},
        {"instruction": "Make a logo", "input": "", "output": "<svg><title>x</title></svg>"},
    ]
    assert list(CHECKS["HTML"](look_at(about))) == []
    assert {hit.row for hit in CHECKS["markup kept"](look_at(about))} == {0, 1, 2}
    assert CHECKS["HTML"](look_at([PLAIN | {"output": "<p>Да</p>"}])).__next__().row == 0


def test_a_refrain_is_no_loop():
    line = "Откройте раздел «Мои заказы» и выберите возврат.\n"
    assert [hit.row for hit in CHECKS["repetition"](look_at([PLAIN | {"output": (line.strip() + " ") * 5}]))] == [0]
    verse = "".join(f"Строка номер {word}\n{line}" for word in ("раз", "два", "три", "четыре"))
    assert list(CHECKS["repetition"](look_at([PLAIN | {"output": verse}]))) == []
    assert [hit.row for hit in CHECKS["refrain"](look_at([PLAIN | {"output": verse}]))] == [0]


@pytest.mark.parametrize("text", ["[смех в зале]", "TODO-лист на завтра", "[1]", "[пауза]"])
def test_brackets_that_wait_for_nothing(text):
    assert placeholders(look_at([PLAIN | {"output": f"Вот: {text}."}])) == []
    asked = PLAIN | {"instruction": "Добавь TODO", "output": "# TODO: проверить"}
    assert placeholders(look_at([asked])) == []
