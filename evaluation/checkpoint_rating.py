"""Checkpoints rated by the reports that they wrote of validation studies: RadCliQ-v1, and 1/mean of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import statistics
from evaluation.generate import Task, finish, planned
from evaluation.predictions import PredictionFile, ReferenceForm, pair, read_predictions, studies_of_data
from evaluation.report_lines import partial_path
from foundation.errors import EvaluationError, RecipeError
from foundation.governance import claimed_source
from model.engines import GenerationSettings
from rewards.metric import Metric

FORM = ReferenceForm()  # of references: eval.yaml's default, by which make select scores too


@dataclass(frozen=True)
class CheckpointRating:
    """Rates what a policy writes while it trains (training/validation.py), and leaves it where `make select` reads it."""

    split: str
    max_studies: int | None
    settings: GenerationSettings
    batch_size: int
    metric: Metric

    def studies(self, data: Path) -> list[dict[str, Any]]:
        """The validation studies of a prepared folder."""
        return studies_of_data(data, self.split)[: self.max_studies]

    def rate(
        self, checkpoint: Path, out: Path, made: Mapping[Path, list[dict[str, Any]]], seconds: float
    ) -> dict[str, Any]:
        """Keep the reports of `checkpoint` in `out` (prepared folder → its lines), and score them as `rate_reports` does."""
        for data, lines in made.items():
            folder = out / data.name
            task = Task(str(checkpoint), data, self.split, folder, self.settings, self.batch_size, self.max_studies)
            studies, _, made_by = planned(task)
            folder.mkdir(parents=True, exist_ok=True)
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            partial_path(folder).write_text(text, encoding="utf-8")
            finish(folder, studies, made_by, seconds)
        return rate_reports(out, list(made), self.split, self.settings.sections, self.metric, FORM)


def check_rated(data: Sequence[Path], split: str, sections: str) -> None:
    """Raise `RecipeError` unless each prepared folder has studies that checkpoints can be rated on."""
    for folder in data:
        try:
            studies = studies_of_data(folder, split)
            unwritten = {study["study_id"]: {"model_prediction": ""} for study in studies}
            pair(studies, PredictionFile(folder, unwritten, [], ""), sections, FORM)
        except EvaluationError as error:
            raise RecipeError(f"keep_best: {error}") from error


def rate_reports(
    out: Path,
    folders: Sequence[Path],
    split: str,
    sections: str,
    metric: Metric,
    form: ReferenceForm,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Mean and 1/mean of RadCliQ-v1 over the reports in `out/<data set>`, with bootstrap intervals over patients.

    Args:
        more: name → function of candidates, references and their data sets to a value a report, whose mean is wanted too.
    """
    candidates, references, patients, sources = [], [], [], []
    for data in folders:
        file = read_predictions(out / data.name / "predictions.json")
        studies = [study for study in studies_of_data(data, split) if study["study_id"] in file.entries]
        rows, _ = pair(studies, file, sections, form)
        candidates += [row["candidate"] for row in rows]
        references += [row["reference"] for row in rows]
        patients += [(data.name, row["patient_id"]) for row in rows]
        sources += [claimed_source(row["dataset"], data.name) for row in rows]
    scores = metric(candidates, references).astype(np.float64)
    wanted = {"radcliq_v1": statistics.mean(scores), "inverse_radcliq_v1": statistics.inverse_mean(scores)}
    failed = {}
    for name, measure in (more or {}).items():
        values = measure(candidates, references, sources)
        wanted[name] = statistics.mean(values)
        failed = {"judge_failures": int(np.isnan(values).sum())}
    intervals = statistics.bootstrap(wanted, patients)
    return {
        "studies": len(candidates),
        **{key: interval.as_dict() for key, interval in intervals.items()},
        **failed,
    }
