"""What a reader sees of the evaluation: the verdict's words, tables, answers to read, the report. Nothing of a dataset is ever run."""

import json
import re
import sys

import pandas as pd
import pytest
from markupsafe import escape

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import answer, to_messages
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.workspace import ADAPTER_FILES, SPLIT_FILES, samples
from gemma_colab.evaluation.blind import BlindReview
from gemma_colab.evaluation.candidates import Evaluation
from gemma_colab.evaluation.compare import compare
from gemma_colab.evaluation.knowledge import memorization
from gemma_colab.evaluation.verdict import did_it_work, verdict
from gemma_colab.handover.assess import assess
from gemma_colab.handover.rows import save_rows
from gemma_colab.ui import comparison_table, side_by_side
from gemma_colab.ui.evidence import in_order, shared_words
from gemma_colab.ui.report import write_report

EVIL = "</td><script>alert(1)</script>"


def line(metric, difference, clear="yes", better="higher", rows=50):
    one = {"metric": metric, "better": better, "rows": rows, "before": 0.5, "after": 0.5 + difference, "difference": difference}
    return one | {"low": difference - 0.1, "high": difference + 0.1, "wins": 1, "ties": 2, "losses": 3, "p": None, "clear": clear}


@pytest.mark.parametrize(
    ("lines", "word", "ship"),
    [
        ([line("a", 0.3), line("loss on right answers", -1, better="lower")], "better", "ask a reader"),
        ([line("a", 0.3), line("b", -0.3)], "mixed", "not yet"),
        ([line("a", -0.3), line("b", 0.01, "no")], "worse", "no"),
        ([line("a", 0.01, "no"), line("loss on right answers", -1, better="lower")], "no clear difference", "not yet"),
        ([line("a", 0.3, "too few rows", rows=5)], "too few rows", "not yet"),
    ],
)
def test_the_word_and_whether_to_ship(lines, word, ship):
    said = verdict(pd.DataFrame(lines))
    assert (said["word"], said["ship"]) == (word, ship)
    assert said["next"]
    assert bool(said["against"]) == (ship != "ask a reader")


HEART = ["word for word", "by heart"]
BETTER = pd.DataFrame([line("a", 0.3)])
KEPT = pd.DataFrame([line("general questions right, ru", 0.0, "no")])
WELL = {"empty": 0.0, "hit the limit": 0.0, "repeating": 0.0, "other language": 0.0, "any": 0.0, "tokens": 20.0}


def failed(base=None, **tuned):
    return pd.DataFrame({"base": WELL | (base or {}), "tuned": WELL | tuned}).T


def recited(train, test=0.0):
    return pd.DataFrame([[train, train], [test, test]], ["train", "test"], HEART)


