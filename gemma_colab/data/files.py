"""From bytes to text: gzip, what a file is, how its text is encoded, and a plain word for files that are no datasets.

Files are only read, and in a stream.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.forms import BadRow
from gemma_colab.data.records import BROKEN

MOST = 16 * 1024 * 1024  # characters in one record: far above any training example, far below the memory of a small machine
CHUNK = 256 * 1024  # bytes or characters looked at, or read at a time
BAR_FROM = 20_000_000  # bytes from which on a progress bar is worth its place
LINES = (".jsonl", ".ndjson", ".jsonlines")
DATA = (*LINES, ".json", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow", ".gz")
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
ENCODINGS = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16"}
ENCODINGS |= {"utf-16-le": "UTF-16 (little-endian)", "utf-16-be": "UTF-16 (big-endian)"}
EIGHT_BIT = {"cp1251": "Windows-1251", "cp1252": "Windows-1252", "koi8_r": "KOI8-R", "cp866": "code page 866 (DOS)"}
ENCODINGS |= EIGHT_BIT  # more candidates would make charset-normalizer's guess on a short text worse
SAVE_AS = "save the rows as .jsonl, .json, .csv, .xlsx or .parquet and try again"
FOREIGN = {b"%PDF": "a PDF", b"\x89PNG": "a PNG image", b"MZ\x90\0": "a Windows program", b"ARROW1": "an Arrow file"}
FOREIGN |= {b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive", b"\x1f\x8b": "gzip inside gzip"}
FOREIGN |= {bytes([0x80, version]): "a Python pickle" for version in range(2, 6)}
FOREIGN = {start: f"{what}, not a dataset; {SAVE_AS}" for start, what in FOREIGN.items()}
FOREIGN[b"version https://git-lfs"] = "a Git LFS pointer, not the data; run `git lfs pull` and try again"
FOREIGN[b"\xd0\xcf\x11\xe0"] = "an old Excel file (.xls) or has a password; save it as .xlsx without one and try again"
CONTROL = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\x1b") + b"\x7f"


@dataclass
class Raw:
    """An open source of records. `records` yields (line, value); a value that is a `BadRow` could not be parsed."""

    records: Iterator[tuple[int, Any]]
    details: list[str]  # "CSV", "delimiter ';'", "UTF-8"
    unit: str = "line"  # what the number counts: lines of a text file, rows of a table
    file: io.FileIO | None = None  # whose position tells the progress
    table: bool = False  # all records have the same columns, and None and NaN are empty cells


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
        raise DatasetError(f"{name}: {e.strerror or e}; check the file and your rights to it") from e


def with_bar(raw: Raw, name: str) -> Iterator[tuple[int, Any]]:
    """The records, with a progress bar for a file that takes a while."""
    size = os.fstat(raw.file.fileno()).st_size if raw.file else 0
    if size <= BAR_FROM:
        yield from raw.records
        return
    from tqdm.auto import tqdm

    with tqdm(total=size, unit="B", unit_scale=True, desc=name, leave=False) as bar:
        for record in raw.records:
            bar.update(raw.file.tell() - bar.n)
            yield record


def refuse_foreign(head: bytes, name: str) -> None:
    if not head:
        raise DatasetError(f"{name} is empty (0 bytes); check the download or the export that made it")
    for start, what in FOREIGN.items():
        if head.startswith(start):
            raise DatasetError(f"{name} is {what}")


def open_text(content: io.BufferedIOBase, head: bytes, name: str) -> tuple[io.TextIOWrapper, str, str]:
    """The decoded stream, a sample of it, and its encoding in words.

    A byte that the encoding lacks becomes a lone surrogate: `broken_place` finds it in its own line, and nothing else is lost.
    """
    codec = _encoding(content, head, name)
    content.seek(0)
    errors = "surrogatepass" if codec.startswith("utf-16") else "surrogateescape"
    sample = codecs.getincrementaldecoder(codec)(errors).decode(head, final=len(head) < CHUNK)
    return io.TextIOWrapper(content, encoding=codec, errors=errors, newline=""), sample, ENCODINGS[codec]


def _encoding(content: io.BufferedIOBase, head: bytes, name: str) -> str:
    """The codec of a text. A text with few broken places is UTF-8."""
    for mark, codec in BOMS.items():
        if head.startswith(mark):
            return codec
    if codec := _utf16_without_mark(head):
        return codec
    controls = len(head) - len(head.translate(None, CONTROL))
    if controls > max(2, len(head) // 20):
        raise DatasetError(f"{name} is not text: {controls} of its first {len(head)} bytes are control characters; {SAVE_AS}")
    sample = chunk = head * (not head.isascii())
    while len(sample) < 4 * CHUNK and (chunk := content.read(CHUNK)):
        sample += chunk * (not chunk.isascii())  # a text may be ASCII for long, and then not
    broken = len(BROKEN.findall(codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(sample, final=not chunk)))
    if broken * 10 <= len(sample.translate(None, bytes(range(128)))):
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(sample[:CHUNK], cp_isolation=list(EIGHT_BIT)).best()
    if best is None or best.encoding not in ENCODINGS:
        raise DatasetError(f"{name}: the encoding of its text can't be told; save it as UTF-8 and try again")
    return best.encoding


def _utf16_without_mark(head: bytes) -> str | None:
    """Spaces, digits and quotes have a zero byte in UTF-16, always on the same side."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) * 100 < len(head) or max(even, odd) < 2 or min(even, odd) * 4 > max(even, odd):
        return None
    codec = "utf-16-le" if odd > even else "utf-16-be"
    text = head[: len(head) // 2 * 2].decode(codec, "surrogatepass")
    odd_ones = sum(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") for c in text) - sum(map(text.count, "\t\n\r"))
    return codec if odd_ones * 100 <= len(text) else None


def broken_place(text: str) -> BadRow | None:
    """For a text with a byte that the encoding does not know."""
    if text.isascii() or not (hit := BROKEN.search(text)):
        return None
    what = f"byte 0x{ord(hit[0]) & 0xFF:02X}" if "\udc80" <= hit[0] <= "\udcff" else "half a character"
    what += f" at character {hit.start() + 1} does not fit the file's encoding"
    return BadRow(what, "save the file as UTF-8 anew, or retype that place", content=text)


def numbered_lines(stream: io.TextIOBase) -> Iterator[tuple[int, str | BadRow]]:
    """Physical lines; a `BadRow` for one that is longer than a record may be."""
    number = 0
    while line := stream.readline(MOST):
        number += 1
        whole = len(line) < MOST or line.endswith(("\n", "\r"))
        yield number, line if whole else too_long()
        while line and not whole:
            line = stream.readline(MOST)
            whole = line.endswith(("\n", "\r"))


def too_long() -> BadRow:
    return BadRow(f"more than {MOST:,} characters", "write one row a line, or cut that text")


def text_kind(sample: str, suffix: str) -> str:
    """ "lines" (one JSON object a line), "json" (one list or object) or "table", by content first and by name where in doubt."""
    first, second = [*(line.strip() for line in sample.split("\n") if line.strip()), "", ""][:2]
    if first[:1] not in ("[", "{"):
        return "lines" if suffix in (*LINES, ".json") else "table"
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        if suffix in (".csv", ".tsv") and len(first) > 1:
            return "table"
        signs = (second.startswith("{"), first[-1] not in "[{,:")  # the other sign: a JSON text spread over lines
        return "lines" if first[0] == "{" and (any(signs) if suffix in LINES else all(signs)) else "json"
    return "lines" if second.startswith("{") or (second and first[0] == "{") else "json"
