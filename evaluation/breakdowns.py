"""Scores by group of studies: encounter, temporal category, sex, age, race, data set, sections, length.

Paper: figures 3b (encounters), 3c (temporal categories), 4a (zero-shot data sets), 4d (sex, age, race).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluation import statistics, temporal
from evaluation.score import Scores, principal_statistics

UNKNOWN = "unknown"
SUBGROUPS = ("sex", "age", "race")  # gaps between their strata are tested
MIN_PATIENTS = 10  # a smaller stratum is shown, marked as small, and takes no part in a gap
_LENGTHS = ((25, "≤ 25 words"), (50, "26–50 words"), (100, "51–100 words"))


def _encounter(value: int | None) -> str:
    return UNKNOWN if value is None else "5+" if value >= 5 else str(value)


def _age(value: float | None) -> str:
    return UNKNOWN if value is None else "< 60" if value < 60 else "≥ 60"


def _length(words: int) -> str:
    return next((name for limit, name in _LENGTHS if words <= limit), "> 100 words")


def _as_it_is(value: Any) -> str:
    return UNKNOWN if value in (None, "") else str(value)


# Attribute → (column of Scores, value → stratum, order of strata; others follow in alphabetical order).
ATTRIBUTES: dict[str, tuple[str, Callable[[Any], str], Sequence[str]]] = {
    "encounter": ("encounter", _encounter, ("1", "2", "3", "4", "5+")),
    "temporal": ("temporal", _as_it_is, temporal.CATEGORIES),
    "sex": ("sex", _as_it_is, ("F", "M")),
    "age": ("age", _age, ("< 60", "≥ 60")),
    "race": ("race", _as_it_is, ()),
    "dataset": ("dataset", _as_it_is, ()),
    "sections": ("sections", _as_it_is, ("findings+impression", "findings", "impression")),
    "length": ("words", _length, (*(name for _, name in _LENGTHS), "> 100 words")),
}


def strata(scores: Scores, attribute: str, zero_shot: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Each study's stratum, and the strata that occur, in the order in which they are shown (unknown last)."""
    if attribute == "institution":
        of_study = ["zero-shot" if d in zero_shot else "seen in training" for d in scores.fields["dataset"]]
        order: Sequence[str] = ("seen in training", "zero-shot")
    else:
        column, stratum, order = ATTRIBUTES[attribute]
        of_study = [stratum(value) for value in scores.fields[column]]
    found = set(of_study)
    shown = [name for name in order if name in found]
    shown += sorted(found - set(order) - {UNKNOWN}) + [UNKNOWN] * (UNKNOWN in found)
    return of_study, shown


def breakdown(
    scores: Scores,
    described: Mapping[str, Any],
    zero_shot: Sequence[str] = (),
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """All breakdowns of one model's scores.

    Returns:
        attribute → {"strata": {stratum: {n, patients, small, metrics: {name: {mean, low, high}}}}}, and for sex, age and
        race also "gaps": {metric: {highest, lowest, difference, low, high, p, p_holm}}: the largest difference between
        known strata of at least `MIN_PATIENTS` patients, the permutation test's p, and Holm's correction over all gaps.
    """
    # Macro-F1 averages conditions of which small strata have none: not shown by stratum.
    all_statistics = {n: s for n, s in principal_statistics(scores, described).items() if "_macro_" not in n}
    attributes = [*ATTRIBUTES, *(["institution"] if zero_shot else [])]
    result: dict[str, Any] = {}
    for attribute in attributes:
        of_study, shown = strata(scores, attribute, zero_shot)
        result[attribute] = {"strata": {}}
        for name in shown:
            keep = np.flatnonzero([s == name for s in of_study])
            patients = [scores.patient_id[i] for i in keep]
            intervals = statistics.bootstrap(
                {n: s.rows(keep) for n, s in all_statistics.items()}, patients, resamples=resamples, seed=seed
            )
            result[attribute]["strata"][name] = {
                "n": len(keep),
                "patients": len(set(patients)),
                "small": len(set(patients)) < MIN_PATIENTS,
                "metrics": {n: interval.as_dict() for n, interval in intervals.items()},
            }
        if attribute in SUBGROUPS:
            result[attribute]["gaps"] = _gaps(
                scores, all_statistics, of_study, result[attribute]["strata"], resamples, seed
            )
    tests = [gap for attribute in SUBGROUPS for gap in result[attribute]["gaps"].values()]
    for gap, adjusted in zip(tests, statistics.holm([gap["p"] for gap in tests]), strict=True):
        gap["p_holm"] = adjusted
    return result


def _gaps(
    scores: Scores,
    all_statistics: Mapping[str, statistics.Statistic],
    of_study: Sequence[str],
    shown: Mapping[str, Mapping[str, Any]],
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    compared = [name for name, stratum in shown.items() if name != UNKNOWN and not stratum["small"]]
    keep = np.flatnonzero([s in compared for s in of_study])
    if len(compared) < 2:
        return {}
    kept_strata, patients = [of_study[i] for i in keep], [scores.patient_id[i] for i in keep]
    kept = {name: s.rows(keep) for name, s in all_statistics.items()}
    p_values = statistics.gap_test(kept, kept_strata, patients, seed=seed)
    gaps, differences = {}, {}
    for name, statistic in kept.items():
        means = {
            s: shown[s]["metrics"][name]["mean"] for s in compared if shown[s]["metrics"][name]["mean"] is not None
        }
        if len(means) < 2:
            continue
        highest, lowest = max(means, key=means.get), min(means, key=means.get)
        inside = [np.array([s == which for s in kept_strata])[:, None] for which in (highest, lowest)]
        parts = [replace(statistic, columns=statistic.columns * mask) for mask in inside]
        differences[name] = statistics.difference(*parts)
        gaps[name] = {"highest": highest, "lowest": lowest}
    # The interval is of the difference between the two strata found to be extreme; the p-value allows for that choice.
    for name, interval in statistics.bootstrap(differences, patients, resamples=resamples, seed=seed).items():
        gaps[name] |= {"difference": interval.mean, "low": interval.low, "high": interval.high, "p": p_values[name]}
    return gaps
