"""SembScore: how alike two reports are in what CheXbert sees in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewards.conditions import NEGATIVE, POSITIVE, UNCERTAIN, Labeler
from rewards.metric import Metric

# Our choice for the label form: a contradicted finding (positive against negative) costs more than an omitted one, and
# the many negatives of a normal report weigh less than one positive.
LABEL_VALUES = {POSITIVE: 1.0, UNCERTAIN: 0.5, NEGATIVE: -0.25}


def cosine(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows [n, d]: float64 [n] in [-1, 1]; 0 where either row is all zeros."""
    candidates, references = np.asarray(candidates, np.float64), np.asarray(references, np.float64)
    norms = np.linalg.norm(candidates, axis=1) * np.linalg.norm(references, axis=1)
    products = (candidates * references).sum(axis=1)
    return np.clip(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0), -1.0, 1.0)


def label_vectors(labels: np.ndarray) -> np.ndarray:
    """Class labels int [n, 14] as float64 [n, 14] by `LABEL_VALUES`; blank is 0."""
    vectors = np.zeros(labels.shape)
    for value, weight in LABEL_VALUES.items():
        vectors[labels == value] = weight
    return vectors


class SembScore(Metric):
    """Cosine of each pair's vectors: float32 [n] in [-1, 1]; 0 where a vector is all zeros.

    The published numbers use the CLS vectors of CheXbert's last layer; the paper's text says label vectors. The
    backend decides which `vectors` it gives.
    """

    range = (-1.0, 1.0)

    def __init__(
        self, labeler: Labeler, vectors: Callable[[Sequence[str]], np.ndarray] | None = None, name: str = "sembscore"
    ) -> None:
        """`vectors` gives float [n, d] for n texts; None takes the labeler's label vectors.

        The labeler is there for whoever wants labels too: with the real backend both come from one forward pass.
        """
        self.labeler = labeler
        self.vectors = vectors or (lambda texts: label_vectors(labeler.label(texts)))
        self.name = f"{name}[{labeler.backend}]" if labeler.backend.startswith("offline") else name
        self.backend, self.fingerprint = labeler.backend, labeler.fingerprint

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        vectors = self.vectors([*candidates, *references])
        return cosine(vectors[: len(candidates)], vectors[len(candidates) :])
