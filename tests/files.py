"""Files for the tests of reading, and what is said of one that can't be read."""

import io
import zipfile
from pathlib import Path

import pytest

from gemma_colab.core.errors import DatasetError
from gemma_colab.data.reading import read_rows


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, "a,b\n1,2\n")
    return out.getvalue()


def refusal(source: str | Path, **options) -> str:
    """The sentence by which a source is refused: one line, whatever is wrong."""
    with pytest.raises(DatasetError) as caught:
        read_rows(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
