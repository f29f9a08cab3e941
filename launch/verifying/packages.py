"""The published metrics' own packages on a weights folder, as their authors show them, mended for current transformers.

What our metrics are compared with: by `make verify`, by the tests and by the benchmarks.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"
# Metric → the package that it is compared with, as it is imported.
PACKAGES = {
    "radgraph_partial": "radgraph",
    "sembscore": "f1chexbert",
    "bertscore": "bert_score",
    "ratescore": "RaTEScore",
}

# Takes candidates and references, gives their scores, float [n].
Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def load_package(metric: str, weights: Path, cuda: bool = False) -> Scorer:
    """The package of a metric of `PACKAGES` with its models loaded from `weights`.

    Raises:
        ImportError: the package, or one that it needs, is not installed.
        WeightsError: a file of `weights` is missing or damaged.
    """
    loaders = {
        "radgraph_partial": _radgraph,
        "sembscore": _sembscore,
        "bertscore": _bertscore,
        "ratescore": _ratescore,
    }
    return loaders[metric](weights, cuda)


def _radgraph(weights: Path, cuda: bool) -> Scorer:
    from radgraph.rewards import compute_reward

    from rewards.weights import radgraph_folder

    source = radgraph_folder(weights, "radgraph")
    with tempfile.TemporaryDirectory() as temporary:
        (folder := Path(temporary) / "radgraph").mkdir()
        for path in source.iterdir():
            target = folder / path.name
            shutil.copy(path, target) if path.name == "config.json" else target.symlink_to(path.resolve())
        package = radgraph_oracle(Path(temporary), "radgraph", weights / PUBMEDBERT.split("/")[1], 0 if cuda else -1)

    def score(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:  # F1RadGraph.forward
        graphs = package([*candidates, *references])
        pairs = [(graphs[str(i)], graphs[str(len(candidates) + i)]) for i in range(len(candidates))]
        return np.array([compute_reward(*pair, "partial") for pair in pairs])

    return score


def _sembscore(weights: Path, cuda: bool) -> Scorer:
    chexbert = MendedCheXbert(weights, "cuda" if cuda else "cpu")

    def score(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # CXR-Report-Metric's SembScore: one forward pass a report (labels would be another).
        vectors = torch.stack([chexbert.vector(text).cpu() for text in (*candidates, *references)])
        return torch.nn.functional.cosine_similarity(*vectors.chunk(2)).numpy()

    return score


def _bertscore(weights: Path, cuda: bool) -> Scorer:
    import bert_score  # noqa: F401  (is it there?)

    device = "cuda" if cuda else "cpu"

    def score(candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # CXR-Report-Metric gives bert_score texts in which runs of spaces are one.
        one, other = ([re.sub(r" +", " ", text) for text in texts] for texts in (candidates, references))
        return np.array(bertscore_oracle(weights, one, other, device))

    return score


def _ratescore(weights: Path, cuda: bool) -> Scorer:
    import medspacy  # noqa: F401  (RaTEScore imports it late)
    from RaTEScore import RaTEScore

    from rewards.weights import RATESCORE_MODELS, require

    ner, synonyms = (str(require(weights, name)) for name in RATESCORE_MODELS)
    package = RaTEScore(bert_model=ner, eval_model=synonyms, use_gpu=cuda)
    return lambda candidates, references: np.array(package.compute_score(list(candidates), list(references)))


# --- mends --------------------------------------------------------------------------------------------------------------


@contextmanager
def oracle_mends():
    """radgraph 0.1.18 and f1chexbert 0.0.2 call tokenizer methods that transformers 5 dropped: supply them, as they were."""
    from transformers import PreTrainedTokenizerBase

    def build_inputs_with_special_tokens(self: Any, first: list[int], second: list[int] | None = None) -> list[int]:
        ids = [self.cls_token_id, *first, self.sep_token_id]
        return ids if second is None else [*ids, *second, self.sep_token_id]

    def encode_plus(self: Any, text: Any = None, text_pair: Any = None, **options: Any) -> dict[str, Any]:
        if isinstance(text, list):  # one text that is already tokens or ids, not a batch
            ids = text if text and isinstance(text[0], int) else self.convert_tokens_to_ids(text)
            if options.get("add_special_tokens", True):
                ids = self.build_inputs_with_special_tokens(ids)
            return {"input_ids": ids, "token_type_ids": [0] * len(ids), "attention_mask": [1] * len(ids)}
        return self(text, text_pair, **options)

    with (
        mock.patch.object(
            PreTrainedTokenizerBase, "build_inputs_with_special_tokens", build_inputs_with_special_tokens, create=True
        ),
        mock.patch.object(PreTrainedTokenizerBase, "encode_plus", encode_plus, create=True),
    ):
        yield


class MendedRadGraph:
    """radgraph.RadGraph, called with the mends in place."""

    def __init__(self, package: Any) -> None:
        self.package, self.model = package, package.model

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        with oracle_mends(), torch.no_grad():
            return self.package(texts)


def radgraph_oracle(extracted: Path, name: str, bert: Path, cuda: int = -1) -> MendedRadGraph:
    """The radgraph package on `extracted`/`name`/, whose config.json is pointed at the local encoder folder.

    `cuda`: number of a GPU; -1 is the CPU.
    """
    from radgraph import RadGraph

    path = extracted / name / "config.json"
    config = json.loads(path.read_text())
    config["model"]["embedder"]["token_embedders"]["bert"]["model_name"] = str(bert)
    config["dataset_reader"]["token_indexers"]["bert"]["model_name"] = str(bert)
    path.write_text(json.dumps(config))
    with oracle_mends():
        return MendedRadGraph(RadGraph(model_type=name, model_cache_dir=str(extracted), cuda=cuda))


class MendedCheXbert:
    """f1chexbert.F1CheXbert on a weights folder, called with the mends in place."""

    def __init__(self, weights: Path, device: str = "cpu") -> None:
        import f1chexbert.f1chexbert as module
        from transformers import AutoConfig, BertTokenizer

        folder = weights / "bert-base-uncased"
        tokenizer, config = BertTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
        with (
            mock.patch.object(module, "CACHE_DIR", str(weights)),
            mock.patch.object(module.BertTokenizer, "from_pretrained", return_value=tokenizer),
            mock.patch.object(module.AutoConfig, "from_pretrained", return_value=config),
        ):
            self.package = module.F1CheXbert(device=device)

    def labels(self, text: str) -> list[int]:
        """ "rrg" labels, 14 of 0 and 1."""
        with oracle_mends(), torch.no_grad():
            return self.package.get_label(text)

    def vector(self, text: str) -> torch.Tensor:
        """CLS vector of the last layer."""
        import f1chexbert.f1chexbert as module
        import pandas as pd

        with oracle_mends(), torch.no_grad():
            ids = torch.tensor(module.tokenize(pd.Series([text]), self.package.tokenizer), device=self.package.device)
            return self.package.model.bert(ids)[0][0, 0]


def bertscore_oracle(weights: Path, candidates: list[str], references: list[str], device: str = "cpu") -> list[float]:
    """bert_score.score as CXR-Report-Metric calls it, with a tokenizer that honours the prefix space."""
    import bert_score
    from transformers import AutoTokenizer

    folder = weights / "distilroberta-base"
    table = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / "distilroberta-base.tsv"
    tokenizer = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    with oracle_mends(), mock.patch.object(sys.modules["bert_score.score"], "get_tokenizer", return_value=tokenizer):
        _, _, f1 = bert_score.score(
            candidates,
            references,
            model_type=str(folder),
            num_layers=5,
            lang="en",
            device=device,
            rescale_with_baseline=True,
            baseline_path=str(table),
        )
    return f1.tolist()
