"""HTML for notebooks: templates in files, in which every value is escaped, and the colors they share."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

LIGHTS = {"fits": "#2e9d4e", "tight": "#d99a00", "no": "#d64545"}  # the words of `planner.fits`; legible on white and on black
PART_COLORS = {  # of `memory_plan`: what is frozen in blue, what is trained in green, what passes through in orange
    "weights": "#3f78b5",
    "embeddings": "#8ab8e6",
    "adapters": "#1f7a4d",
    "gradients": "#4fb380",
    "optimizer": "#a0d9b4",
    "activations": "#e08a3c",
    "working memory": "#f2c185",
    "overhead": "#9a9fa6",
}
LOADER = FileSystemLoader(Path(__file__).parents[1])  # gemma_colab/
ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=LOADER)
ENVIRONMENT.globals["lights"] = LIGHTS


def render(template: str, macro: str, *values, **named) -> str:
    """HTML from a macro of a template: "ui/chat" is `ui/templates/chat.html`. All values are escaped, except `HTML` objects."""
    room, name = template.split("/")
    return str(getattr(ENVIRONMENT.get_template(f"{room}/templates/{name}.html").module, macro)(*values, **named))


def pieces(text: str, spans: list[tuple[int, int]], start: int, stop: int) -> list[tuple[str, bool]]:
    """text[start:stop] cut at the spans: (text, in a span?)."""
    cuts = sorted({start, stop, *(place for span in spans for place in span if start < place < stop)})
    return [(text[a:b], any(s <= a and b <= e for s, e in spans)) for a, b in pairwise(cuts)]
