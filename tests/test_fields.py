"""Answers in JSON: read fairly, their form found, their fields counted; the tickets; bars of the verdict."""

import json
import sys

import pandas as pd
import pytest
from conftest import ROOT
from jsonschema import Draft202012Validator

from gemma_colab.cli import main
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.workspace import read_sample, samples
from gemma_colab.data.reading import read_rows
from gemma_colab.data.splitting import leaks, split_rows
from gemma_colab.evaluation.candidates import few_shot_turns
from gemma_colab.evaluation.compare import compare
from gemma_colab.evaluation.fields import first_object, json_metrics, mixed_up, most_frequent, schema_of, telling_examples
from gemma_colab.evaluation.verdict import BY_HAND, check_bars, verdict
from gemma_colab.ui import comparison_table

sys.path.insert(0, str(ROOT / "data_samples" / "build"))
from make_tickets import FILES, INSTRUCTION, agreement, passes, ticket

TICKET = '{"topic": "damage", "order": "38174", "needs_human": true}'
OTHERS = ['{"topic": "other", "order": null, "needs_human": false}'] * 5 + [TICKET] * 5


def read_rules(language: str) -> dict[str, str]:
    """The sample shop's rules: id -> "topic: rule". language: "ru" or "en"."""
    text = (samples() / f"shop_facts_{language}.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {name: f"{topic}: {rule}" for name, topic, rule in cells[2:]}


# ------------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TICKET, json.loads(TICKET)),
        (f"Вот: {TICKET} playthrough playthrough", json.loads(TICKET)),
        ('{"a": {"b": 1}} {"c": 2}', {"a": {"b": 1}}),
        ('{broken {"a": 1}', {"a": 1}),
        ('{"a": "}"}', {"a": "}"}),
        ('{"topic": "dam', None),
        ("", None),
        ('["a"]', None),
        ("{" * 5000, None),
        ('{"a":' * 30 + "[1" + ',"b"' * 9, None),  # each is read up to the end: no more than twenty
    ],
)
def test_the_first_whole_object_is_read(text, found):
    assert first_object(text) == found


def test_a_text_of_many_brackets_is_not_read_from_each(monkeypatch):
    read, begun = json.JSONDecoder.raw_decode, []
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", lambda *a, **k: begun.append(1) or read(*a, **k))
    assert first_object('{"a":' * 900 + "[1" + ",1" * 99) is None
    assert len(begun) == 20


def test_a_form_is_found_where_all_answers_share_one():
    form = schema_of(OTHERS)
    assert list(form["properties"]) == ["topic", "order", "needs_human"]
    assert form["properties"]["topic"] == {"type": ["string"], "enum": ["damage", "other"]}
    assert form["properties"]["order"]["type"] == ["null", "string"]
    assert all(Draft202012Validator(form).is_valid(json.loads(answer)) for answer in OTHERS)


@pytest.mark.parametrize(
    "answers",
    [[], ["Заказ в пути."], [TICKET, "42"], [TICKET, '{"topic": "other"}'], ["{}"]],
)
def test_answers_of_no_common_form_have_none(answers):
    assert schema_of(answers) is None


def test_each_field_is_counted_by_itself():
    metrics = json_metrics(schema_of(OTHERS))
    answers = [
        TICKET,
        TICKET + " and more",
        TICKET.replace("true", "false"),
        TICKET.replace("damage", "nonsense"),
        "Заказ в пути.",
        '{"topic": "damage"}',
    ]
    scores = {name: metric(answers, [TICKET] * len(answers)) for name, metric in metrics.items()}
    assert scores == {
        "all fields": [1, 1, 0, 0, 0, 0],
        "valid JSON": [1, 1, 1, 0, 0, 0],
        "topic": [1, 1, 1, 0, 0, 1],
        "order": [1, 1, 1, 1, 0, 0],
        "needs_human": [1, 1, 0, 1, 0, 0],
        "nothing but JSON": [1, 0, 1, 0, 0, 0],
    }
    assert metrics["valid JSON"].__doc__ != metrics["nothing but JSON"].__doc__
    assert metrics["nothing but JSON"](["[" * 100_000, TICKET.replace("true", "NaN")], [TICKET] * 2) == [0, 0]


