"""Files of pairs and of ratings, and the paper's table of errors (Results, Figure 2f) from a file of ratings."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foundation.governance import JudgeError, claimed_source
from rewards.chexprompt.judge import Judge, JudgeResult
from rewards.chexprompt.judgement import ERROR_TYPES, Judgement

RESAMPLES = 1000
LEVEL = 0.95
_CHUNK = 100  # resamples drawn at a time, to bound memory


@dataclass(frozen=True)
class Pair:
    """One line of a pairs file; `context` is what it says of the patient, `age` and `indication`, for metrics that ask."""

    id: str
    reference: str
    candidate: str
    source: str | None
    context: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rating:
    """One line of a ratings file: a judgement by a judge or a human, or the cause why there is none."""

    id: str
    judgement: Judgement | None
    failure: str | None


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a JSONL file with their line numbers; blank lines are skipped.

    Raises:
        JudgeError: the file cannot be read, or a line is no JSON object. Lines are not quoted: they may hold reports.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise JudgeError(f"{path} cannot be read: {reason}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise JudgeError(f"{path}, line {number}: not JSON; each line must be one JSON object") from error
        if not isinstance(row, dict):
            raise JudgeError(f"{path}, line {number}: not a JSON object")
        rows.append((number, row))
    if not rows:
        raise JudgeError(f"{path} is empty; it must hold one JSON object a line")
    return rows


def _identifiers(path: Path, rows: Iterable[tuple[int, dict[str, Any]]]) -> list[str]:
    """The `id` or `study_id` of each row, else its line number; unique."""
    identifiers: dict[str, int] = {}
    for number, row in rows:
        identifier = str(row.get("id", row.get("study_id", number)))
        if identifier in identifiers:
            raise JudgeError(
                f"{path}, line {number}: id {identifier[:60]!r} was used on line {identifiers[identifier]} already"
            )
        identifiers[identifier] = number
    return list(identifiers)


def read_pairs(path: Path, source: str | None = None) -> list[Pair]:
    """Pairs from JSONL: keys `reference`, `candidate`, and optionally `id` (or `study_id`), `source` (or `dataset`), `age` (in
    years) and `indication`. A scores.jsonl of `python -m evaluation score` has them all.

    A row without a source gets `source`, which the user named; one without any counts as credentialed, and so does one that
    alone says that its reports are public: a file may close its reports and not open them.

    Raises:
        JudgeError: the file or a line is not as described.
    """
    rows = read_lines(path)
    pairs = []
    for identifier, (number, row) in zip(_identifiers(path, rows), rows, strict=True):
        for name in ("reference", "candidate"):
            if not isinstance(row.get(name), str):
                raise JudgeError(f"{path}, line {number}: {name!r} is missing or not a text")
        claim = row.get("source", row.get("dataset"))
        if claim is not None and not isinstance(claim, str):
            raise JudgeError(f"{path}, line {number}: 'source' is not a text")
        context = _context(row, f"{path}, line {number}")
        pairs.append(Pair(identifier, row["reference"], row["candidate"], claimed_source(claim, source), context))
    return pairs


def _context(row: dict[str, Any], where: str) -> dict[str, str]:
    age, indication = row.get("age"), row.get("indication")
    if age is not None and (type(age) not in (int, float) or not 0 <= age <= 130):
        raise JudgeError(f"{where}: 'age' must be a number of years, or null")
    if indication is not None and not isinstance(indication, str):
        raise JudgeError(f"{where}: 'indication' must be a text, or null")
    return patient_context(age, indication)


def patient_context(age: Any, indication: Any) -> dict[str, str]:
    """What is known of a patient, as the metrics of language models take it: years and the reason for the film. What is no
    finite number, or no text, is not known."""
    years = {"age": f"{age:g}"} if type(age) in (int, float) and math.isfinite(age) else {}
    return years | ({"indication": indication} if isinstance(indication, str) and indication.strip() else {})


def read_ratings(path: Path) -> list[Rating]:
    """Ratings from JSONL, as `write_ratings` makes them; a human's file needs `id`, `significant` and `insignificant` only,
    each of the latter an object with counts by error type, types left out counting 0. What a reader's page exports
    (`python -m evaluation reader-study`) is one line with such rows as its `ratings`.

    Raises:
        JudgeError: the file or a line is not as described.
    """
    rows = read_lines(path)
    if len(rows) == 1 and isinstance(exported := rows[0][1].get("ratings"), list):
        if not all(isinstance(row, dict) and "id" in row for row in exported):
            raise JudgeError(f"{path}: ratings must be a list of objects, each with an id")
        rows = list(enumerate(exported, 1))
        if not rows:
            raise JudgeError(f"{path} has no rating yet: its reader has confirmed no report (Enter)")
    ratings = []
    for identifier, (number, row) in zip(_identifiers(path, rows), rows, strict=True):
        failure = row.get("failure")
        if failure is not None:
            ratings.append(Rating(identifier, None, str(failure)))
            continue
        parts = []
        for part in ("significant", "insignificant"):
            counts = row.get(part)
            if not isinstance(counts, dict) or set(counts) - set(ERROR_TYPES):
                raise JudgeError(
                    f"{path}, line {number}: {part!r} must be an object with counts for {', '.join(ERROR_TYPES)}"
                )
            values = tuple(counts.get(name, 0) for name in ERROR_TYPES)
            if any(type(value) is not int or value < 0 for value in values):
                raise JudgeError(f"{path}, line {number}: the counts of {part!r} must be whole numbers from 0 up")
            parts.append(values)
        ratings.append(Rating(identifier, Judgement(*parts), None))
    return ratings


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`, which is either complete afterwards or as it was.

    Raises:
        JudgeError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise JudgeError(f"{path} cannot be written: {error.strerror}") from error


def write_ratings(path: Path, pairs: Sequence[Pair], results: Sequence[JudgeResult], judge: Judge) -> None:
    """One line for each pair, in order, with the judge that made it; atomic."""
    lines = []
    for pair, result in zip(pairs, results, strict=True):
        row: dict[str, Any] = {"id": pair.id, "failure": result.failure}
        if result.judgement is not None:
            row |= {
                "errors": result.judgement.errors,
                "significant_errors": result.judgement.significant_errors,
                "significant": dict(zip(ERROR_TYPES, result.judgement.significant, strict=True)),
                "insignificant": dict(zip(ERROR_TYPES, result.judgement.insignificant, strict=True)),
            }
        row |= {"judge": judge.name, "prompt_version": judge.prompt_version, "fingerprint": judge.fingerprint}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def error_table(judgements: Sequence[Judgement | None], seed: int = 0) -> dict[str, Any]:
    """The paper's table: shares of reports with at most 1, 2, 3, and at least 4 errors, and mean counts by error type.

    Every number is {mean, low, high} with a bootstrap interval over the judged reports. Both sums are given: `all`
    (twelve counts, the paper's "# CheXprompt errors") and `significant` (six).

    Raises:
        JudgeError: no report was judged.
    """
    judged = [judgement for judgement in judgements if judgement is not None]
    if not judged:
        raise JudgeError("no report was judged, so there is no table")
    counts = np.array([[j.significant, j.insignificant] for j in judged], dtype=np.float64)  # [n, 2, 6]
    columns: dict[tuple[str, str], np.ndarray] = {}
    for name, errors in (("all", counts.sum((1, 2))), ("significant", counts[:, 0].sum(1))):
        columns[name, "errors"] = errors
        columns[name, "share with at most 1"] = errors <= 1
        columns[name, "share with 2"] = errors == 2
        columns[name, "share with 3"] = errors == 3
        columns[name, "share with at least 4"] = errors >= 4
    for i, error_type in enumerate(ERROR_TYPES):
        columns["all", error_type] = counts[:, :, i].sum(1)
        columns["significant", error_type] = counts[:, 0, i]
    intervals = bootstrap_means(np.stack(list(columns.values()), axis=1).astype(np.float64), seed)
    table: dict[str, Any] = {"n": len(judged), "failed": len(judgements) - len(judged), "all": {}, "significant": {}}
    for (part, name), interval in zip(columns, intervals, strict=True):
        table[part][name] = interval
    return table


def bootstrap_means(columns: np.ndarray, seed: int) -> list[dict[str, float]]:
    """{mean, low, high} of each column of float64 [n, k], by resampling rows."""
    n = len(columns)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            random.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, RESAMPLES - start)) @ columns / n
            for start in range(0, RESAMPLES, _CHUNK)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    values = zip(columns.mean(0), low, high, strict=True)
    return [{"mean": float(mean), "low": float(lower), "high": float(upper)} for mean, lower, upper in values]


def print_table(table: dict[str, Any], judge: str, causes: Counter[str]) -> str:
    """The table as text."""
    failed = "".join(f", {count} × {cause}" for cause, count in sorted(causes.items()))
    lines = [
        f"judge {judge}: {table['n']} reports judged, {table['failed']} not{failed}",
        f"{'':24}{'all errors':>24}{'significant':>24}   (95% bootstrap intervals over reports)",
    ]
    for name in table["all"]:
        cells = [table[part][name] for part in ("all", "significant")]
        share = name.startswith("share")
        shown = [
            f"{c['mean']:.1%} [{c['low']:.1%}, {c['high']:.1%}]"
            if share
            else f"{c['mean']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"
            for c in cells
        ]
        label = name if share else f"mean {name.replace('_', ' ')}"
        lines.append(f"{label:24}{shown[0]:>24}{shown[1]:>24}")
    return "\n".join(lines)
