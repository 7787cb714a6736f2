"""4-bit loading, float16 safety, LoRA, memory; and the tiny Gemma 3 that ships with the project."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from checkpoints import save_random_multimodal
from conftest import ROOT
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from steps import load_4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, LlamaConfig

from gemma_colab.core import loading
from gemma_colab.core.catalog import CATALOG, dimensions_of
from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.errors import ModelError
from gemma_colab.core.float16 import keep_residual_in_float32
from gemma_colab.core.loading import load_model, load_tokenizer, quantization_config
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import samples
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.model.memory import NF4_BYTES, lora_parameters

TINY = samples() / "tiny-gemma3"


def ids_of(tokenizer, text="Какая столица Франции?"):
    return torch.tensor([tokenizer(text)["input_ids"]])


# ---------------------------------------------------------------------------------------------- 4 bit
def test_every_linear_layer_is_4_bit_and_nothing_else(random_gemma):
    model = load_4bit(random_gemma, torch.float32)
    assert type(model) is Gemma3ForCausalLM
    for name, module in model.named_modules():
        assert isinstance(module, Linear4bit) == name.endswith("_proj"), name
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_4_bit_is_close_to_the_original_and_much_smaller():
    original = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = load_4bit("tiny-gemma3", torch.float32)
    shape = dimensions_of("tiny-gemma3")
    for name, layer in original.named_modules():
        if name.endswith("_proj"):
            quantised = model.get_submodule(name)
            got = quantised(torch.eye(layer.in_features)).T
            assert torch.nn.functional.cosine_similarity(got.flatten(), layer.weight.flatten(), dim=0) > 0.98, name
    predicted = NF4_BYTES * shape.linear_parameters + 4 * shape.embedding_parameters
    assert model.get_memory_footprint() == pytest.approx(predicted, rel=0.03)


def test_quantisation_is_nf4_with_double_quantisation():
    config = quantization_config(torch.bfloat16)
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_the_pieces_of_fsdp_have_the_type_it_computes_in(monkeypatch):
    for told, storage in ((None, torch.uint8), ("false", torch.uint8), ("true", torch.bfloat16), ("TRUE", torch.bfloat16)):
        monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
        if told:
            monkeypatch.setenv("ACCELERATE_USE_FSDP", told)
        assert quantization_config(torch.bfloat16).bnb_4bit_quant_storage == storage
    with pytest.raises(ModelError) as caught:
        load_model("tiny-gemma3", torch.float16)
    cause = "must be bfloat16 under FSDP, which would compute the residual stream in float16"
    assert str(caught.value) == f"dtype=torch.float16 {cause}; take GPUs from Ampere on, or DDP (docs/recipes.md)"


class Asked(Exception):
    pass


@pytest.mark.parametrize(("gpu", "rank", "device"), [(False, "1", "cpu"), (True, None, 0), (True, "1", 1)])
def test_what_transformers_is_asked_for(monkeypatch, multimodal, gpu, rank, device):
    asked = []

    def from_hub(cls, name, source, **options):
        asked.append((cls, name, options))
        if cls is Gemma3ForCausalLM:
            raise Asked
        return plain(cls, name, source, **options)

    plain = loading.from_hub
    monkeypatch.setattr(loading, "from_hub", from_hub)
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    same = {"attn_implementation": "sdpa", "use_safetensors": True, "output_loading_info": True, "device_map": {"": device}}
    for name, renamed in (("tiny-gemma3", {}), (multimodal[0], {"key_mapping": {r"^language_model.model": "model"}})):
        with pytest.raises(Asked):
            load_model(name, torch.bfloat16, "4 bit")
        cls, asked_for, options = asked[-1]
        assert (cls, asked_for, options.pop("config").model_type) == (Gemma3ForCausalLM, name, "gemma3_text")
        assert options == {**same, "dtype": torch.bfloat16, "quantization_config": "4 bit", **renamed}


def gradients_after_an_evaluation(folder, tokenizer):
    model = load_4bit(folder, torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(model, lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():  # B starts at zero, and then A gets no gradient: give it something
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = ids_of(tokenizer)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None])


def test_evaluating_first_does_not_change_the_gradients(random_gemma, tokenizer, monkeypatch):
    # bitsandbytes 0.50 repacks 4-bit weights in eval mode on CPUs with bf16 instructions, and then has no backward pass
    ours = gradients_after_an_evaluation(random_gemma, tokenizer)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # as on a CPU with them
    layers = [m for m in load_4bit(random_gemma, torch.float32).modules() if isinstance(m, Linear4bit)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)  # as on one without
    assert torch.equal(ours, gradients_after_an_evaluation(random_gemma, tokenizer))


# ------------------------------------------------------------------------------------ 16 bit, tokens, sdpa
def test_16_bit_keeps_every_weight_as_it_was():
    saved = load_file(TINY / "model.safetensors")
    model = load_model("tiny-gemma3", torch.float32)
    assert not any(isinstance(m, Linear4bit) for m in model.modules())
    assert all(torch.equal(model.state_dict()[name], weight.float()) for name, weight in saved.items())
    assert model.config._attn_implementation == "sdpa"


def test_a_model_stops_at_the_end_of_a_turn_whatever_its_config_says(random_gemma, tmp_path):
    folder = shutil.copytree(random_gemma, tmp_path / "pt")  # as a checkpoint without instruction tuning: no template, one stop
    (folder / "chat_template.jinja").unlink()
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 1, "num_beams": 20000, "suppress_tokens": [5], "max_time": 1}'
    )
    model, tokenizer = load_model(str(folder), torch.float32), load_tokenizer(str(folder))
    assert model.generation_config.eos_token_id == [1, 106]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    assert {"num_beams", "suppress_tokens", "max_time"}.isdisjoint(model.generation_config.to_diff_dict())
    assert tokenizer.chat_template == load_tokenizer("tiny-gemma3").chat_template


# ------------------------------------------------------------------------------- multimodal checkpoints
@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A tiny multimodal Gemma 3 with a SigLIP tower, its keys named as on the Hub: (folder, the model that was saved)."""
    folder = tmp_path_factory.mktemp("multimodal")
    whole = save_random_multimodal(folder)
    weights = load_file(folder / "model.safetensors")
    on_the_hub = {
        re.sub(r"^vision_tower\.(?!vision_model)", "vision_tower.vision_model.", name): w for name, w in weights.items()
    }
    assert any(name.startswith("language_model.model.layers") for name in on_the_hub)
    save_file(on_the_hub, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder), whole


