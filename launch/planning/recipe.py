"""A recipe's files as its stages read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from foundation.provenance import REPOSITORY
from foundation.stage_command import settings_of
from model.architectures import ARCHITECTURES, Architecture, architecture
from settings.parser import parse_recipe


def recipe_files(recipe: str) -> list[Path]:
    """The YAML files of a recipe, in the order of its stages.

    Raises:
        RecipeError: there is no such recipe.
    """
    order = {"sft": 0, "rl": 1, "eval": 2}
    files = sorted(
        (REPOSITORY / "recipes" / recipe).glob("*.yaml"),
        key=lambda path: (order.get(path.stem.split("_")[0], 3), path.stem),
    )
    if not files:
        known = sorted({path.parent.name for path in (REPOSITORY / "recipes").glob("*/*.yaml")})
        raise RecipeError(f"no recipe {recipe!r} in recipes/; there are {', '.join(known)}")
    return files


def parse(path: Path, overrides: Sequence[str] = ()) -> tuple[Any, ...]:
    """A YAML as its own stage reads it, on a machine without its GPUs.

    Raises:
        RecipeError: what the stage itself would refuse.
    """
    from trl import ModelConfig, SFTConfig

    from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
    from rewards.chexprompt.settings import JudgeSettings
    from settings import arguments as our

    try:
        shown = path.relative_to(REPOSITORY)
    except ValueError:
        shown = path
    kind = path.stem.split("_")[0]
    on_cpu = ["--use_cpu", "true", "--bf16", "false", *overrides]
    # As recipes/sft.py and recipes/evaluate.py read them.
    types: dict[str, tuple[type, ...]] = {
        "sft": (our.DataArguments, our.StageArguments, ModelConfig, SFTConfig),
        "rl": GRPO_ARGUMENTS,
        "eval": (our.EvaluationArguments, JudgeSettings),
    }
    if kind in types:
        given = ["--config", str(path), *([] if kind == "eval" else on_cpu)]
        return parse_recipe(types[kind], given)
    raise RecipeError(f"{shown}: a recipe's files are named sft*.yaml, rl*.yaml and eval*.yaml")


def find(parsed: Sequence[Any], name: str) -> Any:
    """The parsed part of class `name`."""
    return next(part for part in parsed if type(part).__name__ == name)


def with_processes(training: Any, processes: int) -> Any:
    """`training` as it would be among `processes` processes: its world size decides how a batch divides."""
    training.__class__ = type("Planned", (type(training),), {"world_size": processes})
    return training


def first_stage(path: Path) -> Path:
    """The SFT file of a stage's own variant, where there is one, else of the recipe: rl_step1_2b.yaml starts from sft_2b.yaml."""
    own = [path.with_name(f"sft_{'_'.join(words)}.yaml") for words in _tails(path.stem.split("_"))]
    return next((file for file in own if file.is_file()), path.with_name("sft.yaml"))


def _tails(words: Sequence[str]) -> list[Sequence[str]]:
    return [words[start:] for start in range(1, len(words))]


def architecture_of(name: str, path: Path) -> Architecture:
    """Of the stage's model; a stage that starts from an earlier one has the base model's."""
    known = architecture(name)
    if known is None and (base := first_stage(path)).is_file():
        known = architecture(str(settings_of(["--config", str(base)]).get("model_name_or_path")))
    if known is None and name.startswith("outputs/demo"):
        known = TINY
    if known is None:
        raise RecipeError(
            f"{path.name}: the size of {name} is not known; known are {', '.join(ARCHITECTURES)}, and any Qwen3-VL folder"
        )
    return known


# The demo's base model before `make base` has built it (recipes/tiny_model.py; its vocabulary is about 600 tokens).
TINY = Architecture(
    640, 128, 256, 2, 4, 2, 32, True, 128, 256, 2, vision_num_position_embeddings=36, vision_deepstack=1
)


def rollouts_of_a_row(training: Any, share_prompts: bool) -> int:
    """Rollouts that a row of a device's batch holds: a study's, as far as they are in one batch."""
    return min(training.num_generations, training.per_device_train_batch_size) if share_prompts else 1
