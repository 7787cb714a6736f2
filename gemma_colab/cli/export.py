"""`gemma-colab export`: the last part of notebook 05 without a browser."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

import pandas as pd

from gemma_colab.core.machine import quiet_libraries
from gemma_colab.core.workspace import Workspace, open_workspace
from gemma_colab.handover.export import FORMS, PUSHED, ROWS, SOUND, export_workspace

SAME, DIFFERS = 0, 1


def add_commands(commands) -> None:
    """Declare the command; it sets `run`, a function of the parsed arguments that returns the exit status."""
    export = commands.add_parser("export", help="take home what was trained: adapter, merged model, Ollama, GGUF, or to the Hub")
    export.set_defaults(run=_export)
    export.add_argument("--workspace", required=True, metavar="DIR", help="where train, or notebook 04, left the adapter")
    export.add_argument("--to", required=True, choices=FORMS, help="merged is compared with the adapter; gguf needs llama.cpp")
    export.add_argument(
        "--rows", type=int, default=ROWS, metavar="N", help="test rows to compare on, 0 for none (default %(default)s)"
    )
    export.add_argument("--whole", action="store_true", help="keep the vision part of a base that sees images")
    export.add_argument(
        "--outtype", choices=("f32", "bf16", "f16", "q8_0"), default="q8_0", help="of a GGUF file (default %(default)s)"
    )
    export.add_argument("--repo", metavar="OWNER/NAME", help="of the Hub; a name alone is one of your own account")
    export.add_argument("--form", choices=PUSHED, default="adapter", help="what goes to the Hub (default %(default)s)")
    export.add_argument("--public", action="store_true", help="everybody may see it on the Hub; else only you may")
    export.add_argument("--exist-ok", action="store_true", help="write a new version into a repository of the Hub that is there")
    export.add_argument("--system", metavar="TEXT", help="for ollama: said to the model before the first question")
    export.add_argument("--json", action="store_true", help="what was exported as JSON; everything else goes to the error output")


def _export(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    quiet_libraries()
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # "loading weights"; that of a download stays
    with redirect_stdout(sys.stderr if args.json else sys.stdout):
        found = export_workspace(
            workspace,
            args.to,
            rows=args.rows,
            text_only=False if args.whole else None,
            outtype=args.outtype,
            repo_id=args.repo,
            form=args.form,
            private=not args.public,
            exist_ok=args.exist_ok,
            system=args.system,
        )
    print(json.dumps(found, ensure_ascii=False, indent=1) if args.json else _said(args.to, found, workspace))
    told = found if args.to == "merged" else found.get(args.to, {})
    return DIFFERS if told.get("same") is False else SAME


def _said(to: str, found: dict, workspace: Workspace) -> str:
    if to == "hub":
        return f"pushed the {found['hub']['form']} to {found['hub']['repo']}"
    lines = [f"{found[to]['MiB']:,.1f} MiB in {workspace.path / to}"]
    if to == "merged" and "parity" in found:
        lines += ["", pd.DataFrame(found["parity"]).round(3).to_string(index=False), "", found["sentence"]]
    if to == "ollama":
        lines.append(f"next: cd {workspace.path / to} && ollama create my-model && ollama run my-model")
    if to == "gguf" and "answers equal" in found["gguf"]:
        share, near, rows = (found["gguf"][name] for name in ("answers equal", "nearly", "rows"))
        broken = "" if found["gguf"]["same"] else "looks broken: "
        lines.append(f"{broken}llama.cpp gives the answers of the merged model to {share:.0%} of {rows} test rows")
        if share < 1:
            also = f"with those that part at a word nearly as likely, which is rounding, it is {near:.0%}"
            lines.append(f"{also}; a sound file has {SOUND:.0%} or more")
        if broken:
            lines.append(
                "export it again with --outtype f16, which rounds least, or with another llama.cpp (LLAMA_CPP names its folder)"
            )
    why = found.get("not_compared") if to == "merged" else found[to].get("not_compared")
    return "\n".join([*lines, *([f"not compared: {why}"] if why else [])])
