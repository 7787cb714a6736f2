"""From bytes to raw records: what kind of file this is, how its text is encoded, and each record with the line it begins in.

A record that can't be parsed comes as a `BadRow` in place of its value, so that a reader may put it aside and go on. A file that
can't be read at all raises `DatasetError`. Files are only read, in a stream; `.xlsx` and `{"data": [...]}` are held in memory.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import reprlib
import shutil
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gemma_colab.errors import DatasetError

MOST = 16 * 1024 * 1024  # characters in one record: far above any training example, far below the memory of a small machine
CHUNK = 256 * 1024  # bytes or characters looked at, or read at a time
BAR_FROM = 20_000_000  # bytes from which on a progress bar is worth its place
BROKEN = re.compile("[\ud800-\udfff]")  # undecodable bytes are marked so: no character of a decoded text lies there
SPACE = re.compile(r"[ \t\n\r]*")
LINES = (".jsonl", ".ndjson", ".jsonlines")
DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
BOMS = [  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
ENCODINGS = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16", "utf-32": "UTF-32"}
ENCODINGS |= {"utf-16-le": "UTF-16 (little-endian)", "utf-16-be": "UTF-16 (big-endian)", "cp1251": "Windows-1251"}
ENCODINGS |= {"cp1252": "Windows-1252", "koi8_r": "KOI8-R", "cp866": "code page 866 (DOS)"}
EIGHT_BIT = ["cp1251", "cp1252", "koi8_r", "cp866"]  # more candidates make charset-normalizer's guess on a short text worse
FOREIGN = [  # first bytes -> what it is
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"ARROW1", "an Arrow file"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x1f\x8b", "gzip inside gzip"),
]
FOREIGN += [(bytes([0x80, version]), "a Python pickle") for version in range(2, 6)]
CONTROL = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\x1b") + b"\x7f"
SAVE_AS = "save the rows as .jsonl, .json, .csv, .xlsx or .parquet and try again"


class BadRow(Exception):
    """One record that can't become a row: what is wrong, what to do, in which field. It stays inside `gemma_colab.data`."""

    def __init__(self, problem: str, remedy: str, field: str = "", content: Any = None):
        super().__init__(problem)
        self.problem, self.remedy, self.field, self.content = problem, remedy, field, content


@dataclass
class Raw:
    """An open source of records. `records` yields (line, value); a value that is a `BadRow` could not be parsed."""

    records: Iterator[tuple[int, Any]]
    details: list[str]  # "CSV", "delimiter ';'", "UTF-8"
    unit: str = "line"  # what the number counts: lines of a text file, rows of a table
    columns: list[str] | None = None  # of a table; None where each record names its own
    blank: bool = False  # None and NaN are empty cells, as in tables
    name: str = field(default="")


def shown(value: Any, most: int = 60) -> str:
    """The value in one short line: JSON's words for null and true, control characters escaped, at most `most` characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 3, 4, 4
    text = repr(value[: most + 1]) if isinstance(value, str) else short.repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"


def printable(name: str) -> str:
    """A file name that can be printed: names on disk need not be UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


