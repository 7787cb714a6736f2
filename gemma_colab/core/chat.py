"""From rows to what the model reads: token ids, and which of them are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.catalog import TINY, from_hub, source_of
from gemma_colab.core.errors import ModelError
from gemma_colab.core.rows import Row
from gemma_colab.core.workspace import samples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_row(row: Row, tokenizer: PreTrainedTokenizerBase, last_answer_only: bool = False) -> dict[str, list[int]]:
    """Tokenize a row, as TRL does with its own template: {"input_ids", "labels"}, two lists of one length; labels are -100 where nothing is learned.

    Every answer is learned, with the `<end_of_turn>` and line break behind it; with `last_answer_only` just the last one. Raises
    `ModelError` for a template that can't be cut so.
    """

    def ids(turns: int, **options) -> list[int]:
        return tokenizer.apply_chat_template(row["messages"][:turns], return_dict=True, **options)["input_ids"]

    whole = ids(len(row["messages"]))
    labels = [-100] * len(whole)
    answers = [i for i, turn in enumerate(row["messages"]) if turn["role"] == "assistant"]
    for i in answers[-1:] if last_answer_only else answers:
        before, end = ids(i, add_generation_prompt=True), len(ids(i + 1))
        if whole[: len(before)] != before:
            name = tokenizer.name_or_path
            raise ModelError(
                f"the chat template of {name} writes a turn otherwise when others follow, so it can't be told which tokens are answers; "
                "take a checkpoint with Gemma 3's own template"
            )
        labels[len(before) : end] = whole[len(before) : end]
    return {"input_ids": whole, "labels": labels}


def token_lengths(rows: list[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> pd.DataFrame:
    """Count the tokens of each row. Columns: `prompt` (not trained), `answer` (trained), `total`; `answer_tokens_cut` beyond `max_length`;
    `bos`, how many `<bos>` there are; `end_trained`, whether a trained `<end_of_turn>` stays within `max_length`."""
    bos, end = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")
    lines = []
    for row in tqdm(rows, desc="tokens", disable=len(rows) < 2000, leave=False):
        ids, labels = tokenize_row(row, tokenizer).values()
        trained = sum(label != -100 for label in labels)
        cut = sum(label != -100 for label in labels[max_length:])
        lines.append((len(labels) - trained, trained, len(labels), cut, ids.count(bos), end in labels[:max_length]))
    return pd.DataFrame(lines, columns=["prompt", "answer", "total", "answer_tokens_cut", "bos", "end_trained"])


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer. Base checkpoints and merges often name only the first, and then never stop."""
    return tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with Gemma's chat template and padding token.

    Checkpoints that were not tuned to follow instructions (-pt) know the chat tokens but bring no template: they get Gemma's.
    Raises `ModelError` when the tokenizer can't be had, or isn't Gemma's.
    """
    from transformers import AutoTokenizer  # seconds to import

    tokenizer = from_hub(AutoTokenizer, name, source_of(name))
    if None in stop_token_ids(tokenizer) or tokenizer.unk_token_id in stop_token_ids(tokenizer):
        raise ModelError(f"the tokenizer of {name} lacks Gemma's chat tokens; take a checkpoint with Gemma 3's own tokenizer")
    return with_template(tokenizer)


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with Gemma's chat template if it has none of its own."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = (samples() / TINY / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer
