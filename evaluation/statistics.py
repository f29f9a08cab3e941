"""Bootstrap intervals, paired tests and Holm's correction, as matrix products over sums per patient.

Every number of the evaluation (a mean, 1/mean, an F1) is a function of sums over studies. So each study adds a few
columns once, the columns are summed per patient, and a resample of patients is one row of counts times that matrix:
1,000 resamples of 10,000 studies and dozens of statistics take about a second, in memory that does not grow with the
number of resamples.

Resampling is over patients, because studies of one patient are not independent. Where each patient has one study this
is the bootstrap over studies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy import stats

RESAMPLES = 1_000
PERMUTATIONS = 9_999
GAP_PERMUTATIONS = 1_999
LEVEL = 0.95
_CHUNK_CELLS = 2_000_000  # resamples x patients held at once: 16 MB of float64


@dataclass(frozen=True)
class Interval:
    """A point estimate and its bootstrap interval; `low` and `high` are None where one patient is all there is."""

    mean: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """Model a minus model b on the same studies: the two estimates, the difference's interval, a two-sided p-value."""

    a: float | None
    b: float | None
    difference: Interval
    p: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"a": self.a, "b": self.b, **_renamed(self.difference), "p": self.p}


@dataclass(frozen=True)
class Statistic:
    """A number that is a function of sums over studies.

    Attributes:
        columns: float64 [n, k], what each study adds to the sums; no NaN.
        from_sums: sums [..., k] → the number [...]; NaN where it is undefined.
    """

    columns: np.ndarray
    from_sums: Callable[[np.ndarray], np.ndarray]
    inverse: bool = False  # one over something: its interval is that thing's, inverted

    def rows(self, keep: np.ndarray) -> Statistic:
        """The same statistic of some of the studies (`keep`: bool [n] or indices)."""
        return replace(self, columns=self.columns[keep])

    @property
    def value(self) -> float | None:
        return _number(self.from_sums(self.columns.sum(axis=0)))


