"""From any file to splits: reading, cleaning and splitting never end in a traceback, and what is clean stays as it is."""

import functools
import json
import os
import tempfile
from pathlib import Path

import pytest
from datasketch import lsh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.cleaning import STEPS, clean, undo
from gemma_colab.data.reading import read_rows
from gemma_colab.data.splitting import split_rows

MARKS = [
    "\r\n", "\r", "\n", "\n\n", "\0", "\ufeff", "\u200b", "\u200d", "\u00ad", "\u00a0", "\u2028", "\x0b", "\x0c", "\x85", "\x1b[0m", "\ufffd",
    "\t", "  ", "\\n", "\\u0434", "\\ud800", '"', "'", ",", ";", "|", "`", "```", "<b>", "</b>", "<br>", "<script>", "<p", ">", "&nbsp;",
    "&amp;lt;", "&#0;", "&#55296;", "![a](b)", "РџСЂРё", "Ð¿", "Ã©", "ÃƒÂ©", "ï»¿", "â€™", "Â\xa0", "é", "ё", "+7 912 345-67-89", "a@b.ru", "12",
    "<noinput>", "N/A", "👨\u200d👩", "שלום", "مرحبا", "<end_of_turn>", "где", "заказ", "order", "не", "𝄞",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(MARKS) | st.text(max_size=5), max_size=6).map("".join)
RECORD = st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}, optional={"input": TEXT, "system": TEXT, "label": TEXT})
CHAT = st.lists(TEXT, min_size=2, max_size=6).map(
    lambda said: {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]}
)
RECORDS = st.lists(RECORD, min_size=1, max_size=8) | st.lists(CHAT, min_size=1, max_size=8)


def json_lines(records: list[dict]) -> tuple[str, str]:
    return "a.jsonl", "\n".join(map(json.dumps, records))


def json_list(records: list[dict]) -> tuple[str, str]:
    return "a.json", json.dumps(records, ensure_ascii=False)


def table(records: list[dict]) -> tuple[str, str]:
    """As a careless program would write it: quotes are not doubled."""
    rows = [[record.get("instruction", ""), str(record.get("output", record))] for record in records]
    return "a.csv", "question,answer\n" + "\n".join(f'"{a}","{b}"' for a, b in rows)


INPUTS = given(
    RECORDS,
    st.sampled_from([json_lines, json_list, table]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1251", "latin-1"]),
    st.booleans(),
    st.integers(0, 9),
)
SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def whole_way(records, form, codec, twice, seed):
    name, text = form(records * (1 + twice))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode(codec, "ignore"))
        try:
            rows = read_rows(path, on_bad="aside").rows
        except DatasetError:
            return
    cleaned, log = clean(rows)
    assert clean(cleaned)[1].empty  # once is enough
    for done, changes in ((cleaned, log), clean(rows, STEPS)):
        assert undo(done, changes) == rows
        assert len(done) + (changes["field"] == "").sum() == len(rows)  # none is gone without a line in the log
    try:
        splits, _ = split_rows(cleaned, seed=seed)
    except DatasetError:
        return
    assert sorted(map(str, sum(splits.values(), []))) == sorted(map(str, cleaned))


@pytest.fixture(autouse=True)
def an_index_is_planned_once(monkeypatch):
    """The index of look-alikes takes a tenth of a second to plan, each time the same."""
    monkeypatch.setattr(lsh, "_optimal_param", functools.cache(lsh._optimal_param))


@settings(max_examples=int(os.environ.get("FUZZ", 100)), **SETTINGS)
@INPUTS
def test_any_file_goes_the_whole_way(records, form, codec, twice, seed):
    """A hundred here; `make fuzz` tries ten thousand."""
    whole_way(records, form, codec, twice, seed)
