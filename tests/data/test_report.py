"""The report: verdict, acceptance, thresholds, what is shown and what goes to JSON."""

import json

import pytest

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, fingerprint, question, to_messages, with_texts
from gemma_colab.data.report import EXIT_CODES, FINDINGS, Report, check_rows, parameters

ASIDE = [{"line": 7, "problem": "not valid JSON", "content": "{"}, {"line": 30, "problem": "no answer", "content": "{}"}]


@pytest.fixture
def good(support_rows):
    """Without placeholders, of which a part of the sample would have too few to be meant."""
    return [row for row in support_rows if "[" not in answer(row)][:120]


def bad(line=900, **changes):
    return to_messages({"instruction": "Вопрос о погоде.", "input": "", "output": "Сегодня ясно.", "line": line} | changes)


def like(row, asked="", answered=""):
    return to_messages({"instruction": question(row) + asked, "output": answered or answer(row)})


EMPTY, HTML = bad(901, output=" "), bad(902, instruction="Вопрос о ценах.", output="Цена&nbsp;<b>100</b>")


def planted(good):
    """Good rows and one row for each defect: check -> number of the row."""
    rows = list(good[:100])
    defects = {
        "exact duplicate": rows[0] | {"line": 801},
        "near duplicate": like(rows[1], " Жду.", answer(rows[1]) + " Да."),
        "HTML": HTML,
        "empty text": EMPTY,
        "contradiction": like(rows[3], "", "Совсем другой ответ, которого не было."),
        "personal data": bad(instruction="Клиент дал телефон.", input="Звоните +7 912 345-67-89"),
        "placeholder": bad(instruction="Где посылка?", output="Смотрите {{link}}"),
        "fake input": bad(instruction="Назови цвет неба.", input="<noinput>"),
        "mojibake": bad(instruction="Поздоровайся.", output="РџСЂРёРІРµС‚"),
        "invisible characters": bad(instruction="Скажи слово.", output="Сло\u200bво."),
        "control characters": bad(instruction="Напиши строки.", output="Раз\\nДва."),
        "merged examples": bad(instruction="Опиши чай.", output="Тёплый.\n12. Instruction: Name a fruit."),
        "repetition": bad(instruction="Сколько времени?", output="Я не знаю точно. " * 8),
        "mixed schemas": bad(instruction="Чужая строка.", keys="question, answer"),
        "refusal": bad(instruction="Какой чай вкуснее?", output="Как языковая модель, я не пью чай."),
        "mixed script": bad(instruction="Что готово?", output="Зaказ готов."),
    }
    return rows + list(defects.values()), {name: len(rows) + i for i, name in enumerate(defects)}


def test_every_planted_defect_is_found_where_it_is(good):
    rows, where = planted(good)
    found = {f.check: f.rows for f in check_rows(rows).findings}
    for check, row in where.items():
        assert row in found[check], check


# ---------------------------------------------------------------------------------------------------- verdict
def test_the_verdict_is_that_of_the_worst_finding(good):
    ready, fix, blocked = check_rows(good), check_rows([*good, HTML]), check_rows([*good, HTML, EMPTY])
    assert (ready.verdict, ready.reason) == ("ready", "ready: no errors, no warnings")
    assert (fix.verdict, fix.reason) == ("fix first", "fix first: HTML")
    assert (blocked.verdict, blocked.reason) == ("blocked", "blocked: empty text")
    assert EXIT_CODES == {"ready": 0, "fix first": 1, "blocked": 2}
    mixed = check_rows([*good[:8], HTML, bad(instruction="Что готово?", output="Зaказ готов.")][-9:])
    assert [(f.severity, f.check) for f in mixed.findings][:3] == [("E", "too few rows"), ("W", "HTML"), ("I", "mixed script")]


def test_what_only_informs_leaves_a_set_ready(good):
    report = check_rows(good[:60])
    assert "too few rows" in {f.check for f in report.findings}
    assert report.verdict == "ready"


def test_no_rows_at_all():
    report = check_rows([])
    assert report.reason == "blocked: too few rows"
    assert report.counts()["rows"] == 0
    json.dumps(report.to_dict())
    assert "too few rows" in str(report)


def test_accepting_overrules_by_name(good):
    rows = [*good, HTML, EMPTY]
    report = check_rows(rows, accept=["empty text"])
    assert report.reason == "fix first: HTML"
    accepted = next(f for f in report.findings if f.check == "empty text")
    assert (accepted.severity, accepted.rows) == ("I", [121])
    assert accepted.what_to_do.startswith("accepted by you (E): ")
    assert check_rows(rows, accept=["empty text", "HTML"]).verdict == "ready"
    assert check_rows(good, accept=["HTML"]).verdict == "ready"  # a finding that isn't there
    with pytest.raises(SettingsError, match=r"accept='html' is not a finding; choose from .*HTML.*validation too small"):
        check_rows(rows, accept=["html"])


