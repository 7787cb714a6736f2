"""Read instruction/input/output rows from a JSONL file, with a message that names the line when one is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from gemma_colab.errors import DatasetError

FIELDS = ("instruction", "input", "output")


def read_jsonl(path: str | Path, fields: tuple[str, ...] = FIELDS) -> list[dict[str, str]]:
    """Rows of a JSONL file with these text fields, in this order; `input` may be empty or absent, other fields are left out.

    The file is only read. Raises `DatasetError` that names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path} is not a file; check the name, or upload it first")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DatasetError(f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8 and try again") from None
    if text.startswith("version https://git-lfs"):
        raise DatasetError(f"{path} is a Git LFS pointer, not the data; run `git lfs pull` and try again")
    # split("\n"), not splitlines(): a JSON string may hold U+2028, which splitlines() would cut at
    rows = [_row(line, path, number, fields) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise DatasetError(f"{path} has no rows; each line is to be one JSON object with {', '.join(fields)}")
    return rows


def _row(line: str, path: Path, number: int, fields: tuple[str, ...]) -> dict[str, str]:
    try:
        value = json.loads(line)
    except ValueError as e:
        raise DatasetError(f"{path}, line {number}: not valid JSON ({e}); each line is one whole object") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}, line {number}: a {type(value).__name__}, not an object like {{...}}")
    row = {field: value.get(field, "" if field == "input" else None) for field in fields}
    for field, content in row.items():
        if not isinstance(content, str):
            what = "missing" if field not in value else f"{content!r}, not a text"
            raise DatasetError(f"{path}, line {number}, field {field!r}: {what}; each row needs {', '.join(fields)} as texts")
        if any("\ud800" <= c <= "\udfff" for c in content):
            raise DatasetError(f"{path}, line {number}, field {field!r}: half a character (a lone surrogate); retype that text")
    return row
