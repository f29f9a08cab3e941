"""Forward passes of equal length, so that no process waits for another's.

Where all processes gather each layer together, a pass takes as long as the longest of theirs. Four studies at random differ by a
fifth. The studies of an optimiser step stay its studies, and its loss their mean; which of them share a pass does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BalancedBatches(Sampler):
    """The row numbers of `order`, those of an optimiser step arranged in passes of nearly the same number of tokens.

    Passes that come one after another go to one process each; of a step the short ones come first. The rest of an epoch, which
    is no whole step, stays as it is.

    Args:
        lengths: tokens of each row.
        rows: of a pass.
        passes: of an optimiser step, on all processes.
    """

    def __init__(self, order: Sampler, lengths: Sequence[int], rows: int, passes: int) -> None:
        self.order, self.lengths, self.rows, self.passes = order, lengths, rows, passes

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        order = list(self.order)
        step = self.rows * self.passes
        for start in range(0, len(order), step):
            studies = order[start : start + step]
            if len(studies) == step:
                groups = balanced([self.lengths[study] for study in studies], self.passes)
                studies = [studies[place] for group in groups for place in group]
            yield from studies


def balanced(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Places of `lengths` in `groups` groups of one size, of nearly the same sum; the group of the least sum is first.

    The longest is placed first, each in the group with the least sum that has room (Graham 1969).
    """
    size = len(lengths) // groups
    members: list[list[int]] = [[] for _ in range(groups)]
    sums = np.zeros(groups)
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        room = [len(group) < size for group in members]
        group = int(np.argmin(np.where(room, sums, np.inf)))
        members[group].append(place)
        sums[group] += lengths[place]
    return [members[group] for group in np.argsort(sums, kind="stable")]
