"""JSON: an object a line, in a stream; or one list or object over many lines, read whole. Each record with the line it begins in.

`json` parses. Made by hand are the line numbers, and going on behind a broken record.
"""

from __future__ import annotations

import io
import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.schema import BadRow, Records, listed, shown

SPACE = re.compile(r"[ \t\n\r]*")
# Where a list of rows begins, in an object that can't be parsed: of objects that are no turns of a conversation.
LIST_OF_ROWS = re.compile(r'"[^"\n]*"\s*:\s*(?=\[\s*\{(?!\s*"(?:role|from|content|value)"))')


def read_json(stream: io.TextIOBase, kind: str, name: str) -> Records:
    """kind: "lines", or "json" for one text over many lines."""
    if kind == "lines":
        return Records(_lines(stream), ["JSON lines"])
    details = ["JSON"]
    return Records(_Text(stream.read()).records(name, details), details)


def _lines(stream: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    parser = _Parser()
    for number, line in enumerate(stream, 1):
        if line := line.strip(" \t\r\n"):
            try:
                value, end = parser.parse(line)
                if end < len(line):
                    value = BadRow(f"not valid JSON (Extra data at character {end + 1})", "write one whole JSON object a line")
            except BadRow as bad:
                value = bad
            if isinstance(value, BadRow):
                value.content = line
            yield number, value


class _Parser(json.JSONDecoder):
    """Parses a value, and notices what JSON allows but a row may not have: a key twice."""

    def __init__(self):
        super().__init__(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        new = dict(pairs)
        if len(new) < len(pairs):
            key = Counter(key for key, _ in pairs).most_common(1)[0][0]
            self.fault = BadRow("this key stands twice in one object", "keep one of the two", key)
        return new

    def parse(self, text: str, at: int = 0) -> tuple[Any, int]:
        """Return the value that begins there, or a `BadRow` in its place, and where it ends. Raises `BadRow` where it has no end."""
        self.fault = None
        try:
            value, end = self.raw_decode(text, at)
            return self.fault or value, end
        except RecursionError:
            raise BadRow("too many brackets inside each other", "a row is an object of texts; take the nesting out") from None
        except ValueError as e:  # JSON's own, and Python's for a number of more than 4,300 digits
            what = f"{e.msg} at character {e.pos - at + 1}" if isinstance(e, json.JSONDecodeError) else str(e).partition(";")[0]
            raise BadRow(f"not valid JSON ({what})", "write it as one whole JSON object") from None


class _Text:
    """A JSON text, and how far it was read."""

    def __init__(self, text: str):
        self.text, self.at, self.parser = text, 0, _Parser()
        self.breaks = [hit.start() for hit in re.finditer("\n", text)]

    def line(self) -> int:
        return bisect_left(self.breaks, self.at) + 1

    def sign(self, skip: int = 0) -> str:
        """Move to the next character that is not white space, and return it, "" at the end; `skip=1` passes the one seen before."""
        self.at = SPACE.match(self.text, self.at + skip).end()
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        value, self.at = self.parser.parse(self.text, self.at)
        return value

    def records(self, name: str, details: list[str]) -> Iterator[tuple[int, Any]]:
        """Yield the rows of a list; of an object that holds one, or columns; one row; or several objects one after another."""
        try:
            if self.sign() == "[":
                yield from self.list()
            else:
                yield from self.objects(name, details)
            if self.sign():
                raise BadRow("text behind the end of the JSON", "write one list, or one object a line")
        except BadRow as bad:
            bad.problem, bad.content = f"{bad.problem}; everything from here on can't be read", self.text[self.at :]
            yield self.line(), bad

    def list(self) -> Iterator[tuple[int, Any]]:
        """Yield each item with its line. Behind a broken one it goes on at the next line that begins like it."""
        sign = self.sign(skip=1)
        while sign != "]":
            start, line = self.at, self.line()
            try:
                yield line, self.value()
                sign = self.sign()
                if sign not in (",", "]"):
                    what = f"{shown(sign)} where a comma or ] is due" if sign else "the list breaks off: its ] is missing"
                    raise BadRow(what, "check the file's end, or download it again")
                sign = self.sign(skip=1) if sign == "," else sign
            except BadRow as bad:
                indent = self.text[self.text.rfind("\n", 0, start) + 1 : start]
                again = re.compile(rf"\n{re.escape(indent)}\{{").search(self.text, max(self.at, start + 1))
                if indent.strip() or not again:
                    raise
                line, bad.content = self.line(), self.text[self.at : again.end() - 1]
                self.at = again.end() - 1
                yield line, bad
        self.at += 1

    def objects(self, name: str, details: list[str]) -> Iterator[tuple[int, Any]]:
        start, line, first = self.at, self.line(), None
        try:
            first = self.value()
        except BadRow as bad:
            first = bad
        end = self.at
        if isinstance(first, BadRow):
            if not (hit := LIST_OF_ROWS.search(self.text, start)):
                raise first
            self.at = hit.end()
            broken = False
            for line, row in self.list():  # as far as it can be read
                broken |= isinstance(row, BadRow)
                yield line, row
            if end == start or not broken:
                raise first
            self.at = end
            return
        alone = isinstance(first, dict) and self.sign() != "{"
        lists = {key: value for key, value in first.items() if _is_column(value)} if alone else {}
        rows = [key for key, value in lists.items() if isinstance(value, list) and any(isinstance(cell, dict) for cell in value)]
        if len(rows) > 1:
            raise DatasetError(f"{name} holds several lists of rows: {listed(rows)}; save the one you want to its own file")
        if rows:
            details.append(f"the list {shown(rows[0])} in it")
            self.at = self.start_of(rows[0], first[rows[0]], start)
            yield from self.list()
            self.at = end
        elif lists and len(lists) == len(first):
            import pandas as pd

            details.append("columns turned into rows")
            yield from ((line, row) for row in pd.DataFrame(lists).to_dict("records"))
        else:
            yield line, first
            while self.sign() == "{":
                yield self.line(), self.value()

    def start_of(self, key: str, value: Any, start: int) -> int:
        """Return where a value begins that was parsed as a member of an object."""
        spelled = "|".join(re.escape(json.dumps(key, ensure_ascii=ascii_only)) for ascii_only in (False, True))
        places = (hit.end() for hit in re.compile(rf"(?:{spelled})\s*:\s*(?=[\[{{])").finditer(self.text, start))
        return next(place for place in places if self.parser.parse(self.text, place)[0] == value)


def _is_column(value: Any) -> bool:
    """Tell a column or a list of rows from a conversation. pandas' `to_json` writes a column as {"0": ..., "1": ...}."""
    if isinstance(value, dict):
        return bool(value) and all(map(str.isdigit, value))
    turns = [cell for cell in value if isinstance(cell, dict)] if isinstance(value, list) else []
    return (
        bool(value)
        and isinstance(value, list)
        and not any({"role", "from"} & turn.keys() and {"content", "value"} & turn.keys() for turn in turns)
    )
