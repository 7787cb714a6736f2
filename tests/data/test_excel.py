"""Excel: a cell becomes the text that Excel shows."""

import re
import zipfile
from datetime import datetime, time, timedelta
from functools import partial
from types import SimpleNamespace

import openpyxl
import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.core.rows import answer
from gemma_colab.data import excel, sources
from gemma_colab.data.reading import read_rows

DAY = datetime(2024, 1, 5, 13, 5)
MONEY = '_-* #,##0.00\\ [$₽-419]_-;\\-* #,##0.00\\ [$₽-419]_-;_-* "-"??\\ [$₽-419]_-;_-@_-'


def read(tmp_path, cells, ask="How much?", **options):
    """Read a sheet with one answer a row; cells: (value, number format)."""
    book = openpyxl.Workbook()
    book.active.append(["question", "answer"])
    for i, (value, code) in enumerate(cells, 2):
        book.active.append([ask, value])
        if code:
            book.active.cell(i, 2).number_format = code
    book.save(tmp_path / "a.xlsx")
    return read_rows(tmp_path / "a.xlsx", **options)


@pytest.mark.parametrize(
    ("value", "code", "russian", "english"),
    [
        (0.15, "0%", "15%", "15%"),
        (0.155, "0.0%", "15,5%", "15.5%"),
        (42, "00000", "00042", "00042"),
        (1234.5, '#,##0.00 "₽"', "1 234,50 ₽", "1,234.50 ₽"),
        (1234.5, MONEY, "1 234,50 ₽", "1 234,50 ₽"),  # the format names its language
        (-1234.5, MONEY, "-1 234,50 ₽", "-1 234,50 ₽"),
        (0, MONEY, "- ₽", "- ₽"),
        (-5.5, '"$"#,##0.00_);[Red]\\("$"#,##0.00\\)', "($5,50)", "($5.50)"),
        (0, '#,##0;-#,##0;"нет"', "нет", "нет"),
        (0.3, "0.00", "0,30", "0.30"),
        (0.1 + 0.2, "General", "0,3", "0.3"),
        (2.5, "0", "3", "3"),
        (7, "General", "7", "7"),
        (7, "@", "7", "7"),
        (5, '0" шт."', "5 шт.", "5 шт."),
        (1500, '#,##0.0,"К"', "1,5К", "1.5К"),
        (12345.678, "0.00E+00", "1,23E+04", "1.23E+04"),
        (89161234567, "0(000)000-00-00", "8(916)123-45-67", "8(916)123-45-67"),
        (4012, "000-000", "004-012", "004-012"),
        (True, "General", "ИСТИНА", "TRUE"),
        ("00042", "@", "00042", "00042"),
        ("раз_x000D_\nдва", None, "раз\r\nдва", "раз\r\nдва"),  # how the file stores a carriage return
        (time(9, 30), "hh:mm", "09:30", "09:30"),
        (time(9, 30), "[$-F400]h:mm:ss\\ AM/PM", "9:30:00", "9:30:00 AM"),
        (timedelta(hours=36, minutes=5), "[h]:mm", "36:05", "36:05"),
        (DAY, "dd.mm.yyyy", "05.01.2024", "05.01.2024"),
        (DAY, "dd.mm.yyyy\\ hh:mm;@", "05.01.2024 13:05", "05.01.2024 13:05"),
        (DAY, "[$-419]d mmmm yyyy", "5 января 2024", "5 января 2024"),
        (DAY, "mmmm yyyy", "январь 2024", "January 2024"),
        (DAY, "h:mm AM/PM", "1:05 PM", "1:05 PM"),
        (datetime(2024, 1, 5), "mm-dd-yy", "05.01.2024", "2024-01-05"),  # the country's short date
        (datetime(2024, 1, 5), "yyyy-mm-dd h:mm:ss", "2024-01-05", "2024-01-05"),  # as pandas writes a day
    ],
)
def test_a_cell_is_read_as_excel_shows_it(tmp_path, value, code, russian, english):
    assert answer(read(tmp_path, [(value, code)], "Сколько это стоит?").rows[0]) == russian
    assert answer(read(tmp_path, [(value, code)]).rows[0]) == english


def test_what_the_language_of_a_sheet_changed_is_said(tmp_path):
    source = read(tmp_path, [(1234.5, "#,##0.00"), (7, "0"), (2.5, "0.0")], "Сколько?")
    assert source.notes == ("numbers are written as a Russian Excel shows them, such as 1 234,50: row 2, 4",)
    assert not read(tmp_path, [(1234.5, "#,##0.00")]).notes


def test_what_cannot_be_shown_is_a_bad_row_and_nothing_is_silent(tmp_path):
    cells = [
        (0.75, "# ?/?"),
        (9161234567, "[<=9999999]###-####;(###) ###-####"),
        ("=A1&A2", None),
        ("#N/A", None),
        (5, None),
        (None, None),
    ]
    source = read(tmp_path, cells, on_bad="aside")
    assert [(row["line"], answer(row)) for row in source.rows] == [(6, "5"), (7, "")]
    told = [bad["sentence"] for bad in source.aside]
    assert [bad["line"] for bad in source.aside] == [2, 3, 4, 5]
    assert "0.75 in the number format '# ?/?', which is not known here; choose another format" in told[0]
    assert "=A1&A2, a formula whose result is not in the file; open the file in Excel, save it there" in told[2]
    assert "#N/A, the error of a formula" in told[3]


def test_a_formula_that_was_computed_is_its_result_also_an_empty_one(tmp_path):
    assert len(read(tmp_path, [("=1+1", None), ("=LEFT(A1,0)", None), ("x", None)], on_bad="aside").aside) == 2
    whole = zipfile.ZipFile(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as out:
        for name in whole.namelist():
            text = whole.read(name)
            if name.endswith("sheet1.xml"):  # what Excel adds when it saves: the results
                text = re.sub(rb"<f>1\+1</f><v ?/?>(</v>)?", b"<f>1+1</f><v>2</v>", text).replace(b'r="B3"', b'r="B3" t="str"')
            out.writestr(name, text)
    assert [answer(row) for row in read_rows(tmp_path / "b.xlsx").rows] == ["2", "", "x"]


class Page:
    """A sheet whose cells all show the one long text that is stored."""

    def reset_dimensions(self):
        pass

    def iter_rows(self, max_row):
        cell = SimpleNamespace(value="ab" * 10_000, data_type="s")
        return iter([[cell] * 50] * 60)


def test_a_text_that_is_stored_once_costs_no_more_than_it_has_room(monkeypatch):
    """It may stand in thousands of cells of one row. They are counted before any is made, and a little of each tells the language."""
    made, looked, find = [], [], re.findall
    monkeypatch.setattr(excel, "_text", lambda cell, *_: made.append(1) or cell.value)
    monkeypatch.setattr(excel.re, "findall", lambda pattern, text, *how: looked.append(len(text)) or find(pattern, text, *how))
    with pytest.raises(DatasetError, match="unpacks to more than"):
        list(excel._rows(Page(), Page(), {}, partial(sources._fits, "a.xlsx", room=2**21)))
    assert len(made) == 2 * 50
    assert max(looked) <= 60 * 50 * 1000
