"""Intervals, paired tests and Holm's correction, as matrix products over sums per patient.

Every number of the evaluation (a mean, 1/mean, an F1) is a ratio of sums over studies, or the mean of such ratios. So each
study adds a few columns once, the columns are summed per patient, and a resample of patients is one row of counts times
that matrix, in memory that does not grow with the number of resamples.

Patients are what is resampled, swapped and permuted, because studies of one patient are not independent. Where each patient
has one study this is the same over studies. tests/evaluation/test_statistics_coverage.py simulates how often each interval holds the
true value, and how often each test errs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import stats

from evaluation.statistics.intervals import count_interval, divide, number_or_none, share_interval, sum_by

RESAMPLES = 4_000  # another seed moves an interval's end by about 2% of the half width
PERMUTATIONS = 9_999
EXACT_PATIENTS = 13  # up to so many that differ, all 2^12 swaps are fewer than the permutations
LEVEL = 0.95
MIN_PATIENTS = 10  # no interval of fewer: two patients' would hold the true value in 51% of cases, three's in 72%
OTHERS = "all others"
CHUNK_CELLS = 2_000_000  # resamples x patients held at once: 16 MB of float64


@dataclass(frozen=True)
class Interval:
    """A point estimate and its interval; `low` and `high` are None where the studies cannot give one."""

    mean: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Model a minus model b on the same studies: the two estimates, the difference's interval, a two-sided p-value.

    `p_at_floor`: no smaller p is possible with so few patients whose reports differ, however large the difference.
    """

    a: float | None
    b: float | None
    difference: Interval
    p: float | None
    p_at_floor: bool = False

    def as_dict(self) -> dict[str, float | None]:
        d = self.difference
        shown = {"a": self.a, "b": self.b, "difference": d.mean, "low": d.low, "high": d.high}
        return {**shown, "p": self.p, "p_at_floor": self.p_at_floor}


@dataclass(frozen=True)
class Statistic:
    """A ratio of sums over studies; with several columns, the mean of their ratios (macro-F1).

    Attributes:
        numerator, denominator: float64 [n, k], what each study adds to the sums; no NaN.
        support: float64 [n, k]: a ratio exists where its sum is not 0 (known studies, true positives of the reference).
        kind: mean, inverse (of a mean), share (of studies), count (mean of counts), f1, macro; decides the interval.
        estimable: False where no interval is known to hold the true value often enough; then none is given.
    """

    numerator: np.ndarray
    denominator: np.ndarray
    support: np.ndarray
    kind: str = "mean"
    estimable: bool = True

    @property
    def columns(self) -> np.ndarray:
        return np.concatenate([self.numerator, self.denominator, self.support], axis=1)

    def rows(self, keep: np.ndarray) -> Statistic:
        """The same statistic of some of the studies (`keep`: bool [n] or indices)."""
        return replace(
            self, numerator=self.numerator[keep], denominator=self.denominator[keep], support=self.support[keep]
        )

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        """Sums of `columns` [..., 3k] → the number [...]; NaN where it does not exist."""
        numerator, denominator, support = np.split(sums, 3, axis=-1)
        ratio = np.where(support > 0, divide(numerator, denominator), np.nan)
        if self.kind == "macro":  # a condition that the references do not have counts as 0, as in scikit-learn
            return np.nan_to_num(ratio).mean(axis=-1)
        return divide(1.0, ratio[..., 0]) if self.kind == "inverse" else ratio[..., 0]

    @property
    def value(self) -> float | None:
        return number_or_none(self.from_sums(self.columns.sum(axis=0)))

    @property
    def studies(self) -> int:
        """How many studies it is over: those with a known value, or with labels."""
        return len(self.support) if self.kind in ("f1", "macro") else int(self.support.sum())


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of statistics of the same studies: a difference of two models, or its mean over several runs."""

    terms: Sequence[tuple[float, Statistic]]
    kind = "contrast"

    @property
    def estimable(self) -> bool:
        return all(statistic.estimable for _, statistic in self.terms)

    @property
    def columns(self) -> np.ndarray:
        return np.concatenate([statistic.columns for _, statistic in self.terms], axis=1)

    def from_sums(self, sums: np.ndarray) -> np.ndarray:
        total, start = np.zeros(sums.shape[:-1]), 0
        for weight, statistic in self.terms:
            end = start + 3 * statistic.numerator.shape[1]
            total = total + weight * statistic.from_sums(sums[..., start:end])
            start = end
        return total


def mean(values: np.ndarray) -> Statistic:
    """Mean over the studies whose value is not NaN (values: [n]); of zeros and ones it is a share."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    filled, weight = np.where(known, values, 0.0)[:, None], known.astype(np.float64)[:, None]
    kind = "share" if np.isin(filled, (0.0, 1.0)).all() else "mean"
    return Statistic(filled, weight, weight, kind)


