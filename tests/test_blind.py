"""The blind review: what is hidden, what each decision saves, where a new session goes on, and what the figures say."""

import csv
import io
import json
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from gemma_colab.core.errors import DatasetError, SettingsError, WorkspaceError
from gemma_colab.core.workspace import Workspace
from gemma_colab.evaluation.blind import CHOICES, FEWEST, BlindReview, preference
from gemma_colab.ui.blind import BlindPanel, blind_result

EVIL = "<img src=x onerror='alert(1)'> </div><b>жирный</b> {{ 7 * 7 }}"
TEXTS = {"base": "основы", "tuned": "настроенной"}


def table(n=30, tuned="Ответ настроенной"):
    return pd.DataFrame({"question": f"Вопрос {i}?", "base": f"Ответ основы {i}.", "tuned": f"{tuned} {i}."} for i in range(n))


def side_of(row, name):
    return "left" if TEXTS[name] in row.left else "right"


def decide(review, *names):
    """What somebody does who knows: choose the side of this candidate, or a choice that is no side."""
    for number, name in enumerate(names):
        review.decide(number, choice=side_of(review.rows[number], name) if name in TEXTS else name)


def saved(review):
    with (review.workspace.path / review.file).open(encoding="utf-8-sig", newline="") as f:
        return list(csv.DictReader(f))


def dealt(review):
    return {row.row: row.left for row in review.rows}


