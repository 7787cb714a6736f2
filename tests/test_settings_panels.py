"""A panel gives back exactly what was put in, changes one setting at a time, and says what the formulas say.

tests/browser/test_panels.py moves the same panels in JupyterLab.
"""

import re
import subprocess
import sys
from html import unescape

import ipywidgets as widgets
import pandas as pd
import pytest

from gemma_colab.core.catalog import CATALOG, TINY, dimensions_of
from gemma_colab.core.errors import SettingsError
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import LoraSettings, ModelSettings, TrainSettings
from gemma_colab.core.sliders import OFF, SettingsPanel, _control
from gemma_colab.data.splitting import SplitSettings
from gemma_colab.model.choice import starting_point
from gemma_colab.model.memory import lora_parameters, memory_plan, readable
from gemma_colab.model.planner import fits, largest_batch, plan_training
from gemma_colab.ui import settings_panel

CPU = Machine(False, None, None, 0.0, 12.7, 60.0, 2)
T4 = Machine(True, "Tesla T4", (7, 5), 14.74, 12.7, 60.0, 2)
L40S = Machine(False, "NVIDIA L40S", (8, 9), 44.4, 200.0, 900.0, 32)
A100_80 = Machine(False, "NVIDIA A100-SXM4-80GB", (8, 0), 79.3, 200.0, 900.0, 32)
FOUR = CATALOG["google/gemma-3-4b-it"]
ODD = LoraSettings(r=3, lora_alpha=7.5, lora_dropout=0.123, target_modules=r".*\.(q_proj|v_proj)", use_dora=True)
EVIL = "</option></div><script>alert(1)</script>"


def a_panel(settings, machine=T4, dimensions=FOUR, **more):
    if isinstance(settings, LoraSettings):
        more = {"dimensions": dimensions, "train": TrainSettings(), "tokens": 1024} | more
    if isinstance(settings, TrainSettings):
        more = {"dimensions": dimensions, "lora": LoraSettings(), "lengths": token_table([40, 300, 1500] * 30)} | more
    return settings_panel(settings, machine, **more)


def token_table(total, answer=1):
    return pd.DataFrame({"total": total, "answer": answer})


ODD_TRAIN = TrainSettings(
    learning_rate=1.0000001e-4,
    per_device_train_batch_size=3,
    gradient_accumulation_steps=7,
    num_train_epochs=0.7,
    lr_scheduler_type="constant_with_warmup",
    warmup_steps=1,
    weight_decay=0.0123,
    max_grad_norm=0.77,
    max_length=333,
    packing=True,
    gradient_checkpointing=False,
    optim="paged_adamw_8bit",
    neftune_noise_alpha=3.3,
    seed=2**32 - 1,
    evals_per_epoch=7,
    save_minutes=0.021,
    early_stopping_patience=99,
)
PANELS = {
    "lora": LoraSettings(),
    "lora, odd": ODD,
    "lora, other types": LoraSettings(lora_alpha=16.0, lora_dropout=0),
    "train": TrainSettings(),
    "train, odd": ODD_TRAIN,
    "model": ModelSettings(model="google/gemma-3-1b-it", load_in_4bit=False),
    "model, unknown": ModelSettings(model="gemma-9"),
    "model, auto": ModelSettings(model="auto"),
}


def plain(markup: str) -> str:
    return (
        " ".join(unescape(re.sub("<[^>]+>", " ", str(markup))).split()).replace(" :", ":").replace(" .", ".").replace(" ,", ",")
    )


def text_of(panel) -> str:
    """What the panel says below its controls, without markup."""
    return plain(panel.note.value)


def _value(control):
    return None if control.value is OFF else control.value


def _options(control):
    if not hasattr(control, "options"):
        return [True, False]
    return [o[1] if isinstance(o, tuple) else o for o in control.options]


@pytest.mark.parametrize("settings", PANELS.values(), ids=PANELS)
def test_a_panel_gives_back_exactly_what_was_put_in(settings):
    panel = a_panel(settings)
    assert panel.settings is settings
    for field, control in panel.controls.items():  # the widget shows that value too, neither clamped nor rounded
        assert (_value(control), type(_value(control))) == (getattr(settings, field), type(getattr(settings, field)))
        assert control.description == field
        if isinstance(control.value, float):
            assert float(control.options[control.index][0]) == control.value  # what one reads, in full