def count(values: np.ndarray) -> Statistic:
    """Mean of counts (errors a report), NaN left out; its interval bears with rare ones."""
    return replace(mean(values), kind="count")


def inverse_mean(values: np.ndarray) -> Statistic:
    """1 / mean: ReXrank's 1/RadCliQ-v1. The mean is inverted, never a study's value, because RadCliQ crosses zero.

    Its interval is the mean's interval inverted, and has no bounds where that holds zero.
    """
    return replace(mean(values), kind="inverse")


def f1(truth: np.ndarray, candidate: np.ndarray, average: str = "micro") -> Statistic:
    """F1 of binary labels [n, conditions], `micro` over all cells or `macro` over conditions.

    Micro-F1 (and F1 of one condition) does not exist where the references have no positive. In macro-F1 such a condition
    counts as 0, as in scikit-learn's default, which f1chexbert and ReXrank use.
    """
    truth, candidate = np.asarray(truth, dtype=bool), np.asarray(candidate, dtype=bool)
    if truth.shape != candidate.shape:
        raise ValueError(f"labels of {truth.shape[0]} studies against labels of {candidate.shape[0]}")
    if average not in ("micro", "macro"):
        raise ValueError(f"average is {average!r}, expected micro or macro")
    both, either = (truth & candidate).astype(np.float64), truth.astype(np.float64) + candidate
    columns = (2 * both, either, truth.astype(np.float64))
    if average == "micro":
        columns = tuple(column.sum(axis=1, keepdims=True) for column in columns)
    return Statistic(*columns, "f1" if average == "micro" else "macro")


def difference(first: Statistic, second: Statistic) -> Contrast:
    """first − second of one set of studies."""
    return Contrast([(1.0, first), (-1.0, second)])


