"""Intervals have the coverage they claim, paired tests their level, and nothing depends on the order of studies."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from sklearn.metrics import f1_score

from evaluation import statistics
from evaluation.ablation_table import difference
from evaluation.breakdowns import breakdown
from evaluation.compare import compare, same_studies, table
from evaluation.scores import Scores, judge_statistics
from evaluation.tables import with_p
from evaluation.training_parts import pairs_table


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


def test_interval_covers_with_only_ten_patients():
    def draw(rng):
        return rng.normal(3.0, 1.0, 10), range(10)

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


@pytest.mark.parametrize("patients", [1, 2, 5, 9])
def test_few_patients_have_no_interval(patients):
    """With two patients a bootstrap's 95% interval holds the true value in half of all cases."""
    values = np.arange(2.0 * patients)
    interval = statistics.bootstrap({"x": statistics.mean(values)}, np.repeat(np.arange(patients), 2))["x"]
    assert (interval.mean, interval.low, interval.high) == (values.mean(), None, None)


def test_no_interval_claims_certainty():
    """Exact for 0 of 30: 0 to 11.6%."""
    n = 30
    never, always = statistics.mean(np.zeros(n)), statistics.mean(np.ones(n))
    missed = statistics.f1(np.arange(n)[:, None] < 3, np.zeros((n, 1), bool))
    found = statistics.f1(np.arange(n)[:, None] < 3, np.arange(n)[:, None] < 3)
    rare = statistics.count(np.zeros(n))
    statements = {"never": never, "always": always, "missed": missed, "found": found, "rare": rare}
    made = statistics.bootstrap(statements, range(n), resamples=50)
    assert (made["never"].low, made["never"].high) == (0.0, pytest.approx(0.1157, abs=1e-4))
    assert (made["always"].low, made["always"].high) == (pytest.approx(0.8843, abs=1e-4), 1.0)
    assert made["missed"].low == 0.0
    assert made["missed"].high > 0.7  # three cases say little
    assert made["found"].low < 0.5
    assert made["found"].high == 1.0
    assert made["rare"].high == pytest.approx(3.689 / n, abs=1e-3)
    alike = statistics.bootstrap({"x": statistics.mean(np.full(n, 0.37))}, range(n), resamples=50)["x"]
    assert (alike.mean, alike.low, alike.high) == (pytest.approx(0.37), None, None)


def test_f1_without_a_positive_in_the_references_does_not_exist():
    nobody, said = np.zeros((20, 1), bool), np.arange(20)[:, None] < 4
    for candidate in (nobody, said):
        assert statistics.f1(nobody, candidate).value is None
    assert statistics.f1(said, nobody).value == 0.0
    # A resample that has lost all positives is none with F1 0.
    assert np.isnan(statistics.f1(said, said).from_sums(np.array([[0.0, 3.0, 0.0], [6.0, 6.0, 3.0]]))).tolist() == [
        True,
        False,
    ]


def test_a_share_of_patients_with_several_studies_counts_patients():
    """Ten alike studies of a patient are one observation."""
    hits = np.repeat(np.arange(40) < 10, 10).astype(float)
    clustered = statistics.bootstrap({"x": statistics.mean(hits)}, np.repeat(np.arange(40), 10), resamples=50)["x"]
    single = statistics.bootstrap({"x": statistics.mean(hits[::10])}, range(40), resamples=50)["x"]
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))


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
    assert result.p < 1e-6  # beyond what 9,999 permutations can show


def test_p_beyond_the_permutations_is_their_tail_and_not_below_what_the_patients_allow():
    rng = np.random.default_rng(0)
    for patients in (12, 400):
        values = rng.normal(0.25, 1.0, patients) if patients > 100 else rng.normal(3.0, 1.0, patients)
        a, b = {"x": statistics.mean(values)}, {"x": statistics.mean(np.zeros(patients))}
        few = statistics.paired(a, b, range(patients), resamples=10, permutations=99)["x"].p
        many = statistics.paired(a, b, range(patients), resamples=10, permutations=49_999)["x"].p
        if patients > 100:
            assert 0.2 < few / many < 5  # 99 permutations end at 0.01
        assert few >= statistics.smallest_p(patients)
    assert statistics.smallest_p(12) == pytest.approx(2 / 2**12)


def test_p_of_few_patients_is_of_all_swaps_and_marked_where_no_smaller_one_is_possible():
    rng = np.random.default_rng(3)
    values = rng.normal(1.0, 1.0, 8)
    zero = np.zeros(8)
    swaps = np.array([(values * signs).mean() for signs in itertools.product((1, -1), repeat=8)])
    expected = (np.abs(swaps) >= abs(values.mean()) - 1e-12).mean()
    # 300 patients more, whose two reports are the same, tell nothing.
    alike = rng.normal(size=300)
    for a, b in ((values, zero), (np.concatenate([values, alike]), np.concatenate([zero, alike]))):
        result = statistics.paired({"x": statistics.mean(a)}, {"x": statistics.mean(b)}, range(len(a)), resamples=50)[
            "x"
        ]
        assert result.p == pytest.approx(expected)
        assert result.p_at_floor == (expected <= 2 / 2**8)
    for a, at_floor in ((np.abs(values) + 1, True), (np.tile([1.0, -0.9], 4), False)):
        result = statistics.paired({"x": statistics.mean(a)}, {"x": statistics.mean(zero)}, range(8), resamples=50)["x"]
        assert result.p_at_floor == at_floor
        row = {**result.as_dict(), "p_holm": 4 * result.p}
        assert ("no smaller one possible" in with_p(row)) == at_floor
        assert ("no smaller one possible" in difference(row)) == at_floor
    same = statistics.paired({"x": statistics.mean(zero)}, {"x": statistics.mean(zero)}, range(8), resamples=50)["x"]
    assert (same.p, same.p_at_floor) == (1.0, False)