@pytest.mark.parametrize("settings", PANELS.values(), ids=PANELS)
def test_moving_a_control_changes_that_setting_alone(settings):
    panel = a_panel(settings)
    for field, control in panel.controls.items():
        put_in, values = control.value, _options(control)
        assert len(values) > 1
        for value in [v for v in values if v != put_in]:
            control.value = value
            assert panel.settings == settings.replace(**{field: _value(control)})
            assert panel.note.value == a_panel(panel.settings).note.value  # what it says follows
        control.value = put_in  # still on offer
        assert repr(panel.settings) == repr(settings)


def test_what_the_lists_offer():
    assert list(a_panel(ModelSettings()).controls["model"].options) == [TINY, *CATALOG]
    assert a_panel(ModelSettings(model="me9")).controls["model"].options[-1] == "me9"
    assert list(a_panel(ODD).controls["target_modules"].options) == ["all-linear", "attention", ODD.target_modules]
    with pytest.raises(SettingsError, match="has no panel; give it ModelSettings"):
        settings_panel(SplitSettings(), T4)


def test_two_panels_of_one_cell_don_t_share_anything():
    one, two = a_panel(LoraSettings()), a_panel(LoraSettings())
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
    panel = a_panel(Picky(use_dora=True))
    good = text_of(panel)
    panel.controls["r"].value = 32
    assert panel.settings == Picky(use_dora=True)
    assert panel.controls["r"].value == 16  # the view goes back as well
    assert text_of(panel) == f"Not possible: r=32 with use_dora is too much for <me>; try r=16 {good}"
    panel.controls["use_dora"].value = False
    panel.controls["r"].value = 32
    assert panel.settings == Picky(r=32)
    assert "Not possible" not in text_of(panel)


# --------------------------------------------------------------------------------------------- any settings
def layout_of(widget) -> dict:
    return {name: value for name in ("flex", "width", "margin", "padding", "max_width", "flex_flow", "align_items") if (value := getattr(widget.layout, name))}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "value", "kind", "options"),
    [
        (None, True, widgets.Checkbox, None),
        ({"one": 1, "two": 2}, 2, widgets.Dropdown, (("one", 1), ("two", 2))),
        (["a", "b"], "c", widgets.Dropdown, ("a", "b", "c")),
        (["a", "b"], "b", widgets.Dropdown, ("a", "b")),
        ([4, 16.0, 8], 16, widgets.SelectionSlider, (("4", 4), ("8", 8), ("16", 16))),
        ([0.5, 2.0], 1e-05, widgets.SelectionSlider, (("1e-05", 1e-05), ("0.5", 0.5), ("2", 2.0))),
        ([None, 5.0], None, widgets.SelectionSlider, (("off", OFF), ("5", 5.0))),
    ],
)
def test_the_control_of_a_field(values, value, kind, options):
    control = _control("a_field", values, value, 80)
    assert type(control) is kind
    assert (control.description, control.style.description_width) == ("a_field", "80px")
    assert layout_of(control) == {"flex": "0 0 auto", "width": "320px", "margin": "2px"}
    assert control.value is (OFF if value is None else value) or control.value == value
    if options:
        assert control.options == options
    if kind is widgets.SelectionSlider:
        assert control.continuous_update is False


def small_panel(**more):
    controls = {"r": ([8, 16, 32], "the rank <r>"), "use_dora": (None, "apart")}
    folded = {"lora_dropout": ([0.0, 0.1], "dropped")}
    return SettingsPanel(LoraSettings(), controls, lambda settings: f"r is {settings.r}", folded=folded, **more)


def test_a_panel_lays_its_controls_out():
    panel = small_panel()
    rank, dora, fold, note = panel.widget.children
    assert layout_of(panel.widget) == {"max_width": "900px", "padding": "6px"}
    assert [line.children[0] for line in (rank, dora)] == [panel.controls["r"], panel.controls["use_dora"]]
    assert (plain(rank.children[1].value), "<r>" in rank.children[1].value) == ("the rank <r>", False)
    assert layout_of(rank) == {"flex_flow": "row wrap", "align_items": "center"}
    assert layout_of(rank.children[1]) == {"flex": "1 1 240px", "margin": "2px 2px 2px 12px"}
    assert panel.controls["r"].style.description_width == f"{8 * len('lora_dropout')}px"
    assert (fold, note) == (panel.fold, panel.note)
    assert (fold.selected_index, fold.get_title(0), layout_of(fold)) == (None, "1 more settings", {"margin": "6px 0 0"})
    (box,) = fold.children
    assert [line.children[0] for line in box.children] == [panel.controls["lora_dropout"]]
    assert text_of(panel) == "r is 16"
    assert SettingsPanel(LoraSettings(), {"r": ([8], "")}, lambda settings: "").widget.children[1:] != ()