@contextlib.contextmanager
def plain_words(name: str):
    """Failures of the disk, of gzip and of decoding as one `DatasetError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DatasetError(f"{name}: the gzip file is cut off or damaged ({e}); download or compress it again") from e
    except UnicodeError as e:
        raise DatasetError(f"{name}: the text breaks off in the middle of a character ({e}); download it again") from e
    except OSError as e:
        raise DatasetError(f"{name} can't be read: {e.strerror or e}; check the file and your rights to it") from e


class _Counted(io.FileIO):
    bar = None

    def readinto(self, buffer):
        size = super().readinto(buffer)
        if self.bar is not None and size:
            self.bar.update(size)
        return size


def _open_bytes(path: Path, stack: contextlib.ExitStack, progress: bool = False) -> tuple[io.BufferedIOBase, bool]:
    """The stream, unpacked if its first two bytes say gzip, and whether they do."""
    file = _Counted(path)
    stack.callback(file.close)
    if progress and path.stat().st_size > BAR_FROM:
        from tqdm.auto import tqdm

        file.bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=printable(path.name), leave=False)
        stack.callback(file.bar.close)
    stream = io.BufferedReader(file, CHUNK)
    packed = stream.peek(2)[:2] == b"\x1f\x8b"
    return (gzip.GzipFile(fileobj=stream) if packed else stream), packed


def open_file(path: Path, sheet: str | int, stack: contextlib.ExitStack, progress: bool = False) -> Raw:
    """The records of a file of any kind we read. `stack` closes what is opened. Raises `DatasetError`."""
    name = printable(path.name)
    with contextlib.ExitStack() as first:
        stream, packed = _open_bytes(path, first)
        head = stream.read(CHUNK)
    if not head:
        raise DatasetError(f"{name} is empty (0 bytes); check the download or the export that made it")
    if head[:4] == b"PAR1" or head[:4] == b"PK\x03\x04":
        stream, _ = _open_bytes(path, stack, progress)
        stream = _seekable(stream, stack) if packed else stream
        raw = _parquet(stream, name) if head[:4] == b"PAR1" else _excel(stream, name, sheet)
    else:
        _refuse_foreign(head, name)
        codec = _encoding(path, head, name)
        if not codec.startswith(("utf-16", "utf-32")):
            _refuse_binary(head, name)
        raw = _text(path, codec, stack, progress)
        raw.details.append(ENCODINGS[codec])
    raw.name = name
    raw.details += ["gzip"] * packed
    return raw


def _seekable(stream: io.BufferedIOBase, stack: contextlib.ExitStack):
    """Parquet and Excel are read from their end, which gzip can't jump to."""
    copy = stack.enter_context(tempfile.TemporaryFile())
    shutil.copyfileobj(stream, copy, CHUNK)
    copy.seek(0)
    return copy


def _refuse_foreign(head: bytes, name: str) -> None:
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"version https://git-lfs"):
        raise DatasetError(f"{name} is a Git LFS pointer, not the data; run `git lfs pull` and try again")
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise DatasetError(f"{name} is an old Excel file (.xls) or has a password; save it as .xlsx without one and try again")
    for magic, what in FOREIGN:
        # two letters may begin a text as well; a program has zero bytes soon after
        if head.startswith(magic) and (magic != b"MZ" or b"\0" in head[:64]):
            raise DatasetError(f"{name} is {what}, not a dataset; {SAVE_AS}")


def _refuse_binary(head: bytes, name: str) -> None:
    controls = len(head) - len(head.translate(None, CONTROL))
    if controls > max(2, len(head) // 20):
        raise DatasetError(f"{name} is not text: {controls} of its first {len(head)} bytes are control characters; {SAVE_AS}")


# --- encodings


def _encoding(path: Path, head: bytes, name: str) -> str:
    """The codec of a text file. A file with few broken places is UTF-8; its broken lines are found one by one later."""
    for mark, codec in BOMS:
        if head.startswith(mark):
            return codec
    if codec := _utf16_without_mark(head):
        return codec
    broken, high, sample = _broken_utf8(path)
    if broken * 10 <= high:
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=EIGHT_BIT).best()
    if best is None or best.encoding not in ENCODINGS:
        raise DatasetError(f"{name}: the encoding of its text can't be told; save it as UTF-8 and try again")
    return best.encoding


def _utf16_without_mark(head: bytes) -> str | None:
    """Spaces, digits and quotes have a zero byte in UTF-16, always on the same side."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 100 < len(head) or max(even, odd) < 2 or min(even, odd) * 20 > max(even, odd):
        return None
    codec = "utf-16-le" if odd > even else "utf-16-be"
    text = head[: len(head) // 2 * 2].decode(codec, "surrogatepass")
    odd_ones = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") for c in text) - sum(map(text.count, "\t\n\r"))
    return codec if odd_ones * 100 <= len(text) else None


def _broken_utf8(path: Path, enough: int = 1 << 20) -> tuple[int, int, bytes]:
    """Bytes in invalid sequences, bytes beyond ASCII, and a sample around the first of these.

    Stops after `enough` bytes beyond ASCII: by then the encoding is clear.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    broken, high, sample = 0, 0, b""
    with contextlib.ExitStack() as stack:
        stream, _ = _open_bytes(path, stack)
        while (chunk := stream.read(CHUNK)) and high < enough:
            if chunk.isascii() and not decoder.getstate()[0]:
                continue
            sample = sample or chunk
            high += len(chunk.translate(None, bytes(range(128))))
            broken += len(BROKEN.findall(decoder.decode(chunk)))
    return broken + (len(BROKEN.findall(decoder.decode(b"", True))) if not chunk else 0), high, sample


