"""What is measured on rollouts: how often they repeat themselves, copy the prior report, or turn a negation round."""

from __future__ import annotations

import numpy as np

from rewards.conditions import NEGATIVE, POSITIVE
from rewards.grpo_reward import Rollouts
from training.rollouts import groups

COPIED_SHARE = 0.9  # our choice: a rollout of whose word 4-grams this share is in the prior report is a copy of it


def unique_share(rollouts: Rollouts) -> float:
    """Mean over studies of different reports / rollouts, in (0, 1]; 1/16 where all 16 rollouts of each are one."""
    shares = [len({rollouts.candidates[row] for row in group}) / len(group) for group in groups(rollouts)]
    return float(np.mean(shares))


def copied_share(candidate: str, prior: str) -> float:
    """Share of the candidate's word 4-grams that are in the prior report too, in [0, 1]; 0 below four words."""
    grams = four_grams(candidate)
    return len(grams & four_grams(prior)) / len(grams) if grams else 0.0


def prior_copies(rollouts: Rollouts) -> list[int]:
    """Row numbers of the rollouts that copy the prior report shown in their prompt."""
    copied = {
        pair: copied_share(*pair) >= COPIED_SHARE
        for pair in set(zip(rollouts.candidates, rollouts.prior_reports, strict=True))
        if pair[1]
    }
    pairs = zip(rollouts.candidates, rollouts.prior_reports, strict=True)
    return [row for row, pair in enumerate(pairs) if copied.get(pair)]


def negation_flips(candidates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Where one side affirms a condition and the other denies it: bool [n, 14], from class labels int [n, 14]."""
    return ((candidates == POSITIVE) & (references == NEGATIVE)) | ((candidates == NEGATIVE) & (references == POSITIVE))


def zero_spread(rollouts: Rollouts) -> float:
    """Share of the studies whose judged rollouts all have the same weighted sum: nothing to learn from.

    Of the sum itself, as TRL's `frac_reward_zero_std` is not where each part is normalised.
    """
    judged = [
        [total for row in group if (total := rollouts.scores.total[row]) is not None] for group in groups(rollouts)
    ]
    return float(np.mean([not totals or max(totals) - min(totals) < 1e-6 for totals in judged]))


def four_grams(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(zip(words, words[1:], words[2:], words[3:], strict=False))
