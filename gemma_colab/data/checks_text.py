"""Checks of single texts: each looks at the turns of every row and yields what it hit."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from html.entities import html5
from itertools import pairwise

from ftfy import fix_encoding
from ftfy.badness import BADNESS_RE

from gemma_colab.core.rows import Row, answer
from gemma_colab.data.finding import CheckContext, Finding, Hit, check
from gemma_colab.data.likeness import normalize
from gemma_colab.data.looking import BESIDE, beside, question
from gemma_colab.data.personal import CODE, contact, own_contacts, personal_data, redact, wide

TAGS = "a|abbr|b|blockquote|body|br|button|center|code|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|label|li|link|meta|nobr|ol"
TAGS += "|option|p|pre|s|script|select|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|tfoot|th|thead|title|tr|tt|u|ul"
# Known names, and attributes only with a value: "a<b и c>d" is no tag. One letter right after a word is a tag only where it
# is closed later: List<i> is Java.
TAG = re.compile(
    r"(?is)(?<=\w)<(?P<letter>[abisu])>(?=.{0,500}?</(?P=letter)\s*>)|(?<!\w)<(?:[abisu])>"
    rf"|(?!<[abisu]>)</?(?:{TAGS})(?:\s+[\w:-]+\s*=[^<>]*|\s*/?)>"
)
# What cleaning takes out: joiners stay where they build an emoji or an Indic or Persian word.
HIDDEN = re.compile(
    "[\ufeff\u200b\u2060\u00ad]+|(?<![^\\sA-Za-zА-яЁё0-9.,:;!?])[\u200c\u200d]+|(?<![\u200c\u200d])[\u200c\u200d]++(?![^\\sA-Za-zА-яЁё0-9.,:;!?])"
)
ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}\d{0,2}|#\d{2,7}|#x[0-9a-fA-F]{2,6});")
MARKDOWN_IMAGE = re.compile(r"!\[[^\[\]\n]{0,300}\]\(\s*(?:https?:|data:)?[^()\s]{0,2000}\)")
# Words that stand for nothing, as Alpaca's `<noinput>` does, where they are the last paragraph of a question.
FAKE_INPUT = re.compile(
    r"(?is)(?<=.)\n\n(\W{0,9}(?:no[ _-]?(?:input|output|text|answer)|n/?a|none|null|nan|undefined|empty"
    r"|нет (?:данных|ответа|входа)|не указано)\W{0,9})\Z"
)
# As an answer, "None" may be right; "n/a" and "[no output]" are nobody's.
FAKE_ANSWER = re.compile(r"\s*(?:n/a|[\[<(]\W*(?:no[ _-]?(?:output|answer|text)|нет ответа|none|empty)\W*[\]>)])\s*", re.I)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]+")
# Escapes are junk, but not in a string of a program: print("a\nb").
ESCAPE = re.compile(
    r"(?P<quote>\"|(?<![\w\\])')(?:(?!(?P=quote))[^\\\n]|\\.)*+(?:(?P=quote)|(?P<open>))"
    r"|(?P<escape>\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\[nrt](?![a-z ])|(?<! )\\[nrt](?= )|\\[\"/])"
)
# Rows that are about markup: there a tag is the lesson, not a left-over.
ABOUT_MARKUP = re.compile(
    r"(?i)\b(?:x?html?5?|xml|svg|css|jsx|react components?|vue|jinja2?|markup|markdown|entit(?:y|ies)|tags?|тег(?:а|и|е|ов|ом|ами|у)?"
    r"|(?:вёрстк|верстк|разметк)\w*)\b"
)
DOCUMENT = re.compile(r"\s*(?:<!doctype|<html|<svg|<\?xml)", re.IGNORECASE)


def about_markup(row: Row) -> bool:
    """Tell whether the question is about HTML and kin, or the answer is a document of it."""
    return bool(ABOUT_MARKUP.search(question(row)) or DOCUMENT.match(answer(row)))


def is_entity(text: str) -> bool:
    """Tell `&nbsp;` and `&#160;` from `&param;`, a reference in C++."""
    return text[1] == "#" or text[1:] in html5


def escapes(text: str, start: int = 0, end: int | None = None) -> Iterator[re.Match]:
    """Yield the escapes outside of strings. What follows a quote that is never closed is looked through once more."""
    for match in ESCAPE.finditer(text, start, len(text) if end is None else end):
        if match["escape"]:
            yield match
        elif match["open"] is not None:
            yield from escapes(text, match.start() + 1, match.end())


def visible(text: str) -> str:
    return re.sub("[\ufeff\u200b\u200c\u200d\u2060\u00ad]", "", text).strip()


def code_blanked(text: str) -> str:
    """The text with code (in back quotes) as spaces: places stay where they were."""
    return CODE.sub(lambda m: " " * len(m[0]), text) if "`" in text else text


@check("empty text", severity="E", advice="write the missing question or answer, or drop the row")
def empty_text(context: CheckContext) -> Iterator[Hit]:
    return (Hit(row, field) for row, field, text in context.fields() if not visible(text))


@check("HTML", "markup kept")
def html(context: CheckContext) -> Iterator[Finding]:
    """Tags, entities and Markdown images; not in code. In rows about markup they only inform."""
    left, kept = [], []
    for row, field, text in context.fields():
        if any(sign in text for sign in ("<", "&", "](")):
            text, hits = code_blanked(text), kept if about_markup(context.rows[row]) else left
            found = [*TAG.finditer(text), *MARKDOWN_IMAGE.finditer(text), *(m for m in ENTITY.finditer(text) if is_entity(m[0]))]
            hits += [Hit(row, field, *match.span()) for match in found]
    if left:
        yield Finding("HTML", "W", "turn it into text, or the model will answer in HTML", left)
    if kept:
        yield Finding("markup kept", "I", "these rows are about markup, so it is left as it is; look whether that is right", kept)


@check("fake input", advice="leave the input empty, drop the row if it is the answer: the model would learn these words")
def fake_input(context: CheckContext) -> Iterator[Hit]:
    for row, fields in enumerate(context.texts):
        if match := FAKE_INPUT.search(fields["question"]):
            yield Hit(row, "question", *match.span(1))
        if FAKE_ANSWER.fullmatch(fields["answer"]):
            yield Hit(row, "answer")


@check("mojibake", advice="the text was decoded with the wrong encoding; the step `mojibake` puts it right")
def mojibake(context: CheckContext) -> Iterator[Hit]:
    for row, field, text in context.fields():
        if not text.isascii() and (repaired := fix_encoding(text)) != text:
            bad = BADNESS_RE.search(text)
            yield Hit(row, field, *(bad.span() if bad else (0, 0)), f"probably: {redact(repaired)[:60]}")


@check("control characters", advice="remove them, or the model will write them")
def control_characters(context: CheckContext) -> Iterator[Hit]:
    for row, field, text in context.fields():
        written = escapes(code_blanked(text)) if "\\" in text else ()
        yield from (Hit(row, field, *match.span()) for match in [*CONTROL.finditer(text), *written])


@check("personal data", "own contacts")
def personal(context: CheckContext, regions: tuple[str, ...] = ("RU",), keep: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Personal data in all that is written of a row, and apart from it what `personal.own_contacts` and `keep` name."""
    own, others, kept = own_contacts(context.rows, keep, regions), [], []
    around, look = cache(partial(wide, regions=regions)), partial(personal_data, regions=regions)  # a label comes again and again
    besides = [(i, field, str(value)) for i, row in enumerate(context.rows) for field, value in beside(row).items()]
    for row, field, text in (*context.fields(), *besides):
        for kind, *span in around(text) if field.startswith(BESIDE) else look(text):
            it = text[slice(*span)]
            (kept if contact(it) in own else others).append(Hit(row, field, *span, it if contact(it) in own else kind))
    if others:
        advice = "mask it: a model may repeat to anybody what it was trained on; code, and what may be no phone, is left to you"
        where = sorted({hit.field.removeprefix(BESIDE) for hit in others if hit.field.startswith(BESIDE)})
        advice += f"; beside the texts it is in {', '.join(where[:5])}{' ...' * (len(where) > 5)}" * bool(where)
        yield Finding("personal data", "W", advice, others)
    spelt = {contact(hit.note): hit.note for hit in kept}
    if kept:
        counts = Counter(spelt[value] for value, _ in dict.fromkeys((contact(hit.note), hit.row) for hit in kept))
        said = ", ".join(f"{value} ({n} row{'s' * (n > 1)})" for value, n in counts.most_common())
        advice = f"{said}: kept, as many answers give it unasked or you named it; the step mask_personal_data masks it with --keep only (keep=['only'])"
        yield Finding("own contacts", "I", advice, kept)
    if missing := [value for key, value in {contact(value): value for value in keep}.items() if key not in {"only", *spelt}]:
        yield Finding("own contacts", "W", f"--keep names {', '.join(missing)}, which no row holds; look at the spelling")


