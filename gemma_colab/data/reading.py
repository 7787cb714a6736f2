"""Read a dataset of any common format into rows, with one clear sentence for whatever is wrong with it.

    read_rows("support.csv")                                                    # columns recognized by their names
    read_rows("export.xlsx", mapping={"instruction": "Тема", "output": "Ответ"})  # or told
    read_rows("owner/name", split="train", limit=1000)                          # from the Hugging Face Hub
    read_rows("support.jsonl", on_bad="aside")                                  # leave bad rows out, and list them

`sources.py` opens a source, `json_files.py` and `tables.py` make records of it, `schema.py` makes rows of records.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.data.schema import BadRow, SchemaReader, UnknownSchema, check_mapping, listed, printable, shown
from gemma_colab.data.sources import open_source, plain_words

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Source:
    """Rows as in `gemma_colab.core.rows`, each with its "line", and where they come from.

    A row of JSON whose keys in the file are not those of most rows has them in `keys`: "a, b, c"; a row whose line is also another's
    (a list written on one line) has its number in the list, from 1, as `item`.
    """

    rows: list[Row]
    name: str  # of the file or dataset
    schema: str  # "question/answer columns: Тема -> instruction, Вопрос -> input, Ответ -> output; ignored: id"
    details: str  # "CSV, delimiter ';', Windows-1251"
    aside: list[dict[str, Any]]  # {"line", "field", "problem", "content", "sentence"} of each row put aside; the last says all

    def __repr__(self) -> str:
        aside = f", {len(self.aside)} put aside" if self.aside else ""
        return f"{self.name} ({self.details})\nSchema: {self.schema}\n{len(self.rows)} rows{aside}"


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

    source: a path (JSONL, JSON, CSV, Excel, Parquet, also gzipped), or "owner/name", or "owner/name:configuration".
    mapping: our name (instruction, input, output, system, messages, label, conversation) -> the column there, where the
        columns are not recognized by their names.
    on_bad: "raise" stops at the first bad row; "aside" leaves bad rows out and lists them.
    sheet: of an Excel file, by name, or by number from 0. split: of a dataset. limit: at most so many rows.

    Raises `DatasetError` that names file, line and field; `SettingsError` for arguments that can't be meant.
    """
    _check(
        on_bad in ("raise", "aside"), f"on_bad={shown(on_bad)}", "'raise' (stop at the first bad row) or 'aside' (leave them out)"
    )
    _check(limit is None or (type(limit) is int and limit > 0), f"limit={shown(limit)}", "a number from 1, or None for all rows")
    check_mapping(mapping)
    rows, aside, shared, last = [], [], set(), 0
    with _opened(source, sheet, split, limit) as (name, found):
        reader = SchemaReader(mapping, found.table)
        for item, (line, record) in enumerate(found.records, 1):
            if line == last:
                shared.add(line)
            last = line
            try:
                if isinstance(record, BadRow):
                    raise record
                rows.append((*reader.row(record), line, item))
            except BadRow as bad:
                if found.table and isinstance(bad, UnknownSchema) and not rows:  # no other row has other columns
                    raise DatasetError(_sentence(bad, name, source)) from bad
                place = f"{name}, {found.unit} {line}" + f", item {item}" * (line in shared)
                sentence = _sentence(bad, place, source)
                if on_bad == "raise":
                    raise DatasetError(f'{sentence}, or leave bad rows aside with on_bad="aside"') from bad
                content = bad.content if bad is record else record
                aside.append({"line": line, "field": bad.field, "problem": bad.problem, "content": content, "sentence": sentence})
            if len(rows) == limit:
                break
        if not rows and aside:
            count = "its only row is bad" if len(aside) == 1 else f"all {len(aside)} rows are bad"
            raise DatasetError(f"{aside[0]['sentence']} ({count})")
        if not rows:
            raise DatasetError(f"{name} has no rows; check the export that made it")
        if reader.unseen and len(rows) != limit:
            raise DatasetError(
                f"{name}: no row has {listed(sorted(reader.unseen))}, which the mapping names; correct the mapping"
            )
    usual = Counter(schema.keys for _, schema, _, _ in rows).most_common(1)[0][0]
    for row, schema, line, item in rows:
        row["line"] = line
        row |= {} if found.table or schema.keys == usual else {"keys": schema.keys}
        row |= {"item": item} if line in shared else {}
    said = _said(
        Counter(schema.name for _, schema, _, _ in rows), dict.fromkeys(c for _, schema, _, _ in rows for c in schema.ignored)
    )
    return Source([row for row, *_ in rows], name, said, ", ".join(found.details), aside)


