"""`python -m rewards llm-score`: GREEN or CRIMSON of a file of report pairs."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from foundation.governance import JudgeError
from rewards.chexprompt.cli import PAIRS_AT_ONCE, add_judge_settings, command, settings_of
from rewards.chexprompt.judge import JudgeResult
from rewards.chexprompt.ratings import Pair, bootstrap_means, read_pairs, write_atomically
from rewards.llm_metrics import LLM_METRICS
from rewards.llm_metrics.base import LlmMetric


def add_parser(subparsers: Any) -> None:
    """Add the command."""
    made = subparsers.add_parser(
        "llm-score",
        help="GREEN or CRIMSON of a file of report pairs",
        description="Score each line of PAIRS.jsonl (keys reference, candidate; optional id, source, age, indication: an "
        "evaluation's scores.jsonl has them). Interrupted? Run the same command again: scores are kept in the cache as they arrive.",
    )
    made.add_argument("--metric", required=True, choices=sorted(LLM_METRICS))
    made.add_argument("--pairs", type=Path, required=True, help="JSONL file of pairs")
    made.add_argument("--out", type=Path, required=True, help="JSONL file of scores; a summary goes beside it")
    made.add_argument("--source", help="data set that the reports are from, for rows that do not say")
    made.add_argument("--config", type=Path, help="YAML file whose judge_ keys to use; options given here override it")
    add_judge_settings(made)
    made.set_defaults(run=command(_run))


def _run(arguments: argparse.Namespace) -> None:
    pairs = read_pairs(arguments.pairs, arguments.source)
    if arguments.out.is_dir() or arguments.out.resolve() == arguments.pairs.resolve():
        raise JudgeError(f"--out {arguments.out} must be another file than the pairs, and no folder")
    with LLM_METRICS[arguments.metric].from_settings(settings_of(arguments)) as metric:
        metric.check_sources({pair.source for pair in pairs})
        results = asyncio.run(_score(metric, pairs))
        causes = Counter(result.failure for result in results if result.failure is not None)
        rows = [_row(pair, result) for pair, result in zip(pairs, results, strict=True)]
        write_atomically(arguments.out, "".join(json.dumps(row) + "\n" for row in rows))
        scores = np.array([result.judgement.score for result in results if result.judgement is not None])
        mean = bootstrap_means(scores[:, None], seed=0)[0] if len(scores) else None
        summary = {
            "metric": metric.name,
            "prompt_version": metric.prompt_version,
            "fingerprint": metric.fingerprint,
            "n": len(scores),
            "failures": dict(causes),
            "retries": dict(metric.retries),
            "calls": metric.spending.calls,
            "score": mean,
        }
        write_atomically(arguments.out.with_suffix(".summary.json"), json.dumps(summary, indent=1) + "\n")
        if mean is not None:
            print(f"{metric.name}: {mean['mean']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}], {len(scores)} reports")
        if metric.stopped is not None:
            print(f"error: {metric.stopped}", file=sys.stderr)
    if causes:
        told = ", ".join(f"{cause} × {count}" for cause, count in sorted(causes.items()))
        print(f"error: {sum(causes.values())} of {len(pairs)} pairs have no score: {told}", file=sys.stderr)
        sys.exit(1)


def _row(pair: Pair, result: JudgeResult) -> dict[str, Any]:
    if result.judgement is None:
        return {"id": pair.id, "failure": result.failure}
    return {"id": pair.id, "score": result.judgement.score, **result.judgement.counts}


async def _score(metric: LlmMetric, pairs: Sequence[Pair]) -> list[JudgeResult]:
    await metric.check()
    results: list[JudgeResult] = []
    with tqdm(total=len(pairs), desc=metric.metric, unit="pair", disable=None) as progress:
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            results += await metric.judge(
                [pair.candidate for pair in part],
                [pair.reference for pair in part],
                [pair.source for pair in part],
                on_result=lambda *_: progress.update(),
                contexts=[pair.context for pair in part],
            )
    await metric.aclose()
    return results
