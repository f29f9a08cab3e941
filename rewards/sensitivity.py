"""`python -m rewards sensitivity`: which metric sees which error, and so what a reward can and cannot teach.

    python -m rewards sensitivity --reports ReXRank_IUXray_valid.json --backend offline --judge offline --source iu_xray \\
        --out outputs/demo/sensitivity.json

Real references are edited, one known error each (`edits.py`), and scored against themselves. Each number is the share of the
way that the edit moves a metric from the score of the reference itself (0%) to that of another patient's report (100%), as
a mean over reports with a 95% bootstrap interval. A metric that moves as far for sentences in another order as for a
flipped negation teaches wording; one that does not move at all cannot teach that error's absence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rewards.assemble import JUDGE_WEIGHT, load_judge, load_parts
from rewards.composite import CompositeReward, CompositeScores
from rewards.edits import EDITS
from rewards.metric import MetricError
from rewards.registry import BACKENDS
from rewards.score import write_atomically

# Paper (Methods, Optimization): the reward of step 1.
STEP_1 = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
DEFAULT_METRICS = ("bleu2", "rouge_l", "bertscore", "sembscore", "radgraph", "radcliq_v1", "temporal_f1")
UNRELATED = "another patient's report"
RESAMPLES, LEVEL = 2000, 0.95
PAIRS_AT_ONCE = 512


def read_reports(path: Path) -> list[str]:
    """Reports of a file, in its order, each once: ReXrank's JSON, JSONL with `reference`, or a prepared `.parquet`.

    Raises:
        MetricError: the file cannot be read, or has fewer than two different reports.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path, columns=["findings", "impression"]).to_pylist()
            texts = [" ".join(f"{n.capitalize()}: {row[n]}" for n in row if row[n]) for row in rows]
        elif path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            texts = [json.loads(line)["reference"] for line in lines if line.strip()]
        else:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            texts = [entry["report"] for entry in content.values()]
    except OSError as error:
        raise MetricError(f"--reports {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MetricError(
            f"--reports {path}: neither ReXrank's JSON (entries with report), nor JSONL (rows with reference), nor a prepared "
            ".parquet (findings, impression)"
        ) from error
    if not all(isinstance(text, str) for text in texts):
        raise MetricError(f"--reports {path}: a report is no text")
    reports = [text for text in dict.fromkeys(texts) if text.strip()]
    if len(reports) < 2:
        raise MetricError(f"--reports {path} has {len(reports)} different reports; it takes at least 2")
    return reports


def edited_pairs(reports: Sequence[str], seed: int) -> dict[str, list[tuple[int, str]]]:
    """(index of the report, edited report) for each edit, where it applies; and one other report for each."""
    pairs = {
        name: [
            (i, new) for i, report in enumerate(reports) if (new := edit(report, random.Random(f"{seed} {name} {i}")))
        ]
        for name, edit in EDITS.items()
    }
    order = list(range(len(reports)))
    random.Random(seed).shuffle(order)  # each one's successor in a circle: never itself, each once
    pairs[UNRELATED] = sorted((i, reports[order[(k + 1) % len(order)]]) for k, i in enumerate(order))
    return pairs


