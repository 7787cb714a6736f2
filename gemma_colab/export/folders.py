"""What export writes into the folder of a form, and what its owner put there, which no export may take away."""

import hashlib
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.workspace import ADAPTER_FILES

CARD = "README.md"
VISION_FILES = ("preprocessor_config.json", "processor_config.json")
VOCAB = (
    "tokenizer.json tokenizer_config.json tokenizer.model chat_template.jinja special_tokens_map.json added_tokens.json".split()
)
OURS = {"adapter": [CARD, "loss_curve.png", *(Path(file).name for file in ADAPTER_FILES)]}  # form -> what nobody else puts there
OURS["merged"] = [CARD, "loss_curve.png", "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json"]
# All that export writes there, and tokenizers of older versions.
BELONGS = {"adapter": [*OURS["adapter"], *VOCAB]}
BELONGS["merged"] = [*OURS["merged"], *VOCAB, "config.json", "generation_config.json", *VISION_FILES]
LEFT = "{} is not as gemma_colab wrote it, so it stays as it is; to have it written anew, move it elsewhere."
LITTER = {".DS_Store", ".ipynb_checkpoints"}  # what a Mac and Jupyter leave by themselves
PEFTS = r"--- base_model: (.+?) library_name: peft( pipeline_tag: text-generation)? tags: - base_model:adapter:\1 - lora"
PEFTS += r"( - (sft|transformers|trl))* --- {} ### Framework versions - PEFT \S+"  # its card, around huggingface_hub's empty form


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
    """Take along into `part`, which replaces `old`, all that may be its owner's: a card that was changed, and what is not written anew. But
    into a merged model no `tokenizer.model` of another tokenizer: Ollama would take it, and the model talk nonsense."""
    read = {file.read_bytes() for file in (old / "tokenizer.json", part / "tokenizer.json") if file.is_file()}
    ours = OURS[form] + ["tokenizer.model"] * (form == "merged" and len(read) > 1)
    mine = {*strangers(old, ours), *[CARD] * changed(old / CARD)} - {path.name for path in part.iterdir()}
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
    if _sum("".join(lines)) in last or text == new:
        return False
    form = re.escape(" ".join(ModelCard.from_template(ModelCardData()).text.split()))
    return not re.fullmatch(PEFTS.format(form), " ".join(text.split()))


def _sum(text: str) -> str:  # no more digits, which might look like an account's number
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]
