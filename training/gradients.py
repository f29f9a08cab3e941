"""Every trainable tensor learns, or the run stops: what has no gradient after the first update never will have one."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foundation.errors import RecipeError


def let_vision_adapters_learn(model: nn.Module, training: TrainingArguments) -> None:
    """Let gradients reach adapters of the vision tower where checkpointing is re-entrant (TRL: PEFT under ZeRO-3).

    A re-entrant checkpoint whose inputs need no gradient gives none to the weights within it. The language model's inputs
    are made to need one by TRL; the vision tower's, which come from frozen patches, are here.
    """
    reentrant = training.gradient_checkpointing and (training.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if reentrant and is_peft_model(model):
        patches = model.get_base_model().model.visual.patch_embed
        patches.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))


def keep_adapters_in_float32(model: nn.Module) -> None:
    """Adapters of a quantised base in float32, in which small steps are kept; TRL has them in bfloat16."""
    quantised = getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)
    if quantised and is_peft_model(model):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()


class EveryTensorLearns(TrainerCallback):
    """Raises `RecipeError` at the first update of a run if a trainable tensor took part in no backward pass.

    A gradient of zeros is one: LoRA's A matrices have it at first.
    """

    def __init__(self) -> None:
        self.without: dict[str, nn.Parameter] | None = None  # trainable tensors that no backward pass has reached
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.without = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        # Hooks and not `grad`, which DeepSpeed takes away; FSDP has it, on shards that no hook sees.
        for name, weight in self.without.items():
            self.handles.append(weight.register_hook(lambda gradient, name=name: self._reached(name)))

    def _reached(self, name: str) -> None:
        if self.without is not None:
            self.without.pop(name, None)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.without is None:
            return
        still = [name for name, weight in self.without.items() if weight.grad is None]
        self.without = None
        for handle in self.handles:
            handle.remove()
        if still:
            raise RecipeError(
                f"{len(still)} trainable tensors had no gradient at the first update and would stay as they are "
                f"({', '.join(still[:2])}{', …' if len(still) > 2 else ''}); leave them out of lora_target_modules, or set "
                "gradient_checkpointing: false"
            )
