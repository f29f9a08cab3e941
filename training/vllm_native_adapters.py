"""vLLM's own adapters (`vllm_native_adapters`): it holds the base once, and a sync sends the adapter alone.

Otherwise each sync sends all weights, base and adapter added in float32 and rounded once (`vllm_adapter_sync`). Here vLLM adds
the adapter's product itself, in the dtype that it computes in, as training does. Nothing of the policy is touched either way.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from trl import GRPOConfig, ModelConfig

from foundation.errors import RecipeError

# What vLLM adapts in Qwen3-VL's language model.
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for


def check_native_adapters(model: ModelConfig, training: GRPOConfig) -> None:
    """Raise `RecipeError` where vLLM cannot hold this adapter, before a model is loaded."""
    targets = model.lora_target_modules
    reasons = {
        "use_vllm: true with vllm_mode: colocate": not (training.use_vllm and training.vllm_mode == "colocate"),
        "use_peft: true": not model.use_peft,
        "vllm_enable_sleep_mode: false, as vLLM cannot take weights again beside adapters": training.vllm_enable_sleep_mode,
        "use_dora: false, which vLLM does not know": model.use_dora,
        "no lora_modules_to_save": bool(model.lora_modules_to_save),
        f"lora_target_modules among {', '.join(LAYERS)}": not isinstance(targets, list)
        or not set(targets) <= set(LAYERS),
        f"lora_r of at most {RANKS[-1]}": model.lora_r > RANKS[-1],
        "a base in 16 or 32 bits": model.load_in_4bit or model.load_in_8bit,
    }
    if wanted := [reason for reason, missing in reasons.items() if missing]:
        raise RecipeError(f"vllm_native_adapters needs {'; '.join(wanted)}; or set vllm_native_adapters: false")


@contextlib.contextmanager
def room_for_adapters(rank: int) -> Iterator[None]:
    """While TRL starts its colocated vLLM: let it have room for one adapter of this rank."""
    from trl.generation import vllm_generation

    start: Callable[..., Any] = vllm_generation.LLM
    room = next(size for size in RANKS if size >= rank)

    def with_adapters(*args: Any, **kwargs: Any) -> Any:
        return start(*args, enable_lora=True, max_lora_rank=room, max_loras=1, max_cpu_loras=1, **kwargs)

    vllm_generation.LLM = with_adapters
    try:
        yield
    finally:
        vllm_generation.LLM = start


def send_adapters(generation: Any) -> None:
    """Have TRL's `VLLMGeneration` send the adapter, and ask for rollouts with the newest.

    Raises:
        RecipeError: the policy is sharded over processes.
    """
    from vllm.lora.request import LoRARequest

    state = generation.accelerator.state
    kind = state.distributed_type
    if kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and state.deepspeed_plugin.zero_stage == 3):
        raise RecipeError(
            "vllm_native_adapters needs a whole policy on each GPU; PARALLEL=ddp or zero2, or set it to false"
        )
    folder = tempfile.TemporaryDirectory(prefix="adapter-")  # removed with the trainer
    sent: list[LoRARequest] = []
    ask = generation.llm.generate

    def sync() -> None:
        number = sent[-1].lora_int_id + 1 if sent else 1
        path = Path(folder.name) / f"{number}"
        generation.model.save_pretrained(str(path))  # of this process; all hold the same
        if sent:
            generation.llm.llm_engine.remove_lora(sent[-1].lora_int_id)
            shutil.rmtree(sent[-1].lora_path)
        sent[:] = [LoRARequest(f"policy-{number}", number, str(path))]
        generation.llm.reset_prefix_cache()

    def generate(*args: Any, **kwargs: Any) -> Any:
        return ask(*args, lora_request=sent[-1], **kwargs)

    generation.sync_weights, generation.llm.generate = sync, generate
