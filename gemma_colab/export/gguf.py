"""A GGUF file of a merged model, made by llama.cpp's own converter, and run by llama.cpp to see whether it answers the same."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.errors import ModelError, SettingsError, WorkspaceError
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.core.workspace import whole
from gemma_colab.export.checkpoint import check_merged, with_added_tokens
from gemma_colab.export.converter import ready_converter, run

# Bytes of a weight. q8_0: 32 weights of a byte share a scale in float16. Norms stay in float32, and are few.
OUTTYPES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}
RUNTIME = "xllamacpp"  # llama.cpp as a Python package, compiled already

# llama.cpp takes it that every sixth layer of a Gemma 3 sees the whole text, and its converter doesn't say where a model differs, as
# the tiny one does. So here the converter runs with a writer that adds it.
RUN = """
import json, pathlib, runpy, sys
script, sliding = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [str(pathlib.Path(script).parent), str(pathlib.Path(script).parent / "gguf-py")]
if sliding:
    import gguf
    add = gguf.GGUFWriter.add_sliding_window
    gguf.GGUFWriter.add_sliding_window = lambda self, n: [add(self, n), self.add_sliding_window_pattern(sliding)]
sys.argv[:3] = [script]
runpy.run_path(script, run_name="__main__")
"""


def write_gguf(merged: str | Path, out: str | Path, *, outtype: str = "f16") -> Path:
    """Write a merged model as one .gguf file for llama.cpp, LM Studio, Ollama and others. Return `out`; an older one is replaced.

    outtype: "f32"; "bf16", the weights as they were merged; "f16", faster on CPUs (the file only: llama.cpp computes the residual
    stream in float32); "q8_0", half of that. Of a multimodal model, the text part is written. The converter is that of your own
    llama.cpp (see `find_converter`), or downloaded. Raises `ModelError`, `SettingsError` or `WorkspaceError`; then nothing is left.
    """
    merged, out = Path(merged).expanduser().absolute(), Path(out).expanduser().absolute()
    if outtype not in OUTTYPES:
        raise SettingsError(f"outtype={outtype!r} must be one of {', '.join(OUTTYPES)}; try 'q8_0' for the smallest")
    if out.suffix != ".gguf" or out.is_dir():
        raise SettingsError(f"out={str(out)!r} must be a file that ends in .gguf, such as {out.with_suffix('.gguf')}")
    config, tensors = check_merged(merged)
    need = (OUTTYPES[outtype] * sum(tensor.like.numel() for tensor in tensors.values()) + 16 * 2**20) / GIB  # with the tokenizer
    size, free = f"{out.name} takes {readable(need)}", free_gib(out)
    if free < need:
        raise WorkspaceError(f"{size} and {readable(free)} is free in {out.parent}; make room there")
    script = ready_converter()
    print(f"{size}; llama.cpp's converter is writing it")
    try:
        with whole(out) as part, tempfile.TemporaryDirectory() as links:
            part.touch()  # where nothing can be written, that shows at once
            for path in merged.iterdir():
                (Path(links) / path.name).symlink_to(path.resolve())
            settings = Path(links) / "tokenizer_config.json"
            settings.unlink()
            settings.write_text(with_added_tokens(merged), encoding="utf-8")
            command = [sys.executable, "-c", RUN, str(script), json.dumps(_sliding(config)), links]
            command += ["--outfile", str(part), "--outtype", outtype, "--model-name", out.stem]
            code, last = run(command, os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
            if code or not part.stat().st_size:
                remedy = "make room on a full disk; if it is your own llama.cpp, take a newer one, or unset LLAMA_CPP"
                raise ModelError(f"llama.cpp's converter can't convert {merged} ({last}); {remedy}")
    except OSError as e:
        raise WorkspaceError(f"{out} can't be written ({e.strerror}); name a folder you may write to") from None
    return out


def _sliding(config) -> list[bool] | None:
    """Return which layers look back over the window only; None where those are five of every six, as in all that Google published."""
    kinds = config.get_text_config().layer_types
    usual = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(len(kinds))]
    return None if kinds == usual else [kind == "sliding_attention" for kind in kinds]


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
    programs use them, since llama.cpp's threads wait for one another. One line a prompt: prompt (its last turn), expected, answer,
    equal. Raises `WorkspaceError` if xllamacpp, a llama.cpp that Python can call, isn't installed.
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
