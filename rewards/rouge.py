"""ROUGE-L (Lin 2004) by Google's `rouge_score`: F1 of the longest common subsequence of Porter-stemmed words.

The package has had no release since 2022, and still is what the field's numbers come from (RadEval's among them, with the
same stemmer), so it is used as it is rather than written again.
"""

from __future__ import annotations

import numpy as np

from rewards.metric import Metric, MetricError
from rewards.weights import source_fingerprint


class RougeL(Metric):
    """ROUGE-L F1 in [0, 1]; 0 where either report has no word of letters or digits."""

    name = "rouge_l"

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise MetricError("rouge_l needs rouge_score: pip install rouge-score==0.1.2, or leave it out") from error
        self.fingerprint = source_fingerprint(__name__, "rouge_score.rouge_scorer", "rouge_score.tokenize")
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        pairs = list(zip(references, candidates, strict=True))
        scores = {pair: self._scorer.score(*pair)["rougeL"].fmeasure for pair in dict.fromkeys(pairs)}
        return np.array([scores[pair] for pair in pairs], dtype=np.float32)