@pytest.mark.parametrize("four_bit", [True, False])
def test_a_multimodal_checkpoint_keeps_every_weight_of_its_text_part(multimodal, tokenizer, four_bit):
    folder, whole = multimodal
    config = quantization_config(torch.float32) if four_bit else None
    model = load_model(folder, torch.float32, config)
    assert type(model) is Gemma3ForCausalLM
    assert not model.training
    assert (model._weight_conversions, model._checkpoint_conversion_mapping) == (None, {r"^model\.language_model\.": "model."})
    ids = ids_of(tokenizer)
    with torch.no_grad():
        expected, got = whole(input_ids=ids).logits, model(input_ids=ids).logits
    if four_bit:
        assert torch.nn.functional.cosine_similarity(expected.flatten(), got.flatten(), dim=0) > 0.95
    else:
        torch.testing.assert_close(got, expected)  # not one weight started at random
    for name, module in model.named_modules():
        assert isinstance(module, Linear4bit) == (four_bit and name.endswith("_proj")), name


def test_a_checkpoint_that_lacks_weights_is_refused(multimodal, tmp_path):
    folder = shutil.copytree(multimodal[0], tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), torch.float32)
    lacks = "1 of its weights, such as model.layers.1.mlp.up_proj.weight, which would start at random"
    assert str(caught.value) == f"{folder} lacks {lacks}; take a whole checkpoint"


def test_weights_that_could_run_code_are_not_loaded(random_gemma, tmp_path):
    folder = shutil.copytree(random_gemma, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights as safetensors"):
        load_model(str(folder), torch.float32)


def test_a_text_part_saved_and_loaded_again_is_the_same(multimodal, tmp_path, tokenizer):
    model = load_model(multimodal[0], torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), torch.float32)
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in model.named_parameters())


