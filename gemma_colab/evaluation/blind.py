"""Which of two answers is better, judged by a person who does not know whose answers they are.

Left and right are dealt out by a hash of seed and texts, so a review that goes on tomorrow shows the same order. What was decided
is in a CSV file that names only left and right. Who was left is in a second file, which nobody needs to read before
`open_mapping()`. Nothing is written before the first decision.
"""

from __future__ import annotations

import csv
import hashlib
from datetime import datetime
from typing import NamedTuple

import pandas as pd
from scipy.stats import binomtest

from gemma_colab.core.errors import DatasetError, SettingsError, WorkspaceError
from gemma_colab.core.settings import check_number
from gemma_colab.core.workspace import Workspace

CHOICES = ("left", "right", "same", "both bad")
RUBRIC = ("correct", "tone", "format")  # each "yes", "no", or "" where nobody said
MARKS = tuple(f"{side}_{name}" for side in ("left", "right") for name in RUBRIC)
TO_DECIDE = ("choice", *MARKS, "notes")
CSV_COLUMNS = ("row", "question", "wanted", "left", "right", *TO_DECIDE)
CELL = 32_000  # characters that a spreadsheet shows in a cell; the texts are only there to be read
FEWEST = 10  # preferences; with fewer, one row more or less can turn the result


class Pair(NamedTuple):
    """One row to compare. key: a checksum of its texts, by which a decision finds it again. wanted: the right answer, or ""."""

    key: str
    question: str
    wanted: str
    left: str
    right: str


