"""Watching a run costs little, is never silent, and says the truth about its pace."""

import io
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from steps import load_4bit
from transformers import TrainerCallback

from gemma_colab.core import live
from gemma_colab.core.curve import history_table, loss_curve, new_axes, smoothed
from gemma_colab.core.live import PAUSE, LiveView, clock
from gemma_colab.core.machine import GIB
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.training import watch
from gemma_colab.training.records import save_curve
from gemma_colab.training.verdict import training_verdict
from gemma_colab.training.watch import TextProgress, answers_table, live_view


class Kept(LiveView):
    """Keeps what it is shown, and takes its time for it."""

    views = ("line", "draw")
    costs, turn = (0.0, 0.0), staticmethod(time.sleep)

    def __init__(self, **more):
        super().__init__(**more)
        self.lines, self.drawn = [], []

    def line(self, *shown):
        self.turn(self.costs[0])
        self.lines.append(shown)

    def draw(self, *shown):
        self.turn(self.costs[1])
        self.drawn.append(shown)


class Fake:
    """A run without a trainer: a clock that is turned by hand, and the events that a trainer sends."""

    def __init__(self, view=None, line=0.0, drawing=0.0, step_seconds=1.0, steps=100, first=0, eval_every=0, main=True):
        self.now, self.step_seconds, self.eval_every, self.tokens = 0.0, step_seconds, eval_every, 0
        self.view = view or Kept()
        self.view.clock, self.view.turn, self.view.costs = lambda: self.now, self.turn, (line, drawing)
        state = {"log_history": [], "global_step": first, "max_steps": steps, "is_world_process_zero": main, "epoch": 0.0}
        self.state = SimpleNamespace(**state, eval_steps=eval_every)
        self.args = SimpleNamespace(num_train_epochs=3, eval_strategy="steps" if eval_every else "no")
        self.send("on_train_begin")

    def turn(self, seconds):
        self.now += seconds

    def send(self, event, **more):
        getattr(self.view, event)(self.args, self.state, None, **more)

    def run(self, steps):
        for _ in range(steps):
            self.send("on_step_begin")
            self.turn(self.step_seconds)
            self.tokens += 500
            self.state.global_step = step = self.state.global_step + 1
            self.state.epoch = step / 33
            line = {"loss": 5.0 - step / 100, "learning_rate": 1e-3, "num_tokens": self.tokens, "step": step, "epoch": step / 33}
            self.state.log_history.append(line)
            self.send("on_log", logs=line)
            if self.eval_every and step % self.eval_every == 0:
                for _ in range(4):
                    self.turn(2.0)
                    self.send("on_prediction_step", eval_dataloader=range(4))
                self.state.log_history.append({"eval_loss": 4.0, "step": step, "epoch": step / 33})
                self.send("on_evaluate")
        return self


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("step", [0.01, 0.3, 5.0])
def test_showing_takes_at_most_two_percent(cost, step):
    fake = Fake(None, cost / 10, cost, step_seconds=step, steps=10_000).run(500)
    counted, view = fake.view.spent, fake.view
    assert counted <= 0.02 * fake.now * 1.05 + 2 * 1.1 * cost  # and once at the start, before there is anything to compare with
    assert counted == pytest.approx(len(view.lines) * cost / 10 + len(view.drawn) * cost)
    assert len(view.lines) <= 2 * fake.now + 2  # never more than twice a second
    assert len(view.lines) >= min(500, fake.now / max(PAUSE + step, 10.1 * cost + step)) * 0.9  # and is not stingy either


def test_fonts_that_load_slowly_do_not_hold_the_next_figure_back():
    class Cold(Kept):
        def draw(self, *shown):
            self.turn(0.01 if self.drawn else 3.0)
            self.drawn.append(shown)

    assert len(Fake(Cold()).run(5).view.drawn) == 1 + 5  # one before the first step, and then at every step, not after 300 s


