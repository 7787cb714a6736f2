"""Tables: CSV with any delimiter, Excel, Parquet. Each record with the line, or the row, it begins in."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data import files
from gemma_colab.data.files import Raw, broken_place, numbered_lines
from gemma_colab.data.forms import BadRow, UnknownForm, listed, recognise, shown
from gemma_colab.data.records import Unstored

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
IN_QUOTES = "put a text that holds the delimiter or a line break in double quotes, or add the missing cells"
UNDER_A_NAME = "name each column in the header row, or delete the cells that stand beyond it"
FIRST = 6  # rows that are looked at for a header under a title


def _named(records: Iterable[tuple[int, Any]], header: list[str], name: str, remedy: str) -> Iterator[tuple[int, Any]]:
    """Records as dicts; `remedy` is for those with too many or too few cells. Raises `DatasetError` for a column without a name, or two of one name."""
    columns = [cell.strip() for cell in header]
    if "" in columns:
        place = f"column {columns.index('') + 1} of {len(columns)}"
        raise DatasetError(f"{name}, header: {place} has no name; name it, or delete it (an index of pandas: index=False)")
    if twice := next((c for i, c in enumerate(columns) if c in columns[:i]), None):
        raise DatasetError(f"{name}, header: two columns are called {shown(twice)}; rename one of them")

    def record(cells: list[str] | BadRow) -> dict[str, str] | BadRow:
        if isinstance(cells, BadRow):
            return cells
        if len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        return BadRow(f"{len(cells)} cells where the header has {len(columns)}", remedy, content=cells)

    return ((line, record(cells)) for line, cells in records)


def _filled(cells: Any) -> int:
    return sum(bool(cell.strip()) for cell in cells) if isinstance(cells, list) else 0


def _rows_above_header(first: list[tuple[int, Any]]) -> int:
    """How many of a table's first rows stand above its header: 0, unless the first is a title and a later one a known header."""
    if first and _filled(first[0][1]) == 1:
        for above, (_, cells) in enumerate(first):
            if _filled(cells) > 1:
                with contextlib.suppress(UnknownForm):
                    recognise([cell.strip() for cell in cells])
                    return above
    return 0


def _refuse_title(first: list[tuple[int, Any]], name: str, unit: str) -> None:
    """Raises `DatasetError` for a first row of one cell above rows of several, which would have no names."""
    (line, cells), *others = first
    if _filled(cells) == 1 and any(_filled(later) > 1 for _, later in others):
        title = shown(next(cell for cell in cells if cell.strip()))
        raise DatasetError(f"{name}: {unit} {line} looks like a title ({title}), not like a header; delete that {unit}")


def _said(above: int, unit: str, line: int) -> list[str]:
    return [f"header in {unit} {line}, under a title"] * bool(above)


# --- CSV


def read_csv(stream: io.TextIOBase, sample: str, name: str) -> Raw:
    csv.field_size_limit(max(csv.field_size_limit(), files.MOST))
    told = re.match(r'"?sep=([,;\t|])"?\r?\n', sample)  # Excel's own way to name the delimiter
    delimiter = told[1] if told else _delimiter(sample)
    records = _csv_records(stream, delimiter)
    if told:
        next(records)
    first = list(islice(records, FIRST))
    if not first:
        raise DatasetError(f"{name} has no rows, only empty lines; check the export that made it")
    above = _rows_above_header(first)
    line, header = first[above]
    if isinstance(header, BadRow):
        raise DatasetError(f"{name}, line {line}, header: {header.problem}; {header.remedy}")
    if len(header) < 2:
        remedy = (
            "separate question and answer by a comma, semicolon, tab or |, under a first line such as instruction,input,output;"
            " a title above that line is to be deleted"
        )
        raise DatasetError(f"{name} has one column only, {shown(header[0])}; {remedy}")
    _refuse_title(first[above:], name, "line")
    details = ["CSV", f"delimiter {DELIMITERS[delimiter]}", *_said(above, "line", line)]
    return Raw(_named(chain(first[above + 1 :], records), header, name, IN_QUOTES), details, table=True)


def _delimiter(sample: str) -> str:
    """The best one, or one that shows a header under a title: a title may hold commas, or no delimiter at all."""
    best = find_delimiter(sample)
    for delimiter in (best, *DELIMITERS):
        if _rows_above_header(list(islice(_csv_records(io.StringIO(sample, newline=""), delimiter), FIRST))):
            return delimiter
    return best


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
        there = f"{', '.join(map(repr, sheets))} (numbers count from 0)"
        raise DatasetError(f"{name} has no sheet {sheet!r}; it has {there}; name one as sheet= (on the command line: --sheet)")
    others = f" (other sheets: {listed(other for other in sheets if other != title)})" * (len(sheets) > 1)
    sheets[title].reset_dimensions()  # other programs write wrong ones
    rows = ((number, cells) for number, cells in _unbroken(_excel_rows(sheets[title], stream), name) if cells)
    first = list(islice(rows, FIRST))
    if not first:
        raise DatasetError(f"{name}, sheet {title!r}, has no rows; its other sheets: {', '.join(sheets)}")
    above = _rows_above_header(first)
    line, header = first[above]
    _refuse_title(first[above:], name, "row")
    rows = ((number, cells + [""] * (len(header) - len(cells))) for number, cells in chain(first[above + 1 :], rows))
    details = ["Excel", f"sheet {title!r}{others}", *_said(above, "row", line)]
    return Raw(_named(rows, header, name, UNDER_A_NAME), details, "row", table=True)


def _excel_rows(sheet: Any, stream: io.BufferedIOBase) -> Iterator[tuple[int, list[str]]]:
    """(number, texts) of each row, without the empty cells at its end."""
    from openpyxl.cell.read_only import EMPTY_CELL

    formulas = None
    for number, row in enumerate(sheet.iter_rows(), 1):
        cells = [_text(cell.value) for cell in row]
        for i, cell in enumerate(row):
            if cell is not EMPTY_CELL and cell.value is None and cell.data_type == "n":  # in the file, without a value
                formulas = _formulas(stream, sheet.title) if formulas is None else formulas
                cells[i] = Unstored() if (cell.row, cell.column) in formulas else ""
        while cells and not cells[-1] and type(cells[-1]) is str:
            cells.pop()
        yield number, cells


def _formulas(stream: io.BufferedIOBase, title: str) -> set[tuple[int, int]]:
    """Where a sheet has formulas: openpyxl gives either them or their values, and a formula without a value looks empty."""
    import openpyxl

    sheet = openpyxl.load_workbook(stream, read_only=True)[title]
    sheet.reset_dimensions()
    return {(cell.row, cell.column) for row in sheet.iter_rows() for cell in row if cell.data_type == "f"}


def _text(value: Any) -> str:
    """A cell as Excel shows it: a whole number without ".0", a day without a time."""
    if isinstance(value, datetime) and not (value.hour or value.minute or value.second or value.microsecond):
        return value.date().isoformat()
    return "" if value is None else str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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
