"""llama.cpp's own converter, convert_hf_to_gguf.py: where it is on this machine, or where to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from gemma_colab.core.errors import WorkspaceError
from gemma_colab.core.workspace import whole
from gemma_colab.model.memory import readable

SCRIPT = "convert_hf_to_gguf.py"
# The source package of llama-cpp-python carries llama.cpp. The checksum: what is downloaded here is run later.
SOURCE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PARTS = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")  # 2 MB of its 217
CACHE = Path("~/.cache/gemma_colab") / SOURCE.replace("==", "-")


def ready_converter() -> Path:
    """Return the path of the converter, downloaded if there is none, once it is clear that it can run. Raises `WorkspaceError`."""
    if find_spec("sentencepiece") is None:
        raise WorkspaceError("llama.cpp's converter needs sentencepiece, which isn't installed: pip install sentencepiece")
    return find_converter() or fetch_converter()


def find_converter() -> Path | None:
    """Return the path of convert_hf_to_gguf.py, or None if there is none.

    Where LLAMA_CPP in the environment names a folder, it must be there, or `WorkspaceError` is raised. Else these are tried: PATH
    (where Homebrew puts it), llama.cpp here or in your home folder, and what `fetch_converter` got.
    """
    if named := os.environ.get("LLAMA_CPP"):
        script = Path(named).expanduser().absolute() / SCRIPT
        if not script.is_file():
            raise WorkspaceError(f"LLAMA_CPP={named!r} has no {SCRIPT}; name llama.cpp's sources, or unset it to fetch them")
        return script
    places = [shutil.which(SCRIPT), Path("llama.cpp") / SCRIPT, Path("~/llama.cpp") / SCRIPT, CACHE / SCRIPT]
    scripts = (Path(place).expanduser().absolute() for place in places if place)
    return next((script for script in scripts if script.is_file()), None)


def fetch_converter(into: str | Path = CACHE) -> Path:
    """Download llama.cpp's converter (77 MB, of which 2 MB stay) into a folder; return the path of convert_hf_to_gguf.py.

    It comes from the source package of llama-cpp-python, which pip downloads and checks; nothing is compiled.
    """
    into = Path(into).expanduser().absolute()
    print(f"Fetching llama.cpp's converter, 77 MB, from the source package of {SOURCE} into {into}.")
    with whole(into) as part, tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n")
        # pip asks a source package for its metadata; that takes a build tool of its own for a moment, and builds nothing.
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
        command += ["--no-deps", "--no-binary", SOURCE.split("==")[0], "--require-hashes", "-r", str(wanted), "-d", folder]
        code, last = run(command, os.environ)
        if code:
            yourself = "fetch llama.cpp's sources yourself and name their folder in LLAMA_CPP"
            raise WorkspaceError(f"pip can't download {SOURCE} ({last}); check the network, or {yourself}")
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            for member in archive:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and name.startswith(PARTS):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).write_bytes(archive.extractfile(member).read())
    return into / SCRIPT


def run(command: list[str], env: dict) -> tuple[int, str]:
    """Run a command; return its exit status and the last line it wrote. It is stopped where this program is interrupted."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    lines = done.stdout.decode("utf-8", errors="replace").split("\n")
    return done.returncode, next((line.strip()[:300] for line in lines[::-1] if line.strip()), f"exit status {done.returncode}")
