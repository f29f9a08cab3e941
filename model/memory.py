"""The memory of one GPU, in parts: what training a Qwen3-VL holds there, and what vLLM holds.

Model states follow Rajbhandari et al. 2020 (ZeRO, section 3.1). Activations count what PyTorch saves for the backward
pass of transformers' Qwen3-VL with scaled-dot-product attention; tests compare them with what it does save, and with
published peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foundation.machine import GIB
from model.architectures import Architecture

PARALLEL = ("single", "ddp", "zero2", "zero3", "fsdp2")
# CUDA context, NCCL and cuBLAS workspaces, fragmentation.
_CONTEXT = 2.0 * GIB
# A CPU process before any model: the interpreter with torch, transformers, TRL and datasets imported (measured).
_CPU_PROCESS = 700 * 2**20
# Parameters that ZeRO-3 and FSDP2 keep gathered at once beside their shard: the embedding and a few layers.
_GATHERED_LAYERS = 3
# CheXbert, RadGraph's and BERTScore's encoders in float32 with one batch's activations.
_REWARD_MODELS = 2.5 * GIB
# Logits are made for this many tokens at a time (TRL's chunked loss), each in up to 16 bytes with its gradient.
_LOGIT_TOKENS, _LOGIT_BYTES = 256, 16
# Share of a GPU that weights, gradients and optimiser may take; activations and the rest need room beside them.
_STATES_SHARE = 0.8
# Share of its memory that vLLM needs beside weights and cache: activations of the profiling run, CUDA graphs.
_VLLM_OVERHEAD = 1.5 * GIB
_CHANNELS, _FRAMES = 3, 2  # of a patch of an image


@dataclass(frozen=True)
class Batch:
    """What one forward and backward pass on one GPU sees.

    Attributes:
        tokens: of a row, images, prompt and report together (with shared prompts: all reports of a study).
        images: of a row.
        image_pixels: a side.
        repeated: tokens of all rows of which attention holds keys and values, or query and result, besides: keys and values of
            a shared prompt for each of its reports, and both of the reports' own (training/shared_attention.py).
    """

    rows: int
    tokens: float
    images: float = 0
    image_pixels: int = 512
    repeated: float = 0


def training_memory(
    arch: Architecture,
    parallel: str,
    gpus: int,
    bytes_each: int,
    batch: Batch,
    trainable: float = 1.0,
    checkpointing: bool = True,
    reference: bool = False,
    reward_models: bool = False,
    on_gpu: bool = True,
    trained_in: str | None = None,
) -> dict[str, float]:
    """Bytes of one GPU (or CPU process) while training with AdamW, by part.

    Args:
        trained_in: what `weights_trained_in` says; None for the dtype of `bytes_each`, and for LoRA.
        bytes_each: of a weight as it is loaded and computed with: 2 (bfloat16) or 4 (float32).
        trainable: share of the parameters that train (LoRA: about 0.02).
        reference: a frozen copy of the model is there too (GRPO with beta above 0).

    single, ddp: weights, gradients and both moments all in the type that is trained in, with a copy to compute with where
    that is another. zero2, zero3, fsdp2: a float32 copy and float32 moments; zero2 shards gradients and optimiser, zero3 and
    fsdp2 the weights too.
    """
    n = arch.parameters
    sharded = gpus if parallel in ("zero2", "zero3", "fsdp2") else 1
    weights_shards = gpus if parallel in ("zero3", "fsdp2") else 1
    mixed = parallel in ("zero2", "zero3", "fsdp2")
    held = 4 if trained_in == "float32" else bytes_each
    states = n * trainable * (4 + 8 if mixed else 2 * held) / sharded
    parts = {
        "weights": n * held / weights_shards,
        "gradients": n * trainable * held / sharded,
        "optimiser": states,
        "activations": activation_bytes(arch, batch, bytes_each, checkpointing),
    }
    if held > bytes_each:
        parts["16-bit copy"] = n * bytes_each  # autocast keeps it through a forward pass
    if weights_shards > 1:
        layer = (arch.text_parameters - arch.vocab_size * arch.hidden_size) / max(arch.num_hidden_layers, 1)
        parts["gathered"] = bytes_each * (arch.vocab_size * arch.hidden_size + _GATHERED_LAYERS * layer)
    if parallel == "ddp":
        parts["gradients"] *= 2  # its communication buckets
    if reference:
        parts["reference"] = n * held / weights_shards
    if reward_models:
        parts["reward models"] = _REWARD_MODELS
    parts["overhead"] = _CONTEXT if on_gpu else _CPU_PROCESS
    return parts


def weights_trained_in(parameters: int, parallel: str, memory: float | None, reference: bool = False) -> str | None:
    """What 16-bit weights that all train are trained in, so that small steps are kept (training/small_steps.py).

    `float32`, where weights, gradients, moments and a copy to compute with leave a fifth of `memory` (None: of a CPU, which
    is not asked) to the rest; else `bfloat16`, rounded stochastically. None where the optimiser keeps a float32 copy anyway
    (zero2, zero3, fsdp2).
    """
    if parallel not in ("single", "ddp"):
        return None
    each = 4 + 4 + 8 + 2 + 4 * (parallel == "ddp") + 4 * reference
    return "float32" if memory is None or parameters * each <= _STATES_SHARE * memory else "bfloat16"


def share_for_training(training: Any) -> float:
    """Share of a GPU that training may have at once, by TRL's `training`: all of it but what a colocated vLLM that does not
    sleep holds meanwhile."""
    beside = getattr(training, "use_vllm", False) and training.vllm_mode == "colocate"
    return 1 - training.vllm_gpu_memory_utilization if beside and not training.vllm_enable_sleep_mode else 1.0


def activation_bytes(arch: Architecture, batch: Batch, bytes_each: int, checkpointing: bool) -> float:
    """Bytes that one forward pass keeps for its backward pass, with the logits of one chunk.

    With checkpointing only each layer's input stays, and one layer's activations with their gradients come on top;
    without, gradients and temporaries of the layers in work, two layers' worth (measured).
    """
    tokens = batch.rows * batch.tokens
    patches = batch.rows * batch.images * (batch.image_pixels / arch.vision_patch_size) ** 2
    text_layer = tokens * text_layer_bytes(arch, bytes_each) + batch.repeated * 2 * arch.attention_width * bytes_each
    vision_layer = patches * vision_layer_bytes(arch, bytes_each)
    logits = min(tokens, _LOGIT_TOKENS) * arch.vocab_size * _LOGIT_BYTES
    if not checkpointing:
        in_work = 2 * max(text_layer, vision_layer)
        return arch.num_hidden_layers * text_layer + arch.vision_depth * vision_layer + in_work + logits
    kept = tokens * arch.num_hidden_layers * arch.hidden_size * bytes_each
    kept += patches * arch.vision_depth * arch.vision_hidden_size * bytes_each
    return kept + 2 * max(text_layer, vision_layer) + logits


def film_bytes(arch: Architecture, pixels: int) -> float:
    """Bytes of one image as TRL holds it on the device between the updates of a generation: its patches in float32, each
    frame twice, for which Qwen3-VL's vision tower was made."""
    patches = (pixels / arch.vision_patch_size) ** 2
    return patches * _CHANNELS * _FRAMES * arch.vision_patch_size**2 * 4


