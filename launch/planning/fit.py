"""Whether a stage fits, in memory and on disk, and what to change where it does not."""

from __future__ import annotations

import math
from typing import Any

from foundation.machine import format_bytes
from launch.planning.assumed import Target
from launch.planning.figures import StagePlan
from model.architectures import Architecture, checkpoint_bytes
from model.memory import generation_memory


def quantised_bytes(arch: Architecture, bits: int, nested: bool) -> float:
    """Bytes of a base that bitsandbytes holds in 4 or 8 bits: its linear layers so, embeddings and head in 16.

    In 4 bits each block of 64 weights has a float32 scale; nested, an 8-bit one, and a float32 for 256 of those (Dettmers et
    al. 2023, QLoRA, section 3). In 8 bits each row has a float32 scale, which is nothing beside it.
    """
    embeddings = arch.vocab_size * arch.hidden_size * (1 if arch.tie_word_embeddings else 2)
    scales = ((1 + 4 / 256) / 64 if nested else 4 / 64) if bits == 4 else 0.0
    return (arch.parameters - embeddings) * (bits / 8 + scales) + 2 * embeddings


def adapter_bytes(parameters: int, parallel: str, gpus: int) -> float:
    """Bytes of a GPU for LoRA adapters: weights, gradients and Adam's two moments, 16 a parameter.

    PEFT loads them in float32 (autocast_adapter_dtype); under ZeRO-3 TRL has them in bfloat16, with DeepSpeed's float32 copy.
    """
    shared = {"zero3": 16, "fsdp2": 16, "zero2": 12}.get(parallel, 0) * parameters  # spread over the GPUs
    buckets = 4 * parameters if parallel == "ddp" else 0
    return shared / gpus + 16 * parameters - shared + buckets


def add_checkpoints(
    plan: StagePlan, training: Any, model: Any, arch: Architecture, stage: Any, trained_in: str | None
) -> None:
    """Disk of the checkpoints and of the final model. `trained_in`: as `weights_trained_in`."""
    if str(training.save_strategy) == "no":
        return
    every = training.save_steps if training.save_steps >= 1 else max(1, round(training.save_steps * plan.steps))
    plan.saves = max(1, math.ceil(plan.steps / every))
    limit = stage.keep_best + 1 if stage.keep_best else training.save_total_limit or plan.saves
    plan.checkpoints = min(plan.saves, limit)
    keep = stage.keep_optimizer_states
    # For a moment one more is whole: the older ones are trimmed once the newest is written.
    whole = plan.checkpoints if keep is None else min(keep + (not stage.keep_best), plan.checkpoints)
    dtype = "float32" if trained_in == "float32" else model.dtype
    settings = {"dtype": dtype, "use_peft": model.use_peft, "save_only_model": training.save_only_model}
    weights_only = checkpoint_bytes(arch.parameters, settings | {"save_only_model": True})
    each = checkpoint_bytes(arch.parameters, settings)
    final = checkpoint_bytes(arch.parameters, {"dtype": dtype, "save_only_model": True})  # an adapter is merged
    plan.checkpoint_bytes = whole * each + (plan.checkpoints - whole) * weights_only + final
    if plan.saves > plan.checkpoints and not stage.keep_best:
        # Where older ones are trimmed, `whole` counts the states of one more.
        plan.momentary_bytes = each if whole == plan.checkpoints else weights_only
    if stage.keep_best:
        plan.momentary_bytes = each
        # Once there is a final model, the newest checkpoint keeps its model alone.
        plan.checkpoint_bytes = max(plan.checkpoint_bytes - final, plan.checkpoints * weights_only + final)
        every_one = (plan.saves - whole) * weights_only + whole * each + final
        plan.notes.append(
            f"disk: {plan.checkpoints} of {plan.saves} checkpoints stay, {format_bytes(plan.checkpoint_bytes)} (all of them: "
            f"{format_bytes(every_one)})"
        )
    if whole > 10 and not training.save_only_model:
        plan.advice.append(
            f"{whole} checkpoints with optimiser state take {format_bytes(whole * each)}; keep that of the newest only "
            "(keep_optimizer_states), keep fewer (save_total_limit) or save them further apart (save_steps)"
        )


def add_fit(
    plan: StagePlan, arch: Architecture, training: Any, model: Any, target: Target, grpo: bool, share_prompts: bool
) -> None:
    """Whether it fits, and otherwise what to change, in the order of what costs least."""
    memory = target.kind.memory * (1 - plan.judge_share)  # what a judge beside leaves
    if grpo and training.use_vllm and training.vllm_mode == "colocate":
        share = target.kind.memory * training.vllm_gpu_memory_utilization
        parts = generation_memory(arch, share, training.vllm_tensor_parallel_size)
        if parts["cache"] <= 0:
            plan.fits = False
            plan.advice.append(
                f"vLLM's share ({training.vllm_gpu_memory_utilization:g} of the GPU, {format_bytes(share)}) does not hold "
                f"the model ({format_bytes(parts['weights'])}): raise vllm_gpu_memory_utilization or "
                "vllm_tensor_parallel_size, or use vllm_mode: server"
            )
        lasting = ("films", "weights", "gradients", "optimiser", "adapter", "reference", "reward models", "overhead")
        held = sum(plan.memory.get(name, 0.0) for name in lasting)
        # Asleep, vLLM gives its share back while the trainer works; awake, it meets the trainer's lasting part only.
        trainer = held if training.vllm_enable_sleep_mode else plan.peak
        plan.generating = {"trainer": trainer, "vLLM's weights": parts["weights"], "KV cache": max(0.0, parts["cache"])}
        plan.generating["vLLM's overhead"] = parts["overhead"]
        plan.peak = max(plan.peak, trainer + share)
    if plan.peak <= memory:
        return
    plan.fits = False
    over = format_bytes(plan.peak - memory)
    has = (
        "has"
        if not plan.judge_share
        else f"has beside the judge ({plan.judge_share:.0%} of it; JUDGE_GPUS=1 has its own)"
    )
    plan.advice.append(f"{format_bytes(plan.peak)} a GPU, {over} more than a {target.kind_name} {has}")
    if not training.gradient_checkpointing:
        plan.advice.append("gradient_checkpointing: true")
    if target.parallel in ("ddp", "single") and target.gpus > 1:
        plan.advice.append("shard the model and its optimiser: PARALLEL=zero3 (or fsdp2)")
    if plan.memory.get("films", 0) > 0.1 * memory and not share_prompts:
        plan.advice.append("share_prompts: true holds a study's films once, not once a rollout")
    if training.per_device_train_batch_size > 1 and plan.memory["activations"] > 0.1 * memory:
        plan.advice.append("a smaller per_device_train_batch_size (the global batch stays)")
    if grpo and training.use_vllm and training.vllm_mode == "colocate":
        plan.advice.append("vLLM on GPUs of its own: vllm_mode: server, make vllm-server")
    if not model.use_peft:
        needed = next(
            (n for n in (2, 4, 8, 16, 32, 64) if n > target.gpus and peak_with(plan, target.gpus, n) <= memory), None
        )
        if needed:
            plan.advice.append(f"GPUS={needed} with PARALLEL=zero3")
        plan.advice.append("LoRA: use_peft: true, lora_r: 64")


def peak_with(plan: StagePlan, now: int, gpus: int) -> float:
    """The peak were what can be sharded spread over `gpus` instead of `now` GPUs."""
    sharded = sum(plan.memory.get(name, 0.0) for name in ("weights", "gradients", "optimiser", "reference"))
    return plan.peak - sharded + sharded * now / gpus
