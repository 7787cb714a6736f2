"""`gemma-colab`: the series without a browser. The commands are declared in `data.py`,
`machine.py`, `training.py`, `evaluation.py` and `export.py`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import NoReturn

from gemma_colab import GemmaColabError
from gemma_colab.cli import data, evaluation, export, machine, training

USAGE = 4
DESCRIPTION = """The series without a browser. Exit status of check and prepare: 0 ready, 1 warnings, 2 blocked, 3 unreadable;
of doctor: 0 all well, 1 warnings, 2 something must be done first; of plan: 0 fits, 1 tight, 2 does not fit; of train: 0 trained,
1 trained, but it did not learn, overfitted or was unstable, 2 stopped, by an interrupt or because it broke (with several processes
accelerate launch says 0 for both kinds of trained, 1 for all else); of evaluate: 0 ship it, or read first, 1 not yet, 2 no; of export: 0 written,
1 written, but a merged model that differs from what was trained; of all: 4 wrong usage."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")  # argparse would say 2, which means "blocked" here


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gemma-colab",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    data.add_commands(commands)
    machine.add_commands(commands)
    training.add_commands(commands)
    evaluation.add_commands(commands)
    export.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):  # a console that lacks Cyrillic shows escapes instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        print(f"{e.strerror or e}: {e.filename or ''}", file=sys.stderr)
        return USAGE
    except GemmaColabError as e:
        if os.environ.get("RANK", "0") != "0":
            # Of several processes the first speaks, and writes what it has to: with the first that ends, accelerate ends all. One
            # that is still there after this time met something of its own.
            time.sleep(5)
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.status
