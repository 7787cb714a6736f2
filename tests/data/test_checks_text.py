"""Checks of single texts: the exact place of each hit, and what looks like one and is none."""

import pytest

from gemma_colab.core.rows import to_messages
from gemma_colab.data.checks_set import placeholder_words
from gemma_colab.data.checks_text import about_markup
from gemma_colab.data.finding import CHECKS, CheckContext, Hit

PLAIN = {"instruction": "Где мой заказ?", "input": "", "output": "Заказ уже в пути."}


def hits(check, *records, **thresholds):
    """What a check hits in these rows."""
    run = next(one for one in CHECKS if check in one.names)
    return [
        hit
        for finding in run(CheckContext([to_messages(r) for r in records]), **thresholds)
        for hit in finding.hits
        if finding.check.startswith(check)
    ]


def said(text, **more):
    return PLAIN | {"output": text} | more


def pieces(check, text, **thresholds):
    """What a check hits in an answer that stands in the second row: the pieces of text, in order."""
    found = hits(check, PLAIN, said(text), **thresholds)
    assert {(hit.row, hit.field) for hit in found} <= {(1, "answer")}
    return [text[hit.start : hit.end] for hit in sorted(found)]


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
    *(
        ("chat markers", f"BERT ставит {token} сюда", [token])
        for token in "<pad> <mask> <unk> <eos> <bos> <start_of_turn> <unused0> <unused6241> [multimodal] <start_of_image>".split()
        + "<end_of_image> <image_soft_token> <|eot_id|> <|user|>".split()
    ),
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


@pytest.mark.parametrize(("check", "text", "found"), HITS)
def test_the_very_place_is_named(check, text, found):
    assert pieces(check, text) == found


