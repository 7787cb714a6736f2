"""The code of docs/recipes.md, as somebody would copy it."""

import re

from conftest import ROOT


def recipe(title: str) -> dict:
    """Run the first Python block under this heading; returns the names it defines."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    names = {"__name__": title}
    exec(compile(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], title, "exec"), names)
    return names
