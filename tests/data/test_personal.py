"""Personal data: what is found, where, and what only looks like it."""

from itertools import pairwise

import pytest

from gemma_colab.data.personal import KINDS, MASKS, mask, personal_data

FOUND = [
    ("e-mail", "Мой адрес ivan.petrov+shop@mail.ru, жду", "ivan.petrov+shop@mail.ru"),
    ("e-mail", "write to a_b@sub.firm.co.uk.", "a_b@sub.firm.co.uk"),
    ("e-mail", "пишите: иван@почта.рф", "иван@почта.рф"),
    ("phone", "Звоните +7 912 345-67-89!", "+7 912 345-67-89"),
    ("phone", "тел. 8 (912) 345-67-89", "8 (912) 345-67-89"),
    ("phone", "мой номер 89123456789", "89123456789"),
    ("phone", "call +1 212-736-5000 today", "+1 212-736-5000"),
    ("card", "Карта 4111 1111 1111 1111, спасибо", "4111 1111 1111 1111"),
    ("card", "карта 2200-0000-0000-0004", "2200-0000-0000-0004"),
    ("card", "card 5555555555554444.", "5555555555554444"),
    ("card", "Amex 3782 822463 10005", "3782 822463 10005"),
    ("iban", "счёт DE89 3704 0044 0532 0130 00 в банке", "DE89 3704 0044 0532 0130 00"),
    ("iban", "IBAN GB29NWBK60161331926819", "GB29NWBK60161331926819"),
    ("passport", "паспорт 4510 123456", "4510 123456"),
    ("passport", "Паспорт: серия 45 10 № 123456", "45 10 № 123456"),
    ("snils", "СНИЛС 112-233-445 95", "112-233-445 95"),
    ("inn", "ИНН 500100732259", "500100732259"),
    ("ip", "вход с 93.184.216.34 ночью", "93.184.216.34"),
    ("ip", "Мой адрес в сети 203.0.113.45, может", "203.0.113.45"),
    ("ip", "172.15.10.10", "172.15.10.10"),
    ("key", "ключ sk-abcdefghijklmnopqrstuv1234", "sk-abcdefghijklmnopqrstuv1234"),
    ("key", "ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
    ("key", "токен hf_" + "Ab1" * 11 + ".", "hf_" + "Ab1" * 11),
    ("key", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nMII", "-----BEGIN RSA PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("kind", "text", "piece"), FOUND)
def test_kind_and_place(kind, text, piece):
    ((found, start, end),) = personal_data(text)
    assert (found, text[start:end]) == (kind, piece)


@pytest.mark.parametrize(
    "text",
    [
        "Заказ №12345, артикул 1234567, сумма 1 234 567 ₽",
        "Заказ №89261234567 и заказ 89123456789 отправлены, order number 89123456789",
        "население 9 876 543 210 человек, 10000000000000000000 звёзд",
        "горячая линия 8-800-555-35-35, пожарные 112",
        "ISBN 978-5-699-12345-6, штрихкод 4601234567893, отправление 80110012345670",
        "р/с 40702810400000000225, ОГРН 1027700132195, БИК 044525225",
        "карта 4111 1111 1111 1112 с ошибкой и 0000 0000 0000 0000",
        "ГОСТ Р 52872-2019 8 800 555 35 35",
        "версия 12.10.3.44, v10.20.30.40, пункт 13.1.2.14, п. 15.10.2.1, 1.2.3.4",
        "Chrome 120.0.6099.109, Windows 10.0.19045.3803, 3.14159265358979",
        "роутер 192.168.0.1, 127.0.0.1, 0.0.0.0, 10.20.30.40, 172.16.254.1, 169.254.10.20, маска 255.255.255.0, DNS 8.8.8.8, 999.1.1.256, 224.10.10.10",
        "2023-11-12 10:30:45, 12.11.2023, с 10:00 до 22:00, 2019-2023",
        "pip install numpy@1.26.4 foo@1.0; git clone git@github.com:a/b.git; @user; user@localhost",
        "паспорт выдают за 30 дней; паспорт изделия 12",
        "СНИЛС 112-233-445 96",
        "ИНН 500100732258; ИНН 7707083893",
        "DE89 3704 0044 0532 0130 01",
        "sk-learn, risk-free, hf_transfer, task-oriented, ghp_short",
        "",
    ],
)
def test_what_only_looks_like_it(text):
    assert personal_data(text) == []


def test_several_in_order_without_overlap():
    text = "a@mail.ru, +7 912 345-67-89, карта 4111 1111 1111 1111, b@mail.ru"
    found = personal_data(text)
    assert [one[0] for one in found] == ["e-mail", "phone", "card", "e-mail"]
    assert all(one[2] <= other[1] for one, other in pairwise(found))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Пишите a@mail.ru или +7 912 345-67-89.", "Пишите [почта] или [телефон]."),
        ("Write a@mail.com or +7 912 345-67-89.", "Write [e-mail] or [phone]."),
        ("Паспорт 4510 123456, СНИЛС 112-233-445 95", "Паспорт [паспорт], СНИЛС [СНИЛС]"),
        ("Ничего такого", "Ничего такого"),
    ],
)
def test_masking(text, masked):
    assert mask(text) == masked
    assert mask(masked) == masked


def test_every_kind_has_its_masks():
    assert {kind for kind, _, _ in FOUND} == set(KINDS)
    assert len(MASKS) == 2 * len(KINDS) - 1  # [IP] in both languages


def test_the_text_around_is_left_alone():
    for _, text, piece in FOUND:
        before, after = text.split(piece)
        assert mask(text).startswith(before)
        assert mask(text).endswith(after)
        assert piece not in mask(text)


def test_regions():
    assert personal_data("call (212) 736-5000") == []
    assert [one[0] for one in personal_data("call (212) 736-5000", ("US",))] == ["phone"]
    assert personal_data("тел. 8 (912) 345-67-89", ()) == []
