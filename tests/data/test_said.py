"""What a reader or a measure would change or mix up, and nobody would notice: it is kept apart, refused or said."""

import datetime
import json
import uuid

import pandas as pd
import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import prompt
from gemma_colab.data import read_rows
from gemma_colab.evaluation.compare import LOSS
from gemma_colab.evaluation.fields import json_metrics, schema_of


def write_lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize("name", ["conversation_id", "label"])
@pytest.mark.parametrize("place", ["a.jsonl", "folder/a.jsonl"])
@pytest.mark.parametrize("value", [{"$oid": "5f"}, ["a", 1], 2**70, "2024-05-01T10:00:00Z", "007"])
def test_what_groups_rows_is_kept_whatever_it_is(name, place, value, tmp_path):
    other = {"$oid": "6f"} if isinstance(value, dict) else "other"
    said = [{"question": f"q{i}?", "answer": "a", name: one} for i, one in enumerate((value, value, other))]
    write_lines(path := tmp_path / place, *said)
    rows = read_rows(path if place == "a.jsonl" else path.parent).rows
    one, same, another = (row[name.removesuffix("_id")] for row in rows)
    assert one
    assert one == same != another
    assert not isinstance(value, str) or one == value


@pytest.mark.parametrize("value", [datetime.datetime(2024, 5, 1), uuid.UUID(int=7).bytes])
def test_a_conversation_known_by_a_time_or_bytes_stays_together(value, tmp_path):
    frame = pd.DataFrame({"question": ["a?", "b?"], "answer": ["c", "d"], "conversation_id": [value] * 2})
    frame.to_parquet(tmp_path / "a.parquet")
    one, same = (row["conversation"] for row in read_rows(tmp_path / "a.parquet").rows)
    assert one
    assert one == same


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_key_that_comes_twice_costs_its_row_and_no_other(ending, tmp_path):
    twice = '{"question": "a?", "answer": "first", "answer": "second"}'
    right = '{"question": "b?", "answer": "c"}'
    text = f"{twice}\n{right}\n" if ending == "jsonl" else f"[{twice},\n{right}]"
    write_lines(path := tmp_path / f"a.{ending}", text)
    with pytest.raises(DatasetError, match="the key 'answer' comes twice in one object; keep one of them"):
        read_rows(path)
    source = read_rows(path, on_bad="aside")
    assert [len(source.rows), len(source.aside)] == [1, 1]


def test_a_chat_that_an_instruction_is_about_stays_a_text(tmp_path):
    log = json.dumps([{"role": "user", "content": "late!"}, {"role": "assistant", "content": "Sorry!"}])
    about = {"instruction": "Sum this up.", "input": log, "output": "A client waits."}
    alone = {"instruction": json.dumps([{"role": "user", "content": "late!"}]), "input": "", "output": "Sorry!"}
    first, second = read_rows(write_lines(tmp_path / "a.jsonl", about, alone)).rows
    assert prompt(first) == [{"role": "user", "content": f"Sum this up.\n\n{log}"}]
    assert prompt(second) == [{"role": "user", "content": "late!"}]


@pytest.mark.parametrize("lines", ['1,q1,"a1 begins\n2,q2,\n3,q3,a3 ends"', '1,q1,"a1\n2,q2, a2\n3,q3,a3"'])
def test_lines_that_a_quotation_mark_may_have_joined_are_named(lines, tmp_path):
    write_lines(path := tmp_path / "a.csv", f"id,question,answer\n{lines}\n4,q4,a4\n")
    assert "look whether a quotation mark joined rows there: line 2" in repr(read_rows(path))
    write_lines(path, 'id,question,answer\n1,q1,"Dear Ann,\nthis is how it goes:\none, two, three"\n4,q4,a4\n')
    assert "joined" not in repr(read_rows(path))


def test_a_first_row_in_the_place_of_a_header_is_shown_masked(tmp_path):
    rows = "".join(f"Где мой заказ номер {i}?,Ваш заказ номер {i} уже в пути.\n" for i in range(30))
    write_lines(path := tmp_path / "a.csv", "Иван ivan@mail.ru,Перезвоним на 4111111111111111\n" + rows)
    with pytest.raises(DatasetError) as caught:
        read_rows(path)
    for text in (str(caught.value), caught.value.page._repr_html_() if caught.value.page else ""):
        assert "ivan@" not in text
        assert "4111" not in text


def test_a_field_called_as_a_measure_is_measured_beside_it():
    names = ("all fields", "valid JSON", "nothing but JSON", LOSS)
    right = [json.dumps(dict.fromkeys(names, "x") | {"sum": i}) for i in range(10)]
    said = [json.dumps(dict.fromkeys(names, "x") | {"sum": -1})] * 10
    metrics = json_metrics(schema_of(right))
    assert [*metrics] == ["all fields", "valid JSON", *(f"field {name}" for name in names), "sum", "nothing but JSON"]
    found = {name: sum(metric(said, right)) for name, metric in metrics.items()}
    assert (found["all fields"], found["field all fields"], found["sum"]) == (0, 10, 0)
