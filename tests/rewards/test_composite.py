"""The composite reward, alone and as TRL's reward function."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from counting_judge import CountingJudge
from synthetic_reports import grpo_batch

from rewards.bleu import Bleu2
from rewards.composite import CompositeReward, JudgeFailureRateError
from rewards.grpo_reward import GrpoReward, completion_text
from rewards.metric import Metric
from rewards.registry import load_metrics

STEP_1 = {"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}


def _score(composite: CompositeReward, candidates: list[str], references: list[str]):
    return asyncio.run(composite.score(candidates, references, ["phantom"] * len(candidates)))


def test_total_is_the_weighted_sum_of_the_parts() -> None:
    composite = CompositeReward(STEP_1, load_metrics(list(STEP_1), "offline"))
    candidates, references = grpo_batch(prompts=2, rollouts=8)
    scores = _score(composite, candidates, references)
    parts = scores.parts
    assert set(parts) == {"bleu2", "bertscore[offline-hash]", "sembscore[offline-rules]", "radgraph[offline-rules]"}
    expected = (
        0.370 * parts["bertscore[offline-hash]"]
        + 0.253 * parts["sembscore[offline-rules]"]
        + 0.377 * parts["radgraph[offline-rules]"]
    )
    np.testing.assert_allclose(scores.total, expected, atol=1e-6)
    assert scores.judgements == [None] * 16
    assert scores.failures == {}


def test_the_judge_adds_half_of_one_over_errors_plus_one() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    scores = _score(composite, ["no edema", "no edema but more"], ["no edema", "no edema"])
    np.testing.assert_allclose(scores.parts["chexprompt[words]"], [1, 1 / 3])
    np.testing.assert_allclose(scores.total, scores.parts["bleu2"] + 0.5 * np.array([1, 1 / 3]), atol=1e-6)


def test_a_failed_judge_call_leaves_the_whole_rollout_without_reward() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    scores = _score(composite, ["no edema", "FAIL", "no edema"], ["no edema"] * 3)
    assert scores.total[1] is None
    assert scores.total[0] == scores.total[2] == pytest.approx(1.5)
    assert scores.failures == {"timeout": 1}
    assert scores.judgements[1] is None
    assert np.isnan(scores.parts["chexprompt[words]"][1])


def test_metrics_run_while_judge_calls_are_in_flight() -> None:
    judging, scored = threading.Event(), threading.Event()

    class Slow(Bleu2):
        def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
            assert judging.wait(10), "the judge was not asked before the metrics were done"
            scored.set()
            return super().score(candidates, references)

    class Waiting(CountingJudge):
        async def judge(self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]):
            judging.set()
            while not scored.is_set():
                await asyncio.sleep(0.01)
            return await super().judge(candidates, references, sources)

    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Slow()}, Waiting(), 0.5)
    assert _score(composite, ["a"], ["a"]).total == [pytest.approx(0.5 + np.sqrt(0.1), abs=1e-6)]


@pytest.mark.parametrize(
    ("weights", "judge_weight", "message"),
    [
        ({"bleu2": 1.0, "radgraph": 1.0}, 0.0, "weight.* for radgraph, but no such metric"),
        ({"bleu2": float("nan")}, 0.0, "bleu2 are not finite"),
        ({"bleu2": 1.0}, 0.5, "there is no judge; set judge_base_url"),
        ({"bleu2": 0.0}, 0.0, "every reward weight is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(weights: dict, judge_weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompositeReward(weights, {"bleu2": Bleu2()}, None, judge_weight)


def test_unequal_lists_are_refused() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()})
    with pytest.raises(ValueError, match="2 candidates, 1 references and 2 sources"):
        asyncio.run(composite.score(["a", "b"], ["a"], ["s", "s"]))


# --- as TRL's reward function -------------------------------------------------------------------------------------------


def _messages(texts: Sequence[str]) -> list[list[dict]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def _call(reward: GrpoReward, candidates: Sequence[str], reference: str = "no edema") -> tuple[list, dict, dict]:
    metrics: dict[str, float] = {}
    extra: dict[str, list] = {}
    total = asyncio.run(
        reward(
            prompts=[[]] * len(candidates),
            completions=_messages(candidates),
            completion_ids=[[1]] * len(candidates),
            reference=[reference] * len(candidates),
            source=["phantom"] * len(candidates),
            trainer_state=None,
            log_metric=metrics.__setitem__,
            log_extra=extra.__setitem__,
        )
    )
    return total, metrics, extra


def test_trl_sees_it_as_asynchronous_and_named() -> None:
    from trl.trainer.utils import is_async_callable

    reward = GrpoReward(CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}))
    assert is_async_callable(reward)
    assert reward.__name__ == "composite"


def test_parts_are_logged_under_their_full_names() -> None:
    composite = CompositeReward({"bertscore": 1.0}, load_metrics(["bertscore"], "offline"), CountingJudge(), 0.5)
    total, metrics, extra = _call(GrpoReward(composite, 0.5), ["no edema", "FAIL"])
    assert total[0] == pytest.approx(1.5)
    assert total[1] is None
    assert metrics["reward_parts/chexprompt[words]"] == 1
    assert metrics["reward_parts/judge_failed"] == 0.5
    assert "reward_parts/bertscore[offline-hash]" in metrics
    assert extra["chexprompt[words]"] == [1.0, None]


def test_completions_may_be_texts_messages_or_blocks() -> None:
    assert completion_text("report") == "report"
    assert completion_text([{"role": "assistant", "content": "report"}]) == "report"
    assert completion_text([{"role": "assistant", "content": [{"type": "text", "text": "report"}]}]) == "report"
    assert completion_text([]) == ""


def test_too_many_failures_stop_the_run_with_the_reason() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    reward = GrpoReward(composite, judge_max_failure_rate=0.25, window=64, minimum=32)
    _call(reward, ["FAIL"] * 16)  # too few to judge by
    with pytest.raises(JudgeFailureRateError, match=r"100% of the last 32 rollouts.*25%.*timeout × 32"):
        _call(reward, ["FAIL"] * 16)


def test_old_failures_are_forgotten() -> None:
    composite = CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}, CountingJudge(), 0.5)
    reward = GrpoReward(composite, judge_max_failure_rate=0.25, window=64, minimum=32)
    _call(reward, ["FAIL"] * 16)
    _call(reward, ["no edema"] * 64)
    _call(reward, ["FAIL"] * 16)  # 16 of the last 64: at the limit, not above it
    with pytest.raises(JudgeFailureRateError):
        _call(reward, ["FAIL"])


def test_a_failure_share_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        GrpoReward(CompositeReward({"bleu2": 1.0}, {"bleu2": Bleu2()}), judge_max_failure_rate=10)


def test_a_metric_that_gives_no_number_is_an_error_not_a_zero() -> None:
    class Broken(Metric):
        name = "broken"

        def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
            return np.full(len(candidates), np.nan)

    composite = CompositeReward({"broken": 1.0}, {"broken": Broken()})
    with pytest.raises(ValueError, match="broken: backend exact gave"):
        _score(composite, ["a"], ["b"])