def test_rows_a_person_kept_no_longer_warn(good):
    rows = [*good, HTML, bad(903, instruction="Ещё вопрос.", output="<i>да</i>"), EMPTY]
    report = check_rows(rows, kept={fingerprint(HTML): {"HTML"}, fingerprint(EMPTY): {"empty text"}})
    found = {f.check: (f.severity, f.rows) for f in report.findings}
    assert found["HTML"] == ("W", [121])
    assert found["empty text"] == ("E", [122])  # an error is not a matter of taste
    assert found["reviewed"] == ("I", [120])
    assert {h.note for f in report.findings if f.check == "reviewed" for h in f.hits} == {"HTML: kept by you"}
    assert check_rows([*good, HTML], kept={fingerprint(HTML): {"HTML"}}).verdict == "ready"
    other = check_rows([*good, HTML], kept={fingerprint(HTML): {"personal data"}})  # kept in spite of something else
    assert other.verdict == "fix first"
    assert "reviewed" not in {f.check for f in check_rows(rows, kept={fingerprint(bad()): {"HTML"}}).findings}


# ---------------------------------------------------------------------------------------------------- thresholds
def test_thresholds_go_to_their_check_by_name(good):
    def few(**thresholds):
        return [f.severity for f in check_rows(good[:60], **thresholds).findings if f.check == "too few rows"]

    assert few() == ["I"]
    assert few(too_few={"warn": 61}) == ["W"]
    assert few(too_few={"block": 61}) == ["E"]
    assert few(too_few={"inform": 60}) == []


def test_every_threshold_is_listed_with_its_default():
    known = parameters()
    assert known["too_few"] == {"block": 10, "warn": 50, "inform": 100}
    assert known["near_duplicates"] == {"threshold": 0.72}
    assert known["too_long"] == {"most": 0.05}
    assert known["dropped"] == {"most": 0.3}
    assert set(known) == {
        "personal", "repetition", "refrain", "too_few", "near_duplicates", "placeholder_words", "language", "style", "diversity",
        "too_long", "dropped", "budget",
    }  # fmt: skip


def test_the_near_threshold_reaches_the_search_itself(good):
    base = good[0]
    twin = like(
        base,
        " Скажите?",
        answer(base)
        + " Если посылка задержится, мы обязательно напишем вам об этом письмом, а вы сможете отменить его или оставить: как вам удобнее.",
    )
    rows = [*good, twin]

    def found(threshold):
        near = (f for f in check_rows(rows, near_duplicates={"threshold": threshold}).findings if f.check == "near duplicate")
        return 120 in {row for f in near for row in f.rows}

    assert found(0.5)
    assert not found(0.72)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"near": {}}, r"'near' is not a check with thresholds; choose from .*near_duplicates.*too_few"),
        ({"html": {"x": 1}}, r"'html' is not a check with thresholds"),
        ({"too_few": {"warning": 3}}, r"too_few has no threshold 'warning'; it has block, warn, inform"),
    ],
)
def test_unknown_names_are_refused_with_the_list(good, thresholds, message):
    with pytest.raises(SettingsError, match=message):
        check_rows(good, **thresholds)


def test_every_name_of_a_finding_can_be_accepted(good, tokenizer):
    rows, _ = planted(good)
    report = check_rows(rows, tokenizer=tokenizer, max_length=40, aside=ASIDE)
    names = {f.check for f in report.findings}
    assert names <= FINDINGS
    assert check_rows(rows, tokenizer=tokenizer, max_length=40, aside=ASIDE, accept=names).verdict == "ready"


# ---------------------------------------------------------------------------------------------------- what is shown
def test_aside_rows_are_an_error_with_their_lines(good):
    report = check_rows(good, aside=iter(ASIDE))
    (finding,) = (f for f in report.findings if f.check == "unreadable row")
    assert (finding.severity, finding.lines, finding.rows) == ("E", [7, 30], [])
    assert "accept 'unreadable row'" in finding.what_to_do
    assert "not valid JSON" in str(report)
    assert report.reason == "blocked: unreadable row"
    assert report.counts()["put aside"] == 2
    assert report.places(finding) == "line 7, 30"
    assert check_rows(good, aside=ASIDE, accept=["unreadable row"]).verdict == "ready"


def test_the_text_has_a_line_for_each_finding(good):
    report = check_rows(planted(good)[0], aside=ASIDE)
    lines = str(report).split("\n")
    assert lines[0] == report.reason
    assert lines[1].startswith("rows 116, put aside 2, characters in an answer, median ")
    lines = [line for line in lines if not line.startswith("     ")]  # what was wrong with each unreadable row
    assert len(lines) == 2 + len(report.findings)
    for line, f in zip(lines[2:], report.findings, strict=True):
        assert line.startswith(f"{f.severity}  {f.check}")
        assert line.endswith(f.what_to_do)
    assert any(line.startswith("W  HTML in 1 row (line 902): ") for line in lines)
    assert "E  unreadable row in 2 rows (line 7, 30): " in str(report)
    assert repr(report) == str(report)


