"""The card that goes with a model: README.md, as the Hub shows it, made from what the run recorded."""

from __future__ import annotations

import html
import math
import re

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment

from gemma_colab.core.catalog import TINY, source_of
from gemma_colab.core.hub import TOKEN

TERMS = "https://ai.google.dev/gemma/terms"
CURVE = "loss_curve.png"
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/|`'\",;:<>()]+[\\/])+([^\s\\/|`'\",;:<>()]*)")
_MARKS = re.compile(r"([\\`*_{}\[\]#~$!|@])")


def plain(value: object) -> str:
    """One line of text that is only text in Markdown and HTML: no marks, no links, no token, and of a path its last part."""
    text = TOKEN.sub("***", _PATH.sub(r"\1", " ".join(str(value).split())))
    return _MARKS.sub(r"\\\1", html.escape(text, quote=False)).replace("://", r":\/\/").replace("www.", r"www\.")


def number(value: object, form: str = ".2f") -> str:
    """A number in words of two digits; "-" for one that was not measured."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return format(value, form) if known else "-"


_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters |= {"plain": plain, "number": number}
_TEXT = _ENVIRONMENT.from_string("""{% macro scores(records, before, after) %}
| | rows | {{ before }} | {{ after }} | difference | 95 % interval | clear |
| --- | --- | --- | --- | --- | --- | --- |
{% for r in records %}
| {{ (r.metric or r.language) | plain }} | {{ r.rows | plain }} | {{ r.before | number }} | {{ r.after | number }} | {{ r.difference | number("+.2f") }} | {{ r.low | number("+.2f") }} to {{ r.high | number("+.2f") }} | {{ (r["clear"] or "-") | plain }} |
{% endfor %}
{% endmacro %}
{% macro settings_table(settings) %}
| setting | value |
| --- | --- |
{% for name, value in settings.items() %}
| {{ name | plain }} | {{ value | plain }} |
{% endfor %}
{% endmacro %}
# {{ title | plain }}

{% if form == "adapter" %}
A LoRA adapter for **{{ base | plain }}**: the weights that training added, to be loaded on top of that model.
{% else %}
**{{ base | plain }}** with a LoRA adapter merged into its {{ dtype | plain }} weights: a whole model, which needs nothing beside it.
{% endif %}
Made with gemma_colab from {{ rows.train | plain }} rows.

## How to load it

```python
{{ code }}
```

The prompt must have Gemma's chat form, which `apply_chat_template` gives, and an answer ends at `<eos>` or `<end_of_turn>` (ids 1 and 106).
Float16 is no choice for Gemma 3: its activations overflow there.

## What it was trained on

| | |
| --- | --- |
{% for name, value in facts.items() %}
| {{ name | plain }} | {{ value | plain }} |
{% endfor %}

The data itself is not part of this repository. The fingerprint is a checksum of the three files of rows: equal for equal rows.

{% if run.settings %}
## Settings

{% endif %}
{% for name in ("lora", "train", "generation") if run.settings[name] %}
**{{ {"lora": "LoRA (names of `peft.LoraConfig`)", "train": "Training (names of `trl.SFTConfig`, and a few of gemma_colab)", "generation": "Answers"}[name] }}**

{{ settings_table(run.settings[name]) }}
{% endfor %}
{% if curve or run.training %}
## Training

{% if curve %}
![Training and validation loss over steps](loss_curve.png)

{% endif %}
{% if run.training %}
{{ run.training.steps | plain }} steps in {{ run.training.seconds | number(".0f") }} s, best validation loss {{ run.training.best_eval_loss | number }} at step {{ run.training.best_step | plain }}.{% if run.training.verdict %} Verdict: {{ run.training.verdict | plain }}.{% endif %}


{% endif %}
{% endif %}
## Evaluation

{% if run.verdict %}
**{{ run.verdict.word | plain }}{% if run.verdict.ship %}; ship it: {{ run.verdict.ship | plain }}{% endif %}.** {{ (run.verdict.lines or []) | join(" ") | plain }}

{% endif %}
{% if run.loss %}
Loss on the right answers, in nats per token; lower is better.

| rows | base | tuned |
| --- | --- | --- |
{% for part, loss in run.loss.items() %}
| {{ part | plain }} | {{ loss.base | number }} | {{ loss.tuned | number }} |
{% endfor %}

{% endif %}
{% if run.tuned_against_base %}
On the test rows, which training never saw, against the same model without tuning. Intervals: paired bootstrap over rows.

{{ scores(run.tuned_against_base, "base", "tuned") }}
{% endif %}
{% if run.tuned_against_few_shot %}
Against the same model with examples in its prompt:

{{ scores(run.tuned_against_few_shot, "few-shot", "tuned") }}
{% endif %}
{% if not run.loss and not run.tuned_against_base %}
Not evaluated: nobody knows yet whether it is better than its base.

{% endif %}
{% if run.forgetting %}
## What it forgot

Share of right answers to general questions, which have nothing to do with the training rows.

{{ scores(run.forgetting, "base", "tuned") }}
{% endif %}
{% if run.export %}
## Is this the model that was trained?

The same questions to each form of it, answered greedily. The difference is to the adapter on the base it was trained on.

| form | MiB | answers equal | questions | loss | difference |
| --- | --- | --- | --- | --- | --- |
{% for r in run.export %}
| {{ r.form | plain }} | {{ r.MiB | number(",.1f") }} | {{ r["answers equal"] | number(".0%") }} | {{ r.rows | plain }} | {{ r.loss | number(".3f") }} | {{ r.difference | number("+.3f") }} |
{% endfor %}

