"""Notebook 01 in one call: read, clean, check, split and save any dataset; and the rows for a notebook that starts alone."""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import BlockedError, DatasetError, SettingsError, WorkspaceError, say
from gemma_colab.core.rows import Row, to_messages
from gemma_colab.core.workspace import SPLIT_FILES, SPLITS, Workspace, private, samples
from gemma_colab.data.cleaning import DEFAULT, STEPS, clean, summarize
from gemma_colab.data.finding import Finding
from gemma_colab.data.looking import AS_READ
from gemma_colab.data.personal import mask, own_contacts, redact
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import Report, check_rows
from gemma_colab.data.review import Review
from gemma_colab.data.splitting import SplitSettings, split_rows
from gemma_colab.data.turns import fit
from gemma_colab.model.choice import starting_point

SOURCE = "source.json"  # beside rows, or beside the report of a blocked file: whose they are
UNNAMED = {"file": "a file of yours", "sample": False}  # rows of a program, or of an older workspace


def prepare_rows(
    source: str | Path,
    workspace: Workspace,
    *,
    steps: Sequence[str] = DEFAULT,
    also: Sequence[str] = (),
    accept: Iterable[str] = (),
    keep: Iterable[str] = (),
    model: str | None = None,
    tokenizer=None,
    max_length: int | None = None,
    too_long: str = "keep",
    groups: str | None = None,
    originals: bool = False,
    validation_size: float = 0.1,
    test_size: float = 0.15,
    seed: int = 0,
    **reading,
) -> tuple[Report, str]:
    """Read, clean, apply the decisions of an earlier review, check, split and save, in one call: notebook 01 in short.

    source and reading: as for `data.read_rows`; rows that can't be read are put aside, and are an error of the report. steps, also, keep:
    as for `data.clean`; the report says what each did, and the others would do. accept: findings you overrule, see `data.check_rows`.
    model: whose tokenizer counts, and whose usual `max_length` (else 1,024), where these two aren't given.
    groups: a column of the file, such as the customer; its rows stay on one side of the split, see `data.split_rows`. too_long: "keep"
    rows beyond max_length (they will be cut), or "drop" or "split" them as `data.turns.fit` does.

    Returns the report after cleaning, and sentences on what reading left out or guessed and on the split. Writes `rows/<split>.jsonl`,
    `rows/report.json`, and what was changed or left out: `rows/cleaning_log.jsonl`, `review_log.jsonl`, `aside.jsonl`, `too_long.jsonl`,
    with personal data masked; originals: also as they were, `rows/unmasked_cleaning_log.jsonl` and so on, which `undo` needs.
    Raises `DatasetError` when the file can't be read, `WorkspaceError` when a sample would replace rows of your own, and `BlockedError`
    when the report is blocked or the rows can't be split: no rows are written, the rest goes to `blocked/`, and a sample's rows that
    were there are deleted, so that nobody trains on them by mistake.
    """
    for own in map(workspace.own, ("rows", "blocked")):
        if own in [path := Path(source).absolute().resolve(), *path.parents]:
            raise SettingsError(f"source={str(source)!r} is in {own}, which would be overwritten; copy it elsewhere first")
    if os.path.isdir(source) and workspace.path.is_relative_to(Path(source).resolve()):
        what = f"the folder source={str(source)!r} holds the workspace {workspace.path}, whose rows would be read as new ones"
        raise SettingsError(f"{what}; name the file, or a workspace elsewhere")
    whose = _whose(source, workspace)
    tokenizer = tokenizer or (load_tokenizer(model) if model else None)
    max_length = max_length or (starting_point(model)[1].max_length if model else 1024)
    if groups:  # the reader keeps this column, and rows of one conversation are never parted
        reading["mapping"] = (reading.get("mapping") or {}) | {"conversation": groups}
    split_settings = SplitSettings(validation_size=validation_size, test_size=test_size, seed=seed)
    found, review = read_rows(source, on_bad="aside", **reading), Review(workspace)
    keep = ("only", *own_contacts(found.rows, keep), *keep)  # what is the house's own is told before rows are dropped
    cleaned, log = clean(found.rows, steps, also, keep)
    masked = "mask_personal_data" in (*steps, *also)
    rows, decided = review.apply(cleaned, partial(mask, keep=own_contacts(found.rows, keep)) if masked else str)
    logs = {"cleaning_log": log, "review_log": decided, "too_long": []}
    logs["aside"] = json.loads(json.dumps(found.aside, default=str))  # a bad row may hold dates
    changes = [*review.unused(cleaned, found.rows), *summarize(found.rows, log), *summarize(cleaned, decided)]
    if too_long != "keep":
        rows, logs["too_long"] = fit(rows, tokenizer, max_length, too_long)
        if lines := logs["too_long"]["line"].tolist():
            changes.append(Finding(f"too long: {too_long}", "I", "as you asked; too_long.jsonl has them whole", lines=lines))
    for step in [step for step in STEPS if step not in (*steps, *also)]:
        changes += summarize(rows, clean(rows, [step], keep=keep)[1], done=False)
    how = {"aside": found.aside, "accept": accept, "kept": review.kept, "personal": {"keep": keep}}
    report = check_rows(rows, tokenizer=tokenizer, max_length=max_length, **how)
    report, splits, how = report.with_findings(changes, accept), None, report.reason
    if report.verdict != "blocked":
        try:
            splits, notes = split_rows(rows, validation_size=validation_size, test_size=test_size, seed=seed)
            report, how = report.with_findings(notes.findings, accept), "\n".join([*found.notes, notes.sentence])
        except DatasetError as e:
            how = str(e)
    folder = "rows" if splits else "blocked"  # never a report of one file beside the rows of another
    workspace.write_json(f"{folder}/report.json", report.to_dict())
    kept = _save_logs(logs, workspace, folder, originals)
    if not splits:
        workspace.write_json(f"{folder}/{SOURCE}", whose)
        if saved_source(workspace).get("sample") and not whose["sample"]:
            for name in SPLIT_FILES:
                (workspace.path / name).unlink(missing_ok=True)
        errors = json.dumps([f.check for f in report.findings if f.severity == "E"], ensure_ascii=False)
        go_on = f", or go on in spite of it with accept={errors}" * (report.verdict == "blocked")
        remedy = f"correct the file{go_on}; {workspace.path / folder} lists what was put aside and changed"
        raise BlockedError(f"{found.name}: {how}; {remedy}", report)
    if workspace.has(f"blocked/{SOURCE}"):  # of a file before this one
        for name in (SOURCE, "report.json", *(f"{un}{log}.jsonl" for log in logs for un in ("", "unmasked_"))):
            (workspace.own("blocked") / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            (workspace.path / "blocked").rmdir()
    save_rows(splits, workspace, source)
    split_settings.save(workspace)
    return report, "\n".join(filter(None, (how, kept)))


def save_rows(
    splits: dict[str, list[Row]], workspace: Workspace, source: str | Path | None = None, originals: bool = False, **logs: Any
) -> None:
    """Write `rows/<split>.jsonl`: rows as TRL reads them, with the line of your file that each came from.

    source: that file. Raises `WorkspaceError` when it is a sample of this project, and the workspace has rows of your own. logs: those of
    `clean` and of the review, such as cleaning_log=log, for `rows/cleaning_log.jsonl`; originals: as in `prepare_rows`.
    """
    whose = _whose(source, workspace)
    if kept := _save_logs(logs, workspace, "rows", originals):
        say(kept)
    # All are written before the first, train, takes its place, as new train beside old test would leak. And without the checksums of
    # masked texts, which would give a phone away to anybody who tries all phones.
    with ExitStack() as together:
        for split, lines in reversed(splits.items()):
            part = together.enter_context(workspace.writing(f"rows/{split}.jsonl"))
            with open(part, "w", encoding="utf-8", errors="backslashreplace", opener=private) as file:
                for line in lines:
                    file.write(json.dumps({key: line[key] for key in line if key != AS_READ}, ensure_ascii=False) + "\n")
        workspace.write_json(f"rows/{SOURCE}", whose | {"unfinished": True})  # who is killed from here on leaves a mix
    workspace.write_json(f"rows/{SOURCE}", whose)


def _whose(source: str | Path | None, workspace: Workspace) -> dict:
    """Return {"file", "sample"} of a source. Raises `WorkspaceError` when a sample would replace rows of somebody's own."""
    told, there = UNNAMED, saved_source(workspace)
    if source is not None:
        told = {"file": Path(source).name, "sample": Path(source).resolve().parent == samples().resolve()}
    if told["sample"] and there and not there["sample"]:
        what = f"{workspace.path} holds the rows of {there['file']}, which those of {told['file']} would replace"
        raise WorkspaceError(f"{what}; open another one for the sample, such as open_workspace('lesson')")
    return told


def saved_source(workspace: Workspace) -> dict:
    """Return {"file": name, "sample": whether it is one of this project} of the rows in a workspace; {} where there are none."""
    if not any(map(workspace.has, SPLIT_FILES)):
        return {}
    return workspace.read_json(f"rows/{SOURCE}") if workspace.has(f"rows/{SOURCE}") else UNNAMED


def _save_logs(logs: dict[str, Any], workspace: Workspace, folder: str, originals: bool) -> str:
    """Write the logs with personal data masked, and say where there were any; originals: also as they were."""
    masked = 0
    for name, log in logs.items():
        lines = log.to_dict("records") if isinstance(log, pd.DataFrame) else log
        workspace.write_jsonl(f"{folder}/{name}.jsonl", redacted := [_redacted(line) for line in lines])
        masked += sum("redacted" in line for line in redacted)
        (workspace.path / folder / f"unmasked_{name}.jsonl").unlink(missing_ok=True)  # of an earlier file
        if originals:
            lines = [{"unmasked": "personal data as the file had them"} | line for line in lines]
            workspace.write_jsonl(f"{folder}/unmasked_{name}.jsonl", lines)
    if originals:
        return f"unmasked_*.jsonl in {folder}/ hold personal data as in the file; undo needs them, delete them when you don't"
    what = f"personal data are masked in {masked} line{'s' * (masked > 1)} of the logs in {folder}/"
    return f"{what}; originals=True (--originals) also keeps them unmasked, which undo needs" if masked else ""


def _redacted(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a log as it is saved."""
    if not line.get("field"):
        with suppress(ValueError, TypeError, KeyError, AttributeError):  # a row that was left out is there as JSON
            row = {key: value for key, value in json.loads(line["before"]).items() if key != AS_READ}
            line = line | {"before": json.dumps(row, ensure_ascii=False)}
            new = redact(line) | {"before": json.dumps(redact(row), ensure_ascii=False)}
            return new if new == line else new | {"redacted": True}
    return line if (new := redact(line)) == line else new | {"redacted": True}


def ensure_rows(workspace: Workspace) -> dict[str, list[Row]]:
    """Return {"train", "validation", "test"} -> rows, as notebook 01 saved them, and say which file they are of. Where it didn't run, they
    are made of the sample `support_ru.jsonl`. Raises `WorkspaceError` where your own file was blocked and nothing else was saved."""
    blocked = workspace.read_json(f"blocked/{SOURCE}") if workspace.has(f"blocked/{SOURCE}") else {"sample": True}
    if not saved_source(workspace):  # where one is there, the others must be too: never overwrite somebody's rows
        if not blocked["sample"]:
            remedy = "correct it and run notebook 01 again; or, to work with the sample, open another workspace"
            what = f"{blocked['file']} was blocked, so there are no rows of it (see {workspace.path / 'blocked'})"
            raise WorkspaceError(f"{what}; {remedy}")
        say("Notebook 01 has not run in this workspace: making the rows from the sample support_ru.jsonl.")
        prepare_rows(samples() / "support_ru.jsonl", workspace)
    if (source := saved_source(workspace)).get("unfinished"):
        raise WorkspaceError(f"{workspace.path / 'rows'} mixes old and new rows: notebook 01 was cut off; run it again")
    rows = {split: workspace.read_jsonl(f"rows/{split}.jsonl", to_messages) for split in SPLITS}
    counts = ", ".join(f"{len(some):,} {split}" for split, some in rows.items())
    say(f"Rows of {source['file']}" + " (a sample of this project, not your own data)" * source["sample"] + f": {counts}.")
    if not blocked["sample"]:
        say(f"{blocked['file']} was blocked, and none of its rows are among them.")
    return rows
