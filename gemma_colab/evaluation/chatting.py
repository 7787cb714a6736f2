"""Talk to the model with and without its adapter, under the same conditions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.errors import ModelError
from gemma_colab.evaluation.generation import generate_answers

Chat = list[dict[str, str]]  # turns as {"role": "user" | "assistant", "content": text}


def contestants(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 256,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int = 64,
    top_p: float = 0.95,
    seed: int = 0,
) -> dict[str, Callable[[Chat], str]]:
    """{"base": ..., "tuned": ...}: each takes chat turns and gives an answer. The base is the same model, its adapter switched off.

    The sampling values are those Google recommends for Gemma 3; the names are those of `transformers.GenerationConfig`. Both
    start each answer from the same seed, plus the number of turns; the random state outside is left as it was. Raises
    `ModelError` if the model has no adapter.
    """
    if not hasattr(model, "disable_adapter"):  # a method of peft's models
        raise ModelError(
            f"model={type(model).__name__} has no adapter to switch off; load one with load_adapter(base, workspace)"
        )
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p} if do_sample else {"do_sample": False}
    )
    devices = [model.device] if model.device.type == "cuda" else []

    def answer(turns: Chat, without: Callable) -> str:
        with torch.random.fork_rng(devices), without():
            torch.manual_seed(seed + len(turns))
            options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "description": None}
            return generate_answers(model, tokenizer, [turns], **options)[0]

    return {
        "base": lambda turns: answer(turns, model.disable_adapter),
        "tuned": lambda turns: answer(turns, nullcontext),
    }
