"""Write the figures of the last `make demo`, and the memory table, into README.md; copy its loss curve to docs/."""

import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from gemma_colab.model.planner import fit_table

ROOT = Path(__file__).resolve().parent.parent


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def fits() -> str:
    return markdown(fit_table().rename_axis("batch 1 / 4").reset_index())


def demo(summary: dict) -> str:
    lines = [
        {
            "": f"loss on right answers, {part} rows (lower is better)",
            "base": f"{loss['base']:.2f}",
            "tuned": f"{loss['tuned']:.2f}",
        }
        for part, loss in summary["loss"].items()
        if part != "test"
    ]
    for line in [*summary["tuned_against_base"], *summary["forgetting"]]:
        interval = f"{line['difference']:+.2f} ({line['low']:+.2f} to {line['high']:+.2f})"
        way = "better" if (line["difference"] < 0) == (line["better"] == "lower") else "worse"
        clear = f"{line['clear']}, {way}" if line["clear"] in ("yes", "perhaps") else line["clear"]
        means = {"base": f"{line['before']:.2f}", "tuned": f"{line['after']:.2f}"}
        name = {"loss on right answers": "loss on right answers, test rows"}.get(line["metric"], line["metric"])
        lower = " (lower is better)" * (line["better"] == "lower")
        lines.append({"": name + lower, **means, "difference (95 %)": interval, "clear?": clear})
    rows, said = summary["rows"], summary["verdict"]
    head = f"`make demo` tuned the tiny Gemma 3 that ships with this project on {rows['train']} rows, and asked it {rows['test']} others. "
    head += f"Its report says: answers *{said['word']}*; ship it: *{said['ship']}*.\n\n"
    return head + markdown(pd.DataFrame(lines).fillna(""))


def cost(summary: dict) -> str:
    seconds = summary["seconds"] | {"peak memory": f"{summary['peak_memory_gib']} GiB"}
    return markdown(pd.DataFrame([{k: v if k == "peak memory" else f"{v:.0f} s" for k, v in seconds.items()}]))


def fill(text: str, name: str, block: str) -> str:
    return re.sub(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL)


def main() -> int:
    runs, readme = ROOT / "runs" / "demo", ROOT / "README.md"
    summary = json.loads((runs / "summary.json").read_text())
    text = readme.read_text(encoding="utf-8")
    for name, block in (("demo", demo(summary)), ("cost", cost(summary)), ("fits", fits())):
        text = fill(text, name, block)
    readme.write_text(text, encoding="utf-8")
    (ROOT / "docs").mkdir(exist_ok=True)
    shutil.copy(runs / "loss_curve.png", ROOT / "docs" / "loss_curve.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
