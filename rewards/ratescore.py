"""RaTEScore (Zhao et al. 2024): how well the medical entities of two reports match, by meaning and by type.

The package's own rules (RaTEScore 0.6.0: sentence splitting, entities from token labels, the affinity-weighted match)
on its two models, which run in the engine instead of one report at a time: a sentence is labelled once, an entity's name
encoded once, in whatever report it stands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rewards.engine import EngineSettings, TextModel
from rewards.metric import Metric
from rewards.weights import RATESCORE_MODELS, WeightsError, fingerprint, load_pretrained, load_pretrained_model, require

NER_MODEL, SYNONYM_MODEL = RATESCORE_MODELS
# The package's cuts: `run_ner` and `process_embedding`.
_SENTENCE_TOKENS, _ENTITY_TOKENS = 512, 30
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "spm.model", "vocab.txt", "model.safetensors")

Entity = tuple[str, str]
"""An entity's words and its type, e.g. ("effusion", "ABNORMALITY")."""


def _package() -> Any:
    """The RaTEScore package, its sentence splitter kept from logging the text that it splits.

    Raises:
        WeightsError: it is not installed, or its spaCy does not work.
    """
    try:
        from loguru import logger

        logger.disable("PyRuSH")  # it logs every word of a report at the debug level
        import RaTEScore.scorer
        import RaTEScore.utils
    except (ImportError, ValueError) as error:  # ValueError: a spaCy that was built for another numpy
        raise WeightsError(
            f"RaTEScore cannot be imported ({error}); install it with: "
            "pip install --no-deps -r requirements-ratescore.txt"
        ) from error
    return RaTEScore


def _model_files(weights_dir: Path, name: str) -> tuple[Path, str]:
    folder = require(weights_dir, name)
    require(folder, "config.json")
    require(folder, "model.safetensors")
    return folder, fingerprint(folder / file for file in _FILES if (folder / file).exists())


