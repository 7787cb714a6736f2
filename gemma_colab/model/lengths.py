"""How long rows are in tokens: from this, memory and time are planned."""

import pandas as pd
from tqdm.auto import tqdm

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.rows import Row


def token_lengths(rows: list[Row], tokenizer, max_length: int) -> pd.DataFrame:
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
