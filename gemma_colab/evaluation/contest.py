"""The contestants on the same held-out rows: the base, the base with a few examples, the tuned model. One model in memory plays all."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from gemma_colab.core.rows import answer, prompt
from gemma_colab.evaluation.compare import LOSS, compare
from gemma_colab.evaluation.fields import schema_of, telling_examples
from gemma_colab.evaluation.generation import generate
from gemma_colab.evaluation.loss import answer_losses

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Contestant:
    """adapter: whether it is switched on. examples: solved turns that stand in front of each question.
    made_by: what tells its answers from those of another model, for answers that are kept."""

    adapter: bool = False
    examples: tuple = ()
    made_by: str = ""


def few_shot_turns(chats: list[dict], examples: int = 3, seed: int = 0) -> Turns:
    """So many solved examples, from chats that are not in the test, as the turns of one conversation: drawn at random, or where all
    answers fill in one form, those that show most of it (`fields.telling_examples`).

    Their system prompts are left out: one can't stand in the middle of a conversation, and the question that follows has its own.
    """
    answers = [answer(chat) for chat in chats]
    if examples and schema_of(answers):
        drawn = [chats[i] for i in telling_examples(answers, examples, seed)]
    else:
        drawn = random.Random(seed).sample(chats, min(examples, len(chats)))
    return [turn for chat in drawn for turn in chat["messages"] if turn["role"] != "system"]


def switched(model, contestant: Contestant):
    """A block in which the adapter is on or off, as this contestant wants it."""
    return nullcontext() if contestant.adapter else model.disable_adapter()


def in_front(examples: tuple | Turns, prompt: Turns) -> Turns:
    """The examples before the question. A system prompt stays first; Gemma's template folds it into the first user turn."""
    system = [turn for turn in prompt[:1] if turn["role"] == "system"]
    return [*system, *examples, *prompt[len(system) :]]


def play(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: list[dict],
    contestants: dict[str, Contestant],
    *,
    max_new_tokens: int = 128,
    max_length: int = 1024,
    batch_size: int = 32,
    save: Path | None = None,
) -> dict[str, pd.DataFrame]:
    """name -> one line a chat: `answer`, `tokens`, `finished` (as `generation.generate`), `loss` and `loss_tokens` of the right
    answer (as `loss.answer_losses`). save: a JSONL file that keeps the answers; run again, it goes on where it stopped."""
    tables = {}
    for name, contestant in contestants.items():
        asked = [chat | {"messages": [*in_front(contestant.examples, prompt(chat)), chat["messages"][-1]]} for chat in chats]
        shown = list(contestant.examples)
        extra = len(tokenizer.apply_chat_template(shown, return_dict=True)["input_ids"]) - 1 if shown else 0  # <bos> stands once
        with switched(model, contestant):
            answers = generate(
                model,
                tokenizer,
                [prompt(chat) for chat in asked],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                save=save,
                made_by=contestant.made_by,
                description=f"{name}: answers",
            )
            losses = answer_losses(model, tokenizer, asked, max_length=max_length + extra, description=f"{name}: loss")
        tables[name] = answers.assign(loss=losses["loss"], loss_tokens=losses["tokens"])
    return tables


def scores(tables: dict[str, pd.DataFrame], wanted: list[str], metrics: dict) -> dict[str, dict[str, list]]:
    """contestant -> metric -> one score a row; `evaluation.metrics` has functions to choose from."""
    return {
        name: {metric: function(list(table["answer"]), wanted) for metric, function in metrics.items()}
        for name, table in tables.items()
    }


def comparison(
    tables: dict[str, pd.DataFrame], scored: dict[str, dict[str, list]], before: str, after: str = "tuned", *, lower_is_better=()
) -> pd.DataFrame:
    """`compare` of two contestants: each metric, then the loss on the right answers. tables: of `play`; scored: of `scores`."""
    pairs = {metric: (scored[before][metric], scored[after][metric]) for metric in scored[after]}
    pairs[LOSS] = tables[before]["loss"], tables[after]["loss"]
    return compare(pairs, weights={LOSS: tables[after]["loss_tokens"]}, lower_is_better=[*lower_is_better, LOSS])