def mean(values: np.ndarray) -> Statistic:
    """Mean over the studies whose value is not NaN (values: [n])."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    return Statistic(np.stack([np.where(known, values, 0.0), known], axis=1), _mean_of_sums)


def inverse_mean(values: np.ndarray) -> Statistic:
    """1 / mean: ReXrank's 1/RadCliQ-v1. The mean is inverted, never a study's value, because RadCliQ crosses zero.

    Its interval is the mean's interval inverted, and has no bounds where that holds zero.
    """
    base = mean(values)
    return Statistic(base.columns, lambda sums: _divide(1.0, _mean_of_sums(sums)), inverse=True)


def f1(truth: np.ndarray, candidate: np.ndarray, average: str = "micro") -> Statistic:
    """F1 of binary labels [n, conditions], `micro` over all cells or `macro` over conditions.

    A condition with neither a true nor a predicted positive counts as 0, as in scikit-learn's default, which
    f1chexbert and ReXrank use.
    """
    truth, candidate = np.asarray(truth, dtype=bool), np.asarray(candidate, dtype=bool)
    if truth.shape != candidate.shape:
        raise ValueError(f"labels of {truth.shape[0]} studies against labels of {candidate.shape[0]}")
    counts = np.stack([truth & candidate, ~truth & candidate, truth & ~candidate], axis=1).astype(np.float64)
    if average == "micro":
        return Statistic(counts.sum(axis=2), _f1_of_counts)
    if average != "macro":
        raise ValueError(f"average is {average!r}, expected micro or macro")
    conditions = truth.shape[1]

    def macro(sums: np.ndarray) -> np.ndarray:
        return _f1_of_counts(np.moveaxis(sums.reshape(*sums.shape[:-1], 3, conditions), -2, -1)).mean(axis=-1)

    return Statistic(counts.reshape(len(truth), 3 * conditions), macro)


def difference(first: Statistic, second: Statistic) -> Statistic:
    """first − second of one set of studies, e.g. the gap between two strata."""
    width = first.columns.shape[1]
    return Statistic(
        np.concatenate([first.columns, second.columns], axis=1),
        lambda sums: first.from_sums(sums[..., :width]) - second.from_sums(sums[..., width:]),
    )


def bootstrap(
    statistics: Mapping[str, Statistic],
    patients: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Intervals of all statistics from the same resamples of patients (`patients`: one key per study).

    Hesterberg's expanded percentile interval (2015, "What teachers should know about the bootstrap", section 5.3):
    the percentile interval with its level widened as Student's t is wider than the normal, so that few patients do
    not give intervals that are too narrow.
    """
    if not statistics:
        return {}
    sums, draws = _draws(statistics, patients, resamples, seed)
    intervals = {}
    for name, point, draw in _each(statistics, sums.sum(axis=0), draws):
        if statistics[name].inverse:
            low, high = _percentiles(_divide(1.0, draw), len(sums), level)
            crosses = low is None or low <= 0 <= high
            low, high = (None, None) if crosses else (1 / high, 1 / low)
        else:
            low, high = _percentiles(draw, len(sums), level)
        intervals[name] = Interval(_number(point), low, high)
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

    The interval is the paired bootstrap's; p is of the permutation test that swaps the two models' reports within
    patients, two-sided, (1 + extreme) / (1 + permutations), so never 0.
    """
    names = [name for name in first if name in second]
    if not names:
        return {}
    both = {name: difference(first[name], second[name]) for name in names}
    intervals = bootstrap(both, patients, resamples=resamples, seed=seed, level=level)
    p_values = _swap_test({n: first[n] for n in names}, {n: second[n] for n in names}, patients, permutations, seed)
    return {name: Paired(first[name].value, second[name].value, intervals[name], p_values[name]) for name in names}


def gap_test(
    statistics: Mapping[str, Statistic],
    strata: Sequence[Hashable],
    patients: Sequence[Hashable],
    *,
    permutations: int = GAP_PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float | None]:
    """p-value of each statistic's largest difference between strata: strata are permuted over patients.

    A patient whose studies lie in two strata (an age limit passed between them) counts as one unit in each. None where
    there is one stratum, or where the statistic is undefined in all.
    """
    if not statistics:
        return {}
    stratum = cluster_index(strata)
    units, unit_of = np.unique(np.stack([cluster_index(patients), stratum], axis=1), axis=0, return_inverse=True)
    groups = int(stratum.max()) + 1
    if groups < 2:
        return dict.fromkeys(statistics)
    sums = np.zeros((len(units), sum(s.columns.shape[1] for s in statistics.values())))
    np.add.at(sums, unit_of.ravel(), np.concatenate([s.columns for s in statistics.values()], axis=1))

    def gaps(labels: np.ndarray) -> dict[str, np.ndarray]:
        by_group = np.stack([(labels == g).astype(np.float64) @ sums for g in range(groups)])
        found, start = {}, 0
        for name, statistic in statistics.items():
            end = start + statistic.columns.shape[1]
            values = statistic.from_sums(by_group[..., start:end])
            # A stratum where the statistic is undefined takes no part in the gap.
            highest = np.where(np.isnan(values), -np.inf, values).max(axis=0)
            found[name] = highest - np.where(np.isnan(values), np.inf, values).min(axis=0)
            start = end
        return found

    labels = units[:, 1]
    observed = {name: gap[0] for name, gap in gaps(labels[None]).items()}
    rng = np.random.default_rng(seed)
    extreme, done = dict.fromkeys(statistics, 0), 0
    while done < permutations:
        rows = min(permutations - done, max(1, _CHUNK_CELLS // len(labels)))
        shuffled = rng.permuted(np.broadcast_to(labels, (rows, len(labels))), axis=1)
        for name, gap in gaps(shuffled).items():
            extreme[name] += int((gap >= observed[name] - 1e-9 * (1 + abs(observed[name]))).sum())
        done += rows
    return {n: (1 + extreme[n]) / (1 + permutations) if np.isfinite(observed[n]) else None for n in statistics}


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
        rows = min(resamples - done, max(1, _CHUNK_CELLS // patients))
        drawn = rng.integers(0, patients, size=(rows, patients)) + np.arange(rows)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(np.float64)
        done += rows


def _draws(
    statistics: Mapping[str, Statistic], patients: Sequence[Hashable], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums per patient [patients, all columns] and their resamples [resamples, all columns]."""
    columns = np.concatenate([s.columns for s in statistics.values()], axis=1)
    if len(columns) != len(patients):
        raise ValueError(f"{len(columns)} studies but {len(patients)} patient keys")
    if not len(columns):
        raise ValueError("no study to resample")
    index = cluster_index(patients)
    sums = np.zeros((index.max() + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums, np.concatenate([counts @ sums for counts in resample_counts(len(sums), resamples, seed)])


def _each(
    statistics: Mapping[str, Statistic], point: np.ndarray, draws: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    start = 0
    for name, statistic in statistics.items():
        end = start + statistic.columns.shape[1]
        yield name, statistic.from_sums(point[start:end]), statistic.from_sums(draws[:, start:end])
        start = end


def _swap_test(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    patients: Sequence[Hashable],
    permutations: int,
    seed: int,
) -> dict[str, float | None]:
    index = cluster_index(patients)
    a, b = (np.zeros((index.max() + 1, sum(s.columns.shape[1] for s in m.values()))) for m in (first, second))
    np.add.at(a, index, np.concatenate([s.columns for s in first.values()], axis=1))
    np.add.at(b, index, np.concatenate([s.columns for s in second.values()], axis=1))
    rng = np.random.default_rng(seed)
    extreme, done = dict.fromkeys(first, 0), 0
    while done < permutations:
        rows = min(permutations - done, max(1, _CHUNK_CELLS // len(a)))
        bits = np.unpackbits(rng.integers(0, 256, size=(rows, -(-len(a) // 8)), dtype=np.uint8), axis=1)[:, : len(a)]
        moved = bits.astype(np.float64) @ (a - b)
        swapped_a, swapped_b = a.sum(axis=0) - moved, b.sum(axis=0) + moved
        start = 0
        for name, statistic in first.items():
            part = slice(start, start + statistic.columns.shape[1])
            observed = statistic.from_sums(a.sum(axis=0)[part]) - statistic.from_sums(b.sum(axis=0)[part])
            swapped = statistic.from_sums(swapped_a[:, part]) - statistic.from_sums(swapped_b[:, part])
            # A tolerance, because sums in another order differ in the last bits.
            extreme[name] += int((np.abs(swapped) >= np.abs(observed) - 1e-9 * (1 + np.abs(observed))).sum())
            start = part.stop
        done += rows
    undefined = {n for n in first if first[n].value is None or second[n].value is None}
    return {n: None if n in undefined else (1 + extreme[n]) / (1 + permutations) for n in first}


def _percentiles(draws: np.ndarray, patients: int, level: float) -> tuple[float | None, float | None]:
    draws = draws[np.isfinite(draws)]
    if patients < 2 or not len(draws):
        return None, None
    t = stats.t.ppf((1 + level) / 2, patients - 1)
    tail = stats.norm.cdf(-np.sqrt(patients / (patients - 1)) * t)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _mean_of_sums(sums: np.ndarray) -> np.ndarray:
    return _divide(sums[..., 0], sums[..., 1])


def _f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """Counts [..., (true positives, false positives, false negatives)] → F1 [...], 0 where all three are 0."""
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return np.nan_to_num(_divide(2 * tp, 2 * tp + fp + fn))


def _divide(numerator: np.ndarray | float, denominator: np.ndarray) -> np.ndarray:
    denominator = np.asarray(denominator, dtype=np.float64)
    return np.divide(
        numerator, denominator, out=np.full(np.broadcast(numerator, denominator).shape, np.nan), where=denominator != 0
    )


def _number(value: np.ndarray | float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _renamed(interval: Interval) -> dict[str, float | None]:
    return {"difference": interval.mean, "low": interval.low, "high": interval.high}