def widgets_of(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_of(child)


def told(panel):
    """Everything the widgets of a panel tell the browser."""
    hidden = ("layout", "style", "children")
    return json.dumps(
        [{k: v for k, v in w.get_state().items() if k not in hidden} for w in widgets_of(panel.widget)],
        default=str,
        ensure_ascii=False,
    )


# ------------------------------------------------------------------------------------------ order and hiding
def test_the_order_is_mixed_and_the_same_in_every_session(workspace, tmp_path):
    first = BlindReview(table(), workspace, rows=30)
    assert BlindReview(table().sample(frac=1, random_state=1), Workspace(tmp_path / "other"), rows=30).rows == first.rows
    assert 5 < sum(side_of(row, "base") == "left" for row in first.rows) < 25
    assert all(("основы" in row.left) != ("основы" in row.right) for row in first.rows)
    other = BlindReview(table(), workspace, rows=30, seed=1)
    assert dealt(other) != dealt(first)
    assert list(dealt(other)) != list(dealt(first))


def test_who_is_who_reaches_neither_browser_nor_csv_before_it_is_opened(tmp_path):
    """With the two columns exchanged, and shown in the same places, nothing that can be seen differs."""
    seen = []
    for n, answers in enumerate((table(1), table(1).rename(columns={"base": "tuned", "tuned": "base"}))):
        panels = (BlindPanel(answers, Workspace(tmp_path / f"{n}-{seed}"), seed=seed) for seed in range(50))
        panel = next(panel for panel in panels if "основы" in panel.review.rows[0].left)
        panel.choose("left")
        panel.review.decide(0, notes="хорошо", left_tone="yes")
        (line,) = saved(panel.review)
        assert not {"base", "tuned"} & {*line, *line.values()}
        seen.append((told(panel), line | {"row": ""}))
        assert "основы" in seen[-1][0]
    assert seen[0] == seen[1]
    assert "tuned" not in seen[0][0]
    panel._open()
    assert "tuned" in told(panel)


def test_nothing_is_written_before_the_first_decision_and_then_at_once(workspace):
    panel = BlindPanel(table(), workspace)
    assert list(workspace.path.iterdir()) == []
    assert panel.review.summary()["sentence"] == "Nobody has compared the answers by hand yet."
    panel.buttons["right"].click()
    (line,) = saved(panel.review)
    row = panel.review.rows[0]
    assert (line["row"], line["question"], line["left"], line["right"]) == (row.row, row.question, row.left, row.right)
    assert line["choice"] == "right"
    assert sorted(p.suffix for p in (workspace.path / "review").iterdir()) == [".csv", ".json"]  # nothing half written


# ------------------------------------------------------------------------------------------ the panel
def test_choices_go_on_marks_and_notes_stay(workspace):
    panel = BlindPanel(table(4), workspace)
    assert "Row 1 of 4" in panel.place.value
    panel.marks["left_tone"].value = "yes"
    panel.notes.value = "вежливо"
    assert panel.at == 0
    assert "0 decided" in panel.place.value
    panel.keys.value = "2\n"
    assert (panel.keys.value, panel.at, panel.notes.value, panel.marks["left_tone"].value) == ("", 1, "", None)
    panel.keys.value = "0\n"
    assert (panel.at, panel.notes.value, panel.marks["left_tone"].value) == (0, "вежливо", "yes")
    assert "you chose: right is better" in panel.place.value
    panel.keys.value = "1\n"  # another mind: it stays, and says so
    assert panel.at == 0
    assert "Changed to:" in panel.message.value
    assert [panel.review.of(0)[name] for name in ("choice", "left_tone", "notes")] == ["left", "yes", "вежливо"]
    panel.keys.value = "\n"
    panel.keys.value = "x\n"
    assert panel.at == 1
    assert "Not known:" in panel.message.value
    for key in "343":
        panel.keys.value = f"{key}\n"
    assert "All decided." in panel.message.value
    assert [panel.review.of(i)["choice"] for i in range(4)] == ["left", "same", "both bad", "same"]


def test_keys_typed_before_the_line_was_empty_count_once(workspace):
    panel = BlindPanel(table(6), workspace)
    panel.keys.value = "1\n"
    panel.keys.value = "1\n1"
    assert panel.review.decided == 1
    panel.keys.value = "1\n1\n"
    assert [panel.review.of(i)["choice"] for i in range(3)] == ["left", "left", ""]
    panel.keys.value = "1\n"
    assert panel.review.decided == 3


def test_a_new_panel_goes_on_at_the_first_undecided_row(workspace):
    panel = BlindPanel(table(), workspace, seed=5)
    for choice in CHOICES:
        panel.choose(choice)
    panel.go(2)
    again = BlindPanel(table(), workspace)  # the seed is remembered
    assert (again.review.rows, again.at, again.review.decisions) == (panel.review.rows, 4, panel.review.decisions)
    more = BlindPanel(table(), workspace, rows=25)
    assert more.review.rows[:20] == panel.review.rows
    assert more.review.decided == 4
    more.go(22)
    more.choose("same")
    assert len(BlindPanel(table(), workspace, rows=3).review.rows) == 25  # decided rows can't be dropped by asking for fewer
    with pytest.raises(SettingsError, match=r"seed=6, but this review began with seed=5"):
        BlindPanel(table(), workspace, seed=6)


def test_texts_are_shown_and_never_run(workspace):
    answers = table(1).assign(wanted=EVIL, tuned="")
    answers[["question", "base"]] += EVIL
    shown = told(BlindPanel(answers, workspace))
    assert "<img" not in shown
    assert "<b>жирный" not in shown
    assert "&lt;img src=x" in shown
    assert "{{ 7 * 7 }}" in shown
    assert "(empty)" in shown


def test_names_are_shown_after_a_second_click_and_end_the_review(workspace):
    panel = BlindPanel(table(), workspace)
    panel.show.click()
    assert "Still hidden:" in panel.message.value
    decide(panel.review, *["tuned"] * 12)
    panel.show.click()
    assert "8 rows are undecided" in panel.message.value
    assert not panel.review.opened
    panel.go(12)
    panel.choose("same")  # then it has to be asked again
    panel.show.click()
    assert not panel.review.opened
    panel.show.click()
    assert panel.review.opened
    assert "Verdict: better." in panel.widget.children[0].value
    panel.go(0)
    names = [text.value for text in panel.texts.values()]
    assert sorted("tuned" in name for name in names) == [False, True]
    assert all(("tuned" in name) == ("настроенной" in name) for name in names)
    panel.keys.value = "3\n"
    assert "would not be blind" in panel.message.value
    assert panel.review.decided == 13
    again = BlindPanel(table(), workspace)
    assert "Verdict: better." in again.widget.children[0].value
    with pytest.raises(SettingsError, match="would not be blind"):
        again.review.decide(15, choice="left")


def test_a_disk_that_is_full_is_said_and_nothing_is_lost(workspace, monkeypatch):
    panel = BlindPanel(table(), workspace)
    panel.choose("left")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", full)
        panel.choose("left")
        panel.notes.value = "важное"
        assert "No space left" in panel.message.value
        assert (panel.at, panel.notes.value) == (1, "важное")
    assert [line["choice"] for line in saved(panel.review)] == ["left"]
    assert BlindReview(table(), workspace).decided == 1


def test_the_panel_uses_only_widgets_that_colab_has(workspace):
    known = {"HTML", "HBox", "VBox", "Button", "Textarea", "ToggleButtons"}
    assert {type(widget).__name__ for widget in widgets_of(BlindPanel(table(), workspace).widget)} <= known


# ------------------------------------------------------------------------------------------ files
def test_another_review_has_its_own_files_and_none_is_mixed_in(workspace):
    first = BlindReview(table(), workspace)
    first.decide(0, choice="left")
    retrained = BlindReview(table(tuned="Новый ответ"), workspace)
    assert retrained.decided == 0
    retrained.decide(0, choice="right")
    few_shot = BlindReview(table().rename(columns={"base": "few-shot"}), workspace, ("few-shot", "tuned"))
    assert few_shot.decided == 0
    assert len({first.file, retrained.file, few_shot.file}) == 3
    assert BlindReview(table(), workspace).of(0)["choice"] == "left"
    (workspace.path / first.file).write_bytes((workspace.path / retrained.file).read_bytes())
    with pytest.raises(WorkspaceError, match="that is not among these answers"):
        BlindReview(table(), workspace)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace(",left,,", ",links,,"), "choice='links' must be one of left"),
        (lambda text: text.replace("choice", "wahl"), "not the table that the panel wrote"),
        (lambda text: text.replace(",", ";"), "not the table that the panel wrote"),
        (lambda text: "", "not the table that the panel wrote"),
    ],
)
def test_a_csv_that_somebody_changed_is_refused_in_one_sentence(workspace, change, says):
    review = BlindReview(table(), workspace)
    review.decide(0, choice="left")
    path = workspace.path / review.file
    path.write_text(change(path.read_text(encoding="utf-8-sig")), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=says):
        BlindReview(table(), workspace)