def test_a_p_at_its_floor_is_marked_by_compare_and_in_the_report():
    models = {"a": made_up_scores(6), "b": made_up_scores(6)}
    for scores, shift in zip(models.values(), (0.5, 0.0), strict=True):
        scores.metrics = {"bleu2": np.linspace(0.1, 0.2, 6) + shift}
    result = compare(models, dict.fromkeys(models, DESCRIBED), resamples=50)
    row = next(row for row in result["pairs"] if row["number"] == "bleu2")
    assert (row["p"], row["p_at_floor"]) == (pytest.approx(2 / 2**6), True)
    assert "no smaller one possible" in next(line for line in table(result).splitlines() if "− b: bleu2" in line)
    pairs = pairs_table(result)
    assert "no smaller one possible" in next(cells for cells in pairs.rows if cells[0] == "a − b")[4]


def test_paired_is_over_the_studies_that_both_have():
    values = np.random.default_rng(0).poisson(2.0, 200).astype(float)
    lost = np.where(values >= np.sort(values)[-20], np.nan, values)  # the worst reports of one model are not judged
    result = statistics.paired({"x": statistics.count(lost)}, {"x": statistics.count(values)}, range(200))["x"]
    assert (result.a - result.b, result.difference.mean, result.p) == (0, 0, 1.0)


def test_differences_of_inverses_that_cannot_be_read_do_not_exist():
    rng = np.random.default_rng(0)
    near, clear = rng.normal(0.05, 1.0, 60), rng.normal(2.0, 1.0, 60)
    made = {"near": statistics.inverse_mean(near), "clear": statistics.inverse_mean(clear)}
    other = {name: statistics.inverse_mean(rng.normal(1.5, 1.0, 60)) for name in made}
    result = statistics.paired(made, other, range(60))
    assert (result["near"].difference.mean, result["near"].p) == (None, None)
    assert result["clear"].difference.low <= result["clear"].difference.mean <= result["clear"].difference.high
    mean = statistics.paired({"x": statistics.mean(clear)}, {"x": statistics.mean(near)}, range(60))["x"].p
    inverse = statistics.paired({"x": made["clear"]}, {"x": statistics.inverse_mean(near + 3)}, range(60))["x"].p
    assert mean < 1e-3  # one over a mean is tested as the mean
    assert inverse is not None


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


def test_bootstrap_of_ten_metrics_costs_less_than_of_ten_one_by_one():
    rng = np.random.default_rng(0)
    values = rng.random((10, 10_000))

    def seconds(work) -> float:  # of this process: other work on the machine does not count
        start = time.process_time()
        work()
        return time.process_time() - start

    def one_by_one() -> None:
        for metric in values:
            for _ in range(200):
                metric[rng.integers(0, 10_000, 10_000)].mean()

    made = {f"metric {i}": statistics.mean(metric) for i, metric in enumerate(values)}
    ours = min(seconds(lambda: statistics.bootstrap(made, range(10_000), resamples=200)) for _ in range(2))
    assert ours < seconds(one_by_one)


def test_one_over_a_mean_that_may_be_zero_has_no_interval():
    values = np.random.default_rng(0).normal(0.05, 1.0, 50)
    interval = statistics.bootstrap({"x": statistics.inverse_mean(values)}, range(50))["x"]
    assert interval.mean == pytest.approx(1 / values.mean())
    assert (interval.low, interval.high) == (None, None)


def made_up_scores(n: int, **fields) -> Scores:
    """Scores of n studies of n patients of one data set; `fields` replace the columns."""
    scores = Scores([f"s{i}" for i in range(n)], [f"d/p{i}" for i in range(n)], {f: [None] * n for f in Scores.FIELDS})
    scores.fields |= {
        "dataset": ["d"] * n,
        "reference_sha": [b"x"] * n,
        "words": [30] * n,
        "sections": ["findings"] * n,
    }
    scores.fields |= {"temporal": ["no change"] * n, **fields}
    scores.labels = {name: np.zeros((n, 14), np.int8) for name in ("candidate", "reference")}
    return scores


DESCRIBED = {"metrics": {}, "labels": {"backend": "real"}, "judge": {"name": "j"}, "composite": {"name": "composite"}}


