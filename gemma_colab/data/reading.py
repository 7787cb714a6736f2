"""Read a dataset of any common format into rows, with one clear sentence for whatever is wrong with it.

    read_rows("support.csv")                                                    # columns recognized by their names
    read_rows("export.xlsx", mapping={"instruction": "Тема", "output": "Ответ"})  # or told
    read_rows("hf://datasets/owner/name", split="train", limit=1000)            # from the Hugging Face Hub
    read_rows("support.jsonl", on_bad="aside")                                  # leave bad rows out, and list them

`sources.py` opens a source, `json_files.py` and `tables.py` make records of it, `schema.py` makes rows of records, `advice.py`
says what to do where it can't.
"""

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.data.advice import explain, refuse_ratings
from gemma_colab.data.columns import columns_page
from gemma_colab.data.schema import BadRow, NotLearned, UnknownSchema, check_mapping, listed, normal, printable, shown, to_row
from gemma_colab.data.sources import open_source, plain_words


@dataclass(frozen=True)
class Source:
    """Rows as in `gemma_colab.core.rows`, each with its "line", and where they come from.

    A row of JSON whose keys in the file are not those of most rows has them in `keys`: "a, b, c"; a row whose line is also another's
    (a list written on one line) has its number in the list, from 1, as `item`.
    """

    rows: list[Row]
    name: str  # of the file or dataset
    schema: str  # "Тема -> instruction, Вопрос -> input, Ответ -> output; ignored: id"
    details: str  # "CSV, delimiter ';', Windows-1251"
    # {"line", "field", "problem", "content", "sentence"} of each row put aside; of one that the file wants out, "marked"
    aside: list[dict[str, Any]]
    notes: tuple[str, ...] = ()  # what was left out, or read in a way that one should know: "the header again, left out: line 31"
    columns: dict[str, str] = field(default_factory=dict)  # of the first row, or as guessed: our name -> the column
    first: tuple[dict[str, Any], ...] = ()  # the first records with these columns

    def _repr_html_(self) -> str:
        return columns_page(self)

    def __repr__(self) -> str:
        aside = f", {len(self.aside)} put aside" if self.aside else ""
        lines = [f"{self.name} ({self.details})", f"Schema: {self.schema}", f"{len(self.rows)} rows{aside}", *self.notes]
        return "\n".join(lines)


