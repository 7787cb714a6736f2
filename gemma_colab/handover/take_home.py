"""The last cell of the quick start: write the forms that somebody wants, and hand them over where they are wanted."""

import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import pandas as pd

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.workspace import Workspace
from gemma_colab.handover.export import export_workspace


def take_home(workspace: Workspace, *forms: str, rows: int = 20) -> pd.DataFrame:
    """Write each form ("adapter", "merged", "ollama", "gguf") as `export_workspace` does, and return a line for each: MiB, how it compares
    with the trained model on `rows` rows, and the path. On Colab all of them then go to the browser, in one zip file."""
    lines = {}
    for form in forms:
        made = export_workspace(workspace, form, rows=rows)
        about, path = made if form == "merged" else made[form], workspace.path / form / made[form].get("file", "")
        compared = about.get("sentence") or about.get("not_compared") or "as it was trained" * (form == "adapter")
        lines[form] = {"MiB": round(made[form]["MiB"], 1), "compared": compared, "path": str(path)}
    if lines and "google.colab" in sys.modules:
        from google.colab import files

        with ZipFile(Path(tempfile.mkdtemp()) / f"{workspace.path.name}.zip", "w") as packed:  # weights don't get smaller
            for top in (Path(line["path"]) for line in lines.values()):
                for path in filter(Path.is_file, (top, *top.rglob("*"))):
                    if not path.resolve().is_relative_to(workspace.path.resolve()):
                        raise WorkspaceError(f"{path} is a link to {path.resolve()}, outside the workspace; delete the link")
                    packed.write(path, path.relative_to(workspace.path))
        files.download(packed.filename)
    return pd.DataFrame(lines).T
