"""Intervals have the coverage they claim, paired tests their level, and nothing depends on the order of studies."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluation import statistics


def coverage(draw, truth: float, statistic, rounds: int = 300) -> float:
    hits = 0
    for seed in range(rounds):
        values, patients = draw(np.random.default_rng(seed))
        interval = statistics.bootstrap({"x": statistic(values)}, patients, resamples=400, seed=seed)["x"]
        hits += interval.low <= truth <= interval.high
    return hits / rounds


def test_interval_of_a_skewed_mean_covers_the_truth():
    def draw(rng):
        return rng.gamma(1.0, 1.0, 80), range(80)

    assert 0.90 <= coverage(draw, 1.0, statistics.mean) <= 0.99


def test_interval_covers_with_only_eight_patients():
    def draw(rng):
        return rng.normal(3.0, 1.0, 8), range(8)

    assert 0.90 <= coverage(draw, 3.0, statistics.mean) <= 0.99


def test_interval_covers_when_patients_have_several_alike_studies():
    def draw(rng):
        patients = np.repeat(np.arange(40), 5)
        return rng.normal(0, 1, 40)[patients] + rng.normal(0, 0.3, 200), patients

    assert 0.90 <= coverage(draw, 0.0, statistics.mean) <= 0.99
    # Taking the same studies for independent ones covers far too seldom: the clusters matter.
    assert coverage(lambda rng: (draw(rng)[0], range(200)), 0.0, statistics.mean) < 0.80


def test_interval_of_one_over_the_mean_covers():
    def draw(rng):
        return rng.normal(1.1, 0.8, 120), range(120)

    assert 0.90 <= coverage(draw, 1 / 1.1, statistics.inverse_mean) <= 0.99


def test_interval_of_micro_f1_covers():
    probability = np.array([0.3, 0.1, 0.05])
    # With recall .7 and a false positive rate .1, the population's micro-F1 is known.
    tp, fp, fn = (probability * 0.7).sum(), ((1 - probability) * 0.1).sum(), (probability * 0.3).sum()
    population = 2 * tp / (2 * tp + fp + fn)
    hits = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        truth = rng.random((150, 3)) < probability
        candidate = np.where(truth, rng.random((150, 3)) < 0.7, rng.random((150, 3)) < 0.1)
        interval = statistics.bootstrap({"f": statistics.f1(truth, candidate)}, range(150), resamples=400)["f"]
        hits += interval.low <= population <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_f1_equals_scikit_learn():
    rng = np.random.default_rng(0)
    truth, candidate = rng.random((60, 5)) < 0.3, rng.random((60, 5)) < 0.3
    truth[:, 4] = candidate[:, 4] = False  # a condition that never appears
    for average in ("micro", "macro"):
        expected = f1_score(truth, candidate, average=average, zero_division=0)
        assert statistics.f1(truth, candidate, average).value == pytest.approx(expected)


def test_one_over_radcliq_inverts_the_mean_and_not_the_studies():
    assert statistics.inverse_mean(np.array([-0.5, 0.0, 2.0])).value == pytest.approx(1 / 0.5)


def test_nan_is_left_out_of_a_mean_and_not_taken_for_zero():
    assert statistics.mean(np.array([1.0, np.nan, 3.0])).value == pytest.approx(2.0)
    assert statistics.mean(np.array([np.nan, np.nan])).value is None


def test_intervals_are_the_same_for_the_same_seed_and_any_order_of_studies_of_a_patient():
    values = np.arange(30.0)
    patients = np.repeat(np.arange(10), 3)
    first = statistics.bootstrap({"x": statistics.mean(values)}, patients, seed=3)
    assert first == statistics.bootstrap({"x": statistics.mean(values)}, patients, seed=3)
    assert first != statistics.bootstrap({"x": statistics.mean(values)}, patients, seed=4)
    within = values.reshape(10, 3)[:, ::-1].ravel()
    again = statistics.bootstrap({"x": statistics.mean(within)}, patients, seed=3)
    assert again["x"].low == pytest.approx(first["x"].low)


def test_one_patient_has_no_interval():
    interval = statistics.bootstrap({"x": statistics.mean(np.array([1.0, 2.0]))}, ["a", "a"])["x"]
    assert (interval.mean, interval.low, interval.high) == (1.5, None, None)


def test_paired_test_keeps_its_level_and_finds_a_real_difference():
    rejected = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shared = rng.normal(0, 1, 40)
        a, b = (statistics.mean(shared + rng.normal(0, 0.5, 40)) for _ in range(2))
        rejected += statistics.paired({"x": a}, {"x": b}, range(40), resamples=50, permutations=199)["x"].p <= 0.05
    assert rejected / 200 <= 0.10
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 100)
    better = statistics.mean(shared + 0.3 + rng.normal(0, 0.2, 100))
    result = statistics.paired({"x": better}, {"x": statistics.mean(shared)}, range(100))["x"]
    assert result.p < 0.001
    assert 0.2 < result.difference.low < result.difference.mean < result.difference.high < 0.4


def test_a_model_against_itself_differs_by_nothing():
    values = np.random.default_rng(0).random(20)
    result = statistics.paired({"x": statistics.mean(values)}, {"x": statistics.mean(values)}, range(20))["x"]
    assert (result.difference.mean, result.difference.low, result.difference.high, result.p) == (0, 0, 0, 1.0)


def test_paired_test_of_a_ratio_statistic():
    rng = np.random.default_rng(1)
    truth = rng.random((200, 14)) < 0.2
    good = truth ^ (rng.random((200, 14)) < 0.05)
    poor = truth ^ (rng.random((200, 14)) < 0.20)
    result = statistics.paired({"f": statistics.f1(truth, good)}, {"f": statistics.f1(truth, poor)}, range(200))["f"]
    assert result.difference.low > 0.1
    assert result.p == pytest.approx(1 / 10_000)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]


def test_gap_between_strata():
    rng = np.random.default_rng(0)
    strata = np.repeat(["F", "M"], 100)
    same, apart = rng.normal(0, 1, 200), rng.normal(0, 1, 200) + (strata == "F")
    both = {"same": statistics.mean(same), "apart": statistics.mean(apart)}
    found = statistics.gap_test(both, strata, range(200))
    assert found["same"] > 0.05
    assert found["apart"] < 0.01
    assert statistics.gap_test(both, ["all"] * 200, range(200)) == {"same": None, "apart": None}


def test_bootstrap_of_ten_thousand_studies_is_quick():
    rng = np.random.default_rng(0)
    values = {f"metric {i}": statistics.mean(rng.random(10_000)) for i in range(10)}
    start = time.perf_counter()
    statistics.bootstrap(values, range(10_000), resamples=1_000)
    assert time.perf_counter() - start < 10


def test_one_over_a_mean_that_may_be_zero_has_no_interval():
    values = np.random.default_rng(0).normal(0.05, 1.0, 50)
    interval = statistics.bootstrap({"x": statistics.inverse_mean(values)}, range(50))["x"]
    assert interval.mean == pytest.approx(1 / values.mean())
    assert (interval.low, interval.high) == (None, None)
