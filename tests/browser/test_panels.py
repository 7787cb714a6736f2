"""The panels in a real JupyterLab, moved by keyboard and mouse. Skipped, with the reason, where a part of it is missing.

SCREENSHOTS=docs pytest tests/browser/test_panels.py saves their pictures in docs/; use JupyterLab 4 for it.
"""

import pytest
from lab import nothing_sticks_out, opened, running_browser, running_lab, screenshot, shows, write_notebook

from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.model.memory import lora_parameters
from gemma_colab.ui.train_panel import presets

START = """
import dataclasses, json
from gemma_colab.core.catalog import CATALOG
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.ui import settings_panel
import pandas as pd

LENGTHS = pd.DataFrame({"total": [60 + 7 * i for i in range(150)], "answer": 40})
SHORT = pd.DataFrame({"total": [150] * 100, "answer": 40})

class Picky(LoraSettings):
    def __post_init__(self):
        super().__post_init__()
        if self.r > 16:
            raise SettingsError(f"r={self.r} is too much for <me>; try 16")

t4 = Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2)
plan = {"dimensions": CATALOG["google/gemma-3-4b-it"], "train": TrainSettings(), "tokens": 1024}
run = {"dimensions": CATALOG["google/gemma-3-4b-it"], "lora": LoraSettings()}
panels = {"model": [], "lora": [], "picky": [], "train": []}

def keep(name, panel):
    panels[name].append(panel)
    return panel
"""
ODD = LoraSettings(r=3, lora_alpha=7.5, lora_dropout=0.123, target_modules=r".*\.(q_proj|v_proj)")
RATE = TrainSettings(learning_rate=1.23e-4)
STRONG = RATE.replace(**presets(RATE)["strong"])
NAMES = ("model", "lora", "picky", "train")
MODEL, LORA, PICKY, TRAIN = 1, 2, 3, 4
CELLS = [
    START,
    "keep('model', settings_panel(ModelSettings(model='gemma-9'), t4))",
    f"keep('lora', settings_panel({ODD}, t4, **plan, dtype='float16'))",
    "keep('picky', settings_panel(Picky(r=16), t4, **plan))",
    f"keep('train', settings_panel({RATE}, t4, **run, start={RATE}, lengths=SHORT))",
    "print(json.dumps({name: [dataclasses.asdict(p.settings) for p in many] for name, many in panels.items()}))",
]
READ = len(CELLS) - 1
HANDLE = ".noUi-handle, .ui-slider-handle"  # of ipywidgets 8, and of 7


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with running_lab(folder) as url, running_browser() as browser:
        yield folder / "notebooks", url, browser


@pytest.fixture
def notebook(lab):
    folder, url, browser = lab
    write_notebook(folder / "panels.ipynb", CELLS)
    with opened(browser, url, "panels.ipynb", viewport={"width": 1100, "height": 1800}) as notebook:
        yield notebook


def line(output, field: str):
    """The control of one field, with its label and its value."""
    named = output.page.get_by_text(field, exact=True)
    return output.locator(".widget-hslider, .jupyter-widget-hslider, .widget-dropdown, .widget-checkbox").filter(has=named).first


