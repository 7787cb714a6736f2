"""JSON lines, and JSON that is one list or object: records with the line they begin in, in a stream.

`json` parses; made by hand are the window over a file too big to parse at once, the line numbers, and going on behind a fault.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data import files
from gemma_colab.data.files import Raw, broken_place, numbered_lines, too_long
from gemma_colab.data.forms import BadRow, listed, shown, some

SPACE = re.compile(r"[ \t\n\r]*")
BREAKS_OFF = "check the file's end, or download it again"


class _Decoder(json.JSONDecoder):
    """Notices what JSON allows but a row may not have: a key twice, a number of thousands of digits."""

    def __init__(self):
        super().__init__(object_pairs_hook=self._object, parse_int=self._int)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict:
        new = dict(pairs)
        if len(new) < len(pairs):
            self.fault = _twice(Counter(key for key, _ in pairs).most_common(1)[0][0])
        return new

    def _int(self, digits: str) -> int:
        if len(digits) > 1000:  # Python refuses 4300
            self.fault = BadRow(f"a number of {len(digits)} digits", "shorten it, or write it as a text")
        return int(digits[:1000])

    def value(self, text: str, at: int = 0) -> tuple[Any, int]:
        """The value there, or a `BadRow` in its place, and where it ends. Raises `BadRow` or a JSONDecodeError without an end."""
        self.fault = None
        try:
            value, end = self.raw_decode(text, at)
        except RecursionError:
            raise BadRow("too many brackets inside each other", "a row is an object of texts; take the nesting out") from None
        bad = self.fault or broken_place(text[at:end])
        if bad:
            bad.content = text[at:end]
        return bad or value, end


def _twice(key: str) -> BadRow:
    return BadRow("this key stands twice in one object", "keep one of the two", field=key)


def _not_json(error: json.JSONDecodeError, at: int = 0) -> BadRow:
    return BadRow(f"not valid JSON ({error.msg} at character {error.pos - at + 1})", "write it as one whole JSON object")


def read_json(stream: io.TextIOBase, kind: str, name: str) -> Raw:
    """kind: "lines", or "json" for one text over many lines."""
    if kind == "lines":
        return Raw(_lines(stream), ["JSON lines"])
    details = ["JSON"]
    return Raw(_values(stream, details, name), details)


def _lines(stream: io.TextIOBase) -> Iterator[tuple[int, Any]]:
    decoder = _Decoder()
    for number, line in numbered_lines(stream):
        if isinstance(line, BadRow):
            yield number, line
        elif line := line.strip(" \t\r\n"):
            yield number, _json_line(decoder, line)


def _json_line(decoder: _Decoder, line: str) -> Any:
    try:
        value, end = decoder.value(line)
        if end == len(line):
            return value
        bad = _not_json(json.JSONDecodeError("Extra data", line, end))
    except json.JSONDecodeError as e:
        bad = _not_json(e)
    except BadRow as e:
        bad = e
    bad.content = line
    return bad


class _Window:
    """A part of a JSON text that moves on value by value, and grows (by doubling: no text is parsed often) till one fits in."""

    def __init__(self, stream: io.TextIOBase):
        self.stream, self.text, self.at, self.line, self.ended = stream, "", 0, 1, False
        self.decoder = _Decoder()
        self.indent: str | None = None  # white space before the value, where the value is the first thing in its line

    def _grow(self) -> None:
        self.text, self.at = self.text[self.at :], 0
        part = self.stream.read(max(files.CHUNK, len(self.text)))
        self.ended = not part
        self.text += part

    def move(self, to: int) -> str:
        passed, self.at = self.text[self.at : to], to
        self.line += passed.count("\n")
        return passed

    def sign(self, skip: int = 0) -> str:
        """The next character that is not white space, "" at the end; `skip=1` passes the one seen before."""
        self.move(self.at + skip)
        space = self.move(SPACE.match(self.text, self.at).end())
        while self.at == len(self.text) and not self.ended:
            self._grow()
            space += self.move(SPACE.match(self.text, self.at).end())
        self.indent = space.rpartition("\n")[2] if "\n" in space else None
        return self.text[self.at : self.at + 1]

    def value(self) -> Any:
        """The value that begins here, or a `BadRow` in its place. Raises `BadRow` where it can't be parsed."""
        while True:
            try:
                value, end = self.decoder.value(self.text, self.at)
                if end < len(self.text) or self.ended:
                    self.move(end)
                    return value
            except json.JSONDecodeError as e:
                # a value that goes on behind the window fails at the window's end, or in a text that is not closed
                if self.ended or not (e.msg.startswith("Unterminated") or e.pos > len(self.text) - 16):
                    raise _not_json(e, self.at) from None
            if len(self.text) - self.at > files.MOST:
                raise too_long()
            self._grow()

    def skip_bad(self, bad: BadRow, indent: str | None) -> None:
        """Go on at the next line that begins like the bad value's own. Raises `bad` where there is none: the rest is lost."""
        there = re.compile(rf"\n{re.escape(indent or '')}\{{")
        while indent is not None:
            if hit := there.search(self.text, self.at):
                bad.content = self.move(hit.end() - 1)
                self.indent = indent
                return
            if self.ended or len(self.text) - self.at > files.MOST:
                break
            self._grow()
        raise bad