def text_layer_bytes(arch: Architecture, bytes_each: int) -> float:
    """Bytes that a decoder layer saves for each token.

    Each of the two RMSNorms saves its input in float32, the normalised input and its output (what the linear layers
    read); those of query and key the first two. Attention saves the rotated query and key, the value and its output;
    the MLP its gate, the activated gate, up and their product.
    """
    h, a, k = arch.hidden_size, arch.attention_width, arch.key_value_width
    norms = 2 * h * (4 + 2 * bytes_each) + (a + k) * (4 + bytes_each)
    return norms + (2 * a + 2 * k + 4 * arch.intermediate_size) * bytes_each


def vision_layer_bytes(arch: Architecture, bytes_each: int) -> float:
    """Bytes that a vision block saves for each patch: two LayerNorms, attention (rotated in float32), the MLP."""
    h, m = arch.vision_hidden_size, arch.vision_intermediate_size
    return (4 * h + 4 * h + h + 2 * m) * bytes_each


def generation_memory(arch: Architecture, share: float, tensor_parallel: int = 1) -> dict[str, float]:
    """Bytes of vLLM's `share` of a GPU: weights (bfloat16), overhead, and the KV cache that is left (may be negative)."""
    return serving_memory(arch.parameters, share, tensor_parallel)


def serving_memory(parameters: float, share: float, tensor_parallel: int = 1) -> dict[str, float]:
    """As `generation_memory`, for any model of so many parameters."""
    weights = 2 * parameters / tensor_parallel
    return {"weights": weights, "overhead": _VLLM_OVERHEAD, "cache": share - weights - _VLLM_OVERHEAD}
