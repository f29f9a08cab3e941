"""The composite for frameworks that call a reward from ordinary code and know no None: verl, EasyR1.

TRL gives a rollout whose judge call failed advantage 0 by itself. Here such a rollout gets the mean reward of the judged
rollouts of the same reference, which is advantage 0 wherever a group's mean is the baseline.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy as np

from rewards.assemble import assemble, counting_failures, plain
from rewards.grpo_reward import GrpoReward
from rewards.metric import MetricError

_GROUPS_REMEMBERED = 4096
Item = TypeVar("Item")
Result = TypeVar("Result")


class BlockingReward:
    """Candidates and references in, rows of finite numbers out; an event loop in a thread of its own serves the judge."""

    def __init__(self, reward: GrpoReward) -> None:
        self.reward = reward
        self._groups: OrderedDict[str, list[float]] = OrderedDict()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="reward judge").start()

    def score(
        self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str | None]
    ) -> list[dict[str, float]]:
        """One row a rollout: `score` (the composite), each part by its full name, and with a judge `judge_failed` (0 or 1).

        Raises:
            MetricError: no rollout so far has been judged, so that nothing neutral can stand in for a failed call.
            JudgeFailureRateError: too many judge calls failed lately.
        """
        parts: dict[str, list[float | None]] = {}

        def keep(name: str, values: list) -> None:
            parts[name] = values

        call = self.reward(list(candidates), list(references), list(sources), log_extra=keep)
        totals = asyncio.run_coroutine_threadsafe(call, self._loop).result()
        parts.pop("reference")
        columns = {name: self._filled(name, values, references) for name, values in parts.items()}
        columns = {"score": self._filled("score", totals, references)} | columns
        if self.reward.composite.can_fail:
            columns["judge_failed"] = [float(total is None) for total in totals]
        return [{name: values[i] for name, values in columns.items()} for i in range(len(candidates))]

    def _filled(self, name: str, values: Sequence[float | None], references: Sequence[str]) -> list[float]:
        """`values` with the mean of its group for None: of this batch, else of earlier ones, else of all so far."""
        there: dict[str, list[float]] = {}
        for value, reference in zip(values, references, strict=True):
            if value is not None:
                there.setdefault(reference, []).append(value)
        filled = []
        for value, reference in zip(values, references, strict=True):
            if value is None:
                seen = there.get(reference) or self._groups.get(f"{name}\0{reference}")
                seen = seen or [v for group in there.values() for v in group] or self._groups.get(name)
                if not seen:
                    raise MetricError("the judge has answered for no rollout yet; see that judge_base_url answers")
                value = float(np.mean(seen))
            filled.append(float(value))
        if self.reward.composite.can_fail:
            self._remember(name, there)
        return filled

    def _remember(self, name: str, groups: dict[str, list[float]]) -> None:
        for reference, values in groups.items():
            for key in (f"{name}\0{reference}", name):
                self._groups.setdefault(key, []).extend(values)
                del self._groups[key][:-256]
                self._groups.move_to_end(key)
        while len(self._groups) > _GROUPS_REMEMBERED:
            self._groups.popitem(last=False)


_built: dict[str, BlockingReward] = {}
_building = threading.Lock()


def blocking_reward(settings: dict[str, Any]) -> BlockingReward:
    """The reward of `rewards.assemble.assemble`'s arguments, built once a process.

    Raises:
        MetricError, JudgeError, ValueError: as `assemble`; arguments that it does not know.
    """
    settings = plain(settings)
    try:
        key = json.dumps(settings, sort_keys=True)
    except TypeError as error:
        raise MetricError(f"reward arguments must be plain values, as in a YAML file ({error})") from error
    with _building:
        if key not in _built:
            known = ("weights", "judge", "judge_weight", "backend", "weights_dir", "source", "llm_metrics")
            if unknown := sorted(set(settings) - set(known)):
                raise MetricError(f"unknown reward argument(s) {', '.join(unknown)}; known: {', '.join(known)}")
            if "weights" not in settings:
                raise MetricError("the reward has no weights; give them, e.g. weights={radgraph: 0.5, bertscore: 0.5}")
            _built[key] = BlockingReward(counting_failures(assemble(**settings)))
        return _built[key]


class Combiner(Generic[Item, Result]):
    """Calls of one item each, from many threads, served as batches: who comes during a batch is part of the next one.

    A reward manager that scores rollout by rollout in a thread pool so gets the cost of a batch: identical rollouts once, a
    reference once, one forward pass for many.
    """

    def __init__(self, serve: Callable[[list[Item]], Sequence[Result]]) -> None:
        self._serve = serve
        self._waiting: list[tuple[Item, Future[Result]]] = []
        self._state, self._serving = threading.Lock(), threading.Lock()

    def __call__(self, item: Item) -> Result:
        future: Future[Result] = Future()
        with self._state:
            self._waiting.append((item, future))
        with self._serving:
            with self._state:
                batch, self._waiting = self._waiting, []
            if batch:  # else another thread has served this item
                try:
                    results = self._serve([entry for entry, _ in batch])
                except BaseException as error:
                    for _, waiting in batch:
                        waiting.set_exception(error)
                else:
                    for (_, waiting), result in zip(batch, results, strict=True):
                        waiting.set_result(result)
        return future.result()
