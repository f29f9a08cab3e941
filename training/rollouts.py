"""Sampled rollouts as Parquet: what the reward saw and what it gave, for people to read and for the report to show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rewards.grpo_reward import Rollouts

WHOLE_GROUPS = 2  # studies of which every rollout is kept at a log
PART = "part/"  # prefix of the columns that hold the reward's parts

_COLUMNS = [
    ("step", pa.int64()),
    ("study_id", pa.string()),
    ("source", pa.string()),
    ("image", pa.string()),
    ("prior_image", pa.string()),
    ("reference", pa.string()),
    ("prior_report", pa.string()),
    ("candidate", pa.string()),
    ("tokens", pa.int32()),
    ("reward", pa.float64()),
    ("judge_significant", pa.list_(pa.int16())),
    ("judge_insignificant", pa.list_(pa.int16())),
]


def write_rollouts(path: Path, rollouts: Rollouts, rows: Sequence[int]) -> None:
    """Write the rollouts of these row numbers (atomically).

    Columns: step (optimiser steps done when they were generated), study_id, source, image, prior_image, reference,
    prior_report, candidate, tokens, reward (null where the judge failed), judge_significant and judge_insignificant
    (six counts in the order of `ERROR_TYPES`, null without a judgement), and `part/<full metric name>` for each part of
    the reward, unweighted.
    """
    scores = rollouts.scores
    judgements = [scores.judgements[row] for row in rows]
    images = [rollouts.image_paths[row] for row in rows]
    values = {
        "step": [rollouts.step] * len(rows),
        "study_id": [rollouts.study_ids[row] for row in rows],
        "source": [rollouts.sources[row] for row in rows],
        "image": [paths[0] for paths in images],
        "prior_image": [paths[1] if len(paths) > 1 else None for paths in images],
        "reference": [rollouts.references[row] for row in rows],
        "prior_report": [rollouts.prior_reports[row] for row in rows],
        "candidate": [rollouts.candidates[row] for row in rows],
        "tokens": [rollouts.lengths[row] for row in rows],
        "reward": [scores.total[row] for row in rows],
        "judge_significant": [judgement and list(judgement.significant) for judgement in judgements],
        "judge_insignificant": [judgement and list(judgement.insignificant) for judgement in judgements],
    }
    parts = {
        PART + name: [None if np.isnan(part[row]) else float(part[row]) for row in rows]
        for name, part in scores.parts.items()
    }
    schema = pa.schema([*_COLUMNS, *((name, pa.float32()) for name in parts)])
    table = pa.Table.from_pydict({**values, **parts}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary)
    os.replace(temporary, path)


def read_rollouts(stage: Path) -> pa.Table | None:
    """All sampled rollouts of a stage's folder, by step; None where none were kept."""
    files = sorted((stage / "rollouts").glob("step-*.parquet"))
    if not files:
        return None
    return pa.concat_tables([pq.read_table(file) for file in files], promote_options="default")


def best_and_worst(rollouts: Rollouts, limit: int) -> list[int]:
    """Row numbers of the best and the worst rewarded rollout of each of the first studies, at most `limit` rows."""
    rows: list[int] = []
    for group in groups(rollouts):
        rewarded = [row for row in group if rollouts.scores.total[row] is not None] or group
        by_reward = sorted(rewarded, key=lambda row: (rollouts.scores.total[row] or 0.0, row))
        rows += sorted({by_reward[-1], by_reward[0]}, reverse=True)
        if len(rows) >= limit:
            break
    return rows[:limit]


def whole_groups(rollouts: Rollouts) -> list[int]:
    """Row numbers of all rollouts of the first studies: a rollout's advantage is against these, and can be checked by them."""
    return [row for group in groups(rollouts)[:WHOLE_GROUPS] for row in group]


def groups(rollouts: Rollouts) -> list[list[int]]:
    """Row numbers of the rollouts of each study, in the order of the studies."""
    by_study: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(rollouts.sources, rollouts.study_ids, strict=True)):
        by_study.setdefault(key, []).append(row)
    return list(by_study.values())