# --------------------------------------------------------------------------------------------- refusals
def test_other_architectures_are_named(tmp_path):
    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'llama' model; this project loads Gemma 3"):
        load_4bit(str(tmp_path), torch.float32)


def test_a_tokenizer_without_gemmas_chat_tokens_is_refused(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE({"<unk>": 0, "h": 1}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    words.normalizer, words.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])  # all as Gemma's
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(tmp_path))
    remedy = "take a checkpoint with Gemma 3's own tokenizer"
    assert str(caught.value) == f"the tokenizer of {tmp_path} lacks Gemma's chat tokens; {remedy}"


# ---------------------------------------------------------------------------------------------- float16
def test_which_layers_pass_the_stream_on_in_which_type(random_gemma):
    model = Gemma3ForCausalLM.from_pretrained(random_gemma, dtype=torch.float16)
    keep_residual_in_float32(model)
    half, single = torch.ones(1, dtype=torch.float16), torch.ones(1)
    seen = {}
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            seen[name.split(".")[-1]] = "in"
            given, *others = hook(module, (half, "a", "b"))
            assert (given.dtype, others) == (torch.float32, ["a", "b"])
        for hook in module._forward_hooks.values():
            kind = name.split(".")[-1]
            seen[kind] = "out"
            if kind == "rotary_emb":
                assert [x.dtype for x in hook(module, (), (single, single))] == [torch.float16] * 2
            else:
                given, kept = (half, torch.float32) if kind == "embed_tokens" else (single, torch.float16)
                assert hook(module, (), given).dtype == kept
    outs = dict.fromkeys(("embed_tokens", "rotary_emb", "input_layernorm", "pre_feedforward_layernorm", "norm"), "out")
    assert seen == outs | dict.fromkeys(("post_attention_layernorm", "post_feedforward_layernorm"), "in")


