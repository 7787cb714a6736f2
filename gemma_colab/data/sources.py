"""What a source is: a file by its first bytes, a folder, or a dataset of the Hub."""

from __future__ import annotations

import contextlib
import difflib
import gzip
import io
import os
import re
from pathlib import Path

from gemma_colab.core.errors import DatasetError
from gemma_colab.data import files
from gemma_colab.data.files import Raw
from gemma_colab.data.forms import printable
from gemma_colab.data.hub_rows import open_folder, open_hub
from gemma_colab.data.json_files import read_json
from gemma_colab.data.tables import read_csv, read_excel, read_parquet

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")  # owner/name, or owner/name:configuration


def open_source(
    source: str | Path, name: str, stack: contextlib.ExitStack, sheet: str | int, split: str, limit: int | None
) -> Raw:
    """Its records. `name` stands for it in messages; `stack` closes what is opened. Raises `DatasetError`."""
    path = Path(source)
    if os.path.isfile(path):  # os.path, which has no errors for names that no file can have
        return _open_file(path, name, sheet, stack)
    if os.path.isdir(path):
        return open_folder(path, name, split)
    if os.path.lexists(path):
        raise DatasetError(f"{name} is a broken link or a device, not a file; give the data file itself")
    if isinstance(source, str) and HUB_ID.fullmatch(source) and path.suffix.lower() not in files.DATA:
        return open_hub(source, split, limit)
    near = []
    with contextlib.suppress(OSError):
        there = sorted(p.name for p in path.absolute().parent.iterdir())
        near = difflib.get_close_matches(path.name, there, 3) or [n for n in there if Path(n).suffix.lower() in files.DATA][:8]
    hint = f"in its folder: {', '.join(map(printable, near))}" if near else "check the name and the folder, or upload it first"
    raise DatasetError(f"{name} is not there; {hint}")


def _open_file(path: Path, name: str, sheet: str | int, stack: contextlib.ExitStack) -> Raw:
    file = stack.enter_context(io.FileIO(path))
    content = io.BufferedReader(file, files.CHUNK)
    packed = content.peek(2)[:2] == b"\x1f\x8b"
    content = stack.enter_context(gzip.GzipFile(fileobj=content) if packed else content)
    head = content.read(files.CHUNK)
    files.refuse_foreign(head, name)
    if head[:4] in (b"PAR1", b"PK\x03\x04"):
        content.seek(0)
        content = io.BytesIO(content.read()) if packed else content  # both are read from their end, where gzip can't jump to
        raw = read_parquet(content, name) if head[:4] == b"PAR1" else read_excel(content, sheet, name)
    else:
        text, sample, encoding = files.open_text(content, head, name)
        stack.enter_context(text)
        kind = files.text_kind(sample, Path(path.name.lower().removesuffix(".gz")).suffix)
        raw = read_csv(text, sample, name) if kind == "table" else read_json(text, kind, name)
        raw.details.append(encoding)
    raw.details += ["gzip"] * packed
    raw.file = file
    return raw
