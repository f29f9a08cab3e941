"""Sections from files that other commands leave in a run's folder, where they are there.

`sensitivity.json` is of `python -m rewards sensitivity`, `judge_agreement.json` of `python -m rewards judge-agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.names import shown_number
from evaluation.part import Part
from evaluation.tables import Table, cell
from foundation.errors import EvaluationError, read_record

SENSITIVITY, AGREEMENT = "sensitivity.json", "judge_agreement.json"


def side_parts(outputs: Path) -> list[Part]:
    """The sections of the files that are in `outputs`; none where there are none.

    Raises:
        EvaluationError: a file is not what its command writes.
    """
    parts = []
    for name, part in ((SENSITIVITY, sensitivity), (AGREEMENT, agreement)):
        path = outputs / name
        if path.exists():
            content = read_record(path)
            try:
                parts.append(part(content))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise EvaluationError(f"{path} is not what its command writes; make it again, or remove it") from error
    return parts


def sensitivity(content: Mapping[str, Any]) -> Part:
    """Which metric sees which error: a row an edit, a column a metric."""
    columns = content["columns"]
    rows = []
    for edit, found in content["edits"].items():
        n = max(found[column]["n"] for column in columns)
        cells = [cell(found[column], "share", percent=True) for column in columns]
        rows.append([edit, str(n), *cells])
    text = (
        f"Each of {content['reports']} references, edited with one known error and scored against itself: % of the way from the "
        "reference's own score (0) to that of another patient's report (100), with 95% intervals over reports."
    )
    note = (
        "A reward cannot teach what it does not see: a column near 0 says that this error costs nothing. Sentences in another "
        "order are no error."
    )
    header = ["edit", "reports", *(shown_number(column) for column in columns)]
    return Part("sensitivity", "Which metric sees which error", text, tables=[Table(header, rows)], note=note)


def agreement(content: Mapping[str, Any]) -> Part:
    """Agreement of two raters: a judge with people, or with another judge."""
    rows = [[name.replace("_", " "), cell(value, "value")] for name, value in content["measures"].items()]
    first, second = content.get("names") or ("A", "B")
    text = (
        f"{first} (A) and {second} (B) on the {content['n']} reports that both have rated, {content['errors']} errors; bias is "
        "A − B, errors a report."
    )
    return Part("agreement", "Agreement of judge and readers", text, tables=[Table(["", "value"], rows)])