def test_all_pairs_of_nine_models_can_be_significant():
    rng = np.random.default_rng(0)
    models = {}
    for k in range(9):
        models[f"m{k}"] = made_up_scores(200)
        names = ("bleu2", "bertscore", "sembscore", "radgraph", "radcliq_v1", "ratescore", "composite")
        models[f"m{k}"].metrics = {name: 5.0 * k + rng.normal(size=200) for name in names}
    rows = compare(models, dict.fromkeys(models, DESCRIBED), resamples=10)["pairs"]
    tested = [row for row in rows if row["number"] in ("bleu2", "composite", "radcliq_v1", "1/radcliq_v1") and row["p"]]
    assert len(tested) >= 3 * 36
    assert max(row["p_holm"] for row in tested) < 0.001
    families = {row["number"]: row["family"] for row in rows}
    assert families["composite"] == families["radcliq_v1"] == families["label_micro_f1_14"] == "principal"
    assert families["bleu2"] == families["label_micro_f1_5"] == "other"


def test_a_mean_and_one_over_it_are_one_test():
    rng = np.random.default_rng(0)
    models = {name: made_up_scores(80) for name in "ab"}
    for i, scores in enumerate(models.values()):
        scores.metrics = {"radcliq_v1": 2.0 + 0.3 * i + rng.normal(size=80)}
    rows = {row["number"]: row for row in compare(models, dict.fromkeys(models, DESCRIBED), resamples=50)["pairs"]}
    assert rows["1/radcliq_v1"]["p_holm"] == rows["radcliq_v1"]["p_holm"]
    assert rows["radcliq_v1"]["p_holm"] == rows["radcliq_v1"]["p"]  # one test: micro-F1 of no labels has none


def test_studies_that_one_models_judge_failed_for_count_for_none():
    rng = np.random.default_rng(0)
    errors = rng.poisson(2.0, 300).astype(float)
    models = {name: made_up_scores(300) for name in ("lost", "whole")}
    for scores in models.values():
        scores.metrics = {"bleu2": np.zeros(300)}
        scores.significant, scores.insignificant = np.zeros((300, 6)), np.zeros((300, 6))
        scores.significant[:, 0] = errors
        scores.failures = [None] * 300
    worst = np.argsort(errors)[-30:]
    models["lost"].significant[worst] = models["lost"].insignificant[worst] = np.nan
    models["lost"].failures = ["timeout" if i in worst else None for i in range(300)]
    result = compare(models, dict.fromkeys(models, DESCRIBED), resamples=50)
    row = next(row for row in result["pairs"] if row["number"] == "errors j")
    assert (row["a"] - row["b"], row["difference"], row["p"]) == (0, 0, 1.0)
    assert result["means"]["whole"]["errors j"]["mean"] == row["b"]
    assert (result["judge_failed"], result["studies_of"]["errors j"]) == ({"lost": 30}, 270)
    assert "270 studies" in table(result)
    aligned, _ = same_studies(models)
    assert judge_statistics(aligned["lost"])["≤1"].value == judge_statistics(aligned["whole"])["≤1"].value


def test_gaps_between_groups_that_do_not_differ():
    """The interval of the gap that stands out most allows for that choice."""
    rng, excluded = np.random.default_rng(0), 0
    for _ in range(20):
        race = rng.choice(["A", "B", "C", "D", "E"], 300, p=[0.5, 0.2, 0.1, 0.1, 0.1]).tolist()
        scores = made_up_scores(300, race=race)
        scores.metrics = {"bleu2": rng.beta(2, 3, 300)}
        gap = breakdown(scores, DESCRIBED, resamples=5, attributes=["race"], tested=["bleu2"])["race"]["gaps"]["bleu2"]
        excluded += gap["low"] > 0
        assert (gap["low"] > 0) == (gap["p"] < 0.05)
    assert excluded <= 3


def test_a_perfect_model_has_no_gap_where_a_group_has_no_finding():
    rng = np.random.default_rng(0)
    scores = made_up_scores(132, race=["Other"] * 12 + ["White"] * 120)
    labels = (rng.random((132, 14)) < 0.08).astype(np.int8)
    labels[:12, :13], labels[:12, 13] = 0, 1
    scores.labels = {"candidate": labels, "reference": labels.copy()}
    found = breakdown(scores, DESCRIBED, resamples=50, attributes=["race"])["race"]
    assert found["strata"]["Other"]["metrics"]["label_micro_f1_5"]["mean"] is None
    assert "label_micro_f1_5" not in found["gaps"]
    assert found["gaps"]["label_micro_f1_14"]["difference"] == 0


def test_encounters_of_a_data_set_without_dates_are_not_known():
    fields = {"dataset": ["dated"] * 40 + ["undated"] * 60, "encounter": [1 + i % 2 for i in range(40)] + [1] * 60}
    scores = made_up_scores(100, **fields)
    scores.metrics = {"bleu2": np.array([0.2] * 40 + [0.9] * 60)}
    found = breakdown(scores, DESCRIBED, resamples=5, attributes=["encounter"])["encounter"]["strata"]
    assert {name: stratum["n"] for name, stratum in found.items()} == {"1": 20, "2": 20, "unknown": 60}
    assert found["1"]["metrics"]["bleu2"]["mean"] == pytest.approx(0.2)
