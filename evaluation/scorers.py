"""What scores a file: the metrics, the labeler and the judge of one backend, loaded and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import temporal
from foundation.errors import EvaluationError
from foundation.governance import JudgeError
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings
from rewards.conditions import Labeler
from rewards.llm_metrics import LLM_METRICS, LlmMetric
from rewards.metric import Metric, MetricError
from rewards.radcliq import PARTS, RadCliQ
from rewards.registry import load_metrics

BACKENDS = ("real", "offline")

# Paper, Optimization: the composite reward of step 1. It is shown beside the metrics because it is what RL optimises.
COMPOSITE_WEIGHTS = {"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}

METRICS = ("bleu2", "bertscore", "sembscore", "radgraph")

OPTIONAL_METRICS = ("ratescore",)  # scored where its package and weights are; named as skipped elsewhere


@contextmanager
def open_scorers(
    backend: str,
    weights_dir: Path | None = None,
    metrics: Sequence[str] = METRICS,
    judge: Mapping[str, Any] | None = None,
    temporal_by_judge: bool = False,
    optional: Sequence[str] = (),
    llm_metrics: Mapping[str, JudgeSettings] | None = None,
) -> Iterator[Scorers]:
    """Scorers of one backend, with the judge (and its stand-in server, where asked for) running while they are used.

    Args:
        backend: real (weights in `weights_dir`) or offline (rules; every name says so).
        judge: fields of JudgeSettings, or None for no judge.
        temporal_by_judge: label change in the references by the judge's language model, not by rules.
        optional: metrics to add where they can be had (`OPTIONAL_METRICS`); `Scorers.skipped` says why one cannot.
        llm_metrics: metrics that a language model is asked for (`rewards.llm_metrics`), with the settings of its client.

    Raises:
        EvaluationError: an unknown backend, absent weights, judge settings that do not fit.
    """
    if temporal_by_judge and (judge is None or judge.get("judge_base_url") == "offline"):
        raise EvaluationError("temporal labels by a judge need a language model: name its server, or use the rules")
    if backend not in BACKENDS:
        raise EvaluationError(f"backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    # RadCliQ-v1 follows from its parts' scores: with all of them there, it is not scored on its own.
    names = [name for name in metrics if name != "radcliq_v1" or not set(PARTS) <= set(metrics)]
    try:
        loaded = load_metrics(list(dict.fromkeys([*names, "sembscore"])), backend, weights_dir)
        labeler = loaded["sembscore"].labeler  # one CheXbert pass gives its vectors and the labels
    except MetricError as error:
        raise EvaluationError(str(error)) from error
    scored = {name: loaded[name] for name in names}
    skipped = {}
    for name in optional:
        if name not in scored:
            try:
                scored |= load_metrics([name], backend, weights_dir)
            except MetricError as error:
                skipped[name] = " ".join(str(error).split())
                print(f"{name} is not scored: {skipped[name]}")
    with ExitStack() as opened:
        own = None if judge is None else opened.enter_context(load_judge(judge))
        asked = {
            name: opened.enter_context(_load_llm_metric(name, given)) for name, given in (llm_metrics or {}).items()
        }
        yield Scorers(backend, scored, labeler, own, temporal_by_judge, skipped, asked)


def _load_llm_metric(name: str, settings: JudgeSettings) -> LlmMetric:
    try:
        return LLM_METRICS[name].from_settings(settings)
    except JudgeError as error:
        raise EvaluationError(f"{name}: {' '.join(str(error).split())}") from error


def load_judge(settings: Mapping[str, Any]) -> Judge:
    """The judge of these settings (fields of JudgeSettings); `judge_base_url: offline` starts the stand-in's server.

    Raises:
        EvaluationError: settings that do not fit.
    """
    try:
        return Judge.from_settings(JudgeSettings.from_mapping(settings))
    except (JudgeError, TypeError) as error:
        raise EvaluationError(" ".join(str(error).split())) from error


@dataclass(frozen=True)
class Scorers:
    """What scores: metrics by bare name, a labeler, perhaps a judge."""

    backend: str
    metrics: Mapping[str, Metric]
    labeler: Labeler
    judge: Judge | None = None
    temporal_by_judge: bool = False  # label change by the judge's model, not by rules
    skipped: Mapping[str, str] = field(default_factory=dict)  # optional metrics that are not scored, and why
    llm_metrics: Mapping[str, LlmMetric] = field(
        default_factory=dict
    )  # asked of a language model, which may not answer

    @property
    def asked(self) -> list[Judge]:
        """The clients of language models: the judge's, and those of metrics."""
        return [*([self.judge] if self.judge is not None else []), *self.llm_metrics.values()]

    def described(self) -> dict[str, Any]:
        """Names, backends and fingerprints: what makes a number what it is."""
        return {
            "backend": self.backend,
            "metrics": {
                m.name: {
                    "backend": m.backend,
                    "fingerprint": m.fingerprint,
                    "range": [float(bound) if np.isfinite(bound) else None for bound in m.range],
                    "higher_is_better": m.higher_is_better,
                }
                for m in [*self.metrics.values(), *([self.radcliq] if self.radcliq else [])]
            }
            | {
                m.name: {
                    "backend": m.model,
                    "fingerprint": m.fingerprint,
                    "range": list(m.range),
                    "higher_is_better": True,
                    "prompt": m.prompt_version,
                }
                for m in self.llm_metrics.values()
            },
            "labels": {"backend": self.labeler.backend, "fingerprint": self.labeler.fingerprint},
            "judge": self.judge
            and {"name": self.judge.name, "model": self.judge.model, "fingerprint": self.judge.fingerprint},
            "composite": {"name": self.composite_name(), "weights": COMPOSITE_WEIGHTS},
            "skipped": sorted(self.skipped),
            "temporal": {"backend": self.judge.model, "fingerprint": temporal.PROMPT_VERSION}
            if self.temporal_by_judge and self.judge
            else {"backend": temporal.RULES_NAME, "fingerprint": temporal.RULES_VERSION},
        }

    @cached_property
    def radcliq(self) -> RadCliQ | None:
        """RadCliQ-v1 over the metrics that are scored anyway; None where one of its parts is not."""
        return RadCliQ("v1", self.metrics) if set(PARTS) <= set(self.metrics) else None

    def composite_name(self) -> str | None:
        """`composite`, marked as a stand-in where a part of it is one; None where a part is not scored."""
        if not set(COMPOSITE_WEIGHTS) <= set(self.metrics):
            return None
        return "composite" + ("[offline]" if any("[" in self.metrics[m].name for m in COMPOSITE_WEIGHTS) else "")
