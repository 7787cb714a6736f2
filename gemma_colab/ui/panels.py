"""Settings on sliders, with what they come to below: which model, LoRA, and (in `train_panel.py`) training. Nothing needs torch."""

from __future__ import annotations

from IPython.display import HTML

from gemma_colab.core.catalog import CATALOG, TINY, Dimensions, dimensions_of, known_dimensions
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import render
from gemma_colab.core.lora import lora_parameters
from gemma_colab.core.machine import Machine, dtype_name, free_gib
from gemma_colab.core.settings import LoraSettings, ModelSettings, Settings, TrainSettings
from gemma_colab.core.sliders import Controls, SettingsPanel
from gemma_colab.model.choice import pick_model, starting_point
from gemma_colab.model.lent import describe_machine
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import BATCHES, GPUS, download_gib, fits, largest_batch
from gemma_colab.model.preflight import cached_gib, constants
from gemma_colab.ui.memory_note import memory_note, task
from gemma_colab.ui.train_panel import train_panel

MODEL_CONTROLS: Controls = {
    "model": ([TINY, *CATALOG], "larger ones know more, and need more memory and time"),
    "load_in_4bit": ({"4 bit": True, "16 bit": False}, "4 bit: linear layers in a quarter of the memory, rounded"),
}
LORA_CONTROLS: Controls = {
    "r": ([1, 2, 4, 8, 16, 32, 64, 128], "rank: more can be learned, more weights to train"),
    "lora_alpha": ([1, 2, 4, 8, 16, 32, 64, 128], "strength: the update is scaled by lora_alpha / r"),
    "lora_dropout": ([0.0, 0.05, 0.1, 0.2], "share of inputs left out at random, against overfitting when rows are few"),
    "target_modules": (["all-linear", "attention"], "which layers get an adapter; all of them learn more"),
    "use_rslora": (None, "scale by lora_alpha / √r instead, so that a high rank isn't muted"),
    "use_dora": (None, "learn length and direction of the weights apart: may learn more, takes longer"),
}
SMALL = 50_000_000  # weights that a CPU trains in minutes; tiny-gemma3 has 3 million
TEMPLATE = "ui/panels"


def settings_panel(settings: Settings, machine: Machine | None = None, **about) -> SettingsPanel:
    """Show controls for settings, and below them what they come to. `panel.settings` is what they stand on.

    machine: for which memory is predicted; this one if left out. about: what else the prediction needs, by the kind of settings.

    - `ModelSettings`: nothing, or lora, train and tokens (length of the longest row) to predict for. Below: whether each model can
      be trained on this machine, and on the GPUs that Colab lends.
    - `LoraSettings`: dimensions, train, tokens. Below: trainable weights, scale, memory.
    - `TrainSettings`: dimensions, lora, lengths (of `token_lengths` for the training rows); seconds_per_step, measured with these
      settings; start, what the presets start from. Below: steps, tokens, the learning rate over the steps, time, memory.

    The last two take further arguments of `memory_plan`, such as load_in_4bit=False. Raises `SettingsError` for other settings.
    """
    for kind, panel in {ModelSettings: model_panel, LoraSettings: lora_panel, TrainSettings: train_panel}.items():
        if isinstance(settings, kind):
            return panel(settings, machine or describe_machine(), **about)
    raise SettingsError(f"settings={settings!r} has no panel; give it ModelSettings, LoraSettings or TrainSettings")


def lora_panel(
    settings: LoraSettings, machine: Machine, *, dimensions: Dimensions, train: TrainSettings, tokens: int, **plan
) -> SettingsPanel:
    """Controls for LoRA; see `settings_panel`."""

    def note(s: LoraSettings) -> HTML:
        count = lora_parameters(dimensions, s)
        share = count / (count + dimensions.linear_parameters + dimensions.embedding_parameters)
        formula = f"lora_alpha / {'√r' if s.use_rslora else 'r'} = {s.lora_alpha:g} / {'√' * s.use_rslora}{s.r}"
        memory = memory_note(dimensions, machine, s, train, tokens=tokens, **plan)
        return HTML(render(TEMPLATE, "lora", count, share, formula, s.scale, memory))

    return SettingsPanel(settings, LORA_CONTROLS, note)


