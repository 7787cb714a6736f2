"""Settings on sliders, with what they come to below: which model, LoRA, and (in `train_panel.py`) training. Nothing needs torch."""

from huggingface_hub import constants
from IPython.display import HTML

from gemma_colab.core.catalog import CATALOG, TINY, Dimensions, dimensions_of, known_dimensions
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.html import render
from gemma_colab.core.machine import Machine, dtype_name, free_gib
from gemma_colab.core.settings import LoraSettings, ModelSettings, Settings, TrainSettings
from gemma_colab.core.sliders import Controls, SettingsPanel
from gemma_colab.model.choice import TEXT_ONLY, pick_model, sees_images, starting_point
from gemma_colab.model.lent import describe_machine
from gemma_colab.model.memory import lora_parameters, memory_plan
from gemma_colab.model.planner import BATCHES, GPUS, download_gib, fits, largest_batch
from gemma_colab.model.preflight import cached_gib
from gemma_colab.ui.train_panel import memory_note, task, train_panel

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
    """Show controls for settings, and below them what they come to. `panel.settings` is what they are set to.

    machine: for which memory is predicted; this one if left out. about: what else the prediction needs, by the kind of settings.

    - `ModelSettings`: nothing, or lora, train and tokens (length of the longest row) to predict for. Below: whether each model can
      be trained on this machine, and on the GPUs that Colab lends.
    - `LoraSettings`: dimensions, train, tokens. Below: trainable weights, scale, memory.
    - `TrainSettings`: dimensions, lora, lengths (of `token_lengths` for the training rows); seconds_per_step, measured with these
      settings; start, what the presets start from (without it there are none). Below: steps, tokens, the learning rate, time, memory.

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

    def note(s: ModelSettings) -> HTML:
        name, why = pick_model(s.model, machine)
        dimensions, start = dimensions_of(name), starting_point(name)
        adapter, training = lora or start[0], train or start[1]
        weights = dimensions.linear_parameters + dimensions.embedding_parameters
        lines = []
        for place, (limit, dtype, gpu) in _places(machine, dimensions, small=weights <= SMALL).items():
            plan = {"tokens": tokens, "dtype": dtype, "gpu": gpu}
            in_4, in_16 = (memory_plan(dimensions, adapter, training, load_in_4bit=b, **plan) for b in (True, False))
            gib = (in_4 if s.load_in_4bit else in_16).sum()
            batch = largest_batch(dimensions, adapter, training, limit, load_in_4bit=s.load_in_4bit, **plan)
            line = {"place": place, "here": "this machine" in place, "word": fits(gib, limit), "gib": gib, "limit": limit}
            line["batch"] = f"{batch} or more" if batch == BATCHES[-1] else batch or "none"
            little = in_16["weights"] - in_4["weights"] < 0.1 * limit and fits(in_16.sum(), limit) == "fits"
            lines.append(line | {"in_4": in_4, "in_16": in_16, "little": little})
        size = f"{weights / 1e9:.1f} billion" if weights >= 0.95e9 else f"{weights / 1e6:.0f} million"
        about = {"asked": s.model, "name": name, "why": why if name != s.model else "", "size": size, "download": _download(name)}
        about |= {"lines": lines, "task": f"{task(training, tokens)}, LoRA of r={adapter.r} on {adapter.target_modules}"}
        about["only"] = TINY if machine.gpu is None and weights > SMALL else ""
        about["untuned"] = name.endswith("-pt") or (known_dimensions(name) and not name.endswith("-it"))
        about["images"] = f"{name} {TEXT_ONLY}." if sees_images(name) else ""
        about["little"] = lines[0]["little"] and s.load_in_4bit and weights > SMALL
        return HTML(render(TEMPLATE, "model", **about))

    return SettingsPanel(settings, MODEL_CONTROLS, note)


def _places(machine: Machine, dimensions: Dimensions, small: bool) -> dict[str, tuple[float, str, bool]]:
    """Where it could be trained -> (GiB, dtype, whether on a GPU): this machine, and each GPU of Colab that it doesn't have."""
    own = machine.gpu or ""
    lent = {
        f"{gpu}, on Colab": (limit, dtype, True)
        for gpu, (limit, dtype) in GPUS.items()
        if not (gpu in own and abs(machine.gpu_gib / limit - 1) < 0.1)  # an A100 with 80 GB is another one
    }
    if own:
        return {f"{own}, this machine": (machine.gpu_gib, dtype_name(machine)[0], True)} | lent
    return ({"CPU, this machine": (machine.ram_gib, dtype_name(machine, dimensions)[0], False)} if small else {}) | lent


def _download(name: str) -> str:
    size = download_gib(name)
    if not size:
        return "nothing to download" if size == 0 else "size of the download not known"
    if cached_gib(name) > 0.98 * size:
        return "already downloaded"
    return f"{size:.1f} GiB to download, {free_gib(constants.HF_HUB_CACHE):.0f} GiB free here"
