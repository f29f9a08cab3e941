"""Intervals where resampling does not hold: shares and counts at their edges."""

from __future__ import annotations

import numpy as np
from scipy import stats


def sum_by(index: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums of rows [n, k] with the same index: [max(index) + 1, k]."""
    sums = np.zeros((int(index.max()) + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums


def share_interval(hits: np.ndarray, trials: np.ndarray, level: float) -> tuple[float, float]:
    """Of a share: hits and trials by patient. With no hit, or only hits, every patient counts as one trial."""
    total, patients, tail = trials.sum(), int((trials > 0).sum()), (1 - level) / 2
    p = hits.sum() / total
    if p == 0:
        return 0.0, float(stats.beta.ppf(1 - tail, 1, patients))
    if p == 1:
        return float(stats.beta.ppf(tail, patients, 1)), 1.0
    variance = variance_of_ratio(hits, trials)
    effective = min(total, p * (1 - p) / variance) if variance else total
    effective *= student_factor(patients, level)
    x = p * effective
    low, high = stats.beta.ppf([tail, 1 - tail], x + 0.5, effective - x + 0.5)
    return float(low), float(high)


def count_interval(counts: np.ndarray, studies: np.ndarray, level: float) -> tuple[float | None, float | None]:
    """Fay and Feuer's: the gamma interval of the effective number of events; counts and studies by patient."""
    total, patients, tail = studies.sum(), int((studies > 0).sum()), (1 - level) / 2
    rate = counts.sum() / total
    if rate == 0:
        return 0.0, float(stats.chi2.ppf(1 - tail, 2)) / 2 / patients
    variance = variance_of_ratio(counts, studies)
    if variance == 0:
        return None, None
    events = rate**2 / variance * student_factor(patients, level)
    low, high = stats.chi2.ppf(tail, 2 * events) / 2, stats.chi2.ppf(1 - tail, 2 * (events + 1)) / 2
    return float(low / events * rate), float(high / events * rate)


def variance_of_ratio(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Of a ratio of sums, by its residuals per patient; 0 with one patient."""
    patients, total = int((denominators > 0).sum()), denominators.sum()
    residuals = numerators - numerators.sum() / total * denominators
    return float(patients / max(patients - 1, 1) * (residuals**2).sum() / total**2)


def student_factor(patients: int, level: float) -> float:
    """By how much an effective number shrinks because its variance is estimated from so many patients."""
    return float((stats.norm.ppf((1 + level) / 2) / stats.t.ppf((1 + level) / 2, max(patients - 1, 1))) ** 2)


def divide(numerator: np.ndarray | float, denominator: np.ndarray | float) -> np.ndarray:
    denominator = np.asarray(denominator, dtype=np.float64)
    shape = np.broadcast(numerator, denominator).shape
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def number_or_none(value: np.ndarray | float) -> float | None:
    return float(value) if np.isfinite(value) else None
