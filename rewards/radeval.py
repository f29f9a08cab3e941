"""RadEval's own TRL rewards as parts of a composite: `radeval:NAME` or `radeval:NAME:KEY`, where radeval is installed.

They are called as TRL would call them (`radeval.rewards.make_reward_fn`, radeval 2.2), so their numbers are RadEval's,
idf over the batch and all (benchmarks/README.md says where these differ from ours and why).
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from rewards.metric import Metric, MetricError

RADEVAL = "radeval:"
_HOW = "pip install radeval==2.2.1"


class RadEvalMetric(Metric):
    """One of RadEval's metrics. Its range is RadEval's to say; a pair that it skips is an error, never a 0."""

    range = (-np.inf, np.inf)

    def __init__(self, name: str) -> None:
        """
        Args:
            name: `radeval:bleu`, or with the key of one of several numbers `radeval:radgraph:radgraph_partial`.

        Raises:
            MetricError: radeval is not installed, cannot be imported, or has no such metric.
        """
        metric, _, key = name.removeprefix(RADEVAL).partition(":")
        try:
            self.fingerprint = self.backend = f"radeval {version('radeval')}"
            # Its RadGraph imports `RadEval.…`, which only file systems without upper case find (2.2.1).
            sys.modules.setdefault("RadEval", importlib.import_module("radeval"))
            make_reward_fn = importlib.import_module("radeval.rewards").make_reward_fn
        except PackageNotFoundError as error:
            raise MetricError(f"{name} is RadEval's, which is not installed: {_HOW}, or leave it out") from error
        except ImportError as error:
            raise MetricError(f"{name}: radeval is installed, but cannot be imported here ({error})") from error
        try:
            self._reward = make_reward_fn(metric, reference_column="reference", key=key or None)
        except (
            ImportError,
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
        ) as error:  # its own, and of packages and weights
            raise MetricError(
                f"{name}: radeval cannot load it ({type(error).__name__}: {_first_line(error)})"
            ) from error
        self.name = name

    def score(self, candidates: list[str], references: list[str]) -> np.ndarray:
        try:
            scores = self._reward(completions=candidates, reference=references)
        except (KeyError, ValueError) as error:  # its own words for a missing key and for scores that are no numbers
            raise MetricError(f"{self.name}: radeval says: {_first_line(error)}") from error
        return np.array([np.nan if score is None else score for score in scores], dtype=np.float32)


def _first_line(error: BaseException) -> str:
    return (str(error.args[0]) if error.args else type(error).__name__).splitlines()[0]
