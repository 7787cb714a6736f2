"""Reading, checking, cleaning, splitting; and the sample data itself."""

import json
import re

import pytest

from gemma_colab.data.cleaning import clean
from gemma_colab.data.reading import read_jsonl
from gemma_colab.data.report import check_rows, findings_table, near_duplicates, verdict
from gemma_colab.data.splitting import groups, leaks, split_rows
from gemma_colab.data.text import jaccard, normalise, shingles
from gemma_colab.errors import DatasetError, SettingsError
from gemma_colab.settings import SplitSettings
from gemma_colab.workspace import samples

GOOD = '{"instruction": "a", "input": "", "output": "b"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "\n" + '{"instruction": "a", "out', "line 2: not valid JSON"),
        (GOOD + "\n\n[1]", "line 3: a list, not an object"),
        ('{"instruction": "a"}', "line 1, field 'output': missing"),
        ('{"instruction": "a", "output": null}', "line 1, field 'output': None, not a text"),
        ('{"instruction": 7, "output": "b"}', "line 1, field 'instruction': 7, not a text"),
        ('{"instruction": "a", "output": "\\ud800"}', "line 1, field 'output': half a character"),
        ("", "has no rows"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
    ],
)
def test_a_bad_file_is_named_by_line_and_field(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read_jsonl(path)
    assert str(path) in str(caught.value)
    assert path.read_text() == content


def test_other_bad_input(tmp_path):
    with pytest.raises(DatasetError, match="is not a file"):
        read_jsonl(tmp_path / "nothing.jsonl")
    (tmp_path / "cp1251.jsonl").write_bytes('{"instruction": "привет"}'.encode("cp1251"))
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_jsonl(tmp_path / "cp1251.jsonl")


def test_reading_keeps_text_and_tolerates_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\ufeff" + json.dumps({"instruction": "a\u2028b", "output": "c", "extra": 1}, ensure_ascii=False) + "\n\n", "utf-8"
    )
    assert read_jsonl(path) == [{"instruction": "a\u2028b", "input": "", "output": "c"}]


def planted(rows):
    """Good rows and one row for each defect, with the name of the check that must find it."""
    rows = [dict(row) for row in rows[1:61]]
    defects = {
        "exact duplicate": dict(rows[0]),
        "near duplicate": rows[1] | {"output": rows[1]["output"] + " Да."},
        "HTML": rows[61 - 2] | {"instruction": "Вопрос о скидке.", "input": "<b>Есть скидка?</b>", "output": "Нет&nbsp;скидки."},
        "empty text": {"instruction": "Вопрос о погоде.", "input": "Какая погода?", "output": " \u200b"},
        "contradiction": rows[3] | {"output": "Совсем другой ответ, которого не было."},
        "personal data": {"instruction": "Клиент дал телефон.", "input": "Звоните +7 912 345-67-89", "output": "Хорошо."},
        "placeholder": {"instruction": "Где посылка?", "input": "Покажите.", "output": "Смотрите {{link}}"},
    }
    return rows + list(defects.values()), {name: len(rows) + i for i, name in enumerate(defects)}


def test_every_planted_defect_is_found(support_rows):
    rows, where = planted(support_rows)
    found = {f.check: f.rows for f in check_rows(rows)}
    for check, row in where.items():
        assert row in found[check], check
    assert verdict(check_rows(rows)).startswith("blocked: empty text")


def test_findings_table_has_a_line_for_each(support_rows):
    findings = check_rows(planted(support_rows)[0])
    table = findings_table(findings)
    assert list(table["check"]) == [f.check for f in findings]
    assert list(table["severity"]) == sorted(table["severity"], key="EWI".index)


@pytest.mark.parametrize(("n", "severity"), [(9, "E"), (10, "W"), (49, "W"), (50, None)])
def test_too_few_rows(support_rows, n, severity):
    few = [f for f in check_rows(support_rows[:n]) if f.check == "too few rows"]
    assert [f.severity for f in few] == ([severity] if severity else [])


def test_cleaning_logs_every_change_and_leaves_the_input_alone(support_rows):
    rows, _ = planted(support_rows)
    copy = [dict(row) for row in rows]
    cleaned, log = clean(rows)
    assert rows == copy
    dropped = set(log[log["after"] == "(dropped)"]["row"])
    assert len(cleaned) == len(rows) - len(dropped)
    kept = [i for i in range(len(rows)) if i not in dropped]
    for i, row in zip(kept, cleaned, strict=True):  # every difference between old and new is in the log
        for field in row:
            if row[field] != rows[i][field]:
                assert ((log["row"] == i) & (log["field"] == field)).any()
    assert not {"HTML", "empty text", "exact duplicate"} & {f.check for f in check_rows(cleaned)}


def test_cleaning_only_does_the_steps_asked_for(support_rows):
    rows, _ = planted(support_rows)
    cleaned, log = clean(rows, ("drop_empty",))
    assert set(log["step"]) == {"drop_empty"}
    assert len(cleaned) == len(rows) - 1
    with pytest.raises(SettingsError, match="is not a cleaning step"):
        clean(rows, ("magic",))


