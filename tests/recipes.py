"""The code of docs/recipes.md, as somebody would copy it."""

import re

from conftest import ROOT


def recipe(title: str, number: int = 0, names: dict | None = None, replaced: tuple[str, str] | None = None) -> dict:
    """Run a Python block under this heading, the first or another one; returns the names that are then defined.

    names: those that are defined before, by an earlier block. replaced: a text in it, and what stands there in a test.
    """
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
    names = {"__name__": title} | (names or {})
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number]
    if replaced:
        assert replaced[0] in code
        code = code.replace(*replaced)
    exec(compile(code, title, "exec"), names)
    return names
