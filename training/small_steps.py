"""Small optimiser steps of 16-bit weights, kept.

A bfloat16 number has 8 bits: a step below 1/256 of a weight (1/512 on average) is rounded away, and at the paper's 5e-6 nearly
all are. ZeRO and FSDP2 train a float32 copy, LoRA's adapters are float32. For all weights on one device, or with DDP, the
weights are float32 here, computed with in 16 bits (autocast), where memory allows; otherwise they are bfloat16 and each step is
rounded up or down at random, right on average (Gupta et al. 2015, Deep Learning with Limited Numerical Precision, section 3).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Trainer, TrainingArguments
from trl import ModelConfig

from foundation.errors import RecipeError
from foundation.files import write_json
from model.architectures import parameter_count
from model.memory import share_for_training, weights_trained_in

HALF = ("bfloat16", "float16")
CHUNK = 1 << 24  # weights that a step handles at once: some 64 MiB for each temporary
_ADAMW = ("adamw_torch", "adamw_torch_fused")


def weights_dtype(path: str, model: ModelConfig, training: TrainingArguments) -> str | None:
    """The dtype to load the weights in `path` in, so that small steps are kept. May set `training` to compute in bfloat16.

    Raises:
        RecipeError: only bfloat16 weights fit this GPU, and the recipe's dtype or optimiser is another.
    """
    dtype = _computed_in(path, model, training)
    if dtype is None:
        return model.dtype
    parallel = "ddp" if training.world_size > 1 else "single"
    trained_in = weights_trained_in(
        parameter_count(path) or 0, parallel, _memory(training), getattr(training, "beta", 0) > 0
    )
    if trained_in == "float32":
        if dtype == "bfloat16" and training.mixed_precision == "no":
            training.bf16, training.mixed_precision = True, "bf16"
    elif dtype != "bfloat16" or training.optim.value not in _ADAMW:
        raise RecipeError(
            f"float32 weights of {path} do not fit this GPU, and {dtype} ones with optim: {training.optim.value} would lose most "
            "steps; set dtype: bfloat16 and optim: adamw_torch, train with LoRA (use_peft: true), or shard it (PARALLEL=zero3, "
            "more GPUs)"
        )
    return trained_in


def keep_small_steps(trainer: Trainer, path: str, model: ModelConfig) -> str:
    """Give `trainer`, whose model was loaded in `weights_dtype`, what that dtype needs; what is done, in words, or nothing."""
    training = trainer.args
    dtype = _computed_in(path, model, training)
    if dtype is None:
        return ""
    if trainer.model.dtype == torch.float32:
        trainer.load_as = dtype
        return f"weights are trained in float32, and computed with in {dtype}: its steps round away"
    settings = {
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
        "seed": training.seed,
    }
    trainer.optimizer_cls_and_kwargs = (StochasticAdamW, {"lr": training.learning_rate, **settings})
    return "weights are trained in bfloat16, as float32 ones do not fit: steps are rounded at random, right on average"


def _computed_in(path: str, model: ModelConfig, training: TrainingArguments) -> str | None:
    """The 16-bit dtype of a stage that trains all weights of a model with nothing to keep small steps; None of any other."""
    by_launcher = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    if model.use_peft or by_launcher or training.deepspeed or training.fsdp:
        return None
    dtype = model.dtype
    if dtype in (None, "auto"):
        dtype = str(AutoConfig.from_pretrained(path).dtype).removeprefix("torch.")
    return dtype if dtype in HALF else None


def mark_dtype(folder: Path, dtype: str) -> None:
    """Let readers of the float32 checkpoint in `folder` load it in `dtype`, the one that it computes in; the next stage takes
    the float32 weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "dtype" in part:
            part["dtype"] = dtype
    write_json(folder / "config.json", config)


def _memory(training: TrainingArguments) -> float | None:
    """Bytes of this process's GPU that training may have; None on a CPU."""
    if training.use_cpu or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(training.device).total_memory * share_for_training(training)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) for bfloat16 weights, with moments in bfloat16, all rounded stochastically.

    6 bytes a parameter with the weight, as plain bfloat16 AdamW. The random numbers depend on seed and step alone: all
    processes of DDP round alike, and a resumed run rounds as an uninterrupted one.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed})
        self._generators: dict[torch.device, torch.Generator] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the closure's loss if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            seeded = set()
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                generator = self._generators.setdefault(weight.device, torch.Generator(weight.device))
                if weight.device not in seeded:
                    generator.manual_seed((group["seed"] << 40) + (number << 32) + int(state["step"]))
                    seeded.add(weight.device)
                self._update(weight, state, group, generator)
        return loss

    def _update(
        self, weight: torch.Tensor, state: dict[str, Any], group: dict[str, Any], generator: torch.Generator
    ) -> None:
        first, second = group["betas"]
        count = int(state["step"])
        flat = [part.view(-1) for part in (weight, weight.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])]
        for w, g, m, v in zip(*(part.split(CHUNK) for part in flat), strict=True):
            gradient = g.float()
            mean = torch.lerp(m.float(), gradient, 1 - first)
            square = v.float().mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (square / (1 - second**count)).sqrt_().add_(group["eps"])
            new = w.float().mul_(1 - group["lr"] * group["weight_decay"])
            new.addcdiv_(mean, scale, value=-group["lr"] / (1 - first**count))
            for target, value in ((w, new), (m, mean), (v, square)):
                round_stochastically(value, target, generator)


def round_stochastically(value: torch.Tensor, target: torch.Tensor, generator: torch.Generator) -> None:
    """Write float32 `value` into bfloat16 `target`: up or down, the nearer the likelier, so that the mean is `value`.

    bfloat16 is the upper half of float32's bits: a random lower half is added, and the carry rounds.
    """
    bits = value.view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, generator=generator, device=bits.device, dtype=torch.int32)
    target.copy_(((bits + noise) & -(1 << 16)).view(torch.float32))
