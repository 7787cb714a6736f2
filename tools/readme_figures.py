"""Write the figures of the last `make demo-270m`, and the memory table, into README.md, those of the last `make demo` into
data_samples/README.md; draw the loss curve of the quick start into docs/."""

import json
import re
import sys
from pathlib import Path

import pandas as pd

from gemma_colab.core.curve import history_table, loss_curve
from gemma_colab.model.planner import fit_table
from gemma_colab.ui import comparison_table

ROOT = Path(__file__).resolve().parent.parent
MESSAGES = 3


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def fits() -> str:
    return markdown(fit_table().rename_axis("batch 1 / 4").reset_index())


def contest(summary: dict) -> str:
    """The contestants' table, with the training it came from and the verdict above."""
    rows, said, training = summary["rows"], summary["verdict"], summary["training"]
    head = f"{rows['train']} rows to train on, {training['seconds'] / 60:.0f} minutes of training, {rows['test']} other messages to test on. "
    head += f"The report says: answers *{said['word']}*; ship it: *{said['ship']}*" + (
        f" ({'; '.join(said['against'])}).\n\n" if said["against"] else ".\n\n"
    )
    table = comparison_table(summary).rename_axis("mean over the test rows").reset_index()
    lower = {line["metric"] for line in summary["tuned_against_base"] if line["better"] == "lower"}
    table.iloc[:, 0] = [name + " (lower is better)" * (name in lower) for name in table.iloc[:, 0]]
    return head + markdown(table)


def forgotten(summary: dict) -> str:
    lines = [
        {
            "": line["metric"] + " (lower is better)" * (line["better"] == "lower"),
            "base": f"{line['before']:.2f}",
            "tuned": f"{line['after']:.2f}",
            "difference (95 %)": f"{line['difference']:+.2f} ({line['low']:+.2f} to {line['high']:+.2f})",
        }
        for line in summary["forgetting"]
    ]
    return markdown(pd.DataFrame(lines))


def messages(folder: Path) -> str:
    """The first test messages, what base and tuned made of them, and what is right."""
    lines = (folder / "evaluation" / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    shown = []
    for row in map(json.loads, lines[:MESSAGES]):
        shown.append({"": "message", " ": _cell(row["question"].split("\n\n")[-1])})
        shown += [{"": name, " ": _cell(f"`{row[name][:160]}`")} for name in ("base", "tuned", "wanted")]
    return markdown(pd.DataFrame(shown).replace("wanted", "right"))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def cost(summary: dict) -> str:
    seconds = summary["seconds"] | {"peak memory": f"{summary['peak_memory_gib']} GiB"}
    return markdown(pd.DataFrame([{k: v if k == "peak memory" else f"{v / 60:.1f} min" for k, v in seconds.items()}]))


def fill(path: Path, blocks: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        place = rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(place, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    real, tiny = ROOT / "runs" / "demo-270m", ROOT / "runs" / "demo"
    quick = json.loads((real / "quickstart" / "summary.json").read_text())
    blocks = {
        "quickstart": contest(quick),
        "messages": messages(real / "quickstart"),
        "forgotten": forgotten(quick),
        "fits": fits(),
    }
    if (real / "summary.json").exists():  # the lessons were run too
        summary = json.loads((real / "summary.json").read_text())
        blocks |= {"lessons": contest(summary), "cost": cost(summary)}
    fill(ROOT / "README.md", blocks)
    if (tiny / "summary.json").exists():
        summary = json.loads((tiny / "summary.json").read_text())
        blocks = {"tiny quickstart": contest(summary["quickstart"]), "tiny lessons": contest(summary), "tiny cost": cost(summary)}
        fill(ROOT / "data_samples" / "README.md", blocks)
    history = json.loads((real / "quickstart" / "training.json").read_text())["log_history"]
    ax = loss_curve(history_table(history), title="Gemma 3 270M on the orders: loss, on a logarithmic scale")
    losses = history_table(history)[["loss", "eval_loss"]].stack()
    ax.set(
        yscale="log", ylim=(0.8 * losses.min(), 1.2 * losses.max())
    )  # else the turn of the validation loss hides below the fall of the first steps
    ax.figure.savefig(ROOT / "docs" / "loss_curve.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
