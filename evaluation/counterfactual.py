"""Does a model look at the film? Its test reports once more, with one thing of each study changed.

    python -m evaluation counterfactual --outputs outputs/demo

Every model that the run has evaluated (baselines left out) writes again: another patient's film, none, left and right mirrored,
prior and current exchanged, another patient's prior, none, one that says the opposite, no indication. A text that changes proves
nothing (a random model's does, too); what counts is how far scores and labels against the right reference fall. Results:
`counterfactual/counterfactual.json` in the run's folder, a page of report.html, and in summary.json

    looks_at_film   fall of micro-F1 of the 14 conditions when the film is another patient's
    uses_prior      fall of the composite reward when the prior is another patient's, over studies that have one
    copies_prior    how much more often what a report says of a condition agrees with a prior that says the opposite of the
                    right one, when that is shown: 0 for a model that is not led by it, 1 for one that copies it

each with an interval over patients.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.study import report_text
from evaluation import statistics
from evaluation.compare import read_result
from evaluation.counterfactual_results import FILE, FOLDER, VERSION, predictions_fingerprint, read_results
from evaluation.generate import read_lines, write_reports
from evaluation.predictions import ReferenceForm, candidate_text, pair, read_predictions, studies_of_data
from evaluation.run_folder import Run, concatenate
from evaluation.score_rows import score_lines
from evaluation.scorers import Scorers
from evaluation.scores import Scores
from evaluation.scoring import read_truth
from evaluation.statistics import Statistic
from evaluation.temporal import CATEGORIES, label_by_rules
from foundation.errors import EvaluationError, read_record
from foundation.files import write_json
from foundation.locks import folder_lock
from model import changed_studies
from model.engines import VLLM_BATCHES, GenerationSettings, make_writer
from model.fingerprint import model_fingerprint
from rewards.conditions import CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN, Labeler, binary_labels
from settings.evaluations import BASELINES

STUDIES = 120  # our choice: intervals of ±0.05, and minutes on two cores for the demo's four models
# What a made-up prior says of a condition, after `There is` or `No`; `No Finding` says nothing of one.
_PHRASES = {
    "Enlarged Cardiomediastinum": "widening of the mediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung opacity",
    "Lung Lesion": "lung nodule",
    "Edema": "pulmonary edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "pleural effusion",
    "Pleural Other": "pleural thickening",
    "Fracture": "rib fracture",
    "Support Devices": "pacemaker",
}
_SIDES = {"left": re.compile(r"\bleft\b", re.IGNORECASE), "right": re.compile(r"\bright\b", re.IGNORECASE)}


@dataclass
class Own:
    """A model's own reports of some studies, as they were evaluated, in one order.

    Attributes:
        studies: with `reference_report`, findings and impression as a prior would have them.
        rows: the same with reference and candidate.
        scores: of these reports; columns in the rows' order.
    """

    studies: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    scores: Scores


def measure(
    run: Run,
    scorers: Scorers,
    models: Sequence[str] = (),
    studies: int = STUDIES,
    batch_size: int = 60,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Write and return `counterfactual.json`; reports that are there already are not written again.

    Args:
        models: of those that the run has evaluated; none: all but baselines.
        studies: so many of the run's test studies at most, evenly over the data sets it was trained on.

    Raises:
        EvaluationError: a model that was not evaluated, or whose weights have changed since.
    """
    chosen = list(models) or [model for model in run.models if model not in BASELINES]
    if unknown := [model for model in chosen if model not in run.folders or model in BASELINES]:
        raise EvaluationError(f"{unknown[0]} was not evaluated in {run.root}; there are {', '.join(run.models)}")
    out = run.root / FOLDER
    with folder_lock(out):
        found = {}
        for model in chosen:
            own = own_reports(run, model, studies)
            opposite = partial(opposite_priors, labeler=scorers.labeler)
            changed = {name: change(own.studies) for name, change in _changes(opposite).items()}
            reports = _written(run, model, changed, out / model, batch_size)
            found[model] = _numbers(own, changed, reports, scorers, out / model, resamples, seed)
            found[model]["against_baselines"] = _against_baselines(run, own, resamples, seed)
            found[model]["predictions_sha256"] = predictions_fingerprint(run, model)
        before = read_results(run)
        result = {
            "version": VERSION,
            "studies_at_most": studies,
            "datasets": run.pooled,
            "scorers": scorers.described(),
            "models": {**{m: v for m, v in before.items() if m not in found}, **found},
        }
        write_json(out / FILE, result)
    return result


