"""From rows to what the model reads: chat turns, token ids, and which of them are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.catalog import TINY, source_of
from gemma_colab.core.errors import ModelError
from gemma_colab.core.hub import from_hub
from gemma_colab.core.rows import Row, answer, question
from gemma_colab.core.workspace import samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def to_chat(row: Row) -> dict[str, list[dict[str, str]]]:
    """The conversational prompt/completion form that TRL trains on: the loss then covers the completion only.

    Instruction and input become one user turn, with a blank line between them. Of a conversation, the last answer is the
    completion and everything before it the prompt.
    """
    if "messages" in row:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    return {
        "prompt": [{"role": "user", "content": question(row)}],
        "completion": [{"role": "assistant", "content": answer(row)}],
    }


def tokenize_chat(row: dict, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """{"input_ids", "labels"} of one chat row as `SFTTrainer` builds them; labels are -100 where nothing is learnt."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
    return {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}


def token_lengths(chats: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int) -> pd.DataFrame:
    """One line a row: prompt, answer and total tokens, how many answer tokens `max_length` would cut off,
    how many `<bos>` there are, and whether `<end_of_turn>` is among the trained tokens that stay."""
    bos, end = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")
    lines = []
    for chat in tqdm(chats, desc="tokens", disable=len(chats) < 2000, leave=False):
        row = tokenize_chat(chat, tokenizer)
        ids, labels = row["input_ids"], row["labels"]
        trained = sum(label != -100 for label in labels)
        cut = min(max(0, len(labels) - max_length), trained)
        lines.append((len(labels) - trained, trained, len(labels), cut, ids.count(bos), end in labels[:max_length]))
    return pd.DataFrame(lines, columns=["prompt", "answer", "total", "answer_tokens_cut", "bos", "end_trained"])


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer. Base checkpoints and merges often name only the first, and then never stop."""
    return tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer with Gemma's chat template and padding token.

    Checkpoints that were not tuned to follow instructions (-pt) know the chat tokens but bring no template: they get Gemma's.
    Raises `ModelError` when the tokenizer can't be had, or isn't Gemma's.
    """
    from transformers import AutoTokenizer  # seconds to import

    tokenizer = from_hub(AutoTokenizer, name, source_of(name))
    if None in stop_token_ids(tokenizer) or tokenizer.unk_token_id in stop_token_ids(tokenizer):
        raise ModelError(f"the tokenizer of {name} lacks Gemma's chat tokens; take a checkpoint with Gemma 3's own tokenizer")
    return with_template(tokenizer)


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, with Gemma's chat template if it has none of its own."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = (samples() / TINY / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer
