"""A panel gives back exactly what was put in, changes one setting at a time, and says what the formulas say.

tests/browser/test_panels.py moves the same panels in JupyterLab.
"""

import re
import subprocess
import sys
from html import unescape

import pytest

from gemma_colab.core.catalog import CATALOG, TINY, shape_of
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.machine import Machine, readable
from gemma_colab.core.parameters import lora_parameters
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings, starting_point
from gemma_colab.core.sliders import OFF
from gemma_colab.model.memory import memory_plan
from gemma_colab.model.planner import ladder, largest_batch, light
from gemma_colab.ui.panels import lora_panel, model_panel
from gemma_colab.ui.train_panel import train_panel

CPU = Machine(False, None, None, 0.0, 12.7, 60.0, 2)
T4 = Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2)
L40S = Machine(False, "NVIDIA L40S", (8, 9), 44.4, 200.0, 900.0, 32)
A100_80 = Machine(False, "NVIDIA A100-SXM4-80GB", (8, 0), 79.3, 200.0, 900.0, 32)
FOUR = CATALOG["google/gemma-3-4b-it"]
ODD = LoraSettings(r=3, lora_alpha=7.5, lora_dropout=0.123, target_modules=r".*\.(q_proj|v_proj)", use_dora=True)
EVIL = "</option></div><script>alert(1)</script>"


def a_lora_panel(settings, machine=T4, shape=FOUR, train=TrainSettings(), tokens=1024, **plan):  # noqa: B008
    return lora_panel(settings, shape, machine, train=train, tokens=tokens, **plan)


def a_train_panel(settings):
    return train_panel(settings, [40, 300, 1500] * 30, shape=FOUR, machine=T4, lora=LoraSettings())


PANELS = {
    "lora": (LoraSettings(), a_lora_panel),
    "lora, odd": (ODD, a_lora_panel),
    "lora, other types": (LoraSettings(lora_alpha=16.0, lora_dropout=0), a_lora_panel),
    "train": (TrainSettings(), a_train_panel),
    "train, odd": (
        TrainSettings(
            learning_rate=1.0000001e-4,
            per_device_train_batch_size=99,
            num_train_epochs=0.7,
            gradient_accumulation_steps=7,
            neftune_noise_alpha=3.3,
            save_minutes=0.021,
            seed=2**32 - 1,
        ),
        a_train_panel,
    ),
    "model": (ModelSettings(model="google/gemma-3-1b-it", load_in_4bit=False), lambda s: model_panel(s, CPU)),
    "model, unknown": (ModelSettings(model="gemma-9"), lambda s: model_panel(s, T4)),
    "model, auto": (ModelSettings(model="auto"), lambda s: model_panel(s, T4)),
}


def plain(markup: str) -> str:
    return " ".join(unescape(re.sub("<[^>]+>", "", markup)).split())


def text_of(panel) -> str:
    """What the panel says below its controls, without markup."""
    return plain(panel.note.value)


@pytest.mark.parametrize(("settings", "make"), PANELS.values(), ids=PANELS)
def test_a_panel_gives_back_exactly_what_was_put_in(settings, make):
    panel = make(settings)
    assert panel.settings is settings
    for field, control in panel.controls.items():  # the widget shows that value too, neither clamped nor rounded
        assert (_value(control), type(_value(control))) == (getattr(settings, field), type(getattr(settings, field)))
        assert control.description == field
        if isinstance(control.value, float):
            assert float(control.options[control.index][0]) == control.value  # what one reads, in full


@pytest.mark.parametrize(("settings", "make"), PANELS.values(), ids=PANELS)
def test_moving_a_control_changes_that_setting_alone(settings, make):
    panel = make(settings)
    for field, control in panel.controls.items():
        put_in = control.value
        values = [value for _, value in _options(control)]
        assert len(values) > 1
        for value in [v for v in values if v != put_in]:
            control.value = value
            assert panel.settings == settings.replace(**{field: _value(control)})
            assert panel.note.value == make(panel.settings).note.value  # what it says follows
        control.value = put_in  # still on offer
        assert repr(panel.settings) == repr(settings)


def _value(control):
    return None if control.value is OFF else control.value


def _options(control):
    if not hasattr(control, "options"):
        return [("", True), ("", False)]
    return [o if isinstance(o, tuple) else (o, o) for o in control.options]


