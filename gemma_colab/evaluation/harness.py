"""Our test rows as a task of EleutherAI's harness (lm_eval), for those who believe another's count more than ours."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gemma_colab.core.chat import tokenize_row
from gemma_colab.core.workspace import Workspace

TASK = "gemma_colab_test"


def write_task(chats: list[dict], tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> Path:
    """Write `gemma_colab_test.jsonl` and `gemma_colab_test.yaml` into `folder`; returns the path of the latter.

    Each row is a context, rendered with the chat template, and the right answer with its stop token, as they were trained. The
    harness sums the log-probability of the answer's tokens; minus its mean over rows is our loss, counted by rows. `<bos>` is left
    out of the context: the harness puts it there itself. To be run as

        lm_eval --model hf --model_args pretrained=MERGED --include_path FOLDER --tasks gemma_colab_test
    """
    ws, lines = Workspace(folder), []
    for chat in chats:
        row = tokenize_row(chat, tokenizer, last_answer_only=True)
        start = next(i for i, label in enumerate(row["labels"]) if label != -100)
        context, target = (tokenizer.decode(ids) for ids in (row["input_ids"][:start], row["input_ids"][start:]))
        lines.append({"context": context.removeprefix(tokenizer.bos_token), "target": target})
    data = ws.write_jsonl(f"{TASK}.jsonl", lines)
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    }
    return ws.write_text(f"{TASK}.yaml", json.dumps(task, indent=1) + "\n")  # JSON is YAML too
