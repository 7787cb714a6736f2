"""Where records come from: a file, known by its first bytes, a folder, or a dataset of the Hugging Face Hub.

Sources are only read. What goes wrong on the way is one `DatasetError` that says what to do.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import gzip
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gemma_colab.core.errors import DatasetError, GemmaColabError
from gemma_colab.data.encodings import CHUNK, SPOKEN, encoding_of, readable
from gemma_colab.data.excel import read_excel
from gemma_colab.data.json_files import BETWEEN, read_json
from gemma_colab.data.schema import Records, listed, printable, shown
from gemma_colab.data.tables import checked, read_csv, read_parquet

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
DATA_FILES = (*JSON_LINES, ".json", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow", ".gz")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")  # owner/name, or owner/name:configuration
SAVE_AS = "save the rows as .jsonl, .json, .csv, .xlsx or .parquet and try again"
FOREIGN = {  # how a file begins, in small letters -> what it is; what to do
    rb"%pdf": f"a PDF, not a dataset; {SAVE_AS}",
    rb"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull` and try again",
    rb"\xd0\xcf\x11\xe0": "an old Excel file (.xls) or has a password; save it as .xlsx without one and try again",
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|meta|body|div|style|table)\b": "an HTML page, whatever its name says; open it in Excel "
    "(or in a browser, and copy its table), save it as .xlsx and try again",
    rb"(?:\xef\xbb\xbf)?\s*<\?xml": "an XML file; open it in Excel if it is a table, save it as .xlsx and try again",
    rb"{\\rtf": f"a text document (.rtf), not a dataset; copy its table into Excel, or {SAVE_AS}",
    rb"rar!|7z\xbc\xaf|bzh|\xfd7zxz|\x28\xb5\x2f\xfd": "a packed archive; unpack it, and give the data file in it",
    rb"sqlite format 3": f"a database; {SAVE_AS}",
}
PACKED = {  # what lies in a zip archive -> what it is
    "word/": "a Word document",
    "ppt/": "a presentation",
    "xl/workbook.bin": "a binary Excel file (.xlsb)",
    "content.xml": "an OpenDocument file (.ods, .odt)",
    "Index/": "an Apple Numbers file",
}
ADDRESS = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]+:/|(?:www|docs\.google|drive\.google|huggingface|github)\.[a-z]+(?:\.[a-z]+)?/)")
FAILURES = {  # found in the names and texts of the errors of gzip, openpyxl, Arrow, datasets and others -> what it means
    "EOFError|BadGzipFile|while decompressing": "is cut off or damaged as a gzip file; download or compress it again",
    r"\bgated\b|GatedRepoError": "asks you to accept its terms first: open its page on huggingface.co, accept, and give a token as HF_TOKEN",
    r"(?:splits?: |one of )\[([^\]]*)\]": "has no such split; it has {0}; name one with split= (on the command line: --split)",
    r"(?s:(?:Config name is missing|BuilderConfig).*?)\[([^\]]*)\]": "has several configurations: {0}; name one as 'owner/name:configuration'",
    "DatasetNotFoundError|RepositoryNotFoundError": "is neither a file here nor a dataset on the Hugging Face Hub that you may see; check its name and HF_TOKEN",
    "OfflineModeIsEnabled|LocalEntryNotFoundError|Connect(?:ion)?Error|TimeoutException": "is no file here, and there is no connection to the Hugging Face Hub; check the name and the network",
    "scripts are no longer supported": "is a dataset with a loading script, which may run any code; look for a Parquet version",
}


def open_source(
    source: str | Path, name: str, stack: contextlib.ExitStack, sheet: str | int, split: str, limit: int | None
) -> Records:
    """Open a source. name: what stands for it in messages. stack: closes what is opened. Raises `DatasetError`."""
    found = _open(source, name, stack, sheet, split, limit)
    found.records = _counted(checked(found.records, found.notes) if found.table else found.records, name)
    return found


def _open(source: str | Path, name: str, stack: contextlib.ExitStack, sheet: str | int, split: str, limit: int | None) -> Records:
    path = Path(source)
    if os.path.isfile(path):  # os.path, which has no errors for names that no file can have
        return _open_file(path, name, sheet, stack)
    if os.path.isdir(path):
        return _open_folder(path, name, split)
    if os.path.lexists(path):
        raise DatasetError(f"{name} is a broken link or a device, not a file; give the data file itself")
    if ADDRESS.match(str(source)):
        raise DatasetError(f"{name} is a web address, and rows are read from files; {_download(str(source))}")
    if isinstance(source, str) and HUB_ID.fullmatch(source) and path.suffix.lower() not in DATA_FILES:
        import datasets

        repository, _, configuration = source.partition(":")  # streamed when only a few rows are wanted, else kept in its cache
        data = datasets.load_dataset(repository, configuration or None, split=split, streaming=limit is not None)
        return _rows_of(data, "Hugging Face dataset", split)
    there = sorted(p.name for p in path.absolute().parent.glob("*"))
    near = difflib.get_close_matches(path.name, there, 3) or [n for n in there if Path(n).suffix.lower() in DATA_FILES][:8]
    hint = f"in its folder: {', '.join(map(printable, near))}" if near else "check the name and the folder, or upload it first"
    raise DatasetError(f"{name} is not there; {hint}")


def _download(address: str) -> str:
    """Return what to do instead of giving a web address."""
    if hit := re.search(r"huggingface\.co/datasets/([\w.-]+/[\w.-]+)", address):
        return f"give the dataset by its name: {hit[1]}"
    if "docs.google.com" in address:
        return "in Google Sheets choose File > Download > .xlsx (or .csv), upload that file, and give its name"
    return "download it first, and give the name of the file that you then have"


@contextlib.contextmanager
def plain_words(name: str):
    """Turn whatever goes wrong in a library into one `DatasetError`."""
    try:
        yield
    except GemmaColabError:
        raise
    except Exception as error:
        from gemma_colab.model.hub import trace

        said = trace(error)
        for pattern, meaning in FAILURES.items():
            if hit := re.search(pattern, said):
                raise DatasetError(f"{name} {meaning.format(*hit.groups())}") from error
        first = shown(str(error).strip().partition("\n")[0], 160)
        what = f"{name} can't be read: {type(error).__name__} {first}"
        raise DatasetError(f"{what}; check the file, download or save it again") from error


# --- files


def _open_file(path: Path, name: str, sheet: str | int, stack: contextlib.ExitStack) -> Records:
    content = stack.enter_context(path.open("rb", CHUNK))
    packed = content.peek(2)[:2] == b"\x1f\x8b"
    content = stack.enter_context(gzip.GzipFile(fileobj=content) if packed else content)
    head = content.read(CHUNK)
    if not head:
        raise DatasetError(f"{name} is empty (0 bytes); check the download or the export that made it")
    if foreign := next((what for start, what in FOREIGN.items() if re.match(start, head[:200].lower())), ""):
        raise DatasetError(f"{name} is {foreign}")
    if head[:4] in (b"PAR1", b"PK\x03\x04"):
        content.seek(0)
        content = io.BytesIO(content.read()) if packed else content  # both are read from their end, where gzip can't jump to
        found = read_parquet(content) if head[:4] == b"PAR1" else _open_zip(content, sheet, name)
    else:
        codec = encoding_of(content, head, name, SAVE_AS)
        content.seek(0)
        # A byte that the encoding lacks becomes a lone surrogate: it is found in its own row, and nothing else is lost.
        text = stack.enter_context(io.TextIOWrapper(content, encoding=codec, errors="surrogateescape", newline=""))
        sample = head.decode(codec, "replace")
        kind = text_kind(sample, Path(path.name.lower().removesuffix(".gz")).suffix)
        found = read_csv(text, sample, name) if kind == "table" else read_json(text, kind, name)
        found.details.append(readable(codec))
        if codec in SPOKEN:
            found.notes[f"the encoding, {readable(codec)}, was guessed: look whether the letters are right"] = []
    found.details += ["gzip"] * packed
    return found


def _open_zip(content: io.BufferedIOBase, sheet: str | int, name: str) -> Records:
    """Open an .xlsx file, and tell other programs' files, which are zip archives as well, from it."""
    names = zipfile.ZipFile(content).namelist()
    if what := next((what for start, what in PACKED.items() if any(n.startswith(start) for n in names)), ""):
        raise DatasetError(
            f"{name} is {what}; open it in its program and save it as .xlsx or .csv (or copy its table into Excel), and try again"
        )
    if "[Content_Types].xml" not in names:
        raise DatasetError(f"{name} is a zip archive, not an .xlsx workbook; unpack it, and give the data file in it")
    return read_excel(content, sheet, name)