def test_numbers_and_yes_or_no_are_told_apart():
    answers = ['{"n": 1, "m": null}', '{"n": true, "m": null}', '{"n": 1, "m": 3}', '{"n": 1, "m": null} ']
    metrics = json_metrics(schema_of(answers))
    assert metrics["n"](answers, answers[:1] * 4) == [1, 0, 1, 1]
    assert metrics["all fields"](answers, answers[:1] * 4) == [1, 0, 0, 1]


def test_a_field_of_texts_and_numbers_is_no_list_to_choose_from():
    answers = ['{"size": "M"}'] * 6 + ['{"size": 42}'] * 4
    assert "enum" not in schema_of(answers)["properties"]["size"]
    assert json_metrics(schema_of(answers))["valid JSON"](answers, answers) == [1] * 10


def test_an_answer_that_reads_no_question_is_each_fields_most_frequent_value():
    assert json.loads(most_frequent([*OTHERS, TICKET])) == json.loads(TICKET)
    assert json.loads(most_frequent(OTHERS[:6])) == json.loads(OTHERS[0])


def test_few_shot_examples_of_a_form_show_what_it_can_hold():
    rare = [OTHERS[0]] * 50 + [TICKET] + [OTHERS[0]] * 50
    assert 50 in telling_examples(rare, 2)
    assert telling_examples(rare, 2) == telling_examples(rare, 2)
    rows = [to_messages({"instruction": str(i), "output": text}) for i, text in enumerate(rare)]
    assert TICKET in [turn["content"] for turn in few_shot_turns(rows, 2)]


def test_a_missing_key_is_not_the_same_as_null():
    metric = json_metrics(schema_of(OTHERS))["order"]
    assert metric(['{"topic": "other"}', '{"order": null}'], [OTHERS[0]] * 2) == [0, 1]


# ------------------------------------------------------------------------------------------ the tickets
def test_the_orders_are_two_fields_of_the_tickets():
    for language in ("ru", "en"):
        tickets, orders = (read_sample(f"{file}_{language}") for file in FILES)
        for ticket_row, row in zip(tickets, orders, strict=True):
            whole, made = json.loads(ticket_row["output"]), json.loads(row["output"])
            assert list(made.items()) == [("order", whole["order"]), ("product", whole["product"])]
            assert (row["input"], row["instruction"]) == (ticket_row["input"], INSTRUCTION[f"orders_{language}"])


@pytest.mark.parametrize("language", ["ru", "en"])
def test_tickets_are_what_the_two_passes_and_the_settling_say(language):
    lines = [line for line in passes() if line["language"] == language]
    rows = read_sample(f"tickets_{language}")
    schema = json.loads((samples() / "tickets.schema.json").read_text())
    for row, line, source in zip(rows, lines, read_sample(f"support_{language}"), strict=True):
        made = json.loads(row["output"])
        assert made == ticket(line)
        assert list(made) == list(schema["properties"])  # the order of the keys is part of the form
        assert Draft202012Validator(schema).is_valid(made), row
        assert row["input"] == source["input"]
        assert row["instruction"] == INSTRUCTION[f"tickets_{language}"]
        assert all(made[name] is None or made[name] in row["input"] for name in ("order", "product"))
        assert set(line.get("settled", {})) == {name for n, name in enumerate(made) if line["first"][n] != line["second"][n]}
    assert len(rows) >= {"ru": 500, "en": 200}[language]
    assert all(share >= 0.94 for share in agreement(lines).values())


def test_the_readme_of_the_samples_gives_the_agreement_as_it_is():
    text = (samples() / "README.md").read_text(encoding="utf-8")
    for language in ("ru", "en"):
        shares = agreement([line for line in passes() if line["language"] == language])
        assert f"| `tickets_{language}.jsonl` | " + " | ".join(f"{share:.1%}" for share in shares.values()) + " |" in text


def test_rows_of_one_form_are_no_leak():
    rows = read_rows(samples() / "tickets_ru.jsonl").rows
    parts, notes = split_rows(rows)
    assert len(parts["test"]) >= 75
    assert notes.findings == []
    parts["test"].append(parts["train"][0])  # the same question is one all the same
    assert [finding.severity for finding in leaks(parts)] == ["E"]


