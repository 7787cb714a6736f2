"""Tables: CSV with any delimiter, Excel, Parquet. Each record with the line, or the row, it begins in."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter, deque
from collections.abc import Iterator
from datetime import datetime, time
from itertools import chain, islice
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.schema import BadRow, Records, listed, shown

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}


def _table(rows: Iterator[tuple[int, list[Any] | BadRow]], name: str, details: list[str], unit: str, remedy: str) -> Records:
    """Make records of rows of cells under a header, perhaps with titles above it: they fill one cell where the rows below fill several.

    remedy: for rows with too many or too few cells. Raises `DatasetError`.
    """
    first = list(islice(rows, 6))
    if not first:
        raise DatasetError(f"{name} has no rows; check the export that made it")
    filled = [_filled(cells) for _, cells in first]
    above = next((i for i, count in enumerate(filled) if count > 1), 0) if filled[0] == 1 else 0
    line, header = first[above]
    if isinstance(header, BadRow):
        raise DatasetError(f"{name}, {unit} {line}, header: {header.problem}; {header.remedy}")
    columns = [cell.strip() or f"column {i}" for i, cell in enumerate(header, 1)]
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise DatasetError(f"{name}, header: two columns are called {shown(twice[0])}; rename one of them")

    def record(cells: list[Any] | BadRow) -> dict[str, Any] | BadRow:
        if isinstance(cells, BadRow):
            return cells
        if unit == "row":  # Excel stores no empty cells at the end
            cells = cells + [""] * (len(columns) - len(cells))
        if len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        return BadRow(f"{len(cells)} cells where the header has {len(columns)}", remedy, content=cells)

    details += [f"header in {unit} {line}, under a title"] * bool(above)
    records = ((line, record(cells)) for line, cells in chain(first[above + 1 :], rows))
    return Records(records, details, unit, table=True)


def _filled(cells: list[Any] | BadRow) -> int:
    return sum(not isinstance(cell, str) or bool(cell.strip()) for cell in cells) if isinstance(cells, list) else 0


def read_csv(stream: io.TextIOBase, sample: str, name: str) -> Records:
    """sample: the beginning of the text, by which the delimiter is chosen."""
    csv.field_size_limit(sys.maxsize)
    delimiter = find_delimiter(sample)
    if sample.strip() and not delimiter:
        remedy = "separate its cells by a comma, semicolon, tab or |, under a first line such as instruction,input,output"
        raise DatasetError(f"{name} has one column only, {shown(sample.strip().splitlines()[0])}; {remedy}")
    remedy = "put a text that holds the delimiter or a line break in double quotes, or add the missing cells"
    rows = _csv_rows(stream, delimiter or ",")
    return _table(rows, name, ["CSV", f"delimiter {DELIMITERS[delimiter or ',']}"], "line", remedy)


def find_delimiter(sample: str) -> str:
    """Return that of comma, semicolon, tab and | which makes the best table: most rows of one width, then the widest. "" if none does.

    csv.Sniffer is no help: commas inside the texts of a table with semicolons mislead it.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        rows = _csv_rows(io.StringIO(sample, newline=""), delimiter)
        widths = Counter(len(cells) for _, cells in rows if isinstance(cells, list) and len(cells) > 1)
        return max(((count, width) for width, count in widths.items()), default=(0, 0))

    best = max(DELIMITERS, key=fit)
    return best if fit(best)[1] else ""


def _csv_rows(stream: io.TextIOBase, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yield (line where it begins, cells). Behind a fault, such as a quote that is never closed, it goes on with the next line."""
    lines, taken, again = enumerate(stream, 1), [], deque()

    def feed() -> Iterator[str]:
        while item := again.popleft() if again else next(lines, None):
            taken.append(item)
            yield item[1]

    while True:
        try:
            # strict: a stray quote is a fault, and swallows no row
            for cells in csv.reader(feed(), delimiter=delimiter, strict=True):
                if _filled(cells):
                    yield taken[0][0], cells
                taken.clear()
            return
        except csv.Error as e:
            what = "a quotation mark is opened and never closed" if "unexpected end" in str(e) else str(e)
            remedy = 'close each quoted text, and write a quote inside it twice ("")'
            yield taken[0][0], BadRow(what, remedy, content="".join(line for _, line in taken))
            again.extendleft(reversed(taken[1:]))
            taken.clear()


def read_excel(stream: io.BufferedIOBase, sheet: str | int, name: str) -> Records:
    """Read one sheet of an .xlsx file; a number becomes its text, an empty cell ""."""
    import openpyxl

    pages = {page.title: page for page in openpyxl.load_workbook(stream, read_only=True, data_only=True).worksheets}
    title = dict(enumerate(pages)).get(sheet, sheet)
    if title not in pages:
        there = f"{listed(pages)} (numbers count from 0)"
        raise DatasetError(f"{name} has no sheet {sheet!r}; it has {there}; name one as sheet= (on the command line: --sheet)")
    others = f" (other sheets: {listed(other for other in pages if other != title)})" * (len(pages) > 1)
    remedy = "name each column in the header row, or delete the cells that stand beyond it"
    return _table(_excel_rows(pages[title]), f"{name}, sheet {title!r}", ["Excel", f"sheet {title!r}{others}"], "row", remedy)


def _excel_rows(page: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number, texts) of each row that has any, without the empty cells at its end."""
    page.reset_dimensions()  # other programs write wrong ones
    for number, row in enumerate(page.iter_rows(), 1):
        cells = list(map(_cell, row))
        while cells and cells[-1] == "":
            cells.pop()
        if cells:
            yield number, cells


def _cell(cell: Any) -> str | BadRow:
    """Return a cell as Excel shows it: a whole number without ".0", a day without a time."""
    value = "" if cell.value is None else cell.value
    if cell.data_type == "e":
        return BadRow(f"{value}, the error of a formula", "mend it in Excel, or clear that cell")
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def read_parquet(stream: io.BufferedIOBase) -> Records:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(stream, pre_buffer=False).iter_batches(batch_size=256)  # pre_buffer would hold all of it
    return Records(enumerate((record for batch in batches for record in batch.to_pylist()), 1), ["Parquet"], "row", table=True)
