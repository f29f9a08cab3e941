"""Score a prediction file: one line of `scores.jsonl` per study, the means with their intervals in `scores.json`.

    python -m evaluation score --predictions P.json --data data/mimic --split test --out DIR --backend real

Any model's file in ReXrank's form can be scored. Scoring goes chunk by chunk: memory does not grow with the number of
studies, and a killed run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from common.errors import EvaluationError, RecipeError, read_json, read_record
from common.files import sha256_of, write_json
from common.governance import JudgeError, claimed_source
from common.locks import folder_lock
from data_prep.study import ids_fingerprint
from evaluation import statistics, temporal
from evaluation.graphs import MarkedEntity, marked_graphs
from evaluation.names import split_number
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
from evaluation.statistics import Statistic
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS, TOP_FIVE, Labeler, binary_labels
from rewards.metric import Metric, MetricError
from rewards.radcliq import PARTS, RadCliQ
from rewards.radgraph import RadGraphF1

# Paper, Optimization: the composite reward of step 1. It is shown beside the metrics because it is what RL optimises.
COMPOSITE_WEIGHTS = {"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
METRICS = ("bleu2", "bertscore", "sembscore", "radgraph")
OPTIONAL_METRICS = ("ratescore",)  # scored where its package and weights are; named as skipped elsewhere
# One family of tests, beside micro-F1 over all conditions and the judge's errors; RadCliQ-v1 stands for its inverse too.
PRINCIPAL = ("radcliq_v1", "composite")
COMMON = 5  # patients who have a condition, from which on it is common enough for an interval of macro-F1
CHUNK = 256  # studies scored, judged and written at a time

_COPIED = (
    "study_id", "patient_id", "dataset", "split", "encounter", "sex", "age", "race", "findings", "impression",
    "indication", "comparison", "prior_report", "image", "prior_image", "reference", "candidate", "status",
)  # fmt: skip
_LISTED = 100  # ids listed per problem in scores.json; the counts are of all


@dataclass(frozen=True)
class Scorers:
    """What scores: metrics by bare name, a labeler, perhaps a judge."""

    backend: str
    metrics: Mapping[str, Metric]
    labeler: Labeler
    judge: Judge | None = None
    temporal_by_judge: bool = False  # label change by the judge's model, not by rules
    skipped: Mapping[str, str] = field(default_factory=dict)  # optional metrics that are not scored, and why

    def described(self) -> dict[str, Any]:
        """Names, backends and fingerprints: what makes a number what it is."""
        return {
            "backend": self.backend,
            "metrics": {
                m.name: {
                    "backend": m.backend,
                    "fingerprint": m.fingerprint,
                    "range": [float(bound) if np.isfinite(bound) else None for bound in m.range],
                    "higher_is_better": m.higher_is_better,
                }
                for m in [*self.metrics.values(), *([self.radcliq] if self.radcliq else [])]
            },
            "labels": {"backend": self.labeler.backend, "fingerprint": self.labeler.fingerprint},
            "judge": self.judge
            and {"name": self.judge.name, "model": self.judge.model, "fingerprint": self.judge.fingerprint},
            "composite": {"name": self.composite_name(), "weights": COMPOSITE_WEIGHTS},
            "skipped": sorted(self.skipped),
            "temporal": {"backend": self.judge.model, "fingerprint": temporal.PROMPT_VERSION}
            if self.temporal_by_judge and self.judge
            else {"backend": temporal.RULES_NAME, "fingerprint": temporal.RULES_VERSION},
        }

    @cached_property
    def radcliq(self) -> RadCliQ | None:
        """RadCliQ-v1 over the metrics that are scored anyway; None where one of its parts is not."""
        return RadCliQ("v1", self.metrics) if set(PARTS) <= set(self.metrics) else None

    def composite_name(self) -> str | None:
        """`composite`, marked as a stand-in where a part of it is one; None where a part is not scored."""
        if not set(COMPOSITE_WEIGHTS) <= set(self.metrics):
            return None
        return "composite" + ("[offline]" if any("[" in self.metrics[m].name for m in COMPOSITE_WEIGHTS) else "")


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
        "skipped_metrics": dict(scorers.skipped),
        **summarise(scores, described["scorers"], resamples, seed),
    }
    os.replace(partial, final)
    write_json(out / "scores.json", result)
    state.unlink()
    return result


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
        if scorers.judge is not None and todo:
            scorers.judge.check_sources({_source(row) for row in todo})
            await scorers.judge.check()
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
        if scorers.judge is not None and scorers.judge.stopped:
            raise EvaluationError(f"{scorers.judge.stopped}; run the same command again to go on")
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

    # Local metrics run in a thread while the judge's calls are in flight.
    waiting = [asyncio.to_thread(local)]
    if scorers.judge is not None:
        waiting.append(scorers.judge.judge(candidates, references, [_source(row) for row in rows]))
    (values, labels, graphs), *judged = await asyncio.gather(*waiting)
    composite = None
    if name := scorers.composite_name():
        composite = sum(w * values[scorers.metrics[m].name] for m, w in COMPOSITE_WEIGHTS.items())
    priors, sources = [_has_prior(row) for row in rows], [_source(row) for row in rows]
    if scorers.temporal_by_judge:
        categories = await temporal.label_by_judge(references, priors, sources, scorers.judge)
    else:
        categories = [temporal.CATEGORIES[i] for i in temporal.label_by_rules(references, priors)]
    lines = []
    for i, row in enumerate(rows):
        line = {key: row.get(key) for key in _COPIED}
        line["temporal"] = categories[i]
        line["metrics"] = {metric: round(float(value[i]), 6) for metric, value in values.items()}
        if composite is not None:
            line["metrics"][name] = round(float(composite[i]), 6)
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


def score_lines(
    rows: Sequence[Mapping[str, Any]], scorers: Scorers, truth: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """The lines of `scores.jsonl` of paired rows, by metrics and labels alone: nothing is written, no judge is asked.

    Raises:
        EvaluationError: a metric cannot score them.
    """
    local = replace(scorers, judge=None, temporal_by_judge=False)
    try:
        chunks = [
            asyncio.run(_score_chunk(rows[start : start + CHUNK], local, truth)) for start in range(0, len(rows), CHUNK)
        ]
    except MetricError as error:
        raise EvaluationError(str(error)) from error
    return [line for chunk in chunks for line in chunk]


def _source(row: Mapping[str, Any]) -> str | None:
    """The data set by which a row's report is governed: of a prediction file not what the file says, unless that closes it."""
    return row["source"] if "source" in row else row["dataset"]


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


