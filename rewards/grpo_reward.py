"""The composite reward as one asynchronous TRL reward function.

One function, because TRL 1.16 adds the rewards of several with `nansum`: a None from one beside numbers from others
would count as 0, against that rollout. And asynchronous, because TRL finishes synchronous functions before it starts
asynchronous ones: the metrics run here, while the judge's calls are in flight.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards.chexprompt.ratings import patient_context
from rewards.composite import CompositeReward, CompositeScores, JudgeFailureRateError

logger = logging.getLogger(__name__)


def completion_text(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion as TRL hands it over: a string, or a list of messages of which the last is the answer."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if block.get("type") == "text")


@dataclass(frozen=True)
class Rollouts:
    """What one call of the reward saw: n rollouts of this process, those of one study side by side.

    Attributes:
        step: optimiser steps done when they were generated.
        lengths: tokens of each completion.
        image_paths: of each study, in the order of its prompt: current, then prior.
        prior_reports: None where the study has none or the prompt does not show it.
    """

    step: int
    study_ids: list[str]
    sources: list[str]
    references: list[str]
    prior_reports: list[str | None]
    image_paths: list[list[str]]
    candidates: list[str]
    lengths: list[int]
    scores: CompositeScores

    def __len__(self) -> int:
        return len(self.candidates)


# Sees each batch of rollouts once it is scored; what it returns is logged (TRL averages it over processes and steps).
Observer = Callable[[Rollouts], Mapping[str, float]]


class GrpoReward:
    """Callable for `GRPOTrainer(reward_funcs=…)`; the data set needs the columns `reference` and `source`.

    Returns one number for each rollout, or None where its judge call failed after all retries: TRL then gives that
    rollout advantage 0. Each part is logged as `reward_parts/<full name>`, with the share of failed rollouts.
    """

    __name__ = "composite"

    def __init__(
        self,
        composite: CompositeReward,
        judge_max_failure_rate: float = 0.1,
        window: int = 256,
        minimum: int = 32,
        observers: Sequence[Observer] = (),
        normalize_groups_of: int | None = None,
        stop_at_once: bool = True,
    ) -> None:
        """Stop when more than `judge_max_failure_rate` of the last `window` rollouts, once there are `minimum`, failed.

        Each of `observers` is called with every batch; it needs the data set's columns `study_id`, `prior_report` and
        `image_paths` too. With `normalize_groups_of` (the number of rollouts a study, side by side), each part is
        normalised within its group before the weighted sum; the reward is then a sum of z-scores. Without
        `stop_at_once` the caller asks `too_many_failures` itself: one of several processes must not stop alone.

        Raises:
            ValueError: a rate outside [0, 1].
        """
        if not 0 <= judge_max_failure_rate <= 1:
            raise ValueError(f"judge_max_failure_rate is {judge_max_failure_rate}; it is a share, from 0 to 1")
        self.composite, self.minimum = composite, minimum
        self.judge_max_failure_rate = judge_max_failure_rate
        self.recent: deque[bool] = deque(maxlen=window)
        self.failures: dict[str, int] = {}
        self.observers = list(observers)
        self.normalize_groups_of = normalize_groups_of
        self.stop_at_once = stop_at_once

    async def __call__(
        self,
        completions: Sequence[Any],
        reference: Sequence[str],
        source: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of the rollouts; TRL passes the data set's columns repeated once for each rollout.

        Columns `age` (years, or None) and `indication` (text, or None) go to the metrics of language models, where there are any.

        Raises:
            JudgeFailureRateError: too many judge calls failed lately (with `stop_at_once`).
        """
        candidates = [completion_text(completion) for completion in completions]
        contexts = None
        if self.composite.llm_metrics:
            known = [columns.get(name) or [None] * len(candidates) for name in ("age", "indication")]
            contexts = [patient_context(*of_one) for of_one in zip(*known, strict=True)]
        scores = await self.composite.score(candidates, reference, source, contexts)
        failed = [total is None for total in scores.total]
        if log_metric is not None:
            for name, values in scores.parts.items():
                if not np.isnan(values).all():
                    log_metric(f"reward_parts/{name}", float(np.nanmean(values)))
            if self.composite.can_fail:
                log_metric("reward_parts/judge_failed", float(np.mean(failed)))
                errors = [judgement.errors for judgement in scores.judgements if judgement is not None]
                if errors:
                    log_metric("reward_parts/judge_errors", float(np.mean(errors)))
        if log_extra is not None:
            log_extra("reference", list(reference))
            for name, values in scores.parts.items():
                log_extra(name, [None if np.isnan(value) else round(float(value), 4) for value in values])
        if self.observers:
            rollouts = _rollouts(candidates, reference, source, scores, columns)
            for observer in self.observers:
                for name, value in observer(rollouts).items():
                    if log_metric is not None:
                        log_metric(name, value)
        self._count_failures(failed, scores.failures)
        if self.stop_at_once and (reason := self.too_many_failures(sum(self.recent), len(self.recent))):
            raise JudgeFailureRateError(reason)
        if self.normalize_groups_of is None:
            return scores.total
        return self._normalized(scores)

    def _normalized(self, scores: CompositeScores) -> list[float | None]:
        """Σ weight · (part − mean of its group) / (spread of its group + 1e-4), as TRL's `normalize_then_sum`."""
        composite = self.composite
        weights = {composite.full_name(name): weight for name, weight in composite.weights.items()}
        if composite.judge is not None:
            weights[composite.judge.name] = composite.judge_weight
        failed = np.array([total is None for total in scores.total]).reshape(-1, self.normalize_groups_of)
        total = np.zeros(failed.shape)
        for name, weight in weights.items():
            part = np.where(failed, np.nan, scores.parts[name].astype(np.float64).reshape(failed.shape))
            for row, rollouts in enumerate(part):
                judged = rollouts[~np.isnan(rollouts)]
                if len(judged) > 1:
                    total[row] += weight * (rollouts - judged.mean()) / (judged.std(ddof=1) + 1e-4)
        return [None if lost else float(value) for lost, value in zip(failed.ravel(), total.ravel(), strict=True)]

    def _count_failures(self, failed: list[bool], causes: dict[str, int]) -> None:
        self.recent.extend(failed)
        for cause, count in causes.items():
            self.failures[cause] = self.failures.get(cause, 0) + count
        if any(failed):
            logger.warning("judge failed for %d of %d rollouts: %s", sum(failed), len(failed), causes)

    def too_many_failures(self, failed: int, total: int) -> str | None:
        """Why training should stop where `failed` of the last `total` rollouts went unjudged; None where it should not."""
        if total < self.minimum or failed <= self.judge_max_failure_rate * total:
            return None
        reasons = ", ".join(f"{cause} × {count}" for cause, count in sorted(self.failures.items()))
        return (
            f"the judge failed for {failed / total:.0%} of the last {total} rollouts, above judge_max_failure_rate "
            f"{self.judge_max_failure_rate:.0%} ({reasons or 'in other processes'}); see that the judge at "
            "judge_base_url answers"
        )


def _rollouts(
    candidates: list[str],
    references: Sequence[str],
    sources: Sequence[str],
    scores: CompositeScores,
    columns: Mapping[str, Any],
) -> Rollouts:
    return Rollouts(
        step=columns["trainer_state"].global_step,
        study_ids=list(columns["study_id"]),
        sources=list(sources),
        references=list(references),
        prior_reports=list(columns["prior_report"]),
        image_paths=[list(paths) for paths in columns["image_paths"]],
        candidates=candidates,
        lengths=[len(ids) for ids in columns["completion_ids"]],
        scores=scores,
    )
