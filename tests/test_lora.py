"""LoRA stages hand on whole models: the adapter is merged, and the next stage's reference is this stage's policy."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from rl_runs import options
from safetensors.torch import load_file

from recipes import sft
from recipes.models import is_adapter, load_model, merged_checkpoint

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
