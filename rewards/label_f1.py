"""F1 of CheXpert labels: per condition, micro and macro, over all fourteen and the top five."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewards.conditions import CONDITIONS, TOP_FIVE, binary_labels


def label_f1(candidates: np.ndarray, references: np.ndarray, uncertain_is_positive: bool = True) -> dict[str, Any]:
    """F1 of candidate labels against reference labels, both class labels int [n, 14].

    Returns:
        `conditions`: F1 of each condition by name; `micro_14`, `macro_14`, `micro_5`, `macro_5` over all fourteen and
        over `TOP_FIVE`. All in [0, 1]; 0 where neither side has a positive (scikit-learn's zero_division=0, as
        f1chexbert reports it).

    Raises:
        ValueError: shapes differ or are not [n, 14].
    """
    if candidates.shape != references.shape or candidates.shape[1:] != (len(CONDITIONS),):
        raise ValueError(f"labels have shapes {candidates.shape} and {references.shape}; both must be [n, 14]")
    have = binary_labels(candidates, uncertain_is_positive).astype(bool)
    want = binary_labels(references, uncertain_is_positive).astype(bool)
    both, either = (have & want).sum(axis=0), have.sum(axis=0) + want.sum(axis=0)
    f1 = np.divide(2 * both, either, out=np.zeros(len(CONDITIONS)), where=either > 0)
    result: dict[str, Any] = {"conditions": dict(zip(CONDITIONS, f1.tolist(), strict=True))}
    columns = {"14": range(len(CONDITIONS)), "5": [CONDITIONS.index(condition) for condition in TOP_FIVE]}
    for name, chosen in columns.items():
        index = list(chosen)
        total = int(either[index].sum())
        result[f"micro_{name}"] = float(2 * both[index].sum() / total) if total else 0.0
        result[f"macro_{name}"] = float(f1[index].mean())
    return result