@pytest.mark.parametrize(
    ("evidence", "ship", "says"),
    [
        ({"against_few_shot": BETTER}, "ask a reader", "Tuning beats a few examples"),
        ({"against_few_shot": pd.DataFrame([line("a", 0.01, "no")])}, "not yet", "Stay with the base model"),
        ({"failures": failed(any=0.5, **{"hit the limit": 0.5})}, "no", "max_new_tokens"),
        ({"failures": failed(any=0.25, repeating=0.15, empty=0.1)}, "no", "15% repeating"),
        ({"failures": failed({"hit the limit": 0.4})}, "ask a reader", "40% were cut off"),
        ({"failures": failed()}, "ask a reader", "no figure says whether an answer is true"),
        ({"unlike": 0.5}, "not yet", "closer, and is not good yet: 50% of its answers are no more like their right answer"),
        ({"unlike": 0.49}, "ask a reader", "no figure says whether an answer is true"),
        ({"unlike": 0.9, "bars": {"a": 0.8}}, "yes", "90% of its answers are no more like"),
        ({"general": pd.DataFrame([line("general questions right, ru", -0.9)])}, "not yet", "replay"),
        ({"general": KEPT}, "ask a reader", "No forgetting is clear"),
        ({"general": KEPT, "replayed": True}, "ask a reader", "says little about all else"),
        ({"general": KEPT.assign(before=0.04)}, "ask a reader", "could answer 4% of the general questions at most"),
        ({"against_few_shot": pd.DataFrame([line("a", 0.3), line("b", -0.3)])}, "not yet", "Decide which of these measures"),
        ({"review": {"sentence": "Tuned won 28 of 30.", "verdict": "better"}}, "yes", "Tuned won 28 of 30."),
        ({"review": {"sentence": "Tuned lost.", "verdict": "worse"}}, "no", "Tuned lost."),
        (
            {"review": {"sentence": "Tuned won 28 of 30.", "verdict": "better"}, "unlike": 0.9},
            "yes",
            "90% of its answers are no more like",
        ),
        ({"failures": failed(any=0.05, repeating=0.05)}, "ask a reader", "5% of its answers show a fault that a program can see"),
        ({"failures": failed(any=0.2, repeating=0.2)}, "no", "Look at these answers, and train with a lower"),
        ({"failures": failed(any=0.2, **{"hit the limit": 0.1})}, "no", "Raise max_new_tokens"),
        ({"failures": failed({"hit the limit": 0.2})}, "ask a reader", "Of the answers of base, 20% were cut off"),
        ({"bars": {"a": 0.8}}, "yes", "a is 80%, and the bar is 80%."),
        ({"bars": {"a": 0.81}}, "not yet", "Read the rows that are wrong"),
        ({"memorized": recited(0.6)}, "not yet", "60% of its training answers"),
        ({"memorized": recited(0.2)}, "not yet", "it recites training answers"),
        ({"memorized": recited(0.19)}, "ask a reader", "19% of its training answers"),
        ({"memorized": recited(0.6, test=0.41)}, "ask a reader", "41% of the test's"),
    ],
)
def test_other_evidence_can_speak_against_shipping(evidence, ship, says):
    said = verdict(BETTER, **evidence)
    assert said["ship"] == ship
    assert says in str(said)


def test_better_is_said_of_no_model_that_most_answers_speak_against():
    said = verdict(BETTER, unlike=0.5)
    assert said["word"] == "closer"
    assert verdict(pd.DataFrame([line("a", 0.3), line("b", -0.3)]), unlike=0.5)["word"] == "mixed"
    liked = {"sentence": "Tuned won.", "verdict": "better"}
    assert verdict(BETTER, unlike=0.5, review=liked)["word"] == "better"  # readers decide


def test_what_is_better_and_worse_is_told_in_one_line():
    def first(*lines):
        return verdict(pd.DataFrame(lines))["lines"][0]

    good, bad = line("a", 0.3), line("b", -0.3)
    better, worse = "better: a 0.500 to 0.800 (+0.200 to +0.400)", "worse: b 0.500 to 0.200 (-0.400 to -0.200)"
    assert first(good) == f"On 50 test rows {better}."
    assert first(good, line("c", 0.3)) == f"On 50 test rows {better}, c 0.500 to 0.800 (+0.200 to +0.400)."
    assert first(good, bad) == f"On 50 test rows {better}; {worse}."
    assert first(bad) == f"On 50 test rows {worse}."
    loss = line("loss on right answers", -1, better="lower") | {"before": 2.5, "after": 1.5}
    said = "no difference in the answers is clear of chance; better: loss on right answers 2.50 to 1.50 (-1.10 to -0.90)"
    assert first(line("a", 0.01, "no"), loss) == f"On 50 test rows {said}."
    few = verdict(BETTER, pd.DataFrame([line("a", 0.3, "no number")]))["lines"]
    assert few[1] == "A few examples in the prompt do better than tuning; worse: a is no number."


def test_next_to_nothing_is_called_so():
    said = verdict(pd.DataFrame([line("a", 0.005)]))
    assert (said["word"], said["ship"]) == ("better", "not yet")
    assert "next to nothing" in str(said)
    assert verdict(pd.DataFrame([line("a", 0.02)]))["ship"] == "ask a reader"


