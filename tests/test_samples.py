"""The sample data is what its README says, and the report finds in the raw export what was planted there."""

import importlib
import json
import re
from collections import Counter, defaultdict

import pytest
from conftest import ROOT

from gemma_colab.core.rows import answer
from gemma_colab.core.workspace import samples
from gemma_colab.data.cleaning import STEPS, clean
from gemma_colab.data.looking import question, texts
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import check_rows
from gemma_colab.data.splitting import leaks, split_rows

ORDER = {"ru": re.compile(r"№(\d+)"), "en": re.compile(r"#(\d+)")}
# Kinds that a program can be sure of; style, language and refusals are for a person, and only inform.
MECHANICAL = """unreadable row|empty text|HTML|fake input|merged examples|mojibake|control characters|invisible characters
personal data|repetition|exact duplicate|near duplicate|contradiction|placeholder|mixed script""".replace("\n", "|").split("|")


@pytest.fixture(scope="module", params=["ru", "en"])
def sample(request):
    return request.param, read_rows(samples() / f"support_{request.param}.jsonl").rows


def test_size_and_first_row(support_rows):
    assert len(support_rows) >= 500
    assert len(read_rows(samples() / "support_en.jsonl").rows) >= 200
    assert support_rows[0] == {
        "messages": [
            {"role": "user", "content": "Клиент спрашивает, как отследить свой заказ.\n\nЗаказ №12345, где он сейчас?"},
            {
                "role": "assistant",
                "content": "Ваш заказ №12345 передан в службу доставки и прибудет в течение 3 дней. Отследить его можно по ссылке: [ссылка]",
            },
        ],
        "line": 1,
    }


def test_nothing_to_complain_about(sample):
    _, rows = sample
    report = check_rows(rows)
    assert report.verdict == "ready"
    assert clean(rows, STEPS)[0] == rows
    for field in (lambda row: question(row).split("\n\n")[0], lambda row: question(row).split("\n\n")[1], answer):
        assert len(set(map(field, rows))) == len(rows)


def test_every_order_number_is_repeated_and_only_that(sample):
    language, rows = sample
    numbers = [ORDER[language].findall(question(row)) for row in rows]
    for row, asked in zip(rows, numbers, strict=True):
        assert set(ORDER[language].findall(answer(row))) == set(asked), row
        first_sentence = re.split(r"(?<=[.?])\s", answer(row))[0]
        assert all(number in first_sentence for number in asked), row
    flat = sum(numbers, [])
    assert len(flat) == len(set(flat)) > 90
    assert {len(n) for n in flat} == {5}


def test_one_tone(sample):
    language, rows = sample
    for text in map(answer, rows):
        assert text.endswith((".", "[ссылка]", "[link]")), text
        assert "!" not in text
        assert len(text) <= (230 if language == "ru" else 250), text
        assert not re.search(r"(?<![.?»] )(?<!^)\b(Вы|Вас|Вам|Ваш\w*|Вами)\b", text), text  # «вы» in small letters
        assert not re.search(r"здравствуйте|добрый день|с уважением|hello|regards|dear ", text.lower()), text


def test_no_twins_across_any_split(sample):
    _, rows = sample
    for seed in range(3):
        assert leaks(split_rows(rows, seed=seed)[0], twin=0.5) == []


@pytest.fixture(scope="module")
def raw():
    source = read_rows(samples() / "support_ru_raw.csv", on_bad="aside")
    return source, check_rows(source.rows, aside=source.aside)


@pytest.fixture(scope="module")
def planted():
    kinds = defaultdict(set)
    for one in json.loads((samples() / "support_ru_raw.answers.json").read_text("utf-8")):
        kinds[one["kind"]].add(one["line"])
    return kinds


def test_the_export_is_as_dirty_as_it_says(raw, planted):
    source, _ = raw
    assert len(source.rows) + len(source.aside) >= 300
    assert "Windows-1251" in source.details
    assert "';'" in source.details
    assert set(MECHANICAL) <= set(planted)


@pytest.mark.parametrize("kind", MECHANICAL)
def test_every_planted_defect_is_found(raw, planted, kind):
    _, report = raw
    found = {line for f in report.findings if f.check == kind for line in report.lines(f)}
    assert planted[kind] <= found


def test_few_rows_without_a_planted_defect_are_blamed(raw, planted):
    source, report = raw
    guilty = set().union(*planted.values())
    blamed = {line for f in report.findings if f.severity in "EW" for line in report.lines(f)}
    assert len(blamed - guilty) <= 0.02 * len(source.rows)


def test_kinds_for_a_person_are_shown(raw, planted):
    _, report = raw
    shown = Counter()
    for f in report.findings:
        shown[f.check] += len(planted[f.check] & set(report.lines(f)))
    for kind in ("style: address", "style: greeting", "style: length", "refusal", "language"):
        assert shown[kind] == len(planted[kind]), kind


def test_cleaning_brings_the_good_rows_back(raw, support_rows):
    cleaned, log = clean(raw[0].rows, STEPS)

    def plain(row):
        return tuple(" ".join(text.split()) for text in texts(row).values())

    back = {plain(row) for row in cleaned} & {plain(row) for row in support_rows}
    lost = len(support_rows) - len(back)
    assert lost == 10  # eight answers were emptied, two rows broke off
    left = {f.check for f in check_rows(cleaned).findings if f.severity in "EW"}
    assert left == {"merged examples", "repetition", "near duplicate", "contradiction", "placeholder"}  # for a person
    assert set(log["step"]) >= {"html_to_text", "entities", "mojibake", "mask_personal_data", "drop_near_duplicates"}


def test_the_script_still_makes_the_poor_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "data_samples" / "build"))
    make_poor = importlib.import_module("make_poor")
    monkeypatch.setattr(make_poor, "OUT", tmp_path)
    (tmp_path / "support_ru.jsonl").write_bytes((samples() / "support_ru.jsonl").read_bytes())
    make_poor.main()
    assert capsys.readouterr().out == "480 poor rows from 48\n"
    made = (tmp_path / "support_ru_poor.jsonl").read_bytes()
    assert made == (samples() / "support_ru_poor.jsonl").read_bytes()
    kinds = Counter(json.loads(line)["kind"] for line in made.decode().splitlines())
    of_one = {"near duplicate": 3, "wrong facts": 2, "HTML": 2, "cut": 1, "language": 1, "merged examples": 1}
    assert kinds == {kind: 48 * n for kind, n in of_one.items()}


def test_the_poor_rows_are_poor(support_rows):
    rows = read_rows(samples() / "support_ru_poor.jsonl").rows
    found = {f.check: len(f.rows) for f in check_rows(rows).findings}
    assert found["contradiction"] >= 48 * 5
    assert found["HTML"] >= 90
    assert found["merged examples"] >= 45
    right = {answer(row) for row in support_rows}
    assert sum(answer(row) in right for row in rows) == 48 * 3  # the near duplicates


def test_general_probe_is_bilingual_and_has_nothing_to_do_with_the_shop():
    probe = [json.loads(line) for line in (samples() / "general_probe.jsonl").read_text("utf-8").splitlines()]
    assert len(probe) >= 100
    assert {q["language"] for q in probe} == {"ru", "en"}
    assert min(sum(q["language"] == language for q in probe) for language in ("ru", "en")) >= 40
    assert len({q["question"] for q in probe}) == len(probe)
    for q in probe:
        assert q["key"] in q["answer"]
        assert not re.search(r"заказ|достав|магазин|оплат|возврат|гарант|order|deliver|refund", q["question"].lower())
