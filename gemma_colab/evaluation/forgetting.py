"""What did tuning cost? The same general questions before and after."""

from __future__ import annotations

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.metrics import contains_answer


def probe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[dict], description: str = "general questions"
) -> pd.DataFrame:
    """One line a question of `general_probe.jsonl`: kind, language, question, answer, and right (1.0 or 0.0)."""
    prompts = [[{"role": "user", "content": q["question"]}] for q in questions]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=48, batch_size=32, description=description)
    table = pd.DataFrame(questions)[["kind", "language", "question"]]
    return table.assign(answer=answers, right=contains_answer(answers, [q["key"] for q in questions]))
