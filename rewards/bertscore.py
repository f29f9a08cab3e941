"""BERTScore (Zhang et al. 2020) as ReXrank and RadCliQ use it: F1, distilroberta-base, layer 5, rescaled, no idf."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rewards.engine import EngineSettings, TextModel
from rewards.metric import Metric
from rewards.weights import fingerprint, load_pretrained, load_pretrained_model, require

MODEL = "distilroberta-base"
LAYER = 5
# Pairs whose token vectors are held at once (a report's take about 250 kB).
_PAIRS_AT_ONCE = 512


def baseline() -> tuple[float, float, float]:
    """bert-score's own baseline of precision, recall and F1 for this model and layer, from the package's table."""
    table = resources.files("bert_score") / "rescale_baseline" / "en" / f"{MODEL}.tsv"
    rows = [line.split(",") for line in table.read_text().split()[1:]]
    row = next(row for row in rows if row[0] == str(LAYER))
    return float(row[1]), float(row[2]), float(row[3])


class RobertaVectors(TextModel[Tensor]):
    """Token vectors of a text, unit length, float32 [tokens, hidden], special tokens first and last."""

    keeps_on_disk = False  # 250 kB a report; the pairs' scores are kept instead

    def __init__(self, weights_dir: Path, settings: EngineSettings | None = None) -> None:
        from transformers import AutoModel, AutoTokenizer

        settings = settings or EngineSettings()
        folder = require(weights_dir, MODEL)
        files = [
            folder / name
            for name in ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "model.safetensors")
            if (folder / name).exists()
        ]
        require(folder, "model.safetensors")
        super().__init__(fingerprint(files), settings)
        # bert-score 0.3.13 asks for a space before the first word, which current transformers takes only here.
        self.tokenizer = load_pretrained(AutoTokenizer, folder, add_prefix_space=True)
        self.encoder = settings.encoder(load_pretrained_model(AutoModel, folder), LAYER)

    def prepare(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        # CXR-Report-Metric collapses spaces, bert-score strips; both before tokenising.
        clean = [re.sub(" +", " ", text).strip() for text in texts]
        ids = self.tokenizer(clean, truncation=True, max_length=self.encoder.max_length)["input_ids"]
        return ids, [len(one) for one in ids]

    def forward(self, prepared: list[list[int]]) -> list[Tensor]:
        hidden = self.encode(self.encoder, prepared)
        hidden = hidden / hidden.norm(dim=-1, keepdim=True)
        return [part.clone() for part in hidden.split([len(ids) for ids in prepared])]

    def size(self, value: Tensor) -> int:
        return value.element_size() * value.nelement()


def greedy_f1(candidate: Tensor, reference: Tensor) -> float:
    """F1 of greedy matching, not rescaled: float in [-1, 1]. Arguments are unit vectors [tokens, hidden].

    Special tokens (first and last) may be matched but do not count, as in bert-score without idf. 0 where either text
    has no other token.
    """
    if len(candidate) <= 2 or len(reference) <= 2:
        return 0.0
    similarity = candidate @ reference.T
    precision = similarity[1:-1].amax(dim=1).mean().item()
    recall = similarity[:, 1:-1].amax(dim=0).mean().item()
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


class BertScore(Metric):
    """Rescaled BERTScore F1 of each pair: float32 [n].

    1 for equal texts, about 0 for unrelated ones, negative below that. Where either text has no token, the raw F1 is
    0, as in bert-score, which rescaled is −5.55, the lowest value in practice.
    """

    name = "bertscore"
    backend = "real"

    def __init__(self, model: RobertaVectors) -> None:
        self.model, self.fingerprint = model, model.fingerprint
        self.baseline = baseline()[2]
        self.range = (self._rescale(-1.0), 1.0)

    def _rescale(self, raw: float) -> float:
        return (raw - self.baseline) / (1 - self.baseline)

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        pairs = list(zip(candidates, references, strict=True))
        unique = list(dict.fromkeys(pairs))
        scores: dict[tuple[str, str], float] = {}
        disk = self.model._disk
        if disk is not None:
            keys = {pair: disk.key(self.fingerprint, *pair) for pair in unique}
            for pair, data in zip(unique, disk.get(list(keys.values())), strict=True):
                if data is not None:
                    scores[pair] = float(np.frombuffer(data, dtype=np.float64)[0])
        todo = [pair for pair in unique if pair not in scores]
        for first in range(0, len(todo), _PAIRS_AT_ONCE):
            some = todo[first : first + _PAIRS_AT_ONCE]
            vectors = self.model.values([text for pair in some for text in pair])
            with torch.inference_mode():
                fresh = {
                    pair: self._rescale(greedy_f1(vectors[2 * i], vectors[2 * i + 1])) for i, pair in enumerate(some)
                }
            scores.update(fresh)
            if disk is not None:
                disk.put([(keys[pair], np.float64(score).tobytes()) for pair, score in fresh.items()])
        return np.array([scores[pair] for pair in pairs])
