"""Studies as rows for TRL's trainers, made when they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
from datasets import Dataset, Image

from data_prep.prepared import Studies
from data_prep.study import StudyError
from model.prompts import build_prompt, is_longitudinal, prompt_images, study_report


def rollout_dataset(studies: Sequence[dict[str, Any]], longitudinal: bool, context: bool) -> Dataset:
    """Rows for GRPOTrainer: prompt, images (opened when read), and the columns that the reward needs."""

    def row(study: Mapping[str, Any]) -> dict[str, Any]:
        paths = _image_paths(study, longitudinal)
        return {
            "prompt": build_prompt(study, longitudinal, context),
            "images": _open(study, paths),
            "image_paths": paths,
            "study_id": study["study_id"],
            "source": study["dataset"],
            "reference": study_report(study),
            "prior_report": study["prior_report"] if is_longitudinal(study, longitudinal) else None,
            "age": study.get("age"),
            "indication": study.get("indication"),
        }

    return _lazily(studies, row)


def completion_dataset(studies: Sequence[dict[str, Any]], longitudinal: bool, context: bool) -> Dataset:
    """Rows for SFTTrainer: prompt, images and the completion that alone carries loss."""

    def row(study: Mapping[str, Any]) -> dict[str, Any]:
        report = {"type": "text", "text": study_report(study)}
        return {
            "prompt": build_prompt(study, longitudinal, context),
            "images": _open(study, _image_paths(study, longitudinal)),
            "completion": [{"role": "assistant", "content": [report]}],
        }

    return _lazily(studies, row)


def _lazily(studies: Sequence[dict[str, Any]], row: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Dataset:
    """The studies as a data set whose rows `row` makes when they are read. Its columns can only be read by row."""

    def rows(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        made = [row(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        return {name: [one[name] for one in made] for name in made[0]}

    table = studies.table if isinstance(studies, Studies) else pa.Table.from_pylist(list(studies))
    # A fingerprint of its own: datasets would make one by pickling the table.
    data = Dataset(table, fingerprint=hashlib.sha256(os.urandom(16)).hexdigest()[:16])
    return data.with_transform(rows)


def _image_paths(study: Mapping[str, Any], longitudinal: bool) -> list[str]:
    return [str(Path(study["folder"]) / name) for name in prompt_images(study, longitudinal)]


def _open(study: Mapping[str, Any], paths: Sequence[str]) -> list[PIL.Image.Image]:
    """The images, decoded.

    Raises:
        StudyError: one cannot be read; it has changed since `check_images`.
    """
    try:
        return [Image().decode_example({"path": path, "bytes": None}) for path in paths]
    except OSError as error:
        raise StudyError(
            f"study {study['study_id']}: {' and '.join(paths)} cannot be read ({' '.join(str(error).split())}); prepare the "
            f"data again with: make data DATASET={Path(study['folder']).name} … FORCE=1"
        ) from error
