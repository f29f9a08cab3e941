"""Score a prediction file: one line of `scores.jsonl` per study, the means with their intervals in `scores.json`.

    python -m evaluation score --predictions P.json --data data/mimic --split test --out DIR --backend real

Any model's file in ReXrank's form can be scored. Scoring goes chunk by chunk: memory does not grow with the number of
studies, and a killed run resumes where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.study import ids_fingerprint
from evaluation import statistics
from evaluation.predictions import (
    Problems,
    ReferenceForm,
    failed_studies,
    pair,
    read_predictions,
    studies_of_data,
    studies_of_file,
)
from evaluation.published import test_file_of, test_file_of_references
from evaluation.references import described as references_described
from evaluation.score_rows import _score_rows, keep_lines
from evaluation.scorers import Scorers
from evaluation.scores import Scores, summarise
from foundation.errors import EvaluationError, RecipeError, read_json, read_record
from foundation.files import sha256_of, write_json
from foundation.governance import claimed_source
from foundation.locks import folder_lock
from rewards.conditions import CONDITIONS

_LISTED = 100  # ids listed per problem in scores.json; the counts are of all


def score(
    rows: Sequence[Mapping[str, Any]],
    problems: Problems,
    scorers: Scorers,
    out: Path,
    made_by: Mapping[str, Any],
    command: str = "",
    data: str | None = None,
    truth: Mapping[str, np.ndarray] | None = None,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Score paired rows (`predictions.pair`) and write `scores.jsonl` and `scores.json` in `out`; returns the latter.

    Args:
        made_by: what else decides the numbers (prediction file, references, sections), with fingerprints.
        command, data: the command line that does the same, and the prepared folder; written beside the result.
        truth: true labels int [14] by study id, where the data has them (phantoms).
    """
    rows = with_known_encounters(rows)
    described = {**made_by, "scorers": scorers.described(), "resamples": resamples, "seed": seed}
    described = json.loads(json.dumps(described))
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    with folder_lock(out):
        finished = None if force else _finished_scores(out, key, len(rows))
        if finished:
            return finished
        if force or _recorded_key(out / "scores.state.json") != key:
            (out / "scores.partial.jsonl").unlink(missing_ok=True)
            write_json(out / "scores.state.json", {"key": key})
        return _score(rows, problems, scorers, out, key, described, command, data, truth, resamples, seed)


def _finished_scores(out: Path, key: str, studies: int) -> dict[str, Any] | None:
    """`scores.json` where these scores are finished, and `scores.jsonl` is as it was written; else None, and it says why."""
    path = out / "scores.json"
    if not path.is_file() or not (out / "scores.jsonl").is_file():
        return None
    try:
        before = read_json(path)
    except RecipeError:
        before = None
    if before is None or before.get("key") != key:
        print(f"{out}: scores there were made otherwise, or are damaged; scoring again")
        return None
    if before.get("studies") != studies or before.get("scores_sha256") != sha256_of(out / "scores.jsonl"):
        print(f"{out}: scores.jsonl is not as it was written; scoring again")
        return None
    print(f"{out}: scores finished already (--force scores again)")
    return before


def _recorded_key(state: Path) -> str | None:
    """What decides the numbers of the lines so far; None where nothing says so."""
    try:
        return read_json(state).get("key")
    except (RecipeError, FileNotFoundError):
        return None


def _score(
    rows: Sequence[Mapping[str, Any]],
    problems: Problems,
    scorers: Scorers,
    out: Path,
    key: str,
    described: Mapping[str, Any],
    command: str,
    data: str | None,
    truth: Mapping[str, np.ndarray] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    final, partial, state = out / "scores.jsonl", out / "scores.partial.jsonl", out / "scores.state.json"
    done = keep_lines(partial, {row["study_id"] for row in rows})
    todo = [row for row in rows if row["study_id"] not in done]
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(rows), initial=len(done), desc="scores", unit="study") as bar,
    ):
        asyncio.run(_score_rows(todo, scorers, truth, file, bar))
    scores = Scores.read(partial)
    if sorted(scores.study_id) != sorted(row["study_id"] for row in rows):
        raise EvaluationError(f"{partial} does not hold each study once; score again with --force")
    result = {
        "key": key,
        "scores_sha256": sha256_of(partial),
        "command": f"{command} --out {out}",
        "data": data,
        "made_by": described,
        "studies": len(scores.study_id),
        "study_ids_sha256": ids_fingerprint(scores.study_id),
        "datasets": sorted(set(scores.fields["dataset"])),
        "patients": len(set(scores.patient_id)),
        "counts": problems.counts(),
        "listed": {name: ids[:_LISTED] for name, ids in vars(problems).items() if ids},
        "judge_failures": scores.judge_failures(),
        "metric_failures": scores.metric_failures,
        "skipped_metrics": dict(scorers.skipped),
        **summarise(scores, described["scorers"], resamples, seed),
    }
    os.replace(partial, final)
    write_json(out / "scores.json", result)
    state.unlink()
    return result


