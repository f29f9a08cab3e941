"""RaTEScore (Zhao et al. 2024) by its own package, every row guarded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from rewards.metric import Metric
from rewards.weights import WeightsError, fingerprint, require

# Folders in the weights folder, by the names of the models on the hub.
NER_MODEL = "RaTE-NER-Deberta"  # Angelakeke/RaTE-NER-Deberta
EMBEDDING_MODEL = "BioLORD-2023-C"  # FremyCompany/BioLORD-2023-C


class RateScore(Metric):
    """RaTEScore of each pair: float32 [n] in [0, 1].

    RaTEScore 0.6.0 drops a report without a sentence of three characters, and with it shifts all rows after it. So each
    different pair goes through it alone (its own batch size is 1 too), and a pair with such a report scores 0. The
    package itself gives 0.5 where a report has no entity.

    It is not a requirement of this project, as it pins an old spaCy: `pip install RaTEScore==0.6.0`, then
    `pip install "spacy>=3.8,<3.9"` over its pin.
    """

    name = "ratescore"
    backend = "real"

    def __init__(self, weights_dir: Path) -> None:
        """Load the package on the two model folders in `weights_dir`.

        Raises:
            WeightsError: the package or a model folder is missing.
        """
        models = [require(weights_dir, name) for name in (NER_MODEL, EMBEDDING_MODEL)]
        try:
            from RaTEScore import RaTEScore
            from RaTEScore.utils import sentence_split
        except ImportError as error:
            raise WeightsError(
                f"RaTEScore cannot be imported ({error}); install it with: pip install RaTEScore==0.6.0 && "
                'pip install "spacy>=3.8,<3.9"'
            ) from error
        gpu = torch.cuda.is_available()
        self.package = RaTEScore(bert_model=str(models[0]), eval_model=str(models[1]), use_gpu=gpu)
        self.sentence_split = sentence_split
        kinds = ("*.json", "*.txt", "*.safetensors", "*.bin")
        self.fingerprint = fingerprint(file for model in models for kind in kinds for file in sorted(model.glob(kind)))

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        pairs = list(zip(candidates, references, strict=True))
        usable = {text: bool(self.sentence_split([text])[0]) for text in {*candidates, *references}}
        scores = {pair: self._score(*pair) if all(usable[text] for text in pair) else 0.0 for pair in set(pairs)}
        return np.array([scores[pair] for pair in pairs])

    def _score(self, candidate: str, reference: str) -> float:
        (score,) = self.package.compute_score([candidate], [reference])
        return float(np.clip(np.nan_to_num(float(score)), 0.0, 1.0))
