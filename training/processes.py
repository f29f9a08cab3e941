"""What the processes of a stage do together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from foundation.errors import OneLineError, RecipeError


def in_first_process(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, to all: all must call this.

    Raises:
        RecipeError: in all, where it raised a `OneLineError` in the first.
    """
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = function()
        except OneLineError as error:
            answer[1] = str(error)
    value, mistake = broadcast_object_list(answer)
    if mistake is not None:
        raise RecipeError(mistake)
    return value


def over_processes(values: Sequence[int], operation: torch.distributed.ReduceOp) -> list[int]:
    """Whole numbers reduced over all processes, the same in each: all must call this."""
    state = PartialState()
    if state.num_processes == 1:
        return list(values)
    reduced = torch.tensor(values, device=state.device)
    torch.distributed.all_reduce(reduced, op=operation)
    return reduced.tolist()


def leave_together() -> None:
    """Wait for all processes and end what they talk through: one that exits with it alive may abort on its way out."""
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        # Gloo's thread drops the barrier's tensor under Python's lock; were the trainer, and gloo with it, taken down by
        # this thread before, it would hold that lock and wait for gloo's thread for ever (seen once, torch 2.13).
        time.sleep(0.2)
        state.destroy_process_group()
