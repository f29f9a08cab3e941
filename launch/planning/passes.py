"""The forward passes of an update, drawn by seed from the studies' lengths: which keep their activations, and who waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from launch.planning.studies import DRAWN

ROWS = 16 * DRAWN  # rows that are drawn, at least


@dataclass(frozen=True)
class Passes:
    """
    Attributes:
        kept: share of an update's tokens in forward passes that keep their activations, in [0, 1].
        longest: tokens of the longest pass of all processes over those of the mean one, at least 1: the others wait for it.
    """

    kept: float
    longest: float


def draw_passes(
    lengths: np.ndarray,
    *,
    processes: int,
    passes: int,
    rows: int,
    most: int | None,
    together: int = 1,
    longest_report: float = math.inf,
    rollout_spread: float = 0.0,
    packed: bool = False,
    by_length: bool = False,
) -> Passes:
    """Passes as training makes them of studies in random order.

    Args:
        lengths: tokens of prompt and report of each study, [n, 2].
        passes: of one update and process.
        rows: of a pass; `together` rollouts of a study are one.
        most: tokens of a pass that keeps its activations where no process has more (training/kept_activations.py).
        longest_report: of a rollout; longer ones are cut.
        rollout_spread: standard deviation of a study's rollouts, over their mean.
        packed: rows are not padded to the longest of their pass.
        by_length: each process begins an update with its shortest studies (training/shared_prompts.py).

    Packed passes of several processes are of nearly the same length (training/balanced_batches.py).
    """
    drawing = np.random.default_rng(0)
    updates = math.ceil(ROWS / (processes * passes * rows))
    shape = updates, processes, passes * rows
    prompts, reports = lengths[drawing.integers(0, len(lengths), shape)].transpose(3, 0, 1, 2)
    one = (
        drawing.normal(1, rollout_spread, (*shape, together)).clip(0) if rollout_spread else np.ones((*shape, together))
    )
    written = np.minimum(reports[..., None] * one, longest_report).sum(-1)
    tokens = prompts + written + together * (together > 1)  # a shared prompt's last token stands before each report
    if by_length:
        tokens = np.sort(tokens, -1)
    each = tokens.reshape(updates, processes, passes, rows)
    each = each.sum(-1) if packed else each.max(-1) * rows
    if packed and processes > 1:
        each = np.broadcast_to(each.mean((1, 2), keepdims=True), each.shape)
    slowest = each.max(1)  # of all processes, [updates, passes]
    kept = 0.0 if most is None else float((each.sum(1) * (slowest <= most)).sum() / each.sum())
    return Passes(kept, float(slowest.sum() * processes / each.sum()))
