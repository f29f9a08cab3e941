"""A run's predictions and scores as a folder that others can score again, and no more than a licence lets one pass on.

    python -m evaluation share --outputs outputs/demo --out shared/demo

It holds study ids, candidates, settings and fingerprints; no reference, no prior, no indication, no image, no patient. Whoever has
the data set scores it with `python -m evaluation score --predictions … --data …`. What a model writes of films whose agreement
forbids passing on (MIMIC-CXR, CheXpert Plus, ReXGradient, a hospital's own) is refused unless the user says by name that theirs
allows it. Baselines are left out: their reports are references of other studies, word for word.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from evaluation.compare import read_result
from evaluation.predictions import read_predictions
from evaluation.run_folder import MAIN, Run, evaluations, read_run
from foundation.errors import EvaluationError, read_record
from foundation.files import sha256_of, write_json, write_text
from foundation.governance import is_open
from settings.evaluations import BASELINES

# What each source's terms say of texts that a model writes from its films. Others count as closed.
TERMS = {
    "mimic": "PhysioNet Credentialed Health Data License 1.5.0: access to the data is shared with nobody else; PhysioNet asks that what derives from them be treated as they are (our reading: so are reports that a model wrote of them).",
    "chexpert_plus": "Stanford University Dataset Research Use Agreement: no copies to others without specific prior written permission.",
    "rexgradient": "ReXGradient-160K Non-Commercial Data Access and Use Agreement: non-commercial, non-clinical, attribution to Gradient Health; our reading: not passed on.",
    "iu_xray": "CC BY-NC-ND 4.0: reports of a model and study ids, with attribution to Open-i (Indiana University), not for commerce.",
}
_PHANTOM = "Phantoms: drawn and written by this project, nobody's data."
# Of a line of scores: numbers alone. Labels of the references would tell of them.
_NUMBERS = ("study_id", "dataset", "split", "metrics", "judge", "judge_failure")


def share(outputs: Path, out: Path, allowed: Collection[str] = (), force: bool = False) -> dict[str, Any]:
    """Write the folder and return its manifest.

    Args:
        allowed: closed data sets whose agreement lets the user pass on what a model wrote of them.
        force: replace what is there.

    Raises:
        EvaluationError: a data set is closed and not among `allowed`; `out` is there; nothing was scored.
    """
    runs = {name: read_run(outputs, name) for name in evaluations(outputs)} or {MAIN: read_run(outputs)}
    datasets = sorted({dataset for run in runs.values() for dataset in run.datasets})
    if closed := [name for name in datasets if not is_open(name) and name not in allowed]:
        raise EvaluationError(
            f"what a model wrote of {', '.join(closed)} is not shared: {TERMS.get(closed[0], 'its licence is not known here.')} Where "
            f"your agreement allows it, say so: --i_may_share {' '.join(closed)}"
        )
    if out.exists() and not force:
        raise EvaluationError(f"{out} is there already; --force replaces it")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        shared = [
            _share_one(run, dataset, model, temporary / evaluation / dataset / model)
            for evaluation, run in runs.items()
            for model in run.models
            if model not in BASELINES
            for dataset in run.folders[model]
        ]
        manifest = {
            "run": outputs.name,
            "terms": {name: terms_of(name) for name in datasets},
            "left_out": "references, priors, indications, images, patients, labels of references; baselines",
            "shared": shared,
        }
        write_json(temporary / "manifest.json", manifest)
        write_text(temporary / "README.md", _readme(outputs.name, manifest))
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def terms_of(dataset: str) -> str:
    """What may be passed on of a data set, in words."""
    if dataset.startswith("phantom_"):
        return _PHANTOM
    return TERMS.get(dataset, "Not known here; shared because the user says that their agreement allows it.")


def _share_one(run: Run, dataset: str, model: str, folder: Path) -> dict[str, Any]:
    """Copy what may be passed on of one model and data set; its row of the manifest."""
    source = run.folders[model][dataset]
    entries = read_predictions(source / "predictions.json").entries
    candidates = {key: {"model_prediction": entry.get("model_prediction")} for key, entry in entries.items()}
    write_json(folder / "predictions.json", candidates)
    lines = []
    with (source / "scores.jsonl").open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            lines.append(json.dumps({name: line[name] for name in _NUMBERS if name in line}, ensure_ascii=False))
    write_text(folder / "scores.jsonl", "\n".join(lines) + "\n")
    result = read_result(source)
    generation = source / "generation.json"
    settings = read_record(generation).get("made_by", {}) if generation.is_file() else {}
    made_by = {name: value for name, value in settings.items() if name != "model"}  # its path is nobody's business
    scored = {
        name: result[name] for name in ("studies", "patients", "study_ids_sha256", "counts", "metrics", "made_by")
    }
    write_json(folder / "scores.json", scored)
    write_json(folder / "generation.json", {"made_by": made_by})
    files = ("predictions.json", "scores.jsonl", "scores.json", "generation.json")
    return {
        "evaluation": folder.parent.parent.name,
        "dataset": dataset,
        "model": model,
        "studies": result["studies"],
        "sections": result["made_by"]["sections"],
        "files": {name: sha256_of(folder / name) for name in files},
    }


def _readme(run: str, manifest: Mapping[str, Any]) -> str:
    rows = [f"| {s['evaluation']} | {s['dataset']} | {s['model']} | {s['studies']:,} |" for s in manifest["shared"]]
    first = manifest["shared"][0]
    folder = f"{first['evaluation']}/{first['dataset']}/{first['model']}"
    return "\n".join(
        [
            f"# Predictions and scores of {run}",
            "",
            "Written by models, checked by nobody; for research, not for diagnosis. No reference, prior, indication, image or "
            "patient is in here.",
            "",
            "| evaluation | data set | model | studies |",
            "|---|---|---|---|",
            *rows,
            "",
            "Whoever has the data set scores them again:",
            "",
            f"    python -m evaluation score --predictions {folder}/predictions.json --data data/{first['dataset']} "
            f"--sections {first['sections']} --out again",
            "",
            "`scores.json` has the numbers with the backends and fingerprints that made them, `manifest.json` the sha256 of each file.",
            "",
            "## Terms",
            "",
            *(f"- **{name}**: {terms}" for name, terms in manifest["terms"].items()),
            "",
        ]
    )
