"""Controls over settings. The settings are the truth: a panel gives back exactly what was put in until a control is moved.

Every number has a `SelectionSlider` over a list of values that holds the given one, because `IntSlider` clamps silently and
`FloatLogSlider` turns 2e-4 into 1.995e-4. Only widgets that ipywidgets 7.7 (Colab) and 8 share are used, no JavaScript, and
every text is escaped. Nothing here needs torch: a panel starts in a second.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import HTML, display

from gemma_colab.catalog import CATALOG, GPUS, TINY, Shape, download_gib, pick_model, shape_of
from gemma_colab.errors import GemmaColabError, SettingsError
from gemma_colab.hardware import Machine, dtype_name, free_gib
from gemma_colab.hub import cached_gib, constants
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.parameters import lora_parameters
from gemma_colab.model.planner import BATCHES, ladder, largest_batch, light
from gemma_colab.settings import LoraSettings, ModelSettings, Settings, TrainSettings, starting_point
from gemma_colab.ui.html import ENVIRONMENT, LIGHTS, memory_bar

# field -> (values, what it does). Numbers get a slider, texts and {label: value} a list, None a box to tick.
Controls = dict[str, tuple[list | dict | None, str]]
MODEL_CONTROLS: Controls = {
    "model": ([TINY, *CATALOG], "larger ones know more, and need more memory and time"),
    "load_in_4bit": ({"4 bit": True, "16 bit": False}, "4 bit: linear layers in a quarter of the memory, rounded"),
}
LORA_CONTROLS: Controls = {
    "r": ([1, 2, 4, 8, 16, 32, 64, 128], "rank: more can be learnt, more weights to train"),
    "lora_alpha": ([1, 2, 4, 8, 16, 32, 64, 128], "strength: the update is scaled by lora_alpha / r"),
    "lora_dropout": ([0.0, 0.05, 0.1, 0.2], "share of inputs left out at random, against overfitting when rows are few"),
    "target_modules": (["all-linear", "attention"], "which layers get an adapter; all of them learn more"),
    "use_rslora": (None, "scale by lora_alpha / √r instead, so that a high rank isn't muted"),
    "use_dora": (None, "learn length and direction of the weights apart: may learn more, takes longer"),
}
TRAIN_CONTROLS: Controls = {
    "learning_rate": (
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
        "size of each step: too low learns nothing, too high destroys what is there",
    ),
    "per_device_train_batch_size": ([1, 2, 4, 8, 16, 32], "rows computed at once: memory"),
    "gradient_accumulation_steps": ([1, 2, 4, 8, 16], "batches added up before a step: a larger batch without the memory"),
    "num_train_epochs": ([0.5, 1, 2, 3, 5, 8, 10, 15, 20], "passes over the rows: too few learn little, too many learn by heart"),
}
SMALL = 50_000_000  # weights that a CPU trains in minutes; tiny-gemma3 has 3 million

_HINT = ENVIRONMENT.from_string('<div style="opacity:.7; line-height:1.3">{{ text }}</div>')
_NOTE = ENVIRONMENT.from_string(
    """<div style="line-height:1.5; margin-top:6px">
{% if error %}<div><b style="color:{{ lights.no }}">{{ what }}:</b> {{ error }}</div>{% endif %}
{% if text is string %}<b>{{ text }}</b>{% else %}{{ text }}{% endif %}
</div>"""
)
_LORA = ENVIRONMENT.from_string(
    """<div><b style="font-size:1.3em">{{ '{:,}'.format(count) }}</b> trainable weights, <b>{{ '%.2f' | format(100 * share) }} %</b> of the model
 &nbsp;·&nbsp; scale {{ formula }} = <b>{{ '{:.4g}'.format(scale) }}</b></div>
{{ bar }}
<div style="opacity:.7; margin-top:4px">Predicted for {{ task }}. “fits” leaves 15 % free.</div>
{% if first %}<div style="margin-top:4px"><b>{{ 'To have 15 % free' if tight else 'Change first' }}:</b> {{ first }}</div>{% endif %}"""
)
_MODEL = ENVIRONMENT.from_string(
    """<div>{% if why %}{{ asked }}: {% endif %}<b style="font-size:1.15em">{{ name }}</b>{% if why %}, because {{ why }}{% endif %}
 &nbsp;·&nbsp; {{ size }} weights &nbsp;·&nbsp; {{ download }}</div>
{% if cpu %}<div><b>No GPU on this machine:</b> on a CPU only {{ tiny }} is sensible. On a GPU from Colab:</div>{% endif %}
<table style="border-collapse:collapse; text-align:left; margin:6px 0">
<tr>{% for head in heads %}
<th style="text-align:left; font-weight:600; padding:3px 22px 3px 0; border-bottom:1px solid #8888">{{ head }}</th>{% endfor %}</tr>
{% for line in lines %}
<tr style="background:transparent">
<td style="text-align:left; padding:4px 22px 4px 0{{ '; font-weight:600' if line.here }}">{{ line.gpu }}</td>
<td style="text-align:left; padding:4px 22px 4px 0; white-space:nowrap"><span style="color:{{ lights[line.word] }}">●</span> {{ line.word }}</td>
<td style="text-align:left; padding:4px 22px 4px 0; white-space:nowrap">
<span style="display:inline-block; vertical-align:middle; width:150px; height:10px; border:1px solid #8888; border-radius:3px; overflow:hidden; margin-right:8px">
<span style="display:block; height:100%; width:{{ line.share }}%; background:{{ lights[line.word] }}"></span></span>
{{ '%.1f of %.1f GiB' | format(line.gib, line.limit) }}</td>
<td style="text-align:left; padding:4px 22px 4px 0">{{ line.batch }}</td>
</tr>{% endfor %}
</table>
<div style="opacity:.7">Predicted for {{ task }}, LoRA of r={{ r }} on {{ targets }}. “fits”, and the largest batch, leave 15 % free.</div>
{% for text in advice %}<div style="margin-top:4px">{{ text }}</div>{% endfor %}"""
)


def _control(field: str, values: list | dict | None, value, width: int) -> widgets.Widget:
    """The widget for one field, standing on `value`, which joins `values` where it is missing."""
    layout = {"flex": "0 0 auto", "width": f"{width + 240}px", "margin": "2px"}
    named = {"description": field, "style": {"description_width": f"{width}px"}, "layout": layout}
    if values is None:
        return widgets.Checkbox(value=value, **named)
    if isinstance(values, dict):
        return widgets.Dropdown(options=list(values.items()), value=value, **named)
    values = [value if v == value else v for v in values]
    if isinstance(value, str):
        return widgets.Dropdown(options=values if value in values else [*values, value], value=value, **named)
    values = sorted({*values, value})
    texts = [(str(v).removesuffix(".0"), v) for v in values]  # in full: f"{1.0000001e-4:g}" would show another number
    return widgets.SelectionSlider(options=texts, value=value, continuous_update=False, **named)


class SettingsPanel:
    """Controls for some fields of a settings object. `settings` is the current value; `controls` are the widgets by field name.

    note: settings -> what is shown below the controls, a text or `HTML`. An impossible value is answered with its sentence, and
    the control goes back to the last good one.
    """

    def __init__(self, settings: Settings, controls: Controls, note: Callable[[Settings], str | HTML]):
        self.settings, self._note = settings, note
        self.controls, lines, width = {}, [], 8 * max(map(len, controls))
        for field, (values, hint) in controls.items():
            control = _control(field, values, getattr(settings, field), width)
            control.observe(lambda change, field=field: self._changed(field, change["new"]), names="value")
            self.controls[field] = control
            text = widgets.HTML(_HINT.render(text=hint), layout={"flex": "1 1 240px", "margin": "2px 2px 2px 12px"})
            lines.append(widgets.HBox([control, text], layout={"flex_flow": "row wrap", "align_items": "center"}))
        self.note = widgets.HTML()
        self.widget = widgets.VBox([*lines, self.note], layout={"max_width": "900px", "padding": "6px"})
        self._show()

    def _changed(self, field: str, value) -> None:
        good = getattr(self.settings, field)
        if value == good:  # set back, by the lines below
            return
        try:
            self.settings = self.settings.replace(**{field: value})
        except SettingsError as e:
            self.controls[field].value = good
            return self._show("Not possible", str(e))
        self._show()

    def _show(self, what: str = "", error: str = "") -> None:
        try:
            text = self._note(self.settings)
        except GemmaColabError as e:  # raised in a click it would only reach the log
            what, error, text = what or "No prediction", error or str(e), HTML("")
        self.note.value = _NOTE.render(what=what, error=error, text=text, lights=LIGHTS)

    def _ipython_display_(self):
        display(self.widget)


def _limit(machine: Machine) -> float:
    return machine.gpu_gib if machine.gpu else machine.ram_gib


def _task(train: TrainSettings, tokens: int) -> str:
    rows = f"{train.per_device_train_batch_size} row{'s' * (train.per_device_train_batch_size > 1)}"
    return f"batches of {rows} of {train.max_length if train.packing else min(tokens, train.max_length):,} tokens"


def lora_panel(
    settings: LoraSettings, shape: Shape, machine: Machine, *, train: TrainSettings, tokens: int, **plan
) -> SettingsPanel:
    """Controls for LoRA; below them the trainable weights, the scale, and the memory that training takes of this machine's.

    machine: whose memory is the limit, a GPU's or, without one, the CPU's. train, tokens: what the memory is predicted for, tokens
    being the length of the longest row. plan: other arguments of `memory.memory_plan`, such as load_in_4bit=False; dtype and gpu
    are those of the machine unless given.
    """
    plan = {"dtype": dtype_name(machine)[0], "gpu": machine.gpu is not None} | plan
    limit = _limit(machine)

    def note(s: LoraSettings) -> HTML:
        count, parts = lora_parameters(shape, s), memory_plan(shape, s, train, tokens=tokens, **plan)
        word = light(parts.sum(), limit)
        text = _LORA.render(
            count=count,
            share=count / (count + shape.linear_parameters + shape.embedding_parameters),
            formula=f"lora_alpha / {'√r' if s.use_rslora else 'r'} = {s.lora_alpha:g} / {'√' * s.use_rslora}{s.r}",
            scale=s.scale,
            bar=memory_bar(parts, limit, machine.gpu or "this machine's memory", word),
            task=_task(train, tokens),
            tight=word == "tight",
            first=_first_rung(ladder(shape, s, train, limit, tokens=tokens, **plan)),
        )
        return HTML(text)

    return SettingsPanel(settings, LORA_CONTROLS, note)


def _first_rung(rungs) -> str:
    """The first change of a `planner.ladder` that saves something, and how far it leads; "" if nothing need change."""
    if len(rungs) == 1:
        return ""
    if rungs["GiB"].isna().any():
        return f"{rungs['change'].iloc[-1]}. With all that can be saved here, it still takes {rungs['GiB'].min():.1f} GiB."
    helps = rungs[rungs["GiB"] < rungs["GiB"].iloc[0] - 0.05]
    rung = helps.iloc[0] if len(helps) else rungs.iloc[-1]
    more = len(rungs) - 1 - rung.name
    then = f" {more} more such change{'s' * (more > 1)}, and it fits: see planner.ladder." if more else ""
    return f"{rung['change']}. That makes {rung['GiB']:.1f} GiB: {rung['fits']}.{then}"


def model_panel(
    settings: ModelSettings,
    machine: Machine,
    *,
    lora: LoraSettings | None = None,
    train: TrainSettings | None = None,
    tokens: int = 1024,
) -> SettingsPanel:
    """Which Gemma 3, in 4 or in 16 bit; below, whether it can be trained on this machine's GPU and on three that can be had.

    lora, train: settings to predict for; left out, the `starting_point` of each model. tokens: length of the longest row. A name
    that was put in stays on offer, whether its config can be read or not.
    """
    shapes = {}

    def note(s: ModelSettings) -> HTML:
        name, why = pick_model(s.model, machine)
        if name not in shapes:
            shapes[name] = shape_of(name)
        start = starting_point(name)
        return _model_note(s, name, why, shapes[name], machine, lora or start[0], train or start[1], tokens)

    return SettingsPanel(settings, MODEL_CONTROLS, note)


def _model_note(
    s: ModelSettings, name: str, why: str, shape: Shape, machine: Machine, lora: LoraSettings, train: TrainSettings, tokens: int
) -> HTML:
    weights = shape.linear_parameters + shape.embedding_parameters
    places = {f"{gpu}, on Colab": (limit, dtype, True) for gpu, (limit, dtype) in GPUS.items() if not _is(machine, gpu)}
    if machine.gpu:
        places = {f"{machine.gpu}, this machine": (machine.gpu_gib, dtype_name(machine)[0], True)} | places
    elif weights <= SMALL:
        places = {"CPU, this machine": (machine.ram_gib, "float32", False)} | places
    lines = []
    for place, (limit, dtype, gpu) in places.items():
        plan = {"tokens": tokens, "dtype": dtype, "load_in_4bit": s.load_in_4bit, "gpu": gpu}
        gib, batch = memory_plan(shape, lora, train, **plan).sum(), largest_batch(shape, lora, train, limit, **plan)
        lines.append(
            {
                "gpu": place,
                "here": "this machine" in place,
                "word": light(gib, limit),
                "share": round(min(100, 100 * gib / limit), 1),
                "gib": gib,
                "limit": limit,
                "batch": f"{batch} or more" if batch == BATCHES[-1] else batch or "none",
            }
        )
    text = _MODEL.render(
        asked=s.model,
        name=name,
        why=why if name != s.model else "",
        size=f"{weights / 1e9:.1f} billion" if weights >= 0.95e9 else f"{weights / 1e6:.0f} million",
        download=_download(name),
        cpu=machine.gpu is None and weights > SMALL,
        tiny=TINY,
        heads=["where", "training", "memory", "largest batch"],
        lines=lines,
        lights=LIGHTS,
        task=_task(train, tokens),
        r=lora.r,
        targets=lora.target_modules,
        advice=list(_advice(s, name, shape, machine, lora, train, tokens)),
    )
    return HTML(text)


def _is(machine: Machine, gpu: str) -> bool:
    """Whether the machine's own GPU is this one of `GPUS`; an A100 with 80 GB isn't."""
    return gpu in (machine.gpu or "") and abs(machine.gpu_gib / GPUS[gpu][0] - 1) < 0.1


def _download(name: str) -> str:
    size = download_gib(name)
    if size is None:
        return "size of the download not known"
    if size == 0:
        return "nothing to download"
    if cached_gib(name) > 0.98 * size:
        return "already downloaded"
    return f"{size:.1f} GiB to download, {free_gib(constants.HF_HUB_CACHE):.0f} GiB free here"


def _advice(s: ModelSettings, name: str, shape: Shape, machine: Machine, lora: LoraSettings, train: TrainSettings, tokens: int):
    """Sentences on what the table can't say."""
    if name.endswith("-pt") or (name in CATALOG and not name.endswith("-it")):
        yield (
            f"{name} is pre-trained only: it continues texts and doesn't follow instructions yet. "
            "To start from one that does, take the model whose name ends in -it."
        )
    limit, dtype = (machine.gpu_gib, dtype_name(machine)[0]) if machine.gpu else GPUS["T4"]
    plans = [memory_plan(shape, lora, train, tokens=tokens, dtype=dtype, load_in_4bit=b) for b in (True, False)]
    (small, large), (total, total_16) = [p["weights"] for p in plans], [p.sum() for p in plans]
    if s.load_in_4bit and shape.linear_parameters > SMALL and large - small < 0.1 * limit and light(total_16, limit) == "fits":
        yield (
            f"4 bit saves little here: the weights of the linear layers take {small:.2f} GiB in 4 bit and {large:.2f} GiB in "
            f"16 bit, of {total:.1f} and {total_16:.1f} GiB in all on a {machine.gpu or 'T4'}. "
            "16 bit is an option: nothing is rounded, nothing has to be unpacked."
        )


def train_panel(settings: TrainSettings, rows: int) -> SettingsPanel:
    """Sliders for learning rate, batch and epochs; below them the number of updates for `rows` training rows."""

    def note(s: TrainSettings) -> str:
        steps = max(1, round(s.steps_per_epoch(rows) * s.num_train_epochs))
        return f"effective batch {s.effective_batch}; {s.steps_per_epoch(rows)} steps an epoch, {steps} in all"

    return SettingsPanel(settings, TRAIN_CONTROLS, note)