def test_a_panel_gives_back_what_was_put_in_and_then_what_was_moved(notebook):
    model, lora = notebook.output(MODEL), notebook.output(LORA)
    shows(model, "No prediction: ?model='gemma-9' is not known")
    shows(lora, f"{lora_parameters(CATALOG['google/gemma-3-4b-it'], ODD):,}")
    shows(lora, r"scale lora_alpha / r = 7\.5 / 3 = 2\.5")
    first = notebook.read(READ)
    assert {name: len(panels) for name, panels in first.items()} == dict.fromkeys(NAMES, 1)
    assert LoraSettings(**first["lora"][0]) == ODD
    assert first["model"] == [{"model": "gemma-9", "load_in_4bit": True}]
    assert TrainSettings(**first["train"][0]) == RATE

    # A slider by keyboard, another by mouse, a box, a list.
    line(lora, "r").locator(HANDLE).focus()
    notebook.page.keyboard.press("ArrowRight")
    now = ODD.replace(r=4)
    shows(lora, f"{lora_parameters(CATALOG['google/gemma-3-4b-it'], now):,}")
    assert notebook.read(READ) == first | {"lora": [first["lora"][0] | {"r": 4}]}

    handle = line(lora, "lora_dropout").locator(HANDLE)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    notebook.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    notebook.page.mouse.down()
    notebook.page.mouse.move(box["x"] + 400, box["y"] + box["height"] / 2, steps=5)
    notebook.page.mouse.up()
    shows(line(lora, "lora_dropout"), "^0.2$")
    line(lora, "use_rslora").locator("input").check()
    shows(lora, r"scale lora_alpha / √r = 7\.5 / √4 = 3\.75")
    line(lora, "target_modules").locator("select").select_option("attention")
    now = now.replace(lora_dropout=0.2, use_rslora=True, target_modules="attention")
    shows(lora, f"{lora_parameters(CATALOG['google/gemma-3-4b-it'], now):,}")
    line(model, "model").locator("select").select_option("google/gemma-3-12b-it")
    shows(model, "22.7 GiB to download")
    second = notebook.read(READ)
    assert LoraSettings(**second["lora"][0]) == now
    assert second["model"] == [{"model": "google/gemma-3-12b-it", "load_in_4bit": True}]
    assert (second["picky"], second["train"]) == (first["picky"], first["train"])

    # The cell once more: one new panel with what is put in; the old one keeps what it had.
    notebook.run(LORA)
    shows(lora, r"scale lora_alpha / r = 7\.5 / 3 = 2\.5")
    assert lora.count() == 1
    assert lora.locator(HANDLE).count() == 3
    line(lora, "r").locator(HANDLE).focus()
    notebook.page.keyboard.press("ArrowLeft")
    shows(lora, f"{lora_parameters(CATALOG['google/gemma-3-4b-it'], ODD.replace(r=2)):,}")
    third = notebook.read(READ)
    assert [LoraSettings(**s) for s in third["lora"]] == [now, ODD.replace(r=2)]

    # What is impossible is said, and the slider goes back.
    picky = notebook.output(PICKY)
    line(picky, "r").locator(HANDLE).focus()
    notebook.page.keyboard.press("ArrowRight")
    shows(picky, "Not possible: ?r=32 is too much for <me>; try 16")
    shows(line(picky, "r"), "^16$")
    assert notebook.read(READ) == third


def test_a_preset_sets_two_sliders_and_what_is_folded_can_be_moved(notebook):
    train = notebook.output(TRAIN)
    steps = 13 * 3
    shows(train, f"13 steps an epoch, {steps} in all")
    assert buttons(train) == ["normal"]
    train.get_by_text("strong", exact=True).click()
    shows(line(train, "num_train_epochs"), "^5$")
    assert buttons(train) == ["strong"]
    assert TrainSettings(**notebook.read(READ)["train"][0]) == STRONG

    line(train, "num_train_epochs").locator(HANDLE).focus()
    notebook.page.keyboard.press("ArrowLeft")
    shows(line(train, "num_train_epochs"), "^4$")
    shows(train, "13 steps an epoch, 52 in all")
    assert buttons(train) == []

    assert not line(train, "packing").is_visible()
    train.get_by_text("15 more settings").click()
    line(train, "packing").locator("input").check()
    shows(train, "packed sequences, about 53 rows")
    shows(line(train, "neftune_noise_alpha"), "^off$")
    line(train, "neftune_noise_alpha").locator(HANDLE).focus()
    notebook.page.keyboard.press("ArrowRight")
    shows(line(train, "neftune_noise_alpha"), "^1$")
    line(train, "lr_scheduler_type").locator("select").select_option("cosine")
    now = STRONG.replace(num_train_epochs=4, packing=True, neftune_noise_alpha=1.0, lr_scheduler_type="cosine")
    assert TrainSettings(**notebook.read(READ)["train"][0]) == now


def buttons(output) -> list[str]:
    """The preset that is marked, if one is."""
    return output.locator(".widget-toggle-button.mod-active").all_inner_texts()


PICTURES = {
    "model_panel": "settings_panel(ModelSettings(model='google/gemma-3-4b-it'), t4)",
    "lora_panel": "settings_panel(LoraSettings(), t4, **plan, dtype='float16')",
    "train_panel": "settings_panel(TrainSettings(), t4, **run, start=TrainSettings(), lengths=LENGTHS, seconds_per_step=2.5)",
}


def test_the_panels_are_wide_enough_for_what_they_say(lab, tmp_path):
    folder, url, browser = lab
    write_notebook(folder / "pictures.ipynb", [START, *PICTURES.values()])
    view = {"viewport": {"width": 1100, "height": 1800}, "device_scale_factor": 2}
    with opened(browser, url, "pictures.ipynb", **view) as notebook:
        for cell, name in enumerate(PICTURES, 1):
            panel = notebook.output(cell).locator(".widget-vbox").first
            shows(panel, "15 % free")
            assert panel.bounding_box()["width"] == 900
            assert nothing_sticks_out(panel)
            screenshot(panel, name, tmp_path)