def _counted(records: Iterable, name: str) -> Iterator:
    """Yield the records under a bar that is shown after two seconds. (Iterating over the bar itself would show it as failed, perhaps cells
    later, when somebody stops early.)"""
    with tqdm(desc=name, unit=" rows", leave=False, delay=2) as bar:
        for record in records:
            yield record
            bar.update()


def text_kind(sample: str, suffix: str) -> str:
    """Return "lines" (one JSON object a line), "json" (one list or object) or "table", by content first, by name where in doubt."""
    sample = sample[BETWEEN.match(sample).end() :]  # behind comments
    first, second = [*(line.strip() for line in sample.split("\n") if line.strip()), "", ""][:2]
    if first[:1] not in ("[", "{"):
        return "lines" if suffix in (*JSON_LINES, ".json") else "table"
    try:
        json.loads(first)
    except (ValueError, RecursionError):  # broken, or the beginning of a text over many lines
        signs = second.startswith("{") + (first[-1] not in "[{,:")
        return "lines" if first[0] == "{" and signs > (suffix not in JSON_LINES) else "json"
    return "lines" if second.startswith(("{", "[")) or (second and first[0] == "{") else "json"


def _open_folder(path: Path, name: str, split: str) -> Records:
    """Open a folder saved by `save_to_disk`, or one of data files, as `datasets` reads it."""
    # two levels, as datasets are laid out: not the whole disk for someone who gave "/"
    files = [p for depth in ("*", "*/*") for p in path.glob(depth) if p.suffix.lower() in DATA_FILES and p.is_file()]
    if not files:
        raise DatasetError(f"{name} is a folder without data files; give a file (.jsonl, .json, .csv, .xlsx, .parquet)")
    import datasets

    if not any((path / n).is_file() for n in ("state.json", "dataset_dict.json")):  # streaming: no copy of the data in a cache
        how = {"path": (where := str(path.resolve()))}
        if glob.has_magic(where):  # `data [v2]` is a pattern, unless the kind of file is told
            kinds = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".txt": "text"}
            how = {"path": kinds.get(files[0].suffix.lower(), "json"), "data_dir": glob.escape(where)}
        data = datasets.load_dataset(**how, split=split, streaming=True)
        return _rows_of(data, "folder of data files", split)
    data = datasets.load_from_disk(str(path.resolve()))
    if isinstance(data, dict) and split not in data:
        raise DatasetError(
            f"{name} has no split {split!r}; it has {listed(data)}; name one with split= (on the command line: --split)"
        )
    return _rows_of(data[split] if isinstance(data, dict) else data, "saved dataset", split)


def _rows_of(data: Iterable[dict[str, Any]], what: str, split: str) -> Records:
    return Records(((number, dict(record)) for number, record in enumerate(data, 1)), [what, f"split {split}"], "row", table=True)
