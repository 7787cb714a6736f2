"""The panels of notebooks 02 and 03: which model, and LoRA. That of notebook 04 is in `train_panel.py`. Nothing here needs torch."""

from __future__ import annotations

from IPython.display import HTML

from gemma_colab.core.catalog import CATALOG, GPUS, TINY, Shape, download_gib, known_shape, pick_model, shape_of
from gemma_colab.core.html import ENVIRONMENT, LIGHTS, memory_bar
from gemma_colab.core.hub import cached_gib, constants
from gemma_colab.core.machine import Machine, dtype_name, free_gib
from gemma_colab.core.parameters import lora_parameters
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings, starting_point
from gemma_colab.core.sliders import Controls, SettingsPanel
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import BATCHES, ladder, largest_batch, light

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
SMALL = 50_000_000  # weights that a CPU trains in minutes; tiny-gemma3 has 3 million

_LORA = ENVIRONMENT.from_string(
    """<div><b style="font-size:1.3em">{{ '{:,}'.format(count) }}</b> trainable weights, <b>{{ '%.2f' | format(100 * share) }} %</b> of the model
 &nbsp;·&nbsp; scale {{ formula }} = <b>{{ '{:.4g}'.format(scale) }}</b></div>
{{ memory }}"""
)
_MEMORY = ENVIRONMENT.from_string(
    """{{ bar }}
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

    def note(s: LoraSettings) -> HTML:
        count = lora_parameters(shape, s)
        text = _LORA.render(
            count=count,
            share=count / (count + shape.linear_parameters + shape.embedding_parameters),
            formula=f"lora_alpha / {'√r' if s.use_rslora else 'r'} = {s.lora_alpha:g} / {'√' * s.use_rslora}{s.r}",
            scale=s.scale,
            memory=memory_note(shape, machine, s, train, tokens=tokens, **plan),
        )
        return HTML(text)

    return SettingsPanel(settings, LORA_CONTROLS, note)


def memory_note(shape: Shape, machine: Machine, lora: LoraSettings, train: TrainSettings, *, tokens: int, **plan) -> HTML:
    """The memory that training takes as a bar, what that was predicted for, and what to change first if it is too much.

    The arguments are those of `lora_panel`.
    """
    plan = {"tokens": tokens, "dtype": dtype_name(machine, shape)[0], "gpu": machine.gpu is not None} | plan
    limit, parts = machine.gpu_gib if machine.gpu else machine.ram_gib, memory_plan(shape, lora, train, **plan)
    word = light(parts.sum(), limit)
    text = _MEMORY.render(
        bar=memory_bar(parts, limit, machine.gpu or "this machine's memory", word),
        task=_task(train, tokens),
        tight=word == "tight",
        first=_first_rung(ladder(shape, lora, train, limit, **plan)),
    )
    return HTML(text)


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
        places = {"CPU, this machine": (machine.ram_gib, dtype_name(machine, shape)[0], False)} | places
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
    if name.endswith("-pt") or (known_shape(name) and not name.endswith("-it")):
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
