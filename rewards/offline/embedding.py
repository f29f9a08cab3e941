"""BERTScore's form over hashed word vectors: for machines without distilroberta-base.

No model and no learning: a word's vector is a fixed random direction chosen by its hash, mixed with those of its letter
trigrams (so `opacity` is near `opacities`), then with its neighbours' vectors (so word order counts). Greedy matching
and F1 are BERTScore's (Zhang et al. 2020). Named `bertscore[offline-hash]`.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np

from rewards.metric import Metric
from rewards.weights import source_fingerprint

DIMENSIONS = 96
# Own choices: letters and neighbours count, the word itself most.
TRIGRAM_SHARE = 0.5
NEIGHBOUR_SHARE = 0.25

_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]")


@lru_cache(maxsize=65536)
def _direction(text: str) -> np.ndarray:
    """A unit vector fixed by `text` alone: the same on every machine and in every process."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.Generator(np.random.PCG64(seed)).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


@lru_cache(maxsize=65536)
def _word(word: str) -> np.ndarray:
    marked = f"<{word}>"
    trigrams = np.sum([_direction(marked[i : i + 3]) for i in range(len(marked) - 2)], axis=0)
    trigrams = trigrams / np.linalg.norm(trigrams)
    vector = (1 - TRIGRAM_SHARE) * _direction(f"word {word}") + TRIGRAM_SHARE * trigrams
    return vector / np.linalg.norm(vector)


@lru_cache(maxsize=4096)
def embed(text: str) -> np.ndarray:
    """One unit vector for each token: float32 [tokens, DIMENSIONS]; [0, DIMENSIONS] for a text without tokens."""
    words = _TOKEN.findall(text.lower())
    if not words:
        return np.zeros((0, DIMENSIONS), dtype=np.float32)
    vectors = np.stack([_word(word) for word in words])
    mixed = vectors.copy()
    mixed[1:] += NEIGHBOUR_SHARE * vectors[:-1]
    mixed[:-1] += NEIGHBOUR_SHARE * vectors[1:]
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def greedy_f1(candidate: np.ndarray, reference: np.ndarray) -> float:
    """BERTScore's F1 of two sets of unit vectors [tokens, d], not rescaled, clipped to [0, 1]; 0 where either is empty."""
    if not len(candidate) or not len(reference):
        return 0.0
    similarity = candidate @ reference.T
    precision, recall = float(similarity.max(axis=1).mean()), float(similarity.max(axis=0).mean())
    if precision <= 0 or recall <= 0:
        return 0.0
    return min(1.0, 2 * precision * recall / (precision + recall))


class HashBertScore(Metric):
    """Greedy-matching F1 over hashed vectors: float32 [n] in [0, 1]; 0 where either text has no token."""

    name = "bertscore[offline-hash]"
    backend = "offline-hash"

    def __init__(self) -> None:
        self.fingerprint = source_fingerprint(__name__)

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        return np.array([greedy_f1(embed(c), embed(r)) for c, r in zip(candidates, references, strict=True)])
