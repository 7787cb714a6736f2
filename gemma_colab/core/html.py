"""HTML for notebooks: templates in files, in which every value is escaped, and the colors they share."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

LIGHTS = {"fits": "#2e9d4e", "tight": "#d99a00", "no": "#d64545"}  # the words of `planner.fits`; legible on white and on black
ROOMS = FileSystemLoader(Path(__file__).parents[1])  # gemma_colab/
ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=ROOMS)
ENVIRONMENT.globals["lights"] = LIGHTS


def render(template: str, macro: str, *values, **named) -> str:
    """HTML from a macro of a template: "ui/chat" is `ui/templates/chat.html`. All values are escaped, except `HTML` objects."""
    return str(getattr(ENVIRONMENT.get_template(template.replace("/", "/templates/") + ".html").module, macro)(*values, **named))
