"""Read a dataset of any common format into rows, with one clear sentence for whatever is wrong with it.

    read_rows("support.csv")                                                    # columns recognised by their names
    read_rows("export.xlsx", mapping={"instruction": "Тема", "output": "Ответ"})  # or told
    read_rows("owner/name", split="train", limit=1000)                          # from the Hugging Face Hub
    read_rows("support.jsonl", on_bad="aside", aside="bad.jsonl")               # leave bad rows out, and list them

`sources.py` finds out what a source is; `files.py` makes text of bytes; `json_files.py`, `tables.py` and `hub_rows.py` make records;
`forms.py` says what their columns mean, and `records.py` makes rows of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_colab.core.errors import DatasetError, SettingsError
from gemma_colab.core.rows import Row
from gemma_colab.data.files import Raw, plain_words, with_bar
from gemma_colab.data.forms import BadRow, Form, UnknownForm, check_mapping, guess_mapping, listed, printable, shown, some
from gemma_colab.data.records import Recogniser
from gemma_colab.data.sources import open_source

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Source", "guess_mapping", "iter_rows", "peek", "read_rows"]


@dataclass(frozen=True)
class Source:
    """Rows as in `gemma_colab.core.rows`, each with its "line", and where they come from.

    Of JSON a row whose keys in the file are not those of most rows has them in `keys`: "a, b, c"; and a row whose line is
    also another's (a list written on one line) has its number in the list, from 1, as `item`.
    """

    rows: list[Row]
    name: str  # of the file or dataset
    form: str  # "question/answer columns: Тема -> instruction, Вопрос -> input, Ответ -> output; ignored: id"
    details: str  # "CSV, delimiter ';', Windows-1251"
    aside: list[dict[str, Any]]  # {"line", "field", "problem", "content", "sentence"} of each row put aside; the last says all

    def __repr__(self) -> str:
        aside = f", {len(self.aside)} put aside" if self.aside else ""
        return f"{self.name} ({self.details})\nForm: {self.form}\n{len(self.rows)} rows{aside}"


def read_rows(
    source: str | Path,
    *,
    mapping: dict[str, str] | None = None,
    on_bad: str = "raise",
    aside: str | Path | None = None,
    sheet: str | int = 0,
    split: str = "train",
    limit: int | None = None,
) -> Source:
    """All rows of a file, a folder that is a dataset, or a dataset of the Hugging Face Hub. Nothing given is changed.

    source: a path (JSONL, JSON, CSV, Excel, Parquet, also gzipped), or "owner/name", or "owner/name:configuration".
    mapping: our name (instruction, input, output, system, messages, label, conversation) -> the column there, where the
        columns are not recognised by their names.
    on_bad: "raise" stops at the first bad row; "aside" leaves bad rows out and lists them.
    aside: a JSONL file for the bad rows, written anew by each reading with on_bad="aside".
    sheet: of an Excel file, by name, or by number from 0. split: of a dataset. limit: at most so many rows.

    Raises `DatasetError` that names file, line and field; `SettingsError` for arguments that can't be meant.
    """
    reading = _Reading(source, mapping, on_bad, aside, sheet, split, limit)
    found = list(reading.rows())
    [(usual, _)] = Counter(form.keys for _, form, _ in found).most_common(1)
    same = reading.raw.table  # records of a table all have its columns
    for row, form, item in found:
        row |= {} if same or form.keys == usual else {"keys": form.keys}
        row |= {"item": item} if row["line"] in reading.shared else {}
    return Source([row for row, _, _ in found], reading.name, reading.form(), ", ".join(reading.raw.details), reading.bad)


def iter_rows(source: str | Path, **options) -> Iterator[Row]:
    """The rows of `read_rows`, whose arguments it takes, one by one, in constant memory for JSONL, JSON lists, CSV and Parquet."""
    reading = _Reading(source, **options)
    return (row for row, _, _ in reading.rows())


def peek(source: str | Path, rows: int = 3, *, sheet: str | int = 0, split: str = "train") -> pd.DataFrame:
    """The first records as they stand in the file, one a row of the table, with their lines as its index.

    Records that can't be parsed are left out. Raises `DatasetError` as `read_rows` does.
    """
    import pandas as pd

    reading, found = _Reading(source, sheet=sheet, split=split, limit=rows), []
    with reading.opened() as raw:
        found += islice(((line, value) for line, value in raw.records if isinstance(value, dict)), rows)
    if not found:
        read_rows(source, sheet=sheet, split=split)  # raises, and says why
    return pd.DataFrame([value for _, value in found], index=pd.Index([line for line, _ in found], name=raw.unit))


@dataclass
class _Reading:
    """One pass over a source, and what it met on the way."""

    source: str | Path
    mapping: dict[str, str] | None = None
    on_bad: str = "raise"
    aside: str | Path | None = None
    sheet: str | int = 0
    split: str = "train"
    limit: int | None = None
    bad: list[dict[str, Any]] = field(default_factory=list, init=False)
    first: str = field(default="", init=False)  # the sentence of the first bad row
    forms: Counter[str] = field(default_factory=Counter, init=False)
    shared: set[int] = field(default_factory=set, init=False)  # lines in which more than one record begins
    ignored: dict[str, None] = field(default_factory=dict, init=False)  # in the order met

    def __post_init__(self):
        """Raises `SettingsError`, before any file is looked at."""

        def need(fine: Any, name: str, what: str) -> None:
            if not fine:
                raise SettingsError(f"{name}={shown(getattr(self, name))} is to be {what}")

        text = str(self.source) if isinstance(self.source, (str, Path)) else ""
        need(text.strip() and "\0" not in text, "source", "a path, or the name of a dataset such as 'owner/name'")
        need(self.on_bad in ("raise", "aside"), "on_bad", "'raise' (stop at the first bad row) or 'aside' (leave bad rows out)")
        need(self.aside is None or self.on_bad == "aside", "aside", 'None, as only on_bad="aside" writes it; add that')
        need(type(self.sheet) in (str, int), "sheet", "a sheet's name, or its number from 0")
        need(isinstance(self.split, str) and self.split.strip(), "split", "a name such as 'train'")
        need(self.limit is None or (type(self.limit) is int and self.limit > 0), "limit", "a number from 1, or None for all rows")
        check_mapping(self.mapping)
        if self.aside is not None:
            _check_side_file(self.source, self.aside)
        path = Path(self.source)
        self.name = printable(path.name or path) if os.path.lexists(path) else printable(self.source)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Raw]:
        with contextlib.ExitStack() as stack, plain_words(self.name):
            self.raw = open_source(self.source, self.name, stack, self.sheet, self.split, self.limit)
            yield self.raw

    def rows(self) -> Iterator[tuple[Row, Form, int]]:
        """Each row with its form, and its number among the records."""
        good = last = 0
        with self.opened() as raw:
            recogniser = Recogniser(self.mapping, raw.table)
            for item, (line, value) in enumerate(with_bar(raw, self.name), 1):
                if line == last:
                    self.shared.add(line)
                last = line
                try:
                    if isinstance(value, BadRow):
                        raise value
                    row, form = recogniser.row(value)
                except BadRow as bad:
                    self._put_aside(line, item, bad, bad.content if bad is value else value)
                    continue
                good += 1
                self.forms[form.name] += 1
                if len(self.ignored) < 1000:  # objects with ever new keys must not fill the memory
                    self.ignored |= dict.fromkeys(form.ignored)
                yield row | {"line": line}, form, item
                if good == self.limit:
                    break
            if self.aside is not None:
                _write_side_file(Path(self.aside), self.bad)
            self._check_end(good, recogniser.unseen)

    def _put_aside(self, line: int, item: int, bad: BadRow, content: Any) -> None:
        if self.raw.table and isinstance(bad, UnknownForm) and not self.forms:  # no other row has other columns
            raise DatasetError(self.sentence(bad))
        sentence = self.sentence(bad, line, item if line in self.shared else 0)
        if self.on_bad == "raise":
            raise DatasetError(f'{sentence}, or leave bad rows aside with on_bad="aside"')
        self.first = self.first or sentence
        entry = {"line": line, "field": bad.field, "problem": bad.problem, "content": content, "sentence": sentence}
        self.bad.append(entry)

    def _check_end(self, good: int, unseen: set[str]) -> None:
        if not good and self.bad:
            count = "its only row is bad" if len(self.bad) == 1 else f"all {len(self.bad)} rows are bad"
            raise DatasetError(f"{self.first} ({count})")
        if not good:
            raise DatasetError(f"{self.name} has no rows; check the export that made it")
        if unseen:
            raise DatasetError(f"{self.name}: no row has {listed(sorted(unseen))}, which the mapping names; correct the mapping")

    def sentence(self, bad: BadRow, line: int = 0, item: int = 0) -> str:
        place = f", {self.raw.unit} {line}" * bool(line) + f", item {item}" * bool(item)
        place += f", field {shown(bad.field)}" * bool(bad.field)
        return f"{self.name}{place}: {bad.problem}; " + bad.remedy.replace("read_rows(...", f"read_rows({str(self.source)!r}", 1)

    def form(self) -> str:
        several = len(self.forms) > 1
        names = some((f"{name} ({count} rows)" if several else name for name, count in self.forms.most_common()), 8)
        return names + ("; ignored: " + some(map(printable, self.ignored)) if self.ignored else "")


# --- rows put aside


def _check_side_file(source: str | Path, aside: str | Path) -> None:
    """Raises `SettingsError` where writing it would destroy something."""
    fault = ""
    try:
        path, given = Path(aside).resolve(), Path(source).resolve()
        if given in (path, *path.parents) or (path.exists() and given.exists() and path.samefile(given)):
            fault = "is the input itself, or lies in it; the input is never changed: choose another name"
        elif path.is_dir() or not path.parent.is_dir():
            fault = "is no file in a folder that exists; make the folder, or choose another name"
        elif path.exists() and path.stat().st_size and not _is_side_file(path):
            fault = "exists and is not a list of rows put aside; choose another name, or delete it"
    except (OSError, TypeError, ValueError) as e:  # a name that no file can have
        fault = f"can't be written ({e}); choose another name"
    if fault:
        raise SettingsError(f"aside={shown(str(aside), 160)} {fault}")


def _is_side_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9) == b'{"line": '


def _write_side_file(path: Path, bad: list[dict[str, Any]]) -> None:
    """Written beside, then renamed: a reading that breaks off leaves the earlier file whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:  # \udc80 is JSON's own escape
            file.writelines(json.dumps(entry, ensure_ascii=False, default=str) + "\n" for entry in bad)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
