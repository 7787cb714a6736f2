"""A GGUF file of a merged model, made by llama.cpp's own converter, and run by llama.cpp to see whether it answers the same."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.machine import GIB, free_gib, readable
from gemma_colab.core.workspace import Workspace
from gemma_colab.export.converter import fetch_converter, find_converter, watch
from gemma_colab.export.folder import check_merged, refuse_to_overwrite, with_added_tokens

# Bytes of a weight. q8_0: 32 weights of a byte share a scale in float16. Norms stay in float32, and are few.
OUTTYPES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}
RUNTIMES = ("llama_cpp", "xllamacpp")  # whichever is installed; the first needs a compiler to install, the second doesn't

# llama.cpp takes it that every sixth layer of a Gemma 3 sees the whole text, and its converter doesn't say where a model differs,
# as the tiny one does. So its own library adds that to the file.
ADD_LAYERS = """
import json, sys
import gguf
from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
source, target, sliding = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
writer = gguf.GGUFWriter(target, arch="gemma3")
key = gguf.Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch="gemma3")
copy_with_new_metadata(gguf.GGUFReader(source), writer, {key: MetadataDetails(gguf.GGUFValueType.ARRAY, sliding)}, [])
"""


def write_gguf(merged: str | Path, out: str | Path, *, outtype: str = "f16", llama_cpp: str | Path | None = None) -> Path:
    """Write a merged model as one .gguf file for llama.cpp, LM Studio, Ollama and others. Returns `out`; an older one is replaced.

    outtype: "f32"; "bf16", the weights as they were merged; "f16", faster on CPUs (the file only: llama.cpp computes the residual
    stream in float32); "q8_0", half of that. llama_cpp: the folder of your llama.cpp; left out, see `find_converter`, and if there
    is none, its converter is downloaded. Of a model that sees images, the text part is written.
    Raises `ModelError`, `SettingsError` or `WorkspaceError`; then nothing is left behind.
    """
    merged, out = Path(merged).expanduser().absolute(), Path(out).expanduser().absolute()
    if outtype not in OUTTYPES:
        raise SettingsError(f"outtype={outtype!r} must be one of {', '.join(OUTTYPES)}; try 'q8_0' for the smallest")
    if out.suffix != ".gguf" or out.is_dir():
        raise SettingsError(f"out={str(out)!r} must be the name of a file that ends in .gguf, such as {out.with_suffix('.gguf')}")
    config, tensors = check_merged(merged)
    refuse_to_overwrite(out, merged, "")
    weights = sum(tensor.bytes // tensor.dtype.itemsize for tensor in tensors.values())
    size = int(OUTTYPES[outtype] * weights)
    need, free = gguf_gib(weights, outtype, config), free_gib(out)
    if free < need:
        raise WorkspaceError(f"{out.name} takes {readable(need)} and {readable(free)} is free in {out.parent}; make room there")
    script = ready_converter(llama_cpp)
    try:
        with (
            Workspace(out.parent).writing(out.name) as part,
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".gguf.{os.getpid()}.") as folder,
        ):
            _convert(script, merged, config, Path(folder) / "model.gguf", outtype, out.stem, size).rename(part)
    except OSError as e:
        raise WorkspaceError(f"{out} can't be written ({e.strerror}); name a folder you may write to") from None
    return out


def gguf_gib(weights: int, outtype: str, config: dict) -> float:
    """GiB on the disk, with the tokenizer, that writing a file of so many weights takes. config: the model's."""
    return (int(OUTTYPES[outtype] * weights) + 16 * 2**20) * (2 if _layers(config) else 1) / GIB


