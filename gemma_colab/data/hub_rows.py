"""Datasets of the Hugging Face Hub, and folders laid out like them, through `datasets`; its failures in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.files import DATA, Raw
from gemma_colab.data.forms import listed, shown

FAILURES = {  # found in the names and texts of the errors -> what it means
    r"\bgated\b|GatedRepoError": (
        "asks you to accept its terms first: open its page on huggingface.co, accept, and give a token as HF_TOKEN"
    ),
    r"(?:splits?: |one of )\[([^\]]*)\]": "has no such split; it has {0}; name one with split= (on the command line: --split)",
    r"(?s:(?:Config name is missing|BuilderConfig).*?)\[([^\]]*)\]": (
        "has several configurations: {0}; name one as 'owner/name:configuration'"
    ),
    "DatasetNotFoundError|RepositoryNotFoundError": (
        "is neither a file here nor a dataset on the Hugging Face Hub that you may see; check the spelling and HF_TOKEN"
    ),
    "OfflineModeIsEnabled|LocalEntryNotFoundError|ConnectionError|ConnectError|TimeoutException": (
        "is no file here, and there is no connection to the Hugging Face Hub; check the name and the network"
    ),
    "scripts are no longer supported": (
        "is a dataset with a loading script, which may run any code and is not supported; look for a Parquet version"
    ),
}


def open_folder(path: Path, name: str, split: str) -> Raw:
    """A folder saved by `save_to_disk`, or one of data files, as `datasets` reads it."""
    # two levels, as datasets are laid out: not the whole disk for someone who gave "/"
    there = sorted(p.name for depth in ("*", "*/*") for p in path.glob(depth) if p.suffix.lower() in DATA and p.is_file())
    if not there:
        raise DatasetError(f"{name} is a folder without data files; give a file (.jsonl, .json, .csv, .xlsx, .parquet)")
    saved = any((path / n).is_file() for n in ("state.json", "dataset_dict.json"))

    def load():
        import datasets

        if not saved:  # streaming: no copy of the data in a cache
            return datasets.load_dataset(str(path.resolve()), split=split, streaming=True)
        loaded = datasets.load_from_disk(str(path.resolve()))
        if isinstance(loaded, dict) and split not in loaded:
            raise ValueError(f"Available splits: {list(loaded)}")
        return loaded[split] if isinstance(loaded, dict) else loaded

    details = ["saved dataset" if saved else "folder of data files", f"split {split}"]
    return _dataset(load, name, details, f" (it holds {listed(there)})")


def open_hub(name: str, split: str, limit: int | None) -> Raw:
    """A dataset of the Hub: kept in its cache when all of it is wanted, streamed when only a few rows are."""

    def load():
        import datasets

        repository, _, configuration = name.partition(":")
        return datasets.load_dataset(repository, configuration or None, split=split, streaming=limit is not None)

    return _dataset(load, name, ["Hugging Face dataset", f"split {split}"])


def _dataset(load: Callable, name: str, details: list[str], hint: str = "") -> Raw:
    def records():
        number = 0
        try:
            for number, record in enumerate(data, 1):
                yield number, dict(record)
        except Exception as e:
            raise DatasetError(_in_plain_words(f"{name}, after row {number}", e, hint)) from e

    try:
        data = load()
        return Raw(records(), details, "row", table=True)
    except Exception as e:  # five libraries may raise here; a beginner gets one sentence
        raise DatasetError(_in_plain_words(name, e, hint)) from e


def _in_plain_words(name: str, error: BaseException, hint: str) -> str:
    chain, e = [], error
    while e is not None and e not in chain:
        chain.append(e)
        e = e.__cause__ or e.__context__
    said = " ".join(f"{' '.join(kind.__name__ for kind in type(e).__mro__)} {e}" for e in chain)
    for pattern, meaning in FAILURES.items():
        if hit := re.search(pattern, said):
            return f"{name} {meaning.format(*hit.groups())}"
    first = shown(str(error).strip().partition("\n")[0], 160)
    return f"{name} can't be read as a dataset: {type(error).__name__} {first}{hint}; give one of its files instead"
