"""Several prepared data sets as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.study import StudyError, read_studies


def read_mixture(
    folders: Sequence[Path | str],
    split: str,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """One split of several prepared folders as one study table with a further column `folder`, in the folders' order.

    Args:
        folders: prepared folders; leave one out for the zero-shot recipe.
        weights: for each folder, how many times its studies are taken: 1 (default) each once; 0.5 a random half, without
            replacement; 2.5 each twice and a random half a third time; 0 none.
        seed: of the random part.
        columns: only these, of the table and `folder`; default: all.

    Raises:
        StudyError: no folder, a weight below 0, another number of weights than folders, nothing left, or a folder that
            is missing, empty in this split, or broken.
    """
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if not folders:
        raise StudyError("a mixture needs at least one prepared folder")
    if len(weights) != len(folders) or min(weights) < 0:
        raise StudyError(f"a mixture of {len(folders)} folders needs as many weights of 0 or more; given: {weights}")
    generator = np.random.default_rng(seed)
    parts = []
    for folder, weight in zip(folders, weights, strict=True):
        table = read_studies(folder, split)
        whole, part = divmod(weight, 1)
        rest = np.sort(generator.permutation(len(table))[: round(part * len(table))])
        if columns is not None:
            table = table.select([name for name in table.column_names if name in columns])
        if weight != 1:
            rows = np.concatenate([np.tile(np.arange(len(table)), int(whole)), rest]).astype(np.int64)
            table = table.take(rows)
        parts.append(table.append_column("folder", pa.repeat(pa.scalar(str(folder), pa.string()), len(table))))
    mixture = pa.concat_tables(parts)
    if not len(mixture):
        raise StudyError(f"a mixture with weights {weights} holds no study")
    return mixture
