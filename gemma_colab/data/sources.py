"""Where records come from: a file, known by its first bytes, a folder, or a dataset of the Hugging Face Hub.

Sources are only read. What goes wrong on the way is one `DatasetError` that says what to do.
"""

import contextlib
import difflib
import glob
import gzip
import io
import json
import math
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from gemma_colab.core.errors import DatasetError, GemmaColabError
from gemma_colab.data.encodings import CHUNK, SPOKEN, encoding_of, readable
from gemma_colab.data.excel import read_excel
from gemma_colab.data.json_files import BETWEEN, read_json
from gemma_colab.data.schema import BadRow, Records, listed, printable, shown
from gemma_colab.data.tables import checked, read_csv, read_parquet

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
DATA_FILES = (*JSON_LINES, ".json", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow", ".gz")
KINDS = dict.fromkeys((*JSON_LINES, ".json"), "json") | {".csv": "csv", ".tsv": "csv"}
KINDS |= {".parquet": "parquet", ".arrow": "arrow"}  # what a folder is read from
NO_DATA = ("", ".md", ".py", ".yaml", ".yml", ".lock")  # what lies beside data, and is not told of
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves
# A small file may unpack to more than the memory holds. This is for those that people made: texts become 2 to 20 times smaller.
TIMES, ROOM = 50, 64 * 2**20
STYLES = 2 * 2**20  # bytes of an .xlsx file that are no cells: each element there becomes an object
RECORD = 100  # bytes that a record counts as, however short it is: each takes time
MEMORY = 4 * 2**30  # bytes that a library may take beyond that room, whatever a file says of itself
HUB = "hf://datasets/"  # as huggingface_hub and datasets spell it; a name alone may be a path, such as clients/ivanov, and is nobody's business
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
PACKED = {  # what is in a zip archive -> what it is
    "word/": "a Word document",
    "ppt/": "a presentation",
    "xl/workbook.bin": "a binary Excel file (.xlsb)",
    "content.xml": "an OpenDocument file (.ods, .odt)",
    "Index/": "an Apple Numbers file",
}
ADDRESS = re.compile(r"(?i)(?:[a-z][a-z0-9+.-]+:/|(?:www|docs\.google|drive\.google|huggingface|github)\.[a-z]+(?:\.[a-z]+)?/)")
FAILURES = {  # found in the names and texts of the errors of gzip, openpyxl, Arrow, datasets and others -> what it means
    "MemoryError|malloc of size|bad_alloc": "takes more memory than a file of its size should; look at what is in it, and save the rows as .jsonl or .csv",
    "EOFError|BadGzipFile|while decompressing": "is cut off or damaged as a gzip file; download or compress it again",
    r"\bgated\b|GatedRepoError": "asks you to accept its terms first: open its page on huggingface.co, accept, and give a token as HF_TOKEN",
    r"(?:splits?: |one of )\[([^\]]*)\]": "has no such split; it has {0}; name one with split= (on the command line: --split)",
    r"(?s:(?:Config name is missing|BuilderConfig).*?)\[([^\]]*)\]": "has several configurations: {0}; name one as 'hf://datasets/owner/name:configuration'",
    "DatasetNotFoundError|RepositoryNotFoundError": "is no dataset on the Hugging Face Hub that you may see; check its name and HF_TOKEN",
    "OfflineModeIsEnabled|LocalEntryNotFoundError|Connect(?:ion)?Error|TimeoutException": "can't be had: there is no connection to the Hugging Face Hub; check the network",
    "scripts are no longer supported": "is a dataset with a loading script, which may run any code; look for a Parquet version",
}


def open_source(
    source: str | Path, name: str, stack: contextlib.ExitStack, sheet: str | int, split: str, limit: int | None
) -> Records:
    """Open a source. name: what it is called in messages. stack: closes what is opened, and ends the bound on memory. Raises `DatasetError`."""
    stack.enter_context(bounded(room := _room(Path(source))))
    found = _open(source, name, stack, sheet, split, limit)
    found.records = checked(found.records, found.notes) if found.table else found.records
    found.records = _counted(found.records, name, room)
    return found


def _open(source: str | Path, name: str, stack: contextlib.ExitStack, sheet: str | int, split: str, limit: int | None) -> Records:
    path = Path(source)
    if os.path.isfile(path):  # os.path, which has no errors for names that no file can have
        return _open_file(path, name, sheet, stack)
    if os.path.isdir(path):
        return (
            _open_saved(path, name, split) if any((path / n).is_file() for n in SAVED) else _open_folder(path, name, split, stack)
        )
    if os.path.lexists(path):
        raise DatasetError(f"{name} is a broken link or a device, not a file; give the data file itself")
    if is_id := HUB_ID.fullmatch(hub_id := str(source).removeprefix(HUB)):
        from gemma_colab.model.hub import no_secret

        no_secret("source", hub_id)
    if is_id and hub_id != str(source):
        import datasets

        repository, _, configuration = hub_id.partition(":")  # streamed when only a few rows are wanted, else kept in its cache
        files = datasets.load_dataset_builder(repository, configuration or None).config.data_files or {}
        _stay_inside(name, [file for some in files.values() for file in some if not file.startswith("hf://")])
        data = datasets.load_dataset(repository, configuration or None, split=split, streaming=limit is not None)
        return _rows_of(data, "Hugging Face dataset", split)
    if ADDRESS.match(str(source)):
        raise DatasetError(f"{name} is a web address, and rows are read from files; {_download(str(source))}")
    there = sorted(p.name for p in path.absolute().parent.glob("*"))
    near = difflib.get_close_matches(path.name, there, 3) or [n for n in there if Path(n).suffix.lower() in DATA_FILES][:8]
    hint = f"in its folder: {', '.join(map(printable, near))}" if near else "check the name and the folder, or upload it first"
    if isinstance(source, str) and is_id and path.suffix.lower() not in DATA_FILES:
        hint += f"; a dataset of the Hugging Face Hub is written {HUB}{hub_id}"
    raise DatasetError(f"{name} is not there; {hint}")


def _download(address: str) -> str:
    """Return what to do instead of giving a web address."""
    if hit := re.search(r"huggingface\.co/datasets/([\w.-]+/[\w.-]+)", address):
        return f"give the dataset by its name: {HUB}{hit[1]}"
    if "docs.google.com" in address:
        return "in Google Sheets choose File > Download > .xlsx (or .csv), upload that file, and give its name"
    return "download it first, and give the name of the file that you then have"


@contextlib.contextmanager
def bounded(room: float):
    """Let the reading of a file or a folder take no more memory than `MEMORY` and its room, where the system can: under Linux."""
    if sys.platform != "linux" or room == math.inf:
        yield
        return
    import resource

    before = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + MEMORY + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (most if soft < 0 else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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


class _Gzip(gzip.GzipFile):
    """Unpacks as much as `fits` lets it."""

    def read(self, size: int = -1) -> bytes:
        self.fits(self.tell())
        return b"".join(iter(self.read1, b"")) if size < 0 else super().read(size)

    def read1(self, size: int = -1) -> bytes:
        self.fits(self.tell())
        return super().read1(size)


def _room(path: Path) -> float:
    """Return how many bytes a file, or all files of a folder, may unpack to; what the Hub sends is no packed file."""
    every = (path, *path.glob("*"), *path.glob("*/*")) if os.path.exists(path) else ()
    return max(ROOM, TIMES * sum(file.stat().st_size for file in every if file.is_file())) if every else math.inf


def _fits(name: str, size: float, room: float) -> None:
    """Raise `DatasetError` where more comes out of a packed file than its room."""
    if size > room:
        what = f"{name} unpacks to more than {room / 2**20:,.0f} MiB, and to more than {TIMES} times its own size"
        raise DatasetError(f"{what}; unpack it yourself, look at what is in it, and save the rows as .jsonl or .csv")


def _size(value: Any) -> int:
    """Return about how many bytes of memory a record takes, at least."""
    value = value.content if isinstance(value, BadRow) else value
    value = [*value.values()] if isinstance(value, dict) else value
    return 8 + (len(value) if isinstance(value, (str, bytes)) else sum(map(_size, value)) if isinstance(value, list) else 28)


def _open_file(path: Path, name: str, sheet: str | int, stack: contextlib.ExitStack) -> Records:
    content = stack.enter_context(path.open("rb", CHUNK))
    packed = content.peek(2)[:2] == b"\x1f\x8b"
    fits = partial(_fits, name, room=_room(path))
    if packed:
        content = stack.enter_context(_Gzip(fileobj=content))
        content.fits = fits
    head = content.read(CHUNK)
    if not head:
        raise DatasetError(f"{name} is empty (0 bytes); check the download or the export that made it")
    if foreign := next((what for start, what in FOREIGN.items() if re.match(start, head[:200].lower())), ""):
        raise DatasetError(f"{name} is {foreign}")
    if head[:4] in (b"PAR1", b"PK\x03\x04"):
        content.seek(0)
        content = io.BytesIO(content.read()) if packed else content  # both are read from their end, where gzip can't jump to
        found = read_parquet(content, fits) if head[:4] == b"PAR1" else _open_zip(content, sheet, name, fits)
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


def _open_zip(content: io.BufferedIOBase, sheet: str | int, name: str, fits: Callable[[float], None]) -> Records:
    """Open an .xlsx file, and tell other programs' files, which are zip archives as well, from it."""
    from openpyxl.packaging.manifest import Manifest
    from openpyxl.packaging.relationship import get_rels_path
    from openpyxl.xml.functions import fromstring

    archive = zipfile.ZipFile(content)
    files = archive.infolist()
    fits(sum(file.file_size for file in files))  # zipfile reads no more of a file than is said here
    names = [file.filename for file in files]
    if what := next((what for start, what in PACKED.items() if any(n.startswith(start) for n in names)), ""):
        raise DatasetError(f"{name} is {what}; open it in its program and save it as .xlsx or .csv, or copy its table into Excel")
    if "[Content_Types].xml" not in names:
        raise DatasetError(f"{name} is a zip archive, not an .xlsx workbook; unpack it, and give the data file in it")
    sizes = {file.filename: file.file_size for file in files}
    objects = {"[Content_Types].xml", "xl/styles.xml", "xl/workbook.xml"}
    if sizes["[Content_Types].xml"] <= STYLES:  # else the list of the parts itself is what is too large
        parts = Manifest.from_tree(fromstring(archive.read("[Content_Types].xml"))).Override
        objects |= {part.PartName[1:] for part in parts if "main+xml" in part.ContentType}  # whatever the book is called
    if sum(sizes.get(part, 0) + sizes.get(get_rels_path(part), 0) for part in objects) > STYLES:
        what = f"{name} has more than {STYLES / 2**20:.0f} MiB of styles and of names of sheets, which would take minutes"
        raise DatasetError(f"{what}; save its sheet as .csv, or copy its cells into a new workbook")
    return read_excel(content, sheet, name, fits)


def _counted(records: Iterable, name: str, room: float) -> Iterator:
    """Yield the records, as long as there is room (a text that is stored once may be in each), under a bar that is shown after two
    seconds. (Iterating over the bar itself would show it as failed, perhaps cells later, when somebody stops early.)"""
    with tqdm(desc=name, unit=" rows", leave=False, delay=2) as bar:
        size = 0
        for line, record in records:
            _fits(name, size := size + RECORD + _size(record), room)
            yield line, record
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


def _stay_inside(name: str, files: Iterable[str | Path], folder: Path | None = None) -> None:
    """Raise `DatasetError` for a file outside the folder that is read, or, of a snapshot in the cache of the Hub, outside the whole of
    it: what somebody gave you must not take in what is yours."""
    home = folder and folder.resolve()
    home = home.parents[1] if home and home.parent.name == "snapshots" else home
    # datasets reads `a::b` as b, unpacked out of a
    if outside := [file for file in files if "::" in str(file) or not (home and Path(file).resolve().is_relative_to(home))]:
        what = f"{name} takes its rows from {shown(str(outside[0]), 300)}, which is not in it"
        raise DatasetError(f"{what}; if that is meant, give that file itself")


def _open_folder(path: Path, name: str, split: str, stack: contextlib.ExitStack) -> Records:
    """Open a folder of data files: those of the commonest kind, in the splits that `datasets` sees in their names. What a README.md or
    a program in it says of others is not asked."""
    # two levels, as datasets are laid out: not the whole disk for someone who gave "/"
    files = [p for depth in ("*", "*/*") for p in path.glob(depth) if p.suffix.lower() in DATA_FILES and p.is_file()]
    if not files:
        raise DatasetError(f"{name} is a folder without data files; give a file (.jsonl, .json, .csv, .xlsx, .parquet)")
    import datasets
    from datasets.data_files import DataFilesDict, get_data_patterns

    def kind_of(file: str | Path) -> str:
        return KINDS.get(Path(str(file).lower().removesuffix(".gz")).suffix, "")

    where = glob.escape(str(path.resolve()))  # `data [v2]` is a pattern
    found = DataFilesDict.from_patterns(get_data_patterns(where), base_path=where)
    kinds = Counter(filter(None, map(kind_of, chain(*found.values()))))
    if not kinds:
        raise DatasetError(f"{name} holds files of a kind that a folder is not read from, {shown(files[0].name)}; give that file")
    kind = kinds.most_common(1)[0][0]
    splits = {part: some for part in found if (some := [file for file in found[part] if kind_of(file) == kind])}
    read = {Path(file).resolve() for file in splits.get(split, ())}
    there = [p for p in islice(path.rglob("*"), 10_000) if p.suffix.lower() not in NO_DATA and p.is_file()]
    others = [str(p.relative_to(path)) for p in sorted(there) if p.resolve() not in read]
    notes = {f"not read, as a folder is read in one kind and one split: {listed(others)}": []} if others else {}
    _stay_inside(name, chain(*splits.values()), path)
    _has_split(name, splits, split)
    files, details = [Path(file) for file in splits[split]], ["folder of data files", f"split {split}"]
    if kind == "arrow":
        for file in files:
            with file.open("rb") as content:  # by its beginning: what is packed would be unpacked whole
                if not content.read(4).startswith((b"ARRO", b"\xff\xff\xff\xff")):
                    raise DatasetError(
                        f"{name} holds {shown(file.name)}, which is no Arrow file; give a file that can be read by itself"
                    )
        told = [glob.escape(str(file)) for file in files]
        found = _rows_of(datasets.load_dataset(kind, data_files=told, split="train", streaming=True), details[0], split)
        found.notes.update(notes)
        return found

    with plain_words(its := f"{name}, {files[0].name}"):
        first = _open_file(files[0], its, 0, stack)

    def records() -> Iterator[Any]:
        for file in files:
            with plain_words(its := f"{name}, {file.name}"), contextlib.ExitStack() as until:
                one = first if file == files[0] else _open_file(file, its, 0, until)
                if one.columns and not {*one.columns} & {*first.columns}:  # its first row would be lost
                    what = f"its first line is {listed(one.columns)}, and {files[0].name} has other columns"
                    raise DatasetError(f"{its}: {what}; give every file the same header")
                yield from (record for _, record in one.records)
                notes.update(one.notes)

    return Records(enumerate(records(), 1), details, "row", first.table, first.header, notes)


def _has_split(name: str, splits: Any, split: str) -> None:
    if split not in splits:
        raise DatasetError(f"{name} has no split {split!r}; it has {listed(splits)}; name one with split= (or --split)")


def _open_saved(path: Path, name: str, split: str) -> Records:
    """Open a folder saved by `save_to_disk`, whose files name others."""
    import datasets

    parts = [path] * (path / SAVED[0]).is_file()
    for whole in path.glob(SAVED[1]):
        parts += [path / part for part in json.loads(whole.read_text(encoding="utf-8"))["splits"]]
    _stay_inside(name, parts, path)
    for part in parts:
        files = json.loads((part / SAVED[0]).read_text(encoding="utf-8"))["_data_files"]
        _stay_inside(name, [part / file["filename"] for file in files], path)
    data = datasets.load_from_disk(str(path.resolve()))
    try:
        for part in data.values() if isinstance(data, dict) else [data]:
            part.data.validate(full=True)  # Arrow would read beyond the file where a text is said to be
    except ValueError as e:  # Arrow's own is one
        raise DatasetError(f"{name} is damaged ({e}); save the dataset again") from None
    if isinstance(data, dict):
        _has_split(name, data, split)
    return _rows_of(data[split] if isinstance(data, dict) else data, "saved dataset", split)


def _rows_of(data: Any, what: str, split: str) -> Records:
    """Return the rows as they are stored: what only names a picture or a recording opens neither a file nor an address."""
    if data.features:
        from datasets.features.features import Json, _visit

        as_stored = _visit(
            data.features, lambda f: replace(f, decode=False) if hasattr(f, "decode") and type(f) is not Json else f
        )
        if hasattr(data, "num_rows"):
            data.info.features = as_stored
        else:
            data = data.decode(False).cast(as_stored)
    return Records(((number, dict(record)) for number, record in enumerate(data, 1)), [what, f"split {split}"], "row", table=True)
