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
from steps import load_4bit
from transformers import TrainerCallback

from gemma_colab.core.curve import history_table, loss_curve, save_curve
from gemma_colab.core.live import PAUSE, LiveView, clock
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.core.trainer import build_trainer, lora_config, sft_config
from gemma_colab.training import watch
from gemma_colab.training.verdict import training_verdict
from gemma_colab.training.watch import TextProgress, live_view


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


def test_seconds_read_like_a_clock():
    assert [clock(s) for s in (7.4, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
