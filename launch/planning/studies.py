"""The sizes of a recipe's studies: counted where a data set is prepared, else published counts and assumptions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.errors import RecipeError
from launch.planning.assumed import PUBLISHED_PRIORS, PUBLISHED_STUDIES, PUBLISHED_TEST, Assumptions, Target
from model.architectures import Architecture

DRAWN = 4096  # studies whose lengths are looked at one by one


@dataclass(frozen=True)
class Sizes:
    """Mean sizes of a study, in tokens of the language model.

    Attributes:
        longest, most_images: prompt and images of a study with prior image and report, where any is shown them.
        drawn: prompt and report of each of some `DRAWN` studies of all data sets, [n, 2].
    """

    studies: int
    prompt: float
    report: float
    images: float
    measured: bool
    longest: float
    most_images: int
    drawn: np.ndarray


@dataclass(frozen=True)
class _Texts:
    """Tokens of a data set's texts.

    Attributes:
        priors: share of studies with a prior.
        prior: of a prior report, on average, where there is one.
        each: report, prior report (0 where there is none) and context of each study that is looked at, [n, 3].
    """

    studies: int
    report: float
    prior: float
    context: float
    priors: float
    each: np.ndarray


def sizes(
    datasets: Sequence[str],
    split: str,
    longitudinal: bool,
    target: Target,
    arch: Architecture,
    weights: Sequence[float] = (),
) -> Sizes:
    """Sizes over all of the data sets.

    `weights` are the recipe's `dataset_weights`: how many times each data set's studies are taken.

    Raises:
        RecipeError: a data set that is neither prepared nor known.
    """
    image = arch.image_tokens(image_pixels(arch, target.assume))
    paths = [target.data_dir / name / f"{split}.parquet" for name in datasets]
    found = [
        _prepared(path, target.assume) if path.is_file() else _published(name, path, split, target.assume)
        for name, path in zip(datasets, paths, strict=True)
    ]
    studies = [
        round(texts.studies * weight) for texts, weight in zip(found, weights or [1.0] * len(found), strict=True)
    ]
    total = sum(studies)
    if not total:
        raise RecipeError(f"{', '.join(datasets)}: no studies in the split {split}")
    prompt, report, images, longest, most_images, drawn = 0.0, 0.0, 0.0, 0.0, 1, []
    for n, texts in zip(studies, found, strict=True):
        pair = longitudinal and texts.priors > 0
        own = target.assume.template_tokens + texts.context + image  # of a prompt without a prior
        most_images = max(most_images, 1 + pair)
        longest = max(longest, own + (image + texts.prior) * pair)
        shown = texts.priors * longitudinal
        report += n * texts.report
        images += n * (1 + shown)
        prompt += n * (own + shown * (image + texts.prior))
        each = texts.each[np.linspace(0, len(texts.each), round(DRAWN * n / total), endpoint=False).astype(int)]
        before = (each[:, 1] + image * (each[:, 1] > 0)) * longitudinal
        drawn.append(np.stack([target.assume.template_tokens + each[:, 2] + image + before, each[:, 0]], 1))
    measured = all(path.is_file() for path in paths)
    return Sizes(
        total, prompt / total, report / total, images / total, measured, longest, most_images, np.concatenate(drawn)
    )


def _published(name: str, path: Path, split: str, assume: Assumptions) -> _Texts:
    """A data set that is not prepared: reports of assumed lengths, spread as `report_spread` says (a gamma distribution)."""
    published = PUBLISHED_TEST if split == "test" else PUBLISHED_STUDIES
    if name not in published:
        phantom = name.startswith("phantom_")
        command = "make demo-data RECIPE=demo" if phantom else f"make data DATASET={name} SOURCE=/path/to/it"
        raise RecipeError(f"{path} is not there, and no published size of {name} is known; prepare it first: {command}")
    drawing, priors = np.random.default_rng(0), PUBLISHED_PRIORS[name]
    shape = assume.report_spread**-2
    reports = drawing.gamma(shape, assume.report_tokens / shape, [DRAWN, 2])
    reports[:, 1] *= drawing.random(DRAWN) < priors
    each = np.column_stack([reports, np.full(DRAWN, assume.context_tokens)])
    return _Texts(published[name], assume.report_tokens, assume.report_tokens, assume.context_tokens, priors, each)


def _prepared(path: Path, assume: Assumptions) -> _Texts:
    """A prepared data set, its words counted."""
    import pyarrow.parquet as pq

    columns = ["findings", "impression", "indication", "comparison", "prior_report"]
    table = pq.read_table(path, columns=columns).to_pydict()
    words = {name: np.array([len((text or "").split()) for text in table[name]], float) for name in columns}
    has_prior = np.array([text is not None for text in table["prior_report"]], bool)
    reports, context = words["findings"] + words["impression"], words["indication"] + words["comparison"]
    each = np.stack([reports, np.where(has_prior, words["prior_report"], 0), context], 1) * assume.tokens_per_word
    n = len(each)
    report, prior, own = each.sum(0) / max(n, 1)
    share = has_prior.sum() / max(n, 1)
    return _Texts(n, float(report), float(prior / share) if share else 0.0, float(own), float(share), each)


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