# ---- studies and reports ---------------------------------------------------------------------------------------------


def _changes(opposite: Any) -> dict[str, Any]:
    return {
        "other_film": changed_studies.other_films,
        "blank_film": changed_studies.blank_films,
        "mirrored": changed_studies.mirrored_films,
        "exchanged": changed_studies.exchanged,
        "other_prior": changed_studies.other_priors,
        "no_prior": changed_studies.without_prior,
        "opposite_prior": opposite,
        "no_indication": changed_studies.without_indication,
    }


def own_reports(run: Run, model: str, at_most: int) -> Own:
    """A model's reports as they were evaluated, of at most so many studies, evenly over the pooled data sets."""
    datasets = [name for name in run.pooled if name in run.folders[model]]
    studies, rows, parts = [], [], []
    for number, dataset in enumerate(datasets):
        folder = run.folders[model][dataset]
        result = read_result(folder)
        made_by = result["made_by"]
        share = at_most // len(datasets) + (number < at_most % len(datasets))
        if not result.get("data"):
            raise EvaluationError(f"{folder} was scored without prepared data, so that no film can be changed")
        table = studies_of_data(result["data"], run.split(dataset))
        paired, _ = pair(
            table, read_predictions(folder / "predictions.json"), made_by["sections"], _form(made_by["reference_form"])
        )
        longitudinal = made_by.get("longitudinal") is not False
        paired = paired[:share]
        for row in paired:
            study = dict(row) if longitudinal else {**row, "prior_image": None, "prior_report": None}
            studies.append({**study, "reference_report": report_text(row["findings"], row["impression"])})
        rows += [{**row, "compared": made_by["sections"]} for row in paired]
        scores = run.scores(model, [dataset])
        at = {study_id: i for i, study_id in enumerate(scores.study_id)}
        parts.append(scores.take(np.array([at[row["study_id"]] for row in paired])))
    return Own(studies, rows, concatenate(parts))


def _form(described: Mapping[str, Any]) -> ReferenceForm:
    return ReferenceForm(described["text"], described["missing_section"])


def opposite_priors(studies: Sequence[Mapping[str, Any]], labeler: Labeler) -> list[dict[str, Any]]:
    """Each study with a prior, its report replaced by one that denies what that says is there and states what that denies."""
    longitudinal = [s for s in studies if s.get("prior_image") and s.get("prior_report")]
    labels = labeler.label([study["prior_report"] for study in longitudinal]) if longitudinal else []
    changed = []
    for study, classes in zip(longitudinal, labels, strict=True):
        said = {name: int(classes[i]) for i, name in enumerate(CONDITIONS) if name in _PHRASES}
        texts = [f"There is {_PHRASES[name]}." for name, value in said.items() if value == NEGATIVE]
        texts += [f"No {_PHRASES[name]}." for name, value in said.items() if value in (POSITIVE, UNCERTAIN)]
        if texts:
            changed.append({**study, "prior_report": f"Findings: {' '.join(texts)}"})
    return changed


