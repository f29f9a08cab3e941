"""What `counterfactual.py` found of a run, as far as it is of the predictions that the run has now."""

from __future__ import annotations

import hashlib
from typing import Any

from evaluation.run_folder import Run
from foundation.errors import read_record
from foundation.files import sha256_of

FOLDER, FILE = "counterfactual", "counterfactual.json"
VERSION = 1  # of the changes: reports of another are not gone on with
CHANGES = {
    "other_film": "another patient's film",
    "blank_film": "a blank film",
    "mirrored": "left and right mirrored",
    "exchanged": "prior and current exchanged",
    "other_prior": "another patient's prior",
    "no_prior": "no prior",
    "opposite_prior": "a prior that says the opposite",
    "no_indication": "no indication",
}


def read_results(run: Run) -> dict[str, Any]:
    """The numbers by model of what was measured of the predictions that the run has now; empty where nothing was."""
    path = run.root / FOLDER / FILE
    if not path.is_file():
        return {}
    models = read_record(path, "models", "version")
    if models["version"] != VERSION:
        return {}
    return {
        model: numbers
        for model, numbers in models["models"].items()
        if model in run.folders and numbers["predictions_sha256"] == predictions_fingerprint(run, model)
    }


def predictions_fingerprint(run: Run, model: str) -> str:
    """sha256 over a model's predictions of the run's pooled data sets."""
    folders = run.folders[model]
    files = [folders[name] / "predictions.json" for name in run.pooled if name in folders]
    return hashlib.sha256(" ".join(sha256_of(file) for file in files if file.is_file()).encode()).hexdigest()
