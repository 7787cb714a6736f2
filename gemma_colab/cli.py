"""`gemma-colab`: the series without a browser. So far its first notebook: check a dataset, prepare it.

Exit status: 0 ready, 1 warnings, 2 blocked, 3 unreadable, 4 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import NoReturn

from gemma_colab.chat import load_tokenizer
from gemma_colab.data.cleaning import STEPS
from gemma_colab.data.reading import read_rows
from gemma_colab.data.report import EXIT_CODES, Report, check_rows
from gemma_colab.errors import BlockedError, DatasetError, GemmaColabError
from gemma_colab.pipeline import prepare_rows
from gemma_colab.settings import SplitSettings
from gemma_colab.workspace import open_workspace

UNREADABLE, USAGE = 3, 4


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")  # argparse would say 2, which means "blocked" here


def _column(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN, such as output=Ответ")
    return name, column


def _parser() -> argparse.ArgumentParser:
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

    parser = _Parser(prog="gemma-colab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("check", parents=[shared], help="report what is wrong with a dataset; changes nothing")
    prepare = commands.add_parser("prepare", parents=[shared], help="clean, split and save it in a workspace")
    prepare.add_argument("--workspace", required=True, metavar="DIR", help="where the rows go")
    prepare.add_argument("--every-answer", action="store_true", help="train all answers of a conversation, not only the last")
    prepare.add_argument(
        "--too-long", choices=("keep", "drop", "split"), default="keep", help="rows beyond --max-length; needs --model"
    )
    prepare.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=f"of {', '.join(STEPS)}")
    for name in ("validation_size", "test_size", "seed"):
        default = getattr(SplitSettings(), name)
        option = f"--{name.replace('_', '-')}"
        prepare.add_argument(option, type=type(default), default=default, help="default %(default)s")
    return parser


def _tokenizer(name: str | None):
    if name is None:
        return None
    from gemma_colab.hardware import quiet_libraries

    quiet_libraries()  # transformers warns of rows longer than its own limit; the report says more
    return load_tokenizer(name)


def _show(report: Report, as_json: bool, **more) -> int:
    print(json.dumps(report.to_dict() | more, ensure_ascii=False, indent=1) if as_json else report)
    return EXIT_CODES[report.verdict]


def _check(args: argparse.Namespace, reading: dict, counting: dict) -> int:
    found = read_rows(args.file, on_bad="aside", **reading)
    if not args.json:
        print(found, end="\n\n")
    report = check_rows(found.rows, aside=found.aside, accept=args.accept, **counting)
    return _show(report, args.json, file=found.name, form=found.form, details=found.details)


def _prepare(args: argparse.Namespace, reading: dict, counting: dict) -> int:
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
            every_answer=args.every_answer,
            **counting,
            **reading,
        )
    except BlockedError as e:
        print(e, file=sys.stderr)
        _show(e.report, args.json)
        return EXIT_CODES["blocked"]
    status = _show(report, args.json, split=how)
    if not args.json:
        print(f"\n{how}\nsaved in {workspace.path / 'rows'}, with cleaning_log.jsonl: every change, before and after")
    return status


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a console that lacks Cyrillic shows escapes instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    sheet = int(args.sheet) if str(args.sheet).isdecimal() else args.sheet
    reading = {"mapping": dict(args.map) or None, "sheet": sheet, "split": args.split, "limit": args.limit}
    try:
        counting = {"tokenizer": _tokenizer(args.model), "max_length": args.max_length}
        return {"check": _check, "prepare": _prepare}[args.command](args, reading, counting)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        print(f"{e.strerror or e}: {e.filename or ''}", file=sys.stderr)
        return USAGE
    except GemmaColabError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return UNREADABLE if isinstance(e, DatasetError) else USAGE