def test_something_is_shown_at_once_while_validating_and_at_the_end():
    fake = Fake(steps=10, eval_every=5)
    assert fake.view.lines[0][0][:3] == ["step 0 of 10", "epoch 0.0 of 3", "preparing"]
    fake.run(10)
    validating = [fact for facts, *_ in fake.view.lines for fact in facts if fact.startswith("validating")]
    assert validating[:4] == [f"validating {n} of 4" for n in (1, 2, 3, 4)]
    before = len(fake.view.drawn)
    fake.send("on_train_end")
    for facts, _, percent, done in (fake.view.lines[-1], fake.view.drawn[-1]):
        assert (percent, done) == (100, True)
        assert "0:26 in all" in facts  # ten steps of 1 s, and two validations of 8
    assert len(fake.view.drawn) == before + 1


def test_the_time_left_is_that_of_this_process():
    fake = Fake(step_seconds=2.0, first=40, eval_every=10).run(15)  # resumed at 40
    facts, _, percent, _ = fake.view.lines[-1]
    assert (facts[0], percent) == ("step 55 of 100", 55)
    assert f"about {clock(45 * (15 * 2 + 8) / 15)} left" in facts  # a validation of 8 s each fifteen steps


def test_only_the_first_process_shows_anything():
    fake = Fake(main=False).run(5)
    fake.send("on_train_end")
    assert fake.view.lines == fake.view.drawn == []


@pytest.fixture
def three_gib(monkeypatch):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3 * GIB))
    monkeypatch.setattr(live.psutil, "Process", lambda: process)


