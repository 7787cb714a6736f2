"""Try other people's data: one line for each file of a folder, with the verdict, rows in, rows out, and what was changed.

    python tools/try_cases.py FOLDER [--model tiny-gemma3]

Each file is prepared as `gemma-colab prepare` does it, in a workspace that is thrown away. "rows out" are the rows that a person could
train on after cleaning, whatever the verdict says of them. Ends with 1 if a file ended in a traceback, which is always a fault of ours.
"""

import argparse
import collections
import sys
import tempfile
import textwrap
from pathlib import Path

from gemma_colab import BlockedError, GemmaColabError, data, model, open_workspace

WIDTHS = {"file": 28, "verdict": 10, "rows in": 8, "rows out": 9}


def try_case(path: Path, tokenizer) -> dict[str, str]:
    """Prepare one file; returns {"file", "verdict", "rows in", "rows out", "what was changed"}."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_workspace(folder)
        try:
            report, _ = data.prepare_rows(path, workspace, tokenizer=tokenizer)
        except BlockedError as e:
            report = e.report
        except GemmaColabError as e:
            return {"verdict": "refused", "what was changed": str(e)}
        except Exception as e:  # whatever it is: to find that out is what this program is for
            return {"verdict": "TRACEBACK", "what was changed": f"{type(e).__name__}: {e}"}
        where = "rows" if workspace.has("rows/report.json") else "blocked"
        log = workspace.read_jsonl(f"{where}/cleaning_log.jsonl")
    dropped = sum(not line["field"] for line in log)
    changed = [f"{step} {n}" for step, n in collections.Counter(line["step"] for line in log).items()]
    changed += [f"put aside {len(report.aside)}: {report.aside[0]['sentence']}"] if report.aside else []
    findings = ", ".join(f.check for f in report.findings if f.severity != "I")
    rows_in, rows_out = len(report.rows) + dropped + len(report.aside), len(report.rows)
    changed = "; ".join([*changed, f"found: {findings}" if findings else "nothing found"])
    return {"verdict": report.verdict, "rows in": str(rows_in), "rows out": str(rows_out), "what was changed": changed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny-gemma3", help="whose tokenizer counts (default %(default)s)")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    tokenizer, verdicts = model.load_tokenizer(args.model), collections.Counter()
    print(*(name.ljust(width) for name, width in WIDTHS.items()), "what was changed")
    for path in sorted(path for path in args.folder.rglob("*") if path.is_file() and path.name.lower() != "readme.md"):
        found = {"file": str(path.relative_to(args.folder)), "rows in": "", "rows out": ""} | try_case(path, tokenizer)
        # A terminal obeys control characters, so those of a file are written out.
        line = " ".join(found[name].ljust(width) for name, width in WIDTHS.items())
        line += " " + textwrap.shorten(found["what was changed"], 400, placeholder=" ...")
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), flush=True)
        verdicts[found["verdict"]] += 1
    print(", ".join(f"{verdict} {count}" for verdict, count in verdicts.most_common()))
    return int("TRACEBACK" in verdicts)


if __name__ == "__main__":
    sys.exit(main())
