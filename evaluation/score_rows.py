"""Candidates and references in, a line a study out: scored, judged and written in chunks, resumed from what is written."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from evaluation import temporal
from evaluation.graphs import MarkedEntity, marked_graphs
from evaluation.scorers import COMPOSITE_WEIGHTS, Scorers
from foundation.errors import EvaluationError
from foundation.governance import JudgeError
from rewards.chexprompt.ratings import patient_context
from rewards.metric import MetricError
from rewards.radcliq import PARTS
from rewards.radgraph import RadGraphF1

CHUNK = 256  # studies scored, judged and written at a time

_COPIED = (
    "study_id", "patient_id", "dataset", "split", "encounter", "sex", "age", "race", "findings", "impression",
    "indication", "comparison", "prior_report", "image", "prior_image", "reference", "candidate", "status",
)  # fmt: skip


def keep_lines(partial: Path, studies: Collection[str]) -> set[str]:
    """The studies that a file of lines has; lines of other studies, second ones of a study and damaged ones are taken out."""
    if not partial.is_file():
        return set()
    done: set[str] = set()
    dropped = 0
    temporary = partial.with_name(f".{partial.name}.{os.getpid()}.tmp")
    with partial.open("rb") as before, temporary.open("wb") as after:
        for line in before:
            try:
                study = json.loads(line)["study_id"] if line.endswith(b"\n") else None
            except (ValueError, KeyError, TypeError, RecursionError):
                study = None
            if study not in studies or study in done:
                dropped += line.endswith(b"\n")  # the last one of a killed run is not worth a word
                continue
            done.add(study)
            after.write(line)
    os.replace(temporary, partial)
    if dropped:
        print(
            f"{partial}: {dropped} line(s) left out that are damaged, twice there, or of studies that were not asked for"
        )
    return done


async def _score_rows(
    todo: Sequence[Mapping[str, Any]],
    scorers: Scorers,
    truth: Mapping[str, np.ndarray] | None,
    file: TextIO,
    bar: tqdm,
) -> None:
    """All chunks in one event loop, because the judge keeps its connections open between them.

    Raises:
        EvaluationError: the judge cannot be used, or has stopped; what is scored so far is kept.
    """
    try:
        for rater in scorers.asked if todo else ():
            rater.check_sources({source_of(row) for row in todo})
            await rater.check()
        await _score_chunks(todo, scorers, truth, file, bar)
    except (JudgeError, MetricError) as error:
        raise EvaluationError(str(error)) from error


async def _score_chunks(
    todo: Sequence[Mapping[str, Any]],
    scorers: Scorers,
    truth: Mapping[str, np.ndarray] | None,
    file: TextIO,
    bar: tqdm,
) -> None:
    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        lines = await _score_chunk(chunk, scorers, truth)
        if stopped := [rater.stopped for rater in scorers.asked if rater.stopped]:
            raise EvaluationError(f"{stopped[0]}; run the same command again to resume")
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        bar.update(len(chunk))


async def _score_chunk(
    rows: Sequence[Mapping[str, Any]], scorers: Scorers, truth: Mapping[str, np.ndarray] | None
) -> list[dict[str, Any]]:
    candidates, references = [row["candidate"] for row in rows], [row["reference"] for row in rows]

    def local() -> tuple[dict[str, np.ndarray], np.ndarray, list[list[MarkedEntity]] | None]:
        by_name = {name: metric(candidates, references) for name, metric in scorers.metrics.items()}
        values = {scorers.metrics[name].name: value for name, value in by_name.items()}
        if scorers.radcliq:
            values[scorers.radcliq.name] = scorers.radcliq.formula(*(by_name[p].astype(np.float64) for p in PARTS))
        graph = scorers.metrics.get("radgraph")
        # The graphs that were just compared: they are cached, and kept for whoever looks at a study.
        graphs = marked_graphs(graph, references + candidates) if isinstance(graph, RadGraphF1) else None
        return values, scorers.labeler.label(references + candidates), graphs

    # Local metrics run in a thread while the language models' calls are in flight.
    waiting = [asyncio.to_thread(local)]
    governed = [source_of(row) for row in rows]
    if scorers.judge is not None:
        waiting.append(scorers.judge.judge(candidates, references, governed))
    contexts = [patient_context(row.get("age"), row.get("indication")) for row in rows]
    for metric in scorers.llm_metrics.values():
        waiting.append(metric.judge(candidates, references, governed, contexts=contexts))
    (values, labels, graphs), *judged = await asyncio.gather(*waiting)
    asked = dict(zip(scorers.llm_metrics.values(), judged[len(judged) - len(scorers.llm_metrics) :], strict=True))
    judged = judged[: len(judged) - len(asked)]
    composite = None
    if name := scorers.composite_name():
        composite = sum(w * values[scorers.metrics[m].name] for m, w in COMPOSITE_WEIGHTS.items())
    priors = [_has_prior(row) for row in rows]
    if scorers.temporal_by_judge:
        categories = await temporal.label_by_judge(references, priors, governed, scorers.judge)
    else:
        categories = [temporal.CATEGORIES[i] for i in temporal.label_by_rules(references, priors)]
    lines = []
    for i, row in enumerate(rows):
        line = {key: row.get(key) for key in _COPIED}
        line["temporal"] = categories[i]
        line["metrics"] = {metric: round(float(value[i]), 6) for metric, value in values.items()}
        if composite is not None:
            line["metrics"][name] = round(float(composite[i]), 6)
        for metric, results in asked.items():
            given = results[i].judgement
            line["metrics"][metric.name] = None if given is None else round(given.score, 6)
            line.setdefault("asked", {})[metric.name] = results[i].failure or dict(given.counts)
        line["labels"] = {"reference": labels[i].tolist(), "candidate": labels[len(rows) + i].tolist()}
        if truth is not None:
            line["labels"]["truth"] = np.asarray(truth[row["study_id"]]).tolist()
        if graphs:
            line["graph"] = {"reference": graphs[i], "candidate": graphs[len(rows) + i]}
        if judged:
            result = judged[0][i]
            line["judge"] = result.judgement and {
                "significant": list(result.judgement.significant),
                "insignificant": list(result.judgement.insignificant),
            }
            line["judge_failure"] = result.failure
        lines.append(line)
    return lines


def source_of(row: Mapping[str, Any]) -> str | None:
    """The data set by which a row's report is governed: of a prediction file not what the file says, unless that closes it."""
    return row["source"] if "source" in row else row["dataset"]


def _has_prior(row: Mapping[str, Any]) -> bool | None:
    """Whether there was an earlier study; None where neither priors, encounters nor the comparison section say."""
    if row.get("prior_report") or row.get("prior_study_id") or (row.get("encounter") or 1) > 1:
        return True
    if row.get("encounter") == 1:
        return False
    return temporal.speaks_of_a_prior(f"Comparison: {row['comparison']}") if row.get("comparison") else None


def score_lines(
    rows: Sequence[Mapping[str, Any]], scorers: Scorers, truth: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """The lines of `scores.jsonl` of paired rows, by metrics and labels alone: nothing is written, no judge is asked.

    Raises:
        EvaluationError: a metric cannot score them.
    """
    local = replace(scorers, judge=None, temporal_by_judge=False, llm_metrics={})
    try:
        chunks = [
            asyncio.run(_score_chunk(rows[start : start + CHUNK], local, truth)) for start in range(0, len(rows), CHUNK)
        ]
    except MetricError as error:
        raise EvaluationError(str(error)) from error
    return [line for chunk in chunks for line in chunk]
