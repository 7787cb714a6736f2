"""Tables: CSV with any delimiter, Parquet, and what Excel's have in common with them. Each record with the line it begins in."""

import csv
import io
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.encodings import unmarked
from gemma_colab.data.schema import HEADER, NAMES, BadRow, Records, UnknownSchema, normal, recognize, shown

AGAIN = 10  # how often as much as a whole file may be looked through for quotes that are never closed
DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
KNOWN = {name for names in NAMES.values() for name in names}
# What spreadsheets show for a fault, in any language: #REF!, #ЗНАЧ!, #¿NOMBRE?, #N/A, #Н/Д; and a column that is too narrow.
ERROR_WORD = re.compile(
    r"#(?:[¡¿]?[^\W\d_a-zа-я][^\W_a-zа-я]*(?:/0|[ _][^\W_a-zа-я]+)*[!?]|[A-ZА-ЯΑ-Ω]/[A-ZА-ЯΑ-Ω]!?|NV|YOK|GETTING_DATA|#{2,})"
)


def table(
    rows: Iterator[tuple[int, list[str | BadRow] | BadRow]], name: str, details: list[str], unit: str, remedy: str, notes: dict
) -> Records:
    """Make records of rows of cells under a header, perhaps with titles above it: they fill one cell where the rows below fill several.

    The header may come again in the middle, where files were joined, with its columns in another order.
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
    columns, doubt = _named(header), ""
    prose = any(column.endswith((".", "!", "?")) or len(column.split()) > 5 for column in columns)
    if prose and KNOWN.isdisjoint(map(normal, columns)):
        doubt = f"its first line reads like a text, not like names of columns; {HEADER}; of plain text, make rows of question and answer first"
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        what = f"its header calls two columns {shown(twice[0])}; {HEADER}, or rename one of them"
        raise DatasetError(f"{name}: {doubt or what}")

    def record(cells: list[str | BadRow] | BadRow, columns: list[str]) -> dict[str, Any] | BadRow:
        if isinstance(cells, BadRow):
            return cells
        if unit == "row":  # Excel stores no empty cells at the end
            cells = cells + [""] * (len(columns) - len(cells))
        if len(cells) == len(columns):
            return dict(zip(columns, cells, strict=True))
        return BadRow(f"{len(cells)} cells where the header has {len(columns)}", remedy, content=cells)

    def records(columns: list[str]) -> Iterator[tuple[int, dict[str, Any] | BadRow]]:
        for line, cells in chain(first[above + 1 :], rows):
            if cells in titles or _is_header(cells, columns):
                now = columns if cells in titles else _named(cells)
                moved = list(map(normal, now)) != list(map(normal, columns))
                others = ", and its columns are others or in another order from here on" * moved
                notes.setdefault(f"the header again, as of joined files, left out{others}", []).append(line)
                columns = now
            else:
                yield line, record(cells, columns)

    details += [f"header in {unit} {line}, under a title"] * bool(above)
    titles = [cells for _, cells in first[:above]]
    return Records(records(columns), details, unit, table=True, notes=notes, header=doubt, columns=columns)


def _named(header: list[str]) -> list[str]:
    return [str(cell).strip() or f"column {i}" for i, cell in enumerate(header, 1)]


def _is_header(cells: list[str | BadRow] | BadRow, columns: list[str]) -> bool:
    """Tell a row that has the names of the columns, or others that a question and an answer are known by."""
    if not isinstance(cells, list) or any(isinstance(cell, BadRow) or len(cell) > 1000 for cell in cells):
        return False
    names = list(map(normal, _named(cells)))
    if sorted(names) == sorted(map(normal, columns)):
        return True
    try:
        return KNOWN.issuperset(names) and bool(recognize(tuple((name, "value") for name in names), (), True))
    except UnknownSchema:
        return False


def checked(records: Iterator[tuple[int, Any]], notes: dict[str, list[int]]) -> Iterator[tuple[int, Any]]:
    r"""Yield the records of a table, an error word of a spreadsheet as a bad cell, and \N, a database's for no value, as an empty one."""
    for line, record in records:
        for column, cell in record.items() if isinstance(record, dict) else ():
            if isinstance(cell, str) and (word := cell.strip())[:1] in ("#", "\\"):
                if word == r"\N":
                    notes.setdefault(r"\N, which databases write for no value, was read as an empty cell", []).append(line)
                    record[column] = ""
                elif ERROR_WORD.fullmatch(word):
                    record[column] = BadRow(f"{word}, the error of a formula", "correct it in Excel, or clear that cell")
        yield line, record


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
    rows, details = _csv_rows(stream, delimiter or ",", notes := {}), ["CSV", f"delimiter {DELIMITERS[delimiter or ',']}"]
    return table(rows, name, details, "line", remedy, notes)


