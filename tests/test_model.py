"""4-bit loading, float16 safety, LoRA, memory; and the tiny Gemma 3 that ships with the project."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import ROOT
from peft import get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig

from gemma_colab.catalog import CATALOG, shape_of
from gemma_colab.chat import to_chat, tokenize_chat
from gemma_colab.errors import ModelError
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.model import loading
from gemma_colab.model.float16 import keep_residual_in_float32
from gemma_colab.model.loading import load_4bit, load_tokenizer, quantization_config
from gemma_colab.model.lora import lora_config, lora_parameters
from gemma_colab.model.memory import NF4_BYTES, memory_plan
from gemma_colab.settings import LoraSettings, TrainSettings
from gemma_colab.workspace import samples

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
    shape = shape_of("tiny-gemma3")
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


# ------------------------------------------------------------------------------- multimodal checkpoints
def test_text_part_of_a_multimodal_checkpoint_keeps_its_weights(random_gemma, tokenizer, tmp_path):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    text = Gemma3TextConfig.from_pretrained(random_gemma)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_index=2047
    )
    torch.manual_seed(2)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert any(key.startswith("language_model.model.") for key in saved.keys())  # noqa: SIM118  (names as on the Hub)
    model = load_4bit(str(tmp_path), torch.float32)
    assert type(model) is Gemma3ForCausalLM
    embedding = whole.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    ids = ids_of(tokenizer)
    with torch.no_grad():
        expected, got = whole(input_ids=ids).logits, model(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(expected.flatten(), got.flatten(), dim=0) > 0.95  # 4 bit, same weights


# --------------------------------------------------------------------------------------------- refusals
def test_other_architectures_are_named(tmp_path):
    LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'llama' model; this project loads Gemma 3"):
        load_4bit(str(tmp_path), torch.float32)


def test_a_download_without_network_is_explained():
    with pytest.raises(
        ModelError, match="no connection to the Hugging Face Hub; check the network, or use 'tiny-gemma3'"
    ) as caught:
        load_tokenizer("google/gemma-3-1b-it")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("GatedRepoError", 403, "accept Google's licence"),
        ("RepositoryNotFoundError", 404, "is not on the"),
        ("HfHubHTTPError", 401, "refused your token"),
    ],
)
def test_refusals_of_the_hub_are_explained(error, status, words, monkeypatch):
    import httpx
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/x"))
        try:
            raise getattr(errors, error)("server says no", response=response)
        except errors.HfHubHTTPError as e:
            raise OSError("a long story") from e

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=words):
        load_tokenizer("google/gemma-3-1b-it")


def test_a_tokenizer_without_chat_template_is_refused(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path)
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    with pytest.raises(ModelError, match="has no chat template"):
        load_tokenizer(str(tmp_path))


# ---------------------------------------------------------------------------------------------- float16
def hot_logits_and_gradients(folder, dtype, tokenizer, safe):
    model = Gemma3ForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=quantization_config(dtype))
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
    with torch.autocast("cpu", torch.float16, enabled=dtype == torch.float16):  # what fp16=True does on a T4
        out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    return out.logits.detach().float(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_float16_overflows_without_the_recipe_and_is_right_with_it(hot_gemma, tokenizer):
    reference, gradient = hot_logits_and_gradients(hot_gemma, torch.float32, tokenizer, safe=False)
    naive, _ = hot_logits_and_gradients(hot_gemma, torch.float16, tokenizer, safe=False)
    assert not torch.isfinite(naive).all()
    ours, our_gradient = hot_logits_and_gradients(hot_gemma, torch.float16, tokenizer, safe=True)
    assert torch.isfinite(ours).all()
    assert torch.nn.functional.cosine_similarity(ours.flatten(), reference.flatten(), dim=0) > 0.99
    assert torch.nn.functional.cosine_similarity(our_gradient, gradient, dim=0) > 0.99


@pytest.mark.parametrize("autocast", [False, True])
def test_float16_generates_with_and_without_autocast(hot_gemma, tokenizer, autocast):
    model = load_4bit(hot_gemma, torch.float16)
    with torch.autocast("cpu", torch.float16, enabled=autocast), torch.no_grad():
        assert torch.isfinite(model(input_ids=ids_of(tokenizer)).logits).all()
        assert len(generate_answers(model, tokenizer, [[{"role": "user", "content": "2 + 2?"}]], max_new_tokens=4)) == 1


# ------------------------------------------------------------------------------------------ LoRA, memory
@pytest.mark.parametrize("targets", ["all-linear", "attention", r".*\.(q_proj|v_proj)", r".*layers\.1\..*\.down_proj"])
def test_parameter_count_by_formula_is_pefts(random_gemma, targets):
    settings = LoraSettings(r=6, target_modules=targets)
    model = get_peft_model(load_4bit(random_gemma, torch.float32), lora_config(settings))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == lora_parameters(shape_of(random_gemma), settings) > 0


def test_memory_plan_agrees_with_the_published_shapes_and_grows_with_the_batch():
    small = memory_plan(
        CATALOG["google/gemma-3-1b-it"], LoraSettings(), TrainSettings(per_device_train_batch_size=1), tokens=1024
    )
    large = memory_plan(
        CATALOG["google/gemma-3-1b-it"], LoraSettings(), TrainSettings(per_device_train_batch_size=4), tokens=1024
    )
    assert small["4-bit weights"] == pytest.approx(0.34, abs=0.01)
    assert small["embeddings"] == pytest.approx(0.56, abs=0.01)
    assert large.sum() > small.sum()
    assert memory_plan(CATALOG["google/gemma-3-27b-it"], LoraSettings(), TrainSettings(), tokens=1024).sum() > 14.74


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
    row = to_chat({"instruction": "Привет", "input": "", "output": "Да"})
    assert tokenize_chat(row, load_tokenizer(str(out)))["input_ids"][0] == 2