MISSES = [
    *(("empty text", text) for text in (".", "0", "👍", "нет", "None", "N/A")),
    ("HTML", "Если a<b и c>d, то что?"),
    ("HTML", "if x<s and s>y then"),
    ("HTML", "2 < 3 > 1, I <3 you, <ваше имя>, <- и ->"),
    ("HTML", "Так: `<b>` и\n```html\n<p>&nbsp;</p>\n```"),
    ("HTML", "Незакрытый блок:\n```\n<p>текст"),
    ("HTML", "List<i> items; std::vector<a> v;"),
    ("HTML", "AT&T; R&D; int f(T &param; &region;) ?a=1&copy=2"),
    ("HTML", "См. [ссылка](http://ya.ru) и [1](a)"),
    ("chat markers", "< mask >, <mask id='m'>, <masks>, [modal], <pad/>, a <| b |> c, <unused>, <s>да</s>"),
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
    assert pieces(check, text) == []


@pytest.mark.parametrize(
    ("check", "severity"),
    [
        ("empty text", "E"), ("chat markers", "E"), ("HTML", "W"), ("markup kept", "I"), ("fake input", "W"), ("merged examples", "W"),
        ("mojibake", "W"), ("control characters", "W"), ("invisible characters", "W"), ("personal data", "W"), ("repetition", "W"),
        ("refusal", "I"), ("mixed script", "I"),
    ],
)  # fmt: skip
def test_how_bad_each_is(check, severity):
    text = {"empty text": "", "fake input": "n/a", "mojibake": "РџСЂРёРІРµС‚", "repetition": LOOP * 6, "markup kept": "<svg>"}
    text = text.get(check) or next((text for name, text, _ in HITS if name == check), "")
    (finding,) = next(one for one in CHECKS if check in one.names)(CheckContext([to_messages(said(text))]))
    assert (finding.check, finding.severity) == (check, severity)
    assert finding.what_to_do


# ---------------------------------------------------------------------------------------------------- empty, fake
@pytest.mark.parametrize("nothing", ["", " ", "\n\t ", "\ufeff", "\u200b\u200c\u200d\u2060", " \u00ad\u00a0"])
def test_empty_and_invisible_texts(nothing):
    rows = [
        PLAIN,
        PLAIN | {"instruction": nothing},
        said(nothing),
        PLAIN | {"input": nothing},
        talk("Привет", "Да", nothing, "Да"),
    ]
    assert hits("empty text", *rows) == [Hit(1, "question"), Hit(2, "answer"), Hit(4, "question")]


@pytest.mark.parametrize(
    "text",
    ["[no input]", "<noinput>", "N/A", "n/a", "<No Output>", "No input.", "None", "null", "NaN", "Нет данных", "(не указано)"],
)
def test_words_that_stand_for_nothing(text):
    rows = [PLAIN, PLAIN | {"input": text}, said(text), PLAIN | {"instruction": text}, talk(text, text)]
    answers = [Hit(2, "answer"), Hit(4, "answer")] if text in ("N/A", "n/a", "<No Output>") else []  # "None" may well be right
    start = len(PLAIN["instruction"]) + 2
    assert hits("fake input", *rows) == [Hit(1, "question", start, start + len(text)), *answers]


@pytest.mark.parametrize(
    "text", ["", "нет", "No input device is found", "none of them", "0", "Nancy", "n", "Нет данных о заказе"]
)
def test_inputs_that_mean_something(text):
    assert hits("fake input", PLAIN | {"input": text}) == []


# ---------------------------------------------------------------------------------------------------- fields
def test_every_turn_is_looked_at_but_answers_alone_where_only_they_are_learned():
    bad = "<b>As an AI, I</b> can't"
    assert [hit.field for hit in hits("refusal", said(bad, input=bad), talk(bad, bad, bad, bad))] == ["answer", "answer"]
    chat = talk("<i>раз</i>", "<u>", "два", "<p>", "три<br>", "четыре", system="<s>")
    assert [hit[1:4] for hit in hits("HTML", chat)] == [
        ("system", 0, 3), ("turn 1", 0, 3), ("turn 1", 6, 10), ("turn 2", 0, 3), ("turn 4", 0, 3), ("question", 3, 7),
    ]  # fmt: skip


def test_mojibake_is_shown_mended():
    good = "Привет".encode().decode("cp1251")
    for spoiled, mended in [(good, "Привет"), ("cafÃ© ouvert", "café ouvert")]:
        (hit,) = hits("mojibake", said(spoiled))
        assert (hit.field, hit.note) == ("answer", f"probably: {mended}")
        assert 0 <= hit.start < hit.end <= len(spoiled)
    hits("mojibake", said("Да: " + "Привет".encode().decode("cp1252", "ignore")))  # undecodable remains are no reason to stop


def test_markup_that_is_the_lesson_is_no_left_over():
    about = [
        {"instruction": "Напиши страницу на HTML", "output": "<p>Да</p>"},
        {"instruction": "What does this tag do?", "output": "<b> makes text bold"},
        {"instruction": "Make a logo", "output": "<svg><title>x</title></svg>"},
    ]
    assert all(about_markup(to_messages(record)) for record in about)
    assert hits("HTML", *about) == []
    assert {hit.row for hit in hits("markup kept", *about)} == {0, 1, 2}
    assert hits("markup kept", said("<p>Да</p>")) == []


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
    ("Вот: [смех в зале], TODO-лист на завтра, [1], [пауза]", []),
]


@pytest.mark.parametrize(("text", "found"), PLACES)
def test_placeholders(text, found):
    placed = hits("placeholder", PLAIN, said(text), talk("а", text), PLAIN | {"instruction": text, "input": text})
    assert [(hit.row, hit.field, text[hit.start : hit.end], hit.note) for hit in placed] == [
        (row, "answer", piece, piece) for row in (1, 2) for piece in found
    ]


def test_placeholders_that_were_asked_for_and_those_of_your_own_program():
    assert hits("placeholder", said("# TODO: проверить", instruction="Добавь TODO")) == []
    record = said("Привет, {{NAME}}: [ссылка]")
    assert [hit.note for hit in hits("placeholder", record, allowed=("{{name}}",))] == ["[ссылка]"]
    assert hits("placeholder", record, allowed=("{{name}}", "[ссылка]")) == []