def find_delimiter(sample: str) -> str:
    """Return that of comma, semicolon, tab and | which makes the best table: with a known name in its header, then the largest share of
    rows of one width, then the widest. "" if none does.

    csv.Sniffer is no help: commas inside the texts of a table with semicolons mislead it.
    """

    def fit(delimiter: str) -> tuple[bool, float, int]:
        found = list(_csv_rows(io.StringIO(sample, newline=""), delimiter, {}))
        rows = [cells for _, cells in found if isinstance(cells, list) and len(cells) > 1]
        width, count = Counter(map(len, rows)).most_common(1)[0] if rows else (0, 0)
        return any(not KNOWN.isdisjoint(map(normal, cells)) for cells in rows[:6]), count / max(len(found), 1), width

    fits = {delimiter: fit(delimiter) for delimiter in DELIMITERS}
    best = max(fits, key=fits.get)
    return best if fits[best][2] else ""


def _csv_rows(stream: io.TextIOBase, delimiter: str, notes: dict) -> Iterator[tuple[int, list[str] | BadRow]]:
    """Yield (line where it begins, cells). Behind a fault, such as a quote that is never closed, it goes on with the next line."""
    lines, taken, again, room = unmarked(stream, notes), [], deque(), 2**22

    def feed() -> Iterator[str]:
        nonlocal room
        while item := again[0] if again else next(lines, None):
            room += 0 if again and again.popleft() else AGAIN * len(item[1])
            taken.append(item)
            yield item[1]

    while True:
        try:
            # strict: a stray quote is a fault, and swallows no row
            for cells in csv.reader(feed(), delimiter=delimiter, strict=True):
                alike = _swallowed([line for _, line in taken], delimiter, len(cells))
                if alike and all(alike):
                    what = f"a quotation mark in line {taken[0][0]} joins lines {taken[0][0]} to {taken[-1][0]} to one row"
                    remedy = 'write such a mark twice and in quotes (""), or save as .xlsx or .jsonl if one row is meant'
                    yield from ((at, BadRow(what, remedy, content=line)) for at, line in taken)
                elif _filled(cells):
                    if alike:
                        what = "a text in quotes goes over lines that each may be a row: look whether a quotation mark joined rows there"
                        notes.setdefault(what, []).append(taken[0][0])
                    yield taken[0][0], cells
                taken.clear()
            return
        except csv.Error as e:
            what = "a quotation mark is opened and never closed" if "unexpected end" in str(e) else str(e)
            remedy = 'close each quoted text, and write a quote inside it twice ("")'
            room -= sum(len(line) for _, line in taken)
            if room < 0:  # each line opens a quote, and each time all the rest is read
                taken = [*taken, *again, *lines]
                what = f"so many quotation marks are never closed that the rest of the file, {len(taken)} lines, was not read"
            yield taken[0][0], BadRow(what, remedy, content="".join(line for _, line in taken))
            if room < 0:
                return
            again.extendleft(reversed(taken[1:]))
            taken.clear()


def _swallowed(lines: list[str], delimiter: str, width: int) -> list[bool]:
    """Return for each line of one row of several lines, if each has as many cells as a row, whether it is surely one: a stray quotation
    mark joined them.

    A text in quotes has lines as well, and commas in them: but rarely as many in each, with no space behind and no second quote.
    """
    if len(lines) < 2 or width < 2 or sum(line.count('"') for line in lines) != 2:
        return []
    rows = [line.rstrip("\r\n").split(delimiter) for line in lines]
    return [all(cell and cell == cell.strip() for cell in row) for row in rows] if {*map(len, rows)} == {width} else []


def read_parquet(stream: io.BufferedIOBase, fits: Callable[[float], None]) -> Records:
    """fits: raises `DatasetError` for more bytes than the file has room for."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream, pre_buffer=False)  # pre_buffer would hold all of it
    fits(sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)))
    batches = file.iter_batches(batch_size=32)  # a text that is stored once may be in each row
    return Records(enumerate((record for batch in batches for record in batch.to_pylist()), 1), ["Parquet"], "row", table=True)
