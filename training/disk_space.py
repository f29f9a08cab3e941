"""A disk that fills up while a stage trains: told before a checkpoint is begun, instead of half a checkpoint after."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from foundation.errors import RecipeError
from foundation.machine import format_bytes

MARGIN = 1.05  # logs and rollouts are written meanwhile


class RoomForCheckpoint(TrainerCallback):
    """Stops the run where the next checkpoint, or the final model, would not fit. To be added after the callbacks that ask
    for checkpoints."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            require_room_for_checkpoint(kwargs["model"], args, state.global_step)

    on_epoch_end = on_log = on_step_end  # a monitor asks at the log

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Whole, of an adapter too: it is merged for the next stage.
        whole = sum(_count(p) * p.element_size() for p in kwargs["model"].parameters())
        require_room(args.output_dir, "the final model", whole)


def require_room_for_checkpoint(model: torch.nn.Module, args: TrainingArguments, step: int) -> None:
    """`require_room` for the checkpoint of `step`: as large as the last one, or as the model makes it."""
    needed = folder_bytes(get_last_checkpoint(args.output_dir)) or checkpoint_bytes(model, args)
    require_room(args.output_dir, f"checkpoint-{step}", needed)


def require_room(output_dir: str, what: str, needed: int) -> None:
    """Return if `needed` bytes and a little more are free where `output_dir` is; all processes come to the same answer.

    Raises:
        RecipeError: they are not.
    """
    free = shutil.disk_usage(output_dir).free
    state = PartialState()
    if state.num_processes > 1:
        least = torch.tensor(free, device=state.device)
        torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
        free = int(least)
    if free < needed * MARGIN:
        last = get_last_checkpoint(output_dir)
        after = f"resumes from {Path(last).name}" if last else "starts over"
        raise RecipeError(
            f"{output_dir}: {format_bytes(free)} free, {what} needs about {format_bytes(needed)}; nothing of it was written. "
            f"Make room and run the same command again: it {after}"
        )


def folder_bytes(folder: str | None) -> int:
    """Bytes of the files below `folder`; 0 for None."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) if folder else 0


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of the weights as they are saved: of the adapter alone where there is one."""
    with_adapter = hasattr(model, "peft_config")
    return sum(_count(p) * p.element_size() for p in model.parameters() if p.requires_grad or not with_adapter)


def checkpoint_bytes(model: torch.nn.Module, args: TrainingArguments) -> int:
    """Bytes of a first checkpoint, from the model: its weights and, unless `save_only_model`, Adam's two moments in float32
    and, of 16-bit weights, the float32 copy that ZeRO and FSDP train."""
    if args.save_only_model:
        return model_bytes(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model_bytes(model) + sum(_count(p) * (8 if p.element_size() == 4 else 12) for p in trained)


def _count(parameter: torch.nn.Parameter) -> int:
    # ZeRO-3 leaves an empty tensor in a sharded parameter's place, and its size in ds_numel.
    return getattr(parameter, "ds_numel", parameter.numel())