def _has_prior(row: Mapping[str, Any]) -> bool | None:
    """Whether there was an earlier study; None where neither priors, encounters nor the comparison section say."""
    if row.get("prior_report") or row.get("prior_study_id") or (row.get("encounter") or 1) > 1:
        return True
    if row.get("encounter") == 1:
        return False
    return temporal.speaks_of_a_prior(f"Comparison: {row['comparison']}") if row.get("comparison") else None


@dataclass
class Scores:
    """The numbers of a `scores.jsonl`, as columns over studies; the texts stay in the file.

    Attributes:
        metrics: float64 [n] by full metric name.
        labels: classes int8 [n, 14] of `reference` and `candidate`, and 0/1 of `truth` where the data has them.
        significant, insignificant: the judge's counts, float64 [n, 6], NaN where it failed; None without a judge.
    """

    study_id: list[str] = field(default_factory=list)
    patient_id: list[str] = field(default_factory=list)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    significant: np.ndarray | None = None
    insignificant: np.ndarray | None = None
    failures: list[str | None] = field(default_factory=list)

    FIELDS = (
        "dataset",
        "split",
        "encounter",
        "sex",
        "age",
        "race",
        "temporal",
        "status",
        "sections",
        "words",
        "candidate_words",
        "reference_sha",
        "most_frequent_report",  # of a baseline: whether it had nothing else to give (`run_folder.Run`)
    )

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Raises EvaluationError where the file is missing or not a scores file."""
        scores = cls(fields={name: [] for name in cls.FIELDS})
        metrics: dict[str, list[float]] = {}
        labels: dict[str, list[list[int]]] = {}
        counts: dict[str, list[list[float]]] = {"significant": [], "insignificant": []}
        try:
            with Path(path).open(encoding="utf-8") as file:
                for text in file:
                    line = json.loads(text)
                    scores.study_id.append(line["study_id"])
                    scores.patient_id.append(f"{line['dataset']}/{line['patient_id']}")
                    line["sections"] = "+".join(s for s in ("findings", "impression") if line.get(s)) or "unknown"
                    line["words"] = len(line["reference"].split())
                    line["candidate_words"] = len(line["candidate"].split())
                    line["reference_sha"] = hashlib.sha256(line["reference"].encode()).digest()[:8]
                    for name in cls.FIELDS:
                        scores.fields[name].append(line.get(name))
                    for name, value in line["metrics"].items():
                        metrics.setdefault(name, []).append(value)
                    for name, value in line["labels"].items():
                        labels.setdefault(name, []).append(value)
                    if "judge" in line:
                        judged = line["judge"] or {}
                        for name, column in counts.items():
                            column.append(judged.get(name, [np.nan] * len(ERROR_TYPES)))
                        scores.failures.append(line["judge_failure"])
        except FileNotFoundError:
            raise EvaluationError(f"no scores in {path}; make them with: python -m evaluation score …") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EvaluationError(f"{path} is not a scores file ({error!r}); score again with --force") from error
        if len(set(scores.study_id)) != len(scores.study_id):
            raise EvaluationError(f"{path} holds a study twice; score again with --force")
        if not scores.study_id:
            raise EvaluationError(f"{path} holds no study; score again with --force")
        scores.metrics = {name: np.array(values) for name, values in metrics.items()}
        scores.labels = {name: np.array(values, dtype=np.int8) for name, values in labels.items()}
        if counts["significant"]:
            scores.significant = np.array(counts["significant"], dtype=np.float64)
            scores.insignificant = np.array(counts["insignificant"], dtype=np.float64)
        return scores

    @property
    def errors(self) -> np.ndarray | None:
        """All of the judge's errors a report: float64 [n], NaN where it failed."""
        return None if self.significant is None else (self.significant + self.insignificant).sum(axis=1)

    def judge_failures(self) -> dict[str, int]:
        """Failed judge calls by cause."""
        causes = [cause for cause in self.failures if cause]
        return {cause: causes.count(cause) for cause in sorted(set(causes))}

    def take(self, keep: np.ndarray) -> Scores:
        """Some of the studies, in the order of the indices `keep`."""
        chosen = [int(i) for i in keep]
        return Scores(
            [self.study_id[i] for i in chosen],
            [self.patient_id[i] for i in chosen],
            {name: [values[i] for i in chosen] for name, values in self.fields.items()},
            {name: values[chosen] for name, values in self.metrics.items()},
            {name: values[chosen] for name, values in self.labels.items()},
            None if self.significant is None else self.significant[chosen],
            None if self.insignificant is None else self.insignificant[chosen],
            [self.failures[i] for i in chosen] if self.failures else [],
        )


