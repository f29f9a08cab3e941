"""A composite reward from plain names and numbers, for code that is not this project's recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings
from rewards.composite import CompositeReward
from rewards.grpo_reward import GrpoReward
from rewards.llm_metrics import LLM_METRICS
from rewards.metric import Metric, MetricError
from rewards.radeval import RADEVAL, RadEvalMetric
from rewards.registry import load_metrics

if TYPE_CHECKING:
    from rewards.engine import EngineSettings

# Paper (Methods, Optimization): step 2 adds 0.5 × 1/(errors + 1) to step 1's reward.
JUDGE_WEIGHT = 0.5


def plain(value: Any) -> Any:
    """Mappings and sequences of any kind (OmegaConf's among them) as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(entry) for entry in value]
    return value


def load_parts(
    names: Sequence[str],
    backend: str = "real",
    weights_dir: Path | str | None = None,
    settings: EngineSettings | None = None,
) -> dict[str, Metric]:
    """The metrics of `names`: of this project (`rewards.registry.METRICS`), or RadEval's own as `radeval:NAME`.

    RadEval's need its package; one that gives several numbers wants the number too: `radeval:f1chexbert:KEY`.

    Raises:
        MetricError: an unknown name, or one whose package or weights are not there.
    """
    own = [name for name in names if not name.startswith(RADEVAL)]
    parts = load_metrics(own, backend, weights_dir, settings) if own else {}
    for name in names:
        if name.startswith(RADEVAL):
            parts[name] = RadEvalMetric(name)
    return {name: parts[name] for name in names}


def load_judge(
    judge: Judge | JudgeSettings | Mapping[str, Any] | None, source: str | None = None, kind: type[Judge] = Judge
) -> Judge | None:
    """A judge from its settings; with `source`, refused at once where its host may not be sent reports of that source.

    Raises:
        JudgeError: settings that cannot work, or a host that is not listed.
    """
    if judge is None or isinstance(judge, Judge):
        built = judge
    else:
        built = kind.from_settings(
            judge if isinstance(judge, JudgeSettings) else JudgeSettings.from_mapping(plain(judge))
        )
    if built is not None and source is not None:
        built.check_sources({source})
    return built


def assemble(
    weights: Mapping[str, float],
    judge: Judge | JudgeSettings | Mapping[str, Any] | None = None,
    judge_weight: float = JUDGE_WEIGHT,
    backend: str = "real",
    weights_dir: Path | str | None = None,
    settings: EngineSettings | None = None,
    source: str | None = None,
    llm_metrics: Mapping[str, JudgeSettings | Mapping[str, Any]] | None = None,
) -> CompositeReward:
    """Σ weight · metric, plus `judge_weight` / (errors + 1) where there is a judge.

    Args:
        weights: by name, as `load_parts` takes them. One of 0 is measured and logged only.
        judge: a `Judge`, its settings, or a mapping of its `judge_` keys (`python -m rewards judge --help`).
        backend, weights_dir, settings: as in `rewards.registry.load_metrics`.
        source: the data set that all reports are from; None where each report says it, or none is known.
        llm_metrics: `green`, `crimson` or `radmatch` by name, each with the settings of its server (`judge_` keys); their weights stand
            in `weights`.

    Raises:
        MetricError: a metric that cannot be had, or whose sign is wrong (RadCliQ is better when lower).
        JudgeError: a judge that cannot be used as set up.
        ValueError: weights that make no reward (`CompositeReward`).
    """
    if not isinstance(weights, Mapping):
        raise MetricError(f"weights are {type(weights).__name__}; give numbers by name, such as {{'radgraph': 1.0}}")
    if unknown := sorted(set(llm_metrics or {}) - set(LLM_METRICS)):
        raise MetricError(f"llm_metrics: {', '.join(unknown)} is unknown; known: {', '.join(LLM_METRICS)}")
    raters = {name: load_judge(given, source, LLM_METRICS[name]) for name, given in (llm_metrics or {}).items()}
    metrics = load_parts([name for name in weights if name not in raters], backend, weights_dir, settings)
    for name, weight in weights.items():
        if name in metrics and not metrics[name].higher_is_better and weight > 0:
            raise MetricError(
                f"{name} is better when lower, so a weight of {weight:g} would teach errors; use -{weight:g}"
            )
    built = load_judge(judge, source)
    return CompositeReward(weights, metrics, built, judge_weight if built is not None else 0.0, raters)


def counting_failures(composite: CompositeReward) -> GrpoReward:
    """`composite` as TRL calls it, which stops where more of its judge's calls fail than the judge's settings allow."""
    strictest = strictest_settings(composite)
    if strictest is None:
        return GrpoReward(composite)
    return GrpoReward(composite, strictest.judge_max_failure_rate, strictest.judge_failure_window)


def strictest_settings(composite: CompositeReward) -> JudgeSettings | None:
    """Of its judge and metrics of language models, the settings that allow the fewest failures; None where it has neither."""
    raters = [rater for rater in (composite.judge, *composite.llm_metrics.values()) if isinstance(rater, Judge)]
    return min((rater.settings for rater in raters), key=lambda settings: settings.judge_max_failure_rate, default=None)
