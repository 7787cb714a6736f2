"""What export writes into the folder of a form, and what its owner put there, which no export may take away."""

import hashlib
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.workspace import ADAPTER_FILES

CARD = "README.md"
VISION_FILES = ("preprocessor_config.json", "processor_config.json")
ALWAYS = [CARD, "loss_curve.png", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja"]
ALWAYS += ["special_tokens_map.json", "added_tokens.json"]
# Form -> all that export writes there, and tokenizers of older versions.
BELONGS = {"adapter": [*ALWAYS, *(Path(file).name for file in ADAPTER_FILES)]}
BELONGS["merged"] = [*ALWAYS, "config.json", "generation_config.json", *VISION_FILES]
BELONGS["merged"] += ["model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"]
LEFT = "{} is not as gemma_colab wrote it, so it stays as it is; to have it written anew, move it elsewhere."
LITTER = {".DS_Store", ".ipynb_checkpoints"}  # what a Mac and Jupyter leave by themselves


def strangers(folder: Path, names: list[str]) -> list[str]:
    """Name what lies in a folder and is no plain file with one of these names, or patterns of names."""
    ours = (path.name for path in folder.glob("*") if path.is_file() and not path.is_symlink())
    ours = {name for name in ours if name in names or any(fnmatch(name, one) for one in names)}
    return sorted({path.name for path in folder.glob("*")} - ours - LITTER)


def refuse_strangers(folder: Path, names: list[str]) -> None:
    """Raise `SettingsError` before a folder is replaced that holds more than files of these names."""
    if strange := strangers(folder, names):
        lost = f"{', '.join(map(repr, strange[:5]))}, which would be lost"
        raise SettingsError(f"out={str(folder)!r} holds {lost}; name a new folder, or move it elsewhere")


def refuse_overlap(out: Path, *sources: Path) -> None:
    """Raise `SettingsError` where `out` is, holds or lies in something that it is made from."""
    place = out.resolve()
    for source in sources:
        if (read := source.resolve()) == place or place in read.parents or read in place.parents:
            inside = f"out={str(out)!r} and what it is made from, {source}, are one inside the other"
            raise SettingsError(f"{inside}; name another folder")


def carry(old: Path, part: Path, form: str) -> None:
    """Take along into `part`, which replaces `old`, what is its owner's: a card that was changed, and what no export writes there."""
    mine = {*strangers(old, BELONGS[form]), *[CARD] * changed(old / CARD)} - {path.name for path in part.iterdir()}
    how = {"ignore": lambda at, names: {*names} - mine if at == str(old) else (), "copy_function": link, "symlinks": True}
    if mine:
        shutil.copytree(old, part, dirs_exist_ok=True, **how)


def link(path: str | Path, to: str | Path) -> None:
    """Give a file a second name, which takes no room; never a symbolic link, which Ollama refuses."""
    try:
        os.link(path, to)
    except OSError:  # another disk, or one without links, such as Google Drive
        shutil.copyfile(path, to)


def signed(text: str, comment: str) -> str:
    """Add a last line, a comment, by which `changed` knows a text for ours, until somebody changes it."""
    return text + comment.format(f"gemma_colab wrote this ({_sum(text)}), and leaves it alone once you have changed it") + "\n"


def changed(path: Path, new: str = "") -> bool:
    """Whether a file is there that is not as `signed` made it, nor the `new` text, as versions before wrote it."""
    if not path.is_file():
        return False
    *lines, last = (text := path.read_text(encoding="utf-8", errors="replace")).splitlines(keepends=True) or [""]
    nobodys = "# Model Card for Model ID" in text  # peft's form, not filled in
    return _sum("".join(lines)) not in last and text != new and not nobodys


def _sum(text: str) -> str:  # no more digits, which might look like an account's number
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]
