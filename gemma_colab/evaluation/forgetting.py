"""What did tuning cost? The same general questions and the same neutral texts before and after."""

from __future__ import annotations

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.evaluation.compare import QUESTIONS, compare
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import text_losses
from gemma_colab.evaluation.metrics import contains_answer, words


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[dict],
    description: str = "general questions",
    **options,
) -> pd.DataFrame:
    """One line a question of `general_probe.jsonl`: kind, language, question, answer, and right (1.0 or 0.0). An answer that begins
    with the whole question is not right, even where the question holds the answer ("a plant or an animal?"): a model that was never
    taught to answer repeats what it reads.
    options: those of `generation.generate`."""
    prompts = [[{"role": "user", "content": q["question"]}] for q in questions]
    answers = generate_answers(model, tokenizer, prompts, **{"max_new_tokens": 48, "description": description} | options)
    table = pd.DataFrame(questions)[["kind", "language", "question"]]
    right = contains_answer(answers, [q["key"] for q in questions])
    answered = [not _repeats(answer, question) for answer, question in zip(answers, table["question"], strict=True)]
    return table.assign(answer=answers, right=right * np.array(answered))


def _repeats(answer: str, question: str) -> bool:
    return " ".join(words(answer)).startswith(" ".join(words(question)))


def read_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[dict]) -> pd.DataFrame:
    """One line a text of `neutral_text.jsonl`: language, loss (sum, in nats), tokens."""
    losses = text_losses(model, tokenizer, [text["text"] for text in texts], description="neutral text")
    return losses.assign(language=[text["language"] for text in texts])


def forgetting(probes: tuple[pd.DataFrame, pd.DataFrame], texts: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """One line a language and kind of evidence, as `compare` makes them. probes, texts: before and after, of `probe` and
    `read_texts`."""
    scores, weights = {}, {}
    for language in pd.unique(probes[0]["language"]):
        before, after = (list(table.loc[table["language"] == language, "right"]) for table in probes)
        scores[f"{QUESTIONS}, {language}"] = before, after
    for language in pd.unique(texts[0]["language"]):
        before, after = (table[table["language"] == language] for table in texts)
        name = f"loss on neutral text, {language}"
        scores[name], weights[name] = (before["loss"], after["loss"]), before["tokens"]
    return compare(scores, weights=weights, lower_is_better=list(weights))