def test_presets_set_several_controls_at_once_and_show_which_is_on():
    presets = {"small": {"r": 8, "use_dora": False}, "large": {"r": 32, "use_dora": True}}
    panel = small_panel(presets=presets, presets_hint="all of them")
    line, rank, *_ = panel.widget.children
    assert (line.children[0], plain(line.children[1].value)) == (panel.presets, "all of them")
    assert rank.children[0] is panel.controls["r"]
    width = 8 * len("lora_dropout") + 240
    assert layout_of(panel.presets) == {"flex": "0 0 auto", "width": f"{width}px", "margin": "2px"}
    assert panel.presets.style.button_width == f"{width // 2 - 24}px"
    assert (panel.presets.options, panel.presets.value) == (("small", "large"), None)
    panel.presets.value = "large"
    assert panel.settings == LoraSettings(r=32, use_dora=True)
    assert (panel.controls["r"].value, panel.controls["use_dora"].value, text_of(panel)) == (32, True, "r is 32")
    panel.controls["use_dora"].value = False
    assert panel.presets.value is None
    panel.controls["r"].value = 8
    assert panel.presets.value == "small"
    panel.presets.value = None  # no settings: nothing changes
    assert panel.settings == LoraSettings(r=8)


def test_off_is_none_and_what_can_t_be_said_is_said_so():
    said = []

    def note(settings):
        said.append(settings)
        if settings.neftune_noise_alpha:
            raise SettingsError("no <idea>")
        return f"alpha {settings.neftune_noise_alpha}"

    panel = SettingsPanel(TrainSettings(), {"neftune_noise_alpha": ([None, 5.0], "noise")}, note)
    assert (panel.controls["neftune_noise_alpha"].value, text_of(panel)) == (OFF, "alpha None")
    panel.controls["neftune_noise_alpha"].value = 5.0
    assert panel.settings == TrainSettings(neftune_noise_alpha=5.0)
    assert text_of(panel) == "No prediction: no <idea>"
    panel.controls["neftune_noise_alpha"].value = OFF
    assert panel.settings == TrainSettings()
    assert text_of(panel) == "alpha None"
    assert len(said) == 3
    assert panel.presets.options == ()
    assert len(panel.widget.children) == 2  # neither presets nor a fold


def test_a_panel_shows_its_widget(monkeypatch):
    shown = []
    monkeypatch.setattr("gemma_colab.core.sliders.display", shown.append)
    panel = small_panel()
    panel._ipython_display_()
    assert shown == [panel.widget]


# --------------------------------------------------------------------------------------------- LoRA
@pytest.mark.parametrize("settings", [LoraSettings(), ODD, LoraSettings(r=64, use_rslora=True, target_modules="attention")])
@pytest.mark.parametrize("plan", [{}, {"load_in_4bit": False, "activation_factor": 1.1}])
def test_the_lora_panel_says_what_the_formulas_say(settings, plan):
    text = text_of(a_panel(settings, **plan))
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
        shown = a_panel(LoraSettings(), train=train).note.value
        total = memory_plan(FOUR, LoraSettings(), train, tokens=1024, dtype="float16").sum()
        widths = [float(w) for w in re.findall(r"flex:0 0 ([\d.]+)%", shown)]
        assert len(widths) == 8
        assert sum(widths) == pytest.approx(100 * total / max(total, 14.74), abs=0.05)
        limit = float(re.search(r"calc\(([\d.]+)%", shown)[1])  # where the device's memory ends
        assert limit == pytest.approx(100 * 14.74 / max(total, 14.74), abs=0.05)


def a_gpu(gib: float) -> Machine:
    return Machine(False, "Made-up", (7, 5), gib, 12.7, 60.0, 2)


def test_what_does_not_fit_is_said_with_what_to_change_first():
    text = text_of(a_panel(LoraSettings()))
    assert "● fits: " in text
    assert "GiB left" in text
    assert "hange first" not in text
    assert "To have" not in text
    large = TrainSettings(gradient_checkpointing=False, per_device_train_batch_size=16)
    _, tried = plan_training(FOUR, LoraSettings(), large, [1024], 14.74, dtype="float16")
    text = text_of(a_panel(LoraSettings(), train=large))
    assert "● no: " in text
    assert "GiB too much" in text
    first = tried.iloc[1]
    assert f"Change first: {first.change}: {first.why}. That makes {first.GiB:.1f} GiB: {first.fits}." in text
    assert f"Then, until it fits: {'; '.join(tried['change'][2:])}." in text
    assert "Change first: a smaller model, or a larger GPU. With all that" in text_of(a_panel(LoraSettings(), a_gpu(3)))
    as_it_is = memory_plan(FOUR, LoraSettings(), TrainSettings(), tokens=1024, dtype="float16").sum()
    tight = text_of(a_panel(LoraSettings(), a_gpu(as_it_is * 1.05)))
    assert "● tight: " in tight
    assert "To have 15 % free: per_device_train_batch_size=2" in tight


