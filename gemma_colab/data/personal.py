"""Personal data and secrets in a text: e-mail, phone, payment card, IBAN, Russian passport, SNILS and INN, IP, keys."""

from __future__ import annotations

import re

import phonenumbers
from stdnum import iban, luhn
from stdnum.ru import inn

# Not numpy@1.26, nor git@github.com:...
EMAIL = re.compile(r"(?<![\w.+-])(?!git@)[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
# 15, 16, 18 or 19 digits in one piece or grouped as on the card; 13 and 14 are bar codes and parcels.
CARD = re.compile(
    r"(?<![\w-])(?:3[47]\d{13}|[2-6]\d{15}(?:\d{2,3})?|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3[47]\d\d([ -])\d{6}\2\d{5})(?![\w-])"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
PASSPORT = re.compile(r"(?i)(?:паспорт|passport)\D{0,20}(?P<it>\d{2} ?\d{2}[ №-]{0,3}\d{6})\b")
SNILS = re.compile(r"\b\d{3}-\d{3}-\d{3}[ -]\d{2}\b")
INN = re.compile(r"(?i)(?:ИНН|INN)\D{0,10}(?P<it>\d{12})\b")
# Somebody's: not of a home network (192.168.0.1), nor a mask or multicast (from 224 on).
NOBODYS = r"(?:0|10|127|169\.254|172\.(?:1[6-9]|2\d|3[01])|192\.168|22[4-9]|2[3-5]\d)\."
BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
IP = re.compile(rf"(?<![\w.])(?!{NOBODYS}){BYTE}(?:\.{BYTE}){{3}}(?![\w.]*\d)")
# What makes of the number after it a version, a paragraph, or an order.
NUMBERED = re.compile(
    r"(?i)(?:верси\w*|version|ver\.?|\bv\.?|release|build|\bпп?\.|пункт\w*|раздел\w*|section|clause|§|гост\w*)\s*$"
)
ORDERED = re.compile(
    r"(?i)(?:№|#|\b(?:заказ\w*|артикул\w*|order|ticket|invoice|sku|isbn)(?: number| номер| no\.?)?:?"
    r"|\b(?:огрн\w*|инн|кпп)\b(?:\W+\w+){0,2}\W*)\s*$"
)
THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+")
KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|gh[pousr]_\w{30,}|hf_\w{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|glpat-[\w-]{20,})"
    r"|\b\w+://[^\s:/@]+:[^\s/@]+(?=@)"  # a password in an address
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def _digits(match: re.Match) -> str:
    return re.sub(r"\D", "", match[0])


def _is_snils(match: re.Match) -> bool:
    """Checksum of the Russian insurance number: digits times their place from the right, modulo 101."""
    digits = _digits(match)
    return sum(int(d) * (9 - i) for i, d in enumerate(digits[:9])) % 101 % 100 == int(digits[9:])


def _is_address(match: re.Match) -> bool:
    """No 8.8.8.8, and no version number."""
    return len(match[0]) > len("1.2.3.4") and not NUMBERED.search(match.string[: match.start()][-40:])


# Kind -> what stands in its place in a Russian and in an English text, the pattern, and what a match of it must pass. The surest
# kinds come first: another that overlaps them doesn't count.
KINDS = {
    "key": ("[ключ]", "[key]", KEY, bool),
    "e-mail": ("[почта]", "[e-mail]", EMAIL, bool),
    "iban": ("[счёт]", "[account]", IBAN, lambda match: iban.is_valid(match[0])),
    "card": ("[карта]", "[card]", CARD, lambda match: luhn.is_valid(_digits(match))),
    "snils": ("[СНИЛС]", "[SNILS]", SNILS, _is_snils),
    "passport": ("[паспорт]", "[passport]", PASSPORT, bool),
    "inn": ("[ИНН]", "[INN]", INN, lambda match: inn.is_valid(match["it"])),
    "ip": ("[IP]", "[IP]", IP, _is_address),
    "phone": ("[телефон]", "[phone]", None, bool),  # found by the phonenumbers library
}
MASKS = frozenset(word for russian, english, *_ in KINDS.values() for word in (russian, english))


def personal_data(text: str, regions: tuple[str, ...] = ("RU",)) -> list[tuple[str, int, int]]:
    """(kind, start, end) of what is found in a text, in order, without overlaps. regions: whose national phones (without +) are known."""
    matches = [
        (kind, *match.span("it" if "it" in pattern.groupindex else 0))
        for kind, (_, _, pattern, passes) in KINDS.items()
        for match in (pattern.finditer(text) if pattern else ())
        if passes(match)
    ]
    if re.search(r"\d(?:\D{0,3}\d){8}", text):  # the matcher is slow; most texts have no nine digits together
        phones = [match for region in regions for match in phonenumbers.PhoneNumberMatcher(text, region)]
        matches += [("phone", match.start, match.end) for match in phones if _is_somebodys(match, text)]
    found = []
    for kind, start, end in matches:
        if not any(start < its_end and its_start < end for _, its_start, its_end in found):
            found.append((kind, start, end))
    return sorted(found, key=lambda one: one[1])


def _is_somebodys(match: phonenumbers.PhoneNumberMatch, text: str) -> bool:
    """A phone of a person: no hotline (8-800), no number of an order, nothing grouped as 9 876 543 210."""
    if phonenumbers.number_type(match.number) == phonenumbers.PhoneNumberType.TOLL_FREE:
        return False
    ordered = match.raw_string.isdigit() and ORDERED.search(text[: match.start][-40:])
    return not ordered and not THOUSANDS.fullmatch(match.raw_string)


def mask(text: str, regions: tuple[str, ...] = ("RU",)) -> str:
    """The text with a word in brackets for each find."""
    russian = bool(re.search("[а-яё]", text.lower()))
    for kind, start, end in reversed(personal_data(text, regions)):
        text = text[:start] + KINDS[kind][0 if russian else 1] + text[end:]
    return text
