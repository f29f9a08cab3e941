"""Metrics that a language model works out, on the judge's engine: its client, budget, cache, governance and faults."""

from rewards.llm_metrics.base import LlmMetric
from rewards.llm_metrics.crimson import Crimson
from rewards.llm_metrics.green import Green
from rewards.llm_metrics.radmatch import RadMatch

LLM_METRICS: dict[str, type[LlmMetric]] = {metric.metric: metric for metric in (Green, Crimson, RadMatch)}
