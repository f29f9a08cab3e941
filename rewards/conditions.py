"""The 14 CheXpert conditions and what is said of them in a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Order of the CheXpert data set (Irvin et al. 2019), which is also the order of CheXbert's fourteen heads
# (Smit et al. 2020; f1chexbert 0.0.2, `CONDITIONS`). Every label array of this project has these columns.
CONDITIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

# The five conditions of the CheXpert competition, reported beside all fourteen.
TOP_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")

# CheXbert's classes. The "No Finding" head knows blank and positive only.
BLANK, POSITIVE, NEGATIVE, UNCERTAIN = 0, 1, 2, 3
CLASSES = ("blank", "positive", "negative", "uncertain")


def binary_labels(labels: np.ndarray, uncertain_is_positive: bool = True) -> np.ndarray:
    """Class labels int [..., 14] as 0/1 of the same shape.

    With `uncertain_is_positive` this is f1chexbert's "rrg" map {1, 3} → 1, which published label F1 of report
    generation uses; without it, its "classification" view of positive alone {1} → 1.
    """
    positive = labels == POSITIVE
    if uncertain_is_positive:
        positive = positive | (labels == UNCERTAIN)
    return positive.astype(np.int8)


@dataclass(frozen=True)
class Labeler:
    """Labels reports with the 14 conditions.

    Attributes:
        name: `chexbert`, or `chexbert[offline-rules]` for the stand-in.
        backend: `real` or `offline-rules`.
        fingerprint: sha256 of the weights, or of the rules.
        label: texts in, classes int8 [n, 14] out; columns `CONDITIONS`.
    """

    name: str
    backend: str
    fingerprint: str
    label: Callable[[Sequence[str]], np.ndarray]
