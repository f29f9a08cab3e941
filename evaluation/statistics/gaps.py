"""The largest gap between groups of patients: a studentised test, permuted over patients, and a simultaneous interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from evaluation.statistics.intervals import divide, sum_by
from evaluation.statistics.resampling import CHUNK_CELLS, LEVEL, OTHERS, Statistic, cluster_index

GAP_PERMUTATIONS = 1_999


@dataclass(frozen=True)
class Gap:
    """Two strata (the second may be `OTHERS`) whose difference stands out most; `p` and interval allow for that choice."""

    highest: Hashable
    lowest: Hashable
    difference: float
    low: float | None
    high: float | None
    p: float


def gap_test(
    statistics: Mapping[str, Statistic], strata: Sequence[Hashable], patients: Sequence[Hashable], **options: Any
) -> dict[str, float | None]:
    """The p-value of each statistic's `largest_gaps` (`options`: its own); None where no two strata have it."""
    return {name: gap and gap.p for name, gap in largest_gaps(statistics, strata, patients, **options).items()}


@dataclass(frozen=True)
class _Comparisons:
    """All differences of strata that are compared, as a function of the strata of units.

    Args:
        table: [units, 7 × statistics]: a unit's sums of numerator, denominator and support by statistic, their products,
            and whether it counts.
        inverse: [statistics], of means of which the inverse is compared.
        pairs: [pairs, 2] of strata; from `groups` on, all strata but one.
    """

    table: np.ndarray
    inverse: np.ndarray
    groups: int
    pairs: np.ndarray

    def of(self, assigned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Differences and their standard errors [rows, pairs, statistics] with these strata of units [rows, units]."""
        by = np.stack([(assigned == g).astype(np.float64) @ self.table for g in range(self.groups)], axis=1)
        if self.groups > 2:
            by = np.concatenate([by, by.sum(axis=1, keepdims=True) - by], axis=1)
        k = len(self.inverse)
        s, (nn, nd, dd, units) = by[..., : 3 * k], np.split(by[..., 3 * k :], 4, axis=-1)
        numerator, denominator, support = s[..., 0::3], s[..., 1::3], s[..., 2::3]
        ratio = np.where(support > 0, divide(numerator, denominator), np.nan)
        squares = np.maximum(nn - 2 * ratio * nd + ratio**2 * dd, 0.0)
        variance = divide(squares * divide(units, np.maximum(units - 1, 0)), denominator**2)
        variance = np.where(self.inverse, divide(variance, ratio**4), variance)
        # One over a mean that is not above zero says nothing.
        ratio = np.where(self.inverse, np.where(ratio > 0, divide(1.0, ratio), np.nan), ratio)
        first, second = self.pairs[:, 0], self.pairs[:, 1]
        return ratio[:, first] - ratio[:, second], np.sqrt(variance[:, first] + variance[:, second])

    def null(self, labels: np.ndarray, known: np.ndarray, permutations: int, seed: int) -> np.ndarray:
        """The largest studentised difference of each permutation of units over strata: [permutations, statistics]."""
        rng, largest = np.random.default_rng(seed), []
        done = 0
        while done < permutations:
            rows = min(permutations - done, max(1, CHUNK_CELLS // len(labels)))
            shuffled = rng.permuted(np.broadcast_to(labels, (rows, len(labels))), axis=1)
            values = _studentised(*self.of(shuffled))
            # A pair that the data do not have cannot be their largest gap, in a permutation neither.
            largest.append(np.where(known & ~np.isnan(values), values, 0.0).max(axis=1))
            done += rows
        return np.concatenate(largest)


def _studentised(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
    zero = np.abs(difference) <= 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(zero, 0.0, np.abs(difference) / error)


def largest_gaps(
    statistics: Mapping[str, Statistic],
    strata: Sequence[Hashable],
    patients: Sequence[Hashable],
    *,
    permutations: int = GAP_PERMUTATIONS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Gap | None]:
    """The difference between strata that stands out most from its error.

    Compared are all pairs of strata and, of more than two, each with all others together (`OTHERS`): by pairs alone, one
    large group that differs from the rest is seen less often than by an F test. The test statistic is the largest |difference|
    over its cluster-robust standard error (studies grouped by patient), so that strata may differ in spread and in studies
    a patient (Chung and Romano 2013, Annals of Statistics 41:484). Its distribution comes from permuting strata over
    patients; the same distribution's quantile makes the interval, which therefore holds for all these differences at once.
    A patient whose studies lie in two strata (an age limit passed between them) counts as one unit in each. Macro-F1 has no
    such error here.

    Returns:
        None where fewer than two strata have the number (F1 of a stratum whose references have no positive).
    """
    if wrong := [name for name, s in statistics.items() if s.kind == "macro"]:
        raise ValueError(f"no gap test for macro-F1: {', '.join(wrong)}")
    if not statistics:
        return {}
    names, stratum = list(dict.fromkeys(strata)), cluster_index(strata)
    keys, unit = np.unique(np.stack([cluster_index(patients), stratum], axis=1), axis=0, return_inverse=True)
    labels = keys[:, 1]
    sums = sum_by(unit.ravel(), np.concatenate([s.columns for s in statistics.values()], axis=1))
    n, d = sums[:, 0::3], sums[:, 1::3]  # [units, statistics]
    groups = len(names)
    pairs = list(combinations(range(groups), 2))
    if groups > 2:  # and each stratum against all others together
        pairs += [(group, groups + group) for group in range(groups)]
        names += [OTHERS] * groups
    if not pairs:
        return dict.fromkeys(statistics)
    comparisons = _Comparisons(
        table=np.concatenate([sums, n * n, n * d, d * d, (d > 0).astype(np.float64)], axis=1),
        inverse=np.array([s.kind == "inverse" for s in statistics.values()]),
        groups=groups,
        pairs=np.array(pairs),
    )
    observed, errors = (part[0] for part in comparisons.of(labels[None]))
    null = comparisons.null(labels, np.isfinite(observed), permutations, seed)
    freedom = len(np.unique(keys[:, 0])) - groups
    return {
        name: _largest(observed[:, i], errors[:, i], null[:, i], names, comparisons.pairs, freedom, level)
        for i, name in enumerate(statistics)
    }


def _largest(
    observed: np.ndarray,
    errors: np.ndarray,
    null: np.ndarray,
    names: Sequence[Hashable],
    pairs: np.ndarray,
    freedom: int,
    level: float,
) -> Gap | None:
    """The gap of one statistic: its differences and errors [pairs], the null distribution of the largest [permutations]."""
    known = np.isfinite(observed)
    if not known.any():
        return None
    size = _studentised(observed, errors)
    best = int(np.nanargmax(np.where(known, size, np.nan)))
    t, value, error = size[best], float(observed[best]), float(errors[best])
    extreme = int((null >= t * (1 - 1e-9)).sum())
    p = (1 + extreme) / (1 + len(null))
    if extreme == 0 and np.isfinite(t):  # beyond the permutations: Student's tail, for each pair
        p = min(p, int(known.sum()) * 2 * float(stats.t.sf(t, freedom)))
    high, low = pairs[best] if value >= 0 else pairs[best][::-1]
    half = float(np.quantile(null, level)) * error
    bounds = (abs(value) - half, abs(value) + half) if np.isfinite(half) and half > 0 else (None, None)
    return Gap(names[high], names[low], abs(value), *bounds, p)