def hot_logits_and_gradients(folder, dtype, tokenizer, *, safe, four_bit=True, autocast=True):
    config = quantization_config(dtype) if four_bit else None
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)
    loading.keep_cpu_weights_unpacked(model)
    if safe:
        keep_residual_in_float32(model)
    torch.manual_seed(0)
    model = get_peft_model(model, lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    ids = ids_of(tokenizer)
    # what fp16=True does on a T4
    with torch.autocast("cpu", torch.float16, enabled=autocast and dtype == torch.float16):
        out = model(input_ids=ids, labels=ids)
    scale = 1024 if dtype == torch.float16 else 1  # as GradScaler does: small gradients would become zero in float16
    (out.loss * scale).backward()
    gradient = torch.cat([p.grad.flatten() / scale for p in model.parameters() if p.requires_grad])
    return out.logits.detach().float(), gradient


@pytest.mark.parametrize("four_bit", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_float16_overflows_without_the_recipe_and_is_right_with_it(hot_gemma, tokenizer, four_bit, autocast):
    how = {"four_bit": four_bit, "autocast": autocast}
    reference, gradient = hot_logits_and_gradients(hot_gemma, torch.float32, tokenizer, safe=False, **how)
    naive, _ = hot_logits_and_gradients(hot_gemma, torch.float16, tokenizer, safe=False, **how)
    assert not torch.isfinite(naive).all()
    ours, our_gradient = hot_logits_and_gradients(hot_gemma, torch.float16, tokenizer, safe=True, **how)
    assert torch.isfinite(ours).all()
    assert torch.nn.functional.cosine_similarity(ours.flatten(), reference.flatten(), dim=0) > 0.999
    assert torch.nn.functional.cosine_similarity(our_gradient, gradient, dim=0) > 0.999


def test_the_hot_fixture_is_hot_and_blocks_compute_in_float16(hot_gemma, tokenizer):
    seen = {}
    model = load_4bit(hot_gemma, torch.float16)
    for name, module in model.named_modules():
        if name.endswith(("layers.0", "layers.1", "q_proj", "o_proj", "down_proj")):
            module.register_forward_hook(lambda m, a, o, name=name: seen.update({name: o[0] if isinstance(o, tuple) else o}))
    with torch.no_grad():
        model(input_ids=ids_of(tokenizer))
    stream = seen.pop("model.layers.0"), seen.pop("model.layers.1")
    assert max(x.abs().max() for x in stream) > 65_504
    assert {x.dtype for x in stream} == {torch.float32}
    assert {x.dtype for x in seen.values()} == {torch.float16}


@pytest.mark.parametrize("four_bit", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_float16_generates_with_and_without_autocast(hot_gemma, tokenizer, autocast, four_bit):
    prompts = [[{"role": "user", "content": "2 + 2?"}], [{"role": "user", "content": "Где мой заказ №12345?"}]]
    config = quantization_config(torch.float16) if four_bit else None
    model = load_model(hot_gemma, torch.float16, config)
    with torch.autocast("cpu", torch.float16, enabled=autocast), torch.no_grad():
        assert torch.isfinite(model(input_ids=ids_of(tokenizer)).logits).all()
        answers = generate_answers(model, tokenizer, prompts, max_new_tokens=8)
    assert len(answers) == 2
    assert not any("<pad>" in answer for answer in answers)  # what a model whose logits are NaN says


def test_tiny_gemma_answers_in_float16_as_in_float32(tokenizer):
    prompts = [[{"role": "user", "content": q}] for q in ("Какая столица Франции?", "What is the opposite of hot?", "3 + 4?")]
    half, single = (generate_answers(load_model("tiny-gemma3", d), tokenizer, prompts) for d in (torch.float16, torch.float32))
    assert half == single


def test_the_recipe_leaves_no_trace_in_what_is_saved(hot_gemma, tokenizer, tmp_path):
    model = load_model(hot_gemma, torch.float16)
    original = Gemma3ForCausalLM.from_pretrained(hot_gemma, dtype=torch.float16)
    model.save_pretrained(tmp_path / "base")
    saved, kept = load_file(tmp_path / "base" / "model.safetensors"), load_file(Path(hot_gemma) / "model.safetensors")
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name].half()) for name in kept)
    torch.manual_seed(0)
    tuned = get_peft_model(model, lora_config(LoraSettings(r=4)))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    tuned.save_pretrained(tmp_path / "adapter")  # is valid on the unmodified base, in float32
    fresh = PeftModel.from_pretrained(original.float(), tmp_path / "adapter")
    ids = ids_of(tokenizer)
    with torch.no_grad():
        expected, got = tuned(input_ids=ids).logits.float(), fresh(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(expected.flatten(), got.flatten(), dim=0) > 0.999


# -------------------------------------------------------------------------------------------------- LoRA
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", "attention", r".*\.(q_proj|v_proj)", r".*layers\.1\..*\.down_proj"])
def test_parameter_count_by_formula_is_pefts(random_gemma, targets, use_dora):
    settings = LoraSettings(r=6, target_modules=targets, use_dora=use_dora)
    model = get_peft_model(load_4bit(random_gemma, torch.float32), lora_config(settings))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == lora_parameters(dimensions_of(random_gemma), settings) > 0


@pytest.mark.parametrize("settings", [LoraSettings(r=4, lora_alpha=8), LoraSettings(r=4, lora_alpha=8, use_rslora=True)])
def test_scale_is_pefts(random_gemma, settings):
    model = get_peft_model(load_4bit(random_gemma, torch.float32), lora_config(settings))
    assert model.base_model.model.model.layers[0].mlp.up_proj.scaling["default"] == settings.scale


def test_every_known_size_has_the_published_number_of_adapter_weights():
    known = {"270m": 3.8, "1b": 13.0, "4b": 29.8, "12b": 65.5, "27b": 113.5}  # millions at r=16; facts, memory_formula.py
    for size, millions in known.items():
        assert lora_parameters(CATALOG[f"google/gemma-3-{size}-it"], LoraSettings(r=16)) / 1e6 == pytest.approx(
            millions, abs=0.05
        )


# ------------------------------------------------------------------------------------ the tiny Gemma 3
sys.path.insert(0, str(ROOT / "data_samples" / "build"))


def test_tiny_gemma_is_small_and_a_true_gemma3():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert type(model) is Gemma3ForCausalLM
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert sum(p.numel() for p in model.parameters()) <= 5_000_000
    assert sum(f.stat().st_size for f in TINY.iterdir()) <= 12_000_000
    assert model.generation_config.eos_token_id == [1, 106]


def test_tiny_tokenizer_is_like_gemmas():
    import sentencepiece
    import trl

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TINY / "tokenizer.model"))
    for piece, number in {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105, "<end_of_turn>": 106}.items():
        assert tokenizer.convert_tokens_to_ids(piece) == pieces.piece_to_id(piece) == number
    for text in ("Заказ №12345, где он сейчас?", "Hello, world! 3 000 ₽ — «да»", "  два  пробела\n\nи 😀", "Ё\tъ", " x"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text)  # tokenizer.json and tokenizer.model say the same
        assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer("2048", add_special_tokens=False)["input_ids"]] == ["2", "0", "4", "8"]
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.chat_template.strip() == (Path(trl.__file__).parent / "chat_templates" / "gemma3.jinja").read_text().strip()
    for name in ("tokenizer_config.json", "config.json"):
        assert "/" not in (TINY / name).read_text().replace("</", "")  # no path of the machine it was made on


