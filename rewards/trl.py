"""The rewards for anybody's TRL trainer (GRPO, RLOO; TRL 1.3 or newer): functions that take the data set's columns.

    from rewards.trl import composite_reward, reward_function

    trainer = GRPOTrainer(model, reward_funcs=reward_function("radgraph", reference_column="report"), …)
    reward = composite_reward(
        {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377},
        judge={"judge_base_url": "http://127.0.0.1:8000/v1", "judge_model": "…"},
        reference_column="report", source="mimic",
    )

Give a trainer one composite rather than several functions where a judge is among them: TRL adds rewards with `nansum`, so
a judge call that failed in a function of its own would count as 0, against that rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.assemble import JUDGE_WEIGHT, assemble, counting_failures, load_parts
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings
from rewards.composite import CompositeReward
from rewards.grpo_reward import completion_text
from rewards.metric import MetricError

if TYPE_CHECKING:
    from rewards.engine import EngineSettings


def reward_function(
    metric: str,
    reference_column: str = "reference",
    backend: str = "real",
    weights_dir: Path | str | None = None,
    settings: EngineSettings | None = None,
):
    """One metric as a synchronous reward function, named after the metric. RadCliQ, better when lower, with a minus.

    Args:
        metric: as `rewards.assemble.load_parts` takes it: `radgraph`, `bleu2`, `radeval:bleu` …
        reference_column: the data set's column of reference reports.
        backend, weights_dir, settings: as in `rewards.registry.load_metrics`.

    Returns:
        A function of `completions` (texts or messages) and the data set's columns; one number for each completion.

    Raises:
        MetricError: the metric cannot be had; when called, the column is not there.
    """
    (part,) = load_parts([metric], backend, weights_dir, settings).values()
    sign = 1 if part.higher_is_better else -1

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        references = _column(columns, reference_column, "reference_column", len(completions))
        return [sign * float(score) for score in part([completion_text(c) for c in completions], references)]

    reward.__name__ = part.name if sign > 0 else f"-{part.name}"
    return reward


def composite_reward(
    weights: Mapping[str, float],
    judge: Judge | JudgeSettings | Mapping[str, Any] | None = None,
    judge_weight: float = JUDGE_WEIGHT,
    reference_column: str = "reference",
    source: str | None = None,
    source_column: str | None = None,
    backend: str = "real",
    weights_dir: Path | str | None = None,
    settings: EngineSettings | None = None,
    llm_metrics: Mapping[str, JudgeSettings | Mapping[str, Any]] | None = None,
    context_columns: Mapping[str, str] | None = None,
) -> ColumnsReward:
    """Metrics and judge as one asynchronous reward function: Σ weight · metric + `judge_weight` / (errors + 1).

    A rollout whose judge call failed after all retries gets None, which TRL gives advantage 0; each part is logged as
    `reward_parts/<name>`, and so is the share that failed. More than `judge_max_failure_rate` of them ends training.

    Args:
        weights: by name, as `rewards.assemble.load_parts` takes them, RadEval's included.
        judge: its settings, or a mapping of its `judge_` keys; None for none.
        reference_column: the data set's column of reference reports.
        source: the data set that all reports are from, or
        source_column: the column that says it for each. It decides to which hosts the judge may send a report
            (`python -m rewards judge --help`); where neither is given, a report stays on this machine and listed hosts.
        backend, weights_dir, settings: as in `rewards.registry.load_metrics`.
        llm_metrics: GREEN, CRIMSON and RadMatch as parts, as in `rewards.assemble.assemble`.
        context_columns: where the data set has what they ask of a patient, `{"age": …, "indication": …}` (years; text).

    Raises:
        MetricError, JudgeError, ValueError: as `rewards.assemble.assemble`.
    """
    if source is not None and source_column is not None:
        raise MetricError("give source (one data set for all reports) or source_column, not both")
    composite = assemble(weights, judge, judge_weight, backend, weights_dir, settings, source, llm_metrics)
    if unknown := sorted(set(context_columns or {}) - {"age", "indication"}):
        raise MetricError(f"context_columns has {', '.join(unknown)}; known: age, indication")
    return ColumnsReward(composite, reference_column, source, source_column, context_columns or {})


class ColumnsReward:
    """`GrpoReward` for a data set with columns of other names; made by `composite_reward`."""

    __name__ = "composite"

    def __init__(
        self,
        composite: CompositeReward,
        reference_column: str,
        source: str | None,
        source_column: str | None,
        context_columns: Mapping[str, str],
    ) -> None:
        self.reference_column, self.source, self.source_column = reference_column, source, source_column
        self.context_columns = context_columns
        self.reward = counting_failures(composite)

    async def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        n = len(completions)
        references = _column(columns, self.reference_column, "reference_column", n)
        sources: Sequence[str | None] = [self.source] * n
        if self.source_column is not None:
            sources = _column(columns, self.source_column, "source_column", n)
        logged = {name: columns[name] for name in ("log_metric", "log_extra") if name in columns}
        for name, column in self.context_columns.items():
            if column not in columns:
                raise MetricError(f"the data set has no column {column!r} (context_columns, {name})")
            logged[name] = columns[column]
        return await self.reward(completions, references, sources, **logged)


def _column(columns: Mapping[str, Any], name: str, argument: str, n: int) -> list[str]:
    """A column of n texts.

    Raises:
        MetricError: no such column, or a value that is no text; the message names the column and the argument.
    """
    if name not in columns:
        there = ", ".join(
            sorted(set(columns) - {"prompts", "completion_ids", "trainer_state", "log_extra", "log_metric"})
        )
        raise MetricError(f"the data set has no column {name!r} ({argument}); it has {there or 'none'}")
    values = list(columns[name])
    if len(values) != n or not all(isinstance(value, str) for value in values):
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise MetricError(
            f"column {name!r} ({argument}) must hold a text for each of {n} completions; it holds {kinds}"
        )
    return values
