"""Intervals hold what they promise, equal models are not called different, and few rows are not believed."""

import numpy as np
import pandas as pd
import pytest

from gemma_colab.evaluation.compare import (
    COLUMNS,
    _expanded,
    clearly,
    compare,
    loss_gap,
    mcnemar,
    paired_bootstrap,
    paired_proportions,
    share_interval,
)
from gemma_colab.evaluation.verdict import word_for


def trial(kind: str, rng: np.random.Generator, rows: int, difference: float):
    """(before, after, weights or None, the true difference) of random rows of one kind."""
    if kind == "normal":
        before = rng.normal(0, 1, rows)
        return before, 0.5 * before + rng.normal(difference, 1, rows) - 0.0, None, difference
    if kind == "skewed":
        before = rng.beta(0.5, 3, rows)
        return before, before + rng.exponential(0.1, rows) - 0.1 + difference, None, difference
    if kind == "yes or no":
        before = (rng.random(rows) < 0.5).astype(float)
        after = np.where(rng.random(rows) < 0.4, (rng.random(rows) < 0.5 + difference).astype(float), before)
        return before, after, None, 0.4 * difference
    if kind == "few rows change":  # as where both give the same answer mostly
        before = rng.random(rows)
        return before, np.where(rng.random(rows) < 6 / rows, before + rng.normal(0, 0.3, rows), before), None, 0.0
    tokens = rng.integers(5, 80, rows)  # a loss: sums over tokens
    before = tokens * rng.normal(3, 0.5, rows)
    return before, before + tokens * rng.normal(difference, 0.5, rows), tokens, difference


KINDS = ("normal", "skewed", "yes or no", "loss")


def simulate(rows: int, difference: float, trials: int = 1000, seed: int = 11) -> tuple[float, float]:
    """Shares of trials in which the interval held the truth, and in which the two were called different."""
    rng, held, called = np.random.default_rng(seed), 0, 0
    for n in range(trials):
        before, after, weights, truth = trial(KINDS[n % len(KINDS)], rng, rows, difference)
        line = compare({"m": (before, after)}, weights=None if weights is None else {"m": weights}).iloc[0]
        held += line["low"] <= truth <= line["high"]
        called += line["clear"] == "yes"
    return held / trials, called / trials


@pytest.mark.parametrize("rows", [12, 30, 82])  # at 12, BCa of scipy.stats.bootstrap holds the truth in 92 % only
def test_intervals_cover_the_truth_and_equal_models_are_rarely_called_different(rows):
    held, called = simulate(rows, 0.0)
    assert 0.93 <= held <= 0.97
    assert called <= 0.06


def test_equal_models_are_rarely_called_different_where_few_rows_change():
    rng, called = np.random.default_rng(3), 0
    for _ in range(500):
        before, after, _, _ = trial("few rows change", rng, 82, 0.0)
        called += compare({"m": (before, after)}).iloc[0]["clear"] == "yes"
    assert called / 500 <= 0.06


def test_many_measures_of_equal_models_seldom_make_a_verdict():
    rng, words = np.random.default_rng(5), []
    for _ in range(400):
        scores, weights = {}, {}
        for n, kind in enumerate([*KINDS, "normal", "skewed", "few rows change"]):
            before, after, tokens, _ = trial(kind, rng, 82, 0.0)
            scores[f"{kind} {n}"] = before, after
            if tokens is not None:
                weights[f"{kind} {n}"] = tokens
        words.append(word_for(compare(scores, weights=weights)))
    assert words.count("no clear difference") / len(words) >= 0.94


def test_proportions_have_a_width_where_nothing_changed():
    for before, after in (([0.0] * 40, [0.0] * 40), ([0.0] * 40, [1.0] * 40)):
        difference, low, high = paired_proportions(before, after)
        assert high - low > 0.02
        assert low - 0.03 <= difference <= high + 0.03


def test_a_real_difference_is_covered_and_found():
    held, called = simulate(82, 0.3)
    assert 0.93 <= held <= 0.97
    assert called > 0.5


def test_the_interval_is_paired():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 10, 50)  # rows differ a lot, and after differs from before by very little
    difference, low, high = paired_bootstrap(before, before + 0.5 + rng.normal(0, 0.1, 50))
    assert 0.4 < low < difference < high < 0.6


