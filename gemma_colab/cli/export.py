"""`gemma-colab export`: the last part of notebook 05 without a browser."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

from gemma_colab import open_workspace, quiet_libraries

SAME, DIFFERS = 0, 1


def add_commands(commands) -> None:
    """Declare the command; it sets `run`, a function of the parsed arguments that returns the exit status."""
    export = commands.add_parser("export", help="take home what was trained: adapter, merged model, Ollama, GGUF, or to the Hub")
    export.set_defaults(run=_export)
    add = export.add_argument
    add("--workspace", required=True, metavar="DIR", help="where train, or notebook 04, left the adapter")
    forms = ("adapter", "merged", "ollama", "gguf", "hub")
    add("--to", required=True, choices=forms, help="merged is compared with the adapter; gguf needs llama.cpp")
    add("--rows", type=int, default=20, metavar="N", help="test rows to compare on, 0 for none (default %(default)s)")
    add("--whole", action="store_true", help="keep the vision part of a base that sees images")
    add("--outtype", choices=("f32", "bf16", "f16", "q8_0"), default="q8_0", help="of a GGUF file (default %(default)s)")
    add("--repo", metavar="OWNER/NAME", help="of the Hub; a name alone is one of your own account")
    add("--form", choices=("adapter", "merged"), default="adapter", help="what goes to the Hub (default %(default)s)")
    add("--public", action="store_true", help="everybody may see it on the Hub; else only you may")
    add("--exist-ok", action="store_true", help="write a new version into a repository of the Hub that is there")
    add("--system", metavar="TEXT", help="for ollama: said to the model before the first question")
    add("--json", action="store_true", help="what was exported as JSON; everything else goes to the error output")


def _export(args: argparse.Namespace) -> int:
    workspace = open_workspace(args.workspace)
    quiet_libraries()
    from transformers.utils.logging import disable_progress_bar

    from gemma_colab.export import export_workspace

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
    about = found if args.to == "merged" else found[args.to]
    print(
        json.dumps(found, ensure_ascii=False, indent=1) if args.json else _said(args.to, found, about, workspace.path / args.to)
    )
    return DIFFERS if about.get("same") is False else SAME


def _said(to: str, found: dict, about: dict, folder: Path) -> str:
    if to == "hub":
        return f"pushed the {about['form']} to {about['repo']}"
    lines = [f"{found[to]['MiB']:,.1f} MiB in {folder}"]
    if "parity" in about:
        lines += ["", pd.DataFrame(about["parity"]).round(3).to_string(index=False), ""]
    if "sentence" in about:
        lines.append(about["sentence"])
    if to == "ollama":
        lines.append(f"next: cd {folder} && ollama create my-model && ollama run my-model")
    if "not_compared" in about:
        lines.append(f"not compared: {about['not_compared']}")
    return "\n".join(lines)
