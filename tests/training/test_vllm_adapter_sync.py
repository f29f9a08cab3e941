"""Syncing an adapter's policy to vLLM, by the trainer's own path: what is sent is the policy, and the base stays bit-equal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText
from trl import ModelConfig
from trl.generation.vllm_generation import VLLMGeneration

from foundation.errors import RecipeError
from model.lora import check_lora_targets, merge_in_place
from training.vllm_adapter_sync import send_merged_copies

KINDS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "all_linear": {"target_modules": "all-linear"},
    "merger_saved": {"target_modules": ["q_proj"], "modules_to_save": ["merger"]},
}


class Engine:
    """Stands for vLLM's model: keeps what `load_weights` is given, and breaks off at a tensor where it is told to."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.break_at: int | None = None

    def load_weights(self, named: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in named:
            if self.break_at is not None and len(self.weights) >= self.break_at:
                raise RuntimeError("out of memory")
            self.weights[name] = tensor.clone()


def policy(base: Path, kind: str) -> PeftModel:
    """In bfloat16, of usual sizes: weights of 0.02, an adapter of 2% of them."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.02)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, task_type="CAUSAL_LM", **KINDS[kind]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.002)
        elif weight.requires_grad and "modules_to_save" in name:
            weight.data += 0.01
    return adapted


def generation(model: PeftModel) -> tuple[VLLMGeneration, Engine]:
    """TRL's own, colocated, without an engine."""
    made, engine = object.__new__(VLLMGeneration), Engine()
    worker = SimpleNamespace(model_runner=SimpleNamespace(model=engine))
    executor = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
    made.llm = SimpleNamespace(llm_engine=executor, reset_prefix_cache=lambda: None)
    made.model, made.mode, made.enable_sleep_mode = model, "colocate", False
    made.accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    made._dist = SimpleNamespace(fsdp_version=None, is_fsdp=False, gather_params=_nothing_to_gather)
    return made, engine


class _nothing_to_gather:  # as a function is named
    def __init__(self, parameters: list) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: object) -> None:
        pass


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_is_the_policy_and_the_base_is_untouched(kind: str, tiny_base: Path) -> None:
    model = policy(tiny_base, kind)
    before = state(model)
    made, engine = generation(model)
    send_merged_copies(made)
    for _ in range(3):
        engine.weights.clear()
        made.sync_weights()
    after = state(model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    wanted = dict(merge_in_place(model).named_parameters())  # what is saved, rated and evaluated
    assert engine.weights.keys() == wanted.keys()
    assert all(torch.equal(engine.weights[name], weight) for name, weight in wanted.items())


def syncs_and_changed(model: PeftModel, count: int, mended: bool) -> float:
    """The share of the adapted base weights that have changed after `count` syncs."""
    names = [name for name, _ in model.named_parameters() if "base_layer.weight" in name]
    before = {name: weight for name, weight in state(model).items() if name in names}
    made, _ = generation(model)
    if mended:
        send_merged_copies(made)
    for _ in range(count):
        made.sync_weights()
    after = dict(model.named_parameters())
    changed = sum((after[name] != before[name]).sum().item() for name in names)
    return changed / sum(before[name].numel() for name in names)


def test_the_base_is_bit_equal_after_many_syncs_where_trls_own_way_drifts(tiny_base: Path) -> None:
    assert syncs_and_changed(policy(tiny_base, "lora"), 20, mended=False) > 0.02
    assert syncs_and_changed(policy(tiny_base, "lora"), 20, mended=True) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_base_is_bit_equal_after_a_thousand_syncs(kind: str, tiny_base: Path) -> None:
    assert syncs_and_changed(policy(tiny_base, kind), 1000, mended=True) == 0


def test_a_sync_that_breaks_off_leaves_the_policy_as_it_was_and_the_next_is_whole(tiny_base: Path) -> None:
    model = policy(tiny_base, "all_linear")
    before = state(model)
    made, engine = generation(model)
    send_merged_copies(made)
    engine.break_at = 5
    with pytest.raises(RuntimeError, match="out of memory"):
        made.sync_weights()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    engine.break_at = None
    engine.weights.clear()
    made.sync_weights()
    wanted = dict(merge_in_place(model).named_parameters())
    assert all(torch.equal(engine.weights[name], weight) for name, weight in wanted.items())


def test_a_server_is_sent_what_it_was_told_to_expect(tiny_base: Path) -> None:
    model = policy(tiny_base, "lora")
    made, _ = generation(model)
    sent: dict[str, tuple] = {}

    def update(metadata: list, named: object) -> None:
        sent["told"] = [tuple(entry[:2]) for entry in metadata]
        sent["given"] = [(name, str(tensor.dtype).removeprefix("torch.")) for name, tensor in named]

    made.mode, made._weight_metadata = "server", None
    made.vllm_client = SimpleNamespace(update_named_params=update, reset_prefix_cache=lambda: None)
    send_merged_copies(made)
    made.sync_weights()
    assert sent["told"] == sent["given"]
    assert {dtype for _, dtype in sent["given"]} == {"bfloat16"}


def test_what_vllm_cannot_hold_is_refused(tiny_base: Path) -> None:
    made, _ = generation(policy(tiny_base, "lora"))
    made._dist.fsdp_version = 1
    with pytest.raises(RecipeError, match="needs FSDP 2"):
        send_merged_copies(made)
    tied = ModelConfig(str(tiny_base), use_peft=True, lora_target_modules=["q_proj", "embed_tokens"])
    check_lora_targets(tied)
    with pytest.raises(RecipeError, match=r"vLLM keeps those of .* tied"):
        check_lora_targets(tied, use_vllm=True)


FSDP2 = """
import os, sys, torch, torch.distributed as dist
sys.path[:0] = [".", "tests", "tests/training"]
from pathlib import Path
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from test_vllm_adapter_sync import generation, policy
from model.lora import merge_in_place
from training.vllm_adapter_sync import send_merged_copies

base, kind = Path(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo")
wanted = dict(merge_in_place(policy(base, kind)).named_parameters())
model = policy(base, kind)
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in model.get_base_model().model.language_model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
before = {name: weight.to_local().clone() for name, weight in model.named_parameters()}
made, engine = generation(model)
made._dist.fsdp_version, made._dist.is_fsdp = 2, True
send_merged_copies(made)
for _ in range(2):
    made.sync_weights()
assert engine.weights.keys() == wanted.keys()
assert all(torch.equal(engine.weights[name], weight) for name, weight in wanted.items())
assert all(torch.equal(weight.to_local(), before[name]) for name, weight in model.named_parameters())
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_shards_of_fsdp_2_are_made_whole_on_the_way_and_stay_as_they_are(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "sync.py").write_text(FSDP2)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(tmp_path / "sync.py"), str(tiny_base), kind]
    started = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-2000:]