def _broken_place(text: str) -> BadRow | None:
    """For a text with a byte that the encoding does not know."""
    if text.isascii() or not (hit := BROKEN.search(text)):
        return None
    what = f"byte 0x{ord(hit[0]) & 0xFF:02X}" if "\udc80" <= hit[0] <= "\udcff" else "half a character"
    remedy = "save the file as UTF-8 anew, or retype that place"
    return BadRow(f"{what} at character {hit.start() + 1} does not fit the file's encoding", remedy, content=text)


# --- text: JSON lines, JSON, CSV


def _text(path: Path, codec: str, stack: contextlib.ExitStack, progress: bool) -> Raw:
    errors = "surrogatepass" if codec.startswith(("utf-16", "utf-32")) else "surrogateescape"

    def opened(newline: str | None, **bar):
        stream, _ = _open_bytes(path, stack, **bar)
        return stack.enter_context(io.TextIOWrapper(stream, encoding=codec, errors=errors, newline=newline))

    with opened(None) as stream:
        sample = stream.read(CHUNK)
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    kind = text_kind(sample, suffix)
    if kind == "table":
        return _csv(opened("", progress=progress), sample, printable(path.name))
    if kind == "lines":
        return Raw(_json_lines(opened("", progress=progress)), ["JSON lines"])
    raw = Raw(iter(()), ["JSON"])
    raw.records = _json(_Window(opened(None, progress=progress)), raw.details, printable(path.name))
    return raw


def text_kind(sample: str, suffix: str) -> str:
    """ "lines" (one JSON object a line), "json" (one list or object) or "table", by content first and by name where in doubt."""
    lines = [line.strip() for line in sample.split("\n") if line.strip()]
    if not lines or lines[0][0] not in "[{":
        return "lines" if suffix in (*LINES, ".json") else "table"
    first, second = lines[0], lines[1] if len(lines) > 1 else ""
    whole = _is_json(first)
    if suffix in (".csv", ".tsv") and not whole:
        return "table"
    if first[0] == "[":
        return "lines" if whole and second.startswith("{") else "json"
    if whole:
        return "lines" if second else "json"
    goes_on = first[-1] in "[{,:"  # as in a JSON text spread over lines
    if suffix in LINES:
        return "lines" if second.startswith("{") or not goes_on else "json"
    return "lines" if second.startswith("{") and not goes_on else "json"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Decoder:
    """json.JSONDecoder that also notices what JSON allows but a row may not have: a key twice, a number of thousands of digits."""

    def __init__(self):
        self.faults: list[BadRow] = []
        self.json = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._int)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict:
        new = dict(pairs)
        if len(new) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            self.faults.append(BadRow("this key stands twice in one object", "keep one of the two", field=twice))
        return new

    def _int(self, digits: str) -> int:
        if len(digits) < 1000:
            return int(digits)
        self.faults.append(BadRow(f"a number of {len(digits)} digits", "shorten it, or write it as a text"))
        return 0

    def decode(self, text: str, at: int) -> tuple[Any, int]:
        """A value and the place behind it. Raises json.JSONDecodeError, and `BadRow` for a nesting too deep."""
        self.faults.clear()
        try:
            return self.json.raw_decode(text, at)
        except RecursionError:
            raise BadRow("too many brackets inside each other", "a row is an object of texts; take the nesting out") from None

    def checked(self, value: Any, text: str) -> Any:
        bad = self.faults[0] if self.faults else _broken_place(text)
        if bad:
            bad.content = text
        return bad or value


def _not_json(error: json.JSONDecodeError, at: int, text: str) -> BadRow:
    what = f"not valid JSON ({error.msg} at character {error.pos - at + 1})"
    return BadRow(what, "write it as one whole JSON object", content=text)


def _short_lines(stream: io.TextIOBase) -> Iterator[tuple[int, str | None]]:
    """Numbered lines; None for one that is longer than a record may be."""
    number = 0
    while line := stream.readline(MOST):
        number += 1
        if len(line) < MOST or line.endswith(("\n", "\r")):
            yield number, line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = stream.readline(MOST)
        yield number, None