@check("repetition", "refrain")
def repetition(
    context: CheckContext, duplicate_5gram: float = 0.15, top_2gram: float = 0.20, words: int = 12
) -> Iterator[Finding]:
    """Answers of at least `words` words caught in a loop. Code, numbers and single letters aside: tables repeat them.
    In four lines and more it may be a refrain, and only informs.

    duplicate_5gram: share of the characters in runs of 5 words that stood before. top_2gram: in the most common pair, if it comes more than three
    times. Both as in datatrove's GopherRepetitionFilter, after Rae et al. 2021, table A1.
    """
    prose, verse = [], []
    for row, text in enumerate(context.answers):
        tokens = [word for word in normalize(code_blanked(text)).split() if len(word) > 1 and not word.isdigit()]
        if len(tokens) < words:
            continue
        characters, seen, repeated, i = sum(map(len, tokens)), set(), 0, 0
        while i + 5 <= len(tokens):
            run = tuple(tokens[i : i + 5])
            again = run in seen
            seen.add(run)
            repeated += sum(map(len, run)) * again
            i += 5 if again else 1  # a run found twice is stepped over
        (pair, count), *_ = Counter(pairwise(tokens)).most_common(1)
        if (loop := repeated > duplicate_5gram * characters) or (
            count > 3 and count * sum(map(len, pair)) > top_2gram * characters
        ):
            note = "5 words in a row are repeated" if loop else "two words again and again"
            lines = sum(bool(line.strip()) for line in text.splitlines())
            (verse if lines >= 4 else prose).append(Hit(row, "answer", note=note))
    if prose:
        yield Finding("repetition", "W", "rewrite or drop: a model that learns a loop gets caught in it", prose)
    if verse:
        yield Finding("refrain", "I", "lines are repeated; fine in a song, a fault in prose", verse)


