"""Published numbers, shown beside a user's own only where both are of the same kind.

`published.csv` is our transcription of ReXrank's leaderboards (128 rows) and of the paper's Supplementary Table 1 (4 rows),
each with its source and date.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.sources.rexrank import KEYS, recorded
from evaluation.references import unlike_the_board

METRICS = ("bleu2", "bertscore", "sembscore", "radgraph", "1/radcliq_v1", "ratescore")
_PATH = Path(__file__).with_name("published.csv")


@cache
def read_published() -> list[dict[str, Any]]:
    """All rows: dataset, studies, sections, model, year, the metrics as floats (None where not published), source, date."""
    with _PATH.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["studies"] = int(row["studies"])
        for name in (*METRICS, "green"):
            row[name] = float(row[name]) if row[name] else None
    return rows


def test_file_of(data: Path) -> dict[str, Any] | None:
    """The ReXrank test file whose studies are a prepared folder's test split, as its card names it; None: no such file."""
    try:
        return json.loads((data / "card.json").read_text(encoding="utf-8")).get("test_file")
    except (
        OSError,
        ValueError,
        AttributeError,
        RecursionError,
    ):  # a folder without a card says nothing of its test set
        return None


def test_file_of_references(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The same of a file of references: ReXrank's, where its keys and their number are those of one of the boards."""
    dataset = next((name for pattern, name, _ in KEYS if re.fullmatch(pattern, next(iter(entries)))), None)
    if len(entries) not in {row["studies"] for row in read_published() if row["dataset"] == dataset}:
        return None
    return recorded(
        dataset, {key: (e.get("section_findings"), e.get("section_impression")) for key, e in entries.items()}
    )


def comparable(result: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Published rows that a scores.json may stand beside, and why there are none where there are none.

    The same kind means: references in the form of ReXrank's script (`references.unlike_the_board`), the table's own data
    set, exactly the studies of ReXrank's test file and the references that its script makes of them (both by fingerprint),
    the sections of one of ReXrank's boards, no priors shown (ReXrank's setup has none) and real backends. A folder's name
    decides nothing.
    """
    made_by = result["made_by"]
    datasets = result.get("datasets") or ["unknown"]
    dataset = datasets[0] if len(datasets) == 1 else ""
    if dataset == "rexgradient":
        return (
            [],
            "not ReXrank's test: its board, and the paper's figures, are of 10,000 private studies, not of the public split",
        )
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
    listed = made_by.get("test_file")
    if not listed or listed["dataset"] != dataset:
        return [], "not ReXrank's test: the data was prepared without ReXrank's test file (--rexrank)"
    if listed["study_ids_sha256"] != result["study_ids_sha256"]:
        return [], f"ReXrank's test file lists {listed['studies']:,} studies; these scores are of {result['studies']:,}"
    wanted = listed.get("references_sha256", {}).get(made_by["sections"])
    if wanted and wanted != made_by["reference_form"]["sha256"]:
        return (
            [],
            "these references are not, to the byte, those of ReXrank's test file; prepare the data again with --rexrank",
        )
    if made_by.get("longitudinal"):
        return [], "the model was shown prior studies, which ReXrank's setup has not; see the evaluation without priors"
    return boards, ""


def not_rexranks_test(result: Mapping[str, Any]) -> bool:
    """Whether the data set has a board, or the paper a figure, that these studies are not of."""
    dataset = next(iter(result.get("datasets") or [""]))
    if dataset == "rexgradient":
        return True
    if dataset not in {row["dataset"] for row in read_published()}:
        return False
    listed = result["made_by"].get("test_file")
    return not listed or (listed["dataset"], listed["study_ids_sha256"]) != (dataset, result["study_ids_sha256"])


def caution(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What to say beside published rows where the file that was given is not the board's in full, or was read by a version
    that did not fingerprint its references; else empty."""
    if not rows:
        return ""
    if result["studies"] != rows[0]["studies"]:
        return (
            f"Not the same test: the ReXrank file that was given lists {result['studies']:,} studies, the board's "
            f"{rows[0]['studies']:,}."
        )
    if "references_sha256" not in (result["made_by"].get("test_file") or {}):
        return (
            "The data was prepared by an earlier version: its references are in ReXrank's form, and were not compared with "
            "those of its test file; prepare it again to have them compared."
        )
    return ""
