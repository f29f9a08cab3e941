"""The whole recipe: its days and GPU hours, and the one change that would save most of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from foundation.errors import RecipeError
from launch.judges import DEFAULT
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from launch.planning.text import hours

# Settings that leave what is trained on as it is: which stages have them, and other values to try.
CHANGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rl", ("--vllm_gpu_memory_utilization", "0.4")),
    ("rl", ("--vllm_gpu_memory_utilization", "0.5")),
    ("rl", ("--vllm_gpu_memory_utilization", "0.6")),
    ("sft", ("--checkpoint_above_tokens", "4096")),
    ("rl", ("--checkpoint_above_tokens", "4096")),
    ("rl", ("--share_prompts", "true")),
    ("rl_step2", ("--judge_answer_format", "digits")),
    ("rl_step2", ("--judge_model", DEFAULT)),
)


def whole_recipe(plans: Sequence[StagePlan]) -> str:
    """One line: days and GPU hours of all stages, one after the other; days with what processes wait for one another."""
    wall, gpu = sum(plan.hours for plan in plans), sum(plan.gpu_hours for plan in plans)
    missing = [plan.stage for plan in plans if plan.judge_calls and plan.judge and plan.hours and not plan.judge_hours]
    whole = all(any(plan.stage.startswith(stage) for plan in plans) for stage in ("sft", "rl_step1", "rl_step2"))
    said = f"{'whole recipe' if whole else 'in all'}: {wall / 24:.1f} days, {gpu:,.0f} GPU hours ({', '.join(plan.stage for plan in plans)})"
    if (waiting := sum(plan.waiting for plan in plans)) >= 0.01 * wall > 0:
        said += f"; {(wall + waiting) / 24:.1f} days where processes wait for the longest forward pass of all"
    return said + (f"; without the judge's time in {', '.join(missing)}" if missing else "")


def best_change(
    plans: Sequence[StagePlan], target: Target, plan_stage: Callable[[Path, Target], StagePlan]
) -> tuple[float, str]:
    """Hours that the one change saves which saves most, and what it is; 0 hours where none of `CHANGES` saves any.

    Args:
        plan_stage: `plan_training`, which each change is planned by.
    """
    best = (0.0, "")
    trained = [plan for plan in plans if plan.steps]
    for stages, words in CHANGES:
        saved = 0.0
        for plan in (plan for plan in trained if plan.stage.startswith(stages)):
            try:
                other = plan_stage(Path(plan.file), replace(target, batch_overrides=(*target.batch_overrides, *words)))
            except RecipeError:  # a value that this stage's other settings do not go with
                continue
            if other.fits:
                saved += max(0.0, plan.hours - other.hours)
        if saved > best[0]:
            best = (saved, f"{words[0].removeprefix('--')}: {words[1]} in {stages} saves {hours(saved)}")
    return best


def longest_part(plans: Sequence[StagePlan]) -> str:
    """The part of a stage that takes longest, and what its time rests on."""
    parts = [(each, part, plan) for plan in plans for part, each in plan.hours_of.items()]
    if not parts:
        return ""
    each, part, plan = max(parts, key=lambda of: of[0])
    return f"{part} of {plan.stage} takes longest: {hours(each)} ({plan.rests_on[part]})"