class SentenceEntities(TextModel[tuple[Entity, ...]]):
    """RaTE-NER-Deberta: the entities of a sentence, in order."""

    def __init__(self, weights_dir: Path, settings: EngineSettings | None = None) -> None:
        """Load from `weights_dir` (see rewards/weights.py).

        Raises:
            WeightsError: weights missing, damaged, or with labels that RaTEScore does not know; no RaTEScore package.
        """
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        self.package = _package()
        settings = settings or EngineSettings()
        folder, digest = _model_files(weights_dir, NER_MODEL)
        super().__init__(digest, settings)
        self.tokenizer = load_pretrained(AutoTokenizer, folder)
        model = load_pretrained_model(AutoModelForTokenClassification, folder)
        self.labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        known = {f"{place}-{kind}" for kind, _ in affinities(self.package) for place in "BI"} | {"O"}
        if unknown := sorted(set(self.labels) - known):
            raise WeightsError(
                f"{folder} labels {', '.join(unknown)}, which RaTEScore does not know: it is no RaTE-NER"
            )
        self.encoder = settings.encoder(model.base_model)
        self._weight = model.classifier.weight.detach().float().to(settings.torch_device)
        self._bias = model.classifier.bias.detach().float().to(settings.torch_device)

    def prepare(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        ids = self.tokenizer(texts, truncation=True, max_length=_SENTENCE_TOKENS)["input_ids"]
        return ids, [len(one) for one in ids]

    def forward(self, prepared: list[list[int]]) -> list[tuple[Entity, ...]]:
        logits = functional.linear(self.encode(self.encoder, prepared), self._weight, self._bias)
        labels = [self.labels[i] for i in logits.argmax(dim=1).tolist()]
        found, start = [], 0
        for ids in prepared:
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            spans = self.package.utils.post_process(tokens, labels[start : start + len(ids)], self.tokenizer)
            found.append(tuple((name, kind) for name, kind in spans))
            start += len(ids)
        return found

    def size(self, value: tuple[Entity, ...]) -> int:
        return 200 * len(value)

    def pack(self, value: tuple[Entity, ...]) -> bytes:
        return json.dumps(value).encode()

    def unpack(self, data: bytes) -> tuple[Entity, ...]:
        return tuple((name, kind) for name, kind in json.loads(data))

    def sentences(self, text: str) -> list[str]:
        """The package's sentences of one report: those of three characters or more."""
        return self.package.utils.sentence_split([text])[0]


class EntityVectors(TextModel[np.ndarray]):
    """BioLORD-2023-C: an entity name's vector, the first token's of the last layer: float32 [768]."""

    def __init__(self, weights_dir: Path, settings: EngineSettings | None = None) -> None:
        """Load from `weights_dir`.

        Raises:
            WeightsError: weights missing or damaged.
        """
        from transformers import AutoModel, AutoTokenizer

        settings = settings or EngineSettings()
        folder, digest = _model_files(weights_dir, SYNONYM_MODEL)
        super().__init__(digest, settings)
        self.tokenizer = load_pretrained(AutoTokenizer, folder)
        self.encoder = settings.encoder(load_pretrained_model(AutoModel, folder))

    def prepare(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        ids = self.tokenizer(texts, truncation=True, max_length=_ENTITY_TOKENS)["input_ids"]
        return ids, [len(one) for one in ids]

    def forward(self, prepared: list[list[int]]) -> list[np.ndarray]:
        return list(self.encode(self.encoder, prepared, first_only=True).cpu().numpy().copy())

    def size(self, value: np.ndarray) -> int:
        return value.nbytes

    def pack(self, value: np.ndarray) -> bytes:
        return value.tobytes()

    def unpack(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, dtype=np.float32)


def affinities(package: Any) -> dict[tuple[str, str], float]:
    """(type, type) → weight: the package's matrix for whole reports ("long"), keyed as its `compute` wants it."""
    return {tuple(key.upper().split("_")): weight for key, weight in package.scorer.DEFAULT_MATRIX_LONG.items()}


class RateScore(Metric):
    """RaTEScore of each pair: float32 [n] in [0, 1].

    As in the package, 0.5 where either report has no entity. A report without a sentence of three characters, which the
    package drops and so shifts all rows after it, scores 0. Negative matches (opposite vectors, which a trained encoder
    hardly gives) count as 0, and no score exceeds 1.

    The package is no requirement of this project, as it asks for an old spaCy: see requirements-ratescore.txt.
    """

    name = "ratescore"
    backend = "real"

    def __init__(self, weights_dir: Path, settings: EngineSettings | None = None) -> None:
        """Load both models from `weights_dir`.

        Raises:
            WeightsError: the package or a model is missing, or does not fit.
        """
        self.entities = SentenceEntities(weights_dir, settings)
        self.vectors = EntityVectors(weights_dir, settings)
        self.package = self.entities.package
        self.affinities = affinities(self.package)
        self.fingerprint = f"{self.entities.fingerprint}+{self.vectors.fingerprint}"

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        pairs = list(zip(candidates, references, strict=True))
        found = self._report_entities([*candidates, *references])
        names = list(dict.fromkeys(name for entities in found.values() for name, _ in entities or ()))
        vectors = dict(zip(names, self.vectors.values(names), strict=True))
        scores = {pair: self._match(found[pair[0]], found[pair[1]], vectors) for pair in dict.fromkeys(pairs)}
        return np.array([scores[pair] for pair in pairs])

    def _report_entities(self, texts: Sequence[str]) -> dict[str, list[Entity] | None]:
        """The entities of each different text; None for one without a sentence."""
        sentences = {text: self.entities.sentences(text) for text in dict.fromkeys(texts)}
        entities = iter(self.entities.values([sentence for some in sentences.values() for sentence in some]))
        return {
            text: [entity for _ in some for entity in next(entities)] if some else None
            for text, some in sentences.items()
        }

    def _match(
        self, candidate: list[Entity] | None, reference: list[Entity] | None, vectors: dict[str, np.ndarray]
    ) -> float:
        """The package's `compute_score` of one pair."""
        if candidate is None or reference is None:
            return 0.0
        if not candidate or not reference:
            return 0.5
        sides = []
        for entities in (reference, candidate):
            rows = torch.from_numpy(np.stack([vectors[name] for name, _ in entities]))
            sides.append((rows, [kind for _, kind in entities]))
        (wanted, wanted_types), (have, have_types) = sides
        compute = self.package.utils.compute
        precision = max(0.0, float(compute(wanted, have, wanted_types, have_types, self.affinities)))
        recall = max(0.0, float(compute(have, wanted, have_types, wanted_types, self.affinities)))
        total = precision + recall
        return min(1.0, 2 * precision * recall / total) if total else 0.0