def principal_statistics(scores: Scores, described: Mapping[str, Any]) -> dict[str, Statistic]:
    """The numbers that models are compared by, under names that carry their backend."""
    found: dict[str, Statistic] = {}
    for name, values in scores.metrics.items():
        if name.startswith("radcliq"):
            found[f"1/{name}"] = statistics.inverse_mean(values)
        found[name] = statistics.mean(values)
    suffix = _suffix(described["labels"]["backend"])
    candidate = binary_labels(scores.labels["candidate"])
    five = [CONDITIONS.index(name) for name in TOP_FIVE]
    for source, kind in (("reference", "label"), ("truth", "truth")):
        if source not in scores.labels:
            continue
        labels = binary_labels(scores.labels[source])
        everything = list(range(len(CONDITIONS)))
        for n, chosen in (("14", everything), ("5", five)):
            found[f"{kind}_micro_f1_{n}{suffix}"] = statistics.f1(labels[:, chosen], candidate[:, chosen])
        common = common_conditions(labels, scores.patient_id)
        for n, chosen in (("14", everything), ("5", five), ("common", common)):
            if chosen:
                macro = statistics.f1(labels[:, chosen], candidate[:, chosen], "macro")
                found[f"{kind}_macro_f1_{n}{suffix}"] = replace(macro, estimable=set(chosen) <= set(common))
    if (errors := scores.errors) is not None:
        judge = described["judge"]["name"]
        found[f"errors {judge}"] = statistics.count(errors)
        found[f"significant errors {judge}"] = statistics.count(scores.significant.sum(axis=1))
    return found


