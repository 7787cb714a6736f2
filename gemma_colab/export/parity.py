"""Is what was written the model that was trained? The same questions to each form of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from gemma_colab.core.chat import tokenize_row

CLOSE = 0.02  # nats per token: below the spread of two runs that differ in their seed only


@dataclass(frozen=True)
class Measured:
    """What one form of a model did. answers: greedy, in the order of the questions. loss: nats per token of the right answers.
    mib: its files. seconds: for all answers together."""

    answers: list[str]
    loss: float
    mib: float
    seconds: float


def parity(forms: dict[str, Measured], reference: str | None = None) -> pd.DataFrame:
    """One line a form: MiB, answers equal (the share that is, letter by letter, what the reference answered), rows, loss,
    difference (to the reference's loss), s per answer.

    reference: a name in `forms`; left out, the first. Expect differences: a merged model stands on the 16-bit base, and its
    adapter was trained on the 4-bit one. The table is there to show how large they are.
    """
    reference = next(iter(forms)) if reference is None else reference
    wanted = forms[reference]
    lines = []
    for name, one in forms.items():
        equal = [mine == theirs for mine, theirs in zip(one.answers, wanted.answers, strict=True)]
        rows = len(equal)
        share, pace = sum(equal) / max(1, rows), one.seconds / max(1, rows)
        lines.append((name, one.mib, share, rows, one.loss, one.loss - wanted.loss, pace))
    return pd.DataFrame(lines, columns=["form", "MiB", "answers equal", "rows", "loss", "difference", "s per answer"])


def same_model(forms: dict[str, Measured], one: str, other: str) -> tuple[bool, str]:
    """Whether two forms are the same model, as far as the loss shows, and a sentence that says so.

    Equal answers are shown, and are no measure: where two words are nearly as likely, the last digit decides between them, and the
    rest of the answer follows.
    """
    a, b = forms[one], forms[other]
    off, equal = a.loss - b.loss, sum(x == y for x, y in zip(a.answers, b.answers, strict=True))
    words = f"{one} against {other}: loss {off:+.4f}, {equal} of {len(a.answers)} answers equal"
    if abs(off) <= CLOSE:  # not so for a loss that is no number
        return True, words
    return False, f"{words}; more than {CLOSE} is too much for rounding: export it again, and check that its base is the same"


@torch.inference_mode()
def behind(model, tokenizer, prompt: list[dict[str, str]], expected: str, answer: str) -> float:
    """How much less likely, in nats, `model` holds the first token in which `answer` parts from `expected`, its own, than the likeliest
    one: near 0 where rounding decided. 0 where the answers are the same."""
    if answer == expected:
        return 0.0
    mine, theirs = (
        tokenize_row({"messages": [*prompt, {"role": "assistant", "content": text}]}, tokenizer)["input_ids"]
        for text in (expected, answer)
    )
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
    if at is None:  # they differ in spaces that the chat template takes away
        return 0.0
    logits = model(input_ids=torch.tensor([theirs[:at]], device=model.device), logits_to_keep=1).logits[0, -1]
    return float(logits.max() - logits[theirs[at]])


def folder_mib(folder: str | Path) -> float:
    """MiB of the files in a folder, or of one file."""
    folder = Path(folder)
    files = folder.rglob("*") if folder.is_dir() else [folder]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20
