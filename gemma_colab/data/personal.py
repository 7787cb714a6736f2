"""Personal data and secrets in a text: e-mail, phone, payment card, IBAN, Russian passport, SNILS and INN, IP, keys."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import phonenumbers
from stdnum import iban, luhn
from stdnum.ru import inn

from gemma_colab.core.errors import KEYS, PRIVATE_KEY
from gemma_colab.core.rows import Row
from gemma_colab.data.looking import question, replaced

# Not numpy@1.26, logo@2x.png, git@github.com:a/b, ssh://git@..., nor "me@example.com" of a program, which is nobody's.
EMAIL = re.compile(
    r"(?<![\w.+\xad-])(?!git@[\w.-]+:\S|(?<=//)git@|(?<=[\"'])[^\s\"'@]+@example\.\w{3}[\"'])(?:[\w.+\xad-]+|\"[^\"\n]{1,64}\")"
    r"(?:[@＠﹫]|%40|\\(?:u00|x)40|&(?:#0*64|#[xX]0*40|commat);)(?!\dx\.)[\w\xad-]+(?:[.．][\w\xad-]+)*[.．]\xad*[^\W\d_]\xad*[^\W\d_]+"
)
CALLED = "(?i:visa|card|stro|amex|npay|арт[аыеу])"  # how the word before a card may end, four letters each
# 15, 16, 18 or 19 digits, also grouped; 13 and 14 are bar codes and parcels, 0.2679491924311228 a number, AB-4111... an article.
CARD = re.compile(
    rf"(?:(?<!\w)(?<!\w-)|(?<={CALLED})|(?<={CALLED}[_-])|(?<=(?i:\bмир|\bmir)[_-]))"
    r"(?<!\d[.,])(?:3[47]\d{13}|[2-6]\d{15}(?:\d{2,3})?"
    r"|[2-6]\d{3} ?([ ._-]) ?\d{4} ?\1 ?\d{4} ?\1 ?\d{4}(?: ?\1 ?\d{3})?|3[47]\d\d ?([ ._-]) ?\d{6} ?\2 ?\d{5})(?![\da-zA-Z_]|-\d(?!\d[/.]\d\d))"
)
IBAN = re.compile(  # small letters in one piece, or without any among the later groups: else words behind it would be its own
    r"(?:(?<![^\W_])|(?<=(?i:iban)))(?=(?P<it>[A-Za-z]{2}\d{2}(?:(?:[ -]{0,2}[A-Z0-9]{4}){2,7}(?:[ -]{0,2}[A-Z0-9]{1,3})?"
    r"|[a-z0-9]{11,30}| ?[a-z0-9]{4}(?: ?\d{4}){2,6}(?: ?\d{1,3})?)(?![^\W_])))"
)
PASSPORT = re.compile(r"(?i)(?:паспорт|passport)\D{0,40}(?P<it>\d{2} ?\d{2}[ ,№-]{0,6}(?:номер[ :№]{0,3})?\d{6})\b")
SNILS = re.compile(
    r"(?P<named>(?i:снилс|snils)\D{0,10})?\b(?P<it>\d{3}(?(named)[ -]?|-)\d{3}(?(named)[ -]?|-)\d{3}(?(named)[ -]?|[ -])\d{2})\b"
)
INN = re.compile(r"(?i)(?:ИНН|INN)\D{0,10}(?P<it>\d{12})\b")
# Somebody's: not of a home network (192.168.0.1), nor a mask or multicast (from 224 on).
NOBODYS = r"(?:0|10|127|169\.254|172\.(?:1[6-9]|2\d|3[01])|192\.168|22[4-9]|2[3-5]\d)\."
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
QUAD = rf"{BYTE}(?:\.{BYTE}){{3}}"
IP = re.compile(rf"(?<![\w.])(?!{NOBODYS}){QUAD}(?![\w.]*\d)")
# What makes of the number after it a version or a paragraph; and what an order, a sum, a part of something longer.
NUMBERED = r"(?i)(?:\b(?:верси\w*|version|ver\.?|v\.?|release|build|сборк\w*|прошивк\w*|firmware|пп?\.|пункт\w*|раздел\w*|section"
NUMBERED += r"|clause|гост\w*|rfc)|§|(?<!wa\.m)[a-z]/)\s*$"
ORDERED = re.compile(
    rf"{NUMBERED}|(?:№|#|(?:\b|_)(?:заказ\w*|отправлени\w*|накладн\w*|договор\w*|сч[её]т\w*|карт\w*|трек\w*|код\w*|артикул\w*|арт\."
    r"|серийн\w*|числ\w*|сумм\w*|order|ticket|invoice|tracking|serial|sku|id|code|timestamp|is[bs]n)(?:\W{1,3}(?:number|номер\w*|no|№|с))*:?"
    r"|\b(?:огрн\w*|инн|кпп)\b(?:\W+\w+){0,2})[^\w?!]{0,3}$|(?<!wa\.me)[\w/=?&#@]\Z|[a-z]-\Z|\d[.,]\Z|[$€₽=+*×<>]\s*$|\s/\s*$"
)
COUNTED = re.compile(r"(?i)[.,/]\d|[\w%]|\.[a-z]|\s*(?:[₽$€+*×÷^=<>]|руб|чел|байт|byte|лет\b|шт|тыс|млн|eur|usd|rub)")
SPACED = re.compile(r"\d{1,3}(?:[ .]\d{3})+|.*\D\d(?:\D.*)?")  # 9 876 543 210, 9-123-45678-9
# A number as one dials it, and what is said beside one that may be another.
DIALED = re.compile(r"\+\u2060*\d|[78]?[ .-]?\(|[78][ .-]\d{3}[ .-]")
CALL = re.compile(r"(?i)\bтел\b|телефон|\bмоб|звон|whats|viber|смс|sms|phone|\bcall|mobile|связ|(?:мой|на|по) номер\w{0,3}\W*$")
NAMED = re.compile(r"(?i)(?:\b|_)(?:тел(?:ефон\w*)?|моб|tel|\w*phone|mobile|whatsapp|viber(?::\S+r)?)(?:s|_?n\w+)?\d?\W{,3}=\s*$")
NEXT = re.compile(r"^(?:[,/](?=\d)|\s*\+\s*(?=[^\W\d_]{2})|\.(?=[A-Z][a-z\s']|[A-Za-z]{6}))")  # another, + WhatsApp, a sentence
ELEVEN = re.compile(r"(?<!\d)[78]\d{10}(?!\d)")  # also in user_79123456789
GLUED = re.compile(rf"(?i)(?:\bтел|\bмоб|\btel|phone)(?P<it>{ELEVEN.pattern})")
PIECE = re.compile(r"(?s).{1,9999}(?:[\t\n,;|]|[^\W\d_]\s|\s(?=\+|\d{11})|\Z)|.{1,9999}")  # the matcher has 65,535 tries
CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
GAP = r"(?:\\[nr]|[\s>|\"'#,*])"  # between the lines of a key: they may be indented, quoted, or escaped as in JSON
KEY = re.compile(
    rf"{KEYS}|\b\w+://[^\s:/@]*:[^\s/@]+(?=@)"  # a password in an address
    # A private key up to its end; where that was cut off, its headers and what is left of its lines.
    rf"|{PRIVATE_KEY}"
    r"(?:(?s:(?!- ?BEGIN ).)*?-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?(?: ?-{4,5})?"
    rf"|(?:{GAP}++(?:Proc-Type|DEK-Info|Version|Comment|Charset|Hash): [^\n\\]*+)*+(?:{GAP}++[A-Za-z0-9+/=]{{16,}}+)*+"
    r"(?:[ \t]*+(?:\r?\n|\\n)[ \t>]*+[A-Za-z0-9+/=]++(?=[ \t]*+(?:[\r\n\\\"'`]|\Z)))?+)"
)


def _digits(match: re.Match) -> str:
    return re.sub(r"\D", "", match[0])


def _as_long_as_valid(said: str, valid: Callable[[str], bool]) -> int:
    """Return how many signs of a number are valid, 0 if none are: behind a space, something else may have begun."""
    ends = [len(said), *[gap.start() for gap in re.finditer("[ ._-]+", said)][::-1]]
    return next((end for end in ends if valid(said[:end])), 0)


def _is_snils(match: re.Match) -> bool:
    """Checksum of the Russian insurance number: digits times their place from the right, modulo 101."""
    digits = _digits(match)
    return sum(int(d) * (9 - i) for i, d in enumerate(digits[:9])) % 101 % 100 == int(digits[9:])


def _is_address(match: re.Match) -> bool:
    """No 8.8.8.8, and no version number."""
    return len(match[0]) > len("1.2.3.4") and not re.search(NUMBERED, match.string[max(0, match.start() - 40) : match.start()])


# Kind -> what is put in its place in a Russian and in an English text, the pattern, and what a match of it must pass. The surest
# kinds come first: another that overlaps them doesn't count.
KINDS = {
    "key": ("[ключ]", "[key]", KEY, bool),
    "e-mail": ("[почта]", "[e-mail]", EMAIL, bool),
    "iban": ("[счёт]", "[account]", IBAN, lambda said: iban.is_valid(said, check_country=False)),
    "card": ("[карта]", "[card]", CARD, lambda said: len(digits := re.sub("[ ._-]", "", said)) > 14 and luhn.is_valid(digits)),
    "snils": ("[СНИЛС]", "[SNILS]", SNILS, _is_snils),
    "passport": ("[паспорт]", "[passport]", PASSPORT, bool),
    "inn": ("[ИНН]", "[INN]", INN, lambda match: inn.is_valid(match["it"])),
    "ip": ("[IP]", "[IP]", IP, _is_address),
    "phone": ("[телефон]", "[phone]", None, bool),  # found by the phonenumbers library
}
# What Excel and Word put for a space or a hyphen, and what is not seen: found as those are.
BLANKS, HYPHENS = (
    re.compile("[\t\xa0\xad\u2000-\u200d\u202f\u2060\u3000\ufeff]|(?<=\\d)\n(?=\\d)"),
    re.compile("[\u2010-\u2015\u2212]"),
)
MASKS = frozenset(word for russian, english, *_ in KINDS.values() for word in (russian, english))


def personal_data(text: str, regions: tuple[str, ...] = ("RU",)) -> list[tuple[str, int, int]]:
    """(kind, start, end) of what is found in a text, in order, without overlaps; "phone?" may be none. regions: whose phones need no +."""
    matches, plain, joined = [], HYPHENS.sub("-", BLANKS.sub(" ", text)), re.sub("[\u200b-\u200d\u2060\ufeff]", "\xad", text)
    for kind, (_, _, pattern, passes) in KINDS.items():
        for match in pattern.finditer({"key": text, "e-mail": joined}.get(kind, plain)) if pattern else ():
            start, end = match.span("it" if "it" in pattern.groupindex else 0)
            if kind in ("iban", "card"):
                end = start + _as_long_as_valid(plain[start:end], passes)
            elif not passes(match):
                continue
            matches += [(kind, start, end)] * (end > start)
    signs = re.sub("%2[Bb]", "+\u2060\u2060", text)  # tel:%2B7...
    pieces = (p for p in PIECE.finditer(signs) if re.search(r"\d(?:\D{0,4}\d){8}", p[0]))  # the matcher is slow
    phones = ((p.start() + m.start, m) for p in pieces for land in regions for m in phonenumbers.PhoneNumberMatcher(p[0], land))
    matches += [(kind, at, at + len(m.raw_string)) for at, m in phones if (kind := _phone(m, signs, at))]
    matches += [("phone", *match.span("it")) for match in GLUED.finditer(text)]
    found, taken = [], bytearray(len(text))
    for kind, start, end in matches:
        if taken.find(1, start, end) < 0:
            taken[start:end] = b"\1" * (end - start)
            found.append((kind, start, end))
    return sorted(found, key=lambda one: one[1])


def wide(text: str, regions: tuple[str, ...] = ("RU",)) -> list[tuple[str, int, int]]:
    """Like `personal_data`, for what is no prose: a phone within a name counts, and an escaped line end is none of its letters."""
    text = re.sub(r"\\[nrt]", "  ", text)
    found = personal_data(text, regions)
    rest = replaced(text, ((" " * (end - start), start, end) for _, start, end in found))
    more = [(kind, *match.span()) for match in ELEVEN.finditer(rest) for kind, *_ in personal_data(match[0], regions)]
    return sorted([*found, *more], key=lambda one: one[1])


def _phone(match: phonenumbers.PhoneNumberMatch, text: str, at: int) -> str:
    """Say "phone" or "phone?", or nothing of a hotline (8-800), an IP address, an order, a sum."""
    raw, end = match.raw_string, at + len(match.raw_string)
    before, after = text[max(0, at - 40) : at], text[end : end + 20]
    if phonenumbers.number_type(match.number) == phonenumbers.PhoneNumberType.TOLL_FREE or re.fullmatch(QUAD, raw):
        return ""
    if whole := ELEVEN.fullmatch(raw):  # it may be one of several, with a comma or a stroke between them
        before, after = re.sub(rf"{ELEVEN.pattern} ?[,/] ?$", "", before), NEXT.sub(" ", after)
    called, ordered = CALL.search(before) or CALL.match(after.lstrip(" ,–—-")), ORDERED.search(before)
    if DIALED.match(raw) or NAMED.search(before) or (called and not ordered):
        return "phone"
    if ordered or COUNTED.match(after) or SPACED.fullmatch(raw):
        return ""
    return "phone" if whole else "phone?"


def contact(value: str) -> str:
    """What two spellings of one contact have in common: the last ten digits of a number, the letters of all else."""
    return "".join(value.lower().split()) if re.search(r"(?<!%2)[^\W\d_]", value) else re.sub(r"\D", "", value)[-10:]


def own_contacts(rows: list[Row], keep: Iterable[str] = (), regions: tuple[str, ...] = ("RU",)) -> set[str]:
    """Return the contacts that are the house's own, as `contact` writes them: those of `keep` and, unless "only" is among these, more.

    They are in answers to at least 5 different questions, and to 3 % of all, where nobody had named them before, and more often so
    than customers name them; or in half of the system prompts. Rows of one `conversation` count once.
    """
    kept, places, asked = {contact(value) for value in keep}, defaultdict(set), set()
    for row in rows if "only" not in kept else ():
        asked.add(who := str(row.get("conversation") or question(row)))
        for turn in row["messages"]:
            for kind, start, end in personal_data(turn["content"], regions):
                if kind not in ("key", "card", "snils", "passport"):  # these are never a house's own
                    places[turn["role"], contact(turn["content"][start:end])].add(who)
    for value in {value for _, value in places}:
        said, named, always = (places.get((role, value), set()) for role in ("assistant", "user", "system"))
        if len(said - named - always) - len(named) >= max(5, 0.03 * len(asked)) or len(always) >= max(5, len(asked) / 2):
            kept.add(value)
    return kept


def mask(text: str, regions: tuple[str, ...] = ("RU",), keep: Collection[str] = ()) -> str:
    """The text with a word in brackets for each find, but for what may be no phone, `keep` (as `contact` writes it), and code, keys apart."""
    code, found, language = bytearray(len(text)), [], _language(text)
    for match in re.finditer(r"(?s)```.*?```|(?<!\w)(?<!``)`[^`\n]++(?<!\s)`", text):  # no O`Neil, nothing unclosed, unlike CODE
        code[slice(*match.span())] = b"\1" * len(match[0])
    for kind, start, end in personal_data(text, regions):
        secret = kind == "key" and "://" not in text[start:end]  # also in code
        if kind in KINDS and contact(text[start:end]) not in keep and (secret or not code[start]):
            found.append((KINDS[kind][language], start, end))
    return replaced(text, found)


def _language(text: str) -> int:
    """The place of its word in `KINDS`: 0 for Russian, 1 for English."""
    return 0 if re.search("[а-яё]", text.lower()) else 1


def numbered(regions: tuple[str, ...] = ("RU",), keep: Collection[str] = ()) -> Callable[[Any], Any]:
    """Return what masks a value beside the texts, such as the name of a conversation: equal finds get the same number, others another,
    so that rows are grouped as before. (A checksum of a phone would give it away to anybody who tries all phones.)"""
    numbers: dict[str, int] = {}

    def change(value: Any) -> Any:
        text, words = str(value), []
        for kind, start, end in wide(text, regions):
            if contact(it := text[start:end]) not in keep:
                word = f"{KINDS[kind.rstrip('?')][1][:-1]} {numbers.setdefault(it, len(numbers) + 1)}]"
                words.append((word, start, end))
        return replaced(text, words) if words else value

    return change


def hidden(text: str) -> list[tuple[str, int, int]]:
    """(word in brackets, start, end) of all that may be personal data in a text, also in code."""
    language = _language(text)
    return [(KINDS[kind.rstrip("?")][language], start, end) for kind, start, end in wide(text)]


def redact(value: Any) -> Any:
    """The same value for a log or a screen: in every text and number within, a word in brackets for all that may be personal data."""
    if isinstance(value, dict):
        return {redact(key): redact(some) for key, some in value.items()}
    if isinstance(value, list):
        return [redact(some) for some in value]
    if isinstance(value, str):
        return replaced(value, hidden(value))
    whole = int(value) if isinstance(value, float) and value.is_integer() else value  # as pandas has it beside an empty cell
    return redact(str(whole)) if type(whole) is int and abs(whole) >= 10**8 and hidden(str(whole)) else value
