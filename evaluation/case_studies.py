"""Case studies of the report: studies chosen by stated rules, with every model's text and its errors (paper, Figures 2e, 3c).

The paper shows a report without errors (2e), and one for each kind of change (3c). Chosen here are, beside the best, what is
usual and what is worst, so that nobody has to ask how they were picked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.browser import scored_lines
from evaluation.names import shown_name, shown_number
from evaluation.part import Part
from evaluation.run_folder import Run
from evaluation.tables import Table
from evaluation.temporal import CATEGORIES, UNKNOWN
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS, binary_labels
from settings.evaluations import BASELINES

_CHANGES = tuple(name for name in CATEGORIES if name != UNKNOWN)
NO_FINDING = CONDITIONS.index("No Finding")


@dataclass(frozen=True)
class _Study:
    """What a study is chosen by: the chosen model's errors (−headline without a judge), and the findings of the reference."""

    key: tuple[str, str]
    errors: float
    findings: int
    change: str


def case_studies(run: Run, headline: str) -> list[Part]:
    """The part, for the last trained model beside all others; none without a trained model."""
    trained = [name for name in run.models if name not in BASELINES]
    if not trained:
        return []
    model = trained[-1]
    studies = sorted(_studies(run, model, headline), key=lambda study: (study.errors, -study.findings, study.key))
    if not studies:
        return []
    judged = all(run.described(name)["judge"] for name in run.models)
    measure = "the judge's errors" if judged else shown_number(headline)
    chosen = _chosen(studies)
    lines = _lines(run, {study.key for _, study in chosen})
    text = (
        f"Chosen by {measure} of {shown_name(model)}, not by hand. Of all studies: the best one with most findings in its "
        "reference, the middle one and the worst. Of each kind of change (of the reference, as labelled above): the best one with "
        "most findings and the middle one. Ties go by study id."
    )
    tables = [
        _table(rule, lines[study.key], run.models, folded=number >= 3) for number, (rule, study) in enumerate(chosen)
    ]
    return [Part("cases", "Case studies", text, tables=tables)]


def _studies(run: Run, model: str, headline: str) -> Iterator[_Study]:
    """Of the data sets that are pooled."""
    for index, line in scored_lines(run):
        if run.models[index] != model or line["dataset"] not in run.pooled:
            continue
        judge = line.get("judge") or {}
        if judge.get("significant") is not None:
            errors = float(sum(judge["significant"]) + sum(judge["insignificant"]))
        elif line["metrics"].get(headline) is not None:
            sign = 1 if run.described(model)["metrics"].get(headline, {}).get("higher_is_better", True) else -1
            errors = -sign * line["metrics"][headline]
        else:
            continue  # the judge failed, or a metric has no answer
        findings = binary_labels(np.array([line["labels"]["reference"]]))[0]
        found = int(np.delete(findings, NO_FINDING).sum())
        yield _Study((line["dataset"], line["study_id"]), errors, found, line["temporal"])


def _chosen(studies: Sequence[_Study]) -> list[tuple[str, _Study]]:
    """The rules and their studies; `studies` in the order of errors, those with more findings first among equals."""
    chosen = [("best", studies[0]), ("in the middle", studies[len(studies) // 2]), ("worst", studies[-1])]
    for change in _CHANGES:
        if of_one := [study for study in studies if study.change == change]:
            chosen += [(f"{change}, best", of_one[0]), (f"{change}, in the middle", of_one[len(of_one) // 2])]
    return chosen


def _lines(run: Run, keys: set[tuple[str, str]]) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """Scored lines of the chosen studies, by model number."""
    lines: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {key: {} for key in keys}
    for index, line in scored_lines(run):
        if (key := (line["dataset"], line["study_id"])) in lines:
            lines[key][index] = line
    return lines


def _table(rule: str, lines: Mapping[int, Mapping[str, Any]], models: Sequence[str], folded: bool) -> Table:
    one = next(iter(lines.values()))
    title = f"{rule[0].upper()}{rule[1:]}: {one['study_id']} of {one['dataset']}, {one['temporal']}"
    rows = [["prior report", one["prior_report"], ""]] if one.get("prior_report") else []
    rows.append(["reference", one["reference"], ""])
    rows += [[shown_name(models[index]), line["candidate"], _errors(line)] for index, line in sorted(lines.items())]
    return Table(["", "report", "errors by type"], rows, "" if folded else title, title if folded else "")


def _errors(line: Mapping[str, Any]) -> str:
    """The judge's errors by type; without its answer, findings that labels miss or add."""
    judge = line.get("judge") or {}
    if judge.get("significant") is not None:
        counts = zip(ERROR_TYPES, judge["significant"], judge["insignificant"], strict=True)
        named = [
            f"{name.replace('_', ' ')} {significant + insignificant}"
            + (f" ({insignificant} insignificant)" if insignificant else "")
            for name, significant, insignificant in counts
            if significant + insignificant
        ]
        return "; ".join(named) or "none"
    sides = (binary_labels(np.array([line["labels"][side]]))[0].astype(bool) for side in ("reference", "candidate"))
    reference, candidate = sides
    missed = [CONDITIONS[i] for i in np.flatnonzero(reference & ~candidate)]
    added = [CONDITIONS[i] for i in np.flatnonzero(candidate & ~reference)]
    told = [f"misses {', '.join(missed)}"] * bool(missed) + [f"adds {', '.join(added)}"] * bool(added)
    return "; ".join(told) or "none by labels"
