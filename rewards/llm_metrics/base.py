"""What the metrics of language models share: the judge's engine (`rewards/chexprompt/judge.py`), with a score as its answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rewards.chexprompt.cache import JudgeCache
from rewards.chexprompt.judge import Judge, JudgeResult
from rewards.chexprompt.parse import AnswerError
from rewards.chexprompt.settings import JudgeSettings


@dataclass(frozen=True)
class LlmScore:
    """A score, and the counts that it follows from; no word of a report."""

    score: float
    counts: Mapping[str, int]


@dataclass(frozen=True)
class MetricPrompt:
    """The prompt that the metric's authors publish, as their installed package gives it.

    Attributes:
        version: the package's, and a hash of the prompt for one fixed pair; part of every cache key.
        messages: reference, candidate and context (age, indication; may be empty) in, chat messages out.
    """

    version: str
    messages: Callable[[str, str, Mapping[str, str]], list[dict[str, str]]]


def checked_score(score: Any, counts: Any) -> LlmScore:
    """A score out of the cache, or `AnswerError`."""
    if type(score) not in (int, float) or not math.isfinite(score) or not isinstance(counts, dict):
        raise AnswerError("no finite score with its counts")
    if any(type(count) is not int or count < 0 for count in counts.values()):
        raise AnswerError("a count is not a whole number from 0 up")
    return LlmScore(float(score), counts)


class ScoreCache(JudgeCache):
    """The judge's cache for scores, in a file of its own."""

    file_name = "llm_metric_cache.sqlite"
    checked = staticmethod(checked_score)

    @staticmethod
    def kept(judgement: LlmScore) -> tuple[Any, Any]:
        return judgement.score, dict(judgement.counts)


class LlmMetric(Judge):
    """A judge whose answers are scores.

    Attributes:
        range: lowest and highest score; higher is better.
        longest_answer: tokens that the metric's answers take; `judge_max_tokens` counts where it is larger.
        as_json: whether the endpoint is asked for a JSON object, and without where it refuses.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    longest_answer: ClassVar[int] = 2048
    as_json: ClassVar[bool] = False
    cache_type = ScoreCache

    @staticmethod
    def prompt_for(model: str) -> MetricPrompt:
        """The prompt that `model` is asked with.

        Raises:
            ValueError: its package is not installed, or not as it is known.
        """
        raise NotImplementedError

    def load_prompt(self) -> MetricPrompt:
        return self.prompt_for(self.model)

    def __init__(self, settings: JudgeSettings, base_url: str, model: str):
        super().__init__(
            replace(
                settings,
                judge_max_tokens=max(settings.judge_max_tokens, self.longest_answer),
                judge_answer_format="auto" if self.as_json else "list",
            ),
            base_url,
            model,
        )

    async def judge(
        self,
        candidates: Sequence[str],
        references: Sequence[str],
        sources: Sequence[str | None],
        on_result: Callable[[int, JudgeResult], None] | None = None,
        contexts: Sequence[Mapping[str, str]] | None = None,
    ) -> list[JudgeResult]:
        """As `Judge.judge`; a result's `judgement` is an `LlmScore`. `contexts` hold what is known of each patient: `age`,
        `indication`; a metric that has no use for them leaves them out."""
        contexts = [{}] * len(references) if contexts is None else contexts
        # Reference and context are one key to the engine: pairs are asked once, and kept, with both.
        keyed = [
            json.dumps([reference, dict(context)], sort_keys=True)
            for reference, context in zip(references, contexts, strict=True)
        ]
        return await super().judge(candidates, keyed, sources, on_result)

    def _body(
        self, reference: str, candidate: str, answer_format: str, constrained: bool, again: bool
    ) -> dict[str, Any]:
        text, context = json.loads(reference)
        body = self.request(self.prompt.messages(text, candidate, context))
        return body | ({"response_format": {"type": "json_object"}} if constrained else {})
