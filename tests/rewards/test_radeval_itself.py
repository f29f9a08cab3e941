"""RadEval's own rewards as parts, with RadEval itself, where it is installed (an environment beside .venv)."""

from __future__ import annotations

import asyncio
import importlib.util

import pytest

from rewards.metric import MetricError
from rewards.trl import composite_reward, reward_function

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("radeval") is None, reason="radeval is not installed"),
]


def test_its_metrics_without_weights_are_parts_of_a_composite() -> None:
    from radeval.rewards import make_reward_fn

    candidates, references = ["no edema. The heart is normal", "x"], ["no edema. The heart is big", "y"]
    own = make_reward_fn("bleu")(completions=candidates, ground_truth=references)
    assert reward_function("radeval:bleu")(completions=candidates, reference=references) == pytest.approx(own)
    reward = composite_reward({"radeval:rouge:rougeL": 0.5, "bleu2": 0.0})
    rouge = make_reward_fn("rouge", key="rougeL")(completions=candidates, ground_truth=references)
    totals = asyncio.run(reward(completions=candidates, reference=references))
    assert totals == pytest.approx([0.5 * score for score in rouge])


def test_a_metric_of_several_numbers_wants_one_named() -> None:
    with pytest.raises(MetricError, match="radeval:rouge: radeval says: Metric 'rouge' returns multiple"):
        reward_function("radeval:rouge")(completions=["a"], reference=["a"])