def _json_lines(stream: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    decoder = _Decoder()
    for number, line in _short_lines(stream):
        if line is None:
            yield number, _too_long()
        elif line := line.strip(" \t\r\n"):
            yield number, _json_line(decoder, line)


def _too_long() -> BadRow:
    return BadRow(f"more than {MOST:,} characters", "write one row a line, or cut that text")


def _json_line(decoder: _Decoder, line: str) -> Any:
    try:
        value, end = decoder.decode(line, 0)
        if end < len(line):
            raise json.JSONDecodeError("Extra data", line, end)
    except json.JSONDecodeError as e:
        return _broken_place(line) or _not_json(e, 0, line)
    except BadRow as bad:
        bad.content = line
        return bad
    return decoder.checked(value, line)


class _Window:
    """A part of a JSON text that moves on value by value, and grows (by doubling: no text is parsed often) till one fits in."""

    def __init__(self, stream: io.TextIOBase):
        self.stream, self.text, self.at, self.line, self.ended = stream, "", 0, 1, False
        self.decoder = _Decoder()
        self.indent: str | None = None  # white space before the value, where the value is the first thing in its line

    def _grow(self) -> None:
        self.text = self.text[self.at :]
        self.at = 0
        part = self.stream.read(max(CHUNK, len(self.text)))
        self.ended = not part
        self.text += part

    def move(self, to: int) -> str:
        passed = self.text[self.at : to]
        self.line += passed.count("\n")
        self.at = to
        return passed

    def next(self) -> str:
        """The next character that is not white space, or "" at the end."""
        space = ""
        while True:
            space += self.move(SPACE.match(self.text, self.at).end())
            if self.at < len(self.text) or self.ended:
                break
            self._grow()
        self.indent = space.rpartition("\n")[2] if "\n" in space else None
        return self.text[self.at : self.at + 1]

    def skip(self) -> str:
        """Pass the character that `next` saw, and see the next."""
        self.move(self.at + 1)
        return self.next()

    def value(self) -> Any:
        """The value that begins here, a `BadRow` if it is whole but not fit for a row. Raises `BadRow` where it can't be parsed."""
        while True:
            try:
                value, end = self.decoder.decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    return self.decoder.checked(value, self.move(end))
            except json.JSONDecodeError as e:
                # a value that goes on behind the window fails at the window's end, or in a text that is not closed
                if self.ended or not (e.msg.startswith("Unterminated") or e.pos > len(self.text) - 16):
                    raise _not_json(e, self.at, "") from None
            if len(self.text) - self.at > MOST:
                raise _too_long()
            self._grow()

    def skip_bad(self, bad: BadRow, indent: str | None) -> bool:
        """Go on at the next line that begins like the bad value's own. False where there is none: the rest can't be read."""
        there = re.compile(rf"\n{re.escape(indent or '')}\{{")
        while indent is not None:
            if hit := there.search(self.text, self.at):
                bad.content = self.move(hit.end() - 1)
                return True
            if self.ended or len(self.text) - self.at > MOST:
                break
            self._grow()
        bad.problem += "; everything from here on can't be read"
        bad.content = self.text[self.at :]
        return False


def _json(window: _Window, details: list[str], name: str) -> Iterator[tuple[int, Any]]:
    """A list of rows; an object that holds one; columns; one row; or several objects one after another."""
    if window.next() == "[":
        yield from _array(window)
        yield from _nothing_more(window)
        return
    line, members = window.line, _members(window)
    if isinstance(members, BadRow) or window.next() == "{":
        yield line, _as_row(members)
        while not isinstance(members, BadRow) and window.next() == "{":
            line, members = window.line, _members(window)
            yield line, _as_row(members)
    else:
        yield from _unwrapped(members, line, details, name)
    if not isinstance(members, BadRow):
        yield from _nothing_more(window)


def _nothing_more(window: _Window) -> Iterator[tuple[int, BadRow]]:
    if window.next():
        rest = window.text[window.at : window.at + MOST]
        yield window.line, BadRow("text behind the end of the JSON", "write one list, or one object a line", content=rest)


def _array(window: _Window) -> Iterator[tuple[int, Any]]:
    if window.skip() == "]":
        window.move(window.at + 1)
        return
    while True:
        line, indent, bad = window.line, window.indent, None
        try:
            yield line, window.value()
            sign = window.next()
        except BadRow as e:
            bad = e
        if not bad and sign not in (",", "]"):
            what = f"{shown(sign)} where a comma or ] is due" if sign else "the list breaks off: its ] is missing"
            line, indent, bad = window.line, window.indent, BadRow(what, "check the file's end, or download it again")
        if bad:
            go_on = window.skip_bad(bad, indent)
            yield line, bad
            if not go_on:
                window.move(len(window.text))
                return
            window.indent = indent
        elif sign == "]":
            window.move(window.at + 1)
            return
        else:
            window.skip()


def _members(window: _Window) -> list[tuple[str, Any]] | BadRow:
    """The keys and values of the object that begins here; a list comes as list[(line, value)], so that rows keep their lines."""
    members, start = [], window.line
    sign = window.skip()
    try:
        while sign != "}" or members:
            key = window.value() if sign == '"' else None
            if not isinstance(key, str) or window.next() != ":":
                raise BadRow(f"line {window.line}: not valid JSON (a key in quotes and a colon are due)", "correct that place")
            sign = window.skip()
            value = list(_array(window)) if sign == "[" else window.value()
            members.append((key, value))
            if (sign := window.next()) not in (",", "}"):
                raise BadRow(f"the object of line {start} is not closed by }}", "check the file's end, or download it again")
            if sign == "}":
                break
            sign = window.skip()
    except BadRow as bad:
        bad.content = bad.content or window.text[window.at : window.at + MOST]
        return bad
    window.move(window.at + 1)
    return members


def _as_row(members: list[tuple[str, Any]] | BadRow) -> Any:
    if isinstance(members, BadRow):
        return members
    for key, value in members:
        parts = [v for _, v in value] if isinstance(value, list) else [value]
        if bad := next((v for v in parts if isinstance(v, BadRow)), None):
            return bad
        if sum(key == other for other, _ in members) > 1:
            return BadRow("this key stands twice in one object", "keep one of the two", field=key)
    return {key: [v for _, v in value] if isinstance(value, list) else value for key, value in members}


def _unwrapped(members: list[tuple[str, Any]], line: int, details: list[str], name: str) -> Iterator[tuple[int, Any]]:
    lists = {key: value for key, value in members if isinstance(value, list)}
    of_objects = [key for key, value in lists.items() if _holds_rows(value)]
    if len(of_objects) > 1:
        raise DatasetError(
            f"{name} holds several lists of rows: {', '.join(map(shown, of_objects[:8]))}; save the one you want to its own file"
        )
    if of_objects:
        details.append(f"the list {shown(of_objects[0])} in it")
        yield from lists[of_objects[0]]
        return
    columns = {key: value if isinstance(value, list) else _pandas_column(value) for key, value in members}
    if members and len(columns) == len(members) and all(column is not None for column in columns.values()):
        if len({len(column) for column in columns.values()}) > 1:
            sizes = ", ".join(f"{shown(key)} {len(column)}" for key, column in islice(columns.items(), 8))
            raise DatasetError(f"{name} holds columns of different lengths ({sizes}); give each row a value in each column")
        if not any(_turns(value) for value in lists.values()):
            details.append("columns turned into rows")
            for cells in zip(*columns.values(), strict=True):
                yield cells[0][0], _as_row(list(zip(columns, (value for _, value in cells), strict=True)))
            return
    yield line, _as_row(members)


def _pandas_column(value: Any) -> list[tuple[int, Any]] | None:
    """pandas' `to_json` writes a column as {"0": ..., "1": ...}."""
    numbered = isinstance(value, dict) and value and all(key.isdigit() for key in value)
    return [(int(key) + 1, cell) for key, cell in value.items()] if numbered else None


def _holds_rows(value: list[tuple[int, Any]]) -> bool:
    return any(isinstance(v, dict) for _, v in value) and not _turns(value)


def _turns(value: list[tuple[int, Any]]) -> bool:
    """Whether these are the turns of one conversation."""
    first = value[0][1] if value else None
    return isinstance(first, dict) and ("role" in first or "from" in first) and ("content" in first or "value" in first)


def _header(cells: list[str], name: str) -> list[str]:
    """Column names. Raises `DatasetError` for a name that is missing or given twice."""
    names = [cell.strip() for cell in cells]
    if any(BROKEN.search(n) for n in names):
        raise DatasetError(f"{name}, header: a byte that does not fit the file's encoding; save the file as UTF-8")
    if "" in names:
        raise DatasetError(
            f"{name}, header: column {names.index('') + 1} of {len(names)} has no name; name it in the first line, or delete it"
            " (from pandas: to_csv(..., index=False))"
        )
    if twice := next((n for i, n in enumerate(names) if n in names[:i]), None):
        raise DatasetError(f"{name}, header: two columns are called {shown(twice)}; rename one of them")
    return names


class _Lines:
    """Physical lines for csv.reader, numbered, with those of the present record kept so that they can be given back."""

    def __init__(self, stream: io.TextIOBase):
        self.source, self.number, self.taken = iter(_short_lines(stream)), 0, []

    def __iter__(self):
        return self

    def __next__(self) -> str:
        self.number, line = next(self.source)
        self.taken.append((self.number, line))
        if line is None or sum(len(line) for _, line in self.taken[-1:]) > MOST:
            raise csv.Error(f"more than {MOST:,} characters")
        return line

    def give_back(self) -> None:
        """All lines of the record but its first, up to 1000 (more are not worth a second look)."""
        again = self.taken[1:] if len(self.taken) <= 1000 else []
        self.source = chain(again, self.source)


def _csv(stream: io.TextIOBase, sample: str, name: str) -> Raw:
    csv.field_size_limit(max(csv.field_size_limit(), MOST))
    told = re.match(r'"?sep=(.)"?\r?\n', sample)  # Excel's own way to name the delimiter
    sample = sample[told.end() :] if told else sample
    delimiter = told[1] if told else find_delimiter(sample)
    records = _csv_records(stream, delimiter, skip=1 if told else 0)
    line, header = next(records, (0, None))
    if header is None:
        raise DatasetError(f"{name} has no rows, only empty lines; check the export that made it")
    if isinstance(header, BadRow):
        raise DatasetError(f"{name}, line {line}, header: {header.problem}; {header.remedy}")
    if len(header) < 2:
        raise DatasetError(
            f"{name} has one column only, {shown(header[0])}; rows need a question and an answer, in columns separated by"
            " a comma, semicolon, tab or |, with a first line of names such as instruction,input,output"
        )
    columns = _header(header, name)
    said = f"delimiter {DELIMITERS.get(delimiter, repr(delimiter))}"
    return Raw(_named(records, columns), ["CSV", said], columns=columns, blank=True)


def _named(records: Iterator[tuple[int, Any]], columns: list[str]) -> Iterator[tuple[int, Any]]:
    for line, cells in records:
        if isinstance(cells, BadRow):
            yield line, cells
        elif len(cells) != len(columns):
            remedy = "put a text that holds the delimiter or a line break in double quotes, or add the missing cells"
            yield line, BadRow(f"{len(cells)} cells where the header has {len(columns)}", remedy, content=cells)
        else:
            yield line, dict(zip(columns, cells, strict=True))


def _csv_records(stream: io.TextIOBase, delimiter: str, skip: int = 0) -> Iterator[tuple[int, Any]]:
    """(line where it begins, cells). After a fault, such as a quote that is never closed, goes on with the next line."""
    lines = _Lines(stream)
    for _ in range(skip):
        next(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)  # strict: a stray quote is a fault, not a swallowed row
    while True:
        lines.taken = []
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            text = "".join(line or "" for _, line in lines.taken)
            what = "a quotation mark is opened and never closed" if "unexpected end" in str(e) else str(e)
            remedy = 'close each quoted text, and write a quote inside it twice ("")'
            yield lines.taken[0][0], _broken_place(text) or BadRow(what, remedy, content=text)
            lines.give_back()
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if any(cell.strip() for cell in cells):
            bad = next(filter(None, map(_broken_place, cells)), None)
            yield lines.taken[0][0], bad or cells


def find_delimiter(sample: str) -> str:
    """Of comma, semicolon, tab and |: csv.Sniffer's guess if the columns bear it out, else the one that makes the best table."""
    from gemma_colab.data.forms import is_known

    def table(delimiter):
        rows = [cells for _, cells in _csv_records(io.StringIO(sample, newline=""), delimiter) if isinstance(cells, list)]
        rows = rows[:-1] if len(sample) >= CHUNK else rows  # the last one is cut
        even = sum(len(cells) == len(rows[0]) for cells in rows) / len(rows) if rows else 0
        columns = rows[0] if rows and len(rows[0]) > 1 else []
        return bool(columns), is_known(columns), even, len(columns)

    try:
        guess = csv.Sniffer().sniff(sample[: 16 * 1024], delimiters="".join(DELIMITERS)).delimiter
    except csv.Error:
        guess = ","
    several, _, even, _ = table(guess)
    if several and even >= 0.9 and is_plain(guess):
        return guess
    return max(DELIMITERS, key=table)


def is_plain(delimiter: str) -> bool:
    return delimiter in DELIMITERS


# --- tables with types


def _excel(stream, name: str, sheet: str | int) -> Raw:
    """One sheet of an .xlsx file; a number becomes its text, an empty cell ""."""
    try:
        members = zipfile.ZipFile(stream).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as e:
        raise DatasetError(f"{name} is a damaged zip or .xlsx file ({e}); download or save it again") from e
    if "xl/workbook.xml" not in members:
        what = "an .xlsb workbook; save it as .xlsx" if "xl/workbook.bin" in members else "a zip archive; unpack it"
        raise DatasetError(f"{name} is {what} and give the data file inside it")
    try:
        import openpyxl

        stream.seek(0)
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        names = [one.title for one in book.worksheets]
        found = _sheet(names, sheet, name)
        book.worksheets[found].reset_dimensions()  # other programs write wrong ones
        rows = enumerate(book.worksheets[found].iter_rows(values_only=True), 1)
        header = next((cells for _, row in rows if any(cells := _cells(row))), [])
    except ImportError as e:
        raise DatasetError(f"{name} is an Excel file, and openpyxl is missing; run `pip install openpyxl`") from e
    except DatasetError:
        raise
    except Exception as e:  # zip, XML and openpyxl each have their own errors for a damaged file
        raise DatasetError(f"{name} is not an .xlsx file Python can read ({e}); open it and save it again as .xlsx") from e
    if not header:
        raise DatasetError(f"{name}, sheet {names[found]!r}, has no rows; its other sheets: {', '.join(names)}")
    columns = _header(header, name)
    records = _named(_excel_rows(rows, len(columns), name), columns)
    return Raw(records, ["Excel", f"sheet {names[found]!r}"], "row", columns, blank=True)


def _sheet(names: list[str], sheet: str | int, name: str) -> int:
    if isinstance(sheet, str) and sheet in names:
        return names.index(sheet)
    if isinstance(sheet, int) and 0 <= sheet < len(names):
        return sheet
    raise DatasetError(f"{name} has no sheet {sheet!r}; it has {', '.join(map(repr, names))} (numbers count from 0)")


def _cells(row: tuple) -> list[str]:
    """Texts of a row, without the empty cells at its end."""
    cells = ["" if v is None else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in row]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _excel_rows(rows: Iterator[tuple[int, tuple]], width: int, name: str) -> Iterator[tuple[int, list[str]]]:
    try:
        for number, row in rows:
            if any(cells := _cells(row)):
                yield number, cells + [""] * (width - len(cells))
    except Exception as e:
        raise DatasetError(f"{name} breaks off in the middle ({e}); open it and save it again as .xlsx") from e


def _parquet(stream, name: str) -> Raw:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(stream)
        columns = file.schema_arrow.names
    except Exception as e:  # Arrow's errors, OSError among them
        raise DatasetError(f"{name} is a damaged or unfinished Parquet file ({shown(str(e))}); download it again") from e
    return Raw(_parquet_rows(file, name), ["Parquet"], "row", columns, blank=True)


def _parquet_rows(file, name: str) -> Iterator[tuple[int, dict]]:
    number = 0
    try:
        for batch in file.iter_batches(batch_size=256):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except Exception as e:
        raise DatasetError(f"{name} can't be read beyond row {number} ({shown(str(e))}); download it again") from e