def _values(stream: io.TextIOBase, details: list[str], name: str) -> Iterator[tuple[int, Any]]:
    """A list of rows; an object that holds one; columns; one row; or several objects one after another."""
    window = _Window(stream)
    try:
        if window.sign() == "[":
            yield from _list(window)
        else:
            yield from _object(window, details, name, first=True)
            while window.sign() == "{":
                yield from _object(window, details, name)
        if window.sign():
            raise BadRow("text behind the end of the JSON", "write one list, or one object a line")
    except BadRow as bad:
        bad.problem, bad.content = f"{bad.problem}; everything from here on can't be read", window.text[window.at :]
        yield window.line, bad


def _list(window: _Window) -> Iterator[tuple[int, Any]]:
    sign = window.sign(skip=1)
    while sign != "]":
        line, indent = window.line, window.indent
        try:
            yield line, window.value()
            sign = window.sign()
            if sign not in (",", "]"):
                what = f"{shown(sign)} where a comma or ] is due" if sign else "the list breaks off: its ] is missing"
                raise BadRow(what, BREAKS_OFF)
            sign = window.sign(skip=1) if sign == "," else sign
        except BadRow as bad:
            line = window.line
            window.skip_bad(bad, indent)
            yield line, bad
    window.move(window.at + 1)


def _object(window: _Window, details: list[str], name: str, first: bool = False) -> Iterator[tuple[int, Any]]:
    """An object that stands alone: the rows of the one list of rows in it, or its columns as rows. Else itself, as a row."""
    line, members, fault = window.line, {}, None
    try:
        _fill(members, window)
    except BadRow as bad:
        fault = bad
    alone = first and (fault or window.sign() != "{")
    lists = {key: cells for key, value in members.items() if alone and (cells := _cells(value, line)) is not None}
    if rows := [key for key, cells in lists.items() if any(isinstance(v, dict) for _, v in cells) and not _is_turn(cells)]:
        if len(rows) > 1:
            raise DatasetError(f"{name} holds several lists of rows: {listed(rows)}; save the one you want to its own file")
        details.append(f"the list {shown(rows[0])} in it")
        yield from lists[rows[0]]
    if fault:
        raise fault
    are_columns = not rows and len(lists) == len(members) and any(lists.values()) and not any(map(_is_turn, lists.values()))
    if are_columns:
        if len(set(map(len, lists.values()))) > 1:
            sizes = some(f"{shown(key)} {len(cells)}" for key, cells in lists.items())
            raise DatasetError(f"{name} holds columns of different lengths ({sizes}); give each row a value in each column")
        details.append("columns turned into rows")
        for cells in zip(*lists.values(), strict=True):
            yield cells[0][0], _row(dict(zip(lists, (value for _, value in cells), strict=True)))
    elif not rows:
        yield line, _row({key: [v for _, v in value] if isinstance(value, list) else value for key, value in members.items()})


def _fill(members: dict[str, Any], window: _Window) -> None:
    """Keys and values of the object that begins here; a list as [(line, value)], so that rows keep their lines."""
    sign = window.sign(skip=1)
    while sign != "}":
        key = window.value() if sign == '"' else None
        if not isinstance(key, str) or window.sign() != ":":
            raise BadRow("not valid JSON (a key in quotes and a colon are due)", "correct that place")
        if key in members:
            raise _twice(key)
        if window.sign(skip=1) == "[":
            members[key] = []
            for item in _list(window):
                members[key].append(item)  # one by one: a list that breaks off keeps those before
        else:
            members[key] = window.value()
        if (sign := window.sign()) not in (",", "}"):
            raise BadRow("a comma or } is due", BREAKS_OFF)
        sign = window.sign(skip=1) if sign == "," else sign
    window.move(window.at + 1)


def _cells(value: Any, line: int) -> list[tuple[int, Any]] | None:
    """A list's items with their lines. pandas' `to_json` writes {"0": ..., "1": ...} for a column."""
    if isinstance(value, dict) and value and all(map(str.isdigit, value)):
        return [(line, cell) for cell in value.values()]
    return value if isinstance(value, list) else None


def _is_turn(items: list[tuple[int, Any]]) -> bool:
    """Whether this list is a conversation, not a list of rows."""
    dicts = (value for _, value in items if isinstance(value, dict))
    return any({"role", "from"} & value.keys() and {"content", "value"} & value.keys() for value in dicts)


def _row(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    parts = chain.from_iterable(value if isinstance(value, list) else [value] for value in row.values())
    return next((part for part in parts if isinstance(part, BadRow)), row)
