"""What every metric is: a name, a range, where its numbers come from, and a call on two lists of texts.

Every row gets a finite score. An empty or blank report, on either side: BLEU-2, ROUGE-L, RadGraph-F1 and RaTEScore 0,
BERTScore −5.55 (raw 0, rescaled, as bert-score has it), SembScore the cosine with CheXbert's vector of an empty text,
temporal F1 as a report without a word of change, RadCliQ by its formula from these. "None", a single word, text without headings or in any script are scored as they stand; of very long
ones CheXbert and BERTScore read 512 tokens, RadGraph and RaTEScore all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from foundation.errors import OneLineError


class MetricError(OneLineError):
    """A metric, backend or weight that was asked for cannot be had. The message says how to mend it."""


class Metric(ABC):
    """Scores candidate reports against reference reports, row by row.

    Attributes:
        name: the key of its scores in every result, e.g. `bleu2`. A stand-in says so: `sembscore[offline-rules]`.
        range: lowest and highest possible score.
        higher_is_better: False only for RadCliQ.
        backend: the code and weights behind the numbers, e.g. `exact`, `real`, `offline-rules`.
        fingerprint: sha256 of the weights that were loaded, or of the rules' version where there are none.
    """

    name: str
    range: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    backend: str = "exact"
    fingerprint: str = ""

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Scores: float32 [n], in `range`, finite; row i belongs to candidates[i] and references[i].

        Raises:
            ValueError: the two lists differ in length (the message says both).
            MetricError: a score is missing, or no finite number.
        """
        if len(candidates) != len(references):
            raise ValueError(f"{self.name}: {len(candidates)} candidates but {len(references)} references")
        if not candidates:
            return np.zeros(0, dtype=np.float32)
        scores = np.asarray(self.score(list(candidates), list(references)), dtype=np.float32)
        if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
            raise MetricError(
                f"{self.name}: backend {self.backend} gave {np.isfinite(scores).sum()} finite scores for {len(candidates)} "
                "pairs; its weights are damaged: fetch them again (make weights)"
            )
        return scores

    @abstractmethod
    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        """Scores for equally long, non-empty lists; implemented by each metric."""
