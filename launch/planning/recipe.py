"""A recipe's files as its stages read them, and the sizes of its studies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError
from foundation.provenance import REPOSITORY
from foundation.stage_command import settings_of
from launch.planning import assumed
from launch.planning.assumed import PUBLISHED_STUDIES, PUBLISHED_TEST, Assumptions, Target
from model.architectures import ARCHITECTURES, Architecture, architecture
from settings.parser import parse_recipe


@dataclass(frozen=True)
class Sizes:
    """Mean sizes of a study, in tokens of the language model.

    Attributes:
        longest, most_images: prompt and images of a study with prior image and report, where any is shown them.
    """

    studies: int
    prompt: float
    report: float
    images: float
    measured: bool
    longest: float
    most_images: int


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


def sizes(
    datasets: Sequence[str],
    split: str,
    longitudinal: bool,
    target: Target,
    arch: Architecture,
    weights: Sequence[float] = (),
) -> Sizes:
    """Studies and their mean tokens: counted where the data set is prepared, else published counts and assumptions.

    `weights` are the recipe's `dataset_weights`: how many times each data set's studies are taken.

    Raises:
        RecipeError: a data set that is neither prepared nor known.
    """
    assume = target.assume
    image = arch.image_tokens(image_pixels(arch, assume))
    total, prompt, report, images, measured = 0, 0.0, 0.0, 0.0, True
    longest, most_images = 0.0, 1
    for name, weight in zip(datasets, weights or [1.0] * len(datasets), strict=True):
        path = target.data_dir / name / f"{split}.parquet"
        if path.is_file():
            n, words, prior_words, context_words, priors = _counted(path)
            report_tokens, context = words * assume.tokens_per_word, context_words * assume.tokens_per_word
            prior_tokens = prior_words * assume.tokens_per_word
        else:
            published = PUBLISHED_TEST if split == "test" else PUBLISHED_STUDIES
            if name not in published:
                phantom = name.startswith("phantom_")
                command = "make demo-data RECIPE=demo" if phantom else f"make data DATASET={name} SOURCE=/path/to/it"
                raise RecipeError(
                    f"{path} is not there, and no published size of {name} is known; prepare it first: {command}"
                )
            n, measured, priors = published[name], False, assumed.PUBLISHED_PRIORS[name]
            report_tokens, context, prior_tokens = assume.report_tokens, assume.context_tokens, assume.report_tokens
        n = round(n * weight)
        pair = longitudinal and priors > 0
        most_images = max(most_images, 1 + pair)
        longest = max(longest, assume.template_tokens + context + image * (1 + pair) + prior_tokens * pair)
        shown = (1 + priors) if longitudinal else 1.0
        total += n
        report += n * report_tokens
        images += n * shown
        prompt += n * (
            assume.template_tokens + context + image * shown + (priors * prior_tokens if longitudinal else 0)
        )
    if not total:
        raise RecipeError(f"{', '.join(datasets)}: no studies in the split {split}")
    return Sizes(total, prompt / total, report / total, images / total, measured, longest, most_images)


def image_bytes(datasets: Iterable[str], data_dir: Path, assume: Assumptions) -> float:
    """Bytes of the prepared images of data sets, all splits: a study has one image; those of priors are other studies'."""
    import pyarrow.parquet as pq

    studies = 0
    for name in datasets:
        tables = [data_dir / name / f"{split}.parquet" for split in ("train", "validation", "test")]
        there = [path for path in tables if path.is_file()]
        studies += sum(pq.read_metadata(path).num_rows for path in there)
        if not there:
            studies += PUBLISHED_STUDIES.get(name, 0) + PUBLISHED_TEST.get(name, 0)
    return studies * assume.image_bytes


def image_pixels(arch: Architecture, assume: Assumptions) -> int:
    """Pixels a side of an image: as assumed, at most what the model's position embeddings were made for (tiny models)."""
    return min(assume.image_pixels, math.isqrt(arch.vision_num_position_embeddings) * arch.vision_patch_size)


def _counted(path: Path) -> tuple[int, float, float, float, float]:
    """Studies; mean words of report, of prior report (where there is one) and of context; share with a prior."""
    import pyarrow.parquet as pq

    columns = ["findings", "impression", "indication", "comparison", "prior_report"]
    table = pq.read_table(path, columns=columns).to_pydict()
    n = len(table["findings"])
    words = {name: sum(len((text or "").split()) for text in table[name]) for name in columns}
    priors = sum(text is not None for text in table["prior_report"])
    reports, context = words["findings"] + words["impression"], words["indication"] + words["comparison"]
    return n, reports / max(n, 1), words["prior_report"] / max(priors, 1), context / max(n, 1), priors / max(n, 1)


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
