"""All numbers of a run that its report shows, made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import figures, statistics
from evaluation.baselines import BASELINES
from evaluation.breakdowns import breakdown
from evaluation.compare import compare
from evaluation.run_folder import STAGES, Run
from evaluation.score import Scores, condition_statistics, judge_statistics, principal_statistics
from evaluation.statistics import Statistic
from rewards.conditions import binary_labels

Value = Mapping[str, float | None]  # mean, low, high


@dataclass(frozen=True)
class Comparisons:
    """The run's stages and its comparisons (ablations) on the data sets that all of them have.

    Attributes:
        means: by model, by number.
        left_out: comparisons that cannot stand there, and why.
    """

    datasets: Sequence[str]
    means: Mapping[str, Mapping[str, Value]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Material:
    """The numbers. Figures and breakdowns are over all data sets, summary and `means` over those trained on."""

    run: Run
    summary: Mapping[str, Any]
    scores: Mapping[str, Scores]  # by model, pooled over data sets
    described: Mapping[str, Mapping[str, Any]]
    means: Mapping[str, Mapping[str, Value]]
    breakdowns: Mapping[str, Mapping[str, Any]]
    conditions: Mapping[str, Mapping[str, Mapping[str, Any]]]
    judge: Mapping[str, Mapping[str, Value]]
    words: Mapping[str, Value]
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    ablation_histories: Mapping[str, Sequence[Mapping[str, Any]]]
    selections: Mapping[str, Mapping[str, Any]]
    comparison: Mapping[str, Any] | None
    comparisons: Comparisons
    headline: str  # the number that breakdowns are drawn by
    resamples: int
    seed: int

    @property
    def trained(self) -> list[str]:
        """The run's models without the baselines."""
        return [model for model in self.run.models if model not in BASELINES]


def collect(run: Run, summary: Mapping[str, Any], resamples: int, seed: int) -> Material:
    """Raises EvaluationError where scores cannot be pooled."""
    scores, described, means, breakdowns, conditions, judge = {}, {}, {}, {}, {}, {}
    words: dict[str, Value] = {}

    def intervals(found: Mapping[str, Statistic], patients: Sequence[str]) -> dict[str, Value]:
        made = statistics.bootstrap(found, patients, resamples=resamples, seed=seed)
        return {name: interval.as_dict() for name, interval in made.items()}

    for model in tqdm(run.models, desc="breakdowns", unit="model"):
        pooled = run.scores(model, run.datasets)
        scores[model], described[model] = pooled, run.described(model)
        seen = run.scores(model, run.seen) or pooled
        means[model] = intervals(principal_statistics(seen, described[model]), seen.patient_id)
        breakdowns[model] = breakdown(pooled, described[model], run.zero_shot, resamples, seed)
        source = "truth" if "truth" in pooled.labels else "reference"
        positives = binary_labels(pooled.labels[source]).sum(axis=0)
        found = intervals(condition_statistics(pooled, source), pooled.patient_id)
        conditions[model] = {
            name: {**value, "positives": int(positives[i])} for i, (name, value) in enumerate(found.items())
        }
        if pooled.errors is not None:
            judge[model] = intervals(judge_statistics(pooled), pooled.patient_id)
        lengths = {"words": statistics.mean(np.array(pooled.fields["candidate_words"]))}
        words[model] = intervals(lengths, pooled.patient_id)["words"]
    longest = max(scores.values(), key=lambda s: len(s.study_id))
    words["references"] = {"mean": float(np.mean(longest.fields["words"])), "low": None, "high": None}
    trained = {model: scores[model] for model in run.models if model not in BASELINES}
    real = all(d["backend"] == "real" for d in described.values())
    names = list(next(iter(means.values())))
    wanted = ("1/radcliq_v1", "composite") if real else ("composite", "label_micro_f1_14")
    headlines = (n for start in wanted for n in names if n.startswith(start))
    return Material(
        run=run,
        summary=summary,
        scores=scores,
        described=described,
        means=means,
        breakdowns=breakdowns,
        conditions=conditions,
        judge=judge,
        words=words,
        histories=run.stage_files("log_history.json"),
        ablation_histories=run.ablation_files("log_history.json"),
        selections=run.stage_files("selection.json"),
        comparison=compare(trained, described, resamples, seed) if len(trained) > 1 else None,
        comparisons=_comparisons(run, described, resamples, seed),
        headline=next(
            (n for n in headlines if all(figures.says_something(n, m.get(n)) for m in means.values())), names[0]
        ),
        resamples=resamples,
        seed=seed,
    )


def _comparisons(run: Run, described: Mapping[str, Mapping[str, Any]], resamples: int, seed: int) -> Comparisons:
    stages = [model for model in run.models if model in STAGES]
    left_out: dict[str, str] = {}
    kept: list[str] = []
    for name in run.ablations:
        if stages and run.described(name)["metrics"] != described[stages[0]]["metrics"]:
            left_out[name] = "scored by another backend than the run"
        else:
            kept.append(name)
    datasets = [d for d in run.seen if all(d in run.folders_of(model) for model in (*stages, *kept))]
    if kept and not datasets:
        left_out |= dict.fromkeys(kept, "no data set in common with the run and the other comparisons")
        kept, datasets = [], run.seen
    means = {}
    for model in (*stages, *kept):
        scores = run.scores(model, datasets)
        if scores is not None:
            found = principal_statistics(scores, run.described(model))
            made = statistics.bootstrap(found, scores.patient_id, resamples=resamples, seed=seed)
            means[model] = {name: interval.as_dict() for name, interval in made.items()}
    return Comparisons(datasets, means, left_out)
