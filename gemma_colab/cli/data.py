"""`gemma-colab check` and `prepare`: notebook 01 without a browser."""

from __future__ import annotations

import argparse
import json
import sys

from gemma_colab import BlockedError, open_workspace, quiet_libraries
from gemma_colab.data import check_rows, prepare_rows, read_rows

EXIT_CODES = {"ready": 0, "fix first": 1, "blocked": 2}


def _column(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN, such as output=Ответ")
    return name, column


def add_commands(commands) -> None:
    """Declare both commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    shared = argparse.ArgumentParser(add_help=False)
    option = shared.add_argument
    option("file", help="JSONL, JSON, CSV, TSV, Excel, Parquet, any of these gzipped, or a Hugging Face dataset id")
    option("--map", action="append", type=_column, default=[], metavar="NAME=COLUMN", help="such as output=Ответ")
    option("--sheet", default=0, help="of an Excel file: its name, or its number from 0")
    option("--split", default="train", help="of a Hugging Face dataset")
    option("--limit", type=int, metavar="N", help="read at most N rows")
    option("--accept", action="append", default=[], metavar="FINDING", help="overrule a finding, by its name")
    option("--model", metavar="NAME", help="count tokens with this model's tokenizer (tiny-gemma3, a name, a folder)")
    option("--max-length", type=int, default=1024, metavar="TOKENS", help="of a row in training (default %(default)s)")
    option("--json", action="store_true", help="the report as JSON")

    check = commands.add_parser("check", parents=[shared], help="report what is wrong with a dataset; changes nothing")
    check.set_defaults(run=_check)
    prepare = commands.add_parser("prepare", parents=[shared], help="clean, split and save it in a workspace")
    prepare.set_defaults(run=_prepare)
    option = prepare.add_argument
    option("--workspace", required=True, metavar="DIR", help="where the rows go")
    option("--too-long", choices=("keep", "drop", "split"), default="keep", help="rows beyond --max-length; needs --model")
    option("--steps", nargs="+", metavar="STEP", help="of cleaning; without it all of them")
    option("--groups", metavar="COLUMN", help="rows with the same value of it stay together, such as those of one customer")
    for name, value in {"validation_size": 0.1, "test_size": 0.15, "seed": 0}.items():
        option(f"--{name.replace('_', '-')}", type=type(value), default=value, help="default %(default)s")


def _reading(args: argparse.Namespace) -> dict:
    sheet = int(args.sheet) if str(args.sheet).isdecimal() else args.sheet
    return {"mapping": dict(args.map) or None, "sheet": sheet, "split": args.split, "limit": args.limit}


def _counting(args: argparse.Namespace) -> dict:
    if args.model is None:
        return {"tokenizer": None, "max_length": args.max_length}
    from gemma_colab.model import load_tokenizer

    quiet_libraries()  # transformers warns of rows longer than its own limit; the report says more
    return {"tokenizer": load_tokenizer(args.model), "max_length": args.max_length}


def _show(report, as_json: bool, **more) -> int:
    print(json.dumps(report.to_dict() | more, ensure_ascii=False, indent=1) if as_json else report)
    return EXIT_CODES[report.verdict]


def _check(args: argparse.Namespace) -> int:
    found = read_rows(args.file, on_bad="aside", **_reading(args))
    if not args.json:
        print(found, end="\n\n")
    report = check_rows(found.rows, aside=found.aside, accept=args.accept, **_counting(args))
    return _show(report, args.json, file=found.name, form=found.schema, details=found.details)


def _prepare(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    split = {name: getattr(args, name) for name in ("validation_size", "test_size", "seed", "groups")}
    how_to_clean = {"steps": tuple(args.steps)} if args.steps else {}
    options = split | how_to_clean | _counting(args) | _reading(args)
    try:
        report, how = prepare_rows(args.file, workspace, accept=args.accept, too_long=args.too_long, **options)
    except BlockedError as e:
        print(e, file=sys.stderr)
        _show(e.report, args.json)
        return EXIT_CODES["blocked"]  # also where the rows are ready, and only can't be split
    status = _show(report, args.json, split=how)
    if not args.json:
        print(f"\n{how}\nsaved in {workspace.path / 'rows'}, with cleaning_log.jsonl: every change, before and after")
    return status