def test_less_than_is_no_tag():
    row = {"instruction": "Если a<b и c>d, то что?", "input": "", "output": "Нет, 2 < 3 > 1."}
    assert clean([row], ("html_to_text",))[0] == [row]
    assert "HTML" not in {f.check for f in check_rows([row])}
    assert clean([row | {"input": "<p class='x'>Да<br/>нет</p>"}], ("html_to_text", "tidy_whitespace"))[0][0]["input"] == "Да нет"


def test_text_helpers():
    assert normalise("  Ёлка, 12 шт.!") == "елка 12 шт"
    assert shingles("заказ 12") == shingles("Заказ 98!")
    assert shingles("да") == {"да"}
    assert jaccard(shingles("совсем одно"), shingles("совсем одно")) == 1
    assert near_duplicates([{"a": "x"}, {"a": "y"}]) == []


def test_split_is_seeded_complete_and_sized(support_rows):
    parts = split_rows(support_rows, SplitSettings(seed=3))
    assert parts == split_rows(support_rows, SplitSettings(seed=3))
    assert parts != split_rows(support_rows, SplitSettings(seed=4))
    assert sorted(map(str, sum(parts.values(), []))) == sorted(map(str, support_rows))
    assert len(parts["test"]) == round(0.15 * len(support_rows))
    assert len(parts["validation"]) == round(0.1 * len(support_rows))


def test_look_alikes_stay_together(support_rows):
    # near in both texts, equal in neither: only the comparison of shingles can bring them together
    twins = [
        row | {"instruction": row["instruction"] + " Срочно.", "output": row["output"] + " Ждём."} for row in support_rows[:100]
    ]
    together = split_rows(support_rows[:100] + twins, SplitSettings(seed=1))
    assert leaks(together) == []
    assert len(groups(support_rows[:100] + twins)) <= 100
    apart = {"train": support_rows[:100], "validation": twins[:1], "test": twins[1:3]}
    assert [(part, row, of) for part, row, of in leaks(apart)] == [("validation", 0, 0), ("test", 0, 1), ("test", 1, 2)]


def test_too_few_rows_to_split(support_rows):
    with pytest.raises(DatasetError, match=r"leave .* empty; add rows"):
        split_rows(support_rows[:3], SplitSettings())


# ------------------------------------------------------------------------------------------ the sample itself
ORDER = re.compile(r"№(\d+)")


def test_sample_is_what_its_readme_says(support_rows):
    assert len(support_rows) >= 300
    assert support_rows[0] == {
        "instruction": "Клиент спрашивает, как отследить свой заказ.",
        "input": "Заказ №12345, где он сейчас?",
        "output": "Ваш заказ №12345 передан в службу доставки и прибудет в течение 3 дней. Отследить его можно по ссылке: [ссылка]",
    }
    assert verdict(check_rows(support_rows)).startswith("ready")
    for field in ("instruction", "input", "output"):
        assert len({row[field] for row in support_rows}) == len(support_rows)


def test_sample_repeats_every_order_number_and_only_that(support_rows):
    numbers = [ORDER.findall(row["input"]) for row in support_rows]
    for row, asked in zip(support_rows, numbers, strict=True):
        assert set(ORDER.findall(row["output"])) == set(asked), row
        first_sentence = re.split(r"(?<=[.?])\s", row["output"])[0]
        assert all(number in first_sentence for number in asked), row
    flat = sum(numbers, [])
    assert len(flat) == len(set(flat)) > 100
    assert {len(n) for n in flat} == {5}


def test_sample_keeps_one_tone(support_rows):
    for row in support_rows:
        answer = row["output"]
        assert answer.endswith((".", "[ссылка]")), answer
        assert "!" not in answer
        assert len(answer) <= 230, answer
        assert not re.search(r"(?<![.?»] )(?<!^)\b(Вы|Вас|Вам|Ваш\w*|Вами)\b", answer), answer  # «вы» in small letters
        assert not re.search(r"здравствуйте|добрый день|с уважением", answer.lower()), answer


def test_sample_has_no_twins_across_any_split(support_rows):
    for seed in range(3):
        assert leaks(split_rows(support_rows, SplitSettings(seed=seed)), threshold=0.5) == []


def test_general_probe_is_bilingual_and_has_nothing_to_do_with_the_shop():
    probe = read_jsonl(samples() / "general_probe.jsonl", fields=("kind", "language", "question", "answer", "key"))
    assert len(probe) >= 100
    assert {q["language"] for q in probe} == {"ru", "en"}
    assert min(sum(q["language"] == language for q in probe) for language in ("ru", "en")) >= 40
    assert len({q["question"] for q in probe}) == len(probe)
    for q in probe:
        assert q["key"] in q["answer"]
        assert not re.search(r"заказ|достав|магазин|оплат|возврат|гарант|order|deliver|refund", q["question"].lower())