def test_what_the_lists_offer():
    assert list(model_panel(ModelSettings(), CPU).controls["model"].options) == [TINY, *CATALOG]
    assert model_panel(ModelSettings(model="me9"), T4).controls["model"].options[-1] == "me9"
    assert list(a_lora_panel(LoraSettings()).controls["target_modules"].options) == ["all-linear", "attention"]
    assert list(a_lora_panel(ODD).controls["target_modules"].options) == ["all-linear", "attention", ODD.target_modules]


def test_two_panels_of_one_cell_don_t_share_anything():
    one, two = a_lora_panel(LoraSettings()), a_lora_panel(LoraSettings())
    one.controls["r"].value = 64
    two.controls["use_dora"].value = True
    assert (one.settings, two.settings) == (LoraSettings(r=64), LoraSettings(use_dora=True))
    assert one.note.value != two.note.value


class Picky(LoraSettings):
    def __post_init__(self):
        super().__post_init__()
        if self.r > 16 and self.use_dora:
            raise SettingsError(f"r={self.r} with use_dora is too much for <me>; try r=16")


def test_an_impossible_combination_is_said_and_the_last_good_settings_stay():
    panel = a_lora_panel(Picky(use_dora=True))
    good = text_of(panel)
    panel.controls["r"].value = 32
    assert panel.settings == Picky(use_dora=True)
    assert panel.controls["r"].value == 16  # the view goes back as well
    assert text_of(panel).startswith("Not possible: r=32 with use_dora is too much for <me>; try r=16")
    assert text_of(panel).endswith(good)
    panel.controls["use_dora"].value = False
    panel.controls["r"].value = 32
    assert panel.settings == Picky(r=32)
    assert "Not possible" not in text_of(panel)


# --------------------------------------------------------------------------------------------- LoRA
@pytest.mark.parametrize("settings", [LoraSettings(), ODD, LoraSettings(r=64, use_rslora=True, target_modules="attention")])
@pytest.mark.parametrize("plan", [{}, {"load_in_4bit": False, "activation_factor": 1.1}])
def test_the_lora_panel_says_what_the_formulas_say(settings, plan):
    text = text_of(a_lora_panel(settings, **plan))
    count = lora_parameters(FOUR, settings)
    total = count + FOUR.linear_parameters + FOUR.embedding_parameters
    assert f"{count:,} trainable weights, {100 * count / total:.2f} % of the model" in text
    assert f"= {settings.scale:.4g} ● " in text
    parts = memory_plan(FOUR, settings, TrainSettings(), tokens=1024, dtype="float16", **plan)
    assert f"{parts.sum():.2f} of 14.74 GiB predicted, {abs(14.74 - parts.sum()):.2f} GiB" in text
    for name, gib in parts.items():
        assert f"{name} {readable(gib)}" in text
    assert "batches of 4 rows of 1,024 tokens" in text


def test_the_bar_is_as_long_as_its_parts():
    for train in (TrainSettings(), TrainSettings(gradient_checkpointing=False, per_device_train_batch_size=64)):
        shown = a_lora_panel(LoraSettings(), train=train).note.value
        total = memory_plan(FOUR, LoraSettings(), train, tokens=1024, dtype="float16").sum()
        widths = [float(w) for w in re.findall(r"flex:0 0 ([\d.]+)%", shown)]
        assert len(widths) == 8
        assert sum(widths) == pytest.approx(100 * total / max(total, 14.74), abs=0.05)
        limit = float(re.search(r"calc\(([\d.]+)%", shown)[1])  # where the device's memory ends
        assert limit == pytest.approx(100 * 14.74 / max(total, 14.74), abs=0.05)


def a_gpu(gib: float) -> Machine:
    return Machine(False, "Made-up", (7, 5), gib, 12.7, 60.0, 2)


def test_what_does_not_fit_is_said_with_what_to_change_first():
    fits = text_of(a_lora_panel(LoraSettings()))
    assert "● fits: " in fits
    assert "GiB left" in fits
    assert "hange first" not in fits
    assert "To have" not in fits
    large = TrainSettings(gradient_checkpointing=False, per_device_train_batch_size=16)
    rungs = ladder(FOUR, LoraSettings(), large, 14.74, tokens=1024, dtype="float16")
    text, more = text_of(a_lora_panel(LoraSettings(), train=large)), len(rungs) - 2
    assert "● no: " in text
    assert "GiB too much" in text
    assert f"Change first: {rungs['change'][1]}. That makes {rungs['GiB'][1]:.1f} GiB: {rungs['fits'][1]}." in text
    assert (f"{more} more such change" in text) == (more > 0)
    assert "Change first: a smaller model, or a larger GPU. With all that" in text_of(a_lora_panel(LoraSettings(), a_gpu(3)))
    as_it_is = memory_plan(FOUR, LoraSettings(), TrainSettings(), tokens=1024, dtype="float16").sum()
    tight = text_of(a_lora_panel(LoraSettings(), a_gpu(as_it_is * 1.05)))
    assert "● tight: " in tight
    assert "To have 15 % free: per_device_train_batch_size=2" in tight


