"""What is said of a run: on curves made up by the hundred, and on real runs that were made to go wrong."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from gemma_colab.core.curve import HISTORY_COLUMNS, history_table, smoothed
from gemma_colab.core.loading import load_model
from gemma_colab.core.rows import to_messages
from gemma_colab.core.settings import TrainSettings
from gemma_colab.core.trainer import lora_config
from gemma_colab.model.choice import starting_point
from gemma_colab.training.short import short_run
from gemma_colab.training.verdict import VERDICT_WORDS, training_verdict


# ------------------------------------------------------------------------------------------------------------ the table
def log(loss, validation=(), rate=None):
    """A log as Trainer writes it: the losses of step 1, 2, ..., each validation loss after its step."""
    validation, lines = dict(validation), []
    for step, value in enumerate(loss, 1):
        lines.append({"step": step, "epoch": step / 10, "loss": float(value), "grad_norm": 1.0, "num_tokens": 100 * step})
        if rate is not None:
            lines[-1]["learning_rate"] = float(rate[step - 1])
        if step in validation:
            lines.append({"step": step, "epoch": step / 10, "eval_loss": float(validation[step]), "eval_runtime": 1.0})
    return [*lines, {"step": len(loss), "train_runtime": 9.0}]


def test_history_joins_the_two_kinds_of_log_lines():
    lines = log([4, math.nan, 3, 2, 2], {2: 3.5, 4: math.nan})
    table = history_table(lines)
    assert list(table.columns) == HISTORY_COLUMNS
    assert table["step"].tolist() == [1, 2, 3, 4, 5]
    assert table["loss"].tolist() == [4, math.inf, 3, 2, 2]  # NaN means: nothing was logged
    assert table["eval_loss"].fillna(-1).tolist() == [-1, 3.5, -1, math.inf, -1]
    pd.testing.assert_frame_equal(history_table(lines[3:] + lines[:3]), table)  # in the order of the steps
    assert len(history_table([])) == 0


def test_smoothing_follows_the_curve_and_forgets_the_noise():
    steps = np.arange(400)
    curve = pd.Series(3 + 3 * np.exp(-steps / 100))
    noisy = curve * np.exp(np.random.default_rng(0).normal(0, 0.2, 400))
    noisy[50] = math.inf
    error = (smoothed(noisy) / curve - 1).abs()
    assert error.mean() < 0.05
    assert error.max() < 0.25
    assert smoothed(pd.Series([4.0, 2.0])).tolist() == [3.0, 3.0]


# -------------------------------------------------------------------------------------------------------- a few by hand
@pytest.mark.parametrize(
    ("loss", "validation", "said"),
    [
        ([4, 3, 2.5, 2.2], {1: 3.5, 2: 3.2, 4: 2.6}, "learning: .* 2.60, at step 4: it was still falling"),
        ([4, 3, 2.5, 2.4], {2: 2.61, 4: 2.6}, "finished: .* test it on rows it has not seen"),
        ([4, 3, 1, 0.2], {1: 3.5, 2: 3.0, 4: 4.1}, "overfitting: since step 4 .* 3.00 at step 2.*keep the checkpoint of step 2"),
        ([4, 4.01, 3.99, 4], {2: 4.0, 4: 4.0}, "not learning: .*; try three times the learning rate"),
        ([4, 4.1, 9, 9, 7, 12, 11, 12, 12, 12], {5: 8.0, 10: 11.0}, "unstable: .*; try a third of the learning rate"),
        (list(np.linspace(4, 4.75, 60)), {30: 4.3, 60: 4.5}, "unstable: the loss went up from 4.00 to .*; try a third"),
        ([4, *3 * [math.nan]], {2: math.nan, 4: math.nan}, "unstable: the loss is not a finite number at step 2"),
        ([4, 3, 2], {2: math.inf}, "unstable: the validation loss is not a finite number at step 2"),
        ([4, 3, math.inf, 3], {}, "unstable: the loss is not a finite number at step 3"),
        ([0, 0, 0], {}, "unstable: the loss is exactly 0 from step 1 on.*overflow in float16"),
        ([4, 3, 0, 0, 0], {}, "unstable: the loss is exactly 0 from step 3 on"),
        ([4, 2], {}, "finished: the loss fell from .*; add validation rows"),
        ([], {}, "starting: no loss"),
    ],
)
def test_verdict_on_the_end_of_small_runs(loss, validation, said):
    assert pd.Series(str(training_verdict(history_table(log(loss, validation)), finished=True))).str.match(said).all()


def test_a_step_or_two_without_a_single_trained_token_is_no_overflow():
    loss = list(4 * np.exp(-np.arange(60) / 30))
    loss[30] = loss[57] = loss[58] = 0.0
    assert str(training_verdict(history_table(log(loss)))).startswith("learning: the loss fell from 3.87 to 0.70;")


def test_while_the_rate_warms_up_nothing_is_missed():
    rate = np.minimum(1, np.arange(1, 141) / 100)
    flat = 4 + 0.02 * np.sin(np.arange(140))
    history = history_table(log(flat, rate=rate))
    assert training_verdict(history.iloc[:99]).word == "starting"
    assert training_verdict(history.iloc[:125]).word == "starting"  # after 25 steps at the full rate
    assert training_verdict(history).word == "not learning"
    assert training_verdict(history_table(log(flat[:25]))).word == "starting"
    flat[95:105] = 6  # the rate was too high before it was at its peak
    assert training_verdict(history_table(log(flat, rate=rate))).word == "unstable"


def test_when_both_losses_rise_it_is_not_overfitting():
    falls, noise = 4 * np.exp(-np.arange(40) / 30), np.exp(np.random.default_rng(0).normal(0, 0.06, 60))
    loss = np.concatenate([falls, np.full(20, 1.25 * falls[-1])]) * noise
    validation = {step: falls[step - 1] for step in range(10, 41, 10)} | {50: 1.1 * falls[-1], 60: 1.12 * falls[-1]}
    verdict = training_verdict(history_table(log(loss, validation)))
    assert (verdict.word, verdict.best_step, verdict.since) == ("unstable", 40, 50)
    loss[40:] = 0.7 * loss[40:]
    assert training_verdict(history_table(log(loss, validation))).word == "overfitting"


def test_a_verdict_says_where_and_what_next():
    history = history_table(log(np.linspace(4, 0.5, 40), {10: 3.0, 20: 2.5, 30: 2.7, 40: 3.2}))
    during, after = training_verdict(history), training_verdict(history, finished=True)
    for verdict in (during, after):
        assert (verdict.word, verdict.best_step, verdict.since) == ("overfitting", 20, 30)
        assert str(verdict) == f"{verdict.word}: {verdict.sentence}; {verdict.next_step}"
    assert "stop" in during.next_step
    assert "fewer epochs" in after.next_step


# ------------------------------------------------------------------------------------------------------- many, made up
class Made:
    """A curve with its noise. sigma: of the log of a step's loss; heavy: of Student's t with 4 degrees of freedom, so that
    single batches lie far off. Validation losses have none but a little of the weights'."""

    def __init__(self, n, seed, sigma, heavy=False, validation=True):
        self.n, self.random, self.validated = n, np.random.default_rng(seed), validation
        z = self.random.standard_t(4, n) / np.sqrt(2) if heavy else self.random.normal(size=n)
        self.noise, self.steps = np.exp(sigma * z), np.arange(n)
        self.start = self.random.uniform(1.5, 8)
        self.warmup = int(self.random.choice([0, min(10, n // 5)]))
        self.every = max(1, n // int(self.random.integers(4, 12)))
        warm = np.minimum(1, (self.steps + 1) / max(1, self.warmup))
        self.rate = warm * np.where(self.steps < self.warmup, 1, (n - self.steps) / (n - self.warmup))

    def history(self, curve, validation=None):
        validation = curve if validation is None else validation
        points = range(self.every, self.n + 1, self.every) if self.validated else ()
        validated = {step: validation[step - 1] * np.exp(self.random.normal(0, 0.003)) for step in points}
        return history_table(log(curve * self.noise, validated, 2e-4 * self.rate))

    def falling(self):
        floor, pace = self.random.uniform(0.2, 0.7), min(self.n / 5, self.random.uniform(10, 60))
        return self.start * (floor + (1 - floor) * np.exp(-np.cumsum(self.rate) / pace))

    def healthy(self):
        return self.history(self.falling())

    def stalled(self):
        return self.history(self.start * (1 - 0.008 * self.random.uniform() * self.steps / self.n))

    def jumps(self):
        """At the start: up as soon as the rate is reached, and down again to somewhere below or above the start."""
        at, up, plateau = self.warmup + 1, self.random.uniform(1.5, 3), self.random.uniform(0.7, 1.4)
        decay = np.exp(-(self.steps - at) / self.random.uniform(4, 10))
        return self.history(self.start * np.where(self.steps < at, 1, plateau + (up - plateau) * decay))

    def diverges(self):
        """In mid-run, and stays up."""
        at, up = self.n * self.random.uniform(0.4, 0.8), self.random.uniform(2, 4)
        return self.history(
            self.falling() * (1 + (up - 1) * (1 - np.exp(-np.clip(self.steps - at, 0, None) / max(2, self.n / 30))))
        )

    def overfits(self):
        turn, up = self.n * self.random.uniform(0.25, 0.5), self.random.uniform(0.3, 1)
        before, after = 1 + 0.5 * (1 - self.steps / turn) ** 2, 1 + up * (self.steps - turn) / self.n
        train = self.start * (0.05 + 0.95 * np.exp(-self.steps / (self.n / 5)))
        return self.history(train, 0.6 * self.start * np.where(self.steps < turn, before, after))


def words(kind, n, sigma, heavy=False, validation=True):
    """How many runs of a kind end with each word, and how many ever had it, looked at 14 times while they grew."""
    end, ever = Counter(), Counter()
    for seed in range(RUNS):
        history = getattr(Made(n, seed, sigma, heavy, validation), kind)()
        end[training_verdict(history, finished=True).word] += 1
        ever.update({training_verdict(history.iloc[: int(m)]).word for m in np.linspace(1, n, 14)})
    assert set(end) | set(ever) <= set(VERDICT_WORDS)
    return end, ever


RUNS = 25  # of each kind, length and noise
NOISES = [(0.03, False), (0.1, False), (0.2, False), (0.2, True)]


@pytest.mark.parametrize(("sigma", "heavy"), NOISES)
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("n", [16, 60, 400, 2000])
def test_no_false_alarm_on_a_healthy_run(n, validation, sigma, heavy):
    end, ever = words("healthy", n, sigma, heavy, validation)
    assert end["overfitting"] == ever["overfitting"] == 0
    assert end["unstable"] + end["not learning"] <= 1
    assert ever["unstable"] <= (3 if heavy else 1)
    assert ever["not learning"] <= 2
    if validation or n >= 400 or sigma < 0.05:
        assert end["finished"] + end["learning"] >= RUNS - 2


@pytest.mark.parametrize(("sigma", "heavy"), NOISES)
@pytest.mark.parametrize("n", [16, 60, 400, 2000])
def test_a_run_that_stalls_is_not_learning(n, sigma, heavy):
    end, ever = words("stalled", n, sigma, heavy)
    assert end["not learning"] >= RUNS - 2
    assert end["finished"] + end["learning"] <= 1
    if n >= 60:
        assert ever["not learning"] >= RUNS - 2  # said before the end
    end, _ = words("stalled", n, sigma, heavy, validation=False)
    assert end["not learning"] + end["unclear"] >= RUNS - 2  # without validation there may be too much noise to tell
    assert end["finished"] + end["learning"] <= 2


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("n", [16, 60, 400, 2000])
def test_a_run_that_jumps_or_diverges_is_unstable(n, validation):
    for kind, sigma, least in (("jumps", 0.03, 24), ("jumps", 0.08, 19), ("diverges", 0.03, 24), ("diverges", 0.1, 21)):
        end, ever = words(kind, n, sigma, validation=validation)
        assert end["unstable"] >= least, (kind, sigma)
        assert ever["unstable"] >= least, (kind, sigma)


@pytest.mark.parametrize(("sigma", "heavy"), NOISES)
@pytest.mark.parametrize("n", [16, 60, 400, 2000])
def test_a_run_that_overfits_is_told_to_and_from_where(n, sigma, heavy):
    end, ever = words("overfits", n, sigma, heavy)
    assert end["overfitting"] >= RUNS - heavy
    assert ever["overfitting"] >= RUNS - 1  # while there is still something to save
    assert ever["unstable"] + ever["not learning"] <= 2
    history = Made(n, 0, sigma, heavy).overfits()
    verdict, validated = training_verdict(history), history.dropna(subset=["eval_loss"])
    best = validated["eval_loss"].idxmin()
    assert verdict.best_step == validated["step"][best]
    assert verdict.since == validated["step"][validated.index > best].iloc[0]


def test_a_validation_loss_that_stays_is_settled_and_one_that_falls_by_little_each_time_is_not():
    steps = np.arange(1, 201)
    flat = log(2 + 2 * np.exp(-steps / 20), {step: 2.2 + 2 * math.exp(-step / 20) for step in range(10, 201, 10)})
    verdict = training_verdict(history_table(flat))
    assert verdict.word == "settled"
    assert verdict.since == 160
    falling = log(5 * 0.996**steps, {step: 5 * 0.996**step for step in range(2, 201, 2)})
    assert training_verdict(history_table(falling)).word == "learning"


# --------------------------------------------------------------------------------------------------------- real runs
@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny-gemma3", torch.float32)


@pytest.fixture(scope="module")
def real(tiny, tokenizer, support_rows):
    """(changes of the settings, rows, times) -> the history of a real run of the tiny Gemma 3, on its shortest rows."""
    chats = sorted((to_messages(row) for row in support_rows[1:]), key=lambda chat: len(str(chat)))
    lora, settings = starting_point("tiny-gemma3")

    def run(rows, **changes) -> pd.DataFrame:
        now: TrainSettings = settings.replace(warmup_steps=2, **changes)
        return short_run(tiny, tokenizer, chats[8 : 8 + rows], now, lora_config(lora), torch.float32, eval_rows=chats[:8])

    return run


def test_a_real_run_that_goes_well_is_praised_throughout(real):
    history = real(160, num_train_epochs=1, evals_per_epoch=4)
    during = [training_verdict(history.iloc[:n]).word for n in range(1, len(history) + 1)]
    assert set(during) <= {"starting", "learning", "settled"}
    assert during[-1] != "starting"
    assert training_verdict(history, finished=True).word in ("learning", "finished")


@pytest.mark.parametrize(
    ("word", "rows", "changes"),
    [
        ("overfitting", 8, dict(num_train_epochs=32, evals_per_epoch=1, learning_rate=6e-3, lr_scheduler_type="constant")),
        ("unstable", 160, dict(num_train_epochs=1, learning_rate=0.1)),  # 33 times what suits it
        ("not learning", 128, dict(num_train_epochs=1, learning_rate=3e-6)),  # a thousandth
    ],
)
def test_a_real_run_that_was_made_to_go_wrong_is_told(real, word, rows, changes):
    history = real(rows, **changes)
    verdict = training_verdict(history, finished=True)
    assert verdict.word == word
    if word == "overfitting":
        assert verdict.best_step < verdict.since < len(history) / 2
    else:  # the training loss alone says so too
        assert training_verdict(history.assign(eval_loss=np.nan), finished=True).word == word
