"""The card that goes with a model: README.md, as the Hub shows it, made from what the run recorded."""

import html
import math
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from gemma_colab.core.catalog import SHORT, TINY
from gemma_colab.core.errors import plain as masked
from gemma_colab.model.choice import is_hub_id, shown_name

TEMPLATE = Path(__file__).parent / "templates" / "card.jinja"
PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/|`'\",;:<>()]+[\\/])+([^\s\\/|`'\",;:<>()]*)")
MARKS = re.compile(r"([\\`*_{}\[\]#~$!|@])")  # what Markdown reads as more than text


def model_card(form: str, run: dict, dtype: str = "bfloat16") -> ModelCard:
    """Make the card of an "adapter" or a "merged" model, whose weights are of `dtype`; `loss_curve.png` is beside it.

    run: what `summary.json` holds; whatever is missing is left out, and where nothing was evaluated the card says so. Every text of
    the run is escaped, for Markdown and for the YAML at the top; no folder of this machine and no token gets in.
    """
    base = shown_name(SHORT.get(run["model"], run["model"]))
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        license="apache-2.0" if base == TINY else "gemma",
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["gemma3", "lora", "sft", "gemma_colab"],
    )
    rows, versions = run.get("rows") or {}, run.get("versions") or {}
    facts = {
        "base model": base,
        "base weights while training": {True: "4 bit (NF4, double quantization)", False: "16 bit"}.get(run.get("load_in_4bit")),
        "rows": ", ".join(f"{split} {number}" for split, number in rows.items()),
        "fingerprint of the rows": run.get("fingerprint"),
        "computed in": run.get("dtype"),
        "machine": run.get("machine"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    card = ModelCard.from_template(
        data,
        template_path=TEMPLATE,
        form=form,
        run=run,
        base=base,
        source=base if is_hub_id(base) else "path/to/" + re.sub(r"[^\w.-]", "_", base),
        tiny=base == TINY,
        dtype=dtype,
        facts={name: value for name, value in facts.items() if value},
        few_rows=isinstance(rows.get("test"), int) and rows["test"] < 100,
        forgot=any(line.get("clear") == "yes" and (line.get("difference") or 0) < 0 for line in run.get("forgetting") or []),
        plain=plain,
        number=number,
    )
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).rstrip() + "\n"  # where a part is left out
    return card


def plain(value: object) -> str:
    """Return one line that is only text in Markdown and HTML: no marks, no links, no token, and of a path its last part."""
    text = masked(PATH.sub(r"\1", " ".join(str(value).split())))
    return MARKS.sub(r"\\\1", html.escape(text, quote=False)).replace("://", r":\/\/").replace("www.", r"www\.")


def number(value: object, form: str = ".2f") -> str:
    """Format a number; "-" for one that was not measured."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return format(value, form) if known else "-"