def ready_converter(llama_cpp: str | Path | None = None) -> Path:
    """The converter, downloaded if there is none, once it is clear that it can run. Raises `WorkspaceError`."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise WorkspaceError(
            "llama.cpp's converter needs sentencepiece, which isn't installed; install it: pip install sentencepiece"
        )
    return find_converter(llama_cpp) or fetch_converter()


def _convert(script: Path, merged: Path, config: dict, made: Path, outtype: str, name: str, size: int) -> Path:
    """The path of the file it wrote: `made`, or one beside it."""
    with tempfile.TemporaryDirectory() as links:  # not beside `made`: Google Drive has no links
        command = [str(script), _for_the_converter(merged, Path(links)), "--outfile", str(made), "--outtype", outtype]
        _run([*command, "--model-name", name], f"writing {name}.gguf", made, size, merged)
    if (sliding := _layers(config)) is None:
        return made
    with_layers = made.with_name("layers.gguf")
    library = os.environ | {"PYTHONPATH": str(script.resolve().parent / "gguf-py")}
    add = ["-c", ADD_LAYERS, str(made), str(with_layers), json.dumps(sliding)]
    _run(add, f"the layers of {name}.gguf", with_layers, size, merged, library)
    return with_layers


def _layers(config: dict) -> list[bool] | None:
    """Which layers look back over the window only; None where that is so for five of every six, as in all that Google published."""
    kinds = config.get("text_config", config).get("layer_types") or []
    usual = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(len(kinds))]
    return None if kinds == usual else [kind == "sliding_attention" for kind in kinds]


def _for_the_converter(merged: Path, folder: Path) -> str:
    """The merged model under links, with a list of its special tokens where the converter looks for them: see `with_added_tokens`."""
    view = folder / "merged"
    view.mkdir()
    for path in merged.iterdir():
        if path.is_file() and path.suffix != ".gguf":
            (view / path.name).symlink_to(path.resolve())
    (view / "tokenizer_config.json").unlink(missing_ok=True)
    (view / "tokenizer_config.json").write_text(json.dumps(with_added_tokens(merged)), encoding="utf-8")
    return str(view)


def _run(arguments: list[str], description: str, made: Path, size: int, merged: Path, env: dict | None = None) -> None:
    env = (env or os.environ) | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    code, last = watch([sys.executable, *arguments], description, lambda: made.stat().st_size, size, env)
    if "No space left" in last:
        raise WorkspaceError(f"the disk is full; make room in {made.parent.parent}")
    if code or not made.exists():
        raise ModelError(
            f"llama.cpp's converter can't convert {merged} ({last}); if it is your own llama.cpp, take a newer one, or unset LLAMA_CPP"
        )


# --------------------------------------------------------------------------------------------- run it and compare
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
    n_ctx: tokens of the longest prompt and its answer. n_threads: left out, as many as there are cores; take fewer where other
    programs use them, since llama.cpp's threads wait for one another. One line a prompt: prompt (its last turn), expected, answer, equal.
    It needs a llama.cpp that Python can call: llama-cpp-python, or xllamacpp. Raises `WorkspaceError` if neither is installed.
    """
    if len(prompts) != len(expected):
        raise SettingsError(
            f"{len(prompts)} prompts and {len(expected)} expected answers must be of one number; give one for each"
        )
    answer = _load(Path(path), max_new_tokens, n_ctx, n_threads or os.cpu_count() or 1)
    lines = []
    for prompt, right in zip(tqdm(prompts, desc=f"asking {Path(path).name}", leave=False), expected, strict=True):
        got = answer(prompt).strip()
        lines.append((prompt[-1]["content"], right, got, got == right.strip()))
    return pd.DataFrame(lines, columns=["prompt", "expected", "answer", "equal"])


def _load(path: Path, max_new_tokens: int, n_ctx: int, n_threads: int) -> Callable[[list[dict]], str]:
    """A function that answers chat turns."""
    name = next((name for name in RUNTIMES if importlib.util.find_spec(name)), None)
    if name is None:
        raise WorkspaceError(
            "to run a GGUF, Python needs llama.cpp, and neither xllamacpp nor llama-cpp-python is installed; the first comes ready "
            "made: pip install xllamacpp"
        )
    try:
        with path.open("rb") as file:
            whole = file.read(4) == b"GGUF"
    except OSError as e:
        raise WorkspaceError(f"{path} can't be read ({e.strerror}); write it with write_gguf first") from None
    if not whole:
        raise ModelError(f"{path} is no GGUF file; write it with write_gguf")
    runtime = importlib.import_module(name)  # an import statement would make it a requirement
    how = {"max_tokens": max_new_tokens, "temperature": 0.0}
    try:
        if name == "llama_cpp":
            llama = runtime.Llama(str(path), n_ctx=n_ctx, n_threads=n_threads, n_threads_batch=n_threads, verbose=False)
            ask = lambda turns: llama.create_chat_completion(turns, **how)  # noqa: E731
        else:
            parameters = runtime.CommonParams()
            parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = str(path), n_ctx, 1, -1
            parameters.cpuparams.n_threads = n_threads
            server = runtime.Server(parameters)
            ask = lambda turns: server.handle_chat_completions({"messages": turns, **how})  # noqa: E731
    except (RuntimeError, ValueError) as e:
        raise ModelError(f"llama.cpp can't load {path} ({str(e).splitlines()[0][:200]}); write it again") from None
    return lambda turns: ask(turns)["choices"][0]["message"]["content"]
