"""Published numbers, shown beside a user's own only where both are of the same kind.

`published.csv` is our transcription of ReXrank's leaderboards (128 rows) and of the paper's Supplementary Table 1 (4 rows),
each with its source and date. Eight more rows, "UniRG-CXR (paper)", come from an earlier transcription of the paper whose
text does not hold them; their source says so.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.references import unlike_the_board

METRICS = ("bleu2", "bertscore", "sembscore", "radgraph", "1/radcliq_v1", "ratescore")
_PATH = Path(__file__).with_name("published.csv")


def read_published() -> list[dict[str, Any]]:
    """All rows: dataset, studies, sections, model, year, the metrics as floats (None where not published), source, date."""
    with _PATH.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["studies"] = int(row["studies"])
        for name in (*METRICS, "green"):
            row[name] = float(row[name]) if row[name] else None
    return rows


def comparable(result: Mapping[str, Any], dataset: str) -> tuple[list[dict[str, Any]], str]:
    """Published rows that a scores.json may stand beside, and why there are none where there are none.

    The same kind means: references in the form of ReXrank's script (`references.unlike_the_board`), the same data set, its ReXrank test split (by its number of studies), the sections of one of
    ReXrank's boards, and real backends. RexGradient's board is on a private set, so its public split never qualifies.
    """
    made_by = result["made_by"]
    rows = [row for row in read_published() if row["dataset"] == dataset]
    if not rows:
        return [], "no published numbers for this data set"
    if made_by["scorers"]["backend"] != "real":
        return [], "these scores come from offline stand-ins, which are not the published metrics"
    if reason := unlike_the_board(made_by):
        return [], reason
    boards = [row for row in rows if row["sections"] == made_by["sections"]]
    if not boards:
        return [], "ReXrank's boards compare findings_impression or findings; score with one of these --sections"
    if result["studies"] != boards[0]["studies"]:
        return (
            [],
            f"ReXrank's test split of {dataset} has {boards[0]['studies']} studies; these scores are of {result['studies']}",
        )
    return boards, ""
