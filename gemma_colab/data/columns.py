"""Which column of a file is taken for what, shown with three of its rows, before anything is trained on it."""

from typing import Any

from gemma_colab.core.html import ENVIRONMENT
from gemma_colab.data.personal import redact
from gemma_colab.data.schema import MAPPABLE, say_mapping

ROLES = {"instruction": "question", "input": "question", "output": "answer", "messages": "conversation"}
ROLES |= {"label": "label, to count by", "conversation": "kept together"}  # others are called as they are


def columns_page(source) -> str:
    """HTML of a `Source`; one without rows is a guess by what the columns hold, and nothing until it is written down."""
    rows = [[_short(record.get(column)) for column in source.columns.values()] for record in source.first[:3]]
    left = [redact(column) for column in [*source.first, {}][0] if column not in source.columns.values()]
    told = say_mapping({ours: column for ours, column in source.columns.items() if ours in MAPPABLE}).split(" (on the")[0]
    how = {"roles": ROLES, "rows": rows, "left": left[:20], "told": told, "redact": redact}
    return ENVIRONMENT.get_template("data/templates/columns.html").render(source=source, **how)


def _short(value: Any, most: int = 160) -> str:
    """A cell in a few lines, personal data masked, as a notebook is saved with what it shows."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        value = "\n".join(": ".join(map(str, turn.values())) for turn in value)
    text = redact("" if value is None or value != value else str(value))
    return text if len(text) <= most else text[: most - 1] + "…"
