"""Personal data and secrets in a text: e-mail, phone, payment card, IBAN, Russian passport, SNILS and INN, IP, keys."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple

import phonenumbers
from stdnum import iban, luhn
from stdnum.ru import inn

MASK_WORDS = {  # kind -> what stands in its place, in a Russian and in an English text
    "e-mail": ("[почта]", "[e-mail]"),
    "phone": ("[телефон]", "[phone]"),
    "card": ("[карта]", "[card]"),
    "iban": ("[счёт]", "[account]"),
    "passport": ("[паспорт]", "[passport]"),
    "snils": ("[СНИЛС]", "[SNILS]"),
    "inn": ("[ИНН]", "[INN]"),
    "ip": ("[IP]", "[IP]"),
    "key": ("[ключ]", "[key]"),
}
MASKS = frozenset(word for pair in MASK_WORDS.values() for word in pair)

# Not numpy@1.26, nor git@github.com:...
EMAIL = re.compile(r"(?<![\w.+-])(?!git@)[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}")
# 15, 16, 18 or 19 digits in one piece or grouped as on the card; 13 and 14 are bar codes and parcels.
DIGITS = re.compile(
    r"(?<![\w-])(?:3[47]\d{13}|[2-6]\d{15}(?:\d{2,3})?|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3[47]\d\d([ -])\d{6}\2\d{5})(?![\w-])"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
PASSPORT = re.compile(r"(?:паспорт|passport)\D{0,20}(\d{2} ?\d{2}[ №-]{0,3}\d{6})\b", re.IGNORECASE)
SNILS = re.compile(r"\b(\d{3})-(\d{3})-(\d{3})[ -](\d{2})\b")
INN = re.compile(r"(?:ИНН|INN)\D{0,10}(\d{12})\b", re.IGNORECASE)
IP = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)")
OWN = [
    *map(ipaddress.IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"))
]
# What makes of the number after it a version, a paragraph, or an order.
NUMBERED = re.compile(
    r"(?:верси\w*|version|ver\.?|\bv\.?|release|build|\bпп?\.|пункт\w*|раздел\w*|section|clause|§|гост\w*)\s*$", re.IGNORECASE
)
ORDERED = re.compile(
    r"(?:№|#|\b(?:заказ\w*|артикул\w*|order|ticket|invoice|sku|isbn)(?: number| номер| no\.?)?:?|\b(?:огрн\w*|инн|кпп)\b(?:\W+\w+){0,2}\W*)\s*$",
    re.IGNORECASE,
)
THOUSANDS = re.compile(r"\d{1,3}(?: \d{3})+")
KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|gh[pousr]_\w{30,}|hf_\w{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|xox[abprs]-[\w-]{10,}|glpat-[\w-]{20,})"
    r"|\b\w+://[^\s:/@]+:[^\s/@]+(?=@)"  # a password in an address
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


class Personal(NamedTuple):
    kind: str
    start: int
    end: int


def personal_data(text: str, regions: tuple[str, ...] = ("RU",)) -> list[Personal]:
    """What is found in a text, in order, without overlaps. regions: whose national phone numbers (without +) are known."""
    found = []
    for one in _all(text, regions):  # the surest kinds come first
        if not any(one.start < other.end and other.start < one.end for other in found):
            found.append(one)
    return sorted(found, key=lambda one: one.start)


def mask(text: str, regions: tuple[str, ...] = ("RU",)) -> str:
    """The text with a word in brackets for each find."""
    russian = bool(re.search("[а-яё]", text.lower()))
    for kind, start, end in reversed(personal_data(text, regions)):
        text = text[:start] + MASK_WORDS[kind][0 if russian else 1] + text[end:]
    return text


def _all(text: str, regions: tuple[str, ...]) -> Iterator[Personal]:
    yield from (Personal("key", *m.span()) for m in KEY.finditer(text))
    if "@" in text:
        yield from (Personal("e-mail", *m.span()) for m in EMAIL.finditer(text))
    if not re.search(r"\d", text):
        return
    yield from (Personal("iban", *m.span()) for m in IBAN.finditer(text) if iban.is_valid(m[0]))
    yield from (Personal("card", *m.span()) for m in DIGITS.finditer(text) if luhn.is_valid(re.sub(r"\D", "", m[0])))
    yield from (Personal("snils", *m.span()) for m in SNILS.finditer(text) if _snils_is_valid("".join(m.groups())))
    yield from (Personal("passport", *m.span(1)) for m in PASSPORT.finditer(text))
    yield from (Personal("inn", *m.span(1)) for m in INN.finditer(text) if inn.is_valid(m[1]))
    yield from (Personal("ip", *m.span()) for m in IP.finditer(text) if _is_address(m[0], text[: m.start()]))
    if re.search(r"\d(?:\D{0,3}\d){8}", text):  # the matcher is slow; most texts have no nine digits together
        for region in regions:
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                if _is_somebodys(match, text[: match.start]):
                    yield Personal("phone", match.start, match.end)


def _is_somebodys(match: phonenumbers.PhoneNumberMatch, before: str) -> bool:
    """A phone of a person: no hotline (8-800), no number of an order, nothing grouped as 9 876 543 210."""
    if phonenumbers.number_type(match.number) == phonenumbers.PhoneNumberType.TOLL_FREE:
        return False
    plain = match.raw_string.isdigit() and ORDERED.search(before[-40:])
    return not plain and not THOUSANDS.fullmatch(match.raw_string)


def _snils_is_valid(digits: str) -> bool:
    """Checksum of the Russian insurance number: digits times their place from the right, modulo 101."""
    total = sum(int(d) * (9 - i) for i, d in enumerate(digits[:9])) % 101 % 100
    return total == int(digits[9:])


def _is_address(text: str, before: str) -> bool:
    """A possible address of somebody: not one of a home network (192.168.0.1) or a mask, no 8.8.8.8, and no version number."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    nobodys = address.is_multicast or address.is_reserved or any(address in network for network in OWN)
    return not nobodys and len(text) > len("1.2.3.4") and not NUMBERED.search(before[-40:])
