"""Does each metric give its package's numbers on real reports, and how fast is either?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from launch.verifying.line import Line, Subject, skipped
from launch.verifying.packages import PACKAGES, load_package
from rewards.metric import Metric
from rewards.registry import load_metrics
from rewards.sensitivity import edited_pairs, read_reports
from rewards.weights import RATESCORE_MODELS

# Our choice. Scores differ by float rounding; where that turns an entity or decides between two names alike, by more.
CLOSE = 1e-4
SHARE = {"radgraph_partial": 0.99, "sembscore": 1.0, "bertscore": 1.0, "ratescore": 0.8}
SEED = 0


def pairs_of(subject: Subject, most: int) -> list[tuple[str, str]]:
    """Up to `most` pairs (candidate, reference): edited reports and other patients', each kind in its turn."""
    reports = read_reports(subject.reports)[:most]
    kinds = [[(text, reports[i]) for i, text in rows] for rows in edited_pairs(reports, SEED).values() if rows]
    longest = max(map(len, kinds))
    mixed = [kind[i] for i in range(longest) for kind in kinds if i < len(kind)]
    return mixed[:most]


def check_metrics(subject: Subject) -> Iterator[Line]:
    """Scores of metric and package, one line a metric."""
    pairs = pairs_of(subject, subject.most_reports)
    for name in PACKAGES:
        yield _compared(subject, name, pairs)


def _compared(subject: Subject, name: str, pairs: list[tuple[str, str]]) -> Line:
    import torch

    check = f"{name} against {PACKAGES[name]}"
    expected = f"equal to {CLOSE:g} on {SHARE[name]:.0%} of {len(pairs)} pairs"
    files = {"ratescore": [*RATESCORE_MODELS], "bertscore": ["distilroberta-base"], "sembscore": ["chexbert.pth"]}
    missing = [file for file in files.get(name, ["radgraph.tar.gz"]) if not (subject.weights_dir / file).exists()]
    if missing:
        return skipped(check, expected, f"no {' and '.join(missing)} in {subject.weights_dir}; make weights fetches it")
    cuda = torch.cuda.is_available()
    try:
        package = load_package(name, subject.weights_dir, cuda)
    except ImportError as error:
        return skipped(check, expected, f"{error.name or error} is not installed")
    metric = load_metrics([name], "real", subject.weights_dir)[name]
    candidates, references = (list(texts) for texts in zip(*pairs, strict=True))
    package(candidates[:2], references[:2])
    metric(candidates[:2], references[:2])
    start = time.perf_counter()
    theirs = package(candidates, references)
    middle = time.perf_counter()
    ours = metric(candidates, references)
    end = time.perf_counter()
    return _line(metric, check, expected, SHARE[name], (ours, theirs), (end - middle, middle - start))


def _line(
    metric: Metric,
    check: str,
    expected: str,
    share: float,
    scores: tuple[np.ndarray, np.ndarray],
    seconds: tuple[float, float],
) -> Line:
    differences = np.abs(scores[0].astype(np.float64) - scores[1])
    equal = float((differences <= CLOSE).mean())  # NaN is not equal
    found = (
        f"equal on {equal:.1%}, largest difference {differences.max():.2g}, scores spread by {scores[1].std():.2g}; "
        f"{len(differences) / seconds[0]:.1f} pairs a second, the package {len(differences) / seconds[1]:.1f}; "
        f"weights {metric.fingerprint[:12]}"
    )
    return Line(check, expected, found, equal >= share)
