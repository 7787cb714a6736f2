"""Builds `data_samples/tiny-gemma3`: a SentencePiece tokenizer and a Gemma 3 of about 3 M parameters, pre-trained from scratch.

    python data_samples/build/pretrain_tiny_gemma3.py --steps 3000 --out data_samples/tiny-gemma3

It learns `questions.py` (general questions in Russian and English) in Gemma's chat form and nothing else. The curve and the
accuracy on held-out questions are written beside the weights as `pretraining.json`.
"""

import argparse
import json
import random
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import questions
import sentencepiece
import torch
import trl
from tokenizers import processors
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, GemmaTokenizer, GenerationConfig

# Gemma's ids: 0 <pad>, 1 <eos>, 2 <bos>, 3 <unk>, 4 <mask>, 105 <start_of_turn>, 106 <end_of_turn>, 107 newline.
SYMBOLS = ["<mask>", "[@BOS@]", *(f"<unused{i}>" for i in range(99)), "<start_of_turn>", "<end_of_turn>", "\n"]
CHARACTERS = "".join(map(chr, [*range(0x21, 0x7F), *range(0x410, 0x450)])) + "Ёё№₽«»—–…’“”°"
ROW, ROWS = 256, 16  # tokens in a packed row, rows in a step


def build_tokenizer(out: Path, rng: random.Random, vocab_size: int):
    corpus = out / "corpus.txt"
    with corpus.open("w", encoding="utf-8") as f:
        for _ in range(40_000):
            q = questions.draw(rng)
            f.write(f"{q.question}\n{q.answer}\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(out / "tokenizer"), vocab_size=vocab_size, model_type="bpe",
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", character_coverage=1.0, allow_whitespace_only_pieces=True,
        required_chars=CHARACTERS, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=SYMBOLS, num_threads=1, minloglevel=2,
    )  # fmt: skip
    corpus.unlink()
    (out / "tokenizer.vocab").unlink()
    tokenizer = GemmaTokenizer.from_pretrained(
        out, trust_remote_code=False, extra_special_tokens=["<start_of_turn>", "<end_of_turn>"]
    )
    bos = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = bos  # Gemma's tokenizer puts <bos> in front by itself
    tokenizer.model_max_length = 1024
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "gemma3.jinja").read_text()
    tokenizer.save_pretrained(out)  # leaves tokenizer.model in place: llama.cpp's converter wants it
    config = json.loads((out / "tokenizer_config.json").read_text())
    for machine_specific in ("vocab_file", "is_local", "local_files_only"):
        config.pop(machine_specific, None)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return AutoTokenizer.from_pretrained(out, trust_remote_code=False)


def build_model(vocab_size: int, hidden_size: int, num_hidden_layers: int) -> Gemma3ForCausalLM:
    config = Gemma3TextConfig(
        vocab_size=vocab_size, hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=num_hidden_layers,
        num_attention_heads=4, num_key_value_heads=1, head_dim=64, query_pre_attn_scalar=64, sliding_window=128,
        max_position_embeddings=1024, eos_token_id=[1, 106],
        layer_types=["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(num_hidden_layers)],
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=2, pad_token_id=0, eos_token_id=[1, 106], do_sample=True, temperature=1.0, top_k=64, top_p=0.95
    )
    return model


def encode(tokenizer, q: questions.Question) -> tuple[list[int], list[float]]:
    """Token ids and loss weights: the answer counts fully, the question a little (it is mostly chance)."""
    turn = [{"role": "user", "content": q.question}]
    prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(q.answer + "<end_of_turn>\n", add_special_tokens=False)["input_ids"]
    return prompt_ids + answer_ids, [0.1] * len(prompt_ids) + [1.0] * len(answer_ids)


def batches(tokenizer, rng: random.Random):
    ids, weights = [], []
    while True:
        while len(ids) < ROW * ROWS:
            more, more_weights = encode(tokenizer, questions.draw(rng))
            ids += more
            weights += more_weights
        yield torch.tensor(ids[: ROW * ROWS]).view(ROWS, ROW), torch.tensor(weights[: ROW * ROWS]).view(ROWS, ROW)
        ids, weights = ids[ROW * ROWS :], weights[ROW * ROWS :]


@torch.no_grad()
def accuracy(model, tokenizer, n: int, seed: int, by_kind: bool = False) -> dict[str, float]:
    """Share of held-out questions answered exactly, greedy."""
    model.eval()
    rng, right = random.Random(seed), {}
    asked = [questions.draw(rng, test=True) for _ in range(n)]
    tokenizer.padding_side = "left"
    for start in range(0, n, 50):
        part = asked[start : start + 50]
        chats = [[{"role": "user", "content": q.question}] for q in part]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        )
        out = model.generate(**inputs, max_new_tokens=48, do_sample=False, top_k=None, top_p=None, temperature=None)
        texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for q, text in zip(part, texts, strict=True):
            right.setdefault(f"{q.kind}_{q.language}" if by_kind else "all", []).append(text.strip() == q.answer)
    model.train()
    return {k: round(sum(v) / len(v), 3) for k, v in sorted(right.items())}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--learning-rate", type=float, default=2e-3)
    p.add_argument("--hidden-size", type=int, default=192)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--vocab-size", type=int, default=2048)
    p.add_argument("--test-questions", type=int, default=1000, help="held-out questions asked at the end")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    rng = random.Random(a.seed)
    part = a.out.with_name(a.out.name + ".part")  # written beside, renamed when whole
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer = build_tokenizer(part, rng, a.vocab_size)
    model = build_model(len(tokenizer), a.hidden_size, a.layers)
    parameters = sum(x.numel() for x in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=a.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 50) * max(0.02, 1 - s / a.steps))
    start, curve = time.time(), []
    for step, (ids, weights) in zip(range(1, a.steps + 1), batches(tokenizer, rng), strict=False):
        with torch.autocast("cpu", torch.bfloat16):  # twice as fast on a CPU with bf16 instructions
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == a.steps:
            point = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - start)}
            if step % 200 == 0 or step == a.steps:
                point["exact"] = accuracy(model, tokenizer, 100, seed=1)["all"]
            curve.append(point)
            print(point, flush=True)
    model.to(torch.bfloat16).save_pretrained(part)  # like Gemma's own checkpoints; half the bytes
    by_kind = accuracy(
        Gemma3ForCausalLM.from_pretrained(part, dtype=torch.float32, trust_remote_code=False),
        tokenizer,
        a.test_questions,
        seed=2,
        by_kind=True,
    )
    record = {
        "parameters": parameters, "steps": a.steps, "tokens": a.steps * ROW * ROWS, "seed": a.seed, "threads": torch.get_num_threads(),
        "learning_rate": a.learning_rate, "versions": {n: version(n) for n in ("torch", "transformers", "sentencepiece", "trl")},
        "seconds": round(time.time() - start), "curve": curve, "held_out_exact": by_kind,
    }  # fmt: skip
    (part / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(a.out, ignore_errors=True)
    part.rename(a.out)
    print(by_kind)


if __name__ == "__main__":
    main()
