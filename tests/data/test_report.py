"""The report: verdict, acceptance, thresholds, what is shown and what goes to JSON."""

import json

import pytest

from gemma_colab.cli.commands import EXIT_CODES
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.data.looking import fingerprint, question, with_texts
from gemma_colab.data.report import FINDINGS, check_rows, parameters

ASIDE = [{"line": 7, "problem": "not valid JSON", "content": "{"}, {"line": 30, "problem": "no answer", "content": "{}"}]


@pytest.fixture
def good(support_rows):
    """Without placeholders, of which a part of the sample would have too few to be meant."""
    return [row for row in support_rows if "[" not in answer(row)][:120]


def row(asked="Вопрос о погоде.", said="Сегодня ясно.", line=900, **more):
    return to_messages({"instruction": asked, "output": said, "line": line} | more)


def like(one, asked="", said=None):
    return row(question(one) + asked, answer(one) if said is None else said)


EMPTY, HTML, MIXED = (
    row(said=" ", line=901),
    row("Вопрос о ценах.", "Цена&nbsp;<b>100</b>", 902),
    row("Что готово?", "Зaказ готов."),
)


def planted(good):
    """Good rows and one row for each defect: check -> number of the row."""
    rows = list(good[:100])
    defects = {
        "exact duplicate": rows[0] | {"line": 801},
        "near duplicate": like(rows[1], " Жду.", answer(rows[1]) + " Да."),
        "HTML": HTML,
        "empty text": EMPTY,
        "contradiction": like(rows[3], said="Совсем другой ответ, которого не было."),
        "personal data": row("Клиент дал телефон.", input="Звоните +7 912 345-67-89"),
        "placeholder": row("Где посылка?", "Смотрите {{link}}"),
        "fake input": row("Назови цвет неба.", input="<noinput>"),
        "mojibake": row("Поздоровайся.", "РџСЂРёРІРµС‚"),
        "invisible characters": row("Скажи слово.", "Сло\u200bво."),
        "control characters": row("Напиши строки.", "Раз\\nДва."),
        "merged examples": row("Опиши чай.", "Тёплый.\n12. Instruction: Name a fruit."),
        "repetition": row("Сколько времени?", "Я не знаю точно. " * 8),
        "mixed schemas": row("Чужая строка.", keys="question, answer"),
        "refusal": row("Какой чай вкуснее?", "Как языковая модель, я не пью чай."),
        "mixed script": MIXED,
    }
    return rows + list(defects.values()), {name: len(rows) + i for i, name in enumerate(defects)}


def found(report):
    return {f.check: f for f in report.findings}


def test_every_planted_defect_is_found_where_it_is_and_nothing_is_changed(good):
    rows, where = planted(good)
    before = json.dumps(rows)
    findings = found(check_rows(rows))
    assert json.dumps(rows) == before
    for check, number in where.items():
        assert number in findings[check].rows, check


# ---------------------------------------------------------------------------------------------------- verdict
def test_the_verdict_is_that_of_the_worst_finding(good, support_rows, tokenizer):
    reasons = [check_rows(rows).reason for rows in (good, [*good, HTML], [*good, HTML, EMPTY])]
    assert reasons == ["ready: no errors, no warnings", "fix first: HTML", "blocked: empty text"]
    assert EXIT_CODES == {"ready": 0, "fix first": 1, "blocked": 2}
    mixed = check_rows([*good[:7], HTML, MIXED])
    assert [(f.severity, f.check) for f in mixed.findings][:3] == [("E", "too few rows"), ("W", "HTML"), ("I", "mixed script")]
    some = check_rows(good[:60])  # what only informs leaves a set ready
    assert ("too few rows" in found(some), some.verdict) == (True, "ready")
    assert check_rows(support_rows, tokenizer=tokenizer).verdict == "ready"


def test_no_rows_at_all():
    report = check_rows([])
    assert report.reason == "blocked: too few rows"
    assert report.counts()["rows"] == 0
    json.dumps(report.to_dict())
    assert "too few rows" in str(report)
    page = check_rows([], aside=[{"line": 1, "field": "", "problem": "not JSON", "content": "{"}])._repr_html_()
    assert "not JSON" in page
    assert "blocked" in page