def with_known_encounters(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, `encounter` None where it is not known: prepared data call a study without a date a first one.

    Known are studies with a date and, in a data set without dates, all studies if some come after others.
    """
    timed = {row["dataset"] for row in rows if row.get("study_datetime")}
    ordered = {row["dataset"] for row in rows if (row.get("encounter") or 1) > 1} - timed
    return [
        {**row, "encounter": row.get("encounter") if row.get("study_datetime") or row["dataset"] in ordered else None}
        for row in rows
    ]


def score_file(
    predictions: Path,
    scorers: Scorers,
    out: Path,
    references: Path | None = None,
    data: Path | None = None,
    split: str = "test",
    dataset: str | None = None,
    sections: str = "available",
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
    force: bool = False,
    form: ReferenceForm = ReferenceForm(),  # noqa: B008 (it is frozen)
) -> dict[str, Any]:
    """Score a prediction file against a prepared split, a ReXrank test file, or the references that it holds itself.

    Raises:
        EvaluationError: both `references` and `data`, an unreadable file, or no study in common.
        StudyError: no such prepared data.
    """
    if references and data:
        raise EvaluationError("give --references or --data, not both")
    file = read_predictions(predictions)
    source = {"predictions_sha256": file.fingerprint, "sections": sections, "longitudinal": priors_shown(predictions)}
    command = (
        f"python -m evaluation score --predictions {predictions} --sections {sections} --backend {scorers.backend}"
        f" --reference_form {form.text} --missing_section {form.missing_section}"
    )
    truth = None
    if data:
        studies = studies_of_data(data, split)
        truth = read_truth(data, studies)
        command += f" --data {data} --split {split}"
        source |= {"references": f"{data.name}/{split}", "references_sha256": sha256_of(data / f"{split}.parquet")}
        source |= {"test_file": test_file_of(data) if split == "test" else None}
    else:
        reference_file = read_predictions(references) if references else file
        studies = studies_of_file(reference_file)
        command += f" --references {references}" if references else ""
        source |= {"references": reference_file.path.name, "references_sha256": reference_file.fingerprint}
        source |= {"test_file": test_file_of_references(reference_file.entries) if references else None}
    if dataset:
        named = {study["study_id"]: claimed_source(study["dataset"], dataset) for study in studies if "source" in study}
        studies = [{**s, "dataset": dataset, "source": named.get(s["study_id"], dataset)} for s in studies]
    lost = failed_studies(predictions)
    rows, problems = pair([study for study in studies if study["study_id"] not in lost], file, sections, form)
    problems.failed = [study["study_id"] for study in studies if study["study_id"] in lost]
    source["reference_form"] = references_described(rows, sections, form)
    out.mkdir(parents=True, exist_ok=True)
    if scorers.judge is not None:
        command += f" --judge {scorers.judge.settings.judge_base_url} --judge_model {scorers.judge.model}"
    return score(rows, problems, scorers, out, source, command, data and str(data), truth, resamples, seed, force)


def priors_shown(predictions: Path) -> bool | None:
    """Whether the model saw prior studies, from the file beside its predictions; None where nothing says so."""
    path = predictions.parent / "generation.json"
    if not path.is_file():
        return None
    return read_record(path, "made_by")["made_by"].get("longitudinal")


def read_truth(data: Path, studies: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray] | None:
    """True labels 0/1 int8 [14] by study id of a prepared folder; None where it has no truth.parquet.

    Raises:
        EvaluationError: a column or a study is missing in it.
    """
    path = data / "truth.parquet"
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise EvaluationError(f"{path} is not a Parquet table ({error}); prepare the data again") from error
    if missing := [name for name in ("study_id", *CONDITIONS) if name not in table.column_names]:
        raise EvaluationError(f"{path} has no column {missing[0]!r}; prepare the data again")
    labels = np.stack([table.column(name).to_numpy() for name in CONDITIONS], axis=1).astype(np.int8)
    truth = dict(zip(table.column("study_id").to_pylist(), labels, strict=True))
    if unknown := [study["study_id"] for study in studies if study["study_id"] not in truth]:
        raise EvaluationError(f"{path} has no labels of study {unknown[0]}; prepare the data again")
    return truth
