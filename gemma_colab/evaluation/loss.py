"""The loss on answers, token by token weighted, without ever holding logits for more than a few hundred of them."""

import math

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.rows import Row

POSITIONS = 512  # answer tokens whose logits exist at the same time: at 262,144 words, 0.5 GiB in float32


def answer_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    max_length: int = 1024,
    batch_size: int = 8,
    description: str = "loss",
) -> pd.DataFrame:
    """Return one line per row: `loss` (sum over the tokens of its last answer, in nats) and `tokens`.

    The mean loss is `loss.sum() / tokens.sum()`. Rows are cut at `max_length` tokens. Only positions that predict an answer token go through the head.
    """
    encoded = [tokenize_row(row, tokenizer, last_answer_only=True) for row in rows]
    encoded = [{key: values[:max_length] for key, values in one.items()} for one in encoded]
    return _losses(model, tokenizer, encoded, batch_size, description)


def text_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> pd.DataFrame:
    """Return the same for plain texts, in which every token counts but `<bos>`: how well a model still writes what it was not tuned on."""
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    return _losses(model, tokenizer, [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in encoded], 8, "neutral text")


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
            target = labels[:, 1:]  # each position predicts the next token
            counted = target != -100
            states = decoder(**batch, use_cache=False).last_hidden_state[:, :-1][counted]
            parts = zip(states.split(POSITIONS), target[counted].split(POSITIONS), strict=True)
            losses = [torch.nn.functional.cross_entropy(head(x).float(), y, reduction="none").cpu() for x, y in parts]
            owner = torch.tensor(part)[:, None].expand(target.shape)[counted.cpu()].numpy()
            np.add.at(sums, owner, torch.cat(losses).numpy())
            np.add.at(counts, owner, 1)
            bar.update(len(part))
    model.train(was_training)
    return pd.DataFrame({"loss": sums, "tokens": counts})


def mean_loss(losses: pd.DataFrame) -> float:
    """Return nats per answer token over all rows."""
    return float(losses["loss"].sum(skipna=False) / max(1, losses["tokens"].sum()))


def perplexity(losses: pd.DataFrame) -> float:
    """Return exp of the mean loss: among how many tokens the model was as good as choosing blindly."""
    return math.exp(min(mean_loss(losses), 700.0))