def measure(
    reports: Sequence[str],
    pairs: Mapping[str, Sequence[tuple[int, str]]],
    composite: CompositeReward,
    source: str | None,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Scores by edit and column, float64 in the order of `pairs`; the references against themselves are edit "".

    The columns are the metrics' full names, the judge's where there is one (1/(errors + 1), NaN where its call failed),
    and the composites. Also the failed judge calls by cause.
    """
    texts = {"": list(enumerate(reports)), **pairs}
    flat = [(name, reports[i], text) for name, rows in texts.items() for i, text in rows]
    columns: dict[str, list[np.ndarray]] = {}
    failures: dict[str, int] = {}

    async def score() -> None:
        with tqdm(total=len(flat), desc="score", unit="pair", disable=None) as progress:
            for start in range(0, len(flat), PAIRS_AT_ONCE):
                part = flat[start : start + PAIRS_AT_ONCE]
                scores = await composite.score([p[2] for p in part], [p[1] for p in part], [source] * len(part))
                for name, values in (*scores.parts.items(), *_composites(composite, scores).items()):
                    columns.setdefault(name, []).append(values.astype(np.float64))
                for cause, count in scores.failures.items():
                    failures[cause] = failures.get(cause, 0) + count
                progress.update(len(part))

    asyncio.run(score())
    names = np.array([name for name, _, _ in flat])
    return {
        edit: {column: np.concatenate(values)[names == edit] for column, values in columns.items()} for edit in texts
    }, failures


def _composites(composite: CompositeReward, scores: CompositeScores) -> dict[str, np.ndarray]:
    if not set(STEP_1) <= set(composite.metrics):
        return {}
    step_1 = sum(
        weight * scores.parts[composite.metrics[name].name].astype(np.float64) for name, weight in STEP_1.items()
    )
    if composite.judge is None:
        return {"composite of step 1": step_1}
    return {
        "composite of step 1": step_1,
        "composite of step 2": step_1 + JUDGE_WEIGHT * scores.parts[composite.judge.name],
    }


def effects(
    pairs: Mapping[str, Sequence[tuple[int, str]]], scores: Mapping[str, Mapping[str, np.ndarray]], seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each edit and column: n, the mean change, and {value, low, high} of the share of the way to another report.

    The share is mean(change by the edit) / mean(change by another patient's report), both over the reports that the edit
    applies to; intervals resample these reports.
    """
    rng = np.random.default_rng(seed)
    table: dict[str, dict[str, dict[str, Any]]] = {}
    whole = scores[""]
    for edit, rows in pairs.items():
        index = np.array([i for i, _ in rows], dtype=int)
        table[edit] = {}
        draws = (
            rng.multinomial(len(index), np.full(len(index), 1 / len(index)), size=RESAMPLES) if len(index) > 1 else None
        )
        for column in whole:
            change = scores[edit][column] - whole[column][index]
            other = scores[UNRELATED][column][index] - whole[column][index]
            there = np.isfinite(change) & np.isfinite(other)
            table[edit][column] = _effect(change, other, there, draws)
    return table


def _effect(change: np.ndarray, other: np.ndarray, there: np.ndarray, draws: np.ndarray | None) -> dict[str, Any]:
    n = int(there.sum())
    change, other = np.where(there, change, 0), np.where(there, other, 0)
    found: dict[str, Any] = {"n": n, "change": float(change.sum() / n) if n else None}
    if not n or other.sum() == 0:
        return found | {"share": None, "low": None, "high": None}
    found |= {"share": float(change.sum() / other.sum()) + 0.0, "low": None, "high": None}
    if draws is not None and n > 1:
        of = draws @ other
        shares = (draws @ change)[of != 0] / of[of != 0]
        low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found |= {"low": float(low) + 0.0, "high": float(high) + 0.0}  # no −0
    return found


def text_table(result: Mapping[str, Any]) -> str:
    """The shares as text, one row an edit, one column a metric."""
    edits, columns = result["edits"], result["columns"]
    short = {column: column.split("[")[0].replace("composite of ", "") for column in columns}
    width = max(12, *(len(name) + 2 for name in short.values()))
    lines = [f"{'':26}{'n':>5}" + "".join(f"{short[column]:>{width}}" for column in columns)]
    for edit, found in edits.items():
        shown = ["–" if found[c]["share"] is None else f"{found[c]['share']:.0%}" for c in columns]
        n = max((found[c]["n"] for c in columns), default=0)
        lines.append(f"{edit:26}{n:>5}" + "".join(f"{value:>{width}}" for value in shown))
    lines.append(
        "0%: as good as the reference itself; 100%: as bad as another patient's report (intervals: in the JSON file)"
    )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reports", type=Path, required=True, help="ReXrank's JSON, JSONL with reference, or a prepared .parquet"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON to write; a report shows sensitivity.json of its run's folder"
    )
    parser.add_argument(
        "--studies", type=int, default=1000, help="reports to use at most, the first ones (default %(default)s)"
    )
    parser.add_argument("--metrics", default=",".join(DEFAULT_METRICS), help="comma-separated (default %(default)s)")
    parser.add_argument("--backend", choices=BACKENDS, default="real", help="real weights, or rule-based stand-ins")
    parser.add_argument(
        "--weights", type=Path, default=Path("weights"), help="folder of make weights (default weights)"
    )
    parser.add_argument("--judge", default="none", help="none, offline (the stand-in), or the URL of a server")
    parser.add_argument("--judge-model", help="the model's name, where --judge is a URL")
    parser.add_argument("--source", help="data set of the reports: it decides whether another host may have them")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Edit, score, write and print.

    Raises:
        MetricError, JudgeError: anything that the user can mend.
    """
    started = time.monotonic()
    if arguments.out.is_dir() or arguments.out.resolve() == arguments.reports.resolve():
        raise MetricError(f"--out {arguments.out} must be another file than the reports, and no folder")
    if arguments.studies < 2:
        raise MetricError(f"--studies is {arguments.studies}; it must be at least 2")
    names = list(dict.fromkeys(arguments.metrics.replace(",", " ").split()))
    if not names:
        raise MetricError("--metrics names none")
    reports = read_reports(arguments.reports)[: arguments.studies]
    metrics = load_parts(names, arguments.backend, arguments.weights)
    settings = {"judge_base_url": arguments.judge, "judge_model": arguments.judge_model}
    judge = None if arguments.judge == "none" else load_judge(settings)
    if judge is not None:
        judge.check_sources({arguments.source})
        asyncio.run(judge.check())
    # Only parts are read of it: every weight does.
    composite = CompositeReward(dict.fromkeys(names, 1.0), metrics, judge, JUDGE_WEIGHT if judge else 0.0)
    pairs = edited_pairs(reports, arguments.seed)
    pairs = {edit: rows for edit, rows in pairs.items() if rows}
    scores, failures = measure(reports, pairs, composite, arguments.source)
    result = {
        "reports": len(reports),
        "seed": arguments.seed,
        "columns": list(scores[""]),
        "metrics": {m.name: {"backend": m.backend, "fingerprint": m.fingerprint} for m in metrics.values()},
        "judge": None
        if judge is None
        else {"name": judge.name, "fingerprint": judge.fingerprint, "failures": failures},
        "not_applicable": [edit for edit in EDITS if edit not in pairs],
        "edits": effects(pairs, scores, arguments.seed),
        "seconds": round(time.monotonic() - started, 1),
    }
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.out, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise MetricError(f"{arguments.out} cannot be written: {error.strerror}") from error
    print(text_table(result))
    if failures:
        told = ", ".join(f"{cause} × {count}" for cause, count in sorted(failures.items()))
        print(f"judge calls that failed, left out of its columns: {told}", file=sys.stderr)
    print(f"{len(reports)} reports, {result['seconds']:.0f} s: {arguments.out}")
