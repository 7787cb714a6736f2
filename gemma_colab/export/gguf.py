"""A GGUF file of a merged model, made by llama.cpp's own converter, and run by llama.cpp to see whether it answers the same.

The converter is that of the llama.cpp that LLAMA_CPP names, or comes with the source package of llama-cpp-python.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError, say
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.core.workspace import whole
from gemma_colab.export.checkpoint import check_merged, with_added_tokens
from gemma_colab.model.memory import readable

# Bytes of a weight. q8_0: 32 weights of a byte share a scale in float16. Norms stay in float32, and are few.
OUTTYPES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}
PYTHON = (sys.executable, "-P")  # without the current folder among the places of modules: a json.py there would run
RUNTIME = "xllamacpp"  # llama.cpp as a Python package, compiled already
SCRIPT = "convert_hf_to_gguf.py"
# The source package of llama-cpp-python carries llama.cpp. The checksum: what is downloaded here is run later.
SOURCE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PARTS = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")  # 2 MB of its 217
BACKEND = """
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{0}-{1}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {0}\\nVersion: {1}\\n")
    return info.name
"""
CACHE = Path("~/.cache/gemma_colab") / SOURCE.replace("==", "-")

# llama.cpp takes it that every sixth layer of a Gemma 3 sees the whole text, and its converter doesn't say where a model differs, as
# the tiny one does. So here the converter runs with a writer that adds it.
RUN = """
import json, pathlib, runpy, sys
script, sliding = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
if sliding:
    import gguf
    add = gguf.GGUFWriter.add_sliding_window
    gguf.GGUFWriter.add_sliding_window = lambda self, n: [add(self, n), self.add_sliding_window_pattern(sliding)]