def test_what_is_no_worth_saying_is_not_said():
    for evidence in (
        {"failures": failed(any=0.04, repeating=0.04)},
        {"failures": failed({"hit the limit": 0.19})},
        {"unlike": 0.49},
    ):
        assert len(verdict(BETTER, **evidence)["lines"]) == 1
    assert "could answer" not in str(verdict(BETTER, general=KEPT.assign(before=0.2)))


def test_what_speaks_against_it_is_named_with_its_remedy():
    said = verdict(pd.DataFrame([line("a", 0.3), line("b", 0.3)]), bars={"a": 0.81, "b": 0.9})
    assert said["against"] == ["a is 80%, and the bar is 81%", "b is 80%, and the bar is 90%"]
    assert [step.split(":")[0] for step in said["next"]] == ["Read the rows that are wrong"]
    said = verdict(BETTER, unlike=0.6)
    assert said["against"] == ["60% of its answers are no more like their right answer than the answer to another question is"]
    assert said["lines"][0].startswith("On 50 test rows it came closer, and is not good yet: 60% of its answers")
    assert [step.split(":")[0] for step in said["next"]] == ["Read some of them"]
    counted = verdict(BETTER, unlike=0.9, bars={BETTER["metric"][0]: 0.1})  # the answers of a form are all alike
    assert (counted["word"], counted["against"]) == ("better", [])
    said = verdict(BETTER, failures=failed(any=0.25, repeating=0.25), memorized=recited(0.5))
    assert said["against"] == ["25% of its answers show a fault that a program can see", "it recites training answers"]
    assert len(said["next"]) == 2
    said = verdict(BETTER, general=pd.DataFrame([line("general questions right, ru", -0.9)]))
    assert said["against"] == ["it got clearly worse elsewhere: general questions right, ru"]


def test_each_reason_to_tune_is_told_whether_it_worked():
    lines = [
        line("full", 0.45),  # 0.5 to 0.95
        line("part", 0.3),
        line("bad", -0.3),
        line("perhaps", 0.3, "perhaps"),
        line("perhaps not", -0.3, "perhaps"),
        line("luck", 0.3, "no"),
        line("few", 0.3, "too few rows", rows=5),
        line("errors", -0.45, better="lower"),
        line("same", 0.0, "no"),
    ]
    reasons = {name: name for name in ("full", "part", "bad", "perhaps", "perhaps not", "luck", "few", "errors", "same")} | {
        "missing": "not measured"
    }
    table = did_it_work(pd.DataFrame(lines), reasons).set_index("reason")
    assert table["did it work?"].to_dict() == {
        "full": "yes",
        "part": "in part: right in 80% of the answers",
        "bad": "no: clearly worse",
        "perhaps": "perhaps better: right in 80% of the answers",
        "perhaps not": "perhaps worse: right in 20% of the answers",
        "luck": "not shown: right in 80% of the answers, and the difference may be luck",
        "few": "not shown: right in 80% of the answers, and there are too few rows",
        "errors": "yes",
        "same": "no: right in 50% of the answers, as before",
    }
    assert table.loc["part", "difference (95 %)"] == "+0.30 (+0.20 to +0.40)"
    assert list(table) == ["measure", "rows", "base", "tuned", "difference (95 %)", "did it work?"]


