"""All checks over a dataset, and what came of them: a verdict and findings, as page, table, text or JSON."""

import inspect
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import Row, answer, place
from gemma_colab.data import checks_set, checks_text, checks_tokens  # noqa: F401  they register their checks
from gemma_colab.data.finding import CHECKS, CheckContext, Finding
from gemma_colab.data.looking import fingerprint
from gemma_colab.data.personal import redact
from gemma_colab.model.lengths import token_lengths

ASIDE = {  # findings of rows that reading put aside: could not read, and those that the file wants out
    "unreadable row": ("E", "correct them in the file, or accept 'unreadable row' to go on without them"),
    "not to be learned": ("W", "left out, as the file says; look, and accept 'not to be learned'"),
}
# Every name a finding may have: those of the checks, and what is found beside them.
SUSPECTS = ("near a bad answer", "high loss")  # what `handover.blame` finds when the model is trained
FINDINGS = {*ASIDE, *SUSPECTS, "lengths", "reviewed", "unused decision", "leak", "validation too small"}
FINDINGS |= {name for check in CHECKS for name in check.names}
VERDICTS = {"E": "blocked", "W": "fix first", "I": "ready"}  # severity of the worst finding -> verdict


@dataclass(frozen=True)
class Report:
    """The rows, what the checks found, worst first, and the token lengths if a tokenizer was given. A notebook shows it as a page."""

    rows: list[Row]
    findings: list[Finding]
    max_length: int
    lengths: pd.DataFrame | None = None
    aside: list[dict] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "ready", "fix first" or "blocked"."""
        return VERDICTS[min((f.severity for f in self.findings), key="EWI".index, default="I")]

    @property
    def reason(self) -> str:
        """The verdict with the checks behind it."""
        names = dict.fromkeys(f.check for f in self.findings if f.severity != "I" and VERDICTS[f.severity] == self.verdict)
        return f"{self.verdict}: {', '.join(names) or 'no errors, no warnings'}"

    def page(self, most: int = 20):
        """Show the whole report; each finding opens to at most `most` of its rows."""
        from IPython.display import HTML  # only a notebook needs it

        from gemma_colab.data.page import report_page

        return HTML(report_page(self, most))

    def _repr_html_(self) -> str:
        return self.page().data

    def with_findings(self, findings: list[Finding], accept: Iterable[str] = ()) -> "Report":
        """Return the report with more findings, such as those of `split_rows`. accept: as in `check_rows`."""
        accept, more = set(accept), []
        if unknown := sorted(accept - FINDINGS):
            raise SettingsError(f"accept={unknown[0]!r} is not a finding; choose from {', '.join(sorted(FINDINGS))}")
        for f in findings:
            if f.check != "own contacts":  # an advice may quote answers
                f = replace(f, what_to_do=redact(f.what_to_do))
            told = {"severity": "I", "what_to_do": f"accepted by you ({f.severity}): {f.what_to_do}"}
            more.append(replace(f, **told) if f.check in accept and f.severity != "I" else f)
        return replace(self, findings=sorted([*self.findings, *more], key=lambda f: "EWI".index(f.severity)))

    def table(self) -> pd.DataFrame:
        """One line a finding: severity, check, how many rows, the first few (by line of the file, if known), what to do."""
        lines = [(f.severity, f.check, f.count, self.places(f), f.what_to_do) for f in self.findings]
        return pd.DataFrame(lines, columns=["severity", "check", "rows", "where", "what to do"])

    def lines(self, finding: Finding) -> list[int | None]:
        """Lines of the file, from 1, in the order of `finding.rows`; None where a row didn't come from a file."""
        return finding.lines or [self.rows[row].get("line") for row in finding.rows]

    def places(self, finding: Finding, most: int = 5) -> str:
        """Where the first few rows are: "line 3, 5, 8 ...", or items of a list that is written on one line."""
        rows = [line if isinstance(line, str) else f"line {line}" for line in finding.lines[:most]]
        rows = rows or [place(self.rows[row], row) for row in finding.rows[:most]]
        if len({text.split()[0] for text in rows}) == 1:
            rows[1:] = [text.split()[1] for text in rows[1:]]
        return ", ".join(rows) + " ..." * (finding.count > most)

    def counts(self) -> dict[str, float]:
        """Rows, conversations of several turns, characters; tokens as percentiles 5, 50, 95 and the longest, if known."""
        roles = [[turn["role"] for turn in row["messages"]] for row in self.rows]
        counts = {
            "rows": len(self.rows),
            "put aside": len(self.aside),
            "with several questions": sum(some.count("user") > 1 for some in roles),
            "with a system prompt": sum("system" in some for some in roles),
            "characters in an answer, median": round(statistics.median(map(len, map(answer, self.rows)))) if self.rows else 0,
        }
        if self.lengths is not None:
            quantiles = self.lengths["total"].quantile([0.05, 0.5, 0.95, 1])
            counts |= dict(zip(("tokens p5", "tokens p50", "tokens p95", "tokens max"), map(round, quantiles), strict=True))
        return counts

    def to_dict(self) -> dict:
        """For JSON: every finding with its check, severity, row numbers (from 0) and lines of the file (from 1)."""
        findings = []
        for f in self.findings:
            found = {"check": f.check, "severity": f.severity, "rows": f.rows, "lines": self.lines(f), "what_to_do": f.what_to_do}
            findings.append(found | {"items": [self.rows[row].get("item") for row in f.rows]})
        said = {"verdict": self.verdict, "reason": self.reason, "counts": self.counts(), "max_length": self.max_length}
        return said | {"findings": findings}

    def __repr__(self) -> str:
        lines = [self.reason, ", ".join(f"{name} {value:g}" for name, value in self.counts().items() if value)]
        for f in self.findings:
            where = f" in {n} row{'s' * (n > 1)} ({self.places(f)})" if (n := f.count) else ""
            lines.append(f"{f.severity}  {f.check}{where}: {f.what_to_do}")
            bad = put_aside(self.aside, f.check)
            lines += [f"     {redact(one.get('sentence', one['problem']))}" for one in bad[:5]]
            lines += [f"     and {len(bad) - 5} more"] * (len(bad) > 5)
        # A terminal obeys control characters, so those of a dataset are written out.
        return "\n".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def parameters() -> dict[str, dict]:
    """Return every check with named thresholds -> those thresholds and their defaults."""
    named = {check.__name__: inspect.signature(check).parameters.values() for check in CHECKS}
    return {name: {p.name: p.default for p in some if p.name != "context"} for name, some in named.items() if len(some) > 1}