def test_accepting_overrules_by_name(good):
    rows = [*good, HTML, EMPTY]
    report = check_rows(rows, accept=["empty text"])
    assert report.reason == "fix first: HTML"
    accepted = found(report)["empty text"]
    assert (accepted.severity, accepted.rows) == ("I", [121])
    assert accepted.what_to_do.startswith("accepted by you (E): ")
    assert check_rows(rows, accept=["empty text", "HTML"]).verdict == "ready"
    assert check_rows(good, accept=["HTML"]).verdict == "ready"  # a finding that isn't there
    with pytest.raises(SettingsError, match=r"accept='html' is not a finding; choose from .*HTML.*validation too small"):
        check_rows(rows, accept=["html"])


def test_every_name_of_a_finding_can_be_accepted(good, tokenizer):
    options = {"tokenizer": tokenizer, "max_length": 40, "aside": ASIDE}
    names = set(found(check_rows(planted(good)[0], **options)))
    assert names <= FINDINGS
    assert check_rows(planted(good)[0], **options, accept=names).verdict == "ready"


def test_rows_a_person_kept_no_longer_warn(good):
    rows = [*good, HTML, row("Ещё вопрос.", "<i>да</i>"), EMPTY]
    findings = found(check_rows(rows, kept={fingerprint(HTML): {"HTML"}, fingerprint(EMPTY): {"empty text"}}))
    assert (findings["HTML"].severity, findings["HTML"].rows) == ("W", [121])
    assert (findings["empty text"].severity, findings["empty text"].rows) == ("E", [122])  # an error is not a matter of taste
    assert next((h.row, h.note) for h in findings["reviewed"].hits) == (120, "HTML: kept by you")
    assert (findings["reviewed"].severity, findings["reviewed"].rows) == ("I", [120])
    assert check_rows([*good, HTML], kept={fingerprint(HTML): {"HTML"}}).verdict == "ready"
    other = check_rows([*good, HTML], kept={fingerprint(HTML): {"personal data"}})  # kept in spite of something else
    assert other.verdict == "fix first"
    assert "reviewed" not in found(other)


# ---------------------------------------------------------------------------------------------------- thresholds
@pytest.mark.parametrize(
    ("thresholds", "severities"), [({}, ["I"]), ({"warn": 61}, ["W"]), ({"block": 61}, ["E"]), ({"inform": 60}, [])]
)
def test_thresholds_go_to_their_check_by_name(good, thresholds, severities):
    report = check_rows(good[:60], too_few=thresholds)
    assert [f.severity for f in report.findings if f.check == "too few rows"] == severities


def test_every_threshold_is_listed_with_its_default():
    known = parameters()
    assert known["too_few"] == {"block": 10, "warn": 50, "inform": 100}
    assert known["near_duplicates"] == {"threshold": 0.72}
    assert known["too_long"] == {"most": 0.05}
    assert set(known) == {
        "personal", "repetition", "too_few", "near_duplicates", "placeholder_words", "language", "style", "diversity",
        "too_long", "budget",
    }  # fmt: skip


def test_the_near_threshold_reaches_the_search_itself(good):
    more = " Если посылка задержится, мы обязательно напишем вам об этом письмом, а вы сможете отменить его или оставить: как вам удобнее."
    rows = [*good, like(good[0], " Скажите?", answer(good[0]) + more)]
    for threshold, near in ((0.5, True), (0.72, False)):
        hits = found(check_rows(rows, near_duplicates={"threshold": threshold})).get("near duplicate")
        assert (hits is not None and 120 in hits.rows) == near


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


# ---------------------------------------------------------------------------------------------------- what is shown
def test_rows_put_aside_are_an_error_with_their_lines(good):
    report = check_rows(good, aside=iter(ASIDE))
    finding = found(report)["unreadable row"]
    assert (finding.severity, finding.lines, finding.rows) == ("E", [7, 30], [])
    assert "accept 'unreadable row'" in finding.what_to_do
    assert "not valid JSON" in str(report)
    assert report.reason == "blocked: unreadable row"
    assert report.counts()["put aside"] == 2
    assert check_rows(good, aside=ASIDE, accept=["unreadable row"]).verdict == "ready"