def test_each_row_of_support_ru_names_rules_that_there_are():
    rules = read_rules("ru")
    assert list(rules) == list(read_rules("en"))
    rows = read_sample("support_ru")
    assert all(set(row["rules"]) <= set(rules) and len(row["rules"]) <= 4 for row in rows)
    assert sum(not row["rules"] for row in rows) < 0.1 * len(rows)


# ------------------------------------------------------------------------------------------ the bars
def compared(after: float, rows: int = 100) -> pd.DataFrame:
    good = round(after * rows)
    return compare({"order": ([0.0] * rows, [1.0] * good + [0.0] * (rows - good))})


def test_figures_alone_may_say_ship_it_where_bars_are_set():
    assert verdict(compared(0.97))["ship"] == "ask a reader"
    by = {"order": 0.95}
    assert verdict(compared(0.97), bars=by)["ship"] == "yes"
    assert verdict(compared(0.97), bars=by)["next"] == [BY_HAND]
    form = compared(0.97).assign(metric="valid JSON")
    assert verdict(form, bars={"valid JSON": 0.95})["ship"] == "ask a reader"  # well-formed may be wrong
    said = verdict(compared(0.90), bars=by)
    assert (said["ship"], said["against"]) == ("not yet", ["order is 90%, and the bar is 95%"])


def test_with_bars_likeness_reciting_and_forgetting_are_only_told():
    by_heart = pd.DataFrame({"word for word": [0.9, 0.4], "by heart": [0.9, 0.4]}, index=["train", "test"])
    lost = compare({"general questions right, ru": ([1.0] * 50, [0.0] * 50)})
    how = {"unlike": 0.9, "memorized": by_heart, "general": lost}
    bars = {"order": 0.95}
    said = verdict(compared(0.97), **how, bars=bars)
    assert said["ship"] == "yes"
    assert "It forgot" in str(said)  # told all the same
    assert verdict(compared(0.97), **how)["ship"] == "not yet"


def test_a_bar_of_another_name_is_named():
    with pytest.raises(SettingsError, match=r"bars names \['JSON'\].*measured were order"):
        verdict(compared(0.97), bars={"JSON": 0.95})


@pytest.mark.parametrize("bars", [{"valid JSON": 1.2}, {"valid JSON": True}, {"valid JSON": "much"}, {1: 0.5}, [0.5]])
def test_impossible_bars_are_refused(bars):
    with pytest.raises(SettingsError):
        check_bars(bars)


@pytest.mark.parametrize("bar", ["valid JSON", "=x", "0.95"])
def test_the_command_line_refuses_a_bar_that_is_none(bar, workspace, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--workspace", str(workspace.path), "--bar", bar])
    assert "write one like" in capsys.readouterr().err


def test_the_contestants_stand_in_one_table():
    line = compared(0.97).assign(metric="valid JSON").to_dict("records")
    summary = {"tuned_against_base": line, "tuned_against_few_shot": [line[0] | {"before": 0.25, "difference": 0.72}]}
    table = comparison_table(summary)
    assert table.loc["valid JSON"].tolist()[:3] == ["0.00", "0.25", "0.97"]
    same = comparison_table(summary | {"always_the_same": {"answer": "{}", "valid JSON": 1.0}})
    assert same.loc["valid JSON", "always the same"] == "1.00"
    assert table.columns[-1] == "tuned − few-shot (95 %)"
    assert comparison_table(summary | {"tuned_against_few_shot": []}).columns[-1] == "tuned − base (95 %)"


def test_mistakes_are_counted_in_fields_of_few_values_and_in_labels():
    known = [json.dumps({"topic": topic, "order": str(n), "human": n % 2 == 0}) for n in range(20) for topic in ("a", "b")]
    right, said = known[:3], ['so: {"topic": "a", "human": false}', '{"topic": "zzz"}', "nothing"]
    found = mixed_up(said, right, known)
    assert found == {
        "topic": {"a": {"a": 1, "b": 0}, "something else": {"a": 1, "b": 1}},
        "human": {"False": {"False": 0, "True": 1}, "something else": {"False": 1, "True": 1}},
    }
    labels = ["refund", "delivery"] * 10
    assert mixed_up(["delivery ", "no idea"], ["refund", "refund"], labels) == {
        "answer": {"delivery": {"refund": 1}, "something else": {"refund": 1}}
    }
    texts = [f"We wrote answer {n} by hand." for n in range(20)]
    assert mixed_up(texts[:2], texts[:2], texts) == {}
