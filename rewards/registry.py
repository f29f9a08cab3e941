"""The table of metrics: a name in, the metric of the chosen backend out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.bleu import Bleu2
from rewards.conditions import Labeler
from rewards.metric import Metric, MetricError
from rewards.radcliq import PARTS, RadCliQ
from rewards.radgraph import LEVELS, RadGraphF1
from rewards.rouge import RougeL
from rewards.sembscore import SembScore
from rewards.temporal_f1 import TemporalF1
from rewards.weights import WeightsError

if TYPE_CHECKING:
    from rewards.engine import EngineSettings

BACKENDS = ("real", "offline")
METRICS = (
    "bleu2",
    "rouge_l",
    "temporal_f1",
    "bertscore",
    "sembscore",
    "sembscore_labels",
    "radgraph",
    *(f"radgraph_{level}" for level in LEVELS if level != "combined"),
    "radcliq_v1",
    "radcliq_v0",
    "ratescore",
)

# Asked of a language model, by the judge's client (rewards/llm_metrics, which takes a second to import).
LLM_METRIC_NAMES = ("green", "crimson", "radmatch")

# Of words alone: the same on every backend, without weights.
EXACT: dict[str, Callable[[], Metric]] = {"bleu2": Bleu2, "rouge_l": RougeL, "temporal_f1": TemporalF1}


def _radgraph_level(name: str) -> str:
    return "combined" if name == "radgraph" else name.removeprefix("radgraph_")


class _OfflineBackend:
    """Stand-ins by rules and hashes: no weights, no torch. Each name says what it is."""

    def metric(self, name: str) -> Metric:
        from rewards.offline.embedding import HashBertScore
        from rewards.offline.graph import annotate

        labeler = self.labeler()
        if name == "bertscore":
            return HashBertScore()
        if name in ("sembscore", "sembscore_labels"):
            return SembScore(labeler, name=name)
        if name.startswith("radgraph"):
            return RadGraphF1(annotate, labeler.backend, labeler.fingerprint, _radgraph_level(name))
        raise MetricError(f"{name} has no offline stand-in; leave it out, or use the real backend")

    def labeler(self) -> Labeler:
        from rewards.offline.labeler import label_reports
        from rewards.weights import source_fingerprint

        parts = ("lexicon", "phrases", "graph", "labeler")
        rules = source_fingerprint(*(f"rewards.offline.{part}" for part in parts))
        return Labeler("chexbert[offline-rules]", "offline-rules", rules, label_reports)


class _RealBackend:
    """The published models; each is loaded when the first metric asks for it, and shared by all that do."""

    def __init__(self, weights_dir: Path, settings: EngineSettings | None, radgraph_model: str) -> None:
        self.weights_dir, self.settings, self.radgraph_model = weights_dir, settings, radgraph_model

    @cached_property
    def chexbert(self):
        from rewards.chexbert import CheXbert

        return CheXbert(self.weights_dir, self.settings)

    @cached_property
    def radgraph(self):
        from rewards.radgraph_model import RadGraphModel

        return RadGraphModel(self.weights_dir, self.radgraph_model, self.settings)

    def metric(self, name: str) -> Metric:
        if name == "bertscore":
            from rewards.bertscore import BertScore, RobertaVectors

            return BertScore(RobertaVectors(self.weights_dir, self.settings))
        if name == "sembscore":
            return SembScore(self.labeler(), self.chexbert.vectors)
        if name == "sembscore_labels":
            return SembScore(self.labeler(), name=name)
        if name.startswith("radgraph"):
            return RadGraphF1(self.radgraph.annotate, "real", self.radgraph.fingerprint, _radgraph_level(name))
        if name == "ratescore":
            from rewards.ratescore import RateScore

            return RateScore(self.weights_dir, self.settings)
        raise MetricError(f"{name} has no real backend")

    def labeler(self) -> Labeler:
        return Labeler("chexbert", "real", self.chexbert.fingerprint, self.chexbert.label_reports)


def _backend(
    backend: str, weights_dir: Path | str | None, settings: EngineSettings | None, radgraph_model: str
) -> _OfflineBackend | _RealBackend:
    if backend == "offline":
        return _OfflineBackend()
    if backend != "real":
        raise MetricError(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise MetricError(
            f"the real backend needs {' and '.join(missing)}: pip install '.[models]' in this project's folder, or score "
            "with the offline backend"
        )
    folder = Path("weights" if weights_dir is None else weights_dir)
    if not folder.is_dir():
        raise WeightsError(
            f"there is no weights folder {folder}; fetch it with: make weights WEIGHTS_DIR={folder}, "
            "or score with the offline backend"
        )
    return _RealBackend(folder, settings, radgraph_model)


def load_labeler(
    backend: str = "real", weights_dir: Path | str | None = None, settings: EngineSettings | None = None
) -> Labeler:
    """The report labeler of `backend`; arguments and errors as `load_metrics`."""
    return _backend(backend, weights_dir, settings, "radgraph").labeler()


def load_metrics(
    names: Sequence[str],
    backend: str = "real",
    weights_dir: Path | str | None = None,
    settings: EngineSettings | None = None,
    radgraph_model: str = "radgraph",
) -> dict[str, Metric]:
    """The metrics of `names` on `backend`, sharing models and caches, keyed by the requested bare name.

    `Metric.name` is the full one, which results carry: `sembscore[offline-rules]`. Those of `EXACT` are the same on
    every backend.

    Args:
        names: from `METRICS`.
        backend: "real" (the published weights) or "offline" (rules, for machines without weights).
        weights_dir: folder of `make weights`, for "real"; `weights` where None.
        settings: device, token budget, caches, for "real".
        radgraph_model: which RadGraph archive, for "real"; ReXrank and RadCliQ use `radgraph`.

    Raises:
        MetricError: an unknown name or backend.
        WeightsError: weights that are missing or damaged; the message has the command that fetches them.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise MetricError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(METRICS)}")
    if backend not in BACKENDS:
        raise MetricError(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
    needs_source = set(names) - set(EXACT)
    source = _backend(backend, weights_dir, settings, radgraph_model) if needs_source else None
    built: dict[str, Metric] = {}

    def metric(name: str) -> Metric:
        if name not in built:
            if name in EXACT:
                built[name] = EXACT[name]()
            elif name.startswith("radcliq_"):
                built[name] = RadCliQ(name.removeprefix("radcliq_"), {part: metric(part) for part in PARTS})
            else:
                assert source is not None
                built[name] = source.metric(name)
        return built[name]

    return {name: metric(name) for name in names}
