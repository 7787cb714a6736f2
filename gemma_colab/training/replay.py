"""Replay: general rows mixed into the training rows, so that tuning on one thing does not wipe out the rest."""

import random
from collections.abc import Sequence

from gemma_colab.core.errors import SettingsError
from gemma_colab.core.rows import to_messages
from gemma_colab.core.workspace import Workspace, read_sample

REPLAY_ROWS = "rows/replay.jsonl"  # your own general rows, `{"messages": [...]}` on each line


def general_rows(workspace: Workspace | None = None) -> list[dict]:
    """Read the general rows to mix in: `REPLAY_ROWS` of the workspace if it is there, else `general_rows.jsonl` of the samples."""
    own = workspace is not None and workspace.has(REPLAY_ROWS)
    rows = workspace.read_jsonl(REPLAY_ROWS, to_messages) if own else map(to_messages, read_sample("general_rows"))
    return [{"messages": row["messages"], "line": None} for row in rows]  # a line would be taken for one of your own file


def mix_in(rows: Sequence[dict], general: Sequence[dict], share: float, seed: int = 0) -> list[dict]:
    """Put so many general rows behind `rows` that they are `share` of all (0-0.5). Raises `SettingsError` if there are too few."""
    extra = round(len(rows) * share / (1 - share))
    if extra > len(general):
        most = int(100 * len(general) / (len(general) + len(rows))) / 100
        needs = f"replay={share:g} needs {extra} general rows for {len(rows)} of yours, and there are {len(general)}"
        raise SettingsError(f"{needs}; set it to {most:g} at most, or put more into {REPLAY_ROWS} in the workspace")
    return [*rows, *random.Random(seed).sample(list(general), extra)]