def _written(
    run: Run, model: str, changed: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, batch_size: int
) -> dict[str, dict[tuple[str, str], str]]:
    """By change, the model's reports by data set and study."""
    made_by = read_record(next(iter(run.folders[model].values())) / "generation.json", "made_by")["made_by"]
    known = {field.name for field in fields(GenerationSettings)}
    settings = GenerationSettings(**{name: value for name, value in made_by.items() if name in known})
    if model_fingerprint(made_by["model"]) != made_by["model_sha256"]:
        raise EvaluationError(
            f"{made_by['model']} has changed since {model} was evaluated; evaluate it again with FORCE=1"
        )
    asked = [
        {**study, "study_id": f"{change}/{study['dataset']}/{study['study_id']}"}
        for change, studies in changed.items()
        for study in studies
    ]
    # Named by what decides the reports: another model or other changes never go on with them.
    decided = [VERSION, made_by["model_sha256"], made_by["data_sha256"], vars(settings)]
    key = hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:12]
    path = out / f"reports.{key}.jsonl"
    for old in set(out.glob("reports.*.jsonl")) - {path}:
        old.unlink()
    size = batch_size * VLLM_BATCHES if settings.engine == "vllm" else batch_size
    write_reports(asked, path, lambda: make_writer(made_by["model"], settings), size, title=f"{model}, changed")
    lines = {line["study_id"]: line["model_prediction"] for line in read_lines(path)}
    return {
        change: {
            (study["dataset"], study["study_id"]): lines[f"{change}/{study['dataset']}/{study['study_id']}"]
            for study in studies
        }
        for change, studies in changed.items()
    }


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(
    own: Own,
    changed: Mapping[str, Sequence[Mapping[str, Any]]],
    reports: Mapping[str, Mapping[tuple[str, str], str]],
    scorers: Scorers,
    out: Path,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    texts = [row["candidate"] for row in own.rows]
    most = Counter(texts).most_common(1)[0][1]
    numbers: dict[str, Any] = {
        "studies": len(texts),
        "patients": len(set(own.scores.patient_id)),
        "distinct_reports": len(set(texts)),
        "most_frequent_report": most,
        "changes": {},
    }
    places = {(row["dataset"], row["study_id"]): i for i, row in enumerate(own.rows)}
    for change, written in reports.items():
        keep = np.array([places[key] for key in written], dtype=int)
        if not len(keep):
            continue
        # Time turned round, the right reference is the prior's report, and the right prior the current one's.
        right = {(s["dataset"], s["study_id"]): s for s in changed[change]}
        rows = [
            _changed_row(own.rows[i], report, change, own.studies[i])
            for i, report in zip(keep, written.values(), strict=True)
        ]
        scores = _scored(rows, scorers, out / f"{change}.scores.jsonl")
        found = _of_change(own.scores.take(keep), scores, change)
        before = [own.rows[i]["candidate"] for i in keep]
        after = [row["candidate"] for row in rows]
        found["unchanged"] = statistics.mean(
            np.array([a == b for a, b in zip(before, after, strict=True)], dtype=float)
        )
        if change == "exchanged":
            found["change_words_turned"] = statistics.mean(_turned(before, after, _direction))
        if change == "mirrored":
            found["sides_turned"] = statistics.mean(_turned(before, after, _side))
        if change == "opposite_prior":
            said = scorers.labeler.label([right[key]["prior_report"] for key in written])
            found["copies_prior"] = statistics.mean(_led(said, own.scores.take(keep), scores))
        intervals = statistics.bootstrap(found, scores.patient_id, resamples=resamples, seed=seed)
        told = {name: {**i.as_dict(), "n": _known(found[name])} for name, i in intervals.items()}
        numbers["changes"][change] = {"studies": len(keep), "distinct_reports": len(set(after)), **told}
    film, prior, opposite = (numbers["changes"].get(c, {}) for c in ("other_film", "other_prior", "opposite_prior"))
    numbers["looks_at_film"] = film.get("micro_f1")
    numbers["uses_prior"] = prior.get("composite")
    numbers["copies_prior"] = opposite.get("copies_prior")
    return numbers


def _known(statistic: Any) -> int:
    return statistic.studies if isinstance(statistic, Statistic) else min(s.studies for _, s in statistic.terms)


def _changed_row(row: Mapping[str, Any], report: str, change: str, study: Mapping[str, Any]) -> dict[str, Any]:
    asked = [name for name in ("findings", "impression") if row.get(name)]
    candidate = candidate_text(report, row["compared"], asked)
    reference = study["prior_report"] if change == "exchanged" else row["reference"]
    return {**row, "candidate": candidate, "reference": reference}


def _scored(rows: Sequence[Mapping[str, Any]], scorers: Scorers, path: Path) -> Scores:
    truth = {}
    for folder in {row["folder"] for row in rows}:
        truth |= read_truth(Path(folder), [row for row in rows if row["folder"] == folder]) or {}
    with path.open("w", encoding="utf-8") as file:
        for line in score_lines(rows, scorers, truth if len(truth) >= len({r["study_id"] for r in rows}) else None):
            # A study id may be in two data sets.
            file.write(
                json.dumps({**line, "study_id": f"{line['dataset']}/{line['study_id']}"}, ensure_ascii=False) + "\n"
            )
    return Scores.read(path)


def _of_change(before: Scores, after: Scores, change: str) -> dict[str, Any]:
    """How far each number falls (own report − changed one), and the share of labels that are others.

    Turned round in time, the reference is another: scores are then of the changed report alone, no fall.
    """
    found: dict[str, Any] = {}
    names = {name: name.split("[")[0] for name in after.metrics if name in before.metrics}
    kind = "truth" if "truth" in before.labels and "truth" in after.labels else "reference"
    own, new = binary_labels(before.labels["candidate"]), binary_labels(after.labels["candidate"])
    if change != "exchanged":
        for name, short in names.items():
            found[short] = statistics.difference(
                statistics.mean(before.metrics[name]), statistics.mean(after.metrics[name])
            )
        labels = binary_labels(before.labels[kind])
        found["micro_f1"] = statistics.difference(statistics.f1(labels, own), statistics.f1(labels, new))
    found["labels_changed"] = statistics.mean((own != new).mean(axis=1))
    return found


def _led(said: np.ndarray, before: Scores, after: Scores) -> np.ndarray:
    """How much more often a report agrees with a prior that says `said` (classes [n, 14]) when that is shown: [n], −1 to 1."""
    mentioned = said != 0
    mentioned[:, CONDITIONS.index("No Finding")] = False
    there = binary_labels(said).astype(bool)
    agree = [
        np.where(mentioned, binary_labels(scores.labels["candidate"]).astype(bool) == there, False).sum(axis=1)
        for scores in (after, before)
    ]
    number = mentioned.sum(axis=1)
    return np.where(number > 0, (agree[0] - agree[1]) / np.maximum(number, 1), np.nan)


def _turned(before: Sequence[str], after: Sequence[str], which: Any) -> np.ndarray:
    """Of reports that speak of one of two opposites, 1.0 where the changed one speaks of the other, else 0.0; NaN elsewhere."""
    pairs = [(which(a), which(b)) for a, b in zip(before, after, strict=True)]
    return np.array([np.nan if not a else float(b == -a) for a, b in pairs])


def _direction(report: str) -> int:
    """1: worse, −1: better, 0: neither (temporal.py's rules)."""
    category = CATEGORIES[int(label_by_rules([report], [True])[0])]
    return {"progression": 1, "new development": 1, "regression": -1}.get(category, 0)


def _side(report: str) -> int:
    """1: left alone is named, −1: right alone, 0: none or both."""
    left, right = (bool(pattern.search(report)) for pattern in _SIDES.values())
    return int(left) - int(right)


def _against_baselines(run: Run, own: Own, resamples: int, seed: int) -> dict[str, Any]:
    """Composite reward of the own reports less that of baselines that see no film, on the same studies."""
    found = {}
    for name in ("most_frequent", "retrieval"):
        if name not in run.folders:
            continue
        scores = run.scores(name, run.pooled)
        places = {key: i for i, key in enumerate(zip(scores.fields["dataset"], scores.study_id, strict=True))}
        keys = [(row["dataset"], row["study_id"]) for row in own.rows]
        composite = next((metric for metric in own.scores.metrics if metric.startswith("composite")), None)
        if composite is None or composite not in scores.metrics or not set(keys) <= set(places):
            continue
        other = scores.take(np.array([places[key] for key in keys]))
        both = statistics.difference(
            statistics.mean(own.scores.metrics[composite]), statistics.mean(other.metrics[composite])
        )
        interval = statistics.bootstrap({"composite": both}, own.scores.patient_id, resamples=resamples, seed=seed)
        found[name] = interval["composite"].as_dict()
    return found