def test_decisions_without_their_mapping_are_refused(workspace):
    review = BlindReview(table(), workspace)
    review.decide(0, choice="left")
    mapping = workspace.path / review.mapping_file
    text = mapping.read_text()
    mapping.unlink()
    with pytest.raises(WorkspaceError, match="is missing or of other answers"):
        BlindReview(table(), workspace)
    mapping.write_text(text.replace('"answers": "', '"answers": "x'))
    with pytest.raises(WorkspaceError, match="is missing or of other answers"):
        BlindReview(table(), workspace)


def test_two_panels_keep_each_others_decisions_and_agree_on_the_order(workspace):
    one, two, other = BlindReview(table(), workspace), BlindReview(table(), workspace), BlindReview(table(), workspace, seed=9)
    one.decide(0, choice="left")
    two.decide(1, choice="right")
    one.decide(0, notes="заметка")
    assert len(saved(one)) == 2
    with pytest.raises(SettingsError, match="seed=9, but this review began with seed=0"):
        other.decide(2, choice="left")
    two.open_mapping()
    with pytest.raises(SettingsError, match="would not be blind"):
        one.decide(2, choice="left")
    for file in (one.file, one.mapping_file):  # put aside, to begin anew with another order
        (workspace.path / file).rename(workspace.path / f"{file}.old")
    anew = BlindReview(table(), workspace, seed=1)
    assert (anew.decided, anew.opened) == (0, None)
    assert dealt(anew) != dealt(two)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_spreadsheet_runs_nothing_whatever_separates_its_cells(workspace, separator):
    evil = [
        "=HYPERLINK(1)",
        "+7 999",
        "-1",
        "@SUM(A1)",
        "Привет;=cmd|' /C calc'!A0",
        'a\n=1;"=2',
        '";=1',
        "\t=1",
        "a\t\r@x",
        "';'=1;-2",
    ]
    answers = table(len(evil)).assign(base=evil, question=evil[::-1])
    review = BlindReview(answers, workspace)
    for i in range(len(evil)):
        review.decide(i, choice="left", notes=evil[i])
    text = (workspace.path / review.file).read_text(encoding="utf-8-sig")
    cells = [cell.strip() for line in csv.reader(io.StringIO(text), delimiter=separator) for cell in line]
    assert len(cells) > len(evil)
    # A quotation mark within a cell is only a mark to one reader, and the end of a cell to another.
    pieces = [piece for cell in cells for piece in re.split('[\\s"]', cell) if piece]
    assert not [piece for piece in (*cells, *pieces) if piece.startswith(("=", "+", "-", "@"))]
    again = BlindReview(answers, workspace)
    assert [again.of(i)["notes"] for i in range(len(evil))] == evil


