"""JSON: an object a line, in a stream; or one list or object over many lines, read whole. Each record with the line it begins in."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.schema import BadRow, Records, listed, shown

# Where a list of rows begins, in an object that can't be parsed: of objects that are no turns of a conversation.
LIST_OF_ROWS = re.compile(r'"[^"\n]*"\s*:\s*(?=\[\s*\{(?!\s*"(?:role|from|content|value)"))')
BETWEEN = re.compile(r"[ \t\n\r,]*")


def read_json(stream: io.TextIOBase, kind: str, name: str) -> Records:
    """kind: "lines", or "json" for one text over many lines."""
    if kind == "lines":
        return Records(_lines(stream), ["JSON lines"])
    details = ["JSON"]
    return Records(_records(stream.read(), name, details), details)


def _lines(stream: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    parser = _Parser()
    for number, line in enumerate(stream, 1):
        if line := line.strip(" \t\r\n"):
            try:
                record, end = parser.parse(line)
                if end < len(line):
                    record = BadRow(f"not valid JSON (Extra data at character {end + 1})", "write one whole JSON object a line")
            except BadRow as bad:
                record = bad
            if isinstance(record, BadRow):
                record.content = line
            yield number, record


def _records(text: str, name: str, details: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a list; of an object that holds one, or columns; one row; or several objects one after another."""
    parser, start = _Parser(), len(text) - len(text.lstrip())
    if text[start] == "[":
        end = yield from parser.values(text, start + 1, "]")
        yield from parser.values(text, end)
        return
    line, first = next(values := parser.values(text, start))
    whole, second = parser.whole, next(values, None)  # None: could not be parsed
    columns = {key: value for key, value in whole.items() if _is_column(value)} if whole and not second else {}
    rows = [key for key, value in columns.items() if isinstance(value, list) and any(isinstance(cell, dict) for cell in value)]
    if len(rows) > 1:
        raise DatasetError(f"{name} holds several lists of rows: {listed(rows)}; save the one you want to its own file")
    begins = LIST_OF_ROWS.search(text) if whole is None and not second else None
    if rows or begins:
        details.append(f"the list {shown(rows[0])} in it" if rows else "a list in it")
        at = parser.start_of(text, rows[0], whole[rows[0]]) if rows else begins.end()
        found = list(parser.values(text, at + 1, "]"))
        yield from found
        if isinstance(first, BadRow) and not any(isinstance(row, BadRow) for _, row in found):
            yield line, first
    elif columns and len(columns) == len(whole) and first is whole:
        import pandas as pd

        details.append("columns turned into rows")
        yield from ((line, row) for row in pd.DataFrame(columns, dtype=object).to_dict("records"))
    else:
        yield line, first
        yield from [second] * bool(second)
        yield from values


def _is_column(value: Any) -> bool:
    """Tell a column or a list of rows from a conversation. pandas' `to_json` writes a column as {"0": ..., "1": ...}."""
    if isinstance(value, dict):
        return bool(value) and all(map(str.isdigit, value))
    cells = value if isinstance(value, list) else []
    keys = [cell.keys() for cell in cells if isinstance(cell, dict)]
    return bool(cells) and not any({"role", "from"} & names and {"content", "value"} & names for names in keys)


class _Parser(json.JSONDecoder):
    """Parses values, and notices what JSON allows but a row may not have: a key twice."""

    def __init__(self):
        super().__init__(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        new = dict(pairs)
        if len(new) < len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            self.fault = BadRow("this key stands twice in one object", "keep one of the two", key)
        return new

    def parse(self, text: str, at: int = 0) -> tuple[Any, int]:
        """Return the value there, or a `BadRow` in its place, and where it ends. Raises `BadRow` where it has no end."""
        self.fault = self.whole = None
        try:
            self.whole, end = self.raw_decode(text, at)
            return self.fault or self.whole, end
        except RecursionError:
            raise BadRow("too many brackets inside each other", "a row is an object of texts; take the nesting out") from None
        except json.JSONDecodeError as e:
            place = f"character {e.colno}" + f" of line {e.lineno}" * ("\n" in text)
            raise BadRow(f"not valid JSON ({e.msg} at {place})", "write it as one whole JSON object") from None
        except ValueError as e:  # Python's own, for a number of more than 4,300 digits
            raise BadRow(f"not valid JSON ({str(e).partition(';')[0]})", "write the number as a text") from None

    def values(self, text: str, at: int, closing: str = "") -> Generator[tuple[int, Any], None, int]:
        """Yield (line, value) for values that stand one after another, up to a closing bracket or the end of the text; return the end.

        Behind a broken one it goes on at the next line that begins like it.
        """
        line = 1 + text.count("\n", 0, at)
        while True:
            start = BETWEEN.match(text, at).end()
            line += text.count("\n", at, start)
            if text[start : start + 1] == closing:
                return start + 1
            try:
                if start == len(text):
                    raise BadRow("the list breaks off: its ] is missing", "check the file's end, or download it again")
                value, at = self.parse(text, start)
            except BadRow as bad:
                indent = text[text.rfind("\n", 0, start) + 1 : start]
                again = re.compile(rf"\n{re.escape(indent)}\{{").search(text, start)
                value, at = bad, again.end() - 1 if again else len(text)
                bad.problem += "" if again else "; everything from here on can't be read"
            if isinstance(value, BadRow):
                value.content = text[start:at]
            yield line, value
            if at == len(text) and isinstance(value, BadRow):
                return at
            line += text.count("\n", start, at)

    def start_of(self, text: str, key: str, value: Any) -> int:
        """Return where a value begins that was parsed as a member of an object."""
        spelled = "|".join(re.escape(json.dumps(key, ensure_ascii=ascii_only)) for ascii_only in (False, True))
        places = (hit.end() for hit in re.finditer(rf"(?:{spelled})\s*:\s*(?=\[)", text))
        return next(place for place in places if self.raw_decode(text, place)[0] == value)
