"""The loss on answers, token by token weighted, without ever holding logits for more than a few hundred of them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.chat import tokenize_row

POSITIONS = 512  # answer tokens whose logits exist at the same time


def answer_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[dict],
    *,
    max_length: int = 1024,
    batch_size: int = 8,
    description: str = "loss",
) -> pd.DataFrame:
    """One line a chat row: `loss` (sum over its answer tokens, in nats) and `tokens`. Rows are cut at `max_length` tokens.

    Only positions that predict an answer token go through the head, 512 at a time: at 262,144 words that is 0.5 GiB in float32.
    """
    rows = [tokenize_row(chat, tokenizer, last_answer_only=True) for chat in chats]
    return _losses(model, tokenizer, [{k: v[:max_length] for k, v in row.items()} for row in rows], batch_size, description)


def text_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    batch_size: int = 8,
    description: str = "text",
) -> pd.DataFrame:
    """The same for plain texts, in which every token counts but `<bos>`: how well a model still writes what it was not tuned on."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    return _losses(model, tokenizer, [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in rows], batch_size, description)


@torch.inference_mode()
def _losses(model, tokenizer, rows: list[dict], batch_size: int, description: str) -> pd.DataFrame:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    sums, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=int)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    was_training = model.training
    model.eval()
    with tqdm(total=len(rows), desc=description, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = tokenizer.pad({"input_ids": [rows[i]["input_ids"] for i in part]}, padding_side="right", return_tensors="pt")
            batch = batch.to(model.device)
            labels = torch.full_like(batch["input_ids"], -100)
            for n, i in enumerate(part):
                labels[n, : len(rows[i]["labels"])] = torch.tensor(rows[i]["labels"])
            hidden = decoder(**batch, use_cache=False).last_hidden_state[:, :-1]
            target = labels[:, 1:]
            answer = target != -100
            states, wanted = hidden[answer], target[answer]
            losses = torch.cat(
                [
                    torch.nn.functional.cross_entropy(head(s).float(), w, reduction="none").cpu()
                    for s, w in zip(states.split(POSITIONS), wanted.split(POSITIONS), strict=True)
                ]
            )
            owner = torch.tensor(part)[:, None].expand(target.shape)[answer.cpu()].numpy()
            np.add.at(sums, owner, losses.numpy())
            np.add.at(counts, owner, 1)
            bar.update(len(part))
    model.train(was_training)
    return pd.DataFrame({"loss": sums, "tokens": counts})


def mean_loss(losses: pd.DataFrame) -> float:
    """Nats per answer token over all rows."""
    return float(losses["loss"].sum(skipna=False) / max(1, losses["tokens"].sum()))


def perplexity(losses: pd.DataFrame) -> float:
    """exp of the mean loss: among how many tokens the model was as good as choosing blindly."""
    return math.exp(min(mean_loss(losses), 700.0))