def test_a_remedy_that_saves_nothing_is_passed_over():
    small = LoraSettings(r=1, target_modules=r".*\.q_proj")  # so few weights that Adam in 8 bit saves next to nothing
    train = TrainSettings(per_device_train_batch_size=1, max_length=4096)
    limit = memory_plan(FOUR, small, train, tokens=4096, dtype="float16").sum()
    assert ladder(FOUR, small, train, limit, tokens=4096, dtype="float16")["change"][1].startswith("optim")
    assert "To have 15 % free: max_length=2048" in text_of(a_lora_panel(small, a_gpu(limit), train=train, tokens=4096))


def test_without_a_gpu_the_cpu_s_memory_is_the_limit():
    lora, train = starting_point(TINY)
    text = text_of(a_lora_panel(lora, CPU, shape_of(TINY), train=train, tokens=300))
    parts = memory_plan(shape_of(TINY), lora, train, tokens=300, dtype="float32", gpu=False)
    assert f"{parts.sum():.2f} of 12.70 GiB" in text
    assert "overhead" not in text
    assert f"weights {1024 * parts['weights']:.1f} MiB" in text
    assert f"(the bar shows {100 * parts.sum() / 12.7:.1f} % of this machine's memory)" in text or parts.sum() >= 12.7 / 20


# --------------------------------------------------------------------------------------------- models
def rows_of(panel) -> list[list[str]]:
    rows = re.findall(r"<tr.*?</tr>", panel.note.value, flags=re.DOTALL)[1:]
    cells = [re.findall(r"<td.*?</td>", row, flags=re.DOTALL) for row in rows]
    return [[plain(cell) for cell in row] for row in cells]


def test_a_line_for_each_gpu_says_what_the_planner_says():
    lora, train = LoraSettings(r=8), TrainSettings(per_device_train_batch_size=2)
    panel = model_panel(ModelSettings(model="google/gemma-3-12b-it"), T4, lora=lora, train=train, tokens=800)
    shape, lines = CATALOG["google/gemma-3-12b-it"], rows_of(panel)
    assert [line[0] for line in lines] == ["Tesla T4, this machine", "L4, on Colab", "A100, on Colab"]
    for load_in_4bit in (True, False):
        panel.controls["load_in_4bit"].value = load_in_4bit
        expected = []
        for limit, dtype in [(14.74, "float16"), (22.16, "bfloat16"), (39.4, "bfloat16")]:
            plan = {"tokens": 800, "dtype": dtype, "load_in_4bit": load_in_4bit}
            gib, batch = memory_plan(shape, lora, train, **plan).sum(), largest_batch(shape, lora, train, limit, **plan)
            expected.append([f"● {light(gib, limit)}", f"{gib:.1f} of {limit:.1f} GiB", str(batch or "none")])
        assert [line[1:] for line in rows_of(panel)] == expected
    assert expected[0][0] == "● no"
    assert "batches of 2 rows of 800 tokens, LoRA of r=8 on all-linear" in text_of(panel)


@pytest.mark.parametrize(
    ("machine", "places"),
    [
        (CPU, ["T4, on Colab", "L4, on Colab", "A100, on Colab"]),
        (L40S, ["NVIDIA L40S, this machine", "T4, on Colab", "L4, on Colab", "A100, on Colab"]),
        (A100_80, ["NVIDIA A100-SXM4-80GB, this machine", "T4, on Colab", "L4, on Colab", "A100, on Colab"]),
    ],
)
def test_this_machine_s_gpu_comes_first_and_none_twice(machine, places):
    panel = model_panel(ModelSettings(model="google/gemma-3-4b-it"), machine)
    assert [line[0] for line in rows_of(panel)] == places
    assert ("on a CPU only tiny-gemma3 is sensible" in text_of(panel)) == (machine is CPU)


def test_the_tiny_one_has_a_line_for_the_cpu():
    panel = model_panel(ModelSettings(), CPU)
    assert rows_of(panel)[0][:2] == ["CPU, this machine", "● fits"]
    assert "No GPU" not in text_of(panel)
    assert "nothing to download" in text_of(panel)
    assert "batches of 8 rows of 512 tokens, LoRA of r=32" in text_of(panel)  # its own starting point


