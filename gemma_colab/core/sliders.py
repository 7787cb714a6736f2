"""Controls over settings. The settings are the truth: a panel gives back exactly what was put in until a control is moved.

Every number has a `SelectionSlider` over a list of values that holds the given one, because `IntSlider` clamps silently and
`FloatLogSlider` turns 2e-4 into 1.995e-4. Only widgets that ipywidgets 7.7 (Colab) and 8 share are used; every text is escaped.
"""

import dataclasses
from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import HTML, display

from gemma_colab.core.errors import GemmaColabError, SettingsError
from gemma_colab.core.html import render
from gemma_colab.core.settings import Settings

# field -> (values, what it does). Numbers get a slider, on which None is "off"; texts and {label: value} a list; None a box to tick.
Controls = dict[str, tuple[list | dict | None, str]]
OFF = object()  # in place of None, which a slider can't hold


def _control(field: str, values: list | dict | None, value, width: int) -> widgets.Widget:
    """The widget for one field, standing on `value`, which joins `values` where it is missing."""
    layout = {"flex": "0 0 auto", "width": f"{width + 240}px", "margin": "2px"}
    named = {"description": field, "style": {"description_width": f"{width}px"}, "layout": layout}
    if values is None:
        return widgets.Checkbox(value=value, **named)
    if isinstance(values, dict):
        return widgets.Dropdown(options=list(values.items()), value=value, **named)
    if isinstance(value, str):
        return widgets.Dropdown(options=list(dict.fromkeys([*values, value])), value=value, **named)
    numbers = sorted({value, *values} - {None})  # of equal ones, 16 and 16.0, the given one stays
    options = [("off", OFF)] * (None in values) + [(str(v).removesuffix(".0"), v) for v in numbers]  # in full, not rounded
    return widgets.SelectionSlider(options=options, value=OFF if value is None else value, continuous_update=False, **named)


def _line(control: widgets.Widget, hint: str) -> widgets.HBox:
    text = widgets.HTML(render("core/panel", "hint", hint), layout={"flex": "1 1 240px", "margin": "2px 2px 2px 12px"})
    return widgets.HBox([control, text], layout={"flex_flow": "row wrap", "align_items": "center"})


class SettingsPanel:
    """Controls for some fields of a settings object. `settings` is the current value; `controls` are the widgets by field name.

    note: settings -> what is shown below the controls, `HTML`. An impossible value is answered with its sentence, and the control
    goes back to the last good one. folded: more controls, in `fold`, which is closed at first. presets: name -> {field: value}, a
    button each in `presets` that sets several controls at once; such a value must be on its control. presets_hint: what they do.
    """

    def __init__(
        self,
        settings: Settings,
        controls: Controls,
        note: Callable[[Settings], HTML],
        *,
        folded: Controls | None = None,
        presets: dict[str, dict] | None = None,
        presets_hint: str = "",
    ):
        folded, presets = folded or {}, presets or {}
        self.settings, self._note, self._presets = settings, note, presets
        self.controls, lines = {}, []
        width = 8 * max(map(len, controls | folded))
        for field, (values, hint) in (controls | folded).items():
            self.controls[field] = control = _control(field, values, getattr(settings, field), width)
            control.observe(self._moved, names="value")
            lines.append(_line(control, hint))
        # Without a description: ipywidgets 8 puts it above the buttons, 7 beside them.
        self.presets = widgets.ToggleButtons(options=list(presets), value=None)
        self.presets.style = {"button_width": f"{(width + 240) // max(1, len(presets)) - 24}px"}
        self.presets.layout = {"flex": "0 0 auto", "width": f"{width + 240}px", "margin": "2px"}
        self.presets.observe(lambda change: self._set(presets.get(change["new"], {})), names="value")
        self.fold = widgets.Accordion([widgets.VBox(lines[len(controls) :])], selected_index=None, layout={"margin": "6px 0 0"})
        self.fold.set_title(0, f"{len(folded)} more settings")  # an argument `titles` is unknown to ipywidgets 7
        self.note = widgets.HTML()
        shown = [_line(self.presets, presets_hint)] * bool(presets) + lines[: len(controls)] + [self.fold] * bool(folded)
        self.widget = widgets.VBox([*shown, self.note], layout={"max_width": "900px", "padding": "6px"})
        self._show()

    def _moved(self, change) -> None:
        self._set({change["owner"].description: None if change["new"] is OFF else change["new"]})

    def _set(self, changes: dict) -> None:
        if all(getattr(self.settings, field) == value for field, value in changes.items()):  # as `_show` sets them
            return
        try:
            self.settings, error = self.settings.replace(**changes), ""
        except SettingsError as e:
            error = str(e)
        self._show(error)

    def _show(self, error: str = "") -> None:
        """Set the controls to the settings, mark the preset that they are, if they are one, and say what they come to."""
        current = dataclasses.asdict(self.settings)
        for field, control in self.controls.items():
            control.value = OFF if current[field] is None else current[field]
        self.presets.value = next((name for name, changes in self._presets.items() if changes.items() <= current.items()), None)
        what, text = "Not possible", ""
        try:
            text = self._note(self.settings)
        except GemmaColabError as e:  # raised in a click it would only reach the log
            what, error = (what, error) if error else ("No prediction", str(e))
        self.note.value = render("core/panel", "note", what, error, text)

    def _ipython_display_(self):
        display(self.widget)