def test_the_facts_of_a_run_to_the_letter(three_gib, monkeypatch):
    fake = Fake(steps=8, first=2, eval_every=4)
    assert [shown[0] for shown in fake.view.lines] == [["step 2 of 8", "epoch 0.0 of 3", "preparing", "3.0 GiB"]]
    fake.run(1)
    assert fake.view.lines[-1][0] == ["step 3 of 8", "epoch 0.1 of 3", "loss 4.97", "about 0:05 left", "3.0 GiB"]
    assert (fake.view.lines[-1][2:], len(fake.view.lines[-1][1])) == ((37.5, False), 1)
    fake.run(1)
    said = [["step 4 of 8", "epoch 0.1 of 3", f"validating {n} of 4", "loss 4.96"] for n in (1, 2, 3, 4)]
    assert [shown[0][:4] for shown in fake.view.lines[-4:]] == said
    fake.run(4)
    assert "validating 1 of 4" in fake.view.lines[-4][0]  # counted anew
    monkeypatch.setattr(live.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(live.torch.cuda, "max_memory_reserved", lambda: 5 * GIB)
    fake.send("on_train_end")
    best = "best validation 4.00 at step 4"
    assert fake.view.lines[-1][0] == ["step 8 of 8", "epoch 0.2 of 3", "loss 4.92", best, "0:22 in all", "5.0 GiB"]
    assert fake.view.lines[-1][2:] == (100, True)
    shown = len(fake.view.lines)
    fake.turn(1000)
    fake.send("on_prediction_step", eval_dataloader=range(4))  # by hand, afterwards
    fake.send("on_log", logs={"eval_loss": 1.0})
    assert len(fake.view.lines) == shown


def test_a_view_is_due_after_a_hundred_times_what_it_took():
    view = Kept()
    assert (view.running, view.spent, view.verdict) == (False, 0.0, None)
    fake = Fake(view, line=0.01, drawing=0.25, steps=100)
    assert view.running
    assert view.spent == pytest.approx(0.26)
    assert view.due == {"line": pytest.approx(0.26), "draw": pytest.approx(0.26)}
    fake.run(1)
    began = 1.26
    assert view.due == {"line": pytest.approx(began + 0.01 + 1.0), "draw": pytest.approx(began + 0.01 + 0.25 + 25)}
    fake = Fake(Kept(), step_seconds=0.25, steps=100).run(11)  # nothing taken: every half second
    assert [shown[0][0] for shown in fake.view.lines] == [f"step {n} of 100" for n in (0, 1, 3, 5, 7, 9, 11)]
    fake.state.max_steps = 0
    fake.send("on_train_end")
    assert fake.view.lines[-1][2] == 1100  # no division by nothing


class Tick(TrainerCallback):
    """A clock on which each step, and each batch of a validation, takes 0.6 s."""

    now = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.now += 0.6

    on_prediction_step = on_step_end


def test_a_real_run_is_shown_as_it_is(random_gemma, tokenizer, support_rows, tmp_path):
    rows, tick = [to_messages(row) for row in support_rows[1:29]], Tick()
    settings = TrainSettings(per_device_train_batch_size=4, num_train_epochs=4, gradient_checkpointing=False, max_length=128)
    watching = Kept(clock=lambda: tick.now)
    args, parts = sft_config(settings, tmp_path, 24, torch.float32), (Dataset.from_list(rows[:24]), Dataset.from_list(rows[24:]))
    args.save_strategy, args.load_best_model_at_end, args.disable_tqdm = "no", False, True
    given = load_4bit(random_gemma, torch.float32), tokenizer, *parts, args, lora_config(LoraSettings(r=4))
    trainer = build_trainer(*given, callbacks=[tick, watching])
    trainer.evaluate()  # by hand, before and after: nothing to show
    trainer.train()
    trainer.evaluate()
    (first, *_), (last, table, percent, done) = watching.lines[0], watching.lines[-1]
    assert first[:3] == ["step 0 of 12", "epoch 0.0 of 4", "preparing"]
    validating = {f"validating {n} of 4" for n in (1, 2, 3, 4)}  # row by row
    assert validating <= {fact for facts, *_ in watching.lines for fact in facts}
    assert (last[:2], percent, done) == (["step 12 of 12", "epoch 4.0 of 4"], 100, True)
    assert f"{clock((12 + 6 * 4) * 0.6)} in all" in last  # six validations of four rows
    pd.testing.assert_frame_equal(table, history_table(trainer.state.log_history))
    best = table.loc[table["eval_loss"].idxmin()]
    assert f"best validation {best['eval_loss']:.2f} at step {best['step']:.0f}" in last
    assert float(last[-1].removesuffix(" GiB")) > 0.1


def history(n):
    steps = np.arange(1, n + 1)
    validation = np.where(steps % max(1, n // 4) == 0, 4.0 - steps / n, np.nan)
    others = {"epoch": steps / n, "learning_rate": 1e-3, "grad_norm": 1.0}
    return pd.DataFrame({"step": steps, "loss": 6 - 3 * steps / n, "eval_loss": validation, **others})


def facts_of(n=40, done=False):
    fake = Fake(steps=n, eval_every=20).run(n)
    fake.send("on_train_end")
    return fake.view.lines[-1 if done else -2]


def test_a_notebook_gets_one_line_and_one_figure_that_change_in_place(monkeypatch):
    calls = []

    class Handle:
        def __init__(self, shown, display_id):
            self.number, self.shown = len(calls), []
            calls.append("display")

        def update(self, shown):
            self.shown.append(shown)
            calls.append((self.number, type(shown).__name__))

    monkeypatch.setattr(watch, "display", Handle)
    view = watch.LiveCurve(training_verdict)
    fake = Fake(view, steps=4, eval_every=2).run(4)
    fake.send("on_train_end")
    fake.send("on_train_begin")  # goes on after the memory ran out
    assert calls.count("display") == 2
    assert set(calls) == {"display", (0, "HTML"), (1, "Image")}
    assert "step 4 of 4" in view.shown[1].shown[-1].metadata["alt"]  # for those who can't see it
    assert plt.get_fignums() == []


class Placed:
    """What stands in one place of a notebook, and all that stood there."""

    def __init__(self, shown=None, display_id=None):
        self.shown = []

    def update(self, shown):
        self.shown.append(shown)


def asking(monkeypatch, ask):
    monkeypatch.setattr(watch, "display", Placed)
    view = watch.LiveCurve(training_verdict, ask)
    view.line = view.draw = lambda *shown: None  # they take their time
    fake = Fake(view, step_seconds=1.0, steps=40, eval_every=10)
    fake.args.world_size = 1
    return view, fake


@pytest.mark.parametrize("cost", [0.01, 0.7, 60.0])
def test_asking_takes_at_most_five_percent(cost, monkeypatch):
    given = []

    def ask(model, seconds):
        given.append(seconds)
        fake.turn(min(cost, seconds) + 0.01)  # and a token that was on its way
        return {"Где заказ?": "в пути"}

    _view, fake = asking(monkeypatch, ask)
    fake.run(40)
    assert 1 <= len(given) <= 4
    assert sum(min(cost, seconds) + 0.01 for seconds in given) <= 0.05 * fake.now


def test_answers_stand_below_the_curve_in_the_log_and_escaped(monkeypatch):
    view, fake = asking(monkeypatch, lambda model, seconds: {"<b>Где?": f"<i>{fake.state.global_step}"})
    fake.run(60)
    page = view.shown[2].shown[-1].data
    assert "&lt;b&gt;Где?" in page
    assert [n for n in range(10, 70, 10) if f"&lt;i&gt;{n}</td>" in page] == [10, 30, 40, 50, 60]  # the first, and the newest
    assert "<i>" not in page
    table = answers_table(fake.state.log_history)
    assert list(table.index) == [10, 20, 30, 40, 50, 60]
    assert table["<b>Где?"][20] == "<i>20"
    later = watch.LiveCurve(training_verdict, dict)  # a run that goes on shows what was answered before
    later.clock = lambda: 0.0
    later.line = later.draw = view.draw
    later.on_train_begin(fake.args, fake.state, None)
    assert page == later.shown[2].shown[-1].data
    resumed = [{"step": 1, "answers": {"a": "1", "b": "2"}}, {"step": 2, "answers": {"b": "3", "a": "4"}}]
    assert answers_table(resumed).to_dict("list") == {"b": ["2", "3"], "a": ["1", "4"]}
    assert list(answers_table(resumed)) == ["b", "a"]
    planted = [{"step": 5, "answers": {"Где?": ["<img src=x>"], "<img src=y>": {"<img src=z>": 1}}}]
    fake.state.log_history = planted  # of somebody else's checkpoint
    later.on_train_begin(fake.args, fake.state, None)
    assert "<img" not in later.shown[2].shown[-1].data
    with pytest.raises(ValueError, match="invalid literal"):
        answers_table([{"step": "<img src=x>", "answers": {"Где?": "a"}}])


def test_nobody_is_asked_where_memory_is_short_or_several_processes_train(monkeypatch):
    calls = []

    def ask(model, seconds):
        calls.append(seconds)
        raise torch.OutOfMemoryError

    _, fake = asking(monkeypatch, ask)
    fake.run(40)
    assert len(calls) == 1
    _, fake = asking(monkeypatch, ask)
    fake.args.world_size = 2
    fake.run(40)
    assert len(calls) == 1


def test_the_line_says_it_all_and_escapes():
    shown = []
    view = watch.LiveCurve(training_verdict)
    view.shown = [SimpleNamespace(update=lambda page: shown.append(page.data))]
    facts, *more = facts_of()
    view.line([*facts, "validating <3>"], *more)
    said = ["step 40 of 40", "epoch 1.2 of 3", "best validation 4.00 at step 20", "GiB", "Next:"]
    assert not [words for words in [*said, "validating &lt;3&gt;"] if words not in shown[0]]


def test_the_picture_is_a_png():
    broken = history(50)
    broken.loc[20:, "loss"] = np.inf
    for now in (history(0), history(8), broken, history(300)):
        save_curve(now, png := io.BytesIO())
        assert png.getvalue().startswith(b"\x89PNG")


def test_a_terminal_gets_a_line_that_moves_and_a_file_few_lines(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    view = TextProgress(training_verdict)
    view.line(*facts_of())
    *_, line = terminal.getvalue().split("\r\x1b[K")
    assert line.startswith("step 40 of 40")
    assert len(line) < shutil.get_terminal_size().columns  # else it would not be written over, but left behind
    facts, table, *more = facts_of(done=True)
    view.line(facts, table, *more)
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().endswith(f"\n{training_verdict(table, finished=True)}\n")
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    view = TextProgress(clock=lambda: 0.0)
    for _ in range(5):
        view.line(*facts_of())
    view.line(*facts_of(done=True))
    assert log.getvalue().count("step 40 of 40") == 2  # the first of five in 10 seconds, and the last
    assert "in all" in log.getvalue()


def test_the_view_suits_the_place(monkeypatch):
    assert isinstance(live_view(), TextProgress)
    monkeypatch.setattr(watch, "get_ipython", lambda: type("Shell", (), {"kernel": 1})())
    assert isinstance(live_view(), watch.LiveCurve)
    assert live_view(training_verdict).verdict is training_verdict


def test_the_loss_curve_shows_its_data():
    ax = loss_curve(history(8), title="mine")
    assert ax.get_title() == "mine"
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [list(range(1, 9)), [2, 4, 6, 8]]
    assert "best 3.00" in [text.get_text() for text in ax.get_legend().get_texts()]


def drawn(line):
    return [tuple(point) for point in line.get_xydata().tolist()], to_hex(line.get_color()), line.get_label()


def test_a_rise_too_small_to_be_seen_is_in_the_legend():
    table = history(8)
    table.loc[table["step"] == 4, "eval_loss"] = 0.096
    table.loc[table["step"] == 8, "eval_loss"] = 0.12
    assert loss_curve(table).lines[-1].get_label() == "best 0.0960, last 0.120"


def test_few_losses_are_one_line_with_validation_and_its_best():
    table = history(8).drop(index=2)  # a step that was not logged
    table.loc[4, "loss"] = np.nan
    train, validation, best = loss_curve(table).lines
    kept = table.dropna(subset=["loss"])
    assert drawn(train) == (list(zip(kept["step"], kept["loss"], strict=True)), "#1f6fb2", "train")
    assert drawn(validation) == ([(2, 3.75), (4, 3.5), (6, 3.25), (8, 3.0)], "#c8552b", "validation")
    assert drawn(best) == ([(8, 3.0)], "#5b8c3a", "best 3.00")
    assert (validation.get_marker(), validation.get_linestyle()) == ("o", "-")
    assert (best.get_marker(), best.get_markersize(), best.get_fillstyle(), best.get_markeredgewidth()) == ("o", 11, "none", 2)
    ax = train.axes
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("loss", "step", "loss (nats per token)")
    assert ax.get_ylim()[0] == 0
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "validation", "best 3.00"]
    grid = ax.get_xgridlines()[0]
    assert (grid.get_visible(), grid.get_alpha()) == (True, 0.3)
    assert tuple(ax.figure.get_size_inches()) == (7, 3.2)


def test_many_losses_are_thin_and_their_mean_is_thick():
    assert len(loss_curve(history(20)).lines) == 3
    table = history(21)
    thin, thick, *_ = loss_curve(table).lines
    assert drawn(thin)[:2] == (list(zip(table["step"], table["loss"], strict=True)), "#1f6fb2")
    assert (thin.get_alpha(), thin.get_linewidth()) == (0.35, 0.8)
    assert drawn(thick) == (list(zip(table["step"], smoothed(table["loss"]), strict=True)), "#1f6fb2", "train, smoothed")
    assert thick.get_linewidth() == 2
    assert thin.axes.get_legend().get_texts()[0].get_text() == "train, smoothed"


def test_the_axis_ends_at_half_as_much_again_as_the_start():
    table = history(8)
    table["loss"] = [1.0, 2.0, 1.5, 4.0, 1.0, 1.0, 1.0, 1.0]
    assert loss_curve(table).get_ylim() == (0, 3)
    table["loss"] = [1.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 1.0]
    assert loss_curve(table).get_ylim()[1] > 3.05  # just the limit: nothing is cut off
    empty = loss_curve(history_table([]))
    assert (empty.get_legend(), len(empty.lines)) == (None, 1)
    only = loss_curve(history_table([{"step": 1, "eval_loss": 2.0}]), title="")
    assert [drawn(line)[0] for line in only.lines] == [[], [(1, 2.0)], [(1, 2.0)]]


def test_smoothing_takes_neighbors_on_both_sides_and_leaves_out_what_is_infinite():
    assert smoothed(pd.Series([1.0, 2, 3, 4, np.inf])).tolist() == [2, 2.5, 2.5, 3, 3.5]
    ramp = pd.Series(np.arange(120.0) ** 2)
    assert smoothed(ramp)[60] == pytest.approx(ramp[56:65].mean())  # nine: the odd number from a fifteenth on
    assert smoothed(ramp[:30])[10] == pytest.approx(ramp[8:13].mean())
    assert smoothed(pd.Series([np.nan, 1.0])).tolist() == [1, 1]


def test_a_log_becomes_a_line_a_step():
    log = [
        {"loss": 2.0, "step": 1, "epoch": 0.5, "learning_rate": 1e-3, "grad_norm": 3.0, "num_tokens": 9},
        {"eval_loss": float("nan"), "step": 1, "epoch": 0.5, "eval_runtime": 3},
        {"loss": float("nan"), "step": 2, "epoch": 1.0},
        {"train_runtime": 3.0, "step": 2, "epoch": 1.0},
    ]
    table = history_table(log)
    assert list(table.columns) == ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    assert table.iloc[0].tolist() == [1, 0.5, 2.0, np.inf, 1e-3, 3.0]
    assert (len(table), table["loss"][1], table["step"].dtype, table["grad_norm"].isna().tolist()) == (
        2,
        np.inf,
        int,
        [False, True],
    )
    assert list(history_table([]).columns) == list(table.columns)


def test_axes_are_as_large_as_asked():
    ax = new_axes(5, 2)
    assert tuple(ax.figure.get_size_inches()) == (5, 2)
    assert type(ax.figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
    assert loss_curve(history(3), ax) is ax


def test_the_saved_picture_has_the_losses_above_and_the_rate_below(monkeypatch):
    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **how: kept.append((self, file, how)))
    table = history(8)
    table.loc[3, "learning_rate"] = np.nan
    save_curve(table, "a.png")
    save_curve(table, "b.png", dpi=50)
    (figure, *saved), (_, *again) = kept
    assert (saved, again) == (["a.png", {"format": "png", "dpi": 100}], ["b.png", {"format": "png", "dpi": 50}])
    above, below = figure.axes
    assert (tuple(figure.get_size_inches()), to_hex(figure.get_facecolor())) == ((7, 4), "#ffffff")
    edges = figure.subplotpars
    assert (edges.left, edges.right, edges.top, edges.bottom, edges.hspace) == (0.09, 0.98, 0.97, 0.12, 0.12)
    assert above.get_subplotspec().get_gridspec().get_height_ratios() == (4, 1)
    assert above.get_shared_x_axes().joined(above, below)
    assert (above.get_title(), above.get_xlabel(), len(above.lines)) == ("", "", 3)
    rate = table.dropna(subset=["learning_rate"])
    (line,) = below.lines
    assert drawn(line)[:2] == (list(zip(rate["step"], rate["learning_rate"], strict=True)), "#c8552b")
    assert (line.get_linewidth(), below.get_xlabel(), below.get_ylabel(), below.get_ylim()[0]) == (1, "step", "rate", 0)
    shown = below.yaxis.get_major_formatter()
    assert (shown._scientific, shown._powerlimits, shown.get_useOffset()) == (True, (-2, 2), False)
    assert below.xaxis.get_major_formatter()._powerlimits != (-2, 2)
    assert below.get_ygridlines()[0].get_alpha() == 0.3
    assert plt.get_fignums() == []


def test_seconds_read_like_a_clock():
    said = ["0:00", "0:07", "1:05", "12:34", "1:02:03", "10:00:00"]
    assert [clock(s) for s in (0, 7.4, 65, 754, 3723, 36_000)] == said
