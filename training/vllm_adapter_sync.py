"""Weights for vLLM from a policy with an adapter, without touching the policy.

TRL 1.16 merges the adapter into the frozen weights at every sync and subtracts it again. In bfloat16 that does not bring
the weights back (trl#6688): after 2,000 syncs half of an ordinary base has changed, and policy, KL reference and rollouts
are of a base that nobody saved. Here each adapted weight is computed on a copy, base and adapter added in float32 and
rounded once, and sent; what is trained is only read. An exception in the middle of a sync leaves nothing behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch.distributed.tensor import DTensor

from foundation.errors import RecipeError
from model.lora import adapted_layers, merged_layer


def send_merged_copies(generation: Any) -> None:
    """Have TRL's `VLLMGeneration` send copies; one whose policy has no adapter stays as it is.

    Raises:
        RecipeError: FSDP 1, whose parameters exist inside its own traversal only.
    """
    if not is_peft_model(generation.model):
        return
    if generation._dist.fsdp_version == 1:
        raise RecipeError("vLLM with adapters needs FSDP 2; set fsdp_version: 2 (PARALLEL=fsdp2)")
    generation._iter_named_params = functools.partial(merged_parameters, generation)


def merged_parameters(generation: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Name, as vLLM has it, and value of every parameter of the policy, one layer at a time.

    Gathering a shard is collective (ZeRO-3, FSDP 2): all processes must go through it to the end.
    """
    model = generation.model
    read = functools.partial(_whole, device=generation.accelerator.device)
    layers = dict(adapted_layers(model))
    for path, layer in layers.items():
        with generation._dist.gather_params(list(layer.parameters())):
            merged = merged_layer(layer, read)
        for name, tensor in merged.items():
            yield _vllm_name(generation, f"{path}.{name}"), tensor
    within = tuple(f"{path}." for path in layers)
    for name, parameter in model.named_parameters():
        if name.startswith(within) or ".original_module." in name:
            continue
        with generation._dist.gather_params([parameter]):
            yield _vllm_name(generation, name), read(parameter.data)


def _vllm_name(generation: Any, name: str) -> str:
    name = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return generation._fix_param_name_to_vllm(name, extra_prefixes=["modules_to_save.default."])


def _whole(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    return tensor.to(device).full_tensor()
