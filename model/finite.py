"""Weights that are no numbers: a checkpoint with NaN or infinities is refused before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from foundation.errors import RecipeError


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first of the floating-point tensors that holds NaN, an infinity, or a number whose square overflows (as
    the last update of a stage that diverges leaves), None where none does."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor.float() if tensor.element_size() == 1 else tensor
            ends = torch.stack(torch.aminmax(wide)).float()  # aminmax passes NaN on
            if not torch.isfinite(ends * ends).all():
                return name
    return None


def check_finite_weights(folder: Path) -> None:
    """Raise `RecipeError` where a weight of the checkpoint in `folder` is NaN or infinite. Each state of it is read once."""
    files = sorted(folder.glob("*.safetensors"))
    _check_files(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _check_files(states: tuple[tuple[Path, int, int], ...]) -> None:
    for file, _, _ in states:
        try:
            with safe_open(file, framework="pt") as opened:
                wrong = first_not_finite((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
        except SafetensorError as error:
            raise RecipeError(f"{file} is damaged ({str(error).splitlines()[0]}); save or fetch it again") from error
        if wrong:
            raise RecipeError(
                f"{file}: {wrong} holds NaN, infinite or overflowing weights: the stage that made it diverged; start from an earlier "
                "checkpoint, or train it again with a lower learning_rate"
            )
