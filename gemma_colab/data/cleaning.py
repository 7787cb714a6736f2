"""Clean rows in named steps, with a log line for every change. Nothing is changed or dropped without one."""

from __future__ import annotations

import html
import re

import pandas as pd

from gemma_colab.data.report import empty_texts, exact_duplicates
from gemma_colab.data.text import INVISIBLE, TAG
from gemma_colab.errors import SettingsError

Row = dict[str, str]


def html_to_text(text: str) -> str:
    return html.unescape(TAG.sub(" ", text)) if "<" in text or "&" in text else text


def tidy_whitespace(text: str) -> str:
    text = text.translate(INVISIBLE)
    return "\n".join(re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in text.strip().splitlines())


CHANGES = {"html_to_text": html_to_text, "tidy_whitespace": tidy_whitespace}  # text -> text
DROPS = {"drop_empty": empty_texts, "drop_exact_duplicates": exact_duplicates}  # rows -> numbers of rows to drop
STEPS = (*CHANGES, *DROPS)


def clean(rows: list[Row], steps: tuple[str, ...] = STEPS) -> tuple[list[Row], pd.DataFrame]:
    """New rows and the log: step, row (number in `rows`), field, before, after. The rows given are not changed."""
    kept, log = list(enumerate(rows)), []
    for step in steps:
        if step in CHANGES:
            done = []
            for i, row in kept:
                new = {field: CHANGES[step](text) for field, text in row.items()}
                log += [(step, i, f, row[f], new[f]) for f in row if new[f] != row[f]]
                done.append((i, new))
            kept = done
        elif step in DROPS:
            drop = set(DROPS[step]([row for _, row in kept]))
            log += [(step, i, "", str(row), "(dropped)") for n, (i, row) in enumerate(kept) if n in drop]
            kept = [pair for n, pair in enumerate(kept) if n not in drop]
        else:
            raise SettingsError(f"step={step!r} is not a cleaning step; choose from {', '.join(STEPS)}")
    return [row for _, row in kept], pd.DataFrame(log, columns=["step", "row", "field", "before", "after"])
