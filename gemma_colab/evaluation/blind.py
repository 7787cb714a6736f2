"""Which of two answers is better, judged by a person who does not know whose answers they are.

Left and right are dealt out by a hash of seed and texts, so a review that goes on tomorrow shows the same order. What was decided
is in a CSV file that names only left and right. Who was left is in a second file, which nobody needs to read before
`open_mapping()`. Nothing is written before the first decision.
"""

import csv
import hashlib
import re
from collections import Counter
from datetime import datetime
from typing import NamedTuple

import pandas as pd
from scipy.stats import binomtest

from gemma_colab.core.errors import DatasetError, SettingsError, WorkspaceError
from gemma_colab.core.settings import check_number
from gemma_colab.core.workspace import Workspace, private

CHOICES = ("left", "right", "same", "both bad")
RUBRIC = ("correct", "tone", "format")
MARKS = [f"{side}_{name}" for side in ("left", "right") for name in RUBRIC]
TO_DECIDE = {"choice": CHOICES, **dict.fromkeys(MARKS, ("yes", "no")), "notes": None}  # or "" where nothing was said
CSV_COLUMNS = ("row", "question", "wanted", "left", "right", *TO_DECIDE)
CELL = 32_000  # characters that a spreadsheet shows in a cell; the texts are only there to be read
# Where a cell may begin, whatever parts cells in the program that opens the table, and what begins a formula there: where ";" parts
# them, as in a Russian or German Excel, a text in quotation marks is cut at each, so a formula may also begin inside a text.
CELL_BEGINS = r"""(?:\A|(?<=[;\t\r\n"']))"""
FORMULA, GUARD = (re.compile(f"{CELL_BEGINS}{guard}(?=[=+\\-@])") for guard in ("", "'"))
FEWEST = 10  # preferences; with fewer, one row more or less can turn the result
RESULT = ("wins", "ties", "both_bad", "losses", "win_rate", "low", "high", "p", "left_chosen", "verdict")


class Pair(NamedTuple):
    """One row to compare. row: a checksum of its texts, by which a decision finds it again. wanted: the right answer, or ""."""

    row: str
    question: str
    wanted: str
    left: str
    right: str


