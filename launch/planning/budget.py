"""The recipe within so many hours: which model, all weights or LoRA, and which share of the data, with the commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foundation.errors import RecipeError
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from launch.planning.recipe import recipe_files
from launch.planning.stage import plan_recipe
from launch.planning.text import hours
from settings.ablations import STAGES

# Variants of a recipe that are considered, the best first: a larger model before a smaller, all weights before LoRA.
VARIANTS = (("", "8 B, all weights"), ("lora", "8 B, LoRA"), ("4b", "4 B, all weights"), ("2b", "2 B, all weights"))
LEAST_SHARE = 0.1  # of the data, below which a smaller model on more of it is taken (our choice)


@dataclass(frozen=True)
class Option:
    """One variant within the budget.

    Attributes:
        hours: of its stages on all of the data.
        share: of the data that fits the budget, at most 1; 0 where memory does not hold the model.
        left_out: stages that cannot run here, and why.
    """

    variant: str
    title: str
    stages: tuple[str, ...]
    hours: float
    share: float
    left_out: str = ""


def options(recipe: str, target: Target, budget: float) -> list[Option]:
    """Every variant that the recipe has."""
    there = {path.stem for path in recipe_files(recipe)}
    suffixes = [(variant, title, f"_{variant}" if variant else "") for variant, title in VARIANTS]
    return [
        _option(recipe, target, budget, variant, title, suffix)
        for variant, title, suffix in suffixes
        if f"sft{suffix}" in there
    ]


def _option(recipe: str, target: Target, budget: float, variant: str, title: str, suffix: str) -> Option:
    plans = plan_recipe(recipe, target, [f"{stage}{suffix}" for stage in STAGES])
    kept = [plan for plan in plans if not plan.judge_gpus]
    left_out = (
        "" if len(kept) == len(plans) else "RL step 2: its judge does not fit beside (JUDGE_URL=… names another's)"
    )
    stages = tuple(plan.stage.removesuffix(suffix) for plan in kept)
    whole = sum(plan.hours for plan in kept)
    if not all(plan.fits for plan in kept):
        return Option(variant, title, stages, whole, 0.0, left_out)
    share = min(1.0, budget / whole)
    for _ in range(2):  # what does not shrink with the data, such as validation
        if share < 1:
            share *= min(1.0, budget / _hours_of(recipe, target, [plan.stage for plan in kept], share, kept))
    return Option(variant, title, stages, whole, share, left_out)


def _hours_of(recipe: str, target: Target, stages: Sequence[str], share: float, plans: Sequence[StagePlan]) -> float:
    words = ("--dataset_weights", *[f"{share:.4f}"] * len(plans[0].datasets))
    shared = replace(target, batch_overrides=(*target.batch_overrides, *words))
    return sum(plan.hours for plan in plan_recipe(recipe, shared, stages))


def chosen(found: Sequence[Option]) -> Option:
    """The first that sees `LEAST_SHARE` of the data; where none does, the one that sees most.

    Raises:
        RecipeError: none fits the GPUs' memory.
    """
    fitting = [option for option in found if option.share]
    if not fitting:
        raise RecipeError("no variant of the recipe fits these GPUs; more of them, or larger ones (GPUS=, GPU=)")
    enough = [option for option in fitting if option.share >= LEAST_SHARE]
    return enough[0] if enough else max(fitting, key=lambda option: option.share)


def budget_table(recipe: str, target: Target, budget: float) -> str:
    """The options, the one to take, and its commands.

    Raises:
        RecipeError: none fits.
    """
    found = options(recipe, target, budget)
    taken = chosen(found)
    lines = [f"{hours(budget)} on {target.gpus} × {target.kind_name}, {target.parallel}:", ""]
    for option in found:
        fits = f"{option.share:6.1%} of the data" if option.share else "does not fit the GPUs' memory"
        mark = "  <- take this" if option is taken else ""
        lines.append(f"  {option.title:20}{hours(option.hours):>11} for all of it   {fits}{mark}")
    names = ", ".join(dict.fromkeys(option.left_out for option in found if option.left_out))
    lines += ["", f"left out: {names}"] if names else [""]
    variant = f" VARIANT={taken.variant}" if taken.variant else ""
    datasets = len(plan_recipe(recipe, target, [f"sft_{taken.variant}" if taken.variant else "sft"])[0].datasets)
    weights = " ".join([f"{taken.share:.3f}"] * datasets)
    given = f' ARGS="--dataset_weights {weights}"' if taken.share < 1 else ""
    for stage in taken.stages:
        lines.append(f"  make {stage.replace('_', '-')} GPUS={target.gpus}{variant}{given}")
    lines.append(
        f"the largest model that sees {LEAST_SHARE:.0%} of the data, all weights before LoRA; a share is of each data set, drawn by seed"
    )
    return "\n".join(lines)
