"""Metrics that a language model works out, on the judge's engine: its client, budget, cache, governance and faults."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foundation.governance import JudgeError
from rewards.chexprompt.settings import JudgeSettings
from rewards.llm_metrics.base import LlmMetric
from rewards.llm_metrics.crimson import Crimson
from rewards.llm_metrics.green import Green
from rewards.llm_metrics.radmatch import RadMatch

LLM_METRICS: dict[str, type[LlmMetric]] = {metric.metric: metric for metric in (Green, Crimson, RadMatch)}


def settings_by_metric(
    names: Sequence[str], own: Mapping[str, Mapping[str, Any]] | None, judge: JudgeSettings
) -> dict[str, JudgeSettings]:
    """The settings of each metric's client: the one judge's, and over them its own `judge_` keys (llm_metric_settings).

    Raises:
        JudgeError: an unknown metric, own settings of one that is not asked for, an unknown key, or a value that cannot be.
    """
    known = JudgeSettings.__dataclass_fields__
    for name in names:
        if name not in LLM_METRICS:
            raise JudgeError(f"{name} is no metric of a language model; known: {', '.join(LLM_METRICS)}")
    made = dict.fromkeys(names, judge)
    for name, keys in (own or {}).items():
        if name not in made:
            raise JudgeError(
                f"llm_metric_settings has {name}, which is not asked for; asked for: {', '.join(made) or 'none'}"
            )
        if not isinstance(keys, Mapping) or set(keys) - set(known):
            wrong = ", ".join(sorted(map(str, set(keys) - set(known)))) if isinstance(keys, Mapping) else repr(keys)
            raise JudgeError(
                f"llm_metric_settings, {name}: {wrong} is none of the judge's keys; such as {', '.join([*known][:3])}"
            )
        try:
            made[name] = replace(judge, **keys)
        except JudgeError as error:
            raise JudgeError(f"llm_metric_settings, {name}: {error}") from None
    return made
