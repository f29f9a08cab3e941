"""Numbers that are none: a loss, gradient or weight that is infinite or NaN stops a stage where it occurs.

transformers replaces NaN in its logs by zero and runs to the end; what it then calls a model holds no number. Here the
step is named, the update is not made, and the last good checkpoint stays.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from foundation.errors import RecipeError
from model.finite import first_not_finite
from training.processes import over_processes

# What torch says where a policy's probabilities are none: on a CPU, on a GPU.
_NO_PROBABILITIES = ("probability tensor contains", "device-side assert triggered")


class WatchedSteps:
    """Mixin of a trainer: keeps what `StopNotFinite` looks at.

    Attributes:
        losses: those of this optimiser step's forward passes, on the device, so that nothing waits for them.
        grad_norm: the norm of this step's gradients before clipping, where the trainer knows it.
    """

    losses: tuple[torch.Tensor, ...] = ()
    grad_norm: float | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        try:
            loss = super().training_step(*args, **kwargs)
        except RuntimeError as error:
            if not any(words in str(error) for words in _NO_PROBABILITIES):
                raise
            step = self.state.global_step + 1
            raise RecipeError(explain("the probability of a token", "not a number", step, self.args)) from error
        self.losses = (*self.losses, loss.detach())
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.grad_norm = super()._get_grad_norm(*args, **kwargs)
        return self.grad_norm


class StopNotFinite(TrainerCallback):
    """Stops all processes at the step whose loss or gradients are not finite, before its update; and before a checkpoint or
    the final model whose weights are not. To be added after the callbacks that ask for checkpoints.

    Raises:
        RecipeError: what is not finite, at which step, what is likely the cause.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        trainer.args.logging_nan_inf_filter = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        losses, self.trainer.losses = self.trainer.losses, ()
        loss = torch.stack([loss.float().sum() for loss in losses]).sum().item() if losses else 0.0
        norm = self.trainer.grad_norm
        # With float16, gradients overflow now and then: the scaler sees it, skips the step and lowers its scale.
        scaled = getattr(self.trainer.accelerator, "scaler", None) is not None
        found = [("the loss", loss)] + ([] if norm is None or scaled else [("the gradients' norm", float(norm))])
        wrong = next(((what, value) for what, value in found if not math.isfinite(value)), None)
        if _anywhere(wrong is not None):
            what, value = wrong or ("the loss or gradients of another process", "not finite")
            raise RecipeError(explain(what, value, state.global_step + 1, args))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save:
            self._check_weights(kwargs["model"], args, state)

    on_epoch_end = on_log = on_step_end  # a monitor asks at the log

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_weights(kwargs["model"], args, state)

    def _check_weights(self, model: torch.nn.Module, args: TrainingArguments, state: TrainerState) -> None:
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        wrong = first_not_finite((name, _local(parameter.detach())) for name, parameter in trained)
        if _anywhere(wrong is not None):
            raise RecipeError(
                explain(
                    f"the weight {wrong or '(of another process)'}",
                    "not finite, or so large that it overflows,",
                    state.global_step,
                    args,
                )
            )


def explain(what: str, value: float | str, step: int, args: TrainingArguments) -> str:
    """One line: what is not finite at which step, which checkpoint is the last good one, and what is likely the cause."""
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    kept = f"{last} was saved last" if last else "no checkpoint was saved before"
    if last and last.endswith(f"checkpoint-{step - 1}"):
        kept += ", of the very weights that gave this"
    if step == 1:
        cause = "at the first step it is rarely the learning rate: look at the model it starts from and at the data"
    else:
        cause = f"most likely learning_rate {args.learning_rate:g} is too high (or dtype too coarse): lower it"
    return f"{what} is {value} at step {step}, so training stopped there; {kept}; {cause}, and start again with FORCE=1"


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter that ZeRO-3 or FSDP shares among all."""
    parameter = getattr(parameter, "ds_tensor", parameter)
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _anywhere(wrong: bool) -> bool:
    """Whether it is so in any process: all must call this."""
    (found,) = over_processes([int(wrong)], torch.distributed.ReduceOp.MAX)
    return bool(found)