def test_each_reason_shows_few_shot_and_an_answer_that_failed():
    rows = [to_messages({"instruction": f"question {i}", "output": f"right {i}"}) for i in range(12)]
    said = {"base": ["no"] * 12, "few-shot": ["right 0"] * 12, "tuned": [f"right {i}" for i in range(11)] + ["<b>wrong</b>"]}
    tokens = {"tokens": 2, "finished": True, "loss": 1.0, "loss_tokens": 2}
    answers = {name: pd.DataFrame({"answer": texts}).assign(**tokens) for name, texts in said.items()}
    metrics = {
        "equal": lambda a, b: [float(x == y) for x, y in zip(a, b, strict=True)],
        "with b": lambda a, b: [float("<b>" in x) for x in a],
        "all right": lambda a, b: [None, *[1.0] * 11],
    }
    result = Evaluation(rows, answers, metrics, lower_is_better=["with b"])
    reasons = {"relevance": "equal", "format": "with b", "tone": "all right", "fit": "loss on right answers"}
    table = result.did_it_work(reasons).set_index("reason")
    assert table.loc["relevance", ["base", "few-shot", "tuned"]].tolist() == ["0.00", "0.08", "0.92"]
    failed = table[["an answer that failed", "the right answer"]]
    assert failed.loc["relevance"].tolist() == failed.loc["format"].tolist() == ["<b>wrong</b>", "right 11"]
    assert (failed.loc[["tone", "fit"]] == "").all(axis=None)
    only = Evaluation(rows, {name: answers[name] for name in ("base", "tuned")}, metrics)
    assert "few-shot" not in only.did_it_work(reasons)


def test_a_bar_on_what_was_not_measured_is_refused():
    measured = pd.DataFrame([line("a", 0.3), line("b", 0.3)])
    with pytest.raises(SettingsError, match=r"bars names \['c'\], which was not measured; measured were a, b"):
        verdict(measured, bars={"a": 0.5, "c": 0.5})


def test_comparison_draws_what_is_clear():
    table = compare(
        {"good": ([0.0] * 20, [1.0] * 20), "same": ([1.0, 0.0] * 10, [1.0, 0.0] * 10), EVIL: ([1.0] * 20, [0.0] * 20)}
    )
    page = comparison_table(table).data
    assert "<script>" not in page
    assert page.count("yes, better") == 1
    assert page.count("yes, worse") == 1
    ends = re.findall(r'x1="(-?[\d.]+)" x2="(-?[\d.]+)" y1="7"', page)
    good, same, bad = [(float(a), float(b)) for a, b in ends]
    assert 40 < good[0] < good[1] <= 58
    assert same[0] < 0 < same[1]
    assert bad == (-good[1], -good[0])
    assert "(p &lt; 0.01)" in page


def test_the_axis_tells_a_tenth_from_one_and_from_five():
    table = compare({"loss": ([8.0] * 20, [3.0] * 20), "b": ([0.0] * 20, [0.1] * 20)}, lower_is_better=["loss"])
    page = comparison_table(table).data
    five, tenth = (float(x) for x in re.findall(r'<circle cx="(-?[\d.]+)"', page))
    assert five < -70
    assert 20 < tenth < 30
    ticks = re.findall(r'<text x="(-?[\d.]+)"[^>]*>([^<]+)<', page)
    assert [text for _, text in ticks] == ["-1", "-0.1", "0", "+0.1", "+1"]
    assert float({text: x for x, text in ticks}["+0.1"]) == tenth


def test_shared_words_are_marked_in_their_order():
    assert shared_words("Заказ едет к вам", "заказ уже едет") == [
        ("Заказ", True),
        (" ", False),
        ("едет", True),
        (" к вам", False),
    ]
    assert shared_words("", "x") == []
    assert shared_words("ab " * 20_000, "ab " * 20_000) == [("ab " * 20_000, False)]  # takes no minutes: it isn't compared
    assert shared_words("a, b; c", "b c") == [("a, ", False), ("b; c", True)]
    assert shared_words("(ёлка) a", "x Елка y a") == [("(", False), ("ёлка", True), (") ", False), ("a", True)]


def test_words_that_are_repeated_take_no_longer_than_others():
    answer, right = (" ".join("b" if i % n == 0 else "a" for i in range(500)) for n in (3, 7))
    steps = 0

    def count(frame, event, arg):
        nonlocal steps
        steps += 1
        assert steps < 50_000
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        found = shared_words(answer, right)
    finally:
        sys.settrace(before)
    assert "".join(piece for piece, _ in found) == answer
    assert sum(len(piece.split()) for piece, shared in found if shared) > 300


