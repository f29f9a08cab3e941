"""A 14-condition rule labeler in the form of CheXbert's output, over the rules of `graph.py`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rewards.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from rewards.offline.graph import report_findings

_COLUMN = {condition: column for column, condition in enumerate(CONDITIONS)}
_CLASS = {"present": POSITIVE, "absent": NEGATIVE, "uncertain": UNCERTAIN}
# Which mention wins where a report has several of one condition (the CheXpert labeler's order).
_RANK = {BLANK: 0, NEGATIVE: 1, UNCERTAIN: 2, POSITIVE: 3}
_NO_FINDING = _COLUMN["No Finding"]


@lru_cache(maxsize=65536)
def _label(report: str) -> tuple[int, ...]:
    labels = [BLANK] * len(CONDITIONS)
    abnormal = said = False
    for finding in report_findings(report):
        said = said or bool(finding.conditions) or finding.is_statement
        value = _CLASS[finding.status]
        if value != NEGATIVE and "Support Devices" not in finding.conditions:
            abnormal = True
        for condition in finding.conditions:
            column = _COLUMN[condition]
            if _RANK[value] > _RANK[labels[column]]:
                labels[column] = value
    labels[_NO_FINDING] = POSITIVE if said and not abnormal else BLANK
    return tuple(labels)


def label_reports(reports: Sequence[str]) -> np.ndarray:
    """CheXbert's classes by rules: int8 [n, 14], columns `CONDITIONS`; 0 blank, 1 positive, 2 negative, 3 uncertain.

    Several mentions of a condition: positive wins over uncertain over negative. "No Finding" is positive where the
    report says something that the rules know and no observation is present or uncertain, support devices aside; an
    empty text, or one without a known word, is blank everywhere. Conditions do not imply each other (a
    consolidation is not also an opacity), as in CheXbert. The paper of the CheXpert labeler counts "likely" as
    positive and "may represent" as uncertain; so do we.
    """
    return np.array([_label(report) for report in reports], dtype=np.int8).reshape(-1, len(CONDITIONS))
