"""How fast is the real 270M on this CPU? Training steps and answers in batches, as upstream does it and as this project does,
one after the other in turns.

    python benchmarks/cpu.py [--rounds 3]

Training: 8 rows of the tickets a step, LoRA r=16 on all linear layers. Answers: 32 messages, 30 tokens each.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer import utils as trl_utils

from gemma_colab import describe_machine, pick_dtype
from gemma_colab.core import trainer as our_trainer
from gemma_colab.core.catalog import PACKAGED, dimensions_of
from gemma_colab.core.loading import load_model, load_tokenizer
from gemma_colab.core.rows import to_messages
from gemma_colab.core.trainer import lora_config
from gemma_colab.core.workspace import read_sample
from gemma_colab.evaluation.generation import generate
from gemma_colab.model.choice import starting_point
from gemma_colab.model.libraries import quiet_libraries, stack_versions
from gemma_colab.training.guard import _USE_TRITON

STEPS, TOKENS = 3, 30


class Clock(TrainerCallback):
    """Seconds of each step but the first."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.start = time.monotonic()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.monotonic() - self.start)


def train(model, tokenizer, dtype, rows, answers_only: bool) -> tuple[float, float]:
    """(seconds a step, last loss)."""
    lora, settings = starting_point(PACKAGED)
    with tempfile.TemporaryDirectory() as out:
        args = our_trainer.sft_config(settings, out, len(rows), dtype)
        args.max_steps, args.eval_strategy, args.save_strategy, args.load_best_model_at_end = STEPS, "no", "no", False
        args.disable_tqdm, clock = True, Clock()
        trainer = our_trainer.build_trainer(model, tokenizer, Dataset.from_list(rows), None, args, lora_config(lora), [clock])
        if not answers_only:
            trl_utils._use_triton, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = _USE_TRITON, 32_768
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    our_trainer.unload_adapters(model)
    return statistics.mean(clock.seconds[1:]), losses[-1]


def answer(model, tokenizer, prompts, whole: bool) -> float:
    """Seconds for all answers. whole: as `generate` does it; else without its hook on the head."""
    head = type(model.get_output_embeddings())
    register, start = head.register_forward_pre_hook, time.monotonic()
    if not whole:
        head.register_forward_pre_hook = lambda self, hook: register(self, lambda module, args: None)
    try:
        generate(model, tokenizer, prompts, max_new_tokens=TOKENS, description=None)
    finally:
        head.register_forward_pre_hook = register
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    quiet_libraries()
    machine = describe_machine()
    dtype, why = pick_dtype(machine, dimensions_of(PACKAGED))
    print(f"{dtype}: {why}; {machine.cores} cores; {json.dumps(stack_versions())}")
    rows = [to_messages(row) for row in read_sample("tickets_ru")[: 8 * STEPS]]
    prompts = [to_messages(row)["messages"][:-1] for row in read_sample("tickets_ru")[:32]]
    tokenizer = load_tokenizer(PACKAGED)
    models = {kind: load_model(PACKAGED, kind) for kind in dict.fromkeys((torch.float32, dtype))}
    ways = {
        "float32, every position scored (before)": lambda: train(models[torch.float32], tokenizer, torch.float32, rows, False),
        "float32, answers only": lambda: train(models[torch.float32], tokenizer, torch.float32, rows, True),
        f"{dtype}, every position scored": lambda: train(models[dtype], tokenizer, dtype, rows, False),
        f"{dtype}, answers only (now)": lambda: train(models[dtype], tokenizer, dtype, rows, True),
        f"answers in {dtype}, the head copied (before)": lambda: (answer(models[dtype], tokenizer, prompts, False), None),
        f"answers in {dtype}, whole tensors (now)": lambda: (answer(models[dtype], tokenizer, prompts, True), None),
    }
    seconds, losses = {name: [] for name in ways}, {}
    for n in range(rounds):
        for name, way in ways.items():
            took, losses[name] = way()
            seconds[name].append(took)
            print(f"round {n + 1} of {rounds}: {name}: {took:.2f} s", flush=True)
    print("\n| what | seconds, median (least to most) | loss after the last step |\n| --- | --- | --- |")
    for name, took in seconds.items():
        loss = "" if losses[name] is None else f"{losses[name]:.4f}"
        print(f"| {name} | {statistics.median(took):.2f} ({min(took):.2f} to {max(took):.2f}) | {loss} |")


if __name__ == "__main__":
    main()
