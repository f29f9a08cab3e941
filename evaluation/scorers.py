"""What scores a file: the metrics, the labeler and the judge of one backend, loaded and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import EvaluationError
from common.governance import JudgeError
from evaluation.score import METRICS, Scorers
from rewards.chexprompt.judge import Judge, JudgeSettings
from rewards.metric import MetricError
from rewards.radcliq import PARTS
from rewards.registry import load_metrics

BACKENDS = ("real", "offline")


@contextmanager
def open_scorers(
    backend: str,
    weights_dir: Path | None = None,
    metrics: Sequence[str] = METRICS,
    judge: Mapping[str, Any] | None = None,
    temporal_by_judge: bool = False,
    optional: Sequence[str] = (),
) -> Iterator[Scorers]:
    """Scorers of one backend, with the judge (and its stand-in server, where asked for) running while they are used.

    Args:
        backend: real (weights in `weights_dir`) or offline (rules; every name says so).
        judge: fields of JudgeSettings, or None for no judge.
        temporal_by_judge: label change in the references by the judge's language model, not by rules.
        optional: metrics to add where they can be had (`OPTIONAL_METRICS`); `Scorers.skipped` says why one cannot.

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
    if judge is None:
        yield Scorers(backend, scored, labeler, skipped=skipped)
        return
    with load_judge(judge) as opened:
        yield Scorers(backend, scored, labeler, opened, temporal_by_judge, skipped)


def load_judge(settings: Mapping[str, Any]) -> Judge:
    """The judge of these settings (fields of JudgeSettings); `judge_base_url: offline` starts the stand-in's server.

    Raises:
        EvaluationError: settings that do not fit.
    """
    try:
        return Judge.from_settings(JudgeSettings.from_mapping(settings))
    except (JudgeError, TypeError) as error:
        raise EvaluationError(" ".join(str(error).split())) from error
