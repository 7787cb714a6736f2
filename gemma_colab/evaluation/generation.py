"""Answers in batches: left padding, sorted by length, greedy, stopped at either of Gemma's two stop tokens."""

from __future__ import annotations

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.chat import stop_token_ids


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 16,
    description: str = "answers",
) -> list[str]:
    """One greedy answer to each prompt (a list of chat turns), in the order of the prompts."""
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_token_ids(tokenizer),
    )
    encoded = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # rows of like length together: little padding
    answers = [""] * len(prompts)
    was_training = model.training
    model.eval()
    with tqdm(total=len(prompts), desc=description, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [encoded[i] for i in rows]}, padding_side="left", return_tensors="pt")
            batch = batch.to(model.device)
            out = model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :]
            for i, text in zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
                answers[i] = text.strip()
            bar.update(len(rows))
    model.train(was_training)
    return answers
