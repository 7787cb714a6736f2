"""Personal data: what is found, where, and what only looks like it."""

import json
import re
import sys
from itertools import pairwise

import pytest

from gemma_colab.core.rows import to_messages
from gemma_colab.data.checks_text import personal
from gemma_colab.data.cleaning import STEPS, clean, undo
from gemma_colab.data.finding import CheckContext
from gemma_colab.data.looking import fingerprint
from gemma_colab.data.personal import KINDS, MASKS, contact, mask, numbered, own_contacts, personal_data, redact
from gemma_colab.data.report import check_rows
from gemma_colab.data.splitting import split_rows
from gemma_colab.handover.rows import save_rows

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
    ("ip", "server 93.184.216.34", "93.184.216.34"),  # no telephone, and "server" doesn't end in "ver."
    ("ip", "driver 93.184.216.34", "93.184.216.34"),
    ("phone", "Заказ: 8-912-345-67-89", "8-912-345-67-89"),  # written as one dials it
    ("phone", "позвоните мне 9123456789", "9123456789"),
    ("phone", "https://wa.me/79123456789", "79123456789"),
    ("phone", "Где мой заказ? 89161234567", "89161234567"),  # that was another sentence
    ("phone", "Имя: Иван\n89161234567\nСпасибо", "89161234567"),  # on a line of its own
    ("phone", "звоните 8–916–555–00–01", "8–916–555–00–01"),  # with dashes, as Word writes them
    ("card", "карта 4111–1111–1111–1111 моя", "4111–1111–1111–1111"),
    ("iban", "to DE89-3704-0044-0532-0130-00 please", "DE89-3704-0044-0532-0130-00"),
    ("e-mail", "пишите на anna＠mail．ru", "anna＠mail．ru"),
    ("key", "ключ sk-abcdefghijklmnopqrstuv1234", "sk-abcdefghijklmnopqrstuv1234"),
    ("key", "ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
    ("key", "токен hf_" + "Ab1" * 11 + ".", "hf_" + "Ab1" * 11),
    ("key", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nMII", "-----BEGIN RSA PRIVATE KEY-----\nMII"),
    ("key", "база postgres://shop:S3cret.pw@db.firm.ru/orders", "postgres://shop:S3cret.pw"),
    ("key", "see https://anna:hunter2@firm.example:8080/x", "https://anna:hunter2"),
    ("card", "карта4111111111111111", "4111111111111111"),
    ("card", "4111111111111111руб", "4111111111111111"),
    ("card", "4111_1111_1111_1111", "4111_1111_1111_1111"),
    ("card", "Карта 4111 1111\n1111 1111, да", "4111 1111\n1111 1111"),
    ("iban", "IBANDE89370400440532013000", "DE89370400440532013000"),
    ("iban", "DE89 3704 0044\n0532 0130 00", "DE89 3704 0044\n0532 0130 00"),
    ("phone", "тел89123456789", "89123456789"),
]
MORE_KEYS = [
    "nvapi-" + "a1B2" * 12,
    "dapi" + "0a" * 16,
    "ATATT3" + "xF" * 20,
    "figd_" + "aB" * 15,
    "sbp_" + "0a" * 20,
    "sntrys_" + "eyJ" * 12,
]
MORE_KEYS += [
    "PMAK-" + "0a" * 15,
    "sq0atp-" + "aB" * 11,
    "xkeysib-" + "0a" * 32,
    "pcsk_" + "aB" * 20,
    "lsv2_pt_" + "0a" * 16,
    "tvly-" + "aB" * 15,
]
MORE_KEYS += ["glsa_" + "aB" * 16, "dp.pt." + "aB" * 20, "pat-na1-" + "0a" * 16, "shpss_" + "0a" * 16, "EAACEd" + "aB" * 30]
MORE_KEYS += ["t1.9eue" + "l" * 20 + "." + "aB" * 40, "AGE-SECRET-KEY-1" + "Q1" * 29, "sk.eyJ" + "aB" * 20]
FOUND += [("key", f"ключ {key}", key) for key in MORE_KEYS]


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
        "версия 93.184.216.34, driver version 93.184.216.34, сборка 91.23.45.67, Chrome/91.23.45.67, build 9123456789",
        "заказ 912-345-67-89, договор № 916-123-45-67, накладная 9161234567, трек-номер 9123456789, серийный номер 9123456789",
        'id: 9123456789, {"id": 9123456789}, user_id=9123456789, https://a.ru/item/9161234567?x=9161234567, file_9161234567.txt',
        "$9123456789; 9123456789 руб., 9.123.456.789 EUR, 9161234567 человек, сумма 9123456789",
        "9161234567 + 1 = 9161234568; 0.9161234567, 9161234567.89, timestamp 9161234567, 1700000000",
        "ISBN 9-123-45678-9, 55.7558 37.6173, 550e8400-e29b-41d4-9161-234567891234, d41d8cd98f00b204e9800998ecf8427e",
        "0.6666666666666664 and 5.4111111111111111",  # would pass for cards
        "https://firm.example:8080/@anna, http://localhost:8888/lab, 10:00-22:00@office",
        "logo@2x.png; validate('me@example.com')",
        "git clone ssh://git@github.com/a/b.git, git@firm.example:~/a",
        "AB-4111111111111111, order-4111111111111111, заказ-4111111111111111, 4111-1111-1111-1111-22, 4111111111111111-22",
        "4111 1111  1111 1112, 4111.1111.1111.1112, De89 3704 0044 0532 0130 01, file_DE89370400440532013001",
        "hotel=89123456789, order_number=89123456789, phone_id=89123456789, телевизор=89123456789, id=%2089123456789",
        "89123456789.txt, 89123456789.JPG, 89123456789 + 1 = 89123456790",
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


@pytest.mark.parametrize("text", ["Анна, 9161234567", "население 9161234567", "return 9161234567", "ряд 916 123 45 67"])
def test_what_may_be_a_phone_is_found_and_left_alone(text):
    assert [kind for kind, *_ in personal_data(text)] == ["phone?"]
    assert mask(text) == text
    assert redact(text) == re.sub(r"9.*", "[phone]" if text.isascii() else "[телефон]", text)  # a log hides it


def test_code_is_left_alone():
    text = "Так: `curl 93.184.216.34`\n```\nmail('a@mail.ru')\n```\nПишите b@mail.ru"
    assert [kind for kind, *_ in personal_data(text)] == ["ip", "e-mail", "e-mail"]
    assert mask(text) == text.replace("b@mail.ru", "[почта]")


# ---------------------------------------------------------------------------------------------------- the house's own
OURS = "Пишите help@shop.ru или звоните +7 495 123-45-67."


def asked(n, answer, question="Вопрос {}"):
    return [to_messages({"instruction": question.format(i), "output": answer}) for i in range(n)]


@pytest.mark.parametrize(
    ("spelling", "other"),
    [("+7 495 123-45-67", "8 (495) 1234567"), ("Help@Shop.ru", "help@shop.ru"), ("DE89 3704 0044", "de8937040044")],
)
def test_two_spellings_of_a_contact(spelling, other):
    assert contact(spelling) == contact(other) == contact(contact(spelling))


@pytest.mark.parametrize(
    ("rows", "own"),
    [
        (asked(5, OURS), {"help@shop.ru", "4951234567"}),
        (asked(4, OURS), set()),
        (asked(6, OURS) + asked(194, "Да.", "Другой {}"), {"help@shop.ru", "4951234567"}),
        (asked(5, OURS) + asked(195, "Да.", "Другой {}"), set()),  # fewer than 3 %
        (asked(3, OURS) + asked(3, "8 (495) 123 45 67", "Телефон {}?"), {"4951234567"}),
        (asked(30, OURS, "Вопрос"), set()),  # one question
        ([row | {"conversation": "c"} for row in asked(30, OURS)], set()),
        (asked(30, "Напишем на anna@mail.ru.", "Мой адрес anna@mail.ru, {}"), set()),  # the customer said it
        (asked(30, "Жду.", "Мой адрес anna@mail.ru, {}"), set()),
        (asked(30, "Жду.", "Мой адрес anna@mail.ru, {}") + asked(6, "Напишем на anna@mail.ru."), set()),
        (asked(30, "Ваша карта 4111 1111 1111 1111"), set()),
        ([{"messages": [{"role": "system", "content": OURS}, *row["messages"]]} for row in asked(9, "Да.")], {"help@shop.ru", "4951234567"}),
        ([{"messages": [{"role": "system", "content": f"Клиент: u{i % 9}@mail.ru"}, *row["messages"]]} for i, row in enumerate(asked(90, "Да."))], set()),
        (asked(30, f"Ключ sk-proj-{'x9_' * 10}, СНИЛС 112-233-445 95, паспорт 4510 123456"), set()),
        ([{"messages": [{"role": "system", "content": OURS * (i < 10)}, *row["messages"]]} for i, row in enumerate(asked(20, "Да."))], {"help@shop.ru", "4951234567"}),
        ([{"messages": [{"role": "system", "content": OURS * (i < 9)}, *row["messages"]]} for i, row in enumerate(asked(20, "Да."))], set()),
        ([{"messages": [{"role": "system", "content": OURS * (i < 4)}, *row["messages"]]} for i, row in enumerate(asked(8, "Да."))], set()),
        ([], set()),
    ],
)  # fmt: skip
def test_what_many_answers_give_unasked_is_the_houses_own(rows, own):
    assert own_contacts(rows) == own


def test_what_is_named_is_kept_and_after_only_nothing_else():
    assert own_contacts(asked(9, OURS), ["Boss@shop.ru"]) == {"help@shop.ru", "4951234567", "boss@shop.ru"}
    assert own_contacts(asked(9, OURS), ["only", "8 495 1234567"]) == {"only", "4951234567"}
    assert mask(OURS, keep=own_contacts([], ["only", "help@shop.ru"])) == "Пишите help@shop.ru или звоните [телефон]."


# ---------------------------------------------------------------------------------------------------- private keys
LINES = [("MIIEpAIBAAKCAQEA" + "aB3+/"[i % 5] * 48) for i in range(12)] + ["qRs="]
HEADERS = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0A1B2C", ""]


def pem(kind="RSA ", headers=(), end=True):
    return [f"-----BEGIN {kind}PRIVATE KEY-----", *headers, *LINES, *([f"-----END {kind}PRIVATE KEY-----"] if end else [])]


WRITTEN = {
    "as it is": "\n".join(pem()),
    "of another kind": "\n".join(pem("OPENSSH ")),
    "without a kind": "\r\n".join(pem("")),
    "of PGP": "\n".join(pem()).replace("RSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK"),
    "with headers": "\n".join(pem(headers=HEADERS)),
    "escaped": "\\n".join(pem()),
    "on one line": " ".join(pem()),
    "indented": "\n    ".join(pem()),
    "quoted": "\n> ".join(pem()),
    "in strings": '\\n"\n"'.join(pem()),
    "cut off": "\n".join(pem(headers=HEADERS, end=False)),
    "cut off, escaped": "\\n".join(pem(end=False)),
    "cut off, quoted": "\n> ".join(pem(end=False)),
    "cut off in a line": "\n".join(pem(end=False))[:-90],
    "cut off in its end": "\n".join(pem())[:-12],
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize(
    ("before", "after"), [("Вот: ", "\n\nПочему не входит?"), ("```\n", "\n```\nHelp me"), ('{"key": "', '"}')]
)
def test_a_private_key_goes_whole(written, before, after):
    masked = mask(before + written + after)
    assert not any(line[:8] in masked for line in LINES)
    word = "[ключ]" if "Почему" in after else "[key]"
    assert masked.startswith(before + word)
    assert masked.endswith(after.removeprefix('"'))


def test_what_stands_behind_a_private_key_stays():
    assert mask("-----BEGIN PRIVATE KEY-----\nis how it begins") == "[key]\nis how it begins"
    assert mask("\n".join([*pem(end=False), "", "Is it right?"])) == "[key]\n\nIs it right?"
    assert mask("\n".join([*pem(), *pem(end=False), *pem()])) == "[key]\n[key]\n[key]"
    public = "\n".join(pem()).replace("PRIVATE", "PUBLIC")
    assert mask(public) == public


BEGIN = "-----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize(
    "part", [BEGIN, "-", "-----BEGIN " + "A " * 30, "\nabc ", "\n", "> \\n", "A" * 16 + "\n", "\nVersion: a"]
)
def test_a_long_text_that_begins_like_a_private_key_is_no_work_to_speak_of(part):
    text = part * (400_000 // len(part))  # what grows with its square would never end
    assert personal_data(BEGIN + text + "!")[0][:2] == ("key", 0)


def test_regions():
    assert personal_data("call (212) 736-5000") == []
    assert [one[0] for one in personal_data("call (212) 736-5000", ("US",))] == ["phone"]
    assert personal_data("тел. 8 (912) 345-67-89", ()) == []


# ---------------------------------------------------------------------------------------------------- beside the texts
def private(n=80, **more):
    """Rows whose texts are harmless; everything else about them is not."""
    rows = [chr(ord("а") + i % 30) * (3 + i // 30) for i in range(n)]
    return [
        to_messages({"instruction": f"Что значит {word}?", "output": f"Слово {word} ничего не значит."})
        | {"line": i, "label": f"klient{i % 4}@mail.ru", "conversation": f"tg_7912345{i % 20:04d}"}
        | {"customer": {"id": 79161230000 + i % 20, "names": [f"u{i % 20}@mail.ru"]}, "kind": "слова"}
        for i, word in enumerate(rows, 1)
    ]


PLACES = {"label", "conversation", "customer.id", "customer.names.0"}


def test_personal_data_is_found_in_all_that_is_written_of_a_row():
    (found,) = [f for f in check_rows(private()).findings if f.check == "personal data"]
    assert (found.severity, found.count) == ("W", 80)
    assert {hit.field for hit in found.hits} == {f"beside: {place}" for place in PLACES}
    assert found.what_to_do.endswith("beside the texts it is in conversation, customer.id, customer.names.0, label")
    turn = {"role": "user", "content": "Что такое кот?", "name": "anna@mail.ru"}
    (found,) = personal(CheckContext([{"messages": [turn, {"role": "assistant", "content": "Зверь."}]}]))
    assert [hit.field for hit in found.hits] == ["beside: messages.0.name"]


def test_by_default_it_stays_and_the_step_masks_it_so_that_it_still_groups_the_rows():
    rows = private()
    assert clean(rows)[0] == rows
    masked, log = clean(rows, also=["mask_personal_data"])
    assert undo(masked, log) == rows
    written = json.dumps(masked, ensure_ascii=False)
    assert not re.search(r"@|\d{5}", written)
    assert "слова" in written
    assert not [f for f in check_rows(masked).findings if f.check == "personal data"]
    for key in ("label", "conversation", "customer"):
        assert len({(str(one[key]), str(other[key])) for one, other in zip(rows, masked, strict=True)}) == (
            len({str(one[key]) for one in rows})
        )
        assert len({str(other[key]) for other in masked}) == len({str(one[key]) for one in rows})
    assert clean(masked, also=["mask_personal_data"])[0] == masked
    ours = clean(rows, also=["mask_personal_data"], keep=["klient1@mail.ru"])[0]
    assert {row["label"] for row in ours} >= {"klient1@mail.ru"}


def test_an_escaped_line_end_is_no_letter_before_a_card():
    assert redact(r"x\n4111111111111111") == r"x\n[card]"


def test_masked_groups_are_split_as_they_were():
    rows = private()
    for row in rows:
        del row["label"]
    masked = clean(rows, also=["mask_personal_data"])[0]
    lines = [{name: [row["line"] for row in part] for name, part in split_rows(some)[0].items()} for some in (rows, masked)]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "value",
    ["550e8400-e29b-41d4-9161-234567891234", "order-12345678", "чат 17", "1700000000123", "d41d8cd98f00b204e9800998ecf8427e"],
)
def test_a_name_that_is_nobodys_stays(value):
    assert numbered()(value) == value
    assert clean([private(1)[0] | {"label": "", "customer": 1, "conversation": value}], STEPS)[0][0]["conversation"] == value


def test_the_checksum_of_a_masked_text_is_not_written(workspace):
    rows = [
        row | {"messages": [{"role": "user", "content": "Мой номер 89161234567"}, *row["messages"][1:]]} for row in private(3)
    ]
    masked = clean(rows, also=["mask_personal_data"])[0]
    save_rows({"train": masked}, workspace)
    assert [row["messages"][0]["content"] for row in workspace.read_jsonl("rows/train.jsonl")] == ["Мой номер [телефон]"] * 3
    text = (workspace.path / "rows/train.jsonl").read_text("utf-8")
    assert not any(fingerprint(row) in text for row in rows)


def test_a_value_is_redacted_wherever_it_holds_a_text():
    held = {
        "вопрос": "Пишите ivan@mail.ru",
        "all": ["CALL +7 912 345-67-89", {"to": "ИВАН: ivan@mail.ru"}, 5, None, 2.5, True],
        "phone": 79123456789,
    }
    assert redact(held) == {
        "вопрос": "Пишите [почта]",
        "all": ["CALL [phone]", {"to": "ИВАН: [почта]"}, 5, None, 2.5, True],
        "phone": "[phone]",
    }


def test_equal_finds_get_equal_numbers_from_one_on():
    change = numbered(keep={contact("own@mail.ru")})
    assert [change(text) for text in ("anna@mail.ru", "ivan@mail.ru", "anna@mail.ru: 7", "own@mail.ru", 7)] == [
        "[e-mail 1]", "[e-mail 2]", "[e-mail 1]: 7", "own@mail.ru", 7,
    ]  # fmt: skip
    assert change("Анна, 9161234567") == "Анна, [phone 3]"  # though it may be none


@pytest.mark.parametrize(
    "text",
    [
        "O`Neil, {} and D`Arcy",
        "5`10, {}, 6`2",
        "```\n{}\n",
        "``` {} `x`",
        "```x``` and ``` {}",
        "``x`` {} ``y``",
        "код`foo` и {} `bar`",
        "код`foo()` и {} `bar`",
    ],
)
def test_an_apostrophe_and_what_is_never_closed_make_no_code(text):
    assert mask(text.format("4111 1111 1111 1111")) == text.format("[карта]" if "код" in text else "[card]")


def test_code_ends_where_its_back_quote_stands():
    assert mask("`curl x` a@mail.ru") == "`curl x` [e-mail]"
    assert mask("`curl x`a@mail.ru") == "`curl x`[e-mail]"


def test_a_log_keeps_no_personal_data_in_names_of_fields_nor_in_floats():
    inside = {"ivan@mail.ru": 1, "phone": 79161234567.0, "more": [{"+7 916 123-45-67": [79161234568.0]}], "a": 1.5, "b": 2.0}
    masked = {"[e-mail]": 1, "phone": "[phone]", "more": [{"[phone]": ["[phone]"]}], "a": 1.5, "b": 2.0}
    assert redact(inside) == masked
    assert redact([float("nan"), float("inf"), True, None])[1:] == [float("inf"), True, None]


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("card 4111\u00a01111\u00a01111\u00a01111", "card [card]"),
        ("card 4111\u20111111\u20111111\u20111111", "card [card]"),
        ("card 4111\u202f1111\u202f1111\u202f1111", "card [card]"),
        ("IBAN DE89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000", "IBAN [account]"),
        ("iban de89 3704 0044 0532 0130 00 please", "iban [account] please"),
        ("at611904300234573201 is mine", "[account] is mine"),
        ("at61 1904 3002 3457 3201 is mine", "[account] is mine"),
        ("паспорт 4509\u00a0123456", "паспорт [паспорт]"),
        ("паспорт 45\u00a009\u00a0123456", "паспорт [паспорт]"),
        ("СНИЛС 112\u2011233\u2011445\u00a095", "СНИЛС [СНИЛС]"),
        ("write to anna\u200b@mail.ru", "write to [e-mail]"),
        ("write to a\u00adnna@mail.ru", "write to [e-mail]"),
    ],
)
def test_blanks_and_hyphens_of_excel_and_word_hide_nothing(text, piece):
    assert mask(text) == piece


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Списали с карты 4276 3800 1234 5679 500 рублей", "Списали с карты [карта] 500 рублей"),
        ("карта 4276 3800 1234 5679 123", "карта [карта] 123"),
        ("IBAN: BE68 5390 0754 7034 BIC: GKCCBEBB", "IBAN: [account] BIC: GKCCBEBB"),
        ("pay to AT611904300234573201 500 EUR", "pay to [account] 500 EUR"),
        ("ES91 2100 0418 4502 0005 1332 EUR 500", "[account] EUR 500"),
        ("тел. 89123456789 / 89223456780", "тел. [телефон] / [телефон]"),
        ("Контакты: 89123456789,89223456780", "Контакты: [телефон],[телефон]"),
        ("Контакты: 89123456789/89223456780", "Контакты: [телефон]/[телефон]"),
        ("Иван,89123456789,1200 руб", "Иван,[телефон],1200 руб"),
        ("8 (912) - 345-67-89", "[phone]"),
        ("Паспорт серия 4510, № 123456", "Паспорт серия [паспорт]"),
        ("паспорт гражданина РФ серия 45 10 номер 123456", "паспорт гражданина РФ серия [паспорт]"),
        (f"https://api.telegram.org/bot123456789:AA{'x' * 33}/send", "https://api.telegram.org/bot[key]/send"),
        (f"a\\nsk-proj-{'x' * 24}", "a\\n[key]"),
        (f"token%3Dhf_{'x' * 34}", "token%3D[key]"),
        ("карта 4276380012345679—моя", "карта [карта]—моя"),
        ("redis://:secret@localhost", "[key]@localhost"),
    ],
)
def test_what_follows_or_goes_before_hides_nothing(text, left):
    assert mask(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("ivan@mail\u00ad.ru", "[e-mail]"),
        ("ivan@mail.\u200bru", "[e-mail]"),
        ("ivan\u2060@\u200bma\ufeffil.r\u200du.", "[e-mail]."),
        ("a@mail.ru\u200bдальше", "[почта]\u200bдальше"),
        ("ivan&#x40;mail.ru", "[e-mail]"),
        ("ivan&#X0040;mail.ru, ivan&#064;mail.ru", "[e-mail], [e-mail]"),
        ("ivan&commat;mail.ru", "[e-mail]"),
        ("ivan\\u0040mail.ru", "[e-mail]"),
        ("git@mail.ru", "[e-mail]"),
        ("git@mail.ru: да", "[почта]: да"),
        ('"john doe"@example.org', "[e-mail]"),
    ],
)
def test_signs_in_an_address_hide_nothing(text, left):
    assert mask(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("карта -4111 1111 1111 1111", "карта -[карта]"),
        ("карта —4111111111111111", "карта —[карта]"),
        ("Visa-4111111111111111", "Visa-[card]"),
        ("MasterCard_5555555555554444", "MasterCard_[card]"),
        ("Мир-2200000000000004, карты-4111111111111111", "Мир-[карта], карты-[карта]"),
        ("4111 1111 1111 1111-12/27", "[card]-12/27"),
        ("4111  1111  1111  1111 500", "[card] 500"),
        ("4111 1111  1111 1111", "[card]"),
        ("4111\t1111\t1111\t1111\t500", "[card]\t500"),
        ("4111.1111.1111.1111.", "[card]."),
        ("4111 - 1111 - 1111 - 1111", "[card]"),
        ("4111\ufeff1111\ufeff1111\ufeff1111", "[card]"),
        ("3782  822463  10005", "[card]"),
        ("De89 3704 0044 0532 0130 00", "[account]"),
        ("De89370400440532013000", "[account]"),
        ("Gb29 nwbk 6016 1331 9268 19", "[account]"),
        ("Gb29NWBK60161331926819", "[account]"),
        ("IBAN_DE89370400440532013000_old", "IBAN_[account]_old"),
        ("No12 DE89 3704 0044 0532 0130 00", "No12 [account]"),
        ("KV12 DE89 3704 0044 0532 0130 00", "KV12 [account]"),
    ],
)
def test_what_stands_between_and_beside_the_digits_hides_nothing(text, left):
    assert mask(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://api.whatsapp.com/send?phone=79123456789&text=Hi", "https://api.whatsapp.com/send?phone=[phone]&text=Hi"),
        ("viber://chat?number=79123456789", "viber://chat?number=[phone]"),
        ("tel=89123456789", "tel=[phone]"),
        ("user_phone=9123456789, phoneNumber = 89123456789", "user_phone=[phone], phoneNumber = [phone]"),
        ("№ телефона = 89123456789", "№ телефона = [телефон]"),
        ("tel:%2B79123456789", "tel:[phone]"),
        ("?phone=%2b1 212-736-5000", "?phone=[phone]"),
        ("89123456789.Thanks", "[phone].Thanks"),
        ("89123456789.I will", "[phone].I will"),
        ("89123456789.thanks", "[phone].thanks"),
        ("89123456789 + Вайбер", "[телефон] + Вайбер"),
        ("89123456789+WhatsApp", "[phone]+WhatsApp"),
    ],
)
def test_what_names_a_phone_or_follows_it_hides_nothing(text, left):
    assert mask(text) == left


def test_an_escaped_plus_is_no_other_contact():
    assert contact("%2B79123456789") == contact("+7 912 345-67-89")


@pytest.mark.parametrize("part", ["1a", "1234567 \n"])
def test_a_phone_is_found_however_many_numbers_go_before(part):
    assert mask(part * 66_000 + " +7 912 345-67-89").endswith(part + " [phone]")  # the matcher alone tries 65,535


@pytest.mark.parametrize("between", [", ", "\n", " и ", "\t", " "])
@pytest.mark.parametrize("phone", ["+7 (912) 345-67-89", "89123456789"])
def test_where_a_long_text_is_divided_no_phone_is_lost(phone, between):
    assert mask(between.join([phone] * 1500)) == between.join(["[телефон]" if "и" in between else "[phone]"] * 1500)


def test_twice_the_numbers_are_twice_the_work_for_a_log():
    def calls(n):
        count = 0

        def called(frame, event, _):
            nonlocal count
            count += event == "call" and frame.f_code.co_filename.endswith("personal.py")

        sys.setprofile(called)
        try:
            assert redact("89123456789 и\n" * n) == "[телефон] и\n" * n
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < 3 * calls(200)
