"""The scores of one file of reports as statistics: means, F1 over conditions, the judge's errors, each with its interval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import statistics
from evaluation.names import split_number
from evaluation.statistics import Statistic
from foundation.errors import EvaluationError
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS, TOP_FIVE, binary_labels

# One family of tests, beside micro-F1 over all conditions and the judge's errors; RadCliQ-v1 stands for its inverse too.
PRINCIPAL = ("radcliq_v1", "composite")
COMMON = 5  # patients who have a condition, from which on it is common enough for an interval of macro-F1


@dataclass
class Scores:
    """The numbers of a `scores.jsonl`, as columns over studies; the texts stay in the file.

    Attributes:
        metrics: float64 [n] by full metric name, NaN where a language model that was asked for one failed.
        labels: classes int8 [n, 14] of `reference` and `candidate`, and 0/1 of `truth` where the data has them.
        significant, insignificant: the judge's counts, float64 [n, 6], NaN where it failed; None without a judge.
    """

    study_id: list[str] = field(default_factory=list)
    patient_id: list[str] = field(default_factory=list)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    significant: np.ndarray | None = None
    insignificant: np.ndarray | None = None
    failures: list[str | None] = field(default_factory=list)
    metric_failures: dict[str, dict[str, int]] = field(default_factory=dict)  # by metric of a language model and cause

    FIELDS = (
        "dataset",
        "split",
        "encounter",
        "sex",
        "age",
        "race",
        "temporal",
        "status",
        "sections",
        "words",
        "candidate_words",
        "reference_sha",
        "most_frequent_report",  # of a baseline: whether it had nothing else to give (`run_folder.Run`)
    )

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Raises EvaluationError where the file is missing or not a scores file."""
        scores = cls(fields={name: [] for name in cls.FIELDS})
        metrics: dict[str, list[float]] = {}
        labels: dict[str, list[list[int]]] = {}
        counts: dict[str, list[list[float]]] = {"significant": [], "insignificant": []}
        try:
            with Path(path).open(encoding="utf-8") as file:
                for text in file:
                    line = json.loads(text)
                    scores.study_id.append(line["study_id"])
                    scores.patient_id.append(f"{line['dataset']}/{line['patient_id']}")
                    line["sections"] = "+".join(s for s in ("findings", "impression") if line.get(s)) or "unknown"
                    line["words"] = len(line["reference"].split())
                    line["candidate_words"] = len(line["candidate"].split())
                    line["reference_sha"] = hashlib.sha256(line["reference"].encode()).digest()[:8]
                    for name in cls.FIELDS:
                        scores.fields[name].append(line.get(name))
                    for name, value in line["metrics"].items():
                        metrics.setdefault(name, []).append(np.nan if value is None else value)
                    for name, answer in line.get("asked", {}).items():
                        if isinstance(answer, str):
                            causes = scores.metric_failures.setdefault(name, {})
                            causes[answer] = causes.get(answer, 0) + 1
                    for name, value in line["labels"].items():
                        labels.setdefault(name, []).append(value)
                    if "judge" in line:
                        judged = line["judge"] or {}
                        for name, column in counts.items():
                            column.append(judged.get(name, [np.nan] * len(ERROR_TYPES)))
                        scores.failures.append(line["judge_failure"])
        except FileNotFoundError:
            raise EvaluationError(f"no scores in {path}; make them with: python -m evaluation score …") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EvaluationError(f"{path} is not a scores file ({error!r}); score again with --force") from error
        if len(set(scores.study_id)) != len(scores.study_id):
            raise EvaluationError(f"{path} holds a study twice; score again with --force")
        if not scores.study_id:
            raise EvaluationError(f"{path} holds no study; score again with --force")
        scores.metrics = {name: np.array(values) for name, values in metrics.items()}
        scores.labels = {name: np.array(values, dtype=np.int8) for name, values in labels.items()}
        if counts["significant"]:
            scores.significant = np.array(counts["significant"], dtype=np.float64)
            scores.insignificant = np.array(counts["insignificant"], dtype=np.float64)
        return scores

    @property
    def errors(self) -> np.ndarray | None:
        """All of the judge's errors a report: float64 [n], NaN where it failed."""
        return None if self.significant is None else (self.significant + self.insignificant).sum(axis=1)

    def judge_failures(self) -> dict[str, int]:
        """Failed judge calls by cause."""
        causes = [cause for cause in self.failures if cause]
        return {cause: causes.count(cause) for cause in sorted(set(causes))}

    def take(self, keep: np.ndarray) -> Scores:
        """Some of the studies, in the order of the indices `keep`."""
        chosen = [int(i) for i in keep]
        return Scores(
            [self.study_id[i] for i in chosen],
            [self.patient_id[i] for i in chosen],
            {name: [values[i] for i in chosen] for name, values in self.fields.items()},
            {name: values[chosen] for name, values in self.metrics.items()},
            {name: values[chosen] for name, values in self.labels.items()},
            None if self.significant is None else self.significant[chosen],
            None if self.insignificant is None else self.insignificant[chosen],
            [self.failures[i] for i in chosen] if self.failures else [],
        )


