"""Scores by group of studies: encounter, temporal category, sex, age, race, data set, sections, length.

Paper: figures 3b (encounters), 3c (temporal categories), 4a (zero-shot data sets), 4d (sex, age, race).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation import statistics, temporal
from evaluation.scores import Scores, principal_statistics

UNKNOWN = temporal.UNKNOWN
SUBGROUPS = ("sex", "age", "race")  # gaps between their strata are tested
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
    if attribute == "encounter":
        # Where no patient of a data set comes twice, its studies have no dates: that each is a first one is not known.
        datasets = scores.fields["dataset"]
        dated = {d for d, name in zip(datasets, of_study, strict=True) if name not in ("1", UNKNOWN)}
        of_study = [name if d in dated else UNKNOWN for d, name in zip(datasets, of_study, strict=True)]
    found = set(of_study)
    shown = [name for name in order if name in found and name != UNKNOWN]
    shown += sorted(found - set(order) - {UNKNOWN}) + [UNKNOWN] * (UNKNOWN in found)
    return of_study, shown


def breakdown(
    scores: Scores,
    described: Mapping[str, Any],
    zero_shot: Sequence[str] = (),
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    attributes: Sequence[str] | None = None,
    tested: Collection[str] | None = None,
) -> dict[str, Any]:
    """Breakdowns of one model's scores.

    Args:
        attributes: which; default: all.
        tested: the numbers whose gaps are tested; default: all.

    Returns:
        attribute → {"strata": {stratum: {n, patients, small, most_frequent_reports, metrics: {name: {mean, low, high}}}}}, and for sex, age and
        race also "gaps": {metric: {highest, lowest, difference, low, high, p}}: of the known strata of at least
        `statistics.MIN_PATIENTS` patients, the two whose difference stands out most (`statistics.largest_gaps`). A stratum of
        fewer patients has no intervals.
    """
    # Macro-F1 averages conditions of which small strata have none: not shown by stratum.
    all_statistics = {n: s for n, s in principal_statistics(scores, described).items() if "_macro_" not in n}
    if attributes is None:
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
                "small": len(set(patients)) < statistics.MIN_PATIENTS,
                "most_frequent_reports": sum(bool(scores.fields["most_frequent_report"][i]) for i in keep),
                "metrics": {n: interval.as_dict() for n, interval in intervals.items()},
            }
        if attribute in SUBGROUPS:
            compared = [
                name
                for name, stratum in result[attribute]["strata"].items()
                if name != UNKNOWN and not stratum["small"]
            ]
            keep = np.flatnonzero([s in compared for s in of_study])
            wanted = {n: s.rows(keep) for n, s in all_statistics.items() if tested is None or n in tested}
            gaps = {}
            if len(compared) > 1:
                gaps = statistics.largest_gaps(
                    wanted, [of_study[i] for i in keep], [scores.patient_id[i] for i in keep], seed=seed
                )
            result[attribute]["gaps"] = {n: asdict(gap) for n, gap in gaps.items() if gap is not None}
    return result
