"""Checks of single texts: each looks at every field of every row and yields what it hit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from html.entities import html5

from ftfy import fix_encoding
from ftfy.badness import BADNESS_RE

from gemma_colab.core.rows import Row, answer, answer_field, question, texts
from gemma_colab.data.finding import Hit, Look
from gemma_colab.data.personal import MASKS, personal_data
from gemma_colab.data.text import CODE, HIDDEN, INVISIBLE, TAG, normalise

ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}\d{0,2}|#\d{2,7}|#x[0-9a-fA-F]{2,6});")
MARKDOWN_IMAGE = re.compile(r"!\[[^\[\]\n]{0,300}\]\(\s*(?:https?:|data:)?[^()\s]{0,2000}\)")
FAKE = re.compile(
    r"\W*(?:no[ _-]?(?:input|output|text|answer)|n/?a|none|null|nan|undefined|empty|нет (?:данных|ответа|входа)|не указано)\W*",
    re.I,
)
FAKE_ANSWER = re.compile(r"\s*(?:n/a|[\[<(]\W*(?:no[ _-]?(?:output|answer|text)|нет ответа|none|empty)\W*[\]>)])\s*", re.I)
MARKER = r"(?:instruction|input|question|user|инструкция|вопрос|клиент|задание)"
MERGED = re.compile(rf"(?:^|[\s.!?])(\d{{1,3}}[.)]\s*{MARKER}\s*:|#{{2,}}\s*{MARKER}\s*(?::|$))", re.IGNORECASE | re.MULTILINE)
# What stands in square brackets where something is to be filled in; [смех в зале] is none.
FILL_IN = r"(?:ваш\w*|your|вставь?т?е?\w*|insert|enter|укаж\w+|the )?\s*(?:имя|фамилия|фио|name|ссылк[аиу]|link|url|дат[аыу]|date|время|time"
FILL_IN += r"|номер|number|город|city|адрес|address|компани[яи]|company|телефон|phone|почт[аы]|e-?mail|сумм[аыу]|amount|товар|product|цен[аы]|price)"
PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,40}\}\}|(?<![\w\\}^$])\{[\w .-]{2,30}\}|(?<![\w\])])\["
    + FILL_IN
    + r"[\w ]{0,20}\](?![(\[])|<[а-яё][а-яё _]{2,30}>"
    r"|(?-i:\b(?:TODO|FIXME|XXX)\b(?![ -]?(?:[Ll]ist|[Aa]pp|[Ii]tem|спис|лист)))",
    re.IGNORECASE,
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]+")
F_STRING = re.compile(r"\bf(?:\"[^\"\n]*\"|'[^'\n]*')")
# Escapes are junk, but not in a string of a program: print("a\nb").
ESCAPE = re.compile(
    r"\"(?:[^\"\\\n]|\\.)*\"|(?<!\w)'(?:[^'\\\n]|\\.)*'"
    r"|(?P<escape>\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[nrt](?![a-z ])|(?<! )\\[nrt](?= )|\\[\"/])"
)
# Gemma's own become the real tokens, wherever they stand; the others show that a template was applied already.
MARKERS = re.compile(
    r"</?(?:bos|eos|start_of_turn|end_of_turn)>|<\|(?:im_start|im_end|eot_id|begin_of_text|endoftext)\|>|\[/?INST\]"
)
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)(?: (?:language )?(?:model|assistant))?(?=\s*,|\s+I\b|\s*$)"
    r"|\bI(?:'m| am) (?:just )?an? (?:ai|(?:large )?language model)\b(?! (?:\w+er|scientist|student|specialist)\b)"
    r"|\bI (?:can(?:'|no)t|am unable to) (?:assist|help) with (?:that|this)\b"
    r"|(?:как|будучи)\s+(?:\w+\s+)?(?:языков\w+ модел\w+|искусственн\w+ интеллект\w*|нейросет\w+|ИИ\b)(?=\s*,|\s+я\b)"
    r"|\bя\s?[—–-]?\s?(?:всего лишь\s)?(?:языковая модель|искусственный интеллект|нейросеть)",
    re.IGNORECASE,
)
# Not an abbreviation with a Russian ending, if a letter of it has no Cyrillic twin: PDFки, CRMка.
MIXED = re.compile(
    "\\b(?=\\w*[\u0400-\u04ff])(?=\\w*[A-Za-z])(?!(?=[A-Z]*[DFGIJLNQRSUVWZ])[A-Z]{2,}[а-яё]{1,6}\\b)[A-Za-z\u0400-\u04ff]+\\b"
)


# Rows that are about markup: there a tag is the lesson, not a left-over.
ABOUT_MARKUP = re.compile(
    r"\b(?:x?html?5?|xml|svg|css|jsx|react components?|vue|jinja2?|markup|markdown|entit(?:y|ies)|tags?|тег(?:а|и|е|ов|ом|ами|у)?"
    r"|(?:вёрстк|верстк|разметк)\w*)\b",
    re.IGNORECASE,
)
DOCUMENT = re.compile(r"\s*(?:<!doctype|<html|<svg|<\?xml)", re.IGNORECASE)


def about_markup(row: Row) -> bool:
    """Whether the question is about HTML and kin, or the answer is a document of it."""
    return bool(ABOUT_MARKUP.search(question(row)) or DOCUMENT.match(answer(row)))


def visible(text: str) -> str:
    return text.translate(INVISIBLE).strip()


def code_blanked(text: str) -> str:
    """The text with code (in back quotes) as spaces: places stay where they were."""
    return CODE.sub(lambda m: " " * len(m[0]), text) if "`" in text else text


def spans(look: Look, find, only_answers: bool = False) -> Iterator[Hit]:
    """Hits of a function text -> matches, over all fields."""
    for row, fields in enumerate(look.texts):
        last = answer_field(look.rows[row])
        for field, text in fields.items():
            if not only_answers or field == last:
                yield from (Hit(row, field, m.start(), m.end()) for m in find(text))


def empty_text(look: Look) -> Iterator[Hit]:
    """Nothing to see in the answer, in the whole question, or in a turn of a conversation."""
    for row, fields in enumerate(look.texts):
        yield from (Hit(row, field) for field, text in fields.items() if not visible(text))


def html(look: Look) -> Iterator[Hit]:
    """Tags, entities and Markdown images; not in code, nor in rows about markup."""
    return _markup(look, about=False)


def markup_kept(look: Look) -> Iterator[Hit]:
    return _markup(look, about=True)


def _markup(look: Look, about: bool) -> Iterator[Hit]:
    for row, fields in enumerate(look.texts):
        marked = {field: text for field, text in fields.items() if "<" in text or "&" in text or "](" in text}
        if not marked or about_markup(look.rows[row]) != about:
            continue
        for field, text in marked.items():
            text = code_blanked(text)
            found = [*TAG.finditer(text), *MARKDOWN_IMAGE.finditer(text)]
            found += [match for match in ENTITY.finditer(text) if is_entity(match[0])]
            yield from (Hit(row, field, *match.span()) for match in found)


def is_entity(text: str) -> bool:
    """`&nbsp;` and `&#160;`, but not `&param;`: a reference in C++."""
    return text[1] == "#" or text[1:] in html5


def chat_markers(look: Look) -> Iterator[Hit]:
    return spans(look, MARKERS.finditer)


def fake_input(look: Look) -> Iterator[Hit]:
    for row, one in enumerate(look.rows):
        field, text = asked(one)
        if (start := fake_input_start(text)) < len(text):
            yield Hit(row, field, start + 2, len(text))
        # "None" may be the right answer; "n/a" and "[no output]" are nobody's.
        if FAKE_ANSWER.fullmatch(answer(one)):
            yield Hit(row, answer_field(one))


def asked(row: Row) -> tuple[str, str]:
    """Field and text of the turn before the answer; instruction and input of a file are its paragraphs."""
    return list(texts(row).items())[-2]


def fake_input_start(text: str) -> int:
    """Where a last paragraph begins that stands for nothing, as Alpaca's `<noinput>` does; else the text's end."""
    head, gap, last = text.rpartition("\n\n")
    return len(head) if gap and len(last) < 30 and FAKE.fullmatch(last) else len(text)


def merged_examples(look: Look) -> Iterator[Hit]:
    for row, one in enumerate(look.rows):
        yield from (Hit(row, answer_field(one), *m.span(1)) for m in MERGED.finditer(answer(one)))


def placeholders(look: Look, allowed: tuple[str, ...] = ()) -> list[Hit]:
    """Placeholders in answers, but for those that your own program fills in (`allowed`), code and masks of personal data."""
    known = {word.lower() for word in (*allowed, *MASKS)}
    hits = []
    for row, one in enumerate(look.rows):
        if about_markup(one):
            continue
        known_here = known | set(re.findall(r"todo|fixme|xxx", question(one).lower()))  # asked for
        text = F_STRING.sub(lambda m: " " * len(m[0]), code_blanked(answer(one)))
        hits += [
            Hit(row, answer_field(one), *m.span(), m[0]) for m in PLACEHOLDER.finditer(text) if m[0].lower() not in known_here
        ]
    return hits


def mojibake(look: Look) -> Iterator[Hit]:
    for row, fields in enumerate(look.texts):
        for field, text in fields.items():
            if not text.isascii() and (mended := fix_encoding(text)) != text:
                bad = BADNESS_RE.search(text)
                yield Hit(row, field, *(bad.span() if bad else (0, 0)), f"probably: {mended[:60]}")


def control_characters(look: Look) -> Iterator[Hit]:
    def find(text: str) -> Iterable[re.Match]:
        yield from CONTROL.finditer(text)
        if "\\" in text:
            yield from (m for m in ESCAPE.finditer(code_blanked(text)) if m["escape"])

    return spans(look, find)


def invisible_characters(look: Look) -> Iterator[Hit]:
    return spans(look, HIDDEN.finditer)


def personal(look: Look, regions: tuple[str, ...] = ("RU",)) -> Iterator[Hit]:
    for row, fields in enumerate(look.texts):
        for field, text in fields.items():
            yield from (Hit(row, field, one.start, one.end, one.kind) for one in personal_data(text, regions))


def refusals(look: Look) -> Iterator[Hit]:
    return spans(look, REFUSAL.finditer, only_answers=True)


def mixed_script(look: Look) -> Iterator[Hit]:
    """Words with Cyrillic and Latin letters: a look-alike letter makes another token of it. USB-кабель is two words."""
    return spans(look, MIXED.finditer)


# Shares of duplicated characters in n-grams of words; datatrove's GopherRepetitionFilter, after Rae et al. 2021, table A1.
GOPHER = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def repetition(look: Look, duplicate: dict[int, float] = GOPHER, top_2gram: float = 0.20, words: int = 12) -> Iterator[Hit]:
    """Answers of at least `words` words caught in a loop. Code, numbers and single letters aside: tables repeat them."""
    return _loops(look, False, duplicate, top_2gram, words)


def refrain(look: Look, duplicate: dict[int, float] = GOPHER, top_2gram: float = 0.20, words: int = 12) -> Iterator[Hit]:
    return _loops(look, True, duplicate, top_2gram, words)


def _verse(text: str) -> bool:
    """Four lines and more: what is repeated there may be a refrain."""
    return sum(bool(line.strip()) for line in text.splitlines()) >= 4


def _loops(look: Look, verse: bool, duplicate: dict[int, float], top_2gram: float, words: int) -> Iterator[Hit]:
    for row, one in enumerate(look.rows):
        if _verse(answer(one)) != verse:
            continue
        tokens = [word for word in normalise(code_blanked(answer(one))).split() if len(word) > 1 and not word.isdigit()]
        if len(tokens) < words:
            continue
        share = _top_share(tokens, 2)
        # Without a repeated run of the shortest length there is none of a longer one.
        some = _duplicate_share(tokens, min(duplicate)) > 0
        worst = next((n for n, most in duplicate.items() if some and _duplicate_share(tokens, n) > most), None)
        if worst or share > top_2gram:
            yield Hit(
                row, answer_field(one), note=f"{worst} words in a row are repeated" if worst else "two words again and again"
            )


def _duplicate_share(words: list[str], n: int) -> float:
    """Characters in n-grams seen before, over all characters; an n-gram found twice is stepped over, as datatrove does."""
    seen, repeated, i = set(), 0, 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            repeated += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return repeated / max(1, sum(map(len, words)))


def _top_share(words: list[str], n: int) -> float:
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    gram, count = grams.most_common(1)[0]
    return sum(map(len, gram)) * count / max(1, sum(map(len, words))) if count > 3 else 0.0


# name, severity, function, what to do
TEXT_CHECKS = [
    ("empty text", "E", empty_text, "write the missing instruction or answer, or drop the row"),
    ("chat markers", "E", chat_markers, "take them out: the chat template puts its own around the turns"),
    ("HTML", "W", html, "turn it into text, or the model will answer in HTML"),
    ("markup kept", "I", markup_kept, "these rows are about markup, so it is left as it is; look whether that is right"),
    ("fake input", "W", fake_input, "leave the input empty, drop the row if it is the answer: the model would learn these words"),
    ("merged examples", "W", merged_examples, "cut the answer where the next example begins, or drop the row"),
    ("mojibake", "W", mojibake, "the text was decoded with the wrong encoding; the step `mojibake` puts it right"),
    ("control characters", "W", control_characters, "remove them, or the model will write them"),
    ("invisible characters", "W", invisible_characters, "remove them: words with them are other words to a model"),
    ("personal data", "W", personal, "mask it: a model may repeat to anybody what it was trained on"),
    ("repetition", "W", repetition, "rewrite or drop: a model that learns a loop gets caught in it"),
    ("refrain", "I", refrain, "lines are repeated; fine in a song, a fault in prose"),
    ("refusal", "I", refusals, "is this your voice, or that of the model which wrote the answer?"),
    ("mixed script", "I", mixed_script, "type the word again in one alphabet"),
]
