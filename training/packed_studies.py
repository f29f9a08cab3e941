"""SFT on several studies a row, exactly as on a row for each, with nothing computed for padding.

    study 1: prompt, report | study 2: prompt, report | …

Positions restart at each study, and a study's tokens attend to their own study alone (`shared_attention.Blocks`), so every
token sees the tokens, at the positions, that it sees in a row of its own: same loss, same gradients. TRL packs texts and
refuses films; so its collator makes the padded batch, and this one takes the padding out. Which studies make up an update does
not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

LENGTHS = "study_lengths"


class PackedStudies:
    """A collator: TRL's, and then one row for all of its studies.

    Args:
        collate: TRL's; right- or left-padded rows.
        rope_index: the model's `get_rope_index`, which gives Qwen3-VL's positions.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]], rope_index: Callable[..., Any]) -> None:
        self.collate, self.rope_index = collate, rope_index

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        return pack_batch(self.collate(examples), self.rope_index)


def pack_batch(batch: dict[str, Any], rope_index: Callable[..., Any]) -> dict[str, Any]:
    """A padded batch as one row of all its real tokens.

    Args:
        batch: input_ids, attention_mask, labels, mm_token_type_ids int64 [n, L]; films as they are.

    Returns:
        The same with rows of [1, tokens], `position_ids` int64 [3, 1, tokens], and `study_lengths` int64 [n].
    """
    seen = batch["attention_mask"].bool()
    positions, _ = rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        image_grid_thw=batch.get("image_grid_thw"),
        attention_mask=batch["attention_mask"],
    )
    lengths = seen.sum(1)
    packed = {
        name: value[seen][None] if isinstance(value, torch.Tensor) and value.shape == seen.shape else value
        for name, value in batch.items()
    }
    # Nobody predicts the first token of a row; here the study before would.
    packed["labels"][0, lengths.cumsum(0) - lengths] = -100
    return packed | {"position_ids": positions[:, seen][:, None], LENGTHS: lengths}
