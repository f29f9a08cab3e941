"""Does the judge see errors that are known to be there, and none where there are none?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from foundation.stage_command import settings_of
from launch.verifying.line import Line, Subject, skipped
from launch.verifying.metrics import SEED
from launch.verifying.stage_runs import recipe_file
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.judgement import JudgeResult
from rewards.chexprompt.settings import JudgeSettings
from rewards.edits import EDITS
from rewards.sensitivity import read_reports

HARMLESS = ("itself", "sentences reordered")
# Our choice: edits are made by rules, which misread some sentences.
SEEN, QUIET = 0.6, 0.8


def known_pairs(subject: Subject) -> list[tuple[str, str, str]]:
    """Up to `subject.pairs` (edit, candidate, reference), each edit in its turn, and each report against itself."""
    reports, found = read_reports(subject.reports), []
    for place, report in enumerate(reports):
        edits = {"itself": lambda text, _: text, **EDITS}
        name = list(edits)[place % len(edits)]
        edited = edits[name](report, random.Random(f"{SEED} {name} {place}"))
        if edited:
            found.append((name, edited, report))
    return found[: subject.pairs]


def check_judge(subject: Subject) -> Iterator[Line]:
    """Answers, errors seen where an edit made one, and none where it made none."""
    path = recipe_file(subject, "rl_step2")
    if path is None:
        yield skipped("judge", "errors where they are", f"recipe {subject.recipe} has no step 2")
        return
    settings = JudgeSettings.from_mapping(settings_of(["--config", str(path)]))
    given = {"judge_base_url": subject.judge_base_url, "judge_model": subject.judge_model}
    settings = replace(settings, judge_cache_dir=None, **{key: value for key, value in given.items() if value})
    pairs = known_pairs(subject)
    with Judge.from_settings(settings) as judge:
        results = asyncio.run(_ask(judge, pairs, subject.reports.parent.name))
    check = f"judge {judge.model}"
    answered = [(name, result) for (name, _, _), result in zip(pairs, results, strict=True) if result.judgement]
    yield Line(f"{check}: answers", f"all of {len(pairs)} pairs", f"{len(answered)}", len(answered) == len(pairs))
    errors = {name: [r.judgement.errors for n, r in answered if n == name and r.judgement] for name in dict(answered)}
    told = {name: f"{name} {sum(n > 0 for n in numbers)} of {len(numbers)}" for name, numbers in errors.items()}
    for what, names, expected in (
        ("known errors", set(errors) - set(HARMLESS), f"an error in at least {SEEN:.0%} of the reports with one"),
        ("no errors", set(errors) & set(HARMLESS), f"none in at least {QUIET:.0%} of the reports without one"),
    ):
        numbers = np.array([n for name in names for n in errors[name]])
        seen = float((numbers > 0).mean()) if len(numbers) else float("nan")
        well = seen >= SEEN if what == "known errors" else 1 - seen >= QUIET
        found = f"errors in {seen:.0%}: {', '.join(told[name] for name in sorted(names))}"
        yield Line(f"{check}: {what}", expected, found, well)


async def _ask(judge: Judge, pairs: list[tuple[str, str, str]], source: str) -> list[JudgeResult]:
    await judge.check()
    candidates, references = [pair[1] for pair in pairs], [pair[2] for pair in pairs]
    return await judge.judge(candidates, references, [source] * len(pairs))