def test_excel_reads_russian(workspace):
    review = BlindReview(table(2), workspace)
    review.decide(0, choice="left")
    assert (workspace.path / review.file).read_bytes().startswith(b"\xef\xbb\xbf")


@settings(max_examples=60, deadline=None)
@given(notes=st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("'=+-@\"\r\n,;\t "))))
def test_whatever_is_noted_comes_back(tmp_path_factory, notes):
    workspace = Workspace(tmp_path_factory.mktemp("notes"))
    BlindReview(table(2), workspace).decide(0, notes=notes, choice="same")
    assert BlindReview(table(2), workspace).of(0)["notes"] == notes


def test_texts_that_no_file_can_hold_do_not_stop_a_review(workspace):
    answers = table(2).assign(base=pd.Series(["half \ud83d and \0 none", "x" * 200_000], dtype=object))
    decide(BlindReview(answers, workspace), "same", "both bad")
    assert BlindReview(answers, workspace).decided == 2


@pytest.mark.parametrize(
    ("answers", "pair", "more", "error", "says"),
    [
        (
            table().drop(columns="tuned"),
            ("base", "tuned"),
            {},
            DatasetError,
            "each row of column 'tuned'",
        ),
        (table().assign(tuned=None), ("base", "tuned"), {}, DatasetError, "each row of column 'tuned'"),
        (table(), ("base", "base"), {}, SettingsError, "two different columns"),
        (table().rename(columns={"base": "same"}), ("same", "tuned"), {}, SettingsError, "two different columns"),
        (table(), ("base", "tuned"), {"rows": 0}, SettingsError, "rows=0 must be a whole number from 1 to 1000"),
    ],
)
def test_what_can_not_be_reviewed_is_said(workspace, answers, pair, more, error, says):
    with pytest.raises(error, match=says):
        BlindReview(answers, workspace, pair, **more)


@pytest.mark.parametrize("change", [{"choice": "middle"}, {"left_tone": "maybe"}, {"left_smell": "yes"}])
def test_a_decision_that_does_not_exist_is_refused(workspace, change):
    with pytest.raises(SettingsError):
        BlindReview(table(), workspace).decide(0, **change)
    assert list(workspace.path.iterdir()) == []