def principal_statistics(scores: Scores, described: Mapping[str, Any]) -> dict[str, Statistic]:
    """The numbers that models are compared by, under names that carry their backend."""
    found: dict[str, Statistic] = {}
    for name, values in scores.metrics.items():
        if name.startswith("radcliq"):
            found[f"1/{name}"] = statistics.inverse_mean(values)
        found[name] = statistics.mean(values)
    suffix = suffix_of(described["labels"]["backend"])
    candidate = binary_labels(scores.labels["candidate"])
    five = [CONDITIONS.index(name) for name in TOP_FIVE]
    for source, kind in (("reference", "label"), ("truth", "truth")):
        if source not in scores.labels:
            continue
        labels = binary_labels(scores.labels[source])
        everything = list(range(len(CONDITIONS)))
        for n, chosen in (("14", everything), ("5", five)):
            found[f"{kind}_micro_f1_{n}{suffix}"] = statistics.f1(labels[:, chosen], candidate[:, chosen])
        common = common_conditions(labels, scores.patient_id)
        for n, chosen in (("14", everything), ("5", five), ("common", common)):
            if chosen:
                macro = statistics.f1(labels[:, chosen], candidate[:, chosen], "macro")
                found[f"{kind}_macro_f1_{n}{suffix}"] = replace(macro, estimable=set(chosen) <= set(common))
    if (errors := scores.errors) is not None:
        judge = described["judge"]["name"]
        found[f"errors {judge}"] = statistics.count(errors)
        found[f"significant errors {judge}"] = statistics.count(scores.significant.sum(axis=1))
    return found


def common_conditions(labels: np.ndarray, patients: Sequence[str]) -> list[int]:
    """The conditions (columns of the references' labels, bool [n, 14]) that at least `COMMON` patients have.

    Macro-F1 over these has an interval that holds the true value; over rarer ones none that was tried does.
    """
    index = statistics.cluster_index(patients)
    return [i for i in range(labels.shape[1]) if len(set(index[labels[:, i] > 0])) >= COMMON]


def is_principal(number: str, numbers: Collection[str]) -> bool:
    """Whether a number is one of the few that claims rest on, tested as a family of their own: `PRINCIPAL`.

    Micro-F1 counts against the true labels where there are any (`numbers`: all that the model has).
    """
    kind = "truth" if any(other.startswith("truth_") for other in numbers) else "label"
    base = split_number(number)[0].removeprefix("1/")
    return base in (*PRINCIPAL, f"{kind}_micro_f1_14") or base.split(" ")[0] == "errors"


def condition_statistics(scores: Scores, source: str = "reference") -> dict[str, Statistic]:
    """F1 of each condition against the labels of `source`."""
    candidate, labels = binary_labels(scores.labels["candidate"]), binary_labels(scores.labels[source])
    return {name: statistics.f1(labels[:, [i]], candidate[:, [i]]) for i, name in enumerate(CONDITIONS)}


def judge_statistics(scores: Scores) -> dict[str, Statistic]:
    """Shares of reports with ≤ 1, 2, 3 and ≥ 4 errors (paper, figure 2f) and mean errors a report of each type."""
    errors = scores.errors
    failed = np.isnan(errors)

    def share(hit: np.ndarray) -> Statistic:
        return statistics.mean(np.where(failed, np.nan, hit))

    found = {"≤1": share(errors <= 1), "2": share(errors == 2), "3": share(errors == 3), "≥4": share(errors >= 4)}
    for i, name in enumerate(ERROR_TYPES):
        found[f"{name} significant"] = statistics.count(scores.significant[:, i])
        found[f"{name} insignificant"] = statistics.count(scores.insignificant[:, i])
    return found


def summarise(scores: Scores, described: Mapping[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    """Point estimates with intervals: `metrics`, `conditions` (F1 each) and `judge` (error table)."""

    def intervals(found: Mapping[str, Statistic]) -> dict[str, dict[str, Any]]:
        made = statistics.bootstrap(found, scores.patient_id, resamples=resamples, seed=seed)
        return {name: interval.as_dict() for name, interval in made.items()}

    result: dict[str, Any] = {"metrics": intervals(principal_statistics(scores, described))}
    result["conditions"] = {
        source: {
            name: {**interval, "positives": int(binary_labels(scores.labels[source])[:, i].sum())}
            for i, (name, interval) in enumerate(intervals(condition_statistics(scores, source)).items())
        }
        for source in ("reference", "truth")
        if source in scores.labels
    }
    if scores.errors is not None:
        result["judge"] = {
            "judged": int((~np.isnan(scores.errors)).sum()),
            "table": intervals(judge_statistics(scores)),
        }
    return result


def suffix_of(backend: str) -> str:
    """The mark of a stand-in: none where the labels are CheXbert's own."""
    return "" if backend in ("real", "exact") else f"[{backend}]"
