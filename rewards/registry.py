"""The table of metrics: a name in, the metric of the chosen backend out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rewards.bleu import Bleu2
from rewards.metric import Metric
from rewards.radcliq import PARTS, RadCliQ
from rewards.radgraph import LEVELS, RadGraphF1
from rewards.sembscore import SembScore, label_vectors

BACKENDS = ("real", "offline")
METRICS = (
    "bleu2",
    "bertscore",
    "sembscore",
    "sembscore_labels",
    "radgraph",
    *(f"radgraph_{level}" for level in LEVELS if level != "combined"),
    "radcliq_v1",
    "radcliq_v0",
    "ratescore",
)


class MetricError(ValueError):
    """A metric, backend or weight that was asked for cannot be had. The message says how to mend it."""


class OfflineBackend:
    """Stand-ins by rules and hashes: no weights, no torch. Each name says what it is."""

    def __init__(self) -> None:
        from rewards.offline.embedding import HashBertScore
        from rewards.offline.graph import annotate
        from rewards.offline.labeler import label_reports
        from rewards.weights import source_fingerprint

        rules = "offline-rules"
        fingerprint = source_fingerprint("rewards.offline.lexicon", "rewards.offline.graph", "rewards.offline.labeler")

        def vectors(texts: Sequence[str]):
            return label_vectors(label_reports(texts))

        self.build: dict[str, Callable[[], Metric]] = {
            "bertscore": HashBertScore,
            "sembscore": lambda: SembScore(vectors, rules, fingerprint),
            "sembscore_labels": lambda: SembScore(vectors, rules, fingerprint, name="sembscore_labels"),
        }
        for level in LEVELS:
            name = "radgraph" if level == "combined" else f"radgraph_{level}"
            self.build[name] = lambda level=level: RadGraphF1(annotate, rules, fingerprint, level)


def load_metrics(
    names: Sequence[str], backend: str = "real", weights_dir: Path | str | None = None
) -> dict[str, Metric]:
    """The metrics of `names` on `backend`, sharing models and caches, keyed by the requested bare name.

    `Metric.name` is the full one, which results carry: `sembscore[offline-rules]`. BLEU-2 is exact on every backend.

    Args:
        names: from `METRICS`.
        backend: "real" (the published weights) or "offline" (rules, for machines without weights).
        weights_dir: folder of `make weights`, for "real".

    Raises:
        MetricError: an unknown name or backend, or weights that are missing; the message names the command that mends
            it.
    """
    if backend not in BACKENDS:
        raise MetricError(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
    if unknown := [name for name in names if name not in METRICS]:
        raise MetricError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(METRICS)}")
    if backend == "real":
        raise MetricError("the real backend is not here yet; use the offline one")
    source = OfflineBackend()
    built: dict[str, Metric] = {}

    def metric(name: str) -> Metric:
        if name not in built:
            if name == "bleu2":
                built[name] = Bleu2()
            elif name.startswith("radcliq_"):
                built[name] = RadCliQ(name.removeprefix("radcliq_"), {part: metric(part) for part in PARTS})
            elif name in source.build:
                built[name] = source.build[name]()
            else:
                raise MetricError(f"{name} has no {backend} backend; leave it out, or use --backend real")
        return built[name]

    return {name: metric(name) for name in names}