ROWS = pd.DataFrame(
    {
        "question": ["q1", EVIL, "q3"],
        "wanted": ["да", "нет", "может"],
        "label": ["x", "y", "x"],
        "base": ["а", EVIL, "в"],
        "tuned": ["да", "да", "может"],
        "token F1": [1.0, 0.0, 0.5],
        "signs": ["", "repeating", ""],
    }
)


def test_answers_side_by_side_are_escaped():
    page = side_by_side(ROWS).data
    assert "<script>" not in page
    assert page.count("<tr>") == 4
    assert side_by_side(ROWS, "worst", 2, names=["tuned"]).data.count("<th ") == 3
    assert '<span style="background:#2e9d4e55; border-radius:2px">может</span>' in page


def test_rows_to_read_come_in_the_order_that_is_asked_for():
    assert list(in_order(ROWS, "worst")["token F1"]) == [0.0, 0.5, 1.0]
    assert list(in_order(ROWS, "best")["question"]) == ["q1", "q3", EVIL]
    assert list(in_order(ROWS, None)["question"]) == ["q1", EVIL, "q3"]
    assert list(in_order(ROWS.drop(columns="token F1"), "worst")["question"]) == ["q1", EVIL, "q3"]
    assert sorted(in_order(ROWS, "random")["question"]) == sorted(ROWS["question"])


@pytest.fixture
def evaluated(workspace, support_rows, tmp_path):
    """A workspace with everything that notebook 05 has measured when it writes the report, and what it then gives to `assess`."""
    rows = [to_messages(row) for row in support_rows[:20]]
    save_rows({"train": rows[:5], "validation": rows[5:8], "test": rows[8:]}, workspace)
    model = tmp_path / "secret" / "my-gemma"
    model.parent.mkdir()
    model.symlink_to(samples() / "tiny-gemma3")
    ModelSettings(model=str(model)).save(workspace)
    LoraSettings().save(workspace)
    TrainSettings().save(workspace)
    (workspace.path / "adapter").mkdir()
    run = {"model": str(model), "rows": workspace.fingerprint(*SPLIT_FILES), "verdict": "learning", "steps": 3}
    workspace.write_json("training.json", run | {"log_history": []})
    given = {"base": [EVIL] * 12, "few-shot": ["да"] * 12, "tuned": [answer(row) for row in rows[8:]]}
    answers = {
        name: pd.DataFrame({"answer": a, "tokens": 9, "finished": True, "loss": 30.0 - 20 * (name == "tuned"), "loss_tokens": 10})
        for name, a in given.items()
    }
    base, tuned = (pd.DataFrame({"loss": [loss] * 5, "tokens": 10}) for loss in (30.0, 9.0))
    return workspace, {
        "evaluation": Evaluation(rows[8:], answers, examples=2, max_new_tokens=9),
        "losses": dict.fromkeys(("train", "validation", "test"), (base, tuned)),
        "general": compare({"general questions right, ru": ([1.0, 0.0] * 10, [1.0, 0.0] * 10)}),
        "memorized": memorization({"train": ["a"], "test": ["a"]}, {"train": ["b"], "test": ["b"]}),
    }