def test_weights_are_tokens_and_the_seed_is_fixed():
    difference, low, high = paired_bootstrap([10.0, 40.0], [5.0, 20.0], weights=[5, 10])
    assert difference == pytest.approx(-25 / 15)
    assert low <= difference <= high
    assert paired_bootstrap([1, 2, 3], [2, 2, 5]) == paired_bootstrap([1, 2, 3], [2, 2, 5])


BEFORE = np.arange(20) * 0.05
AFTER = BEFORE + np.sin(np.arange(20)) * 0.2 + 0.1
FEW = BEFORE + 0.5 * (np.arange(20) < 4)


@pytest.mark.parametrize(
    ("after", "how", "interval"),
    [
        (AFTER, {}, (0.1008528, 0.0330065, 0.1687920)),
        (AFTER, {"level": 0.9}, (0.1008528, 0.0442793, 0.1547928)),
        (AFTER, {"seed": 1, "resamples": 500}, (0.1008528, 0.0306879, 0.1695601)),
        (AFTER, {"weights": range(1, 21)}, (0.0096050, 0.0033437, 0.0175230)),
        (FEW, {}, (0.1, 0.025, 0.2)),
        (FEW, {"level": 0.8}, (0.1, 0.05, 0.15)),
    ],
)
def test_intervals_of_the_bootstrap_as_they_were(after, how, interval):
    """Not by another program: these are the figures that held the truth in the simulations of this file."""
    assert paired_bootstrap(BEFORE, after, **how) == pytest.approx(interval, abs=2e-7)


def test_quantiles_are_wider_by_as_much_as_students_t():
    assert _expanded(1) == (0.0, 1.0)
    assert _expanded(2) == pytest.approx((0, 1), abs=1e-9)  # two rows say next to nothing
    assert _expanded(10) == pytest.approx((0.0085506, 0.9914494), abs=1e-7)
    assert _expanded(10, 0.9) == pytest.approx((0.0266631, 0.9733369), abs=1e-7)
    assert _expanded(100_000) == pytest.approx((0.025, 0.975), abs=1e-5)


def test_intervals_of_proportions_by_the_formula():
    before, after = [0] * 8 + [1] * 4, [1] * 5 + [0] * 3 + [1] * 3 + [0]  # five gained, one lost
    assert paired_proportions(before, after) == pytest.approx((1 / 3, -0.0531010, 0.6245295), abs=1e-7)
    assert paired_proportions(before, after, level=0.8) == pytest.approx((1 / 3, 0.0641749, 0.5072537), abs=1e-7)
    assert paired_proportions([0] * 3, [1] * 3) == pytest.approx((1, 0.0185807, 1), abs=1e-7)
    assert paired_proportions([1] * 3, [0] * 3) == pytest.approx((-1, -1, -0.0185807), abs=1e-7)


def test_each_column_of_a_comparison():
    table = compare(
        {"a": (BEFORE, AFTER), "loss": ([30.0, 20.0] * 6, [10.0, 20.0] * 6), "right": ([0] * 12, [1] * 7 + [0] * 5)},
        weights={"loss": [10, 5] * 6},
        lower_is_better=["loss"],
    )
    assert list(table.columns) == COLUMNS
    expected = [
        ("a", "higher", 20, 0.475, 0.5758528, 0.1008528, 0.0330065, 0.1687920, 13, 0, 7, None, "yes"),
        ("loss", "lower", 12, 10 / 3, 2, -4 / 3, -1.8181818, -0.5714286, 6, 6, 0, 0.03125, "perhaps"),
        ("right", "higher", 12, 0, 7 / 12, 7 / 12, 0.2030206, 0.7969794, 7, 5, 0, 0.015625, "yes"),
    ]
    for line, values in zip(table.to_dict("records"), expected, strict=True):
        for name, value in zip(COLUMNS, values, strict=True):
            if value is None:
                assert np.isnan(line[name])
            else:
                assert line[name] == (pytest.approx(value, abs=2e-7) if isinstance(value, float) else value), name
    better, worse = clearly(table)
    assert (list(better["metric"]), list(worse["metric"])) == (["a", "right"], [])
    better, worse = clearly(table.assign(better=["lower", "lower", "lower"], clear="yes"))
    assert (list(better["metric"]), list(worse["metric"])) == (["loss"], ["a", "right"])
    nine, ten = compare({"m": ([0] * 9, [1] * 9)}), compare({"m": ([0] * 10, [1] * 10)})
    assert (nine["clear"][0], ten["clear"][0]) == ("too few rows", "yes")