def preference(wins: int, losses: int) -> dict:
    """Return {"win_rate", "low", "high", "p", "verdict"} of wins among the rows with a preference.

    low, high: Wilson's 95 % interval. p: of the exact sign test, how often a fair coin would come out at least this uneven. The test
    decides on "better", "worse", "no clear difference" or "too few rows to tell": Wilson's interval alone calls equal candidates
    different in up to 8 % of reviews (12 to 4 is clear of half, yet a fair coin does it in 7.7 %), the test in at most 5 %.
    """
    rows, word = wins + losses, "too few rows to tell"
    if not rows:
        return dict.fromkeys(("win_rate", "low", "high", "p")) | {"verdict": word}
    test = binomtest(wins, rows)
    interval = test.proportion_ci(method="wilson")
    if rows >= FEWEST:
        word = "no clear difference" if test.pvalue >= 0.05 else "better" if wins > losses else "worse"
    figures = {"win_rate": wins / rows, "low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}
    return figures | {"verdict": word}


class BlindReview:
    """Pairs of answers and what was decided about them, saved in `review/` of the workspace with each decision.

    answers: question, wanted (optional), and one column for each candidate, all texts. pair: two of these columns; the win rate
    is that of the second. rows: how many pairs, 1-1000, drawn by chance from those that differ; 20 at first. A larger number later
    keeps what was decided, a smaller one changes nothing. seed: of the draw and of left and right; 0, or the one this review
    began with. Equal rows are shown once. Rows with equal answers are never shown: they are only counted, as `identical`.

    Raises `DatasetError` for a missing column or answer, `SettingsError` for impossible settings or another seed than the review
    began with, `WorkspaceError` for files that were changed. Other answers are another review, with files of their own.
    """

    def __init__(
        self,
        answers: pd.DataFrame,
        workspace: Workspace,
        pair: tuple[str, str] = ("base", "tuned"),
        *,
        rows: int | None = None,
        seed: int | None = None,
    ):
        if rows is not None:
            check_number("rows", rows, 1, 1000, 20, whole=True)
        if len({*pair} - {"question", "wanted", "left", "right", *CHOICES}) != 2:
            raise SettingsError(f"pair={pair!r} must name two different columns of answers; try ('base', 'tuned')")
        for name in ("question", *pair):
            if name not in answers or not answers[name].map(lambda text: isinstance(text, str)).all():
                raise DatasetError(f"answers has no text in each row of column {name!r}; generate what is missing first")
        self.workspace, self.pair, (base, tuned) = workspace, tuple(pair), pair
        # "r" first: Excel would take sixteen digits for a number, and round it
        keys = ["r" + _digest(*texts)[:15] for texts in zip(answers["question"], answers[base], answers[tuned], strict=True)]
        lines = dict(zip(keys, answers.to_dict("records"), strict=True))
        lines = {key: line for key, line in lines.items() if line[base].strip() != line[tuned].strip()}
        self.total, self.identical = len(keys), sum(key not in lines for key in keys)
        self._set = _digest(*self.pair, *sorted(keys))[:16]
        name = "_".join("".join(c if c.isalnum() else "-" for c in part[:30]) for part in self.pair)
        self.file, self.mapping_file = (f"review/blind_{name}_{self._set[:6]}{end}" for end in (".csv", "_mapping.json"))
        self.seed, self._size, self.opened, self._all, self.decisions = seed, rows or 0, None, lines, {}
        self._read()
        self.seed, self._size = self.seed or 0, self._size or 20
        self._left = {key: self.pair[int(_digest("left", self.seed, key), 16) % 2] for key in lines}
        for key, line in lines.items():
            wanted = line.get("wanted")
            said = (line[who] for who in self._sides(key).values())
            self._all[key] = Pair(key, line["question"], "" if pd.isna(wanted) else str(wanted), *said)
        drawn = sorted(lines, key=lambda key: _digest("order", self.seed, key))
        self.rows = [self._all[key] for key in drawn[: self._size]]

    def _sides(self, key: str) -> dict[str, str]:
        left = self._left[key]
        return {"left": left, "right": self.pair[left == self.pair[0]]}

    def _read(self) -> None:
        """Take over what is saved; a second panel may have decided, or shown the names, since."""
        if not self.workspace.has(self.mapping_file) and not self.workspace.has(self.file):
            return
        anew = "move both files away to begin anew"
        saved = self.workspace.read_json(self.mapping_file) if self.workspace.has(self.mapping_file) else {}
        if saved.get("answers") != self._set or not isinstance(saved.get("rows"), int) or not {"seed", "opened"} <= saved.keys():
            key = f"{self.mapping_file}, which tells who is left in {self.file}"
            raise WorkspaceError(f"{key}, is missing or of other answers; {anew}")
        if self.seed not in (None, saved["seed"]):
            raise SettingsError(f"seed={self.seed!r}, but this review began with seed={saved['seed']!r}; leave it out, or {anew}")
        self.seed, self.opened, self._size = saved["seed"], saved["opened"], max(self._size, saved["rows"])
        self.decisions = self._read_csv() if self.workspace.has(self.file) else {}

    def _read_csv(self) -> dict[str, dict[str, str]]:
        path, found = self.workspace.path / self.file, {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as f:
                table = csv.DictReader(f, strict=True)
                if not set(CSV_COLUMNS) <= set(table.fieldnames or ()):
                    raise ValueError(f"its first line is {','.join(table.fieldnames or ())[:60]!r}")
                for line in table:
                    if line["row"] not in self._all:
                        raise ValueError(f"a row {line['row']!r} that is not among these answers")
                    found[line["row"]] = {name: GUARD.sub("", line[name] or "") for name in TO_DECIDE}
                    _check_said(found[line["row"]])
        except (ValueError, csv.Error, SettingsError) as e:  # bad UTF-8 is a ValueError
            raise WorkspaceError(f"{path} is not the table that the panel wrote ({e}); undo that, or move it away") from None
        return found

    def _write(self, decisions: dict[str, dict[str, str]], opened: str | None = None) -> None:
        about = {"pair": list(self.pair), "seed": self.seed, "rows": self._size, "answers": self._set}
        self.workspace.write_json(self.mapping_file, about | {"opened": opened, "left": self._left})  # first: a CSV needs it
        with (
            self.workspace.writing(self.file) as part,
            # utf-8-sig: the mark at the start tells Excel that it is UTF-8. Half a character is written as JSON escapes it.
            open(part, "w", encoding="utf-8-sig", errors="backslashreplace", newline="", opener=private) as f,
        ):
            table = csv.DictWriter(f, CSV_COLUMNS)
            table.writeheader()
            for key, said in decisions.items():
                texts = {name: text[:CELL] for name, text in self._all[key]._asdict().items()}
                table.writerow({name: FORMULA.sub("'", text) for name, text in (texts | said).items()})  # shown, and not run
        self.decisions, self.opened = decisions, opened

    def of(self, number: int) -> dict[str, str]:
        """Return what was said of this row (from 0): "choice", "left_correct" and the other `MARKS`, "notes"; "" where nothing was."""
        return dict.fromkeys(TO_DECIDE, "") | self.decisions.get(self.rows[number].row, {})

    def decide(self, number: int, **changes: str) -> None:
        """Save something about this row at once: choice (one of `CHOICES`), marks ("yes", "no"), notes; "" takes it back.

        Raises `SettingsError` for another value, or once the names are known.
        """
        _check_said(changes)
        self._read()
        if self.opened:
            again = f"to begin anew, move {self.file} and its mapping away, and take another seed"
            raise SettingsError(f"the names are known, so a choice would not be blind any more; {again}")
        self._write(self.decisions | {self.rows[number].row: self.of(number) | changes})

    @property
    def decided(self) -> int:
        """Count the rows that have a choice."""
        return sum(bool(self.of(i)["choice"]) for i in range(len(self.rows)))

    def undecided(self, start: int = 0) -> int | None:
        """Return the next row without a choice, from this one on and then from the first; None where all have one."""
        order = [*range(start, len(self.rows)), *range(start)]
        return next((i for i in order if not self.of(i)["choice"]), None)

    def names(self, number: int) -> dict[str, str]:
        """Return what is written over the answers of this row: "left" and "right", and whose they are once the names are shown."""
        return {side: f"{side}: {who}" if self.opened else side for side, who in self._sides(self.rows[number].row).items()}

    def open_mapping(self) -> None:
        """Show whose answers they are. This ends the review, which is not blind any more. Raises `SettingsError` if nothing was decided."""
        self._read()
        if not self.decided:
            raise SettingsError("no row is decided yet, so there is nothing to open; choose in at least one row first")
        if not self.opened:
            self._write(self.decisions, datetime.now().astimezone().isoformat(timespec="seconds"))

    def summary(self) -> dict:
        """Return the review in figures, for JSON. Before the mapping is opened: how much is decided, and nothing about who wins.

        wins: rows in which the second of the pair was preferred. win_rate, low, high, p, verdict: of `preference`. left_chosen:
        preferences for the left answer; far from half of them, look at your habits. rubric: share of "yes" for each candidate, over
        the rows in which both were marked.
        """
        done, shown, (base, tuned) = self.decided, len(self.rows), self.pair
        about = {"pair": list(self.pair), "rows": shown, "decided": done, "identical": self.identical, "of": self.total}
        about |= {"opened": self.opened, "rubric": {}}
        if not self.opened:
            said = f"{done} of {shown} rows are decided, and the names are still hidden."
            if not done:
                said = "Nobody has compared the answers by hand yet."
            if not shown:
                said = "Both give the same answer in every row, so there is nothing to compare."
            return about | dict.fromkeys(RESULT) | {"sentence": said}
        decided = [(self.of(i), self._sides(row.row)) for i, row in enumerate(self.rows) if self.of(i)["choice"]]
        counts = Counter(who.get(said["choice"], said["choice"]) for said, who in decided)
        losses, wins, ties, bad = (counts[name] for name in (base, tuned, "same", "both bad"))
        for name in RUBRIC:
            marks = [{who[side]: said[f"{side}_{name}"] for side in who} for said, who in decided]
            if marks := [both for both in marks if all(both.values())]:
                shares = {who: sum(both[who] == "yes" for both in marks) / len(marks) for who in self.pair}
                about["rubric"][name] = shares | {"rows": len(marks)}
        about["left_chosen"] = sum(said["choice"] == "left" for said, _ in decided)
        about |= {"wins": wins, "ties": ties, "both_bad": bad, "losses": losses} | (found := preference(wins, losses))
        said, word = f"{tuned} was preferred in {wins} of {wins + losses} rows with a preference", found["verdict"]
        if wins + losses:
            said += f" ({found['win_rate']:.0%}, 95 % interval {found['low']:.0%} to {found['high']:.0%})"
        said += f": {tuned} is {word} than {base}." if word in ("better", "worse") else f": {word}."
        if wins + losses < FEWEST:
            said += f" Have at least {FEWEST} with a preference."
        else:
            often = f"{found['p']:.1%}" if found["p"] >= 0.001 else "less than 0.1%"
            said += f" A fair coin would come out at least this uneven in {often} of reviews."
        rest = {"the same in": ties, "both bad in": bad, "undecided": shown - done}
        if told := ", ".join(f"{what} {count}" for what, count in rest.items() if count):
            said += f" Of {shown} rows: {told}."
        if self.identical:
            said += f" Not asked: {self.identical} of {self.total} rows, where both gave the same answer."
        return about | {"sentence": said}


def _check_said(said: dict[str, str]) -> None:
    """Raise `SettingsError` for a name or value that a decision can't have."""
    for name, value in said.items():
        if name not in TO_DECIDE:
            raise SettingsError(f"{name!r} is nothing to decide; choose from {', '.join(TO_DECIDE)}")
        if len(value) > CELL:
            raise SettingsError(f"{name} has {len(value):,} characters, and a cell of a table holds {CELL:,}; shorten it")
        if value and TO_DECIDE[name] and value not in TO_DECIDE[name]:
            raise SettingsError(f"{name}={value!r} must be one of {', '.join(TO_DECIDE[name])}, or '' for none")


def _digest(*texts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, texts)).encode("utf-8", "surrogatepass")).hexdigest()