def common_conditions(labels: np.ndarray, patients: Sequence[str]) -> list[int]:
    """The conditions (columns of the references' labels, bool [n, 14]) that at least `COMMON` patients have.

    Macro-F1 over these has an interval that holds the true value; over rarer ones none that was tried does.
    """
    index = statistics.cluster_index(patients)
    return [i for i in range(labels.shape[1]) if len(set(index[labels[:, i] > 0])) >= COMMON]


def is_principal(number: str, numbers: Collection[str]) -> bool:
    """Whether a number is one of the few that claims rest on, tested as a family of their own: `PRINCIPAL`.

    Micro-F1 counts against the true labels where there are any (`numbers`: all that the model has).
    """
    kind = "truth" if any(other.startswith("truth_") for other in numbers) else "label"
    base = split_number(number)[0].removeprefix("1/")
    return base in (*PRINCIPAL, f"{kind}_micro_f1_14") or base.split(" ")[0] == "errors"


def condition_statistics(scores: Scores, source: str = "reference") -> dict[str, Statistic]:
    """F1 of each condition against the labels of `source`."""
    candidate, labels = binary_labels(scores.labels["candidate"]), binary_labels(scores.labels[source])
    return {name: statistics.f1(labels[:, [i]], candidate[:, [i]]) for i, name in enumerate(CONDITIONS)}


def judge_statistics(scores: Scores) -> dict[str, Statistic]:
    """Shares of reports with ≤ 1, 2, 3 and ≥ 4 errors (paper, figure 2f) and mean errors a report of each type."""
    errors = scores.errors
    failed = np.isnan(errors)

    def share(hit: np.ndarray) -> Statistic:
        return statistics.mean(np.where(failed, np.nan, hit))

    found = {"≤1": share(errors <= 1), "2": share(errors == 2), "3": share(errors == 3), "≥4": share(errors >= 4)}
    for i, name in enumerate(ERROR_TYPES):
        found[f"{name} significant"] = statistics.count(scores.significant[:, i])
        found[f"{name} insignificant"] = statistics.count(scores.insignificant[:, i])
    return found


def summarise(scores: Scores, described: Mapping[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    """Point estimates with intervals: `metrics`, `conditions` (F1 each) and `judge` (error table)."""

    def intervals(found: Mapping[str, Statistic]) -> dict[str, dict[str, Any]]:
        made = statistics.bootstrap(found, scores.patient_id, resamples=resamples, seed=seed)
        return {name: interval.as_dict() for name, interval in made.items()}

    result: dict[str, Any] = {"metrics": intervals(principal_statistics(scores, described))}
    result["conditions"] = {
        source: {
            name: {**interval, "positives": int(binary_labels(scores.labels[source])[:, i].sum())}
            for i, (name, interval) in enumerate(intervals(condition_statistics(scores, source)).items())
        }
        for source in ("reference", "truth")
        if source in scores.labels
    }
    if scores.errors is not None:
        result["judge"] = {
            "judged": int((~np.isnan(scores.errors)).sum()),
            "table": intervals(judge_statistics(scores)),
        }
    return result


def _suffix(backend: str) -> str:
    """The mark of a stand-in: none where the labels are CheXbert's own."""
    return "" if backend in ("real", "exact") else f"[{backend}]"


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