def test_a_rare_placeholder_warns_and_a_common_one_informs():
    records = [said("см. {{url}}")] * 2 + [said("см. [ссылка]")] * 3 + [said("см. [Ссылка]")]
    context = CheckContext([to_messages(record) for record in records])
    rare, often = placeholder_words(context)
    assert (rare.check, rare.severity, rare.rows) == ("placeholder", "W", [0, 1])
    assert (often.check, often.severity, often.rows) == ("placeholder in use", "I", [2, 3, 4, 5])
    assert "[ссылка]" in often.what_to_do
    assert [f.check for f in placeholder_words(context, common=2)] == ["placeholder in use"]
    assert [f.check for f in placeholder_words(context, common=5)] == ["placeholder"]
    assert [f.check for f in placeholder_words(context, allowed=("{{url}}",))] == ["placeholder in use"]


# ---------------------------------------------------------------------------------------------------- repetition
LOOP = "наш магазин работает каждый день "
COUNTING = " ".join(f"слово{chr(1072 + i)}" for i in range(30))


def test_loops_are_found_and_named():
    found = hits("repetition", said(COUNTING), said(LOOP * 6), talk("что?", "очень быстро " * 8))
    assert [(hit.row, hit.field, hit.end) for hit in found] == [(1, "answer", 0), (2, "answer", 0)]
    assert found[0].note == "5 words in a row are repeated"


def test_the_shares_of_repeated_words_decide():
    text = "очень быстро едет машина очень быстро летит птица очень быстро плывёт рыба очень быстро ползёт змея"
    (hit,) = hits("repetition", said(text))
    assert hit.note == "two words again and again"
    share = 4 * len("оченьбыстро") / len(text.replace(" ", ""))
    assert not hits("repetition", said(text), top_2gram=share + 0.001)
    assert hits("repetition", said(text), top_2gram=share - 0.001)
    gram = "один вдруг прочёл другую книгу"
    text = f"{gram} {COUNTING} {gram}"
    share = len(gram.replace(" ", "")) / len(text.replace(" ", ""))
    assert hits("repetition", said(text), duplicate_5gram=share - 0.001)
    assert not hits("repetition", said(text), duplicate_5gram=share + 0.001)


def test_short_answers_may_repeat():
    text = "очень быстро " * 5
    assert not hits("repetition", said(text))
    assert hits("repetition", said(text), words=10)
    assert not hits("repetition", said(text), words=11)


def test_a_refrain_is_no_loop():
    line = "Откройте раздел «Мои заказы» и выберите возврат.\n"
    assert hits("repetition", said((line.strip() + " ") * 5))
    verse = "".join(f"Строка номер {word}\n{line}" for word in ("раз", "два", "три", "четыре"))
    assert not hits("repetition", said(verse))
    assert hits("refrain", said(verse))


def test_own_contacts_are_kept_and_said():
    rows = [said("Звоните +7 495 123-45-67.", instruction=f"Вопрос {i}") for i in range(6)] + [said("Звоните +7 912 345-67-89.")]
    context = CheckContext([to_messages(record) for record in rows])
    run = next(one for one in CHECKS if "own contacts" in one.names)
    others, own = run(context)
    assert (others.check, others.severity, others.rows) == ("personal data", "W", [6])
    assert (own.check, own.severity, own.rows) == ("own contacts", "I", [*range(6)])
    assert own.what_to_do.startswith("+7 495 123-45-67 (6 rows): kept")
    others, _, missing = run(context, keep=("only", "8 (912) 345-67-89", "me@shop.ru"))
    assert others.rows == [*range(6)]
    assert (missing.check, missing.severity) == ("own contacts", "W")
    assert "me@shop.ru, which no row holds" in missing.what_to_do


def test_regions_decide_which_national_phones_are_known():
    text = "Call (212) 555-0143 or +44 20 7946 0958"
    assert pieces("personal data", text) == ["+44 20 7946 0958"]
    assert pieces("personal data", text, regions=("US",)) == ["(212) 555-0143", "+44 20 7946 0958"]


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
        for one in CHECKS:
            if not one.counts_tokens:
                hits(one.names[0], said(text, input=text), talk(text, text))
