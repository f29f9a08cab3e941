"""`recipes.grpo` with vLLM, on a CPU or a GPU, and, by name, with one fault of TRL put back that the recipe mends.

    .venv-vllm/bin/python tests/vllm_grpo.py none --config recipes/demo/rl_step1.yaml --use_vllm true …

Faults: `tokens` (image tokens are expanded twice), `embeddings` (the encoder cache survives a sync), `weights` (nothing is
synced: the rollouts are of the model that training began with), `none`.

What differs from a GPU is the way of the weights. There TRL writes into the engine's live module (colocate), and so it does
here where a GPU is; vLLM's CPU kernels keep repacked copies, so on a CPU vLLM's own reload is used. It empties the worker's
encoder cache, which TRL's way does not: that cache is put back after it. To a server TRL broadcasts by NCCL, which wants a
GPU for each side: here the weights go as a file, with one GPU too.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import save_file
from trl.generation import vllm_generation
from vllm_cpu import GPU_CACHE_BYTES

import training.vllm_guards
from foundation.errors import run_command
from recipes.grpo import main

Generation = vllm_generation.VLLMGeneration
on_gpu_sync = Generation.sync_weights


def sync_weights(generation: vllm_generation.VLLMGeneration) -> None:
    """TRL's, with the weights by vLLM's reload, and like TRL's without a word on the encoder cache."""
    if generation.mode == "server":
        on_gpu_sync(generation)
        return
    worker = generation.llm.llm_engine.model_executor.driver_worker
    runner = worker.model_runner
    embeddings = dict(runner.encoder_cache)
    worker.reload_weights(weights_iterator=((name, tensor) for name, tensor in generation._iter_named_params()))
    runner.encoder_cache.update(embeddings)
    generation.llm.reset_prefix_cache()


class Client(vllm_generation.VLLMClient):
    """TRL's, with the weights as a file that the server reads."""

    def init_communicator(self, device: object = 0) -> None:
        self.get_server_info()  # insists on VLLM_SERVER_DEV_MODE=1, as TRL's does

    def update_named_params(self, metadata: object, named_params: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named_params}
            save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            call = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post(f"{self.base_url}/collective_rpc", json=call)

    def close_communicator(self) -> None:
        pass


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    settings = {"enforce_eager": True, "dtype": "float32"}
    if torch.cuda.is_available():
        settings["kv_cache_memory_bytes"] = GPU_CACHE_BYTES
    else:
        Generation.sync_weights = sync_weights
    vllm_generation.LLM = functools.partial(vllm_generation.LLM, **settings)
    vllm_generation.VLLMClient = Client
    if fault == "weights":
        Generation.sync_weights = lambda generation: None
    if fault == "tokens":
        training.vllm_guards.collapse_image_tokens = lambda prompt_ids, image_token_id: list(prompt_ids)
    if fault == "embeddings":
        training.vllm_guards._encoder_cache_reset = lambda generation: lambda: None
    run_command(main)