def test_tiny_gemma_answers_unseen_questions():
    import questions

    rng = random.Random(11)
    asked = [questions.draw(rng, test=True) for _ in range(200)]
    assert all(questions.held_out(q.question) for q in asked)
    answers = generate_answers(
        AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        AutoTokenizer.from_pretrained(TINY),
        [[{"role": "user", "content": q.question}] for q in asked],
        max_new_tokens=48,
        batch_size=50,
    )
    assert sum(a == q.answer for a, q in zip(answers, asked, strict=True)) / len(asked) >= 0.9


def test_pretraining_never_saw_the_shop():
    import questions

    rng = random.Random(0)
    text = " ".join(f"{q.question} {q.answer}" for q in (questions.draw(rng) for _ in range(3000))).lower()
    for word in ("заказ", "достав", "магазин", "оплат", "возврат", "гарант", "посылк", "order", "deliver", "refund"):
        assert word not in text


def test_the_script_that_built_it_still_works(tmp_path, tokenizer):
    script = ROOT / "data_samples" / "build" / "pretrain_tiny_gemma3.py"
    out = tmp_path / "tiny"
    command = [
        sys.executable,
        script,
        "--out",
        out,
        "--steps",
        "2",
        "--hidden-size",
        "64",
        "--layers",
        "3",
        "--test-questions",
        "10",
    ]
    subprocess.run(command, check=True, capture_output=True)
    model = load_4bit(str(out), torch.float32)
    assert model.config.hidden_size == 64
    record = json.loads((out / "pretraining.json").read_text())
    assert record["steps"] == 2
    row = to_messages({"instruction": "Привет", "input": "", "output": "Да"})
    assert tokenize_row(row, load_tokenizer(str(out)))["input_ids"][0] == 2


BESIDE_TORCHAO = """
import sys
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from gemma_colab.export.merged import merge
from gemma_colab.core.loading import load_model
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.settings import LoraSettings

what, base, adapter, out = sys.argv[1:]
try:
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora_config(LoraSettings()))
except ImportError as e:
    print("plain peft:", e)
if what == "adapt":
    get_peft_model(load_model(base, torch.float32), lora_config(LoraSettings())).print_trainable_parameters()
else:
    merge(base, adapter, out)
"""


@pytest.mark.parametrize(("what", "ends"), [("adapt", "trainable params"), ("merge", "GiB")])
def test_a_torchao_too_old_for_peft_is_passed_over(random_gemma, tmp_path, what, ends):
    """Colab ships 0.10.0, and peft then refuses every linear layer that is not in 4 bit."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text('__version__ = "0.10.0"\n')
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    (tmp_path / "torchao-0.10.0.dist-info" / "top_level.txt").write_text("torchao\n")  # how transformers finds its version
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    get_peft_model(load_model(random_gemma, torch.float32), lora_config(LoraSettings())).save_pretrained(adapter)
    out.mkdir()
    command = [sys.executable, "-c", BESIDE_TORCHAO, what, random_gemma, str(adapter), str(out)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "plain peft: Found an incompatible version of torchao" in done.stdout  # the stand-in bites
    assert ends in done.stdout.splitlines()[-1]