def check_rows(
    rows: list[Row],
    *,
    tokenizer=None,
    max_length: int = 1024,
    num_train_epochs: float = 3.0,
    aside: Iterable[dict] = (),
    accept: Iterable[str] = (),
    kept: dict[str, set[str]] | None = None,
    **thresholds: dict,
) -> Report:
    """Run every check; those that count tokens only with a tokenizer.

    max_length: tokens of a row that training will keep. aside: rows that could not be read (`Source.aside`).
    accept: names of findings that you overrule, "W" or "E"; they stay in the report as "I".
    kept: `Review.kept`, the warnings about single rows that a person has looked at and overruled; they become "I".
    thresholds: by check, such as `near_duplicates={"threshold": 0.8}`; `parameters()` lists them.
    Raises `SettingsError` for a check, a threshold or a finding that doesn't exist.
    """
    known = parameters()
    for check, values in thresholds.items():
        if check not in known:
            raise SettingsError(f"{check!r} is not a check with thresholds; choose from {', '.join(sorted(known))}")
        if wrong := sorted(set(values) - set(known[check])):
            raise SettingsError(f"{check} has no threshold {wrong[0]!r}; it has {', '.join(known[check])}")
    near = (known["near_duplicates"] | thresholds.get("near_duplicates", {}))["threshold"]
    lengths = token_lengths(rows, tokenizer, max_length) if tokenizer is not None and rows else None
    context = CheckContext(rows, max_length, num_train_epochs, near, lengths, tokenizer)
    aside = list(aside)
    bad = {name: [one["line"] for one in put_aside(aside, name)] for name in ASIDE}
    findings = [Finding(name, *ASIDE[name], lines=lines) for name, lines in bad.items() if lines]
    possible = [check for check in CHECKS if lengths is not None or not check.counts_tokens] if rows else [checks_set.too_few]
    for check in tqdm(possible, desc="checks", disable=len(rows) < 2000, leave=False):
        findings += check(context, **thresholds.get(check.__name__, {}))
    if tokenizer is None and rows:
        advice = f"not counted, so nothing is said about max_length={max_length}: give the tokenizer of your model (on the command line: --model)"
        findings.append(Finding("lengths", "I", advice))
    return Report(rows, [], max_length, lengths, aside).with_findings(_without_kept(findings, rows, kept or {}), accept)


def put_aside(aside: list[dict], check: str) -> list[dict]:
    """Return the rows that were put aside for this finding; for one that is not in `ASIDE` none."""
    return [bad for bad in aside if check == ("not to be learned" if "marked" in bad else "unreadable row")]


def _without_kept(findings: list[Finding], rows: list[Row], kept: dict[str, set[str]]) -> list[Finding]:
    mine = [kept.get(fingerprint(row), ()) for row in rows] if kept else [()] * len(rows)
    left, reviewed = [], []
    for f in findings:
        seen = {hit for hit in f.hits if f.severity == "W" and f.check in mine[hit.row]}
        reviewed += [hit._replace(note=f"{f.check}: kept by you") for hit in f.hits if hit in seen]
        if len(seen) < len(f.hits) or not f.hits:
            left.append(replace(f, hits=[hit for hit in f.hits if hit not in seen]))
    return [*left, Finding("reviewed", "I", "you looked at these and kept them", reviewed)] if reviewed else left
