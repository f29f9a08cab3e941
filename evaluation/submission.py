"""Pack what ReXrank asks of a submission, and check that it is complete.

    python -m evaluation submission --model outputs/unirg_cxr/rl_step2/final --description description.yaml \
        --test_file ReXRank_MIMICCXR_test.json --predictions P.json --out outputs/unirg_cxr/submission

ReXrank's guideline (submission_tutorial_round2.md) asks for a description (name of the model, institution, links to paper and
code, year), a conda `environment.yaml`, and an inference script called as `python inference.py --input_json_file A
--save_json_file B --img_root_dir C`; that of the first round also for the result on MIMIC-CXR. The folder holds these, the
code that the script needs, the weights, the predictions for the test file, and `mimic_result.json` where the model's run has
been evaluated on MIMIC-CXR.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.compare import read_result
from evaluation.predictions import pair, read_predictions, studies_of_file
from foundation.errors import EvaluationError
from foundation.files import write_json
from foundation.provenance import REPOSITORY
from foundation.removal import remove_own
from model.check import check_model_folder

DESCRIPTION = {
    "name": "name of the model",
    "institution": "institution",
    "paper": "link to the paper",
    "code": "link to the code",
    "year": "year",
}
MIMIC_RESULT = "mimic_result.json"
_CODE = ("inference.py", "requirements.txt", "foundation", "data_prep", "evaluation", "model", "rewards", "settings")
_WEIGHTS = (".safetensors", ".json", ".jinja", ".txt", ".model")


def pack(model: Path, description: Path, test_file: Path, predictions: Path, out: Path, force: bool = False) -> Path:
    """Make the folder `out`; nothing is left there where something is missing.

    Raises:
        EvaluationError: a description field, a prediction or a model file is missing; the message lists all.
    """
    told = read_description(description)
    check_model_folder(str(model))
    check_predictions(predictions, test_file)
    if out.exists() and not force:
        raise EvaluationError(f"{out} exists; --force replaces it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name in _CODE:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, temporary / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                shutil.copy2(source, temporary / name)
        (temporary / "checkpoint").mkdir()
        for file in sorted(model.iterdir()):
            if file.suffix in _WEIGHTS:
                _link_or_copy(file, temporary / "checkpoint" / file.name)
        shutil.copy2(predictions, temporary / "predictions.json")
        (temporary / "environment.yaml").write_text(environment(told["name"]), encoding="utf-8")
        (temporary / "description.yaml").write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
        result = mimic_result(model)
        if result is not None:
            write_json(temporary / MIMIC_RESULT, result)
        (temporary / "README.md").write_text(readme(told, result), encoding="utf-8")
        if lacking := missing_files(temporary):
            raise EvaluationError(f"the submission lacks {', '.join(lacking)}; is {model} a finished checkpoint?")
        if out.exists():
            packed = [*(path.name for path in temporary.iterdir() if path.name != MIMIC_RESULT), MIMIC_RESULT]
            needed = {
                "--model": model,
                "--predictions": predictions,
                "--test_file": test_file,
                "--description": description,
            }
            remove_own(out, packed, not missing_files(out), needed, "--force")
            try:
                out.rmdir()
            except OSError as error:
                raise EvaluationError(
                    f"{out} holds more than a submission ({error.strerror}); choose another --out"
                ) from error
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def read_description(path: Path) -> dict[str, Any]:
    """The description's fields.

    Raises:
        EvaluationError: no such file, not YAML, or a field missing or unknown.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"no description {path}; write one with the keys {', '.join(DESCRIPTION)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise EvaluationError(f"{path} must hold the keys {', '.join(DESCRIPTION)}")
    if missing := [f"{key} ({meaning})" for key, meaning in DESCRIPTION.items() if not content.get(key)]:
        raise EvaluationError(f"{path} lacks {', '.join(missing)}")
    if unknown := sorted(set(map(str, content)) - set(DESCRIPTION)):
        raise EvaluationError(f"{path} has unknown key(s) {', '.join(unknown)}; known are {', '.join(DESCRIPTION)}")
    return {key: content[key] for key in DESCRIPTION}


def check_predictions(predictions: Path, test_file: Path) -> None:
    """Raise EvaluationError unless every study of the test file, and no other, has a prediction with text."""
    file, test = read_predictions(predictions), read_predictions(test_file)
    _, problems = pair(studies_of_file(test), file, "findings_impression")
    found = {name: ids for name, ids in vars(problems).items() if ids and name != "no_reference"}
    if found:
        told = "; ".join(f"{len(ids)} {name.replace('_', ' ')} (first: {ids[0]})" for name, ids in found.items())
        raise EvaluationError(f"{predictions} does not answer {test_file}: {told}")


def missing_files(folder: Path) -> list[str]:
    """What a complete submission has and `folder` does not."""
    wanted = [
        "inference.py",
        "environment.yaml",
        "description.yaml",
        "README.md",
        "predictions.json",
        "checkpoint/config.json",
    ]
    lacking = [name for name in wanted if not (folder / name).is_file()]
    lacking += [name for name in _CODE if not (folder / name).exists() and name not in lacking]
    return lacking + ([] if list(folder.glob("checkpoint/*.safetensors")) else ["checkpoint/*.safetensors"])


def environment(name: str) -> str:
    """A conda environment with this Python and the pinned packages."""
    content = {
        "name": "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-"),
        "channels": ["conda-forge"],
        "dependencies": [
            f"python={sys.version_info.major}.{sys.version_info.minor}",
            "pip",
            {"pip": ["-r requirements.txt"]},
        ],
    }
    return yaml.safe_dump(content, sort_keys=False)


def mimic_result(model: Path) -> dict[str, Any] | None:
    """Numbers of a stage's model on MIMIC-CXR, as its run has them: means with intervals and how they were made, no study's
    own; None where it was not evaluated there."""
    stage, run = model.resolve().parent, model.resolve().parent.parent
    path = run / "eval" / "mimic" / stage.name / "scores.json"
    if not path.is_file():
        return None
    result = read_result(path.parent)
    return {key: result[key] for key in ("studies", "patients", "metrics", "made_by")}


def readme(told: Mapping[str, Any], result: Mapping[str, Any] | None) -> str:
    lines = "\n".join(f"- {meaning}: {told[key]}" for key, meaning in DESCRIPTION.items())
    mimic = "" if result is None else f" `{MIMIC_RESULT}` has the result on {result['studies']:,} studies of MIMIC-CXR."
    return (
        f"# {told['name']}\n\n{lines}\n\n"
        "    conda env create -f environment.yaml\n"
        "    python inference.py --input_json_file IN --save_json_file OUT --img_root_dir FOLDER\n\n"
        f"The weights are in `checkpoint/`. Indication and comparison are used; age and sex are not. One key image a study.{mimic}\n"
    )


def _link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system allows it: weights are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
