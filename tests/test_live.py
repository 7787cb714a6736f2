"""Watching a run costs little, is never silent, and says the truth about its pace."""

import dataclasses
import io
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from steps import load_4bit
from transformers import TrainerCallback

from gemma_colab.core import live_curve as live
from gemma_colab.core.history import history_table
from gemma_colab.core.live import PAUSE, LiveHistory
from gemma_colab.core.live_curve import LiveCurve, TextProgress, clock, curve_axes, curve_png, live_view, loss_curve
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import LoraSettings, TrainSettings
from gemma_colab.training.short import short_trainer
from gemma_colab.training.verdict import training_verdict


class Fake:
    """A run without a trainer: a clock that is turned by hand, the events that a trainer sends, and a view that takes its time."""

    def __init__(self, line=0.0, drawing=0.0, step_seconds=1.0, steps=100, first=0, eval_every=0, main=True):
        self.now, self.step_seconds, self.eval_every, self.tokens = 0.0, step_seconds, eval_every, 0
        self.costs, self.lines, self.drawn = (line, drawing), [], []
        self.callback = LiveHistory(self, clock=lambda: self.now)
        state = {"log_history": [], "global_step": first, "max_steps": steps, "is_world_process_zero": main, "epoch": 0.0}
        self.state = SimpleNamespace(**state, eval_steps=eval_every)
        self.args = SimpleNamespace(num_train_epochs=3, eval_strategy="steps" if eval_every else "no")
        self.send("on_train_begin")

    def __call__(self, progress):
        self.now += self.costs[0]
        self.lines.append(progress)

    def draw(self, progress):
        self.now += self.costs[1]
        self.drawn.append(progress)

    def send(self, event, **more):
        getattr(self.callback, event)(self.args, self.state, None, **more)

    def run(self, steps):
        for _ in range(steps):
            self.send("on_step_begin")
            self.now += self.step_seconds
            self.tokens += 500
            self.state.global_step = step = self.state.global_step + 1
            self.state.epoch = step / 33
            line = {"loss": 5.0 - step / 100, "learning_rate": 1e-3, "num_tokens": self.tokens, "step": step, "epoch": step / 33}
            self.state.log_history.append(line)
            self.send("on_log", logs=line)
            if self.eval_every and step % self.eval_every == 0:
                for _ in range(4):
                    self.now += 2.0
                    self.send("on_prediction_step", eval_dataloader=range(4))
                self.state.log_history.append({"eval_loss": 4.0, "step": step, "epoch": step / 33})
                self.send("on_evaluate")
        return self


