"""The composite reward for verl (0.9's reward loop, and the batch reward manager of earlier versions).

    reward.custom_reward_function.path=pkg://rewards.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.weights='{bertscore: 0.370, sembscore: 0.253, radgraph: 0.377}'
    +reward.custom_reward_function.reward_kwargs.weights_dir=/data/weights

Rows need verl's own columns: `reward_model.ground_truth` (the reference report) and `data_source`, which decides to which
hosts a judge may send a report. With `reward_manager=batch` the name is `compute_score_batch`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from rewards.blocking import BlockingReward, Combiner, blocking_reward
from rewards.metric import MetricError

_combiners: dict[int, Combiner] = {}
_lock = threading.Lock()


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **settings: Any
) -> dict[str, float]:
    """One rollout's reward as `{"score": …, part: …}`; calls from several threads are scored together.

    A rollout whose judge call failed gets the mean of its reference's judged rollouts that this process has seen
    (`judge_failed` is then 1): exact in `compute_score_batch`, where a whole group is in one call.

    Args:
        settings: `weights`, `judge`, `judge_weight`, `llm_metrics`, `backend`, `weights_dir` and `source` (which overrides data_source),
            as in `rewards.assemble.assemble`; verl passes them from `reward_kwargs`.

    Raises:
        MetricError, JudgeError, JudgeFailureRateError: one line each.
    """
    reward = blocking_reward(_known(settings))
    with _lock:
        combiner = _combiners.setdefault(id(reward), Combiner(lambda rollouts: _score(reward, rollouts, settings)))
    return combiner((data_source, solution_str, ground_truth))


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[str],
    extra_infos: Sequence[Any] | None = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """`compute_score` of a whole batch, for verl's `batch` reward manager; row i belongs to solution_strs[i]."""
    rollouts = list(zip(data_sources, solution_strs, ground_truths, strict=True))
    return _score(blocking_reward(_known(settings)), rollouts, settings)


def _score(reward: BlockingReward, rollouts: list[tuple[str, str, str]], settings: dict) -> list[dict[str, float]]:
    for _, _, ground_truth in rollouts:
        if not isinstance(ground_truth, str):
            raise MetricError(
                f"reward_model.ground_truth is {type(ground_truth).__name__}; it must be the reference report"
            )
    sources = [settings.get("source") or data_source for data_source, _, _ in rollouts]
    return reward.score([r[1] for r in rollouts], [r[2] for r in rollouts], sources)


def _known(settings: dict[str, Any]) -> dict[str, Any]:
    """The reward's arguments without what verl's reward loop adds for reward models on its own servers."""
    return {
        name: value
        for name, value in settings.items()
        if name not in ("reward_router_address", "reward_model_tokenizer")
    }