def test_text_table_and_json_have_every_finding(good, tokenizer):
    report = check_rows(planted(good)[0], tokenizer=tokenizer, max_length=100, aside=ASIDE)
    lines = [line for line in str(report).split("\n") if not line.startswith("     ")]  # what was wrong with each unreadable row
    assert lines[0] == report.reason
    assert lines[1].startswith("rows 116, put aside 2, characters in an answer, median ")
    for line, f in zip(lines[2:], report.findings, strict=True):
        assert line.startswith(f"{f.severity}  {f.check}")
        assert line.endswith(f.what_to_do)
    assert any(line.startswith("W  HTML in 1 row (line 902): ") for line in lines)
    assert "E  unreadable row in 2 rows (line 7, 30): " in str(report) == repr(report)

    table = report.table().set_index("check")
    assert list(table.index) == [f.check for f in report.findings]
    assert table.loc["HTML", ["severity", "rows", "where"]].tolist() == ["W", 1, "line 902"]
    assert table.loc["unreadable row", ["severity", "rows", "where"]].tolist() == ["E", 2, "line 7, 30"]

    said = report.to_dict()
    assert json.loads(json.dumps(said, ensure_ascii=False)) == said
    assert [said[key] for key in ("verdict", "reason", "max_length", "counts")] == [
        "blocked",
        report.reason,
        100,
        report.counts(),
    ]
    assert [f["check"] for f in said["findings"]] == list(table.index)
    assert all(f["what_to_do"] for f in said["findings"])
    by_name = {f["check"]: f for f in said["findings"]}
    assert [by_name["HTML"][key] for key in ("severity", "rows", "lines", "items")] == ["W", [102], [902], [None]]
    assert by_name["unreadable row"]["lines"] == [7, 30]


def test_many_places_are_cut_short(good):
    rows = [*good, *(row(f"Вопрос {letter}", f"<b>{letter}</b>", 910 + i) for i, letter in enumerate("абвгдеж"))]
    nameless = [{"messages": one["messages"]} for one in rows]
    items = [one | {"line": 1, "item": i + 1} for i, one in enumerate(rows)]
    for some, most, places in (
        (rows, 5, "line 910, 911, 912, 913, 914 ..."),
        (rows, 7, "line 910, 911, 912, 913, 914, 915, 916"),
        (nameless, 2, "row 120, 121 ..."),
        (items, 2, "item 121, 122 ..."),
    ):
        report = check_rows(some)
        assert report.places(found(report)["HTML"], most=most) == places
    report = check_rows(nameless)
    assert report.lines(found(report)["HTML"]) == [None] * 7


def test_counts(good, tokenizer):
    talk = {"messages": [{"role": "user", "content": "Привет"}, {"role": "assistant", "content": "Да?"}]}
    report = check_rows([*good, talk], tokenizer=tokenizer)
    counts, totals = report.counts(), report.lengths["total"]
    assert (counts["rows"], counts["with several questions"], counts["put aside"]) == (121, 0, 0)
    assert counts["tokens max"] == totals.max()
    assert [counts[f"tokens p{q}"] for q in (5, 50, 95)] == [round(totals.quantile(q / 100)) for q in (5, 50, 95)]
    turns = [{"role": "system", "content": "Кратко."}, *talk["messages"], *talk["messages"]]
    counts = check_rows([*good, {"messages": turns}]).counts()
    assert (counts["with several questions"], counts["with a system prompt"], "tokens max" in counts) == (1, 1, False)


def test_a_notebook_shows_a_report_as_a_page(good, tokenizer):
    report = check_rows(
        [with_texts(one, {"answer": answer(one) + "<br>"}) for one in good[:60]], tokenizer=tokenizer, max_length=512
    )
    page = report.page(most=7).data
    for text in ("and 53 more rows", "tokens p95", "tokens in a row; 0 of 60 rows would be cut at max_length = 512"):
        assert text in page
    assert page.count("&lt;br&gt;</mark>") == 7
    assert report._repr_html_() == report.page().data != page


def test_long_texts_are_cut_around_the_place(good):
    text = "слово " * 400 + "<br>" + " слово" * 400
    page = check_rows([*good[:20], with_texts(good[30], {"answer": text})]).page().data
    assert "<mark>&lt;br&gt;</mark>" in page
    assert "characters in an answer" in page
    assert len(page) < 60_000
    assert page.count("слово слово слово") < 200


def test_control_characters_of_a_file_are_written_out_in_the_text(good):
    aside = [{"line": 3, "problem": "\x1b[31mno JSON", "sentence": "line 3: \x1b]0;title\x07 \u202eno JSON"}]
    said = repr(check_rows(good[:20], aside=aside))
    assert "line 3: \\x1b]0;title\\x07 \\u202eno JSON" in said
    assert all(c == "\n" or c.isprintable() for c in said)
