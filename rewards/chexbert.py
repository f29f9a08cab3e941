"""CheXbert (Smit et al. 2020): 14-condition labels, and the report vectors of SembScore, from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.conditions import CONDITIONS
from rewards.engine import EngineSettings, TextModel
from rewards.weights import WeightsError, encoder_folder, fingerprint, load_pretrained, load_state, require

MAX_TOKENS = 512
_CLASSES = (4,) * 13 + (2,)


class CheXbert(TextModel[tuple[np.ndarray, np.ndarray]]):
    """chexbert.pth of StanfordAIMI/RRG_scorers on bert-base-uncased's configuration and vocabulary.

    Values: (CLS vector of the last layer, float32 [768]; classes, int8 [14]). An empty text is [CLS] [SEP], as in
    f1chexbert; a long one is cut at 512 tokens, the last one [SEP].
    """

    def __init__(self, weights_dir: Path, settings: EngineSettings | None = None) -> None:
        """Load from `weights_dir` (see rewards/weights.py).

        Raises:
            WeightsError: weights missing, damaged or of another shape.
        """
        from transformers import AutoTokenizer, BertConfig, BertModel

        settings = settings or EngineSettings()
        path = require(weights_dir, "chexbert.pth")
        folder = encoder_folder(weights_dir, "bert-base-uncased")
        config = load_pretrained(BertConfig, folder)
        vocabulary = [folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).exists()]
        super().__init__(fingerprint([path, require(folder, "config.json"), *vocabulary]), settings)
        self.tokenizer = load_pretrained(AutoTokenizer, folder)

        checkpoint: Any = load_state(path)
        if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
            raise WeightsError(f"{path} has no model_state_dict, so it is no CheXbert; fetch it again: make weights")
        state = {name.removeprefix("module."): value for name, value in checkpoint["model_state_dict"].items()}
        bert = BertModel(config, add_pooling_layer=False)
        own = {name.removeprefix("bert."): value for name, value in state.items() if name.startswith("bert.")}
        ignored = {name for name in own if name.startswith("pooler.") or name == "embeddings.position_ids"}
        try:
            bert.load_state_dict({name: value for name, value in own.items() if name not in ignored})
            self.heads = [
                (state[f"linear_heads.{i}.weight"].float(), state[f"linear_heads.{i}.bias"].float())
                for i in range(len(CONDITIONS))
            ]
        except (KeyError, RuntimeError) as error:
            raise WeightsError(f"{path} does not fit {folder / 'config.json'}: {str(error).splitlines()[0]}") from error
        if tuple(len(bias) for _, bias in self.heads) != _CLASSES:
            raise WeightsError(f"{path}: the heads have {[len(b) for _, b in self.heads]} classes, not 13 × 4 and 2")
        self.encoder = settings.encoder(bert)
        self._weight = torch.cat([weight for weight, _ in self.heads]).to(settings.torch_device)
        self._bias = torch.cat([bias for _, bias in self.heads]).to(settings.torch_device)

    def prepare(self, texts: list[str]) -> tuple[list[list[int]], list[int]]:
        # f1chexbert's `tokenize`: white space of any kind becomes one space.
        clean = [" ".join(text.split()) for text in texts]
        ids = self.tokenizer(clean, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return ids, [len(one) for one in ids]

    def forward(self, prepared: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        hidden = self.encode(self.encoder, prepared, first_only=True)
        logits = hidden @ self._weight.T + self._bias
        labels = torch.stack([part.argmax(dim=1) for part in logits.split(_CLASSES, dim=1)], dim=1)
        vectors = hidden.cpu().numpy()
        return list(zip(vectors.copy(), labels.to(torch.int8).cpu().numpy(), strict=True))

    def size(self, value: tuple[np.ndarray, np.ndarray]) -> int:
        return value[0].nbytes + value[1].nbytes

    def pack(self, value: tuple[np.ndarray, np.ndarray]) -> bytes:
        return value[1].tobytes() + value[0].tobytes()

    def unpack(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        n = len(CONDITIONS)
        return np.frombuffer(data[n:], dtype=np.float32), np.frombuffer(data[:n], dtype=np.int8)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """CLS vectors: float32 [n, 768]."""
        return np.stack([vector for vector, _ in self.values(texts)])

    def label_reports(self, texts: Sequence[str]) -> np.ndarray:
        """Classes: int8 [n, 14], columns `CONDITIONS`; 0 blank, 1 positive, 2 negative, 3 uncertain."""
        if not texts:
            return np.zeros((0, len(CONDITIONS)), dtype=np.int8)
        return np.stack([labels for _, labels in self.values(texts)])
