"""A LoRA stage hands on the policy that it trained: for every kind of adapter, as a file, in memory and after a change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from foundation.errors import RecipeError
from model.adapter import MERGE_FILE, merged_checkpoint, note_base
from model.check import check_model_folder
from model.fingerprint import model_fingerprint
from model.loading import load_model
from model.lora import adapted_layers, merged_layer
from model.processor import load_processor

KINDS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "all_linear": {"target_modules": "all-linear"},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},  # the base's embeddings are tied
    "dora_embed_tokens": {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    "head_saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embed_tokens_saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "merger_saved": {"target_modules": ["q_proj"], "modules_to_save": ["merger"]},
}
FAST = ("lora", "dora", "embed_tokens", "head_saved")
IDS = torch.tensor([[5, 6, 7, 8, 90, 11]])


def log_probabilities(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float().log_softmax(-1)


def trained(base: Path, folder: Path, kind: str, dtype: torch.dtype) -> PeftModel:
    """A policy with an adapter that has moved, saved as a stage saves it."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    policy = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **KINDS[kind]))
    for _, weight in policy.named_parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn_like(weight)
    policy.save_pretrained(folder)
    load_processor(str(base)).save_pretrained(folder)
    note_base(folder, str(base), dtype)
    return policy


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_what_is_started_from_and_rated_is_the_policy_that_was_trained(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    policy = trained(tiny_base, tmp_path / "adapter", kind, torch.float32)
    wanted = log_probabilities(policy)
    with policy.disable_adapter():
        assert (log_probabilities(policy) - wanted).abs().max() > 0.01  # what is lost would show
    start = merged_checkpoint(str(tmp_path / "adapter"))
    for path in (start, str(tmp_path / "adapter")):
        torch.testing.assert_close(log_probabilities(load_model(path)), wanted, atol=1e-5, rtol=0)
    recorded = json.loads(Path(start, MERGE_FILE).read_text())
    assert recorded["max_logp_difference"] < 1e-4 < recorded["training_moved"]


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.slow), "embed_tokens"])
def test_in_bfloat16_every_weight_is_rounded_once(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    policy = trained(tiny_base, tmp_path / "adapter", kind, torch.bfloat16)
    wanted = log_probabilities(policy)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    once = {}
    for name, layer in adapted_layers(policy):
        once[name.removeprefix("base_model.model.")] = merged_layer(layer)["weight"]
        if kind == "lora":
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
            assert torch.equal(merged_layer(layer)["weight"], (layer.base_layer.weight.float() + delta).bfloat16())
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())  # untouched
    merged = load_model(str(tmp_path / "adapter"))
    assert merged.dtype == torch.bfloat16
    for name, weight in once.items():
        assert torch.equal(merged.get_submodule(name).weight, weight), name
    assert (log_probabilities(merged) - wanted).abs().mean() < 0.02


def test_a_stage_in_float32_from_a_bfloat16_checkpoint_is_merged_in_float32(tiny_base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_base, half)
    AutoModelForImageTextToText.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(half)
    policy = trained(half, tmp_path / "adapter", "lora", torch.float32)
    merged = load_model(merged_checkpoint(str(tmp_path / "adapter")))
    assert merged.dtype == torch.float32
    torch.testing.assert_close(log_probabilities(merged), log_probabilities(policy), atol=1e-5, rtol=0)


def test_a_merged_model_that_is_another_policy_is_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the delta of tied embeddings goes into the head too, which plain merging does."""
    trained(tiny_base, tmp_path / "adapter", "embed_tokens", torch.float32)
    monkeypatch.setattr("model.loading.merge_in_place", lambda policy: policy.merge_and_unload())
    with pytest.raises(RecipeError, match="merged with its base it is another policy"):
        merged_checkpoint(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "merged").exists()


def test_an_adapters_base_is_part_of_its_fingerprint_and_another_base_is_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_base, base)
    trained(base, adapter, "lora", torch.float32)
    before = model_fingerprint(str(adapter))
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "o_proj" in name)
    weights[name] += 0.1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    assert model_fingerprint(str(adapter)) != before
    with pytest.raises(RecipeError, match=r"is not the model that the adapter in .* was trained on"):
        load_model(str(adapter))


def test_a_merged_folder_is_made_again_where_its_adapter_has_changed(tiny_base: Path, tmp_path: Path) -> None:
    trained(tiny_base, tmp_path / "adapter", "lora", torch.float32)
    merged_checkpoint(str(tmp_path / "adapter"))
    policy = trained(tiny_base, tmp_path / "adapter", "rslora", torch.float32)
    merged = load_model(merged_checkpoint(str(tmp_path / "adapter")))
    torch.testing.assert_close(log_probabilities(merged), log_probabilities(policy), atol=1e-5, rtol=0)


def test_an_adapter_that_lacks_tensors_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    trained(tiny_base, tmp_path / "adapter", "dora", torch.float32)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "magnitude" not in name}, file)
    with pytest.raises(RecipeError, match="4 tensors are missing"):
        load_model(str(tmp_path / "adapter"))
    file.unlink()
    with pytest.raises(RecipeError, match=r"no adapter_model\.safetensors"):
        check_model_folder(str(tmp_path / "adapter"))


@pytest.mark.parametrize("fault", ["missing", "renamed", "shape", "more"])
def test_a_checkpoint_whose_tensors_are_not_its_models_is_refused(fault: str, tiny_base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    tensors = load_file(broken / "model.safetensors")
    name = next(name for name in tensors if ".layers.1." in name and "q_proj" in name)
    if fault == "missing":
        tensors = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    elif fault == "renamed":
        tensors = {f"policy.{name}": tensor for name, tensor in tensors.items()}
    elif fault == "shape":
        tensors[name] = tensors[name][:-1].clone()
    else:
        tensors[name.replace(".layers.1.", ".layers.9.")] = tensors[name].clone()
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    expected = {
        "missing": r"lacks \d+ tensors of its model",
        "renamed": r"lacks \d+ tensors of its model .* and holds \d+ that its model does not have",
        "shape": r"has .*q_proj.* as \[127, 128\] and not \[128, 128\]",
        "more": r"holds 1 that its model does not have \(.*layers\.9",
    }
    for load in (check_model_folder, load_model):
        with pytest.raises(RecipeError, match=expected[fault]):
            load(str(broken))
