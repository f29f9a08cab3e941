"""Small study tables, prediction files and runs that the evaluation's tests make on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.study import study_table, write_studies
from evaluation.predictions import reference_text, rexrank_entry
from rewards.conditions import CONDITIONS

SENTENCES = {
    "Cardiomegaly": "The heart is enlarged.",
    "Edema": "There is pulmonary edema.",
    "Pleural Effusion": "Small left pleural effusion.",
    "Pneumothorax": "Right apical pneumothorax.",
}


def make_studies(
    patients: int = 12, encounters: int = 2, split: str = "test", dataset: str = "phantom_small", seed: int = 0
) -> list[dict[str, Any]]:
    """Studies with random findings, priors, sex, age and race; every fifth has findings alone."""
    rng = np.random.default_rng(seed)
    studies: list[dict[str, Any]] = []
    for patient in range(patients):
        prior: dict[str, Any] | None = None
        sex, race = str(rng.choice(["F", "M"])), [None, "Asian", "White"][int(rng.integers(3))]
        for encounter in range(1, encounters + 1):
            present = [name for name in SENTENCES if rng.random() < 0.4]
            findings = " ".join(SENTENCES[name] for name in present) or "The lungs are clear. No pleural effusion."
            number = len(studies)
            study = {
                "study_id": f"{split}{patient:03d}_{encounter}",
                "patient_id": f"{split}{patient:03d}",
                "dataset": dataset,
                "split": split,
                "image": f"images/{split}{patient:03d}_{encounter}.png",
                "view": "PA",
                "indication": str(rng.choice(["Cough.", "Chest pain.", "Shortness of breath."])),
                "findings": findings,
                "impression": None if number % 5 == 4 else (f"{present[0]}." if present else "No acute disease."),
                "encounter": encounter,
                "sex": sex,
                "age": float(rng.integers(30, 90)),
                "race": race,
            }
            if prior:
                study |= {"prior_study_id": prior["study_id"], "prior_image": prior["image"]}
                study["prior_report"] = f"Findings: {prior['findings']}"
            studies.append(study)
            prior = study
    return studies


def make_data(folder: Path, train: int = 20, test: int = 12, dataset: str = "phantom_small") -> Path:
    """A prepared folder with train and test splits, images and true labels."""
    truth: dict[str, list[Any]] = {"study_id": [], **{name: [] for name in CONDITIONS}}
    for split, patients in (("train", train), ("test", test)):
        studies = make_studies(patients, split=split, dataset=dataset, seed=len(split))
        write_studies(study_table(studies), folder / f"{split}.parquet")
        (folder / "images").mkdir(exist_ok=True)
        for i, study in enumerate(studies):
            Image.new("L", (64, 64), 40 + i % 150).save(folder / study["image"])
            truth["study_id"].append(study["study_id"])
            for name in CONDITIONS:
                truth[name].append(int(SENTENCES.get(name, "…") in study["findings"]))
    columns = {
        name: pa.array(values, pa.string() if name == "study_id" else pa.int8()) for name, values in truth.items()
    }
    pq.write_table(pa.table(columns), folder / "truth.parquet")
    return folder


def write_predictions(path: Path, studies: list[dict[str, Any]], reports: Mapping[str, Any] | None = None) -> Path:
    """A ReXrank file; without `reports` each study's own reference is its prediction."""
    entries = {}
    for study in studies:
        entry = rexrank_entry({**dict.fromkeys(("comparison",)), **study})
        reference = reference_text(study, "findings_impression")
        entry["model_prediction"] = reference if reports is None else reports[study["study_id"]]
        entries[study["study_id"]] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
