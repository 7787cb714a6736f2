"""Excel: a cell becomes the text that Excel shows."""

import re
import zipfile
from datetime import datetime, time, timedelta

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


def test_a_number_format_is_taken_apart_once(tmp_path):
    code = "dd.mm.yyyy" + "~" * 200
    before = excel._pattern.cache_info().misses
    assert len({answer(row) for row in read(tmp_path, [(DAY + timedelta(days=i), code) for i in range(60)]).rows}) == 60
    assert excel._pattern.cache_info().misses == before + 1


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


def changed(tmp_path, cells, **changes):
    """Read such a sheet after a change of its parts; changes: sheet or strings, and what to do with its text."""
    book = openpyxl.Workbook()
    for row in (["question", "answer"], *cells):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(tmp_path / "b.xlsx", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            text = old.read(name).decode()
            new.writestr(name, next((change(text) for part, change in changes.items() if part in name), text))
        more = changes.get("strings", str)("")
        new.writestr(
            "xl/sharedStrings.xml", f'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">{more}</sst>'
        )
    return read_rows(tmp_path / "b.xlsx")


STRINGS = 'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"'


def listing(text: str) -> str:
    return text.replace("</Types>", f'<Override PartName="/xl/sharedStrings.xml" {STRINGS}/></Types>')


def test_a_text_that_is_stored_once_costs_no_more_than_it_has_room(tmp_path, monkeypatch):
    """It may stand in thousands of cells of one row. They are counted before any is made, and a little of each tells the language."""
    made, looked, find = [], [], re.findall
    monkeypatch.setattr(sources, "ROOM", 2**21)
    monkeypatch.setattr(excel, "_text", lambda cell, *_: made.append(1) or cell.value)
    monkeypatch.setattr(excel.re, "findall", lambda pattern, text, *how: looked.append(len(text)) or find(pattern, text, *how))
    rows = "".join("<row>" + '<c t="s"><v>0</v></c>' * 50 + "</row>" for _ in range(60))
    with pytest.raises(DatasetError, match="unpacks to more than"):
        changed(
            tmp_path,
            [],
            Content=listing,
            strings=lambda _: f"<si><t>{'ab' * 10_000}</t></si>",
            sheet1=lambda text: re.sub("<row.*</row>", rows, text),
        )
    assert len(made) == 2 * 50
    assert max(looked) <= 60 * 50 * 1000


N = 30_000
OUTSIDE = {  # an element of a sheet that is no cell, many times
    "brk": f"<rowBreaks>{'<brk/>' * N}</rowBreaks>",
    "format": '<conditionalFormatting sqref="A1"><cfRule type="expression" priority="1"/></conditionalFormatting>' * (N // 2),
    "ranges": f'<conditionalFormatting sqref="{"A1 " * N}"/>',
    "validation": "<dataValidations>" + '<dataValidation sqref="A1"/>' * N + "</dataValidations>",
    "scenario": "<scenarios>" + '<scenario name="a"/>' * N + "</scenarios>",
    "merged": "<mergeCells>" + '<mergeCell ref="A1:B2"/>' * N + "</mergeCells>",
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_what_is_no_cell_becomes_no_object(tmp_path, monkeypatch, kind):
    """openpyxl makes a slow one of each, of a sheet and of each run of a text: a small file took minutes and gigabytes."""
    made, make = [], openpyxl.descriptors.serialisable.Serialisable.from_tree.__func__
    counted = classmethod(lambda kind, tree: made.append(1) or make(kind, tree))
    monkeypatch.setattr(openpyxl.descriptors.serialisable.Serialisable, "from_tree", counted)
    runs = f'<row r="3"><c t="inlineStr"><is>{"<r><t>a</t></r>" * 5000}</is></c><c t="s"><v>0</v></c></row></sheetData>{OUTSIDE[kind]}'
    source = changed(
        tmp_path,
        [["a", "b"]],
        Content=listing,
        strings=lambda _: f"<si>{'<r><rPr><b/></rPr><t>b</t></r>' * 5000}<rPh><t>no</t></rPh></si>",
        sheet1=lambda text: text.replace("</sheetData>", runs),
    )
    assert [turn["content"] for turn in source.rows[1]["messages"]] == ["a" * 5000, "b" * 5000]
    assert len(made) < 1000


@pytest.mark.parametrize("part", ["sheet1", "strings"])
def test_each_element_counts_however_short(tmp_path, monkeypatch, part):
    monkeypatch.setattr(sources, "ROOM", 2**20)
    monkeypatch.setattr(sources, "TIMES", 2)
    many = {"sheet1": lambda text: text.replace("</sheetData>", "<row/>" * N + "</sheetData>"), "strings": lambda _: "<si/>" * N}
    assert len(changed(tmp_path, [["a", "b"]], Content=listing).rows) == 1
    with pytest.raises(DatasetError, match="unpacks to more than 1 MiB"):
        changed(tmp_path, [["a", "b"]], Content=listing, **{part: many[part]})


def test_the_text_of_merged_cells_is_that_of_each_row_with_one_of_its_own(tmp_path):
    book = openpyxl.Workbook()
    for row in (["question", "answer"], ["a", "b"], ["c"], [None, None], ["d", None], ["e", "f"], [None, "g"], ["h", "i"]):
        book.active.append(row)
    for place in ("B2:B4", "A6:A7", "A8:B8"):
        book.active.merge_cells(place)
    book.save(tmp_path / "a.xlsx")
    source = read_rows(tmp_path / "a.xlsx")
    rows = [(row["line"], *(turn["content"] for turn in row["messages"])) for row in source.rows]
    assert rows == [(2, "a", "b"), (3, "c", "b"), (5, "d", ""), (6, "e", "f"), (7, "e", "g"), (8, "h", "")]
    assert source.notes[0] == "the text of merged cells was taken for each of their rows: row 3, 7"


def test_what_is_hidden_is_told_and_the_first_sheet_that_is_seen_is_read(tmp_path):
    book = openpyxl.Workbook()
    book.active.title, book.active.sheet_state = "old", "veryHidden"
    book.active.append(["question", "answer"])
    page = book.create_sheet("new")
    for row in (["question", "answer", "system"], ["a", "b", "c"], ["d", "e", "f"]):
        page.append(row)
    page.row_dimensions[3].hidden = page.column_dimensions["C"].hidden = page.column_dimensions["F"].hidden = True
    book.active = 1
    book.create_chartsheet("chart", 0)
    book.save(tmp_path / "a.xlsx")
    source = read_rows(tmp_path / "a.xlsx")
    assert source.details == "Excel, sheet 'new'"
    assert source.notes == (
        "hidden sheets, which were not read: 'old'",
        "hidden columns, which were read all the same: 'C'",
        "hidden rows, which were read all the same: row 3",
    )
    with pytest.raises(DatasetError, match=r"sheet 'old' has no rows|no row"):
        read_rows(tmp_path / "a.xlsx", sheet="old")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<row r="3"', '<row r="9"'),
        ('<row r="3"', '<row r="2"'),
        ('<row r="4"', '<row r="2000000"'),
        ('r="B3"', 'r="A3"'),
        ('r="A3"', 'r="C3"'),
        ('r="B3"', 'r="B4"'),
    ],
)
def test_rows_and_cells_out_of_order_are_refused(tmp_path, old, new):
    with pytest.raises(
        DatasetError, match=r"has rows or cells out of their order, .*; open it in Excel or LibreOffice, save it again"
    ):
        changed(tmp_path, [["a", "b"], ["c", "d"], ["e", "f"]], sheet1=lambda text: text.replace(old, new))


def test_strict_open_xml_is_named(tmp_path):
    strict = {"http://schemas.openxmlformats.org/spreadsheetml/2006/": "http://purl.oclc.org/ooxml/spreadsheetml/"}
    strict["http://schemas.openxmlformats.org/officeDocument/2006/"] = "http://purl.oclc.org/ooxml/officeDocument/"

    def turn(text):
        for ours, theirs in strict.items():
            text = text.replace(ours, theirs)
        return text

    with pytest.raises(DatasetError, match=r"saved as Strict Open XML\); save it as a usual Excel workbook"):
        changed(tmp_path, [["a", "b"]], workbook=turn, sheet1=turn, styles=turn)


def test_a_sheet_with_many_links_is_read(tmp_path):
    changed(tmp_path, [["a", "b"]])
    with zipfile.ZipFile(tmp_path / "b.xlsx", "a") as file:
        file.writestr("xl/worksheets/_rels/sheet1.xml.rels", " " * 3_000_000)
    assert len(read_rows(tmp_path / "b.xlsx").rows) == 1