def peek(
    source: str | Path, mapping: dict[str, str] | None = None, *, rows: int = 3, sheet: str | int = 0, split: str = "train"
) -> pd.DataFrame:
    """Show the first records as they stand in the file, one a row of the table, and in a last column what the model would read of them.

    mapping: as for `read_rows`; where the columns are not recognized, the last column says which mapping to try. The index holds the
    lines. Records that can't be parsed are left out. Raises `DatasetError` and `SettingsError` as `read_rows` does.
    """
    import pandas as pd

    check_mapping(mapping)
    with _opened(source, sheet, split, rows) as (name, found):
        reader, lines, records, chats = SchemaReader(mapping, found.table), [], [], []
        for line, record in islice(((line, record) for line, record in found.records if isinstance(record, dict)), rows):
            try:
                chat = "\n".join(f"{turn['role']}: {turn['content']}" for turn in reader.row(record)[0]["messages"])
            except BadRow as bad:
                chat = _sentence(bad, name, source)
            lines, records, chats = [*lines, line], [*records, record], [*chats, chat]
    if not records:
        read_rows(source, sheet=sheet, split=split)  # raises, and says why
    return pd.DataFrame(records, index=pd.Index(lines, name=found.unit)).assign(messages=chats)


@contextlib.contextmanager
def _opened(source: str | Path, sheet: str | int, split: str, limit: int | None):
    """Yield the name of a source for messages, and its records. Raises `SettingsError` before any file is looked at."""
    text = str(source) if isinstance(source, (str, Path)) else ""
    _check(text.strip() and "\0" not in text, f"source={shown(source)}", "a path, or the name of a dataset such as 'owner/name'")
    _check(type(sheet) in (str, int), f"sheet={shown(sheet)}", "a sheet's name, or its number from 0")
    _check(isinstance(split, str) and split.strip(), f"split={shown(split)}", "a name such as 'train'")
    path = Path(source)
    name = printable(path.name or path) if os.path.lexists(path) else printable(source)
    with contextlib.ExitStack() as stack:
        with plain_words(name):
            found = open_source(source, name, stack, sheet, split, limit)
        found.records = _guarded(found.records, name)
        yield name, found


def _guarded(records: Iterator[tuple[int, Any]], name: str) -> Iterator[tuple[int, Any]]:
    with plain_words(name):
        yield from records


def _check(fine: Any, given: str, what: str) -> None:
    if not fine:
        raise SettingsError(f"{given} is to be {what}")


def _sentence(bad: BadRow, place: str, source: str | Path) -> str:
    place += f", field {shown(bad.field)}" * bool(bad.field)
    return f"{place}: {bad.problem}; " + bad.remedy.replace("read_rows(...", f"read_rows({str(source)!r}", 1)


def _said(names: Counter[str], ignored: Iterable[str]) -> str:
    """Name the schemas of the rows, with their counts where there are several, and the columns that are not used."""
    said = [f"{name} ({count} rows)" if len(names) > 1 else name for name, count in names.most_common(8)]
    unused = list(map(printable, ignored))
    return ", ".join(said) + ("; ignored: " + ", ".join(unused[:12]) if unused else "")