sys.argv[:3] = [str(script)]
runpy.run_path(str(script), run_name="__main__")
"""


def write_gguf(merged: str | Path, out: str | Path, *, outtype: str = "f16") -> Path:
    """Write a merged model as one .gguf file for llama.cpp, LM Studio, Ollama and others. Return `out`; an older one is replaced.

    outtype: "f32"; "bf16", the weights as they were merged; "f16", faster on CPUs (the file only: llama.cpp computes the residual
    stream in float32); "q8_0", half of that. Of a multimodal model, the text part is written. The converter is that of the llama.cpp
    that LLAMA_CPP in the environment names, or downloaded. Raises `ModelError`, `SettingsError` or `WorkspaceError`; then nothing is left.
    """
    merged, out = Path(merged).expanduser().absolute(), Path(out).expanduser().absolute()
    if outtype not in OUTTYPES:
        raise SettingsError(f"outtype={outtype!r} must be one of {', '.join(OUTTYPES)}; try 'q8_0' for the smallest")
    if out.suffix != ".gguf" or out.is_dir():
        raise SettingsError(f"out={str(out)!r} must be a file that ends in .gguf, such as {out.with_suffix('.gguf')}")
    config, tensors = check_merged(merged)
    size = OUTTYPES[outtype] * sum(tensor.like.numel() for tensor in tensors.values()) + 16 * 2**20  # with the tokenizer
    need, free = readable(size / GIB), free_gib(out)
    if free < size / GIB:
        raise WorkspaceError(f"{out.name} takes {need} and {readable(free)} is free in {out.parent}; make room there")
    kinds = config.get_text_config().layer_types
    usual = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(len(kinds))]
    sliding = None if kinds == usual else [kind == "sliding_attention" for kind in kinds]
    script = ready_converter()
    say(f"{out.name} takes {need}; llama.cpp's converter is writing it")
    try:
        with whole(out) as part, tempfile.TemporaryDirectory() as links:
            part.touch()  # where nothing can be written, that shows at once
            for path in merged.iterdir():
                (Path(links) / path.name).symlink_to(path.resolve())
            settings = Path(links) / "tokenizer_config.json"
            settings.unlink()
            settings.write_text(with_added_tokens(merged), encoding="utf-8")
            command = [*PYTHON, "-c", RUN, str(script), json.dumps(sliding), links]
            command += ["--outfile", str(part), "--outtype", outtype, "--model-name", out.stem]
            why = run(command, os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}, part, size)
            if why or not part.stat().st_size:
                remedy = "make room on a full disk; if it is your own llama.cpp, take a newer one, or unset LLAMA_CPP"
                raise ModelError(f"llama.cpp's converter can't convert {merged} ({why}); {remedy}")
    except OSError as e:
        raise WorkspaceError(f"{out} can't be written ({e.strerror}); name a folder you may write to") from None
    return out


def check_gguf(
    path: str | Path,
    prompts: list[list[dict[str, str]]],
    expected: list[str],
    *,
    max_new_tokens: int = 128,
    n_ctx: int = 4096,
    n_threads: int | None = None,
) -> pd.DataFrame:
    """Ask llama.cpp what the merged model was asked, greedily, with the chat template in the file; "equal" says whether it answers so.

    prompts: lists of chat turns. expected: the merged model's own greedy answers in float32, with the same `max_new_tokens`.
    n_ctx: tokens of the longest prompt and its answer. n_threads: of all cores where left out; take fewer where other programs run.
    One line a prompt: prompt (its last turn), expected, answer, equal. Raises `WorkspaceError` without xllamacpp.
    """
    if not can_run():
        raise WorkspaceError(f"to run a GGUF file, Python needs llama.cpp, and {RUNTIME} isn't installed; pip install {RUNTIME}")
    xllamacpp = import_module(RUNTIME)  # an import statement would make it a requirement
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = str(path), n_ctx, 1, -1
    parameters.cpuparams.n_threads = n_threads or os.cpu_count() or 1
    try:
        server = xllamacpp.Server(parameters)  # within this process
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"llama.cpp can't load {path} ({str(e)[:200]}); write it again, with write_gguf") from None
    lines = []
    for prompt, right in zip(tqdm(prompts, desc=f"asking {Path(path).name}", leave=False), expected, strict=True):
        asked = {"messages": prompt, "max_tokens": max_new_tokens, "temperature": 0.0}
        got = server.handle_chat_completions(asked)["choices"][0]["message"]["content"].strip()
        lines.append((prompt[-1]["content"], right, got, got == right.strip()))
    return pd.DataFrame(lines, columns=["prompt", "expected", "answer", "equal"])


def can_run() -> bool:
    """Whether Python can call llama.cpp here."""
    return find_spec(RUNTIME) is not None


# --------------------------------------------------------------------------------------------- the converter
def ready_converter() -> Path:
    """Return the path of the converter, downloaded if there is none, once it is clear that it can run. Raises `WorkspaceError`."""
    if find_spec("sentencepiece") is None:
        raise WorkspaceError("llama.cpp's converter needs sentencepiece, which isn't installed: pip install sentencepiece")
    return find_converter() or fetch_converter()


def find_converter() -> Path | None:
    """Return the path of convert_hf_to_gguf.py, or None if there is none: in the folder that LLAMA_CPP in the environment names, which
    must have it, or `WorkspaceError` is raised; else what `fetch_converter` got. What is merely nearby is never run."""
    named = os.environ.get("LLAMA_CPP")
    script = Path(named or CACHE).expanduser().absolute() / SCRIPT
    if named and not script.is_file():
        raise WorkspaceError(f"LLAMA_CPP={named!r} has no {SCRIPT}; name llama.cpp's sources, or unset it to fetch them")
    return script if script.is_file() else None


def fetch_converter(into: str | Path = CACHE) -> Path:
    """Download llama.cpp's converter (77 MB, of which 2 MB stay) into a folder; return the path of convert_hf_to_gguf.py.

    It comes from the source package of llama-cpp-python, which pip downloads and checks; nothing is compiled.
    """
    into = Path(into).expanduser().absolute()
    if strange := [path.name for path in into.glob("*") if path.name not in {part.split("/")[0] for part in PARTS}]:
        raise WorkspaceError(f"into={str(into)!r} holds {min(strange)!r}, which would be lost; name a new folder")
    say(f"Fetching llama.cpp's converter, 77 MB, from the source package of {SOURCE} into {into}.")
    with whole(into) as part, tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{SOURCE} --hash=sha256:{SHA256}\n", encoding="utf-8")
        # pip asks a source package for its metadata. A backend of ours answers, so no build tool is downloaded and nothing of it runs.
        backend = Path(folder) / "scikit_build_core" / "build.py"
        backend.parent.mkdir()
        backend.write_text(BACKEND.format(*SOURCE.replace("-", "_").split("==")), encoding="utf-8")
        command = [*PYTHON, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check", "--no-cache-dir"]
        command += ["--no-deps", "--no-binary", SOURCE.split("==")[0], "--no-build-isolation", "--require-hashes"]
        command += ["-r", str(wanted), "-d", folder]
        if why := run(command, os.environ | {"TMPDIR": folder, "PYTHONPATH": folder}, Path(folder), 77e6):
            yourself = "fetch llama.cpp's sources yourself and name their folder in LLAMA_CPP"
            raise WorkspaceError(f"pip can't download {SOURCE} ({why}); check the network, or {yourself}")
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            for member in archive:
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and name.startswith(PARTS):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).write_bytes(archive.extractfile(member).read())
    return into / SCRIPT


def run(command: list[str], env: dict, growing: Path, total: float) -> str:
    """Run a command behind a bar: `growing`, a file or a folder for an archive, on its way to `total` bytes. Return its last line if it
    failed, else "".

    It is stopped where this program is interrupted.
    """
    bar = tqdm(total=int(total), desc="converter", unit="B", unit_scale=True, leave=False)
    with bar, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env)
        try:
            while process.poll() is None:
                with suppress(FileNotFoundError):  # moved away while it is measured
                    bar.update(min(sum(path.stat().st_size for path in (growing, *growing.rglob("*.tar.gz"))), bar.total) - bar.n)
                time.sleep(0.1)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        output.seek(0)
        lines = output.read().decode("utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    return lines[-1].strip()[:300] if process.returncode else ""
