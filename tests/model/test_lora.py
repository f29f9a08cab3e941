"""LoRA stages hand on whole models: the adapter is merged, and the next stage's reference is this stage's policy."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from rl_runs import grpo_run, options
from safetensors.torch import load_file

from model import engines
from model.adapter import merged_checkpoint, whole_model
from model.adapter_files import is_adapter
from model.loading import load_model
from recipes import select_checkpoint, sft

LORA = {
    "use_peft": "true",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_modules": ["q_proj", "v_proj"],
    "datasets": "phantom_prairie",
    "max_steps": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "global_batch_size": 4,
    "per_device_train_batch_size": 4,
}


@pytest.fixture(scope="module")
def stage(tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "sft"
    given = {"model_name_or_path": tiny_base, "data_dir": phantom_data, "output_dir": out, **LORA}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sft", "--config", "recipes/demo/sft.yaml", *options(given)])
        sft.main()
    return out


def test_the_final_model_is_whole_and_only_the_adapted_weights_moved(stage: Path, tiny_base: Path) -> None:
    assert is_adapter(str(stage / "adapter"))
    assert not is_adapter(str(stage / "final"))
    before, after = load_file(tiny_base / "model.safetensors"), load_file(stage / "final" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(("q_proj" in name or "v_proj" in name) and "visual" not in name for name in moved)


def test_a_checkpoint_with_an_adapter_loads_and_merges_to_the_same_policy(stage: Path) -> None:
    checkpoint = str(stage / "checkpoint-2")
    assert is_adapter(checkpoint)
    merged = merged_checkpoint(checkpoint)
    assert merged_checkpoint(checkpoint) == merged  # made once
    whole = load_file(Path(merged) / "model.safetensors")
    final = load_file(stage / "final" / "model.safetensors")
    assert all(torch.allclose(whole[name], final[name]) for name in final)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted, plain = (load_model(path)(input_ids=ids).logits for path in (checkpoint, merged))
    torch.testing.assert_close(adapted, plain, atol=1e-4, rtol=1e-4)


def test_a_new_adapters_reference_policy_is_the_model_without_it(
    stage: Path, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """A LoRA step 2: KL is 0 at its first update and not at the next; only the adapter is trained."""
    start = merged_checkpoint(str(stage / "checkpoint-2"))
    lora = {key: LORA[key] for key in ("use_peft", "lora_r", "lora_alpha", "lora_target_modules")}
    run = grpo_run(
        tmp_path / "rl_step2",
        stage / "checkpoint-2",
        phantom_data,
        "rl_step2",
        max_steps=2,
        mask_truncated_completions=False,  # so that all rollouts have a gradient, and the policy moves
        **lora,
    )
    assert run.trainer.beta == 0.03
    assert run.trainer.ref_model is None
    first, second = run.log
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert second["kl"] > 1e-6
    trained = {name for name, weight in run.trainer.model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    before, base = load_file(Path(start) / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    held = run.trainer.model.get_base_model().state_dict()
    adapted = [name for name in before if not torch.equal(before[name], base[name])]
    assert adapted
    for name in adapted:  # step 1's adapter is in the reference policy
        assert torch.equal(held[name.replace("_proj.", "_proj.base_layer.")], before[name]), name


class FakeLLM:
    """Stands for vLLM's engine: notes what its model's folder holds when it is asked."""

    seen: ClassVar[list[Path]] = []

    def __init__(self, model: str, **settings) -> None:
        self.folder = Path(model)
        self.check()

    def check(self) -> None:
        assert not is_adapter(str(self.folder))
        assert (self.folder / "model.safetensors").is_file()
        self.seen.append(self.folder)

    def generate(self, requests: list, sampling, use_tqdm: bool) -> list:
        self.check()
        output = SimpleNamespace(text="Clear.", finish_reason="stop")
        return [SimpleNamespace(outputs=[output]) for _ in requests]


def test_vllm_reads_an_adapter_merged_and_the_merged_model_goes_with_its_last_reader(
    stage: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "rl_step1"
    for step in (1, 2):
        ignored = shutil.ignore_patterns("merged")
        shutil.copytree(stage / "checkpoint-2", run / f"checkpoint-{step}", ignore=ignored)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace))
    settings = ["--engine", "vllm", "--only_dataset", "phantom_prairie", "--data_dir", str(phantom_data)]
    settings += ["--validation_split", "validation", "--run", str(tmp_path), "--stage", "rl_step1"]
    monkeypatch.setattr(sys, "argv", ["select", "--config", "recipes/demo/eval.yaml", *settings])
    monkeypatch.setattr(engines, "gpu_count", lambda: 0)
    select_checkpoint.main()
    names = [folder.name for folder in FakeLLM.seen]
    assert [name.split(".merged.")[0] for name in names] == [".checkpoint-1"] * 2 + [".checkpoint-2"] * 2
    left = sorted(path.name for path in run.iterdir())
    assert left == ["best", "checkpoint-1", "checkpoint-2", "selection", "selection.json"]
    assert not list(run.glob("checkpoint-*/merged"))
    best = run / "best"
    assert is_adapter(str(best))
    with whole_model(str(best)) as one:
        with whole_model(str(best)) as other:
            assert one == other
        assert Path(one, "model.safetensors").is_file()
    assert not Path(one).exists()
    started = merged_checkpoint(str(best))  # the next stage starts from it
    with whole_model(str(best)) as whole:
        assert whole == started
    assert Path(started).is_dir()
