"""Gradient checkpointing where memory asks for it, and not where it does not.

Checkpointing computes each layer twice: a third more of an update. Memory is set by the longest rows, time by the usual ones;
so a forward pass of few tokens keeps its activations, and a longer one is checkpointed. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn


@contextmanager
def kept_activations(model: nn.Module, tokens: int, most: int | None) -> Iterator[bool]:
    """Within, `model`'s checkpointed layers keep their activations if no process's pass has above `most` tokens.

    All processes decide alike, which shards need: a layer that is computed again gathers its weights again, on every process or on
    none. So all must come here together.

    Args:
        tokens: of this process's forward pass, padding included.
        most: None: checkpointing stays as it is set, and nobody is asked.

    Yields:
        Whether they are kept.
    """
    if most is None or not torch.is_grad_enabled():
        yield False
        return
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    keep = bool(layers) and _most_of_all(tokens, next(model.parameters()).device) <= most
    for layer in layers if keep else ():
        layer.gradient_checkpointing = False
    try:
        yield keep
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True


def _most_of_all(tokens: int, device: torch.device) -> int:
    if not (distributed.is_available() and distributed.is_initialized()):
        return tokens
    most = torch.tensor(tokens, device=device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return int(most)
