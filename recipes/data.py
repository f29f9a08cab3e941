"""Prepared data sets as rows for TRL's trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Features, Image, Value
from datasets import List as ListFeature
from tqdm import tqdm

from data_prep.mixture import read_mixture
from data_prep.study import StudyError
from recipes.errors import RecipeError
from recipes.prompts import build_prompt, is_longitudinal, prompt_images, study_report

_MESSAGES = ListFeature(
    {"role": Value("string"), "content": ListFeature({"type": Value("string"), "text": Value("string")})}
)
_FEATURES = {
    "prompt": _MESSAGES,
    "images": ListFeature(Image()),
    "study_id": Value("string"),
    "source": Value("string"),
    "reference": Value("string"),
    "prior_report": Value("string"),
    "image_paths": ListFeature(Value("string")),
}


def load_studies(
    datasets: Sequence[str],
    data_dir: str | Path,
    split: str,
    weights: Sequence[float] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The studies of one split of several prepared data sets, with `folder` (their prepared folder) added to each.

    Args:
        weights: multiple of each data set's size to take (1 = each study once; 0.5 = a random half; 2 = each twice).

    Raises:
        RecipeError: no data set named.
        StudyError: a data set is missing, empty or broken, or there are not as many weights as data sets.
    """
    if not datasets:
        raise RecipeError("no data set to train on; set datasets, e.g. datasets: [mimic, iu_xray]")
    folders = [Path(data_dir) / name for name in datasets]
    return read_mixture(folders, split, list(weights) or None, seed).to_pylist()


def check_images(studies: Sequence[dict[str, Any]], longitudinal: bool) -> None:
    """Raise `StudyError` for the first missing or unreadable image: before training, not hours into it.

    Opens each file's header (about 0.1 ms), which does not decode it.
    """
    for study in tqdm(studies, desc="checking images", unit="study", disable=len(studies) < 20_000):
        for image in prompt_images(study, longitudinal):
            path = Path(study["folder"]) / image
            again = f"prepare the data again with: make data DATASET={Path(study['folder']).name} … FORCE=1"
            try:
                PIL.Image.open(path).close()
            except FileNotFoundError:
                raise StudyError(f"study {study['study_id']}: image {path} is missing; {again}") from None
            except OSError as error:  # PIL's UnidentifiedImageError is one
                raise StudyError(f"study {study['study_id']}: {path} cannot be read as an image; {again}") from error


def rollout_dataset(studies: Sequence[dict[str, Any]], longitudinal: bool, context: bool) -> Dataset:
    """Rows for GRPOTrainer: prompt, images (opened when read), and the columns that the reward needs."""
    check_images(studies, longitudinal)
    return Dataset.from_dict(_columns(studies, longitudinal, context), features=Features(_FEATURES))


def completion_dataset(studies: Sequence[dict[str, Any]], longitudinal: bool, context: bool) -> Dataset:
    """Rows for SFTTrainer: prompt, images and the completion that alone carries loss."""
    check_images(studies, longitudinal)
    columns = _columns(studies, longitudinal, context)
    completion = [
        [{"role": "assistant", "content": [{"type": "text", "text": reference}]}] for reference in columns["reference"]
    ]
    kept = {name: columns[name] for name in ("prompt", "images")}
    features = {"prompt": _MESSAGES, "images": _FEATURES["images"], "completion": _MESSAGES}
    return Dataset.from_dict({**kept, "completion": completion}, features=Features(features))


def _columns(studies: Sequence[dict[str, Any]], longitudinal: bool, context: bool) -> dict[str, list[Any]]:
    images = [[str(Path(study["folder"]) / image) for image in prompt_images(study, longitudinal)] for study in studies]
    return {
        "prompt": [build_prompt(study, longitudinal, context) for study in studies],
        "images": images,
        "image_paths": images,
        "study_id": [study["study_id"] for study in studies],
        "source": [study["dataset"] for study in studies],
        "reference": [study_report(study) for study in studies],
        "prior_report": [study["prior_report"] if is_longitudinal(study, longitudinal) else None for study in studies],
    }
