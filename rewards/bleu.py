"""BLEU-2, exactly as ReXrank and RadCliQ compute it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from rewards.metric import Metric
from rewards.weights import source_fingerprint

# Added to a zero numerator: method 1 of Chen and Cherry (2014), epsilon of NLTK and of fast_bleu 0.0.90.
SMOOTHING = 0.1


def tokens(text: str) -> list[str]:
    """BLEU tokens as rajpurkarlab/CXR-Report-Metric makes them: lower case, a space before each full stop, split at
    spaces only (a newline stays with its word), empty strings dropped."""
    return [token for token in text.lower().replace(".", " .").split(" ") if token]


def _precision(candidate: list[str], reference: list[str], order: int) -> float:
    """Clipped n-gram precision, a zero numerator smoothed; a candidate shorter than `order` counts as one n-gram."""
    found = Counter(zip(*(candidate[i:] for i in range(order)), strict=False))
    wanted = Counter(zip(*(reference[i:] for i in range(order)), strict=False))
    matches = sum(min(count, wanted[ngram]) for ngram, count in found.items())
    return (matches or SMOOTHING) / max(1, len(candidate) - order + 1)


def bleu2(candidate: str, reference: str) -> float:
    """Sentence BLEU with weights (½, ½), one reference and brevity penalty, in [0, 1].

    0 where no unigram matches, which an empty candidate or reference implies. (Papineni et al. 2002; numbers equal
    fast_bleu's.)
    """
    have, want = tokens(candidate), tokens(reference)
    if not set(have) & set(want):
        return 0.0
    brevity = min(1.0, math.exp(1 - len(want) / len(have)))
    return brevity * math.sqrt(_precision(have, want, 1) * _precision(have, want, 2))


class Bleu2(Metric):
    """BLEU-2 of each pair: float32 [n] in [0, 1]. Needs no weights; the same on every backend."""

    name = "bleu2"
    backend = "exact"

    def __init__(self) -> None:
        self.fingerprint = source_fingerprint(__name__)

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        return np.array([bleu2(c, r) for c, r in zip(candidates, references, strict=True)])
