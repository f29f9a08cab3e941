"""A line of the report, and what is verified."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One check: what it is of, what should be, what is.

    Attributes:
        ok: whether `found` is as expected; None where the check was skipped, and `found` says why.
    """

    check: str
    expected: str
    found: str
    ok: bool | None


@dataclass(frozen=True)
class Subject:
    """What is verified, as the command was given it.

    Attributes:
        out: folder of the report and of the logs; runs are made in it and removed.
        model: checkpoint of the base model.
        reports: file of real reports, one that `rewards.sensitivity.read_reports` reads.
        most_reports: of them, so many are scored by metric and package.
        pairs: so many are judged.
        studies: that two updates of SFT and of each RL step train on.
        rollouts: a study's.
        judge_base_url, judge_model: None for those of the recipe's step 2.
        gpus: that train; 0 is a CPU.
        datasets: prepared ones to train on; empty for the recipe's.
    """

    recipe: str
    variant: str | None
    data_dir: Path
    weights_dir: Path
    out: Path
    model: str
    reports: Path
    most_reports: int = 200
    pairs: int = 50
    studies: int = 32
    rollouts: int = 4
    judge_base_url: str | None = None
    judge_model: str | None = None
    gpus: int = 0
    datasets: tuple[str, ...] = ()


def skipped(check: str, expected: str, why: str) -> Line:
    return Line(check, expected, why, None)