def test_summary_and_report_say_the_same(evaluated):
    workspace, evidence = evaluated
    summary = assess(workspace, **evidence)
    assert summary["verdict"]["word"] == "better"
    assert json.loads((workspace.path / "summary.json").read_text()) == summary
    page = (workspace.path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page  # nothing is fetched
    assert "secret" not in page + json.dumps(summary)
    assert "Words in common with the right answer, in any order" in page  # what a measure means, by its docstring
    for text in (
        "The figures allow it",
        "my-gemma",
        summary["fingerprint"],
        "r = 16",
        "max_new_tokens = 9",
        "color-scheme",
        "@media print",
    ):
        assert text in page, text
    for one in summary["tuned_against_base"]:
        assert f"{one['low']:+.3f} to {one['high']:+.3f}" in page


def test_every_text_of_the_summary_is_escaped(evaluated):
    """Whatever a name, a value or a sentence may come from: a metric's name, a model's folder, a file of settings."""
    workspace, evidence = evaluated
    assess(workspace, **evidence)
    summary, planted = workspace.read_json("summary.json"), []
    chosen = {"verdict": ("word", "ship"), "memorisation": ("part",), "loss": (), "health": ()}

    def evil(value, kept=()):
        """The same summary with a tag for each text that is no key the page looks up."""
        if isinstance(value, dict):
            return {key: inner if key in kept else evil(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [evil(inner) for inner in value]
        if isinstance(value, str) and value not in ("higher", "lower", "yes", "no", "perhaps", "too few rows", "no number"):
            planted.append(f"<img src={len(planted)}>{value}")
            return planted[-1]
        return value

    summary = {key: evil(value, chosen.get(key, ())) for key, value in summary.items() if key not in ("review", "sorted_by")}
    workspace.write_json("summary.json", summary | {"review": None})
    page = write_report(workspace).read_text()
    assert "<img" not in page
    hidden = [text for text in planted if str(escape(text)) not in page]
    assert hidden == []


def test_report_shows_the_curve_and_the_exports_if_they_are_there(evaluated):
    workspace, evidence = evaluated
    assess(workspace, **evidence)
    page = (workspace.path / "report.html").read_text()
    assert "data:image" not in page
    assert "Taken home" not in page
    log = [{"step": 1, "epoch": 0.5, "loss": 3.0}, {"step": 2, "epoch": 1.0, "loss": 2.0}]
    workspace.write_json("training.json", workspace.read_json("training.json") | {"log_history": log})
    for name in ADAPTER_FILES:
        workspace.write_text(name, "x")
    record = {"form": "merged", "MiB": 6.2, "answers equal": 0.9, "rows": 20, "loss": 2.9, "difference": 0.01}
    export = {"merged": {"adapter": workspace.fingerprint(*ADAPTER_FILES)}, "parity": [record], "sentence": "It is the same."}
    workspace.write_json("export.json", export)
    page = write_report(workspace).read_text()
    assert "data:image/png;base64," in page
    assert "It is the same." in page
    workspace.write_text(ADAPTER_FILES[0], "trained again")
    assert "Taken home" not in write_report(workspace).read_text()


def test_a_blind_review_of_these_answers_is_in_the_report_and_decides(evaluated):
    workspace, evidence = evaluated
    first = assess(workspace, **evidence)
    assert first["verdict"]["ship"] == "ask a reader"
    assert "Nobody has compared" in first["review"]["sentence"]
    review = BlindReview(pd.DataFrame(workspace.read_jsonl("evaluation/rows.jsonl")), workspace, rows=12)
    for n in range(len(review.rows)):
        review.decide(n, choice="left" if review.rows[n].left != EVIL else "right")
    review.open_mapping()
    again = assess(workspace, **evidence)
    assert again["review"]["wins"] == len(review.rows) >= 10
    assert again["verdict"]["ship"] == "yes"
    assert "Ship it" in (workspace.path / "report.html").read_text()


def test_no_number_stays_json_and_is_said(evaluated):
    workspace, evidence = evaluated
    answers, losses = evidence["evaluation"].answers, evidence["losses"]
    answers["tuned"] = answers["tuned"].assign(loss=float("nan"))
    losses["test"] = losses["test"][0], losses["test"][1].assign(loss=float("nan"))
    losses["validation"] = tuple(table.iloc[:0] for table in losses["validation"])
    summary = assess(workspace, **evidence)
    json.dumps(summary, allow_nan=False)
    assert summary["loss"]["test"]["tuned"] is None
    assert "validation" not in summary["loss"]
    page = (workspace.path / "report.html").read_text()
    assert "no number" in page
    assert "loss on right answers is no number" in " ".join(summary["verdict"]["lines"])
