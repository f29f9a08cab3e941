"""How long work takes: arithmetic over what a GPU reaches of its data sheet."""

from __future__ import annotations

import json
from typing import Any

from foundation.provenance import REPOSITORY
from launch.planning.assumed import Assumptions, Target
from launch.planning.figures import StagePlan
from launch.planning.studies import Sizes
from model.architectures import Architecture
from model.memory import generation_memory

SERVER_SHARE = 0.9  # of its GPUs that a vLLM server takes (launch/vllm_server.sh)


def flops_per_token(parameters: int, checkpointing: float, trainable: float) -> float:
    """2 a parameter forward, again for the share that is checkpointed, 2 for gradients of activations, 2 for those of weights."""
    return parameters * (2 * (1 + checkpointing) + 2 + 2 * trainable)


def generation_seconds(plan: StagePlan, arch: Architecture, size: Sizes, training: Any, target: Target) -> float:
    """GPU seconds of vLLM: prompts once a study (prefix caching), then decoding bound by memory bandwidth."""
    assume, kind = target.assume, target.kind
    prefill = 2 * arch.parameters * size.prompt * plan.rollouts / training.num_generations
    share = SERVER_SHARE if plan.server_gpus else training.vllm_gpu_memory_utilization
    room = generation_memory(arch, kind.memory * share)["cache"]
    tokens_each = size.prompt / training.num_generations + training.max_completion_length
    concurrent = max(1.0, min(assume.max_concurrent, room / (arch.key_value_bytes() * tokens_each)))
    read = 2 * arch.text_parameters + concurrent * arch.key_value_bytes() * (size.prompt + size.report / 2)
    rate = concurrent / (read / (kind.bandwidth * assume.decode_utilisation))
    return prefill / (kind.flops * assume.prefill_utilisation) + plan.tokens_generated / rate


def training_utilisation(target: Target, stage: str) -> tuple[float, str]:
    """Share of the GPU's FLOP/s that training reaches, and where that is from.

    As measured on this kind of GPU for this stage (`sft` or `grpo`) where benchmarks/gpu.json has it and no other was
    assumed; counted as the plan counts arithmetic, so that it carries over to other sizes and to all weights.
    """
    assumed = target.assume.training_utilisation
    path = REPOSITORY / "benchmarks" / "gpu.json"
    if assumed != Assumptions.training_utilisation or not path.is_file():
        return assumed, f"assumed utilisation {assumed:g}"
    for entry in json.loads(path.read_text(encoding="utf-8")):
        rate = entry.get("update_only_tokens_per_second" if stage == "grpo" else "tokens_per_gpu_second")
        if entry["gpu"] == target.kind_name and entry["stage"] == stage and rate:
            checkpointing = entry.get("checkpointing", True)  # all forward passes were, before some did without
            each = flops_per_token(entry["model_parameters"], checkpointing, 0.0 if entry["lora"] else 1.0)
            measured = each * rate / target.kind.flops
            return measured, f"utilisation {measured:.2f}, measured (benchmarks/gpu.json)"
    return assumed, f"assumed utilisation {assumed:g}"
