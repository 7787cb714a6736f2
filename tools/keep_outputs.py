"""Put the outputs of the last `make demo` into the notebooks' cells that are tagged keep_output; strip all others."""

import json
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def _bar(output) -> bool:
    """A progress bar: a widget, of which a saved notebook has nothing but a text that never moves."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main() -> int:
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        executed = {cell.id: cell for cell in nbformat.read(ROOT / "runs" / "demo" / "notebooks" / path.name, as_version=4).cells}
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            cell.outputs, cell.execution_count = [], None
            run = executed.get(cell.id)
            if "keep_output" in cell.metadata.get("tags", []) and run and run.source == cell.source:
                cell.outputs = [o for o in run.outputs if (o.output_type != "stream" or o.name == "stdout") and not _bar(o)]
                for output in cell.outputs:
                    output.pop("execution_count", None)
                    if output.output_type == "execute_result":
                        output["execution_count"] = None
        text = nbformat.writes(notebook)
        path.write_text(re.sub(re.escape(json.dumps(str(ROOT))[1:-1]), ".", text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