def test_the_table_has_a_line_for_each_finding(good):
    report = check_rows(planted(good)[0], aside=ASIDE)
    table = report.table().set_index("check")
    assert list(table.index) == [f.check for f in report.findings]
    assert table.loc["HTML", ["severity", "rows", "where"]].tolist() == ["W", 1, "line 902"]
    assert table.loc["unreadable row", ["severity", "rows", "where"]].tolist() == ["E", 2, "line 7, 30"]


def test_many_places_are_cut_short(good):
    rows = [*good, *(bad(910 + i, instruction=f"Вопрос {'абвгдежз'[i]}", output=f"<b>{'абвгдежз'[i]}</b>") for i in range(7))]
    report = check_rows(rows)
    (finding,) = (f for f in report.findings if f.check == "HTML")
    assert report.places(finding) == "line 910, 911, 912, 913, 914 ..."
    assert report.places(finding, most=7) == "line 910, 911, 912, 913, 914, 915, 916"
    nameless = check_rows([{k: v for k, v in row.items() if k != "line"} for row in rows])
    (finding,) = (f for f in nameless.findings if f.check == "HTML")
    assert nameless.places(finding, most=2) == "row 120, 121 ..."
    items = check_rows([row | {"line": 1, "item": i + 1} for i, row in enumerate(rows)])
    (finding,) = (f for f in items.findings if f.check == "HTML")
    assert items.places(finding, most=2) == "item 121, 122 ..."
    assert nameless.lines(finding) == [None] * 7


def test_json_is_complete(good, tokenizer):
    report = check_rows(planted(good)[0], tokenizer=tokenizer, max_length=100, aside=ASIDE)
    said = report.to_dict()
    assert json.loads(json.dumps(said, ensure_ascii=False)) == said
    assert {key: said[key] for key in ("verdict", "reason", "max_length")} == {
        "verdict": "blocked", "reason": report.reason, "max_length": 100,
    }  # fmt: skip
    assert said["counts"] == report.counts()
    assert [f["check"] for f in said["findings"]] == [f.check for f in report.findings]
    html = next(f for f in said["findings"] if f["check"] == "HTML")
    assert (html["severity"], html["rows"], html["lines"]) == ("W", [102], [902])
    assert next(f for f in said["findings"] if f["check"] == "unreadable row")["lines"] == [7, 30]
    assert all(f["what_to_do"] for f in said["findings"])


def test_counts(good, tokenizer):
    talk = {"messages": [{"role": "user", "content": "Привет"}, {"role": "assistant", "content": "Да?"}]}
    report = check_rows([*good, talk], tokenizer=tokenizer)
    counts = report.counts()
    assert (counts["rows"], counts["with several questions"], counts["put aside"]) == (121, 0, 0)
    turns = [{"role": "system", "content": "Кратко."}, *talk["messages"], *talk["messages"]]
    more = check_rows([*good, {"messages": turns}]).counts()
    assert (more["with several questions"], more["with a system prompt"]) == (1, 1)
    totals = report.lengths["total"]
    assert counts["tokens max"] == totals.max()
    for q in (5, 50, 95):
        assert counts[f"tokens p{q}"] == round(totals.quantile(q / 100))
    assert "tokens max" not in check_rows(good).counts()


def test_conversations_are_checked_like_any_row(good):
    talks = [like(r) for r in good]
    assert check_rows(talks).verdict == "ready"
    talks[5]["messages"][1]["content"] += "<br>"
    (finding,) = (f for f in check_rows(talks).findings if f.severity == "W")
    assert [(h.row, h.field) for h in finding.hits] == [(5, "answer")]


def test_a_report_changes_nothing(good):
    rows, _ = planted(good)
    before = json.dumps(rows)
    assert isinstance(check_rows(rows), Report)
    assert json.dumps(rows) == before


def test_the_samples_are_ready(support_rows, tokenizer):
    assert check_rows(support_rows, tokenizer=tokenizer).verdict == "ready"


# ---------------------------------------------------------------------------------------------------- the page
def test_a_notebook_shows_a_report_as_a_page(support_rows, tokenizer):
    rows = [with_texts(row, {"answer": answer(row) + "<br>"}) for row in support_rows[:60]]
    report = check_rows(rows, tokenizer=tokenizer, max_length=512)
    page = report.page(most=7).data
    assert "and 53 more rows" in page
    assert page.count("&lt;br&gt;</mark>") == 7
    assert "tokens p95" in page
    assert "tokens in a row; 0 of 60 rows would be cut at max_length = 512" in page
    assert report._repr_html_() == report.page().data != page


def test_long_texts_are_cut_around_the_place(support_rows):
    text = "слово " * 400 + "a@example.com" + " слово" * 400
    page = check_rows([*support_rows[:20], with_texts(support_rows[30], {"answer": text})]).page().data
    assert "<mark>a@example.com</mark>" in page
    assert "characters in an answer" in page
    assert len(page) < 60_000
    assert page.count("слово слово слово") < 200


def test_the_page_of_no_rows_at_all():
    page = check_rows([], aside=[{"line": 1, "field": "", "problem": "not JSON", "content": "{"}])._repr_html_()
    assert "not JSON" in page
    assert "blocked" in page
