"""`export.json`: what was exported from a workspace, and whether it is of the adapter that is there today."""

from __future__ import annotations

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
    stale = {name for name, made in found.items() if isinstance(made, dict) and made.get("adapter", today) != today}
    if "merged" in stale or "merged" not in found:
        stale |= set(ABOUT_MERGED)
    return {name: made for name, made in found.items() if name not in stale}


def record(workspace: Workspace, **made) -> None:
    """Note what was made; a new `merged` ends what was known of the old one."""
    known = {name: value for name, value in exported(workspace).items() if "merged" not in made or name not in ABOUT_MERGED}
    workspace.write_json(FILE, known | made)


def entry(workspace: Workspace, name: str) -> dict:
    """Describe what was written as `name` in the workspace, for `record`: its size, and the adapter it was made from."""
    return {"MiB": round(mib(workspace.path / name), 2), "adapter": workspace.fingerprint(*ADAPTER_FILES)}


def mib(path: str | Path) -> float:
    """Return the size of a file, or of all files in a folder, in MiB."""
    path = Path(path)
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20
