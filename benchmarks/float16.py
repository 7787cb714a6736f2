"""Gemma 3 in float16: which recipe survives, and what it costs. On a GPU with CUDA's own mixed precision, else with the CPU's.

    python benchmarks/float16.py

The model is small and random, with post-norms so large that its residual stream passes 65,504, as that of the real ones does. The
reference is the same model in float32. Recipes: none; ours (`model/float16.py`); rescaled (transformers PR #37226: the stream
divided by 64, the norms' weights and epsilons made to match). "kept" is what autograd keeps for the backward pass.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from checkpoints import heat, save_random_gemma
from datasets import Dataset, disable_progress_bars
from peft import get_peft_model
from steps import emulate_fp16
from transformers import Gemma3ForCausalLM

from gemma_colab import describe_machine
from gemma_colab.core.chat import load_tokenizer
from gemma_colab.core.float16 import keep_residual_in_float32
from gemma_colab.core.loading import keep_cpu_weights_unpacked, quantization_config
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.model.libraries import quiet_libraries, stack_versions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT = "Какая столица Франции? Где мой заказ №12345, и когда его привезут? What is the opposite of hot?"


def rescaled(model, s: float = 64.0) -> None:
    embedding = model.get_input_embeddings()
    embedding.embed_scale.div_(s)
    for name, module in model.named_modules():
        if name.endswith(("post_attention_layernorm", "post_feedforward_layernorm")):
            module.weight.data = (1 + module.weight.data.float()) / s - 1
        elif name.endswith(("input_layernorm", "pre_feedforward_layernorm", "model.norm")):
            module.eps /= s**2


RECIPES = {"none": lambda model: None, "ours": keep_residual_in_float32, "rescaled": rescaled}


def load(folder: str, dtype, recipe: str, four_bit: bool):
    config = quantization_config(dtype) if four_bit else None
    model = Gemma3ForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=config, device_map={"": DEVICE}, trust_remote_code=False
    )
    keep_cpu_weights_unpacked(model)
    RECIPES[recipe](model)
    return model


def probe(folder: str, tokenizer, dtype, recipe: str, four_bit: bool, autocast: bool):
    """Logits, gradient of the adapters, bytes kept for the backward pass, and the first eight tokens generated."""
    torch.manual_seed(0)
    model = get_peft_model(load(folder, dtype, recipe, four_bit), lora_config(LoraSettings(r=4)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data = 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    ids, weights, kept = tokenizer(TEXT, return_tensors="pt")["input_ids"].to(DEVICE), set(), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that no other takes its address
        return tensor

    with torch.autocast(DEVICE, torch.float16, enabled=autocast), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = model(input_ids=ids, labels=ids)
    scale = 1024 if dtype == torch.float16 else 1
    (scale * out.loss).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).cpu() / scale
    model.eval()
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16, enabled=autocast):
        answer = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    return out.logits.detach().float().cpu().flatten(), gradient, sum(size for size, _ in kept.values()), answer.cpu()


def train(folder: str, tokenizer, recipe: str, dtype) -> list[float]:
    """Losses of 24 steps through SFTTrainer, in 4 bit; float16 with a GradScaler."""
    ids = [tokenizer(f"{TEXT} {n}")["input_ids"] for n in range(64)]
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])
    settings = TrainSettings(
        learning_rate=2e-3, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_length=128, warmup_steps=0
    )
    with tempfile.TemporaryDirectory() as out:
        args = sft_config(settings, out, len(ids), dtype if DEVICE == "cuda" else torch.float32)
        args.eval_strategy, args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", "no", False, True
        args.max_steps, args.logging_steps = 24, 8
        trainer = build_trainer(load(folder, dtype, recipe, True), tokenizer, data, None, args, lora_config(LoraSettings(r=8)))
        if DEVICE == "cpu" and dtype == torch.float16:
            emulate_fp16(trainer)
        trainer.train()
    return [round(line["loss"], 3) for line in trainer.state.log_history if "loss" in line]


def main() -> int:
    quiet_libraries()
    disable_progress_bars()
    tokenizer = load_tokenizer("tiny-gemma3")
    machine = describe_machine()
    print(", ".join(f"{n} {v}" for n, v in stack_versions().items()), "|", machine.gpu or f"CPU, {machine.cores} cores")
    cosine = torch.nn.functional.cosine_similarity
    with tempfile.TemporaryDirectory() as folder:
        heat(save_random_gemma(Path(folder)))
        print(
            "\n| weights | recipe | autocast | finite | largest error of a logit | gradient cosine | kept KiB | same tokens |\n"
            + "| --- " * 8
            + "|"
        )
        for four_bit in (True, False):
            logits, gradient, _, answer = probe(folder, tokenizer, torch.float32, "none", four_bit, False)
            for recipe in RECIPES:
                for autocast in (True, False):
                    got = probe(folder, tokenizer, torch.float16, recipe, four_bit, autocast)
                    finite = bool(torch.isfinite(got[0]).all() and torch.isfinite(got[1]).all())
                    print(
                        f"| {'4' if four_bit else '16'} bit | {recipe} | {'on' if autocast else 'off'} | {'yes' if finite else 'no'} "
                        f"| {(got[0] - logits).abs().max():.4f} of {logits.abs().max():.2f} | {cosine(got[1], gradient, dim=0):.5f} "
                        f"| {got[2] / 1024:,.0f} | {'yes' if torch.equal(got[3], answer) else 'no'} |",
                        flush=True,
                    )
        print("\n| training in 4 bit | mean loss of steps 1-8, 9-16, 17-24 |\n| --- | --- |")
        for name, recipe, dtype in (
            ("float32", "none", torch.float32), ("float16, none", "none", torch.float16),
            ("float16, ours", "ours", torch.float16), ("float16, rescaled", "rescaled", torch.float16),
        ):  # fmt: skip
            print(f"| {name} | {train(folder, tokenizer, recipe, dtype)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
