"""Where records come from: a file, known by its first bytes, a folder, or a dataset of the Hugging Face Hub.

Sources are only read. What goes wrong on the way is one `DatasetError` that says what to do.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import gzip
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from gemma_colab.core.errors import DatasetError, GemmaColabError
from gemma_colab.data.json_files import BETWEEN, read_json
from gemma_colab.data.schema import BROKEN, Records, listed, printable, shown
from gemma_colab.data.tables import read_csv, read_excel, read_parquet

CHUNK = 256 * 1024  # bytes that are looked at, or read at a time
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
DATA_FILES = (*JSON_LINES, ".json", ".csv", ".tsv", ".txt", ".xlsx", ".parquet", ".arrow", ".gz")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")  # owner/name, or owner/name:configuration
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# What charset-normalizer chooses from: more candidates would make its guess on a short text worse.
EIGHT_BIT = {f"cp125{i}": f"Windows-125{i}" for i in (1, 2, 3, 5)} | {"koi8_r": "KOI8-R", "cp866": "code page 866 (DOS)"}
ENCODINGS = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark", "utf-16": "UTF-16"} | EIGHT_BIT
CONTROL = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\x1b") + b"\x7f"
SAVE_AS = "save the rows as .jsonl, .json, .csv, .xlsx or .parquet and try again"
FOREIGN = {
    b"%PDF": f"a PDF, not a dataset; {SAVE_AS}",
    b"version https://git-lfs": "a Git LFS pointer, not the data; run `git lfs pull` and try again",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls) or has a password; save it as .xlsx without one and try again",
}
FAILURES = {  # found in the names and texts of the errors of gzip, openpyxl, Arrow, datasets and others -> what it means
    r"There is no item named '\[Content": "is a zip archive, not an .xlsx workbook; unpack it, or save it as .xlsx",
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
    path = Path(source)
    if os.path.isfile(path):  # os.path, which has no errors for names that no file can have
        return _open_file(path, name, sheet, stack)
    if os.path.isdir(path):
        return _open_folder(path, name, split)
    if os.path.lexists(path):
        raise DatasetError(f"{name} is a broken link or a device, not a file; give the data file itself")
    if isinstance(source, str) and HUB_ID.fullmatch(source) and path.suffix.lower() not in DATA_FILES:
        import datasets

        repository, _, configuration = source.partition(":")  # streamed when only a few rows are wanted, else kept in its cache
        data = datasets.load_dataset(repository, configuration or None, split=split, streaming=limit is not None)
        return _rows_of(data, "Hugging Face dataset", split)
    there = sorted(p.name for p in path.absolute().parent.glob("*"))
    near = difflib.get_close_matches(path.name, there, 3) or [n for n in there if Path(n).suffix.lower() in DATA_FILES][:8]
    hint = f"in its folder: {', '.join(map(printable, near))}" if near else "check the name and the folder, or upload it first"
    raise DatasetError(f"{name} is not there; {hint}")


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
    if foreign := next((what for start, what in FOREIGN.items() if head.startswith(start)), ""):
        raise DatasetError(f"{name} is {foreign}")
    if head[:4] in (b"PAR1", b"PK\x03\x04"):
        content.seek(0)
        content = io.BytesIO(content.read()) if packed else content  # both are read from their end, where gzip can't jump to
        found = read_parquet(content) if head[:4] == b"PAR1" else read_excel(content, sheet, name)
    else:
        codec = _encoding(content, head, name)
        content.seek(0)
        # A byte that the encoding lacks becomes a lone surrogate: it is found in its own row, and nothing else is lost.
        text = stack.enter_context(io.TextIOWrapper(content, encoding=codec, errors="surrogateescape", newline=""))
        sample = head.decode(codec, "replace")
        kind = text_kind(sample, Path(path.name.lower().removesuffix(".gz")).suffix)
        found = read_csv(text, sample, name) if kind == "table" else read_json(text, kind, name)
        found.details.append(ENCODINGS[codec])
    found.details += ["gzip"] * packed
    found.records = _counted(found.records, name)
    return found


def _counted(records: Iterable, name: str) -> Iterator:
    """Yield the records under a bar that is shown after two seconds. (Iterating over the bar itself would show it as failed, perhaps cells
    later, when somebody stops early.)"""
    with tqdm(desc=name, unit=" rows", leave=False, delay=2) as bar:
        for record in records:
            yield record
            bar.update()


def _encoding(content: io.BufferedIOBase, head: bytes, name: str) -> str:
    """Return the codec of a text. A text with few broken places is UTF-8."""
    for mark, codec in BOMS.items():
        if head.startswith(mark):
            return codec
    controls = len(head) - len(head.translate(None, CONTROL))
    if controls > max(2, len(head) // 20):
        raise DatasetError(f"{name} is not text: {controls} of its first {len(head)} bytes are control characters; {SAVE_AS}")
    sample = chunk = head * (not head.isascii())
    while len(sample) < 4 * CHUNK and (chunk := content.read(CHUNK)):
        sample += chunk * (not chunk.isascii())  # a text may be ASCII for long, and then not
    broken = len(BROKEN.findall(codecs.utf_8_decode(sample, "surrogateescape", not chunk)[0]))
    if broken * 10 <= len(sample.translate(None, bytes(range(128)))):
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(sample[:CHUNK], cp_isolation=list(EIGHT_BIT)).best()
    if best is None:
        raise DatasetError(f"{name}: the encoding of its text can't be told; save it as UTF-8 and try again")
    return best.encoding


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
    if not any(p.suffix.lower() in DATA_FILES and p.is_file() for depth in ("*", "*/*") for p in path.glob(depth)):
        raise DatasetError(f"{name} is a folder without data files; give a file (.jsonl, .json, .csv, .xlsx, .parquet)")
    import datasets

    if not any((path / n).is_file() for n in ("state.json", "dataset_dict.json")):  # streaming: no copy of the data in a cache
        data = datasets.load_dataset(str(path.resolve()), split=split, streaming=True)
        return _rows_of(data, "folder of data files", split)
    data = datasets.load_from_disk(str(path.resolve()))
    if isinstance(data, dict) and split not in data:
        raise DatasetError(
            f"{name} has no split {split!r}; it has {listed(data)}; name one with split= (on the command line: --split)"
        )
    return _rows_of(data[split] if isinstance(data, dict) else data, "saved dataset", split)


def _rows_of(data: Iterable[dict[str, Any]], what: str, split: str) -> Records:
    return Records(((number, dict(record)) for number, record in enumerate(data, 1)), [what, f"split {split}"], "row", table=True)