def bootstrap(
    statistics: Mapping[str, Statistic | Contrast],
    patients: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Intervals of all statistics (`patients`: one key per study); none with fewer than `MIN_PATIENTS` patients.

    Means, 1/mean and differences: percentiles of resamples of patients, the same ones for all, with the level widened as
    Student's t is wider than the normal (Hesterberg 2015, "What teachers should know about the bootstrap", section 5.3).
    Macro-F1: the same, shifted by twice the resamples' bias, because a resample loses rare conditions. Shares: Jeffreys'
    (Brown, Cai and DasGupta 2001, Statistical Science 16:101) of the effective number of studies (Korn and Graubard 1998,
    Survey Methodology 24:193), Clopper and Pearson's where all studies, or none, are hits; F1 as a share of the cells
    that either side calls positive. Counts: the gamma interval of Fay and Feuer (1997, Statistics in Medicine 16:791).
    """
    if not statistics:
        return {}
    sums, draws = _draws(statistics, patients, resamples, seed)
    intervals = {}
    for (name, statistic), part in zip(statistics.items(), _parts(statistics), strict=True):
        by_patient = sums[:, part]
        point = statistic.from_sums(by_patient.sum(axis=0))
        low, high = None, None
        if len(sums) >= MIN_PATIENTS and np.isfinite(point) and statistic.estimable:
            low, high = _interval(statistic, by_patient, float(point), draws[:, part], level)
        intervals[name] = Interval(number_or_none(point), low, high)
    return intervals


def paired(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    patients: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Paired]:
    """Differences (first − second) of two models on the same studies, in the same order.

    A study that one of the two has no value for (its judge failed) is left out of both. The interval is the paired
    bootstrap's. p is of the permutation test that swaps the two models' reports within patients, two-sided,
    (1 + extreme) / (1 + permutations); where no permutation is as extreme, the normal tail of their distribution, never
    below `smallest_p`. Of up to `EXACT_PATIENTS` patients whose values differ, all swaps are taken instead. A difference of inverses (1/RadCliQ) does not exist where one of them cannot be read; its test is
    that of the means.
    """
    names = [name for name in first if name in second]
    if not names:
        return {}
    common = {name: both_known(first[name], second[name]) for name in names}
    both = {name: difference(*pair) for name, pair in common.items()}
    intervals = bootstrap(both, patients, resamples=resamples, seed=seed, level=level)
    inverses = {(n, i): common[n][i] for n in names for i in range(2) if common[n][i].kind == "inverse"}
    own = bootstrap(inverses, patients, resamples=resamples, seed=seed, level=level)
    p_values, floors = _swap_test(common, patients, permutations, seed)
    result = {}
    for name, (a, b) in common.items():
        interval, p = intervals[name], p_values[name]
        if any(key[0] == name and not readable_inverse(one) for key, one in own.items()):
            interval, p = Interval(None, None, None), None
        p = None if interval.mean is None else p
        result[name] = Paired(a.value, b.value, interval, p, p is not None and p <= floors[name] < 1)
    return result


def readable_inverse(value: Interval) -> bool:
    """Whether 1/mean can be read: not where the mean is below zero or its interval reaches it, as the inverse jumps there."""
    return value.mean is not None and value.mean > 0 and value.low is not None


def smallest_p(patients: int) -> float:
    """The least two-sided p that swapping the reports of so many patients (those whose values differ) can give."""
    return min(1.0, 2.0 ** (1 - patients))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given; None (no test) stays None and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[i] = running
    return adjusted


def cluster_index(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each distinct key's number, by first appearance: int64 [n]."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in clusters], dtype=np.int64)


def resample_counts(patients: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each patient is drawn, float64 [some resamples, patients] at a time; each row sums to `patients`."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < resamples:
        rows = min(resamples - done, max(1, CHUNK_CELLS // patients))
        drawn = rng.integers(0, patients, size=(rows, patients)) + np.arange(rows)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)
        done += rows


def both_known(first: Statistic, second: Statistic) -> tuple[Statistic, Statistic]:
    """Two means over the studies that both have a value for; F1 has all."""
    if first.kind in ("f1", "macro"):
        return first, second
    known = first.support * second.support
    return tuple(
        replace(s, numerator=s.numerator * known, denominator=s.denominator * known, support=s.support * known)
        for s in (first, second)
    )


def _parts(statistics: Mapping[str, Statistic | Contrast]) -> list[slice]:
    """Where each statistic's columns lie when all are put beside each other."""
    ends = np.cumsum([0, *(s.columns.shape[1] for s in statistics.values())])
    return [slice(start, end) for start, end in pairwise(ends)]


def _draws(
    statistics: Mapping[str, Statistic | Contrast], patients: Sequence[Hashable], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums per patient [patients, all columns] and their resamples [resamples, all columns]."""
    columns = np.concatenate([s.columns for s in statistics.values()], axis=1)
    if len(columns) != len(patients):
        raise ValueError(f"{len(columns)} studies but {len(patients)} patient keys")
    if not len(columns):
        raise ValueError("no study to resample")
    sums = sum_by(cluster_index(patients), columns)
    return sums, np.concatenate([counts @ sums for counts in resample_counts(len(sums), resamples, seed)])


def _interval(
    statistic: Statistic | Contrast, sums: np.ndarray, point: float, draws: np.ndarray, level: float
) -> tuple[float | None, float | None]:
    """The interval of one statistic from its sums per patient [patients, columns] and their resamples."""
    kind = statistic.kind
    if kind in ("share", "count", "f1"):
        numerator, denominator = sums[:, 0], sums[:, 1]
        if kind == "share":
            return share_interval(numerator, denominator, level)
        if kind == "count":
            return count_interval(numerator, denominator, level)
        # F1 = 2J / (1 + J), with J the share of hits among the cells that either side calls positive.
        return tuple(2 * j / (1 + j) for j in share_interval(numerator / 2, denominator - numerator / 2, level))
    values = statistic.from_sums(draws)
    if kind == "inverse":
        low, high = _percentiles(divide(1.0, values), len(sums), level)
        return (None, None) if low is None or low <= 0 <= high else (1 / high, 1 / low)
    macro = kind == "macro" or (kind == "contrast" and any(s.kind == "macro" for _, s in statistic.terms))
    low, high = _percentiles(values, len(sums), level, 2 * (point - np.nanmean(values)) if macro else 0.0)
    if kind != "contrast" and np.ptp(values) <= 1e-12 * (1 + abs(point)):
        return None, None  # the same in all studies: nothing says how far others may differ
    if kind == "macro" and low is not None:  # the shift may lead out of what F1 can be
        return max(low, 0.0), min(high, 1.0)
    return low, high


def _swap_test(
    pairs: Mapping[str, tuple[Statistic, Statistic]], patients: Sequence[Hashable], permutations: int, seed: int
) -> tuple[dict[str, float | None], dict[str, float]]:
    """The p-value of each number, and the least that its patients can give."""
    # The inverse's test is that of its mean: one over it jumps where a permutation nears zero.
    tested = {n: [replace(s, kind="mean") if s.kind == "inverse" else s for s in pair] for n, pair in pairs.items()}
    index = cluster_index(patients)
    a, b = (sum_by(index, np.concatenate([pair[i].columns for pair in tested.values()], axis=1)) for i in range(2))
    parts = _parts({name: pair[0] for name, pair in tested.items()})
    rng = np.random.default_rng(seed)
    swapped: dict[str, list[np.ndarray]] = {name: [] for name in tested}
    done = 0
    while done < permutations:
        rows = min(permutations - done, max(1, CHUNK_CELLS // len(a)))
        bits = np.unpackbits(rng.integers(0, 256, size=(rows, -(-len(a) // 8)), dtype=np.uint8), axis=1)[:, : len(a)]
        moved = bits.astype(np.float64) @ (a - b)
        for (name, pair), part in zip(tested.items(), parts, strict=True):
            first, second = a[:, part].sum(axis=0) - moved[:, part], b[:, part].sum(axis=0) + moved[:, part]
            swapped[name].append(pair[0].from_sums(first) - pair[1].from_sums(second))
        done += rows
    result: dict[str, float | None] = {}
    floors: dict[str, float] = {}
    for (name, pair), part in zip(tested.items(), parts, strict=True):
        differs = (a[:, part] != b[:, part]).any(axis=1)
        floors[name] = smallest_p(int(differs.sum()))
        observed = float(pair[0].from_sums(a[:, part].sum(axis=0)) - pair[1].from_sums(b[:, part].sum(axis=0)))
        differences = np.abs(np.concatenate(swapped[name]))
        if not np.isfinite(observed):
            result[name] = None
            continue
        # A tolerance, because sums in another order differ in the last bits.
        least = abs(observed) - 1e-9 * (1 + abs(observed))
        if 0 < differs.sum() <= EXACT_PATIENTS:
            result[name] = float((_all_swaps(pair, a[:, part], b[:, part], differs) >= least).mean())
            continue
        extreme = int((differences >= least).sum())
        result[name] = (1 + extreme) / (1 + permutations)
        if extreme == 0:
            spread = float(np.sqrt(np.nanmean(differences**2)))
            tail = 2 * float(stats.norm.sf(abs(observed) / spread)) if spread else 0.0
            result[name] = min(result[name], max(tail, floors[name]))
    return result, floors


def _all_swaps(pair: Sequence[Statistic], a: np.ndarray, b: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """|Difference| of every swap of the patients that differ: [2^(k - 1)], because swapping the others only turns its sign."""
    delta = (a - b)[differs]
    bits = (np.arange(2 ** (len(delta) - 1))[:, None] >> np.arange(len(delta))) & 1
    moved = bits.astype(np.float64) @ delta
    return np.abs(pair[0].from_sums(a.sum(axis=0) - moved) - pair[1].from_sums(b.sum(axis=0) + moved))


def _percentiles(
    draws: np.ndarray, patients: int, level: float, shift: float = 0.0
) -> tuple[float | None, float | None]:
    draws = draws[np.isfinite(draws)]
    if patients < 2 or not len(draws):
        return None, None
    t = stats.t.ppf((1 + level) / 2, patients - 1)
    tail = stats.norm.cdf(-np.sqrt(patients / (patients - 1)) * t)
    low, high = np.quantile(draws, [tail, 1 - tail]) + shift
    return float(low), float(high)
