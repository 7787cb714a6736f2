"""Replay: general rows mixed into the training rows, so that tuning on one thing does not wipe out the rest."""

from __future__ import annotations

import random

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.workspace import Workspace, read_sample

OWN = "rows/replay.jsonl"  # your own general rows, `{"messages": [...]}` on each line


def general_chats(workspace: Workspace | None = None) -> list[dict]:
    """The general chats to mix in: `rows/replay.jsonl` of the workspace if it is there, else `general_rows.jsonl` of the samples.

    The best ones for your model are questions that it must go on answering, with the answers that it gives before it is tuned.
    """
    if workspace is not None and workspace.has(OWN):
        return [to_messages(row) for row in workspace.read_jsonl(OWN)]
    return [to_messages(row) for row in read_sample("general_rows")]


def mix_in(chats: list[dict], general: list[dict], share: float, seed: int = 0) -> list[dict]:
    """`chats`, and behind them so many general ones that they are `share` of all (0-0.5); the trainer shuffles anyway.

    Raises `SettingsError` if there are too few of them.
    """
    extra = round(len(chats) * share / (1 - share))
    if extra > len(general):
        most = len(general) / (len(general) + len(chats))
        raise SettingsError(
            f"replay={share:g} needs {extra} general rows for {len(chats)} of yours, and there are {len(general)}; "
            f"set it to {int(most * 100) / 100:g} at most, or put more into {OWN} in the workspace"
        )
    return [*chats, *random.Random(seed).sample(general, extra)]
