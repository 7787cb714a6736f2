"""Tables: CSV with any delimiter, Excel, Parquet. Each record with the line, or the row, it begins in."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from gemma_colab.data import files
from gemma_colab.data.files import Raw, broken_place, numbered_lines
from gemma_colab.data.forms import BadRow, shown
from gemma_colab.errors import DatasetError

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}


def _named(records: Iterable[tuple[int, Any]], header: list[str], name: str) -> Iterator[tuple[int, Any]]:
    """Records as dicts. Raises `DatasetError` for a column without a name, or two of one name."""
    columns = [cell.strip() for cell in header]
    if "" in columns:
        place = f"column {columns.index('') + 1} of {len(columns)}"
        raise DatasetError(f"{name}, header: {place} has no name; name it, or delete it (from pandas: to_csv(..., index=False))")
    if twice := next((c for i, c in enumerate(columns) if c in columns[:i]), None):
        raise DatasetError(f"{name}, header: two columns are called {shown(twice)}; rename one of them")

    def record(cells: list[str] | BadRow) -> dict[str, str] | BadRow:
        if isinstance(cells, BadRow):
            return cells
        if len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        remedy = "put a text that holds the delimiter or a line break in double quotes, or add the missing cells"
        return BadRow(f"{len(cells)} cells where the header has {len(columns)}", remedy, content=cells)

    return ((line, record(cells)) for line, cells in records)


# --- CSV


def read_csv(stream: io.TextIOBase, sample: str, name: str) -> Raw:
    csv.field_size_limit(max(csv.field_size_limit(), files.MOST))
    told = re.match(r'"?sep=([,;\t|])"?\r?\n', sample)  # Excel's own way to name the delimiter
    delimiter = told[1] if told else find_delimiter(sample)
    records = _csv_records(stream, delimiter)
    if told:
        next(records)
    line, header = next(records, (0, None))
    if header is None:
        raise DatasetError(f"{name} has no rows, only empty lines; check the export that made it")
    if isinstance(header, BadRow):
        raise DatasetError(f"{name}, line {line}, header: {header.problem}; {header.remedy}")
    if len(header) < 2:
        remedy = (
            "separate question and answer by a comma, semicolon, tab or |, under a first line such as instruction,input,output"
        )
        raise DatasetError(f"{name} has one column only, {shown(header[0])}; {remedy}")
    return Raw(_named(records, header, name), ["CSV", f"delimiter {DELIMITERS[delimiter]}"], table=True)


def _csv_records(stream: io.TextIOBase, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(line where it begins, cells). After a fault, such as a quote that is never closed, goes on with the next line."""
    lines, taken, again = numbered_lines(stream), [], deque()

    def feed() -> Iterator[str]:
        while item := again.popleft() if again else next(lines, None):
            taken.append(item)
            if isinstance(item[1], BadRow):
                raise csv.Error(item[1].problem)
            yield item[1]

    while True:
        try:
            # strict: a stray quote is a fault, and swallows no row
            for cells in csv.reader(feed(), delimiter=delimiter, strict=True):
                if any(cell.strip() for cell in cells):
                    yield taken[0][0], next(filter(None, map(broken_place, cells)), cells)
                taken.clear()
            return
        except csv.Error as e:
            text = "".join(line for _, line in taken if isinstance(line, str))
            what = "a quotation mark is opened and never closed" if "unexpected end" in str(e) else str(e)
            bad = BadRow(what, 'close each quoted text, and write a quote inside it twice ("")', content=text)
            yield taken[0][0], broken_place(text) or bad
            again.extendleft(reversed(taken[1:] if len(taken) <= 1000 else []))  # more lines are not worth a second look
            taken.clear()


def find_delimiter(sample: str) -> str:
    """Of comma, semicolon, tab and | the one that makes the best table.

    csv.Sniffer is no help: commas inside the texts of a table with semicolons mislead it.
    """

    def table(delimiter: str) -> tuple:
        widths = [len(r) if isinstance(r, list) else 0 for _, r in _csv_records(io.StringIO(sample, newline=""), delimiter)] or [
            0
        ]
        return widths[0] > 1, widths.count(widths[0]) / len(widths), widths[0]

    return max(DELIMITERS, key=table)


# --- tables with types


def read_excel(stream: io.BufferedIOBase, sheet: str | int, name: str) -> Raw:
    """One sheet of an .xlsx file; a number becomes its text, an empty cell ""."""
    try:
        members = zipfile.ZipFile(stream).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        raise DatasetError(f"{name} is a damaged zip or .xlsx file ({e}); download it again") from e
    if "xl/workbook.xml" not in members:
        what = "an .xlsb workbook; save it as .xlsx" if "xl/workbook.bin" in members else "a zip archive; unpack it"
        raise DatasetError(f"{name} is {what} and give the data file inside it")
    import openpyxl

    try:
        stream.seek(0)
        sheets = {page.title: page for page in openpyxl.load_workbook(stream, read_only=True, data_only=True).worksheets}
    except Exception as e:  # zip, XML and openpyxl each have their own errors for a damaged file
        raise DatasetError(f"{name} is not an .xlsx file Python can read ({e}); open it and save it again as .xlsx") from e
    title = dict(enumerate(sheets)).get(sheet, sheet)
    if title not in sheets:
        raise DatasetError(f"{name} has no sheet {sheet!r}; it has {', '.join(map(repr, sheets))} (numbers count from 0)")
    sheets[title].reset_dimensions()  # other programs write wrong ones
    rows = ((number, _texts(row)) for number, row in enumerate(sheets[title].iter_rows(values_only=True), 1))
    rows = ((number, cells) for number, cells in _unbroken(rows, name) if cells)
    _, header = next(rows, (0, None))
    if header is None:
        raise DatasetError(f"{name}, sheet {title!r}, has no rows; its other sheets: {', '.join(sheets)}")
    records = _named(((number, cells + [""] * (len(header) - len(cells))) for number, cells in rows), header, name)
    return Raw(records, ["Excel", f"sheet {title!r}"], "row", table=True)


def _texts(row: tuple) -> list[str]:
    """Texts of a row, without the empty cells at its end."""
    cells = ["" if v is None else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def read_parquet(stream: io.BufferedIOBase, name: str) -> Raw:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream, pre_buffer=False)  # which would hold all of it
    except Exception as e:  # Arrow's errors, OSError among them
        raise DatasetError(f"{name} is a damaged or unfinished Parquet file ({shown(str(e))}); download it again") from e
    records = (record for batch in file.iter_batches(batch_size=256) for record in batch.to_pylist())
    return Raw(_unbroken(enumerate(records, 1), name), ["Parquet"], "row", table=True)


def _unbroken(records: Iterable[tuple[int, Any]], name: str) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        for number, record in records:
            yield number, record
    except Exception as e:  # of three libraries
        raise DatasetError(f"{name} can't be read beyond row {number} ({shown(str(e))}); save or download it again") from e
