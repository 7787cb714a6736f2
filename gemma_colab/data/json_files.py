"""JSON: an object a line, in a stream; or one text over many lines, read whole. Each record with the line it begins in."""

import contextlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.encodings import unmarked
from gemma_colab.data.schema import BadRow, Records, listed, shown

COMMENT = r"//[^\n]*|#[^\n]*|/\*(?s:.*?)\*/"
BETWEEN = re.compile(rf"(?:[ \t\n\r,]|{COMMENT}|/\*(?s:.*))*")  # a comment that is never closed goes on to the end
LOOSE = re.compile(rf'("(?:[^"\\\n]|\\.)*+"?)|{COMMENT}|,(?=(?:\s|{COMMENT})*+[\]}}])')


AGAIN = 10  # how often a file may be looked through for rows that end somewhere behind the next one


class _Text(str):
    """A text in which an error does not count the lines before it, as each would do from the first line on."""

    def count(self, *_: Any) -> int:
        return 0


def _once(pairs: list[tuple[str, Any]]) -> Any:
    """Return an object, or what is wrong with it: Python itself would keep the last value of a key that comes twice, unsaid."""
    if len(found := dict(pairs)) == len(pairs):
        return found
    (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
    return BadRow(f"the key {shown(twice)} comes twice in one object", "keep one of them")


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def read_json(stream: io.TextIOBase, kind: str, name: str) -> Records:
    """kind: "lines", or "json" for one text over many lines."""
    if kind == "lines":
        return Records(_lines(stream, notes := {}), ["JSON lines"], notes=notes)
    details, notes = ["JSON"], {}
    text = _Text("".join(line for _, line in unmarked(stream, notes)))
    return Records(_document(text, name, details), details, notes=notes)


def _lines(stream: io.TextIOBase, notes: dict[str, list[int]]) -> Iterator[tuple[int, Any]]:
    for number, line in unmarked(stream, notes):
        if line := line.strip(" \t\r\n"):
            try:
                record = _parsed(DECODER.decode, line)
            except BadRow as bad:
                record, bad.content, plain = bad, line, _without_comments(line).strip(" \t,")
                if not plain:
                    continue
                with contextlib.suppress(BadRow):
                    record = _parsed(DECODER.decode, plain)
            yield number, record


def _without_comments(text: str) -> str:
    """Return a text of the same length, with blanks for comments and for commas before a closing bracket."""
    end = text.rfind("*/") + 1  # behind it no comment is closed, and none must be looked for again and again
    text = text[:end] + text[end:].replace("/*", "/\ue000")
    text = LOOSE.sub(lambda found: found[1] or re.sub(r"[^\n]", " ", found[0]), text)
    return text[:end] + text[end:].replace("/\ue000", "/*")


def _document(text: str, name: str, details: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a list; of an object that holds one, or columns; one row; or several objects one after another."""
    start = BETWEEN.match(text).end()
    if text[start] == "[":
        yield from _values(text, start + 1, "]")
        return
    values = list(_values(text, start))
    line, whole = values[0]
    single = len(values) == 1 and isinstance(whole, dict)
    columns = {key: value for key, value in whole.items() if _is_column(value)} if single else {}
    lists = [key for key, cells in columns.items() if any(isinstance(cell, dict) for cell in cells)]
    if len(lists) > 1:
        raise DatasetError(f"{name} holds several lists of rows: {listed(lists)}; save the one you want to its own file")
    if lists:
        details.append(f"the list {shown(lists[0])} in it")
        values = [(line, record) for record in whole[lists[0]]]
    elif columns and len(columns) == len(whole):
        import pandas as pd

        details.append("columns turned into rows")
        values = [(line, record) for record in pd.DataFrame(columns, dtype=object).to_dict("records")]
    yield from values


def _is_column(value: Any) -> bool:
    """Tell a column or a list of rows from a conversation. pandas' `to_json` writes a column as {"0": ..., "1": ...}."""
    if isinstance(value, dict):
        return bool(value) and all(map(str.isdigit, value))
    keys = [cell.keys() for cell in value if isinstance(cell, dict)] if isinstance(value, list) else []
    turns = any({"role", "from"} & names and {"content", "value"} & names for names in keys)
    return isinstance(value, list) and bool(value) and not turns


def _values(text: str, at: int, closing: str = "") -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for values that come one after another, up to a closing bracket and behind it. Behind a broken one it goes
    on at the next line that begins like it."""
    count, room = partial(str.count, text), AGAIN * len(text) + 2**20
    line, written, listed_rows, plain = 1 + count("\n", 0, at), text, bool(closing), None
    while True:
        start = BETWEEN.match(text, at).end()
        line += count("\n", at, start)
        if text[start : start + 1] == closing:
            if not closing:
                return
            closing, at = "", start + 1
            continue
        if listed_rows and not closing and text[start] == "[":  # a second list behind the first: joined files
            closing, at = "]", start + 1
            continue
        try:
            if start == len(text):
                raise BadRow("the list breaks off: its ] is missing", "check the file's end, or download it again")
            value, at = _parsed(DECODER.raw_decode, text, start, line=line)
        except BadRow as bad:
            if plain is None and (plain := _Text(_without_comments(written))) != written:
                text, at = plain, start
                continue
            indent = text[text.rfind("\n", 0, start) + 1 : start]
            again = re.compile(rf"\n{re.escape(indent)}\{{").search(text, start)
            room -= max(0, (bad.content or len(text)) - again.end()) if again else 0
            again = again if room > 0 else None
            value, at = bad, again.end() - 1 if again else len(text)
            bad.content = written[start:at]
            if not again:
                bad.problem += "; everything from here on can't be read"
                closing = ""
        yield line, value
        line += count("\n", start, at)


def _parsed(decode: Callable, text: str, *start: int, line: int = 1) -> Any:
    """Return what the decoder does, from a character in this line on. Raises `BadRow`; its content is how far it came, if known."""
    try:
        return decode(text, *start)
    except RecursionError:
        raise BadRow("too many brackets inside each other", "a row is an object of texts; take the nesting out") from None
    except json.JSONDecodeError as e:
        line += str.count(text, "\n", *start or (0,), e.pos)
        place = f"character {e.colno}" + f" of line {line}" * ("\n" in text)
        raise BadRow(f"not valid JSON ({e.msg} at {place})", "write it as one whole JSON object", content=e.pos) from None
    except ValueError as e:  # Python's own, for a number of more than 4,300 digits
        raise BadRow(f"not valid JSON ({str(e).partition(';')[0]})", "write the number as a text") from None