# ------------------------------------------------------------------------------------------ figures
def test_the_summary_counts_by_name_not_by_side(workspace):
    answers = pd.concat([table(40), pd.DataFrame([{"question": "Который час?", "base": "Пять.", "tuned": " Пять. "}] * 3)])
    review = BlindReview(answers, workspace, rows=40)
    said = ["tuned"] * 18 + ["base"] * 6 + ["same"] * 5 + ["both bad"] * 4
    decide(review, *said)
    for i in range(len(said)):
        tuned, base = (side_of(review.rows[i], name) for name in ("tuned", "base"))
        if i < 10:
            review.decide(i, **{f"{tuned}_correct": "yes", f"{base}_correct": "yes" if i < 3 else "no"})
        review.decide(i, **{f"{tuned}_tone": "yes"})  # only one of the two: not a comparison
    assert review.names(0) == {"left": "left", "right": "right"}
    hidden = review.summary()
    assert hidden["wins"] is hidden["win_rate"] is hidden["verdict"] is None
    assert (hidden["decided"], hidden["rows"]) == (33, 40)
    review.open_mapping()
    for i, row in enumerate(review.rows):
        assert all(review.names(i)[side_of(row, name)] == f"{side_of(row, name)}: {name}" for name in TEXTS)
    summary = json.loads(json.dumps(review.summary()))
    counts = {"wins": 18, "losses": 6, "ties": 5, "both_bad": 4, "decided": 33, "rows": 40, "identical": 3, "of": 43}
    assert {name: summary[name] for name in counts} == counts
    assert summary["win_rate"] == 0.75
    assert summary["low"] == pytest.approx(0.5510, abs=1e-4)  # Wilson by hand for 18 of 24
    assert summary["high"] == pytest.approx(0.8800, abs=1e-4)
    assert summary["rubric"] == {"correct": {"base": 0.3, "tuned": 1.0, "rows": 10}}
    assert summary["verdict"] == "better"
    assert summary["left_chosen"] == [review.of(i)["choice"] for i in range(24)].count("left")
    for part in ("18 of 24", "75%", "55% to 88%", "tuned is better than base", "the same in 5", "undecided 7", "3 of 43 rows"):
        assert part in summary["sentence"], part


def test_the_other_way_round_it_is_worse(workspace):
    review = BlindReview(table(), workspace)
    decide(review, *["base"] * 12)
    review.open_mapping()
    assert review.summary()["verdict"] == "worse"
    assert "tuned is worse than base" in review.summary()["sentence"]


def test_when_all_answers_are_the_same_there_is_nothing_to_ask(workspace):
    panel = BlindPanel(table().assign(tuned=table()["base"]), workspace)
    assert panel.review.rows == []
    assert "nothing to compare" in panel.message.value
    assert panel.widget.children == (panel.message,)
    assert panel.review.summary()["identical"] == 30


def test_equal_candidates_are_seldom_called_different():
    """Exactly, over all outcomes of a fair coin."""
    for n in [*range(41), 67, 100, 200]:
        called = [k for k in range(n + 1) if preference(k, n - k)["verdict"] in ("better", "worse")]
        assert binom.pmf(called, n, 0.5).sum() <= 0.05 + 1e-12, n


@pytest.mark.parametrize("truth", [0.5, 0.65, 0.8])
def test_the_interval_covers_the_truth(truth):
    """Exactly, averaged over 20 to 100 preferences; a single number of rows swings around it."""
    shares = []
    for n in range(20, 101, 4):
        figures = [preference(k, n - k) for k in range(n + 1)]
        held = [k for k, one in enumerate(figures) if one["low"] <= truth <= one["high"]]
        shares.append(binom.pmf(held, n, truth).sum())
    assert 0.93 <= sum(shares) / len(shares) <= 0.97


def test_few_rows_are_too_few_however_clear():
    words = [preference(*few)["verdict"] for few in ((FEWEST - 1, 0), (FEWEST, 0), (0, FEWEST), (0, 0))]
    assert words == ["too few rows to tell", "better", "worse", "too few rows to tell"]
    assert preference(12, 4)["verdict"] == "no clear difference"  # Wilson's interval is clear of a half, the test is not
    assert preference(0, 0)["win_rate"] is None


def test_a_result_for_the_report_is_escaped(workspace):
    review = BlindReview(table().rename(columns={"tuned": "<b>tuned"}), workspace, ("base", "<b>tuned"))
    assert "Nobody has compared" in blind_result(review.summary()).data
    review.decide(0, choice="left")
    review.open_mapping()
    html = blind_result(review.summary()).data
    assert "<b>tuned" not in html
    assert "&lt;b&gt;tuned" in html


def test_a_note_that_no_table_could_hold_is_refused_and_the_review_goes_on(tmp_path):
    review = BlindReview(table(), Workspace(tmp_path))
    with pytest.raises(SettingsError, match="notes has 140,000 characters, and a cell of a table holds 32,000; shorten it"):
        review.decide(0, notes="ж" * 140_000)
    review.decide(0, choice="same")
    assert BlindReview(table(), Workspace(tmp_path)).decided == 1
