"""The files of recipes/ablations/: what each changes, and of what it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from foundation.provenance import REPOSITORY
from foundation.recipe_files import read_yaml

RECIPES = REPOSITORY / "recipes"
STAGES = ("sft", "rl_step1", "rl_step2")


@dataclass(frozen=True)
class Ablation:
    """One file of recipes/ablations/.

    Attributes:
        starts_from: `base`, a stage of the recipe's own run, or another ablation.
        changes: the keys that differ from the recipe.
        compared_with: the ablation, or stage of the recipe's own run, that it is compared with.
        count_errors: the judge counts the errors of step 2's checkpoints on validation (paper, Figure 2d).
    """

    name: str
    stages: tuple[str, ...]
    starts_from: str
    changes: Mapping[str, Any]
    compared_with: str | None = None
    count_errors: bool = False


def names() -> list[str]:
    """All ablations that there are."""
    return sorted(path.stem for path in (RECIPES / "ablations").glob("*.yaml"))


def read_ablation(name: str) -> Ablation:
    """The ablation of this name.

    Raises:
        RecipeError: there is none, or its file lacks stages or starts_from, or says something unknown.
    """
    path = RECIPES / "ablations" / f"{name}.yaml"
    if name not in names():
        raise RecipeError(f"no ablation {name!r}; there are {', '.join(names())}")
    content = read_yaml(path)
    stages = tuple(content.pop("stages", ()))
    starts_from = content.pop("starts_from", None)
    if not stages or set(stages) - set(STAGES) or starts_from is None:
        raise RecipeError(f"{path} needs stages, a list from {', '.join(STAGES)}, and starts_from")
    compared_with, count_errors = content.pop("compared_with", None), content.pop("count_errors", False)
    if compared_with not in (None, *STAGES, *names()):
        raise RecipeError(f"{path}: compared_with is {compared_with!r}, neither a stage nor an ablation")
    return Ablation(name, stages, starts_from, content, compared_with, count_errors)


def recipe_file(recipe: str, stage: str, variant: str = "") -> Path:
    """The recipe's YAML of a stage, in this variant; evaluation has the recipe's own where the variant has none.

    Raises:
        RecipeError: the variant has no such stage.
    """
    folder = RECIPES / recipe
    path = folder / (f"{stage}_{variant}.yaml" if variant else f"{stage}.yaml")
    if variant and not path.is_file():
        if stage == "eval":
            return folder / "eval.yaml"
        there = sorted(other.stem for other in folder.glob(f"*_{variant}.yaml"))
        raise RecipeError(
            f"VARIANT={variant} of the recipe {recipe} has no {stage}; it has {', '.join(there) or 'no file at all'}"
        )
    return path