def test_two_sets_of_rows():
    rng = np.random.default_rng(0)
    a, b = rng.normal(2, 0.3, 80), rng.normal(3, 0.3, 40)
    difference, low, high = loss_gap(*(pd.DataFrame({"loss": some, "tokens": 1}) for some in (a, b)))
    assert low < 1 < high
    assert difference == pytest.approx(b.mean() - a.mean())
    train = pd.DataFrame({"loss": [10.0, 12, 9, 14, 8], "tokens": [5, 5, 4, 6, 4]})
    other = pd.DataFrame({"loss": [15.0, 13, 16, 20], "tokens": [5, 4, 5, 8]})
    assert loss_gap(train, other) == pytest.approx((64 / 22 - 53 / 24, 0.1856401, 1.2140020), abs=2e-7)


def test_the_interval_of_a_share_is_wilsons():
    assert share_interval([True, 0, 0.0, False, 1]) == pytest.approx((0.1176208, 0.7692757), abs=1e-6)  # 2 of 5
    assert share_interval([0] * 4)[0] == 0


def test_mcnemar_is_the_coin():
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 1) == pytest.approx(0.625)


def test_compare_counts_rows_and_says_when_they_are_too_few():
    table = compare(
        {
            "better": ([0.0] * 30, [1.0] * 30),
            "few": ([0.0] * 5, [1.0] * 5),
            "same": ([1.0, 0.0] * 10, [1.0, 0.0] * 10),
            "none": ([None], [None]),
            "bad": ([0.0] * 30, [0.5] * 29 + [-1.0]),
        },
        lower_is_better=["bad"],
    ).set_index("metric")
    assert table["clear"].to_dict() == {"better": "yes", "few": "too few rows", "same": "no", "bad": "yes"}
    assert table.loc["bad", ["wins", "ties", "losses"]].tolist() == [1, 0, 29]
    assert table.loc["better", ["wins", "ties", "losses"]].tolist() == [30, 0, 0]
    assert table.loc["better", "p"] < 1e-6
    assert np.isnan(table["p"].astype(float)["bad"])


def test_what_is_clear_only_without_the_correction_is_called_so():
    rng = np.random.default_rng(1)
    before = rng.normal(0, 1, 60)
    after = before + rng.normal(0.3, 1, 60)  # two standard errors and a bit
    assert compare({"m": (before, after)}).iloc[0]["clear"] == "yes"
    many = compare({"m": (before, after)} | {f"{n}": (before, before) for n in range(9)})
    assert many.iloc[0]["clear"] == "perhaps"


def test_scores_may_be_yes_or_no_and_must_be_of_the_same_rows():
    table = compare({"m": ([False] * 12, [True] * 12)})
    assert table.loc[0, ["before", "after", "difference", "clear"]].tolist() == [0, 1, 1, "yes"]
    for before, after, tokens in (
        ([1.0] * 12, [1.0] * 11, None),
        ([1.0] * 11, [1.0] * 12, None),
        ([1.0] * 12, [1.0] * 12, [1] * 11),
    ):
        with pytest.raises(ValueError, match=r"argument \d is"):
            compare({"m": (before, after)}, weights={"m": tokens} if tokens else None)


def test_mcnemars_p_is_corrected_for_several_measures_too():
    """A fair coin does so in 3.1 % of cases: enough for one measure, too often for two, though the interval still leaves out zero."""
    scores = [0.0] * 30, [1.0] * 6 + [0.0] * 24
    alone, one_of_two = (compare({f"{n}": scores for n in range(many)}).iloc[0] for many in (1, 2))
    assert alone["p"] == one_of_two["p"] == 2 / 2**6
    assert paired_proportions(*scores, level=1 - 0.05 / 2)[1] > 0
    assert (alone["clear"], one_of_two["clear"]) == ("yes", "perhaps")


def test_a_loss_that_is_no_number_is_worse_and_a_row_without_tokens_has_none():
    table = compare({"loss": ([3.0] * 12, [float("nan")] * 12)}, weights={"loss": [1] * 12})
    assert table.iloc[0]["clear"] == "no number"
    assert [len(part) for part in clearly(table)] == [0, 1]
    assert word_for(table) == "worse"
    table = compare({"loss": ([3.0] * 12, [2.0] * 12)}, weights={"loss": [1] * 11 + [0]})
    assert table.iloc[0]["rows"] == 11
