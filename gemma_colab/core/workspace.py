"""The folder that carries work from one notebook to the next. Every file is written beside its place, then renamed."""

import glob
import hashlib
import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil

from gemma_colab.core.errors import SPOILT, WorkspaceError
from gemma_colab.core.machine import DRIVE, KAGGLE, on_kaggle

PACKAGE = Path(__file__).resolve().parent.parent  # gemma_colab/
VERSION = 2  # of what the files mean: 1 had rows as prompt and completion; docs/house.md lists the files
SPLITS = ("train", "validation", "test")
SPLIT_FILES = [f"rows/{split}.jsonl" for split in SPLITS]
ADAPTER_FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
private = partial(os.open, mode=0o600)  # opens files for their owner alone, from the first byte: they hold what customers wrote
OTHER = "that makes it"  # the notebook that writes what is not in here:
MADE_IN = dict.fromkeys(SPLIT_FILES, "01_dataset_prep") | {"model_settings.json": "02_load_model"}
MADE_IN |= dict.fromkeys(("lora_settings.json", "train_settings.json"), "03_lora")
MADE_IN |= dict.fromkeys(("training.json", "adapter"), "04_train") | dict.fromkeys(("summary.json", "merged"), "05_evaluate")

# What a file must hold, so that its readers find what they look for: field -> type; None where it may be missing.
FIELDS = {
    "workspace.json": {"version": int},
    "training.json": {"model": str, "log_history": list},
    "summary.json": {"training": dict | None, "verdict": dict | None, "review": dict | None},
    "settings_for.json": {"correction": dict | None, "seconds_per_step": int | float | None},
    "ship_settings.json": {"bars": dict},
    "export.json": {"merged": dict | None, "hub": dict | None},
} | {name: {"file": str, "sample": bool} for name in ("rows/source.json", "blocked/source.json")}
# Whatever this package replaces in a workspace, by its first name; `checkpoints` has a sign of its own.
WRITTEN = {Path(name).parts[0] for name in (*MADE_IN, *FIELDS)} - {"workspace.json"}
WRITTEN |= {*"evaluation gguf history loss_curve.png ollama report.html review review.json split_settings.json".split()}


