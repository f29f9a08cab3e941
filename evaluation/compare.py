"""Two or more models on the same studies: side by side, and pair by pair with intervals and corrected p-values.

python -m evaluation compare outputs/x/eval/mimic/sft outputs/x/eval/mimic/rl_step2 --out comparison.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import statistics
from evaluation.scores import Scores, is_principal, principal_statistics
from evaluation.tables import p_value, says_something
from foundation.errors import EvaluationError, read_record


def read_result(folder: Path) -> dict[str, Any]:
    """A folder's `scores.json`.

    Raises:
        EvaluationError: it is missing or broken.
    """
    path = folder / "scores.json"
    try:
        return read_record(path, "made_by", "metrics", "studies")
    except FileNotFoundError:
        raise EvaluationError(f"no {path}; make it with: python -m evaluation score --out {folder} …") from None


def same_studies(models: Mapping[str, Scores]) -> tuple[dict[str, Scores], dict[str, int]]:
    """Each model's scores of the studies that all have, in one order, and how many each has beyond these.

    A value that one of the models lacks for a study (its judge failed) is taken from the others too, so that each number of
    all models is over the same studies.

    Raises:
        EvaluationError: no study in common, or references that differ (other sections, other data).
    """
    keys = {
        name: {key: i for i, key in enumerate(zip(s.fields["dataset"], s.study_id, strict=True))}
        for name, s in models.items()
    }
    first = next(iter(keys.values()))
    common = [key for key in first if all(key in other for other in keys.values())]
    if not common:
        raise EvaluationError(f"{' and '.join(models)} have no study in common; compare models on the same data set")
    aligned = {name: models[name].take(np.array([keys[name][key] for key in common])) for name in models}
    references = [scores.fields["reference_sha"] for scores in aligned.values()]
    if any(other != references[0] for other in references[1:]):
        raise EvaluationError(
            f"{' and '.join(models)} were scored against different references; score them with the same --sections and data"
        )
    return _known_to_all(aligned), {name: len(keys[name]) - len(common) for name in models}


def _known_to_all(aligned: Mapping[str, Scores]) -> dict[str, Scores]:
    judged = [scores.errors for scores in aligned.values() if scores.errors is not None]
    failed = np.isnan(judged).any(axis=0) if judged else None
    unknown: dict[str, np.ndarray] = {}
    for scores in aligned.values():
        for name, values in scores.metrics.items():
            unknown[name] = unknown.get(name, False) | np.isnan(values)

    def without(counts: np.ndarray | None) -> np.ndarray | None:
        return None if counts is None else np.where(failed[:, None], np.nan, counts)

    return {
        model: replace(
            scores,
            metrics={name: np.where(unknown[name], np.nan, values) for name, values in scores.metrics.items()},
            significant=without(scores.significant),
            insignificant=without(scores.insignificant),
        )
        for model, scores in aligned.items()
    }


def judge_left_out(aligned: Mapping[str, Scores]) -> dict[str, int]:
    """Of the studies that all models have, for how many each model's judge failed; errors are over none of these."""
    return {model: count for model, scores in aligned.items() if (count := sum(scores.judge_failures().values()))}