{% if run.export_sentence %}
Was the merging right? {{ run.export_sentence | plain }}.

{% endif %}
{% endif %}
## Limits

{% for line in limits %}
- {{ line | plain }}
{% endfor %}

## Licence

{{ licence }}
""")

_LOADING = {
    "adapter": """# On Colab first: %pip uninstall -y torchao  (an old one, which PEFT refuses and this model doesn't need)
import torch
from peft import PeftModel
from transformers import AutoTokenizer, Gemma3ForCausalLM

base, adapter = {base!r}, "path/or/id/of/this/adapter"
{load}
model = PeftModel.from_pretrained(model, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)

chat = [{{"role": "user", "content": "Hello!"}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids.to(model.device), max_new_tokens=128, eos_token_id=[1, 106])
print(tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True))""",
    "merged": """import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/or/id/of/this/model", dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained("path/or/id/of/this/model")

chat = [{{"role": "user", "content": "Hello!"}}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids.to(model.device), max_new_tokens=128)
print(tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True))""",
}
_TEXT_BASE = "model = Gemma3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16)"
_SEEING_BASE = """# This base sees images; the adapter belongs to its text part, under that part's own names.
config = AutoConfig.from_pretrained(base).text_config
model = Gemma3ForCausalLM.from_pretrained(
    base, config=config, key_mapping={r"^language_model.model": "model"}, dtype=torch.bfloat16
)"""


def model_card(form: str, run: dict, *, curve: bool = False, multimodal: bool = False, dtype: str = "bfloat16") -> ModelCard:
    """The card of an "adapter" or a "merged" model.

    run: what `summary.json` holds; whatever is missing is left out, and where nothing was evaluated the card says so. curve:
    whether `loss_curve.png` lies beside it. multimodal: whether the base sees images. dtype: of merged weights. Every text of
    the run is escaped, for Markdown and for the YAML at the top; no folder of this machine and no token gets in.
    """
    name = str(run.get("model") or "an unknown Gemma 3")
    base = source_of(name) if name != TINY else TINY
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None
    base = base if on_hub else re.split(r"[\\/]", base.rstrip("\\/"))[-1]
    ours = base == TINY
    data = ModelCardData(
        base_model=base if on_hub else None,
        license="apache-2.0" if ours else "gemma",
        library_name="peft" if form == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["gemma3", "lora", "sft", "gemma_colab"],
    )
    load = _SEEING_BASE if multimodal else _TEXT_BASE
    code = _LOADING[form].format(base=base if on_hub else "path/to/" + re.sub(r"[^\w.-]", "_", base), load=load)
    if multimodal and form == "adapter":
        code = code.replace("import AutoTokenizer", "import AutoConfig, AutoTokenizer")
    run = {key: value for key, value in run.items() if value is not None}
    text = _TEXT.render(
        form=form,
        title=f"{base.split('/')[-1]}, tuned" + (" (adapter)" if form == "adapter" else ""),
        base=base,
        dtype=dtype,
        rows=run.get("rows") or {"train": "an unknown number of"},
        code=code,
        facts=_facts(base, run),
        run={"settings": {}} | run,
        curve=curve,
        limits=_limits(form, run, ours),
        licence=_licence(base, ours),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{re.sub(chr(10) + '{3,}', chr(10) * 2, text).strip()}\n")


def _facts(base: str, run: dict) -> dict[str, object]:
    bits = {True: "4 bit (NF4, double quantisation)", False: "16 bit"}.get(run.get("load_in_4bit"))
    facts = {
        "base model": base,
        "base weights while training": bits,
        "rows": ", ".join(f"{part} {rows}" for part, rows in (run.get("rows") or {}).items()),
        "fingerprint of the rows": run.get("fingerprint"),
        "computed in": run.get("dtype"),
        "machine": run.get("machine"),
        "seed": run.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items()),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _limits(form: str, run: dict, ours: bool) -> list[str]:
    lines = [
        "It was made for questions like its training rows. Elsewhere it may be worse than its base.",
        "It can be wrong, and sounds just as sure then. Nobody checked its answers for truth; let a person check what matters.",
        "One training run with one seed. The intervals are about the choice of test rows, not about another run.",
    ]
    if ours:
        lines.insert(0, "tiny-gemma3 is a model for tests and lessons with 3 million weights. It is no use for anything else.")
    if form == "merged" and run.get("load_in_4bit") and (run.get("loss") or run.get("tuned_against_base")):
        questions = next((r.get("rows") for r in run.get("export") or [] if r.get("form") == "merged"), None)
        compared = f"was compared with it on {questions} questions" if questions else "was not compared with it"
        lines.append(f"The figures under Evaluation are of the adapter on the 4-bit base; this merged model {compared}.")
    rows = (run.get("rows") or {}).get("test")
    if isinstance(rows, int) and rows < 100:
        lines.append(f"Measured on {rows} test rows: small differences can't be seen with so few.")
    lost = [r for r in run.get("forgetting") or [] if r.get("clear") == "yes" and (r.get("difference") or 0) < 0]
    if lost:
        lines.append("It forgot general knowledge, measurably; see above.")
    return lines


def _licence(base: str, ours: bool) -> str:
    if ours:
        return f"{plain(base)} and what was made from it: Apache-2.0."
    return (
        f"A derivative of Gemma 3. Gemma is provided under and subject to the Gemma Terms of Use found at <{TERMS}>, and so is this "
        "model: whoever passes it on passes these terms on, with the prohibited uses that they name."
    )