def test_a_remedy_that_saves_nothing_is_passed_over():
    small = LoraSettings(r=1, target_modules=r".*\.q_proj")  # so few weights that Adam in 8 bit saves next to nothing
    train = TrainSettings(per_device_train_batch_size=1, max_length=4096)
    limit = memory_plan(FOUR, small, train, tokens=4096, dtype="float16").sum()
    assert plan_training(FOUR, small, train, [4096], limit, dtype="float16")[1]["change"][1].startswith("optim")
    assert "To have 15 % free: max_length=2048" in text_of(a_panel(small, a_gpu(limit), train=train, tokens=4096))


def test_without_a_gpu_the_cpu_s_memory_is_the_limit():
    lora, train = starting_point(TINY)
    text = text_of(a_panel(lora, CPU, dimensions_of(TINY), train=train, tokens=300))
    parts = memory_plan(dimensions_of(TINY), lora, train, tokens=300, dtype="float32", gpu=False)
    assert f"{parts.sum():.2f} of 12.70 GiB" in text
    assert "overhead" not in text
    assert f"weights {1024 * parts['weights']:.1f} MiB" in text
    assert f"(the bar shows {100 * parts.sum() / 12.7:.1f} % of this machine's memory)" in text or parts.sum() >= 12.7 / 20


# --------------------------------------------------------------------------------------------- models
def rows_of(panel) -> list[list[str]]:
    rows = re.findall(r"<tr.*?</tr>", panel.note.value, flags=re.DOTALL)[1:]
    return [[plain(cell) for cell in re.findall(r"<td.*?</td>", row, flags=re.DOTALL)] for row in rows]


def test_a_line_for_each_gpu_says_what_the_planner_says():
    lora, train = LoraSettings(r=8), TrainSettings(per_device_train_batch_size=2)
    panel = a_panel(ModelSettings(model="google/gemma-3-12b-it"), lora=lora, train=train, tokens=800)
    dimensions, lines = CATALOG["google/gemma-3-12b-it"], rows_of(panel)
    assert [line[0] for line in lines] == ["Tesla T4, this machine", "L4, on Colab", "A100, on Colab"]
    for load_in_4bit in (True, False):
        panel.controls["load_in_4bit"].value = load_in_4bit
        expected = []
        for limit, dtype in [(14.74, "float16"), (22.16, "bfloat16"), (39.4, "bfloat16")]:
            plan = {"tokens": 800, "dtype": dtype, "load_in_4bit": load_in_4bit}
            gib = memory_plan(dimensions, lora, train, **plan).sum()
            batch = largest_batch(dimensions, lora, train, limit, **plan)
            expected.append([f"● {fits(gib, limit)}", f"{gib:.1f} of {limit:.1f} GiB", str(batch or "none")])
        assert [line[1:] for line in rows_of(panel)] == expected
    assert expected[0][0] == "● no"
    assert "batches of 2 rows of 800 tokens, LoRA of r=8 on all-linear" in text_of(panel)


COLAB = ["T4, on Colab", "L4, on Colab", "A100, on Colab"]


@pytest.mark.parametrize(
    ("machine", "places"),
    [
        (CPU, COLAB),
        (L40S, ["NVIDIA L40S, this machine", *COLAB]),
        (A100_80, ["NVIDIA A100-SXM4-80GB, this machine", *COLAB]),
    ],
)
def test_this_machine_s_gpu_comes_first_and_none_twice(machine, places):
    panel = a_panel(ModelSettings(model="google/gemma-3-4b-it"), machine)
    assert [line[0] for line in rows_of(panel)] == places
    assert ("on a CPU only tiny-gemma3 is sensible" in text_of(panel)) == (machine is CPU)


def test_the_tiny_one_has_a_line_for_the_cpu():
    panel = a_panel(ModelSettings(), CPU)
    assert rows_of(panel)[0][:2] == ["CPU, this machine", "● fits"]
    for said in ("nothing to download", "batches of 4 rows of 512 tokens, LoRA of r=32"):  # its own starting point
        assert said in text_of(panel)
    assert "No GPU" not in text_of(panel)


