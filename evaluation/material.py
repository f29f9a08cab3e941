"""All numbers of a run that its report shows, made once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation import statistics
from evaluation.breakdowns import ATTRIBUTES, breakdown
from evaluation.compare import compare
from evaluation.run_folder import STAGES, Common, Run
from evaluation.scores import condition_statistics, judge_statistics, principal_statistics
from evaluation.statistics import Statistic
from evaluation.tables import says_something
from rewards.conditions import binary_labels
from settings.evaluations import BASELINES

Value = Mapping[str, float | None]  # mean, low, high


@dataclass(frozen=True)
class Comparisons:
    """The run's stages and its comparisons (ablations) on the studies that all of them have.

    Attributes:
        common: their scores.
        means: by model, by number.
        left_out: comparisons that cannot stand there, and why.
    """

    common: Common
    means: Mapping[str, Mapping[str, Value]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Material:
    """The numbers. All are over the studies that all models have: pooled ones of the run's `pooled` data sets, breakdowns of
    each data set by itself."""

    run: Run
    summary: Mapping[str, Any]
    pooled: Common
    described: Mapping[str, Mapping[str, Any]]
    means: Mapping[str, Mapping[str, Value]]
    breakdowns: Mapping[str, Mapping[str, Mapping[str, Any]]]  # by data set, by model
    institutions: Mapping[str, Mapping[str, Any]]  # by model: data sets, and seen against zero-shot
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
    def models(self) -> list[str]:
        """The models that pooled numbers are of."""
        return list(self.pooled.scores)

    @property
    def trained(self) -> list[str]:
        """Those without the baselines."""
        return [model for model in self.models if model not in BASELINES]


def collect(run: Run, summary: Mapping[str, Any], resamples: int, seed: int) -> Material:
    """Raises EvaluationError where scores cannot be pooled."""
    described = {model: run.described(model) for model in run.models}
    pooled = run.common(run.models, run.pooled)
    means, conditions, judge, words = {}, {}, {}, {}

    def intervals(found: Mapping[str, Statistic], patients: Sequence[str]) -> dict[str, Value]:
        made = statistics.bootstrap(found, patients, resamples=resamples, seed=seed)
        return {name: interval.as_dict() for name, interval in made.items()}

    for model, scores in pooled.scores.items():
        means[model] = intervals(principal_statistics(scores, described[model]), scores.patient_id)
        source = "truth" if "truth" in scores.labels else "reference"
        positives = binary_labels(scores.labels[source]).sum(axis=0)
        found = intervals(condition_statistics(scores, source), scores.patient_id)
        conditions[model] = {
            name: {**value, "positives": int(positives[i])} for i, (name, value) in enumerate(found.items())
        }
        if scores.errors is not None:
            judge[model] = intervals(judge_statistics(scores), scores.patient_id)
        lengths = {"words": statistics.mean(np.array(scores.fields["candidate_words"]))}
        words[model] = intervals(lengths, scores.patient_id)["words"]
    first = next(iter(pooled.scores.values()))
    words["references"] = {"mean": float(np.mean(first.fields["words"])), "low": None, "high": None}
    real = all(d["backend"] == "real" for d in described.values())
    names = list(next(iter(means.values())))
    wanted = ("1/radcliq_v1", "composite") if real else ("composite", "label_micro_f1_14")
    headlines = (n for start in wanted for n in names if n.startswith(start))
    headline = next((n for n in headlines if all(says_something(n, m.get(n)) for m in means.values())), names[0])
    # The later model first, as in the summary: a difference is what training added.
    # Where models of others stand beside the run's own, copying the prior is tested with them (paper, Figure 3).
    rivals = any(model not in {*STAGES, *BASELINES} for model in pooled.scores)
    tested = [*(["copy_prior"] if rivals else []), *(model for model in pooled.scores if model not in BASELINES)]
    trained = {model: pooled.scores[model] for model in reversed(tested) if model in pooled.scores}
    return Material(
        run=run,
        summary=summary,
        pooled=pooled,
        described=described,
        means=means,
        breakdowns=_breakdowns(run, described, headline, resamples, seed),
        institutions=_institutions(run, described, resamples, seed),
        conditions=conditions,
        judge=judge,
        words=words,
        histories=run.stage_files("log_history.json"),
        ablation_histories=run.ablation_files("log_history.json"),
        selections=run.stage_files("selection.json"),
        comparison=compare(trained, described, resamples, seed) if len(trained) > 1 else None,
        comparisons=_comparisons(run, described, resamples, seed),
        headline=headline,
        resamples=resamples,
        seed=seed,
    )


def _breakdowns(
    run: Run, described: Mapping[str, Mapping[str, Any]], headline: str, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """All breakdowns but those by data set, of each data set by itself: other hospitals write, label and date otherwise."""
    attributes = [name for name in ATTRIBUTES if name != "dataset"]
    result: dict[str, dict[str, Any]] = {}
    with tqdm(total=len(run.datasets) * len(run.models), desc="breakdowns", unit="model") as bar:
        for dataset in run.datasets:
            result[dataset] = {}
            for model, scores in run.common(run.models, [dataset]).scores.items():
                result[dataset][model] = breakdown(
                    scores, described[model], (), resamples, seed, attributes=attributes, tested=[headline]
                )
                bar.update()
            bar.update(len(run.models) - len(result[dataset]))
    return result


def _institutions(
    run: Run, described: Mapping[str, Mapping[str, Any]], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By model: each data set, and data sets trained on against zero-shot ones, each over the studies that all models have."""
    groups = [("dataset", [name]) for name in run.datasets]
    if run.zero_shot:
        groups += [("institution", names) for names in (run.seen, run.pooled_zero_shot) if names]
    result: dict[str, dict[str, Any]] = {}
    for attribute, datasets in groups:
        for model, scores in run.common(run.models, datasets).scores.items():
            made = breakdown(scores, described[model], run.zero_shot, resamples, seed, attributes=[attribute])
            strata = result.setdefault(model, {}).setdefault(attribute, {"strata": {}})["strata"]
            strata |= made[attribute]["strata"]
    return {model: result[model] for model in run.models if model in result}


def _comparisons(run: Run, described: Mapping[str, Mapping[str, Any]], resamples: int, seed: int) -> Comparisons:
    stages = [model for model in run.models if model in STAGES]
    left_out: dict[str, str] = {}
    kept: list[str] = []
    for name in run.ablations:
        if stages and run.described(name)["metrics"] != described[stages[0]]["metrics"]:
            left_out[name] = "scored by another backend than the run"
        else:
            kept.append(name)
    common = run.common([*kept, *stages], run.seen)
    left_out |= {name: "no study in common with the run's last stage" for name in common.without}
    means = {}
    for model in (*stages, *kept):
        if model in common.scores:
            scores = common.scores[model]
            found = principal_statistics(scores, run.described(model))
            made = statistics.bootstrap(found, scores.patient_id, resamples=resamples, seed=seed)
            means[model] = {name: interval.as_dict() for name, interval in made.items()}
    return Comparisons(common, means, left_out)
