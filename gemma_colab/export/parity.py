"""Is what was written the model that was trained? The same questions to each form of it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gemma_colab.core.chat import tokenize_row

CLOSE = 0.02  # nats per token: below the spread of two runs that differ in their seed only


class Measured(NamedTuple):
    """What one form of a model did: its greedy answers, nats per token of the right answers, size of its files, seconds for all."""

    answers: list[str]
    loss: float
    mib: float
    seconds: float


def parity(forms: dict[str, Measured]) -> list[dict]:
    """Compare forms of a model with the first of them, one line a form; "answers equal" is the share that is so letter by letter.

    Expect differences: a merged model stands on the 16-bit base, and its adapter was trained on the 4-bit one. The table is there to
    show how large they are.
    """
    first, lines = next(iter(forms.values())), []
    rows = len(first.answers)
    for name, one in forms.items():
        figures = {"MiB": one.mib, "answers equal": _equal(one, first) / rows, "rows": rows, "loss": one.loss}
        figures |= {"difference": one.loss - first.loss, "s per answer": one.seconds / rows}
        lines.append({"form": name} | {figure: round(value, 6) for figure, value in figures.items()})
    return lines


def same_model(forms: dict[str, Measured], one: str, other: str) -> tuple[bool, str]:
    """Return whether two forms are the same model, as far as the loss shows, and a sentence that says so.

    Equal answers are shown, and are no measure: where two words are nearly as likely, the last digit decides between them, and the
    rest of the answer follows.
    """
    a, b = forms[one], forms[other]
    off = a.loss - b.loss
    words = f"{one} against {other}: loss {off:+.4f}, {_equal(a, b)} of {len(a.answers)} answers equal"
    if abs(off) <= CLOSE:  # not so for a loss that is no number
        return True, words
    return False, f"{words}; more than {CLOSE} is too much for rounding: export it again, and check that its base is the same"


def _equal(one: Measured, other: Measured) -> int:
    return sum(mine == theirs for mine, theirs in zip(one.answers, other.answers, strict=True))


@torch.inference_mode()
def behind(model, tokenizer, prompt: list[dict[str, str]], expected: str, answer: str) -> float:
    """Return how much less likely, in nats, `model` holds the first token in which `answer` parts from `expected`, its own, than the
    likeliest one: near 0 where rounding decided, and 0 where the answers are the same."""
    mine, theirs = (
        tokenize_row({"messages": [*prompt, {"role": "assistant", "content": text}]}, tokenizer)["input_ids"]
        for text in (expected, answer)
    )
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    if at is None:  # the same, or they differ in spaces that the chat template takes away
        return 0.0
    logits = model(input_ids=torch.tensor([theirs[:at]], device=model.device), logits_to_keep=1).logits[0, -1]
    return float(logits.max() - logits[theirs[at]])
