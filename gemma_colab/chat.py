"""From rows to what the model reads: chat turns, token ids, and which of them are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, str]


def to_chat(row: Row) -> dict[str, list[dict[str, str]]]:
    """The conversational prompt/completion form that TRL trains on: the loss then covers the completion only.

    Instruction and input become one user turn, with a blank line between them.
    """
    question = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def tokenize_chat(row: dict, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """{"input_ids", "labels"} of one chat row as `SFTTrainer` builds them; labels are -100 where nothing is learnt."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
    return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}


def token_lengths(chats: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int) -> pd.DataFrame:
    """One line a row: prompt, answer and total tokens, and how many answer tokens `max_length` would cut off."""
    lines = []
    for chat in chats:
        labels = tokenize_chat(chat, tokenizer)["labels"]
        answer = sum(label != -100 for label in labels)
        cut = min(max(0, len(labels) - max_length), answer)
        lines.append((len(labels) - answer, answer, len(labels), cut))
    return pd.DataFrame(lines, columns=["prompt", "answer", "total", "answer_tokens_cut"])


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer. Base checkpoints and merges often name only the first, and then never stop."""
    return tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
