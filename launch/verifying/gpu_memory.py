"""GPU memory between checks."""

from __future__ import annotations

import gc
import sys


def free_gpu() -> None:
    """Give back what PyTorch holds for models that are gone: the next model, or a run's own process, needs it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
