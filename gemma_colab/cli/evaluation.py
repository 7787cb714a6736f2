"""`gemma-colab evaluate`: notebook 05 without a browser, all but what needs a person."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from gemma_colab import GemmaColabError, evaluation, open_workspace, quiet_libraries

MAY_SHIP, NOT_YET, NO = 0, 1, 2


def add_commands(commands) -> None:
    """Declare the command; it sets `run`, a function of the parsed arguments that returns the exit status."""
    evaluate = commands.add_parser("evaluate", help="compare base, few-shot and tuned on the test rows; writes a report")
    evaluate.set_defaults(run=_evaluate)
    option = evaluate.add_argument
    option("--workspace", required=True, metavar="DIR", help="where train, or notebook 04, put the adapter")
    option("--rows", type=_from(1), metavar="N", help="at most so many test rows, drawn at random (default all)")
    option("--examples", type=_from(0), default=3, metavar="N", help="solved rows in the few-shot prompt; 0 leaves it out")
    option("--max-new-tokens", type=_from(1), metavar="N", help="of an answer (default: enough for the longest right one)")
    option("--batch", type=_from(1), default=32, metavar="N", help="questions answered at once (default %(default)s)")
    bar_help = 'ship only if at least this share of test rows is right, as "valid JSON=0.95"; may be repeated; kept'
    option("--bar", action="append", type=_bar, default=[], metavar="MEASURE=SHARE", help=bar_help)
    option("--anyway", action="store_true", help="also a model that looks too large for this machine")
    option("--json", action="store_true", help="the summary as JSON; everything else goes to the error output")


def _bar(text: str) -> tuple[str, float]:
    try:
        name, share = text.rsplit("=", 1)  # one part alone is a ValueError too
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no bar; write one like "valid JSON=0.95"') from None


def _from(least: int):
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least}")
        return int(text)

    return number


def _evaluate(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    for name, command in (("rows/test.jsonl", "prepare FILE"), ("adapter", "train")):
        if not workspace.has(name):
            raise GemmaColabError(
                f"{name} is missing in {workspace.path}; make it with gemma-colab {command} --workspace {args.workspace}"
            )
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        quiet_libraries()
        how = {"examples": args.examples, "max_new_tokens": args.max_new_tokens, "batch_size": args.batch}
        summary = evaluation.assess(workspace, anyway=args.anyway, bars=dict(args.bar) or None, test_rows=args.rows, **how)
    said = summary["verdict"]
    if args.json:
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print(f"{said['word']}; ship it: {said['ship']}", *(f"- {line}" for line in said["lines"]), sep="\n")
        if said["next"]:
            print("next:", *(f"- {line}" for line in said["next"]), sep="\n")
        print(f"report: {workspace.path / 'report.html'}")
    return {"no": NO, "not yet": NOT_YET}.get(said["ship"], MAY_SHIP)