def read_rows(
    source: str | Path,
    *,
    mapping: dict[str, str] | None = None,
    on_bad: str = "raise",
    sheet: str | int = 0,
    split: str = "train",
    limit: int | None = None,
) -> Source:
    """Read all rows of a file, a folder that is a dataset, or a dataset of the Hugging Face Hub. Nothing given is changed.

    source: a path (JSONL, JSON, CSV, Excel, Parquet, also gzipped), or "hf://datasets/owner/name", or the same with ":configuration".
    mapping: our name (instruction, input, output, system, messages, label, conversation) -> the column there, where the
        columns are not recognized by their names.
    on_bad: "raise" stops at the first bad row; "aside" leaves bad rows out and lists them.
    sheet: of an Excel file, by name, or by number from 0. split: of a dataset. limit: at most so many rows.

    Raises `DatasetError` that names file, line and field; `SettingsError` for arguments that can't be meant.
    """
    if not isinstance(source, (str, Path)) or not str(source).strip():
        raise SettingsError(f"source={shown(source)} is to be a path, or a dataset's name such as 'hf://datasets/owner/name'")
    if on_bad not in ("raise", "aside"):
        raise SettingsError(f"on_bad={shown(on_bad)} is to be 'raise' (stop at the first bad row) or 'aside' (leave them out)")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit={limit} is to be a number from 1, or None for all rows")
    check_mapping(mapping := mapping or {})
    source = source if os.path.lexists(source) else os.path.expanduser(source)
    name = printable(Path(source).name or source) if os.path.lexists(source) else printable(source)
    rows, schemas, aside, lines, marks, explained, page, usable = [], [], [], Counter(), set(), {}, None, None
    with contextlib.ExitStack() as stack, plain_words(name):
        found = open_source(source, name, stack, sheet, split, limit)
        if (sheet != 0 and found.details[0] != "Excel") or (split != "train" and os.path.isfile(source)):
            what = f"split={shown(split)} is for a dataset" if split != "train" else f"sheet={shown(sheet)} is for an Excel file"
            raise SettingsError(f"{what}, and {name} is none; leave it out")
        if found.header and not mapping:
            raise DatasetError(f"{name}: {found.header}")
        ahead = [*islice(records := iter(found.records), min(limit or 200, 200))]  # to see what the columns hold
        for item, (line, record) in enumerate(chain(ahead, records), 1):
            lines[line] += 1
            try:
                row, schema = to_row(record, mapping, found.table)
                usable = usable or record
                rows.append(row | {"line": line, "item": item})
                schemas.append(schema)
                marks |= {(column, str(record[column])) for column in schema.marks}
            except BadRow as bad:
                if isinstance(bad, UnknownSchema) and not bad.remedy:
                    key = bad.problem, *record
                    explained[key] = bad.problem, bad.remedy, guess = explained.get(key) or explain(bad.problem, record, ahead)
                    guessed = Source([], name, "", "", [], (), guess, _like(record, ahead))
                    page = page or (guessed if guess else None)
                if found.table and isinstance(bad, UnknownSchema) and not rows:  # no other row has other columns
                    raise DatasetError(_sentence(name, bad), page) from bad
                place = f"{name}, {found.unit} {line}" + f", item {item}" * (lines[line] > 1)
                sentence = _sentence(place, bad)
                if on_bad == "raise":
                    raise DatasetError(f'{sentence}, or leave bad rows aside with on_bad="aside"', page) from bad
                content = record if bad.content is None else bad.content
                aside.append({"line": line, "field": bad.field, "problem": bad.problem, "content": content, "sentence": sentence})
                aside[-1] |= {"marked": True} if isinstance(bad, NotLearned) else {}
            if len(rows) == limit:
                break
    if not rows:
        bad = f"{aside[0]['sentence']} (all {len(aside)} rows are bad)" if aside else ""
        raise DatasetError(bad or f"{name} has no rows; check the export that made it", page)
    refuse_ratings(name, marks)
    columns = {normal(column) for schema in set(schemas) for column in schema.columns.values()}
    unseen = [theirs for theirs in mapping.values() if normal(theirs) not in columns]
    if unseen and len(rows) != limit:
        raise DatasetError(f"{name}: no row has {listed(unseen)}, which the mapping names; correct the mapping")
    usual, _ = Counter(schema.keys for schema in schemas).most_common(1)[0]
    for row, schema in zip(rows, schemas, strict=True):
        row |= {} if found.table or schema.keys == usual else {"keys": schema.keys}
        if lines[row["line"]] == 1:
            del row["item"]
    said = Counter(schema.said for schema in schemas)
    forms = [f"{form} ({count} rows)" if len(said) > 1 else form for form, count in said.most_common(8)]
    ignored = list(dict.fromkeys(printable(column) for schema in schemas for column in schema.ignored))[:12]
    schema = "; or ".join(forms) + ("; ignored: " + ", ".join(ignored) if ignored else "")
    places = {what: ", ".join(map(str, at[:5])) + f" and {len(at) - 5} more" * (len(at) > 5) for what, at in found.notes.items()}
    notes = tuple(what + f": {found.unit} {at}" * bool(at) for what, at in places.items())
    return Source(rows, name, schema, ", ".join(found.details), aside, notes, schemas[0].columns, _like(usable, ahead))


def _like(record: Any, ahead: list[tuple[int, Any]]) -> tuple[dict[str, Any], ...]:
    """Return the first records with the columns of this one."""
    same = (other for _, other in ahead if isinstance(record, dict) and isinstance(other, dict) and other.keys() == record.keys())
    return tuple(same)[:3]


def _sentence(place: str, bad: BadRow) -> str:
    return f"{place}{f', field {shown(bad.field)}' if bad.field else ''}: {bad.problem}; {bad.remedy}"