def check_pattern(name: str, pattern: re.Pattern, advice: str, severity: str = "W", only_answers: bool = False) -> None:
    """Register a check that hits whatever the pattern finds, or its last group if it has one."""

    @check(name, severity=severity, advice=advice)
    def find(context: CheckContext) -> Iterator[Hit]:
        for row, field, text in context.fields():
            if field == "answer" or not only_answers:
                yield from (Hit(row, field, *match.span(pattern.groups)) for match in pattern.finditer(text))


# Gemma's own become the real tokens, wherever they are; the others show that a template was applied already.
CHAT_MARKERS = r"</?(?:bos|eos|start_of_turn|end_of_turn)>|<(?:pad|unk|mask|unused\d{1,4})>"
CHAT_MARKERS += r"|<(?:image_soft_token|(?:start|end)_of_image)>|\[multimodal\]|<\|[a-z_]{3,30}\|>|\[/?INST\]"
MARKER = r"(?:instruction|input|question|user|инструкция|вопрос|клиент|задание)"
MERGED = re.compile(rf"(?:^|[\s.!?])(\d{{1,3}}[.)]\s*{MARKER}\s*:|#{{2,}}\s*{MARKER}\s*(?::|$))", re.IGNORECASE | re.MULTILINE)
REFUSAL = re.compile(
    r"(?i)\bas an? (?:ai|artificial intelligence|(?:large )?language model)(?: (?:language )?(?:model|assistant))?(?=\s*,|\s+I\b|\s*$)"
    r"|\bI(?:'m| am) (?:just )?an? (?:ai|(?:large )?language model)\b(?! (?:\w+er|scientist|student|specialist)\b)"
    r"|\bI (?:can(?:'|no)t|am unable to) (?:assist|help) with (?:that|this)\b"
    r"|(?:как|будучи)\s+(?:\w+\s+)?(?:языков\w+ модел\w+|искусственн\w+ интеллект\w*|нейросет\w+|ИИ\b)(?=\s*,|\s+я\b)"
    r"|\bя\s?[—–-]?\s?(?:всего лишь\s)?(?:языковая модель|искусственный интеллект|нейросеть)"
)
# Not an abbreviation with a Russian ending, if a letter of it has no Cyrillic twin: PDFки, CRMка.
MIXED_SCRIPT = re.compile(
    "\\b(?=\\w*[\u0400-\u04ff])(?=\\w*[A-Za-z])(?!(?=[A-Z]*[DFGIJLNQRSUVWZ])[A-Z]{2,}[а-яё]{1,6}\\b)[A-Za-z\u0400-\u04ff]+\\b"
)


@check(
    "chat markers",
    severity="E",
    advice="control tokens, not letters, to a model: take them out (the template adds its own), or write < mask >",
)
def chat_markers(context: CheckContext) -> Iterator[Hit]:
    """Control tokens of Gemma and of other models' templates, and all others that the tokenizer has, if it is at hand."""
    added = context.tokenizer.added_tokens_decoder.values() if context.tokenizer else ()
    spelt = re.compile("|".join([CHAT_MARKERS, *(re.escape(token.content) for token in added if token.special)]))
    for row, field, text in context.fields():
        yield from (Hit(row, field, *match.span()) for match in spelt.finditer(text))


check_pattern("merged examples", MERGED, "cut the answer where the next example begins, or drop the row", only_answers=True)
check_pattern("invisible characters", HIDDEN, "remove them: words with them are other words to a model")
check_pattern("refusal", REFUSAL, "is this your voice, or that of the model which wrote the answer?", "I", only_answers=True)
# Words with Cyrillic and Latin letters: a look-alike letter makes another token of it. USB-кабель is two words.
check_pattern("mixed script", MIXED_SCRIPT, "type the word again in one alphabet", "I")
