"""`gemma-colab check` and `prepare`: notebook 01 without a browser."""

from __future__ import annotations

import argparse
import json
import sys

from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import BlockedError
from gemma_colab.core.workspace import open_workspace
from gemma_colab.data.cleaning import STEPS
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import EXIT_CODES, Report, check_rows
from gemma_colab.data.splitting import SplitSettings
from gemma_colab.handover.rows import prepare_rows


def _column(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN, such as output=Ответ")
    return name, column


def add_commands(commands) -> None:
    """Declare both commands; each sets `run`, a function of the parsed arguments that returns the exit status."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("file", help="JSONL, JSON, CSV, TSV, Excel, Parquet, any of these gzipped, or a Hugging Face dataset id")
    shared.add_argument("--map", action="append", type=_column, default=[], metavar="NAME=COLUMN", help="such as output=Ответ")
    shared.add_argument("--sheet", default=0, help="of an Excel file: its name, or its number from 0")
    shared.add_argument("--split", default="train", help="of a Hugging Face dataset")
    shared.add_argument("--limit", type=int, metavar="N", help="read at most N rows")
    shared.add_argument("--accept", action="append", default=[], metavar="FINDING", help="overrule a finding, by its name")
    shared.add_argument(
        "--model", metavar="NAME", help="count tokens with this model's tokenizer (tiny-gemma3, a name, a folder)"
    )
    shared.add_argument(
        "--max-length", type=int, default=1024, metavar="TOKENS", help="of a row in training (default %(default)s)"
    )
    shared.add_argument("--json", action="store_true", help="the report as JSON")

    check = commands.add_parser("check", parents=[shared], help="report what is wrong with a dataset; changes nothing")
    check.set_defaults(run=_check)
    prepare = commands.add_parser("prepare", parents=[shared], help="clean, split and save it in a workspace")
    prepare.set_defaults(run=_prepare)
    prepare.add_argument("--workspace", required=True, metavar="DIR", help="where the rows go")
    prepare.add_argument("--every-answer", action="store_true", help=argparse.SUPPRESS)  # all are trained since version 2
    prepare.add_argument(
        "--too-long", choices=("keep", "drop", "split"), default="keep", help="rows beyond --max-length; needs --model"
    )
    prepare.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=f"of {', '.join(STEPS)}")
    for name in ("validation_size", "test_size", "seed"):
        default = getattr(SplitSettings(), name)
        option = f"--{name.replace('_', '-')}"
        prepare.add_argument(option, type=type(default), default=default, help="default %(default)s")


def _reading(args: argparse.Namespace) -> dict:
    sheet = int(args.sheet) if str(args.sheet).isdecimal() else args.sheet
    return {"mapping": dict(args.map) or None, "sheet": sheet, "split": args.split, "limit": args.limit}


def _counting(args: argparse.Namespace) -> dict:
    if args.model is None:
        return {"tokenizer": None, "max_length": args.max_length}
    from gemma_colab.core.machine import quiet_libraries

    quiet_libraries()  # transformers warns of rows longer than its own limit; the report says more
    return {"tokenizer": load_tokenizer(args.model), "max_length": args.max_length}


def _show(report: Report, as_json: bool, **more) -> int:
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
    split = SplitSettings(validation_size=args.validation_size, test_size=args.test_size, seed=args.seed)
    try:
        report, how = prepare_rows(
            args.file,
            workspace,
            steps=tuple(args.steps),
            split_settings=split,
            accept=args.accept,
            too_long=args.too_long,
            **_counting(args),
            **_reading(args),
        )
    except BlockedError as e:
        print(e, file=sys.stderr)
        _show(e.report, args.json)
        return EXIT_CODES["blocked"]
    status = _show(report, args.json, split=how)
    if not args.json:
        print(f"\n{how}\nsaved in {workspace.path / 'rows'}, with cleaning_log.jsonl: every change, before and after")
    return status