# ------------------------------------------------------------------------------------------ figures
def preference(wins: int, losses: int) -> dict:
    """Return {"win_rate", "low", "high", "p"} of wins among the rows with a preference; None where there is none.

    low, high: Wilson's 95 % interval. p: of the exact sign test, how often a fair coin would come out at least this uneven.
    """
    if not wins + losses:
        return {"win_rate": None, "low": None, "high": None, "p": None}
    test = binomtest(wins, wins + losses)
    interval = test.proportion_ci(method="wilson")
    return {"win_rate": wins / (wins + losses), "low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}


def verdict(wins: int, losses: int) -> str:
    """Return "better", "worse", "no clear difference" or "too few rows to tell".

    The exact test decides. Wilson's interval alone calls equal candidates different in up to 8 % of reviews (12 to 4 is clear of
    half, yet a fair coin does it in 7.7 %); the test does in at most 5 %.
    """
    if wins + losses < FEWEST:
        return "too few rows to tell"
    if preference(wins, losses)["p"] >= 0.05:
        return "no clear difference"
    return "better" if wins > losses else "worse"


def percent(share: float) -> str:
    """Write a share for people: 0.0768 -> "7.7 %" and 0.75 -> "75 %"."""
    text = f"{100 * share:.0f}" if share >= 0.1 or not share else f"{100 * share:.1f}"
    return f"{text} %" if share == 0 or share >= 0.001 else "less than 0.1 %"


def in_words(pair: tuple[str, str], wins: int, losses: int) -> str:
    """Say wins, rate, interval and verdict in a sentence or two about the second of the pair."""
    base, tuned = pair
    n, figures, word = wins + losses, preference(wins, losses), verdict(wins, losses)
    if not n:
        return f"No row has a preference, so nothing can be said about {tuned} against {base}."
    rate, interval = percent(figures["win_rate"]), f"{100 * figures['low']:.0f} to {100 * figures['high']:.0f} %"
    counted = f"{tuned} was preferred in {wins} of {n} rows with a preference ({rate}, 95 % interval {interval})"
    if word == "too few rows to tell":
        return f"{counted}: too few rows to tell; have at least {FEWEST} with a preference."
    say = f"{tuned} is {word} than {base}" if word in ("better", "worse") else word
    return f"{counted}: {say}. A fair coin would come out at least this uneven in {percent(figures['p'])} of reviews."


# ------------------------------------------------------------------------------------------ the review
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
        self.workspace, self.pair = workspace, tuple(pair)
        table = _checked(answers, self.pair)
        base, tuned = self.pair
        # "r" first: Excel would take sixteen digits for a number, and round it
        keys = ["r" + _digest(*texts)[:15] for texts in zip(table["question"], table[base], table[tuned], strict=True)]
        pairs = list(zip(keys, table.to_dict("records"), strict=True))
        lines = {key: line for key, line in pairs if line[base].strip() != line[tuned].strip()}
        self.total = len(table)
        self.identical = sum(line[base].strip() == line[tuned].strip() for _, line in pairs)
        self._set = _digest(*self.pair, *sorted(keys))[:16]
        name = "_".join("".join(c if c.isalnum() else "-" for c in part[:30]) for part in self.pair)
        self.file = f"review/blind_{name}_{self._set[:6]}.csv"
        self.mapping_file = f"review/blind_{name}_{self._set[:6]}_mapping.json"
        saved = self._read_mapping(lines)
        if seed is not None and saved.get("seed", seed) != seed:
            raise SettingsError(
                f"seed={seed!r}, but this review began with seed={saved['seed']!r}; leave seed out to go on with it, "
                f"or put_aside() the old review first"
            )
        self.seed, self.opened = saved.get("seed", seed or 0), saved.get("opened")
        self._size = max(saved.get("rows", 1), 1 if self.opened else rows or 20 * ("rows" not in saved))
        self._left = saved.get("left") or {key: self.pair[int(_digest("left", self.seed, key), 16) % 2] for key in lines}
        self._all = {
            key: Pair(key, line["question"], line["wanted"], *(line[who] for who in self._sides(key)))
            for key, line in lines.items()
        }
        drawn = sorted(lines, key=lambda key: _digest("order", self.seed, key))[: self._size]
        self.rows = [self._all[key] for key in drawn]
        self.decisions = self._read()

    def _sides(self, key: str) -> tuple[str, str]:
        """Return who is left and who is right."""
        left = self._left[key]
        return left, self.pair[left == self.pair[0]]

    def _read_mapping(self, lines: dict) -> dict:
        """Read the saved mapping; {} where there is none yet."""
        remedy = "put back what the panel wrote, or move both files away to begin anew"
        if not self.workspace.has(self.mapping_file):
            if self.workspace.has(self.file):
                raise WorkspaceError(f"{self.mapping_file} is missing, so nobody can tell who is left in {self.file}; {remedy}")
            return {}
        saved = self.workspace.read_json(self.mapping_file)
        known = {"pair", "seed", "rows", "answers", "opened", "left"}
        good = isinstance(saved, dict) and known == set(saved) and saved["answers"] == self._set
        if not good or set(saved["left"]) != set(lines) or not set(saved["left"].values()) <= set(self.pair):
            raise WorkspaceError(f"{self.mapping_file} does not fit these answers and {self.file}; {remedy}")
        return saved

    def _write_mapping(self) -> None:
        about = {"pair": list(self.pair), "seed": self.seed, "rows": self._size, "answers": self._set}
        self.workspace.write_json(self.mapping_file, about | {"opened": self.opened, "left": self._left})

    def _read(self) -> dict[str, dict[str, str]]:
        """Read key -> what was said of that row: choice, marks, notes."""
        if not self.workspace.has(self.file):
            return {}
        path, found = self.workspace.path / self.file, {}
        try:
            with path.open(encoding="utf-8-sig", newline="") as f:
                table = csv.DictReader(f, strict=True)
                lines = list(table)
            if table.fieldnames is None or not set(CSV_COLUMNS) <= set(table.fieldnames):
                raise ValueError(f"its first line is {','.join(table.fieldnames or [])[:60]!r}")
            for line in lines:
                if line["row"] not in self._all:
                    raise ValueError(f"a row {line['row']!r} that is not among these answers")
                found[line["row"]] = {name: (line[name] or "").removeprefix("'") for name in TO_DECIDE}
                _check(found[line["row"]])
        except (ValueError, csv.Error, SettingsError) as e:  # bad UTF-8 is a ValueError
            raise WorkspaceError(
                f"{path} is not the table that the panel wrote ({e}); undo the change, or move the file away to begin anew"
            ) from None
        return found

    # -------------------------------------------------------------------------------------- deciding
    def of(self, number: int) -> dict[str, str]:
        """Return what was said of this row (from 0): "choice", "left_correct" and the other `MARKS`, "notes"; "" where nothing was."""
        return dict.fromkeys(TO_DECIDE, "") | self.decisions.get(self.rows[number].key, {})

    def decide(self, number: int, **changes: str) -> None:
        """Save something about this row at once: choice (one of `CHOICES`), marks ("yes", "no"), notes; "" takes it back.

        Raises `SettingsError` for another value, or once the names are known.
        """
        _check(changes)
        saved, together = self._read_mapping(self._all), self._read()  # a second panel may have decided, or opened, since
        self.opened = self.opened or saved.get("opened")
        if saved and saved["left"] != self._left:
            raise SettingsError("this review was begun elsewhere, with left and right dealt out otherwise; make this one anew")
        if self.opened:
            raise SettingsError(
                "the names are known, so a choice would not be blind any more; put_aside() this review to begin anew"
            )
        key = self.rows[number].key
        together[key] = self.of(number) | together.get(key, {}) | changes
        if saved.get("rows", 0) < self._size:
            self._write_mapping()  # first: a CSV without it could not be read
        with (
            self.workspace.writing(self.file) as part,
            # utf-8-sig: the mark at the start tells Excel that it is UTF-8. Half a character is written as JSON escapes it.
            part.open("w", encoding="utf-8-sig", errors="backslashreplace", newline="") as f,
        ):
            table = csv.DictWriter(f, CSV_COLUMNS)
            table.writeheader()
            for key, said in together.items():
                texts = {name: text[:CELL] for name, text in self._all[key]._asdict().items() if name != "key"}
                table.writerow({name: _guard(text) for name, text in ({"row": key} | texts | said).items()})
        self.decisions = together

    @property
    def decided(self) -> int:
        """Count the rows that have a choice."""
        return sum(bool(self.of(i)["choice"]) for i in range(len(self.rows)))

    def undecided(self, start: int = 0) -> int | None:
        """Return the next row without a choice, from this one on and then from the first; None where all have one."""
        order = [*range(start, len(self.rows)), *range(start)]
        return next((i for i in order if not self.of(i)["choice"]), None)

    def put_aside(self) -> None:
        """Rename the files of this review, so that they end in the time. Then make it anew, with another seed if you know the
        names: the same seed deals out left and right as before."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        for name in (self.file, self.mapping_file):
            if self.workspace.has(name):
                path = self.workspace.path / name
                path.rename(path.with_name(f"{path.stem}_{stamp}{path.suffix}"))
        self.opened, self.decisions = None, {}

    # -------------------------------------------------------------------------------------- opening
    def open_mapping(self) -> pd.DataFrame:
        """Put names to the answers: one line per decided row, with both answers, who was left, who was preferred, marks and notes.

        This ends the review: whoever knows the names is not blind any more. Raises `SettingsError` if nothing was decided.
        """
        self.decisions = self._read()
        if not self.decided:
            raise SettingsError("no row is decided yet, so there is nothing to open; choose in at least one row first")
        if not self.opened:
            self.opened = datetime.now().astimezone().isoformat(timespec="seconds")
            self._write_mapping()
        return self._table()

    def left(self, number: int) -> str:
        """Return who is left in this row. Raises `SettingsError` before the mapping is opened."""
        if not self.opened:
            raise SettingsError("the names are hidden until open_mapping() is called")
        return self._left[self.rows[number].key]

    def _table(self) -> pd.DataFrame:
        lines = []
        for i, row in enumerate(self.rows):
            said, who = self.of(i), dict(zip(("left", "right"), self._sides(row.key), strict=True))
            if not said["choice"]:
                continue
            side = {name: side for side, name in who.items()}
            line = {"question": row.question, "wanted": row.wanted} | {name: getattr(row, side[name]) for name in self.pair}
            line |= {"left": who["left"], "preferred": who.get(said["choice"], said["choice"])}
            line |= {f"{name} {mark}": said[f"{side[name]}_{mark}"] for name in self.pair for mark in RUBRIC}
            lines.append(line | {"notes": said["notes"]})
        return pd.DataFrame(lines)

    def summary(self) -> dict:
        """Return the review in figures, for JSON. Before the mapping is opened: how much is decided, and nothing about who wins.

        wins: rows in which the second of the pair was preferred. win_rate, low, high: among wins and losses, with Wilson's 95 %
        interval. p: of the exact sign test. left_chosen: preferences for the left answer; far from half of them, look at your
        habits. rubric: share of "yes" for each candidate, over the rows in which both were marked.
        """
        done, shown = self.decided, len(self.rows)
        about = {"pair": list(self.pair), "rows": shown, "decided": done, "identical": self.identical}
        about |= {"of": self.total, "opened": self.opened}
        if not self.opened:
            hidden = ("wins", "ties", "both_bad", "losses", "win_rate", "low", "high", "p", "left_chosen", "verdict")
            sentence = f"{done} of {shown} rows are decided, and the names are still hidden."
            if not shown:
                sentence = "Both give the same answer in every row, so there is nothing to compare."
            elif not done:
                sentence = "Nobody has compared the answers by hand yet."
            return about | dict.fromkeys(hidden) | {"rubric": {}, "sentence": sentence}
        table = self._table()
        counts = table["preferred"].value_counts()
        losses, wins, ties, bad = (int(counts.get(name, 0)) for name in (*self.pair, "same", "both bad"))
        rubric = {}
        for name in RUBRIC:
            marks = table[[f"{who} {name}" for who in self.pair]]
            marks = marks[(marks != "").all(axis=1)] == "yes"
            if len(marks):
                rubric[name] = dict(zip(self.pair, map(float, marks.mean()), strict=True)) | {"rows": len(marks)}
        rest = [f"the same in {ties}"] * bool(ties) + [f"both bad in {bad}"] * bool(bad)
        rest += [f"undecided {shown - done}"] * (done < shown)
        sentence = in_words(self.pair, wins, losses) + (f" Of {shown} rows: {', '.join(rest)}." if rest else "")
        if self.identical:
            sentence += f" Not asked: {self.identical} of {self.total} rows, where both gave the same answer."
        about |= {"wins": wins, "ties": ties, "both_bad": bad, "losses": losses} | preference(wins, losses)
        about["left_chosen"] = int((table["preferred"] == table["left"]).sum())
        return about | {"rubric": rubric, "verdict": verdict(wins, losses), "sentence": sentence}


def _checked(answers: pd.DataFrame, pair: tuple[str, str]) -> pd.DataFrame:
    """Return question, wanted and the two answers as texts. Raises `DatasetError` where one is missing."""
    if len(pair) != 2 or pair[0] == pair[1]:
        raise SettingsError(f"pair={pair!r} must name two different columns; try ('base', 'tuned')")
    if taken := {"question", "wanted", "left", "right", *CHOICES} & set(pair):
        raise SettingsError(f"pair={pair!r}: {min(taken)!r} means something else here; rename that column")
    for name in ("question", *pair):
        if name not in answers.columns:
            raise DatasetError(f"answers has no column {name!r}; it has {', '.join(map(str, answers.columns))}")
        if wrong := [i for i, text in enumerate(answers[name]) if not isinstance(text, str)]:
            raise DatasetError(f"answers has no text in column {name!r}, row {wrong[0]}; generate the missing answers first")
    table = answers[["question", *pair]].reset_index(drop=True)
    return table.assign(wanted=answers["wanted"].fillna("").astype(str).to_list() if "wanted" in answers.columns else "")


def _digest(*texts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, texts)).encode("utf-8", "surrogatepass")).hexdigest()


def _guard(text: str) -> str:
    """Put an apostrophe before what Excel would run as a formula; then it shows it."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "'")) else text


def _check(said: dict[str, str]) -> None:
    """Raise `SettingsError` for a name or value that a decision can't have."""
    for name, value in said.items():
        known = {"choice": CHOICES, **dict.fromkeys(MARKS, ("yes", "no"))}.get(name)
        if known is None and name != "notes":
            raise SettingsError(f"{name!r} is nothing to decide; choose from {', '.join(TO_DECIDE)}")
        if known and value and value not in known:
            raise SettingsError(f"{name}={value!r} must be one of {', '.join(known)}, or '' for none")
