"""The weighted sum of metrics and judge that GRPO maximises, each part kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rewards.chexprompt.judgement import Judgement
from rewards.metric import Metric


class JudgeResult(Protocol):
    """One answer of a judge: a judgement, or why there is none."""

    judgement: Judgement | None
    failure: str | None


class Judge(Protocol):
    """Counts the errors of candidate reports; `rewards.chexprompt.judge.Judge` is one."""

    name: str

    async def judge(
        self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]
    ) -> Sequence[JudgeResult]:
        """One result for each candidate; `sources` are data set names, which decide where text may go."""
        ...


class JudgeFailureRateError(RuntimeError):
    """Too many rollouts had no judgement for training to go on. A recipe saves a checkpoint and stops."""


@dataclass(frozen=True)
class CompositeScores:
    """Scores of n rollouts.

    Attributes:
        total: weighted sums; None for a rollout whose judge call failed (its parts are still in `parts`).
        parts: float32 [n] for each part under its full name, unweighted; the judge's is 1/(errors + 1), NaN where it
            failed.
        judgements: the judge's, None where it failed or there is no judge.
        failures: number of failed judge calls by cause.
    """

    total: list[float | None]
    parts: dict[str, np.ndarray]
    judgements: list[Judgement | None]
    failures: dict[str, int]


class CompositeReward:
    """Σ weight · metric, plus `judge_weight` / (errors + 1).

    Step 1 of the paper: BERTScore 0.370, SembScore 0.253, RadGraph-F1 0.377, BLEU-2 0 (Methods, Optimization); step 2
    adds the judge at 0.5. Weights multiply raw scores, as the paper has it; so an empty rollout, whose BERTScore is
    −5.55, is worth about −2 in step 1.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        metrics: Mapping[str, Metric],
        judge: Judge | None = None,
        judge_weight: float = 0.0,
        llm_metrics: Mapping[str, Judge] | None = None,
    ) -> None:
        """`weights` and `metrics` are keyed by bare metric name; a metric without a weight is measured and logged only.
        `llm_metrics` are further metrics by name that a language model is asked for (`rewards/llm_metrics`): their
        results' judgements have a `score`, and a rollout that one of them fails on has no total either.

        Raises:
            ValueError: a weight without its metric, a weight that is no finite number, a judge weight without a judge,
                or nothing that has a weight.
        """
        self.llm_metrics = dict(llm_metrics or {})
        if missing := sorted(set(weights) - set(metrics) - set(self.llm_metrics)):
            raise ValueError(f"reward weight(s) for {', '.join(missing)}, but no such metric is loaded")
        if bad := sorted(name for name, weight in weights.items() if not np.isfinite(weight)):
            raise ValueError(f"reward weight(s) of {', '.join(bad)} are not finite numbers")
        if judge is None and judge_weight:
            raise ValueError(f"judge weight is {judge_weight}, but there is no judge; set judge_base_url")
        if not any(weights.values()) and not judge_weight:
            raise ValueError("every reward weight is 0: nothing to learn from")
        self.weights, self.metrics = dict(weights), dict(metrics)
        self.judge, self.judge_weight = judge, float(judge_weight)

    @property
    def can_fail(self) -> bool:
        """Whether a language model is asked, which may not answer."""
        return self.judge is not None or bool(self.llm_metrics)

    def full_name(self, name: str) -> str:
        """The full name of a weighted part, as in `CompositeScores.parts`."""
        return (self.metrics.get(name) or self.llm_metrics[name]).name

    def local_scores(self, candidates: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
        """The metrics' scores, float32 [n] each, under their full names. Blocks; needs no judge."""
        return {metric.name: metric(candidates, references) for metric in self.metrics.values()}

    async def score(
        self,
        candidates: Sequence[str],
        references: Sequence[str],
        sources: Sequence[str],
        contexts: Sequence[Mapping[str, str]] | None = None,
    ) -> CompositeScores:
        """Score n rollouts; the metrics run in a thread while the judge's calls are in flight.

        `contexts`: what is known of each patient (`age`, `indication`), for the metrics of language models that ask for it.

        Raises:
            ValueError: lists of unequal length.
        """
        n = len(candidates)
        if len(references) != n or len(sources) != n:
            raise ValueError(f"{n} candidates, {len(references)} references and {len(sources)} sources: lengths differ")
        local = asyncio.to_thread(self.local_scores, candidates, references)
        asked = [] if self.judge is None else [self.judge.judge(candidates, references, sources)]
        asked += [r.judge(candidates, references, sources, contexts=contexts) for r in self.llm_metrics.values()]
        parts, *answers = await asyncio.gather(local, *asked)
        failures = Counter(r.failure or "unknown" for results in answers for r in results if r.judgement is None)
        results = [] if self.judge is None else answers.pop(0)
        judgements = [result.judgement for result in results] or [None] * n
        for rater, scored in zip(self.llm_metrics.values(), answers, strict=True):
            scores = [np.nan if result.judgement is None else result.judgement.score for result in scored]
            parts[rater.name] = np.array(scores, dtype=np.float32)

        total = np.zeros(n)
        for name, weight in self.weights.items():
            total += weight * parts[self.full_name(name)].astype(np.float64)
        if self.judge is not None:
            rewards = [np.nan if judgement is None else 1 / (judgement.errors + 1) for judgement in judgements]
            parts[self.judge.name] = np.array(rewards, dtype=np.float32)
            total += self.judge_weight * np.array(rewards)
        totals = [None if np.isnan(value) else float(value) for value in total]
        return CompositeScores(totals, parts, judgements, dict(failures))