def studies_in_words(
    aligned: Mapping[str, Scores], beyond: Mapping[str, int], named: Callable[[str], str] = str, where: str = ""
) -> str:
    """Which studies a table of these models is over, and what it leaves out and why.

    Args:
        beyond: how many studies a model has that another has not (`same_studies`).
        named: a model's name for people.
        where: the data sets, in brackets after the patients.
    """

    def counts(of: Mapping[str, int]) -> str:
        return ", ".join(f"{count:,} of {named(model)}" for model, count in of.items() if count)

    first = next(iter(aligned.values()))
    splits = sorted({split or "test" for split in first.fields["split"]})
    text = f"{len(first.study_id):,} {' and '.join(splits)} studies of {len(set(first.patient_id)):,} patients{where}"
    text += " that all models have." if len(aligned) > 1 else "."
    if left_out := counts(beyond):
        text += f" Left out, because another model lacks them: {left_out}."
    if failed := counts(judge_left_out(aligned)):
        text += f" Errors are over the reports that the judge read for all models; it failed for {failed}."
    return text


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Set `family` and `p_holm` of tests (each with `first`, `second`, `number`, `p`): Holm within each of two families.

    The principal numbers are one family, all others a second one. A mean and one over it are one test.
    """
    numbers = {row["number"] for row in rows}
    families: dict[str, dict[tuple[str, ...], float]] = {"principal": {}, "other": {}}
    for row in rows:
        row["family"] = "principal" if is_principal(row["number"], numbers) else "other"
        if row["p"] is not None:
            families[row["family"]].setdefault(_test_of(row), row["p"])
    adjusted = {k: p for f in families.values() for k, p in zip(f, statistics.holm(list(f.values())), strict=True)}
    for row in rows:
        row["p_holm"] = None if row["p"] is None else adjusted[_test_of(row)]


def _test_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["first"], row["second"], row["number"].removeprefix("1/")


def compare(
    models: Mapping[str, Scores],
    described: Mapping[str, Mapping[str, Any]],
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Means side by side and all pairs' differences on the studies that all models have, Holm-corrected (`correct`).

    Args:
        models: scores by model name.
        described: each model's `made_by.scorers` (its backends). Numbers whose names or fingerprints differ between two
            models are not compared; they are listed under `not_compared`.
    """
    aligned, beyond = same_studies(models)
    found = {name: principal_statistics(scores, described[name]) for name, scores in aligned.items()}
    patients = next(iter(aligned.values())).patient_id
    result: dict[str, Any] = {
        "studies": len(patients),
        "patients": len(set(patients)),
        "studies_beyond_the_common_ones": beyond,
        "judge_failed": judge_left_out(aligned),
        "studies_of": {n: s.studies for one in found.values() for n, s in one.items() if s.studies < len(patients)},
        "means": {
            name: {k: v.as_dict() for k, v in statistics.bootstrap(s, patients, resamples=resamples, seed=seed).items()}
            for name, s in found.items()
        },
        "pairs": [],
        "not_compared": [],
    }
    for a, b in combinations(models, 2):
        alike = [n for n in found[a] if n in found[b] and _made_alike(n, described[a], described[b])]
        for name in sorted({*found[a], *found[b]} - set(alike)):
            result["not_compared"].append({"first": a, "second": b, "number": name})
        differences = statistics.paired(
            {n: found[a][n] for n in alike}, {n: found[b][n] for n in alike}, patients, resamples=resamples, seed=seed
        )
        for name, difference in differences.items():
            result["pairs"].append({"first": a, "second": b, "number": name, **difference.as_dict()})
    correct(result["pairs"])
    return result


def table(result: Mapping[str, Any]) -> str:
    """The comparison as text for a terminal."""
    models, lines = list(result["means"]), []
    numbers = list(next(iter(result["means"].values())))
    width = max(len(n) for n in numbers) + 2
    column = max([28, *(len(m) + 2 for m in models)])
    lines.append(f"{result['studies']} studies of {result['patients']} patients; mean [95% interval]")
    for model, count in result.get("studies_beyond_the_common_ones", {}).items():
        if count:
            lines.append(f"left out: {count} studies that {model} has and another model has not")
    for number, count in result.get("studies_of", {}).items():
        failed = ", ".join(f"{model} {n}" for model, n in result["judge_failed"].items())
        why = f" (the judge failed: {failed})" if "errors " in number and failed else ""
        lines.append(f"{number}: {count} studies, those that all models have it for{why}")
    lines.append(" " * width + "".join(m.ljust(column) for m in models))
    for number in numbers:
        values = [result["means"][m].get(number) for m in models]
        cells = [_cell(value) if says_something(number, value) else "–" for value in values]
        lines.append(number.ljust(width) + "".join(cell.ljust(column) for cell in cells))
    for row in result["pairs"]:
        if row["difference"] is not None:
            p = p_value(row["p_holm"], row["p_at_floor"])
            family = "" if row["family"] == "principal" else ", other numbers"
            lines.append(
                f"{row['first']} − {row['second']}: {row['number']} {_cell(row, 'difference')}, p (Holm{family}) {p}"
            )
    for row in result["not_compared"]:
        lines.append(f"not compared (other backend): {row['number']} of {row['first']} and {row['second']}")
    return "\n".join(lines)


def _cell(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    if value is None or value[key] is None:
        return "–"
    if value["low"] is None:
        return f"{value[key]:.3f}"
    return f"{value[key]:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _made_alike(number: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two models' numbers of one name come from the same backend with the same fingerprint."""
    if "errors " in number:
        return a["judge"] == b["judge"]
    if "_f1_" in number:
        return a["labels"] == b["labels"]
    if number.startswith("composite"):
        return a["metrics"] == b["metrics"] and a["composite"] == b["composite"]
    name = number.removeprefix("1/")
    return a["metrics"].get(name) == b["metrics"].get(name)


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """A short distinct name for each folder: its own, or with as many parents as make it distinct."""
    for depth in range(1, 8):
        names = ["/".join(folder.resolve().parts[-depth:]) for folder in folders]
        if len(set(names)) == len(folders):
            return dict(zip(names, folders, strict=True))
    raise EvaluationError("the same folder is given twice; compare different models")
