"""`export.json`: what was exported from a workspace, and whether it is of the adapter that is there today."""

from pathlib import Path

from gemma_colab.core.workspace import ADAPTER_FILES, Workspace

FILE = "export.json"
ABOUT_MERGED = ("parity", "same", "sentence", "not_compared")  # how `merged/` compares with the adapter: gone with it


def exported(workspace: Workspace) -> dict:
    """Return what was exported of today's adapter; what was made from another one is left out.

    "adapter", "merged", "ollama", "gguf" -> {"MiB", "adapter" (fingerprint), ...}; "hub" -> {"repo", "form", "private"}; of the
    comparison of `merged/`: "parity" (a line per form), "same", "sentence", or "not_compared" (why).
    """
    found = workspace.read_json(FILE) if workspace.has(FILE) else {}
    today = workspace.fingerprint(*ADAPTER_FILES) if all(map(workspace.has, ADAPTER_FILES)) else None
    of_today = {name: made for name, made in found.items() if not isinstance(made, dict) or made.get("adapter", today) == today}
    return of_today if "merged" in of_today else {name: made for name, made in of_today.items() if name not in ABOUT_MERGED}


def record(workspace: Workspace, **made) -> None:
    """Note what was made; a new `merged` ends what was known of the old one."""
    known = {name: value for name, value in exported(workspace).items() if "merged" not in made or name not in ABOUT_MERGED}
    workspace.write_json(FILE, known | made)


def entry(workspace: Workspace, name: str) -> dict:
    """Describe what was written as `name` in the workspace, for `record`: its size, and the adapter it was made from."""
    return {"MiB": round(mib(workspace.path / name), 2), "adapter": workspace.fingerprint(*ADAPTER_FILES)}


def mib(path: Path) -> float:
    """Return the size of a file, or of all files in a folder, in MiB."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file()) / 2**20