@pytest.mark.parametrize("cost", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("step", [0.01, 0.3, 5.0])
def test_showing_takes_at_most_two_percent(cost, step):
    fake = Fake(cost / 10, cost, step_seconds=step, steps=10_000).run(500)
    counted = fake.callback.spent
    assert counted <= 0.02 * fake.now * 1.05 + 2 * 1.1 * cost  # and once at the start, before there is anything to compare with
    assert counted == pytest.approx(len(fake.lines) * cost / 10 + len(fake.drawn) * cost)
    assert len(fake.lines) <= 2 * fake.now + 2  # never more than twice a second
    assert len(fake.lines) >= min(500, fake.now / max(PAUSE + step, 10.1 * cost + step)) * 0.9  # and is not stingy either


def test_fonts_that_load_slowly_do_not_hold_the_next_figure_back():
    class Cold(Fake):
        def draw(self, progress):
            self.now += 3.0 if not self.drawn else 0.01
            self.drawn.append(progress)

    assert len(Cold().run(5).drawn) == 1 + 5  # one before the first step, and then at every step, not after 300 s


def test_something_is_shown_at_once_while_validating_and_at_the_end():
    fake = Fake(steps=10, eval_every=5)
    assert (fake.lines[0].doing, fake.lines[0].step, fake.lines[0].max_steps) == ("preparing", 0, 10)
    fake.run(10)
    assert [p.doing for p in fake.lines if p.doing.startswith("validating")][:4] == [f"validating {n} of 4" for n in (1, 2, 3, 4)]
    before = len(fake.drawn)
    fake.send("on_train_end")
    assert fake.lines[-1].done
    assert fake.drawn[-1].done
    assert len(fake.drawn) == before + 1


def test_the_pace_is_that_of_recent_steps_without_validations_and_of_this_process():
    fake = Fake(step_seconds=2.0, first=40, eval_every=10).run(15)  # resumed at 40
    progress = fake.lines[-1]
    assert progress.step == 55
    assert progress.tokens_per_second == pytest.approx(250)
    assert progress.seconds_left == pytest.approx(45 * 2 + 5 * 8)  # five validations of 8 s are to come
    assert progress.seconds == pytest.approx(15 * 2 + 8)
    fake.step_seconds = 4.0
    assert fake.run(25).lines[-1].tokens_per_second == pytest.approx(125, rel=0.1)


def test_only_the_first_process_shows_anything():
    fake = Fake(main=False).run(5)
    fake.send("on_train_end")
    assert fake.lines == fake.drawn == []


class Tick(TrainerCallback):
    """A clock on which each step, and each batch of a validation, takes 0.6 s."""

    now = 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.now += 0.6

    on_prediction_step = on_step_end


def test_a_real_run_is_shown_as_it_is(random_gemma, tokenizer, support_rows):
    rows, lines, tick = [to_messages(row) for row in support_rows[1:29]], [], Tick()
    settings = TrainSettings(per_device_train_batch_size=4, num_train_epochs=4, gradient_checkpointing=False, max_length=128)
    watching = LiveHistory(lines.append, clock=lambda: tick.now)
    given = load_4bit(random_gemma, torch.float32), tokenizer, rows[:24], settings, LoraSettings(r=4), torch.float32
    with short_trainer(*given, eval_rows=rows[24:], callbacks=[tick, watching]) as trainer:
        trainer.evaluate()  # by hand, before and after: nothing to show
        trainer.train()
        trainer.evaluate()
        tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    first, last = lines[0], lines[-1]
    assert (first.doing, first.step, first.max_steps, first.done) == ("preparing", 0, 12, False)
    validating = {f"validating {n} of 4" for n in (1, 2, 3, 4)}  # row by row
    assert {p.doing for p in lines} == {"preparing", "training", *validating, "done"}
    assert (last.step, last.epoch, last.num_train_epochs, last.done) == (12, 4.0, 4, True)
    assert last.seconds == pytest.approx((12 + 6 * 4) * 0.6)  # six validations of four rows
    pd.testing.assert_frame_equal(last.history, history_table(trainer.state.log_history))
    best = last.history.loc[last.history["eval_loss"].idxmin()]
    assert (last.best_step, last.best_eval_loss) == (best["step"], best["eval_loss"])
    *_, pace = (p for p in lines if p.doing == "training")
    assert pace.tokens_per_second == pytest.approx(tokens / 3 / 0.6, rel=0.2)  # three updates an epoch, of nearly equal length
    assert last.memory_gib > 0.1


def history(n):
    steps = np.arange(1, n + 1)
    validation = np.where(steps % max(1, n // 4) == 0, 4.0 - steps / n, np.nan)
    others = {"epoch": steps / n, "learning_rate": 1e-3, "grad_norm": 1.0}
    return pd.DataFrame({"step": steps, "loss": 6 - 3 * steps / n, "eval_loss": validation, **others})


def progress_of(n=40, done=False, **changes):
    fake = Fake(steps=n).run(n)
    fake.send("on_train_end")
    return dataclasses.replace(fake.lines[-1 if done else -2], **changes)


def test_a_notebook_gets_one_line_and_one_figure_that_change_in_place(monkeypatch):
    calls = []

    class Handle:
        def __init__(self, shown, display_id):
            self.number, self.shown = len(calls), shown
            calls.append(("display", self.number, type(shown).__name__))

        def update(self, shown):
            calls.append(("update", self.number, type(shown).__name__))

    monkeypatch.setattr(live, "display", Handle)
    view = LiveCurve()
    for _ in range(2):
        view(progress_of())
        view.draw(progress_of())
    assert calls == [("display", 0, "HTML"), ("display", 1, "Image"), ("update", 0, "HTML"), ("update", 1, "Image")]
    assert "step 40 of 40" in view.picture.shown.metadata["alt"]  # for those who can't see it
    assert plt.get_fignums() == []


def test_the_line_says_it_all_and_escapes():
    shown = []
    view = LiveCurve(training_verdict)
    view.line = SimpleNamespace(update=lambda page: shown.append(page.data))
    view(progress_of(best_step=20, best_eval_loss=3.5, doing="validating <3>"))
    said = ["step 40 of 40", "epoch 1.2 of 3", "best validation 3.50 at step 20", "500 tokens/s", "GiB", "Next:"]
    assert not [words for words in [*said, "validating &lt;3&gt;"] if words not in shown[0]]


def test_the_picture_is_a_png_and_keeps_nothing_of_the_one_before():
    assert curve_png(history(8)).startswith(b"\x89PNG")
    axes, broken = curve_axes(), history(50)
    broken.loc[20:, "loss"] = np.inf
    for now in (history(0), history(8), broken, history(300), history(40).assign(loss=np.linspace(1, 99, 40)), history(12)):
        assert curve_png(now, axes=axes) == curve_png(now)


def test_a_terminal_gets_a_line_that_moves_and_a_file_few_lines():
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    view = TextProgress(terminal, training_verdict)
    view(progress_of())
    *_, line = terminal.getvalue().split("\r")
    assert line.startswith("step 40 of 40")
    assert len(line) < shutil.get_terminal_size().columns  # else it would not be written over, but left behind
    view(progress_of(done=True))
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().endswith(f"\n{training_verdict(progress_of().history, finished=True)}\n")
    log = io.StringIO()
    view = TextProgress(log)
    for _ in range(5):
        view(progress_of())
    view(progress_of(done=True))
    assert log.getvalue().count("step 40 of 40") == 2  # the first of five in 10 seconds, and the last
    assert "in all" in log.getvalue()


def test_the_view_suits_the_place(monkeypatch):
    assert isinstance(live_view(), TextProgress)
    monkeypatch.setattr(live, "get_ipython", lambda: type("Shell", (), {"kernel": 1})())
    assert isinstance(live_view(), LiveCurve)
    assert live_view(training_verdict).verdict is training_verdict


def test_the_loss_curve_shows_its_data():
    ax = loss_curve(history(8), title="mine")
    assert ax.get_title() == "mine"
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [list(range(1, 9)), [2, 4, 6, 8]]
    assert "best 3.00" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_seconds_read_like_a_clock():
    assert [clock(s) for s in (7.4, 754, 3723)] == ["0:07", "12:34", "1:02:03"]
