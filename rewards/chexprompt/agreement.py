"""How far two judges, or a judge and a human, agree on the same reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from tqdm import tqdm

from foundation.governance import JudgeError
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.chexprompt.ratings import LEVEL, RESAMPLES, Rating


def exact(a: np.ndarray, b: np.ndarray) -> float:
    """Share of reports with the same number of errors."""
    return float(np.mean(a == b))


def within_one(a: np.ndarray, b: np.ndarray) -> float:
    """Share of reports whose numbers of errors differ by at most one."""
    return float(np.mean(np.abs(a - b) <= 1))


def tau_b(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b in [-1, 1]; NaN where one of them gives every report the same number."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(kendalltau(a, b, variant="b").statistic)


def quadratic_kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights; NaN where both give every report one and the same number.

    1 - E[(a - b)²] / E[(a - b')²] with a and b' from independent reports (Cohen 1968); the denominator is
    var(a) + var(b) + (mean(a) - mean(b))².
    """
    expected = np.var(a) + np.var(b) + (np.mean(a) - np.mean(b)) ** 2
    return float("nan") if expected == 0 else float(1 - np.mean((a - b) ** 2) / expected)


def bias(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of a - b: above 0 where a counts more."""
    return float(np.mean(a - b))


def agreement(a: Sequence[Rating], b: Sequence[Rating], errors: str = "all", seed: int = 0) -> dict[str, Any]:
    """Agreement over the reports that both have judged, matched by id.

    Args:
        errors: `all` twelve counts, or the six `significant` ones.

    Returns:
        n, what was left out, and {value, low, high, undefined} for each measure; bootstrap intervals over reports.
        `undefined` counts resamples in which a measure does not exist; they are left out of its interval.

    Raises:
        JudgeError: fewer than two reports in common.
    """
    of_a = {rating.id: rating.judgement for rating in a}
    of_b = {rating.id: rating.judgement for rating in b}
    shared = [identifier for identifier in of_a if identifier in of_b]
    both = [i for i in shared if of_a[i] is not None and of_b[i] is not None]
    if len(both) < 2:
        raise JudgeError(
            f"the two files have {len(both)} judged reports in common, by id; agreement needs at least 2. "
            "Give both the same ids"
        )

    def counts(judgements: dict[str, Any]) -> np.ndarray:
        every = np.array([[judgements[i].significant, judgements[i].insignificant] for i in both], dtype=np.float64)
        return every.sum(1) if errors == "all" else every[:, 0]  # [n, 6]

    types_a, types_b = counts(of_a), counts(of_b)
    measures: dict[str, tuple[Callable[[np.ndarray, np.ndarray], float], np.ndarray, np.ndarray]] = {
        name: (measure, types_a.sum(1), types_b.sum(1))
        for name, measure in (
            ("exact agreement", exact),
            ("agreement within one", within_one),
            ("Kendall's tau-b", tau_b),
            ("quadratic kappa", quadratic_kappa),
            ("bias", bias),
        )
    }
    for i, error_type in enumerate(ERROR_TYPES):
        measures[f"bias {error_type}"] = (bias, types_a[:, i], types_b[:, i])
    random = np.random.default_rng(seed)
    resampled: dict[str, list[float]] = {name: [] for name in measures}
    for _ in tqdm(range(RESAMPLES), desc="bootstrap", unit="resample", leave=False):
        rows = random.integers(len(both), size=len(both))
        for name, (measure, x, y) in measures.items():
            resampled[name].append(measure(x[rows], y[rows]))
    return {
        "errors": errors,
        "n": len(both),
        "not judged by both": len(shared) - len(both),
        "only in A": len(of_a) - len(shared),
        "only in B": len(of_b) - len(shared),
        "measures": {
            name: _interval(measure(x, y), np.array(resampled[name])) for name, (measure, x, y) in measures.items()
        },
    }


def _interval(value: float, resampled: np.ndarray) -> dict[str, float | int | None]:
    defined = resampled[~np.isnan(resampled)]
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(defined) else (None, None)
    return {
        "value": None if np.isnan(value) else value,
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "undefined": len(resampled) - len(defined),
    }


def print_agreement(result: dict[str, Any]) -> str:
    """The agreement as text."""
    lines = [
        f"{result['n']} reports judged by both ({result['errors']} errors); {result['not judged by both']} not judged by "
        f"both, {result['only in A']} only in A, {result['only in B']} only in B; 95% bootstrap intervals over reports"
    ]
    for name, number in result["measures"].items():
        label = name.replace("bias", "bias (A - B)", 1).replace("_", " ")
        if number["value"] is None:
            lines.append(f"{label:36} undefined: one of them gives every report the same number")
            continue
        note = f"   undefined in {number['undefined']} resamples" if number["undefined"] else ""
        interval = "" if number["low"] is None else f" [{number['low']:6.3f}, {number['high']:6.3f}]"
        lines.append(f"{label:36}{number['value']:7.3f}{interval}{note}")
    return "\n".join(lines)
