"""Sliders over settings. The settings are the truth: a panel gives back exactly what was put in until a slider is moved.

Every slider is a `SelectionSlider` over a list of values that holds the given one, because `IntSlider` clamps silently and
`FloatLogSlider` turns 2e-4 into 1.995e-4. Only widgets that ipywidgets 7.7 (Colab) and 8 share are used.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display

from gemma_colab.errors import SettingsError
from gemma_colab.settings import LoraSettings, Settings, TrainSettings
from gemma_colab.ui.html import ENVIRONMENT

LORA_SLIDERS = {
    "r": ([1, 2, 4, 8, 16, 32, 64, 128], "rank: more can be learnt, more weights to train"),
    "lora_alpha": ([1, 2, 4, 8, 16, 32, 64, 128], "the update is scaled by lora_alpha / r"),
    "lora_dropout": ([0.0, 0.05, 0.1, 0.2], "against overfitting when rows are few"),
    "target_modules": (["attention", "all-linear"], "which layers get an adapter"),
}
TRAIN_SLIDERS = {
    "learning_rate": (
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2],
        "size of each step: too low learns nothing, too high destroys what is there",
    ),
    "per_device_train_batch_size": ([1, 2, 4, 8, 16, 32], "rows computed at once: memory"),
    "gradient_accumulation_steps": ([1, 2, 4, 8, 16], "batches added up before a step: a larger batch without the memory"),
    "num_train_epochs": ([0.5, 1, 2, 3, 5, 8, 10, 15, 20], "passes over the rows: too few learn little, too many learn by heart"),
}
_NOTE = ENVIRONMENT.from_string("<b>{{ text }}</b>")
_HINT = ENVIRONMENT.from_string('<span style="color:#666">{{ text }}</span>')


class SettingsPanel:
    """Sliders for some fields of a settings object. `settings` is the current value; `sliders` are the widgets by field name."""

    def __init__(self, settings: Settings, sliders: dict[str, tuple[list, str]], note: Callable[[Settings], str]):
        self.settings, self._note = settings, note
        self.sliders, lines = {}, []
        for field, (values, hint) in sliders.items():
            value = getattr(settings, field)
            options = values if value in values else sorted([*values, value], key=lambda v: (str(type(v)), v))
            slider = widgets.SelectionSlider(
                options=[(f"{v:g}" if isinstance(v, float) else str(v), v) for v in options],
                value=value,
                description=field,
                continuous_update=False,
                style={"description_width": "210px"},
                layout={"flex": "0 0 430px"},
            )
            slider.observe(lambda change, field=field: self._changed(field, change["new"]), names="value")
            self.sliders[field] = slider
            lines.append(widgets.HBox([slider, widgets.HTML(_HINT.render(text=hint))]))
        self.note = widgets.HTML(_NOTE.render(text=note(settings)))
        self.widget = widgets.VBox([*lines, self.note])

    def _changed(self, field: str, value) -> None:
        try:
            self.settings = self.settings.replace(**{field: value})
            text = self._note(self.settings)
        except SettingsError as e:
            text = str(e)
        self.note.value = _NOTE.render(text=text)

    def _ipython_display_(self):
        display(self.widget)


def lora_panel(settings: LoraSettings, note: Callable[[LoraSettings], str]) -> SettingsPanel:
    """Sliders for LoRA. note: settings -> the line below them, such as a count of trainable weights."""
    return SettingsPanel(settings, LORA_SLIDERS, note)


def train_panel(settings: TrainSettings, rows: int) -> SettingsPanel:
    """Sliders for learning rate, batch and epochs; below them the number of updates for `rows` training rows."""

    def note(s: TrainSettings) -> str:
        steps = max(1, round(s.steps_per_epoch(rows) * s.num_train_epochs))
        return f"effective batch {s.effective_batch}; {s.steps_per_epoch(rows)} steps an epoch, {steps} in all"

    return SettingsPanel(settings, TRAIN_SLIDERS, note)
