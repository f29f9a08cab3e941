"""Temporal entity F1: do both reports use the same words of change?

RadEval's `temporal` (2.2.1), after Libra's evaluation (Zhang et al. 2025), with the word list of BioViL-T (Bannur et al.
2023, arXiv 2301.04558). RadEval also takes from a stanza model those entities that are words of the same list. Here the
words alone decide: the model can add a word only where RadEval's cleaning glues it to its neighbour ("new/larger"), and
there RadEval then finds what this metric finds at once. Words of a negation ("no new") count in both.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from rewards.metric import Metric
from rewards.weights import source_fingerprint

WORDS = frozenset(
    [
        "bigger",
        "change",
        "cleared",
        "constant",
        "decrease",
        "decreased",
        "decreasing",
        "elevated",
        "elevation",
        "enlarged",
        "enlargement",
        "enlarging",
        "expanded",
        "greater",
        "growing",
        "improved",
        "improvement",
        "improving",
        "increase",
        "increased",
        "increasing",
        "larger",
        "new",
        "persistence",
        "persistent",
        "persisting",
        "progression",
        "progressive",
        "reduced",
        "removal",
        "resolution",
        "resolved",
        "resolving",
        "smaller",
        "stability",
        "stable",
        "stably",
        "unaltered",
        "unchanged",
        "unfolded",
        "worse",
        "worsen",
        "worsened",
        "worsening",
    ]
)
# RadEval reads dashes and underscores as spaces.
_WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=65536)
def temporal_words(report: str) -> frozenset[str]:
    """The words of change in a report, lower case."""
    return WORDS & set(_WORD.findall(report.lower()))


class TemporalF1(Metric):
    """F1 of the two sets of words, in [0, 1]: 1 where neither report has one, 0 where only one does."""

    name = "temporal_f1"

    def __init__(self) -> None:
        self.fingerprint = source_fingerprint(__name__)

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        scores = []
        for candidate, reference in zip(candidates, references, strict=True):
            ours, theirs = temporal_words(reference), temporal_words(candidate)
            total = len(ours) + len(theirs)
            scores.append(2 * len(ours & theirs) / total if total else 1.0)
        return np.array(scores, dtype=np.float32)
