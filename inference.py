"""Write reports for a ReXrank test file, as ReXrank demands of a submission.

    python inference.py --input_json_file IN --save_json_file OUT --img_root_dir FOLDER

(The guideline of its first round had the three without names; so may they be given.) The answer is the input with `model_prediction` added to each study. The model is the folder in the environment variable
MODEL_DIR, or `checkpoint/` beside this file (as `python -m evaluation submission` packs it). SECTIONS=findings writes findings
alone. A killed run resumes where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.generate import write_reports
from evaluation.predictions import inside, read_predictions, studies_of_file
from evaluation.report_lines import read_lines
from foundation.errors import EvaluationError, run_command
from foundation.files import write_json
from model.check import check_model_folder
from model.engines import GenerationSettings, check_images, engine_here, make_writer
from model.films import PAPERS, FilmForm, form_of_model
from model.fingerprint import model_fingerprint
from settings.evaluations import SECTIONS

USAGE = "python inference.py --input_json_file IN --save_json_file OUT --img_root_dir FOLDER"


class _Parser(argparse.ArgumentParser):
    """A wrong flag is one line, as every mistake is."""

    def error(self, message: str) -> None:
        raise EvaluationError(f"{message}; {USAGE}")


def main() -> None:
    infer(*read_arguments(sys.argv[1:]))


def read_arguments(arguments: Sequence[str]) -> tuple[Path, Path, Path]:
    """The input file, the output file, the images' folder: by name, or three without names.

    Raises:
        EvaluationError: one is missing, or one too many.
    """
    parser = _Parser(description=__doc__.splitlines()[0], usage=USAGE, allow_abbrev=False)
    names = ("input_json_file", "save_json_file", "img_root_dir")
    for name in names:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("unnamed", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    named = [getattr(given, name) for name in names]
    if len(given.unnamed) == 3 and named == [None] * 3:
        return tuple(given.unnamed)
    if given.unnamed or None in named:
        raise EvaluationError(f"inference.py takes three arguments: {USAGE}")
    return tuple(named)


def infer(input_json: Path, output_json: Path, image_root: Path, batch_size: int = 16) -> None:
    """Raises EvaluationError for an unreadable file, a missing image, or a path that leaves `image_root`."""
    model = os.environ.get("MODEL_DIR") or str(Path(__file__).resolve().parent / "checkpoint")
    sections = os.environ.get("SECTIONS", "findings_impression")
    if sections not in SECTIONS[1:]:
        raise EvaluationError(f"SECTIONS is {sections!r}; choose one of {', '.join(SECTIONS[1:])}")
    check_model_folder(model)
    settings = engine_here(GenerationSettings(sections=sections, longitudinal=False))
    file = read_predictions(input_json)
    form = form_of_model(model)
    if form is None:
        print(f"{model} does not say which films it was trained on; they are shown as the paper's, {PAPERS}")
    studies = [study_to_read(study, image_root, form or PAPERS) for study in studies_of_file(file)]
    check_images(studies, settings)
    # Named by what decides the reports, so that another model or file never goes on with them.
    made_by = hashlib.sha256(f"{model_fingerprint(model)} {form} {sections} {file.fingerprint}".encode()).hexdigest()[
        :12
    ]
    partial = output_json.with_name(f"{output_json.name}.{made_by}.partial.jsonl")
    write_reports(studies, partial, lambda: make_writer(model, settings), batch_size)
    reports = {line["study_id"]: line["model_prediction"] for line in read_lines(partial)}
    answer = {key: {**entry, "model_prediction": reports[key]} for key, entry in file.entries.items()}
    write_json(output_json, _without_nan(answer))
    partial.unlink()


def study_to_read(study: dict[str, Any], image_root: Path, form: FilmForm) -> dict[str, Any]:
    """The study with its key image's path inside `image_root`, prepared in the form `form` when it is opened."""
    if not study["image"]:
        raise EvaluationError(f"study {study['study_id']} has no key_image_path")
    inside(image_root, study["image"])
    return {**study, "folder": str(image_root), "image": study["image"].lstrip("/"), "prepare": form.settings()}


def _without_nan(value: Any) -> Any:
    """NaN tokens of the input as null, which strict JSON parsers read."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    run_command(main)
