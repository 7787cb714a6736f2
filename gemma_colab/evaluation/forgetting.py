"""What did tuning cost? The same general questions and the same neutral texts before and after."""

from __future__ import annotations

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gemma_colab.evaluation.compare import compare
from gemma_colab.evaluation.generation import generate_answers
from gemma_colab.evaluation.loss import text_losses
from gemma_colab.evaluation.metrics import contains_answer, exact_match


def probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[dict],
    description: str = "general questions",
    **options,
) -> pd.DataFrame:
    """One line a question of `general_probe.jsonl`: kind, language, question, answer, and right (1.0 or 0.0). Who only repeats the
    question is not right, even where it holds the answer ("a plant or an animal?").
    options: those of `generation.generate`."""
    prompts = [[{"role": "user", "content": q["question"]}] for q in questions]
    answers = generate_answers(model, tokenizer, prompts, **{"max_new_tokens": 48, "description": description} | options)
    table = pd.DataFrame(questions)[["kind", "language", "question"]]
    right = contains_answer(answers, [q["key"] for q in questions])
    echo = exact_match(answers, [q["question"] for q in questions])
    return table.assign(answer=answers, right=[0.0 if e else r for r, e in zip(right, echo, strict=True)])


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
        scores[f"general questions right, {language}"] = before, after
    for language in pd.unique(texts[0]["language"]):
        before, after = (table[table["language"] == language] for table in texts)
        name = f"loss on neutral text, {language}"
        scores[name], weights[name] = (before["loss"], after["loss"]), before["tokens"]
    return compare(scores, weights=weights, lower_is_better=list(weights))
