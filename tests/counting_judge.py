"""A judge of a few lines, for tests of what is made of judgements."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.chexprompt.judgement import Judgement


@dataclass(frozen=True)
class Answer:
    judgement: Judgement | None
    failure: str | None


class CountingJudge:
    """Counts words that the reference lacks as errors; fails on candidates that say so."""

    name = "chexprompt[words]"

    async def judge(self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[Answer]:
        await asyncio.sleep(0)
        answers = []
        for candidate, reference in zip(candidates, references, strict=True):
            if "FAIL" in candidate:
                answers.append(Answer(None, "timeout"))
            else:
                errors = len(set(candidate.split()) - set(reference.split()))
                answers.append(Answer(Judgement((errors, 0, 0, 0, 0, 0), (0,) * 6), None))
        return answers
