"""Excel: the cells of one sheet as texts, as Excel shows them. Number formats are turned into Babel's patterns, which knows languages."""

import io
import locale
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from functools import lru_cache
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.schema import BadRow, Records, listed
from gemma_colab.data.tables import table

SECTION = re.compile(r'(?:^|;)((?:"[^"]*"|\\.|\[[^\]]*\]|[^;])*)')  # of a number format: above zero; below; zero
PIECE = re.compile(  # a text in quotes or behind \; room as wide as a sign; a currency; a condition or color; then what is filled in
    r'"(?P<quoted>[^"]*)"|\\(?P<sign>.)|(?P<gap>[_*].)|\[\$(?P<currency>[^\]-]*)(?:-[^\]]*)?\]|\[(?P<elapsed>h+|m+|s+)\]|\[(?P<rule>[^\]]*)\]'
    r"|(?P<date>am/pm|a/p|y+|m+|d+|h+|s+(?:\.0+)?)|(?P<digits>general|[0#?.,]*[0#?][0#?.,]*(?:e[+-]0+)?)|(?P<other>.)",
    re.IGNORECASE,
)
LCID = re.compile(r"\[\$[^\]]*-([0-9a-f]+)\]", re.IGNORECASE)
# What a program writes where nobody chose a format; what Excel shows as the date, or date and time, of the country.
UNCHOSEN, COUNTRY = ("yyyy-mm-dd h:mm:ss", "yyyy-mm-dd hh:mm:ss"), {"mm-dd-yy": "", "m/d/yy h:mm": " H:mm"}
# Excel's -> Babel's, where they differ.
LETTERS = {"y": "yy", "yyy": "yyyy", "ddd": "EEE", "dddd": "EEEE", "am/pm": "a", "a/p": "a"}
LAST, WIDEST, LONGEST = 2**20, 2**14, 255  # the last row and column that Excel knows; signs of a number format
MAIN, TRUE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}", ("1", "true")
MERGED = re.compile(r"([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})")
EACH = 48  # bytes that an element of the file counts as, at least: small ones would keep the reader busy for minutes
UNITS = {"h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}


def read_excel(stream: io.BufferedIOBase, sheet: str | int, name: str, fits: Callable[[float], None]) -> Records:
    """Read one sheet of an .xlsx file; a number becomes its text, an empty cell "". fits: raises where too much comes out."""
    from openpyxl.reader.excel import ExcelReader
    from openpyxl.styles.stylesheet import apply_stylesheet
    from openpyxl.xml.constants import SHARED_STRINGS

    # Step by step: openpyxl by itself makes a slow object of whatever is in a sheet or a text, and looks through each sheet.
    book = ExcelReader(stream, read_only=True, data_only=True, keep_links=False)
    book.read_manifest()
    book.read_workbook()
    found = [
        (part.state != "visible", part.name, file.target) for part, file in book.parser.find_sheets() if "/worksheet" in file.Type
    ]
    pages = {title: path for _, title, path in sorted(found, key=lambda page: page[0])}  # those that are seen come first
    if not pages:
        what = f"{name} has no sheet of cells that can be read here (it may hold charts alone, or be saved as Strict Open XML)"
        raise DatasetError(f"{what}; save it as a usual Excel workbook (.xlsx) with the rows in a sheet")
    title = str(sheet) if str(sheet) in pages and sheet != 0 else dict(enumerate(pages)).get(sheet, sheet)
    if title not in pages:
        there = f"{listed(pages)} (numbers count from 0)"
        raise DatasetError(f"{name} has no sheet {sheet!r}; it has {there}; name one as sheet= (on the command line: --sheet)")
    apply_stylesheet(book.archive, book.wb)
    texts = book.package.find(SHARED_STRINGS)
    with book.archive.open(texts.PartName[1:]) if texts else io.BytesIO(b"<sst/>") as part:
        book.shared_strings = [_joined(item) for item in _elements(part, fits, "si")]
    remedy, notes = "name each column in the header row, or delete the cells beyond it", {}
    for out_of_sight, what in enumerate(("other sheets", "hidden sheets")):
        if others := [other for hidden, other, _ in found if hidden == out_of_sight and other != title]:
            notes[f"{what}, which were not read: {listed(others)}"] = []
    name = f"{name}, sheet {title!r}"
    return table(_rows(book, pages[title], name, notes, fits), name, ["Excel", f"sheet {title!r}"], "row", remedy, notes)


def _elements(part: Any, fits: Callable[[float], None], *names: str) -> Iterator[Any]:
    """Yield the elements of these names, each as it ends. All are counted as they begin: each takes time and memory, however short."""
    from openpyxl.xml.functions import iterparse

    wanted, seen, inside, path = {f"{MAIN}{name}" for name in names}, 0, 0, []
    # Large pieces: expat looks through a tag of many MiB again with each.
    for event, element in iterparse(SimpleNamespace(read=lambda _: part.read(2**20)), ("start", "end")):
        if event == "start":
            fits(seen := seen + EACH)
            path.append(element)
            inside += element.tag in wanted
            continue
        path.pop()
        if element.tag in wanted:
            inside -= 1
            yield element
        if path and not inside:
            path[-1].clear()  # nothing that was read stays in memory


def _joined(item: Any) -> str:
    """Return the text of an element that holds it as a whole, or in runs of one font each."""
    runs = (run if run.tag == f"{MAIN}r" else (run,) for run in item)
    return "".join(text.text or "" for text in chain(*runs) if text.tag == f"{MAIN}t")


def _stored(book: Any, path: str, name: str, fits: Callable) -> Iterator[tuple[int, bool, list[tuple[Any, Any]]]]:
    """Yield (number, whether it is hidden, (cell, its formula or None) of each that is stored) of each row."""
    from openpyxl.cell.read_only import ReadOnlyCell
    from openpyxl.worksheet._reader import WorkSheetParser

    wb, number = book.wb, 0
    parser = WorkSheetParser(None, book.shared_strings, True, wb.epoch, wb._date_formats, wb._timedelta_formats)
    with book.archive.open(path) as part:
        for row in _elements(part, fits, "row"):
            last, number, cells = number, int(float(row.get("r", number + 1))), []
            parser.row_counter, parser.col_counter = number, 0
            for element in row:
                inline = element.find(f"{MAIN}is") if element.get("t") == "inlineStr" else None
                if inline is not None:  # openpyxl would make an object of each of its runs
                    element.remove(inline)
                cell = parser.parse_cell(element)
                cell |= {} if inline is None else {"value": _joined(inline), "data_type": "s"}
                cells.append((ReadOnlyCell(SimpleNamespace(parent=wb), **cell), element.find(f"{MAIN}f")))
            places = [(cell.row, cell.column) for cell, _ in cells]
            if not last < number <= LAST or places != sorted({(number, column) for _, column in places}):
                what = f"{name}, row {number}, has rows or cells out of their order, twice, or below row {LAST:,}"
                raise DatasetError(f"{what}; open it in Excel or LibreOffice, save it again, and try again")
            yield number, row.get("hidden") in TRUE, cells


def _rows(
    book: Any, path: str, name: str, notes: dict[str, list[int]], fits: Callable
) -> Iterator[tuple[int, list[str | BadRow]]]:
    """Yield (number, texts) of each row that has any, without the empty cells at its end."""
    from openpyxl.utils import column_index_from_string, get_column_letter

    merged, hidden = {}, [0]
    with book.archive.open(path) as part:
        for element in _elements(part, fits, "col", "mergeCell"):
            if place := MERGED.fullmatch(element.get("ref", "")):
                merged[int(place[2]), column_index_from_string(place[1])] = int(place[3])
            elif element.tag == f"{MAIN}col" and element.get("hidden") in TRUE:
                hidden += range(max(int(element.get("min")), hidden[-1] + 1), min(int(element.get("max")), WIDEST) + 1)
    rows = _stored(book, path, name, fits)
    first = list(islice(rows, 200))
    texts = "".join(cell.value[:1000] for _, _, row in first[1:] for cell, _ in row if isinstance(cell.value, str))
    language = "ru" if len(re.findall("[а-яё]", texts, re.I)) > len(re.findall("[a-z]", texts, re.I)) else "en"
    filled = {cell.column for _, _, row in first for cell, _ in row if cell.value is not None}
    if unseen := sorted(filled.intersection(hidden)):
        notes[f"hidden columns, which were read all the same: {listed(map(get_column_letter, unseen))}"] = []
    seen, above = 0, {}  # what merged cells above this row show in it: column -> (its last row, text)
    for number, is_hidden, row in chain(first, rows):
        above = {column: (last, text) for column, (last, text) in above.items() if last >= number}
        # A cell in the last column makes thousands of empty ones, and a text that is stored once may be in each.
        shown = [*(cell.value for cell, _ in row if isinstance(cell.value, str)), *(str(text) for _, text in above.values())]
        fits(seen := seen + 8 * max([0, *above, *(cell.column for cell, _ in row[-1:])]) + sum(map(len, shown)))
        cells = {cell.column: _text(cell, formula, language) for cell, formula in row}
        numbers = [text for (cell, _), text in zip(row, cells.values(), strict=True) if cell.data_type == "n"]
        if language == "ru" and any("," in text for text in numbers if isinstance(text, str)):
            notes.setdefault("numbers are written as a Russian Excel shows them, such as 1 234,50", []).append(number)
        for column, text in cells.items():
            if text and (last := merged.get((number, column), 0)) > number:
                above[column] = last, text
        below = {column: text for column, (_, text) in above.items() if not cells.get(column)}
        if not any(cells.values()):  # a row with nothing of its own only makes the one above it higher
            continue
        if below:
            notes.setdefault("the text of merged cells was taken for each of their rows", []).append(number)
        if is_hidden:
            notes.setdefault("hidden rows, which were read all the same", []).append(number)
        cells |= below
        width = max(column for column, text in cells.items() if text)
        yield number, [cells.get(column, "") for column in range(1, width + 1)]


def _text(cell: Any, formula: Any, language: str) -> str | BadRow:
    from openpyxl.utils.escape import unescape

    value = cell.value
    if value is None and formula is not None and cell.data_type != "str":  # "str": computed, and empty
        what = f"={(formula.text or '…')[:40]}, a formula whose result is not in the file"
        return BadRow(what, "open the file in Excel, save it there, and try again")
    if isinstance(value, bool):
        return {"ru": ("ЛОЖЬ", "ИСТИНА")}.get(language, ("FALSE", "TRUE"))[value]
    if value is None or isinstance(value, str):
        return unescape(value or "")  # _x000D_ is a carriage return
    try:
        return shown_by_excel(value, cell.number_format, language)
    except ValueError:
        what = f"{value} in the number format {cell.number_format!r}, which is not known here"
        return BadRow(what, "choose another format, or make it a text")


def shown_by_excel(value: float | date | time | timedelta, code: str, language: str) -> str:
    """Return what a cell shows for a number format, in a language ("en", "ru") where the format names none. Raises `ValueError`."""
    from babel import Locale

    if len(code) > LONGEST:
        raise ValueError(code)
    country = int(chosen[1], 16) if (chosen := LCID.search(code)) else 0
    where = Locale.parse(locale.windows_locale.get(country & 0xFFFF, language))
    sections = SECTION.findall("General" if code == "@" else code)
    if isinstance(value, (date, time, timedelta)):
        shown = _date(value, code, _pieces(sections[0]), where, country)
    else:
        at = 1 if value < 0 and len(sections) > 1 else 2 if value == 0 and len(sections) > 2 else 0
        shown = "-" * (value < 0 and at == 0) + _number(abs(Decimal(repr(value))), _pieces(sections[at]), where)
    return re.sub("[\xa0\u202f]", " ", shown).strip()


@lru_cache
def _pieces(section: str) -> tuple[tuple[str, str], ...]:
    """Cut a number format into (kind, text), without what only takes room or gives a color. Raises `ValueError`."""
    pieces = [(m.lastgroup, m[m.lastgroup]) for m in PIECE.finditer(section)]
    if "?/" in section or any(kind == "rule" and text[:1] in "<>=" for kind, text in pieces):
        raise ValueError(section)  # a fraction, or a condition
    return tuple((kind, text) for kind, text in pieces if text and kind not in ("gap", "rule"))


def _number(number: Decimal, pieces: tuple[tuple[str, str], ...], where: Any) -> str:
    """Fill the one pattern, such as #,##0.00, or several, as in 000-00-00, from the right."""
    from babel.numbers import format_decimal, get_decimal_symbol

    wide = [text for kind, text in pieces if kind == "digits"]
    patterns = [text.rstrip(",") for text in wide]  # each comma at the end means three digits less
    number = number.scaleb(2 * pieces.count(("other", "%")) - 3 * (len("".join(wide)) - len("".join(patterns))))
    with localcontext(rounding=ROUND_HALF_UP):  # as Excel does
        if len(patterns) > 1:
            left, filled = f"{round(number):0{sum(p.count('0') for p in patterns)}}", []
            for pattern in patterns[:0:-1]:
                left, filled = left[: -len(pattern)], [left[-len(pattern) :], *filled]
            filled = [left, *filled]
        elif patterns and patterns[0].lower() == "general":
            text = str(int(number)) if number == int(number) else f"{float(number):.10g}".upper()
            filled = [text.replace(".", get_decimal_symbol(where))]
        else:
            filled = [format_decimal(number, p.replace("?", "#"), where) if number or "0" in p else "" for p in patterns]
    return "".join(filled.pop(0) if kind == "digits" else text for kind, text in pieces)


def _date(value: Any, code: str, pieces: tuple[tuple[str, str], ...], where: Any, country: int) -> str:
    from babel.dates import format_date, format_datetime

    whole = abs(value) if isinstance(value, timedelta) else timedelta()
    value = datetime.min + whole if isinstance(value, timedelta) else value
    value = datetime.combine(date(1900, 1, 1), value) if isinstance(value, time) else value
    if code.lower() in UNCHOSEN and value.time() == time():
        return value.date().isoformat()
    if country == 0xF800:  # the country's long date, and below its time
        return format_date(value, "long", locale=where)
    if (short := COUNTRY.get(code.lower())) is not None:  # 3/5 is March or May: only what is sure is written so
        return format_datetime(value, ("dd.MM.yyyy" if where.language == "ru" else "yyyy-MM-dd") + short, locale=where)
    parts = _pattern(pieces, () if country == 0xF400 and where.language != "en" else ("am/pm", "a/p"))
    return format_datetime(value, "".join(part if isinstance(part, str) else str(whole // part) for part in parts), locale=where)


@lru_cache  # a sheet has one format for thousands of cells
def _pattern(pieces: tuple[tuple[str, str], ...], noon: tuple[str, ...]) -> list[str | timedelta]:
    """What babel calls a pattern, in parts; a unit of time for how many of them have passed."""
    marks = [text.lower() if kind in ("date", "elapsed") else "" for kind, text in pieces]
    parts = []
    for at, ((kind, text), mark) in enumerate(zip(pieces, marks, strict=True)):
        before, after = "".join(marks[:at])[-1:], "".join(marks[at + 1 :])[:1]
        if kind == "elapsed":
            parts.append(UNITS[mark[0]])
        elif mark[:1] == "m" and before != "h" and after != "s":
            parts.append(len(mark) * ("L" if len(mark) > 2 and not {"d", "dd"} & set(marks) else "M"))  # январь, 5 января
        elif mark[:1] == "h":
            parts.append(mark if set(noon) & set(marks) else mark.upper())
        elif mark not in ("am/pm", "a/p") or mark in noon:
            parts.append(LETTERS.get(mark, mark).replace("0", "S") or "'" + text.replace("'", "''") + "'")
    return parts