class Workspace:
    """A folder with a few named files, `path`; it is made if it isn't there. Raises `WorkspaceError` for one of a newer version."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            cause = f"workspace={str(self.path)!r} can't be made ({e.strerror})"
            raise WorkspaceError(f"{cause}; name a folder you may write to") from None
        if self.version > VERSION:
            known = f"and this gemma_colab knows {VERSION} at most; update gemma_colab"
            raise WorkspaceError(f"the workspace {self.path} has version {self.version}, {known}")

    @property
    def version(self) -> int:
        """What its files mean; before version 2 nothing said it."""
        return self.read_json("workspace.json")["version"] if self.has("workspace.json") else 1

    def __repr__(self):
        return f"Workspace({str(self.path)!r}): {', '.join(filter(self.has, MADE_IN)) or 'empty'}"

    def has(self, name: str) -> bool:
        if not (path := self.path / name).exists():  # a process that was killed may have moved its folder aside
            sweep(self.path, f".{glob.escape(Path(name).parts[0])}.[0-9]*.old")
        return path.is_file() or path.is_dir()  # nothing that would never end, such as a pipe

    def need(self, name: str) -> Path:
        """Return the path of a file an earlier notebook made. Raises `WorkspaceError` that names the notebook."""
        if not self.has(name):
            raise WorkspaceError(f"{name} is missing in the workspace {self.path}; run notebook {MADE_IN.get(name, OTHER)} first")
        return self.path / name

    def own(self, name: str | Path) -> Path:
        """Return a path to write to. Raises `WorkspaceError` where a link, there or on the way, leads to other files."""
        if (path := self.path / name).resolve() != path:
            raise WorkspaceError(f"{path} leads to {path.resolve()}; nothing is written through a link, so delete the link")
        return path

    @contextmanager
    def writing(self, name: str):
        """Yield a path beside one of its files or folders, see `whole`."""
        if name != "workspace.json" and self.version < VERSION:
            there = [top for top in sorted({Path(name).parts[0], *WRITTEN}) if (self.path / top).exists()]
            left = [self.path / name for name in (SPLIT_FILES[0], "split_settings.json") if self.has(name)]  # by 01 of version 1
            ours = self.has("workspace.json") or (len(left) == 2 and left[0].read_bytes().startswith(b'{"prompt": [{"role": '))
            if there and not ours:
                what = f"{self.path / there[0]} is there, and gemma_colab did not make it"
                raise WorkspaceError(f"{what}; name another workspace, or move it away")
            self.write_json("workspace.json", {"version": VERSION})
        with whole(self.own(Path(name).parent) / Path(name).name) as part:
            yield part

    def write_text(self, name: str, text: str) -> Path:
        with self.writing(name) as part, open(part, "w", encoding="utf-8", errors="backslashreplace", opener=private) as f:
            f.write(text)  # half a character is written as JSON escapes it
        return self.path / name

    def write_json(self, name: str, value) -> Path:
        return self.write_text(name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def write_jsonl(self, name: str, rows: list[dict]) -> Path:
        return self.write_text(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def fingerprint(self, *names: str) -> str:
        """Return a short checksum (SHA-256, 16 digits) of some files: equal exactly when all of them are."""
        return hashlib.sha256(b"".join(hashlib.sha256(self.need(name).read_bytes()).digest() for name in names)).hexdigest()[:16]

    def read_json(self, name: str, parse=json.loads):
        """Read an object with `FIELDS`, or what `parse` makes of the text. Raises `WorkspaceError` for what was not written here."""
        path = self.need(name)
        try:
            found = parse(path.read_text(encoding="utf-8"))
            if parse is json.loads and not isinstance(found, dict):
                raise ValueError(f"it holds {type(found).__name__}, not named fields")
            for field, kind in FIELDS.get(name, {}).items():
                if not isinstance(found.get(field), kind):
                    raise ValueError(f"{field}={str(found.get(field))[:40]!r}")
            if name == "workspace.json" and len(found) > 1 and found["version"] <= VERSION:  # Nx and Angular have one too
                raise ValueError("it has other fields")
            return found
        except SPOILT as e:
            remedy = f"delete it and run notebook {MADE_IN.get(name, OTHER)} again"
            remedy = "name another workspace" if name == "workspace.json" else remedy
            what = "valid JSON" if isinstance(e, json.JSONDecodeError) else "what gemma_colab writes there"
            raise WorkspaceError(f"{path} is not {what} ({'it lacks ' * isinstance(e, KeyError)}{e}); {remedy}") from None

    def read_jsonl(self, name: str, each=dict) -> list[dict]:
        """Read an object from each line, which may hold U+2028. each: makes something of it, such as `to_messages`."""
        return self.read_json(name, lambda text: [each(json.loads(line)) for line in text.split("\n") if line.strip()])


@contextmanager
def whole(target: Path):
    """Yield a path beside `target`, a file or a folder; when the block ends well it replaces the target, else it is removed."""
    part, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    mine = target.parent, f".{glob.escape(target.name)}.[0-9]*"
    sweep(*mine)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        if not part.exists():
            raise WorkspaceError(f"nothing was written for {target.name}; the old one, if any, is kept")
        if target.is_dir():  # a folder can't be replaced in one call: the old one is moved aside
            target.rename(old)
        part.replace(target)
    finally:
        sweep(*mine)


def sweep(folder: Path, pattern: str) -> None:
    """Clear up behind a `whole` of this process, or of one that was killed: what it moved aside goes back to its place, where that is
    empty, and all else that it left in `folder` under a name like `pattern` is removed."""
    for left in folder.glob(pattern):
        found = re.fullmatch(r"\.(.+)\.(\d{1,9})\.(part|old)", left.name)
        if not found or (int(found[2]) != os.getpid() and psutil.pid_exists(int(found[2]))):
            continue
        with suppress(FileNotFoundError):  # other processes clear up too
            if found[3] == "old" and not left.with_name(found[1]).exists():
                left.rename(left.with_name(found[1]))
            else:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def open_workspace(path: str | Path | None = None) -> Workspace:
    """Open the workspace at `path`, else at `GEMMA_COLAB_WORKSPACE`, on Google Drive if mounted, on Kaggle, or `./workspace`."""
    kept = DRIVE / "gemma_colab" if DRIVE.is_dir() else KAGGLE / "gemma_colab" if on_kaggle() else "workspace"
    return Workspace(path or os.environ.get("GEMMA_COLAB_WORKSPACE") or kept)


def samples() -> Path:
    """Return the folder of sample data: inside the installed package, or `data_samples/` of the checkout."""
    for folder in (PACKAGE / "samples", PACKAGE.parent / "data_samples"):
        if (folder / "support_ru.jsonl").exists():
            return folder
    raise WorkspaceError("the sample data is not installed; install gemma_colab from its repository")


def read_sample(name: str) -> list[dict]:
    """Read the lines of `<name>.jsonl` in the sample data."""
    return [json.loads(line) for line in (samples() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
