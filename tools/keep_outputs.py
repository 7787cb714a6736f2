"""Put the outputs of the last `make demo-270m` into the notebooks' cells that are tagged keep_output; strip all others."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import nbformat
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def _bar(output) -> bool:
    """A progress bar: a widget, of which a saved notebook has nothing but a text that never moves."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _shrink(output) -> None:
    """A curve needs no more than 64 colours: a third of the size, and a notebook stays below 300 KB."""
    if png := output.get("data", {}).get("image/png"):
        with io.BytesIO() as buffer:
            picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            # Not by median cut, Pillow's own choice: it gives a thin line the color of another.
            picture = picture.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            picture.save(buffer, "PNG", optimize=True)
            output.data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


def main() -> int:
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        if not (ROOT / "runs" / "demo-270m" / "notebooks" / path.name).exists():
            print(f"{path.stem} was not run: its outputs stay as they are")
            continue
        executed = {
            cell.id: cell for cell in nbformat.read(ROOT / "runs" / "demo-270m" / "notebooks" / path.name, as_version=4).cells
        }
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            cell.outputs, cell.execution_count = [], None
            run = executed.get(cell.id)
            if "keep_output" in cell.metadata.get("tags", []) and run and run.source == cell.source:
                cell.outputs = [o for o in run.outputs if (o.output_type != "stream" or o.name == "stdout") and not _bar(o)]
                for output in cell.outputs:
                    _shrink(output)
                    output.pop("execution_count", None)
                    if output.output_type == "execute_result":
                        output["execution_count"] = None
        text = nbformat.writes(notebook)
        path.write_text(re.sub(re.escape(json.dumps(str(ROOT))[1:-1]), ".", text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