def model_panel(settings: ModelSettings, machine: Machine, *, lora=None, train=None, tokens: int = 1024) -> SettingsPanel:
    """Which Gemma 3, in 4 or in 16 bit; see `settings_panel`. A name that was put in stays on offer, even if it can't be read."""
    known: dict[str, Dimensions] = {}

    def note(s: ModelSettings) -> HTML:
        name, why = pick_model(s.model, machine)
        if name not in known:
            known[name] = dimensions_of(name)
        start = starting_point(name)
        return _model_note(
            s, name, why if name != s.model else "", known[name], machine, lora or start[0], train or start[1], tokens
        )

    return SettingsPanel(settings, MODEL_CONTROLS, note)


def _model_note(
    s: ModelSettings,
    name: str,
    why: str,
    dimensions: Dimensions,
    machine: Machine,
    lora: LoraSettings,
    train: TrainSettings,
    tokens: int,
) -> HTML:
    weights = dimensions.linear_parameters + dimensions.embedding_parameters
    places = {f"{gpu}, on Colab": (limit, dtype, True) for gpu, (limit, dtype) in GPUS.items() if not _is(machine, gpu)}
    if machine.gpu:
        places = {f"{machine.gpu}, this machine": (machine.gpu_gib, dtype_name(machine)[0], True)} | places
    elif weights <= SMALL:
        places = {"CPU, this machine": (machine.ram_gib, dtype_name(machine, dimensions)[0], False)} | places
    lines = []
    for place, (limit, dtype, gpu) in places.items():
        plan = {"tokens": tokens, "dtype": dtype, "load_in_4bit": s.load_in_4bit, "gpu": gpu}
        gib, batch = memory_plan(dimensions, lora, train, **plan).sum(), largest_batch(dimensions, lora, train, limit, **plan)
        line = {"gpu": place, "here": "this machine" in place, "word": fits(gib, limit), "gib": gib, "limit": limit}
        lines.append(line | {"batch": f"{batch} or more" if batch == BATCHES[-1] else batch or "none"})
    size = f"{weights / 1e9:.1f} billion" if weights >= 0.95e9 else f"{weights / 1e6:.0f} million"
    only = TINY if machine.gpu is None and weights > SMALL else ""
    what = f"{task(train, tokens)}, LoRA of r={lora.r} on {lora.target_modules}"
    advice = [_not_tuned(name), _little_saved(s, dimensions, machine, lora, train, tokens)]
    return HTML(render(TEMPLATE, "model", s.model, name, why, size, _download(name), only, lines, what, filter(None, advice)))


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


def _not_tuned(name: str) -> str:
    if not (name.endswith("-pt") or (known_dimensions(name) and not name.endswith("-it"))):
        return ""
    return (
        f"{name} is pre-trained only: it continues texts and doesn't follow instructions yet. "
        "To start from one that does, take the model whose name ends in -it."
    )


def _little_saved(
    s: ModelSettings, dimensions: Dimensions, machine: Machine, lora: LoraSettings, train: TrainSettings, tokens: int
) -> str:
    """Advice for 16 bit where it fits, and 4 bit saves less than a tenth of the memory."""
    limit, dtype = (machine.gpu_gib, dtype_name(machine)[0]) if machine.gpu else GPUS["T4"]
    plans = [memory_plan(dimensions, lora, train, tokens=tokens, dtype=dtype, load_in_4bit=b) for b in (True, False)]
    (small, large), (total, total_16) = [p["weights"] for p in plans], [p.sum() for p in plans]
    little = dimensions.linear_parameters > SMALL and large - small < 0.1 * limit and fits(total_16, limit) == "fits"
    if not (s.load_in_4bit and little):
        return ""
    return (
        f"4 bit saves little here: the weights of the linear layers take {small:.2f} GiB in 4 bit and {large:.2f} GiB in "
        f"16 bit, of {total:.1f} and {total_16:.1f} GiB in all on a {machine.gpu or 'T4'}. "
        "16 bit is an option: nothing is rounded, nothing has to be unpacked."
    )
