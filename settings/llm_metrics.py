"""The keys of the metrics that a language model is asked for, of a reward and of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from foundation.errors import RecipeError
from rewards.registry import LLM_METRIC_NAMES

SETTINGS_HELP = (
    "By metric of a language model, judge_ keys of its own server, where they are not the judge's, e.g. "
    '{"green": {"judge_base_url": "http://127.0.0.1:8002/v1", "judge_model": "StanfordAIMI/GREEN-radllama2-7b"}}.'
)


def check_names(key: str, names: Iterable[str]) -> None:
    """Raise `RecipeError` for a name that is no metric of a language model."""
    if unknown := sorted(set(names) - set(LLM_METRIC_NAMES)):
        known = ", ".join(LLM_METRIC_NAMES)
        raise RecipeError(f"{key} has {', '.join(unknown)}; the metrics of language models are {known}")


def named_weights(key: str, value: Any) -> dict[str, float] | None:
    """Numbers by name: a YAML file's mapping, or the JSON of a flag."""
    weights = _from_json(value)
    if weights is None:
        return None
    if not isinstance(weights, dict) or any(type(weight) not in (int, float) for weight in weights.values()):
        raise RecipeError(f'{key} is {value!r}; it must be numbers by name, such as {{"bleu": 0.1}}')
    return {str(name): float(weight) for name, weight in weights.items()}


def named_settings(value: Any) -> dict[str, dict[str, Any]] | None:
    """`llm_metric_settings`: judge_ keys by metric, of a YAML file's mapping or the JSON of a flag."""
    given = _from_json(value)
    if given is not None and not (isinstance(given, dict) and all(isinstance(keys, dict) for keys in given.values())):
        example = '{"green": {"judge_model": "StanfordAIMI/GREEN-radllama2-7b"}}'
        raise RecipeError(f"llm_metric_settings is {value!r}; it must be judge_ keys by metric, such as {example}")
    return given


def _from_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value
