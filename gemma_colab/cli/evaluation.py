"""`gemma-colab evaluate`: notebook 05 without a browser, all but what needs a person."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.machine import quiet_libraries
from gemma_colab.core.workspace import SPLIT_FILES, open_workspace
from gemma_colab.evaluation.verdict import ShipSettings

MAY_SHIP, NOT_YET, NO = 0, 1, 2


def add_commands(commands) -> None:
    """Declare the command; it sets `run`, a function of the parsed arguments that returns the exit status."""
    evaluate = commands.add_parser(
        "evaluate", help="compare base, few-shot and tuned on the test rows; writes report and summary.json"
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("--workspace", required=True, metavar="DIR", help="where train, or notebook 04, put the adapter")
    evaluate.add_argument("--rows", type=_positive, metavar="N", help="at most so many test rows, drawn at random (default all)")
    evaluate.add_argument("--examples", type=_count, default=3, metavar="N", help="solved rows in the few-shot prompt; 0 leaves it out (default %(default)s)")  # fmt: skip
    evaluate.add_argument("--max-new-tokens", type=_positive, metavar="N", help="of an answer (default: enough for the longest right one)")  # fmt: skip
    evaluate.add_argument(
        "--batch", type=_positive, default=32, metavar="N", help="questions answered at once (default %(default)s)"
    )
    evaluate.add_argument("--bar", action="append", type=_bar, default=[], metavar="MEASURE=SHARE", help='ship only if at least this share of test rows is right, as "valid JSON=0.95"; may be repeated; kept in the workspace')  # fmt: skip
    evaluate.add_argument("--anyway", action="store_true", help="also a model that looks too large for this machine")
    evaluate.add_argument("--json", action="store_true", help="the summary as JSON; everything else goes to the error output")


def _bar(text: str) -> tuple[str, float]:
    try:
        name, share = text.rsplit("=", 1)  # one part alone is a ValueError too
        return name, float(share)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no bar; write one like "valid JSON=0.95"') from None


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _evaluate(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    for name, command in ((SPLIT_FILES[-1], "prepare FILE"), ("adapter", "train")):
        if not workspace.has(name):
            raise WorkspaceError(
                f"{name} is missing in {workspace.path}; make it with gemma-colab {command} --workspace {args.workspace}"
            )
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        from gemma_colab.handover.assess import assess

        quiet_libraries()
        if args.bar:
            ShipSettings(bars=dict(args.bar)).save(workspace)
        summary = assess(
            workspace,
            anyway=args.anyway,
            examples=args.examples,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch,
            test_rows=args.rows,
        )
    said = summary["verdict"]
    if args.json:
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print(f"{said['word']}; ship it: {said['ship']}")
        print("\n".join(f"- {line}" for line in said["lines"]))
        print("next:\n" + "\n".join(f"- {line}" for line in said["next"]) if said["next"] else "")
        print(f"report: {workspace.path / 'report.html'}")
    return {"no": NO, "not yet": NOT_YET}.get(said["ship"], MAY_SHIP)