def test_download_and_weights(monkeypatch):
    monkeypatch.setattr("gemma_colab.ui.panels.free_gib", lambda path: 60.0)
    assert "3.9 billion weights · 8.0 GiB to download, 60 GiB free here" in text_of(
        model_panel(ModelSettings(model="google/gemma-3-4b-it"), T4)
    )
    monkeypatch.setattr("gemma_colab.ui.panels.cached_gib", lambda name: 8.0)
    assert "already downloaded" in text_of(model_panel(ModelSettings(model="google/gemma-3-4b-it"), T4))


def test_16_bit_is_advised_where_4_bit_saves_little():
    advised = {name: "16 bit is an option" in text_of(model_panel(ModelSettings(model=name), T4)) for name in [TINY, *CATALOG]}
    assert {name for name, yes in advised.items() if yes} == {name for name in CATALOG if "270m" in name or "1b" in name}
    text = text_of(model_panel(ModelSettings(model="google/gemma-3-1b-it"), CPU))
    plans = [
        memory_plan(
            CATALOG["google/gemma-3-1b-it"], LoraSettings(), TrainSettings(), tokens=1024, dtype="float16", load_in_4bit=b
        )
        for b in (True, False)
    ]
    assert f"take {plans[0].weights:.2f} GiB in 4 bit and {plans[1].weights:.2f} GiB in 16 bit" in text
    assert f"of {plans[0].sum():.1f} and {plans[1].sum():.1f} GiB in all on a T4" in text
    panel = model_panel(ModelSettings(model="google/gemma-3-1b-it", load_in_4bit=False), T4)
    assert "is an option" not in text_of(panel)


def test_untuned_models_are_called_so():
    for name in CATALOG:
        said = "doesn't follow instructions yet" in text_of(model_panel(ModelSettings(model=name), T4))
        assert said == (not name.endswith("-it")), name


def test_a_model_that_can_t_be_read_is_one_sentence_and_stays_chosen(tmp_path, random_gemma):
    (tmp_path / "config.json").write_text("{")
    for name, sentence in {
        "somebody/gemma-3-own": "somebody/gemma-3-own can't be downloaded",  # offline
        "gemma-9": "model='gemma-9' is not known",
        str(tmp_path): f"{tmp_path}/config.json can't be read as a model's config",
    }.items():
        panel = model_panel(ModelSettings(model=name), CPU)
        assert f"No prediction: {sentence}" in text_of(panel)
        assert panel.settings == ModelSettings(model=name)
        panel.controls["load_in_4bit"].value = False
        assert panel.settings == ModelSettings(model=name, load_in_4bit=False)
        panel.controls["model"].value = TINY
        assert "No prediction" not in text_of(panel)
        panel.controls["model"].value = name
        assert f"No prediction: {sentence}" in text_of(panel)
    own = model_panel(ModelSettings(model=random_gemma), CPU)
    assert rows_of(own)[0][0] == "CPU, this machine"
    assert f"{random_gemma} · 1 million weights · nothing to download" in text_of(own)


def test_auto_says_what_was_chosen_and_why(monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_MODEL")
    monkeypatch.setattr("gemma_colab.core.catalog.packaged_here", lambda: False)
    panel = model_panel(ModelSettings(model="auto"), T4)
    assert "auto: google/gemma-3-1b-it, because Tesla T4 with 14.74 GiB" in text_of(panel)
    assert panel.settings.model == "auto"


def test_names_are_escaped():
    for panel in (
        model_panel(ModelSettings(model=EVIL), T4),
        model_panel(ModelSettings(), Machine(False, EVIL, (7, 5), 14.74, 12.7, 60.0, 2)),
        a_lora_panel(LoraSettings(), Machine(False, EVIL, (7, 5), 14.74, 12.7, 60.0, 2)),
    ):
        assert "<script>" not in panel.note.value
        assert "&lt;script&gt;" in panel.note.value


def test_panels_start_without_torch():
    code = """
import sys
from gemma_colab.core.catalog import shape_of
from gemma_colab.core.machine import Machine, readable
from gemma_colab.core.settings import *
from gemma_colab.ui.panels import *
from gemma_colab.ui.train_panel import train_panel
cpu = Machine(False, None, None, 0.0, 12.7, 60.0, 2)
shape = shape_of("tiny-gemma3")
model_panel(ModelSettings(), cpu), train_panel(TrainSettings(), [100], shape=shape, machine=cpu, lora=LoraSettings())
lora_panel(LoraSettings(), shape, cpu, train=TrainSettings(), tokens=300)
sys.exit(" ".join({"torch", "transformers"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
