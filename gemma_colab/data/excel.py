"""Excel: the cells of one sheet as texts, as Excel shows them. Number formats are turned into Babel's patterns, which knows languages."""

import io
import locale
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, localcontext
from itertools import chain, islice
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
LAST, LONGEST = 2**20, 255  # the last row that Excel knows; signs of a number format
UNITS = {"h": timedelta(hours=1), "m": timedelta(minutes=1), "s": timedelta(seconds=1)}


def read_excel(stream: io.BufferedIOBase, sheet: str | int, name: str, fits: Callable[[float], None]) -> Records:
    """Read one sheet of an .xlsx file; a number becomes its text, an empty cell "". fits: raises where too much comes out."""
    import openpyxl

    books = [openpyxl.load_workbook(stream, read_only=True, data_only=computed, keep_links=False) for computed in (True, False)]
    pages = {page.title: page for page in books[0].worksheets}
    title = dict(enumerate(pages)).get(sheet, sheet)
    if title not in pages:
        there = f"{listed(pages)} (numbers count from 0)"
        raise DatasetError(f"{name} has no sheet {sheet!r}; it has {there}; name one as sheet= (on the command line: --sheet)")
    others = f" (other sheets: {listed(other for other in pages if other != title)})" * (len(pages) > 1)
    remedy, notes = "name each column in the header row, or delete the cells beyond it", {}
    rows = _rows(pages[title], books[1][title], notes, fits)
    return table(rows, f"{name}, sheet {title!r}", ["Excel", f"sheet {title!r}{others}"], "row", remedy, notes)


def _rows(page: Any, formulas: Any, notes: dict[str, list[int]], fits: Callable) -> Iterator[tuple[int, list[str | BadRow]]]:
    """Yield (number, texts) of each row that has any, without the empty cells at its end."""
    page.reset_dimensions()  # other programs write wrong ones
    formulas.reset_dimensions()
    rows = zip(page.iter_rows(max_row=LAST), formulas.iter_rows(max_row=LAST), strict=True)
    first = list(islice(rows, 200))
    texts = "".join(cell.value[:1000] for row, _ in first[1:] for cell in row if isinstance(cell.value, str))
    language = "ru" if len(re.findall("[а-яё]", texts, re.I)) > len(re.findall("[a-z]", texts, re.I)) else "en"
    seen = 0
    for number, (row, sources) in enumerate(chain(first, rows), 1):
        # A cell in the last column makes thousands of empty ones, and a text that is stored once may be in each.
        fits(seen := seen + sum(8 + (len(cell.value) if isinstance(cell.value, str) else 0) for cell in row))
        cells = [_text(cell, source, language) for cell, source in zip(row, sources, strict=True)]
        numbers = (text for cell, text in zip(row, cells, strict=True) if cell.data_type == "n" and isinstance(text, str))
        if language == "ru" and any("," in text for text in numbers):
            notes.setdefault("numbers are written as a Russian Excel shows them, such as 1 234,50", []).append(number)
        while cells and cells[-1] == "":
            cells.pop()
        if cells:
            yield number, cells


def _text(cell: Any, source: Any, language: str) -> str | BadRow:
    from openpyxl.utils.escape import unescape

    value = cell.value
    if value is None and source.data_type == "f" and cell.data_type != "str":  # "str": computed, and empty
        what = f"{str(source.value)[:40]}, a formula whose result is not in the file"
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


def _pieces(section: str) -> list[tuple[str, str]]:
    """Cut a number format into (kind, text), without what only takes room or gives a color. Raises `ValueError`."""
    pieces = [(m.lastgroup, m[m.lastgroup]) for m in PIECE.finditer(section)]
    if "?/" in section or any(kind == "rule" and text[:1] in "<>=" for kind, text in pieces):
        raise ValueError(section)  # a fraction, or a condition
    return [(kind, text) for kind, text in pieces if text and kind not in ("gap", "rule")]


def _number(number: Decimal, pieces: list[tuple[str, str]], where: Any) -> str:
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


def _date(value: Any, code: str, pieces: list[tuple[str, str]], where: Any, country: int) -> str:
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
    noon = () if country == 0xF400 and where.language != "en" else ("am/pm", "a/p")
    marks = [text.lower() if kind in ("date", "elapsed") else "" for kind, text in pieces]
    pattern = ""
    for at, ((kind, text), mark) in enumerate(zip(pieces, marks, strict=True)):
        before, after = "".join(marks[:at])[-1:], "".join(marks[at + 1 :])[:1]
        if kind == "elapsed":
            pattern += str(whole // UNITS[mark[0]])
        elif mark[:1] == "m" and before != "h" and after != "s":
            pattern += len(mark) * ("L" if len(mark) > 2 and not {"d", "dd"} & set(marks) else "M")  # январь, 5 января
        elif mark[:1] == "h":
            pattern += mark if set(noon) & set(marks) else mark.upper()
        elif mark not in ("am/pm", "a/p") or mark in noon:
            pattern += LETTERS.get(mark, mark).replace("0", "S") or "'" + text.replace("'", "''") + "'"
    return format_datetime(value, pattern, locale=where)