def test_download_and_weights(monkeypatch):
    monkeypatch.setattr("gemma_colab.ui.panels.free_gib", lambda path: 60.0)
    text = text_of(a_panel(ModelSettings(model="google/gemma-3-4b-it")))
    assert "3.9 billion weights · 8.0 GiB to download, 60 GiB free here" in text
    monkeypatch.setattr("gemma_colab.ui.panels.cached_gib", lambda name: 8.0)
    assert "already downloaded" in text_of(a_panel(ModelSettings(model="google/gemma-3-4b-it")))


def test_advice_on_16_bit_where_4_bit_saves_little_and_on_untuned_models():
    texts = {name: text_of(a_panel(ModelSettings(model=name))) for name in [TINY, *CATALOG]}
    advised = {name for name, text in texts.items() if "16 bit is an option" in text}
    assert advised == {name for name in CATALOG if "270m" in name or "1b" in name}
    untuned = {name for name, text in texts.items() if "doesn't follow instructions yet" in text}
    assert untuned == {name for name in CATALOG if not name.endswith("-it")}
    sees = {name for name, text in texts.items() if "sees images, and only its text part is tuned here" in text}
    assert sees == {name for name in CATALOG if any(size in name for size in ("-4b", "-12b", "-27b"))}
    plan = {"tokens": 1024, "dtype": "float16"}
    one = CATALOG["google/gemma-3-1b-it"]
    plans = [memory_plan(one, LoraSettings(), TrainSettings(), load_in_4bit=b, **plan) for b in (True, False)]
    text = text_of(a_panel(ModelSettings(model="google/gemma-3-1b-it"), CPU))
    assert f"take {plans[0].weights:.2f} GiB in 4 bit and {plans[1].weights:.2f} GiB in 16 bit" in text
    assert f"of {plans[0].sum():.1f} and {plans[1].sum():.1f} GiB in all on a T4" in text
    assert "is an option" not in text_of(a_panel(ModelSettings(model="google/gemma-3-1b-it", load_in_4bit=False)))


def test_a_model_that_can_t_be_read_is_one_sentence_and_stays_chosen(tmp_path, random_gemma):
    (tmp_path / "config.json").write_text("{")
    for name, sentence in {
        "somebody/gemma-3-own": "somebody/gemma-3-own can't be downloaded",  # offline
        "gemma-9": "model='gemma-9' is not known",
        str(tmp_path): f"{tmp_path} can't be loaded",
    }.items():
        panel = a_panel(ModelSettings(model=name), CPU)
        assert f"No prediction: {sentence}" in text_of(panel)
        panel.controls["load_in_4bit"].value = False
        assert panel.settings == ModelSettings(model=name, load_in_4bit=False)
        panel.controls["model"].value = TINY
        assert "No prediction" not in text_of(panel)
        panel.controls["model"].value = name
        assert f"No prediction: {sentence}" in text_of(panel)
    own = a_panel(ModelSettings(model=random_gemma), CPU)
    assert rows_of(own)[0][0] == "CPU, this machine"
    assert f"{random_gemma} · 1 million weights · nothing to download" in text_of(own)


def test_auto_says_what_was_chosen_and_why(monkeypatch):
    monkeypatch.delenv("GEMMA_COLAB_MODEL")
    monkeypatch.setattr("gemma_colab.model.choice.packaged_here", lambda: False)
    panel = a_panel(ModelSettings(model="auto"))
    assert "auto: google/gemma-3-1b-it, because Tesla T4 with 14.74 GiB" in text_of(panel)
    assert panel.settings.model == "auto"


@pytest.mark.parametrize("settings", [ModelSettings(model=EVIL), ModelSettings(), LoraSettings(), TrainSettings()], ids=repr)
def test_names_are_escaped(settings):
    panel = a_panel(settings, Machine(False, EVIL, (7, 5), 14.74, 12.7, 60.0, 2))
    assert "<script>" not in panel.note.value
    assert "&lt;script&gt;" in panel.note.value


def test_everything_behind_the_door_starts_without_torch():
    code = """
import sys
import pandas as pd
from gemma_colab import ui
from gemma_colab.core.catalog import dimensions_of
from gemma_colab.core.machine import Machine
from gemma_colab.core.settings import *
assert len([getattr(ui, name) for name in ui.__all__]) == 9
cpu, tiny = Machine(False, None, None, 0.0, 12.7, 60.0, 2), dimensions_of("tiny-gemma3")
ui.settings_panel(ModelSettings(), cpu)
ui.settings_panel(LoraSettings(), cpu, dimensions=tiny, train=TrainSettings(), tokens=300)
ui.settings_panel(TrainSettings(), cpu, dimensions=tiny, lora=LoraSettings(), lengths=pd.DataFrame({"total": [9], "answer": [2]}))
sys.exit(" ".join({"torch", "transformers"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
