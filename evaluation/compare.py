"""Two or more models on the same studies: side by side, and pair by pair with intervals and corrected p-values.

python -m evaluation compare outputs/x/eval/mimic/sft outputs/x/eval/mimic/rl_step2 --out comparison.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import statistics
from evaluation.errors import EvaluationError
from evaluation.score import Scores, principal_statistics


def read_result(folder: Path) -> dict[str, Any]:
    """A folder's `scores.json`.

    Raises:
        EvaluationError: it is missing or broken.
    """
    path = folder / "scores.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"no {path}; make it with: python -m evaluation score --out {folder} …") from None
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path} is not JSON ({error}); score again with --force") from error


def same_studies(models: Mapping[str, Scores]) -> tuple[dict[str, Scores], dict[str, int]]:
    """Each model's scores of the studies that all have, in one order, and how many each has beyond these.

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
    return aligned, {name: len(keys[name]) - len(common) for name in models}


def compare(
    models: Mapping[str, Scores],
    described: Mapping[str, Mapping[str, Any]],
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Means side by side and all pairs' differences, Holm-corrected over all pairs and numbers.

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
    for row, p in zip(result["pairs"], statistics.holm([row["p"] for row in result["pairs"]]), strict=True):
        row["p_holm"] = p
    return result


def table(result: Mapping[str, Any]) -> str:
    """The comparison as text for a terminal."""
    models, lines = list(result["means"]), []
    numbers = list(next(iter(result["means"].values())))
    width = max(len(n) for n in numbers) + 2
    column = max([28, *(len(m) + 2 for m in models)])
    lines.append(f"{result['studies']} studies of {result['patients']} patients; mean [95% interval]")
    lines.append(" " * width + "".join(m.ljust(column) for m in models))
    for number in numbers:
        cells = [_cell(result["means"][m].get(number)) for m in models]
        lines.append(number.ljust(width) + "".join(cell.ljust(column) for cell in cells))
    for row in result["pairs"]:
        if row["difference"] is not None:
            p = "–" if row["p_holm"] is None else f"{row['p_holm']:.4f}"
            lines.append(f"{row['first']} − {row['second']}: {row['number']} {_cell(row, 'difference')}, p (Holm) {p}")
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
