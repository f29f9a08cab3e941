"""The composite reward for EasyR1 (its batch reward function).

    worker.reward.reward_function=/path/to/rewards/easyr1.py:compute_score
    worker.reward.reward_function_kwargs='{"weights": {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}}'

`python -c "import rewards.easyr1 as r; print(r.__file__)"` says the path. `data.answer_key` names the column of reference
reports, which arrives as `ground_truth`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.blocking import blocking_reward
from rewards.metric import MetricError

REWARD_NAME = "unirg_composite"
REWARD_TYPE = "batch"


def compute_score(reward_inputs: Sequence[Mapping[str, Any]], **settings: Any) -> list[dict[str, float]]:
    """Rewards of a batch: `overall`, which trains, and each part by its full name, which is logged.

    A rollout whose judge call failed gets the mean of the judged rollouts of the same reference (`judge_failed` is 1).

    Args:
        reward_inputs: one mapping a rollout, with `response` and `ground_truth`.
        settings: as in `rewards.assemble.assemble`, `source` the data set that all reports are from: EasyR1 does not
            say it for each.

    Raises:
        MetricError, JudgeError, JudgeFailureRateError: one line each.
    """
    for row in reward_inputs:
        if not isinstance(row.get("ground_truth"), str):
            raise MetricError(
                f"ground_truth is {type(row.get('ground_truth')).__name__}; data.answer_key must name the column of "
                "reference reports"
            )
    rows = blocking_reward(settings).score(
        [row["response"] for row in reward_inputs],
        [row["ground_truth"] for row in reward_inputs],
        [settings.get("source")] * len(reward_inputs),
    )
    return [{"overall": row.pop("score"), **row} for row in rows]
