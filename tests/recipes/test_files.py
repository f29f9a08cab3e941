"""Damaged files of a checkpoint or a stage, and LoRA on modules that are not there: one line, before a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from trl import ModelConfig

from foundation.errors import RecipeError
from model.check import check_model_folder
from model.lora import check_lora_targets
from training.checkpoints import start_or_resume
from training.finished import is_finished


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    """A whole checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))


def test_a_whole_checkpoint_passes(checkpoint: Path) -> None:
    check_model_folder(str(checkpoint))


@pytest.mark.parametrize(
    ("keep", "message"),
    [(-1, "it was cut short"), (20, "its header is cut short"), (0, "its header is cut short")],
)
def test_weights_that_were_cut_short_are_named(checkpoint: Path, keep: int, message: str) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecipeError, match=rf"model\.safetensors .*{message}; fetch it again \(make weights"):
        check_model_folder(str(checkpoint))


def test_a_shard_that_the_index_names_and_is_not_there_is_named(checkpoint: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RecipeError, match=r"model-00002-of-00002\.safetensors is missing"):
        check_model_folder(str(checkpoint))


def test_a_result_that_was_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"stage": "sft", "set')
    with pytest.raises(RecipeError, match=rf"{path} is not JSON .*put it back from a copy"):
        is_finished(tmp_path, {})
    path.unlink()
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "settings.json").write_text("")
    with pytest.raises(RecipeError, match=r"settings\.json is not JSON"):
        start_or_resume(tmp_path, {"seed": 1})


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], [r".*mlp\.up_proj"], ["all-linear"]])
def test_lora_on_modules_of_the_model_passes(tiny_base: Path, targets: list[str]) -> None:
    check_lora_targets(ModelConfig(str(tiny_base), use_peft=True, lora_target_modules=targets))


@pytest.mark.parametrize("targets", [["nope"], ["q_proj", "nope"]])
def test_lora_on_a_module_that_is_not_there_is_refused(tiny_base: Path, targets: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"'nope' is no module of .*; it has down_proj, .*q_proj, "):
        check_lora_targets(ModelConfig(str(tiny_base), use_peft=True, lora_target_modules=targets))
    check_lora_targets(ModelConfig(str(tiny_base), use_peft=False, lora_target_modules=targets))
