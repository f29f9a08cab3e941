"""Each key that is said to work does: another value than the default makes another run.

Most are shown by what is trained, on the tiny model; the rest by the test that is named here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_runs import grpo_run
from safetensors.torch import load_file

from settings.keys import WORKS
from tests.settings.test_keys import LORA, sft_run

FREE = {"global_batch_size": "null"}  # so that the batch is what its factors make
# Key → what it is set to, and what both runs have besides.
OF_SFT: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (1e-3, {}),
    "lr_scheduler_type": ("constant", {"lr_scheduler_type": "linear"}),
    "warmup_steps": (2, {}),
    "weight_decay": (0.5, {}),
    "max_grad_norm": (1e-3, {"optim": "sgd"}),
    "optim": ("sgd", {}),
    "seed": (7, {}),
    "max_steps": (1, {}),
    "num_train_epochs": (1, {"max_steps": -1, "num_train_epochs": 2, "dataset_weights": 0.1}),
    "per_device_train_batch_size": (2, FREE),
    "gradient_accumulation_steps": (2, FREE),
    "bf16": ("true", {}),
    "dtype": ("bfloat16", LORA),
    "max_length": (240, {}),
    "use_peft": ("true", {}),
    "lora_r": (2, LORA),
    "lora_alpha": (4, LORA),
    "lora_dropout": (0.5, LORA),
    "lora_target_modules": ("all-linear", LORA),
    "lora_modules_to_save": ("merger", LORA),
    "use_rslora": ("true", LORA),
    "use_dora": ("true", LORA),
}
OF_GRPO: dict[str, tuple[Any, dict[str, Any]]] = {
    "temperature": (0.7, {}),
    "beta": (0.5, {}),
    "epsilon": (0.001, {}),
    "epsilon_high": (0.0001, {}),
    "loss_type": ("dr_grpo", {}),
    "scale_rewards": ("none", {}),
    "importance_sampling_level": ("sequence", {}),
    "mask_truncated_completions": ("false", {"mask_truncated_completions": "true"}),
    "num_generations": (2, {"per_device_train_batch_size": 4}),
    "max_completion_length": (8, {}),
    "generation_kwargs": ('{"no_repeat_ngram_size": 1}', {}),
    "steps_per_generation": (4, {**FREE, "gradient_accumulation_steps": 1, "steps_per_generation": 2}),
    "generation_batch_size": (16, {**FREE, "gradient_accumulation_steps": 1, "generation_batch_size": 32}),
}
TESTS = Path(__file__).resolve().parents[1]
# Key → the test that sees its effect.
ELSEWHERE = {
    "model_name_or_path": "test_adapters.py::test_what_is_started_from_and_rated_is_the_policy_that_was_trained",
    "model_revision": "test_keys.py::test_a_revision_of_a_folder_is_refused",
    "output_dir": "test_lora.py::test_the_final_model_is_whole_and_only_the_adapted_weights_moved",
    "attn_implementation": "test_key_effects.py::test_what_a_model_is_loaded_with",
    "model_init_kwargs": "test_key_effects.py::test_what_a_model_is_loaded_with",
    "load_in_8bit": "test_keys.py::test_quantised_training_without_its_package_is_one_line",
    "load_in_4bit": "test_plan.py::test_a_base_in_4_bits_fits_a_24_gb_gpu_by_sft_and_a_48_gb_one_by_rl",
    "bnb_4bit_quant_type": "test_keys.py::test_a_value_with_which_a_stage_cannot_do_what_it_says_is_refused",
    "use_bnb_nested_quant": "test_plan.py::test_a_base_in_4_bits_fits_a_24_gb_gpu_by_sft_and_a_48_gb_one_by_rl",
    "bnb_4bit_quant_storage": "test_keys.py::test_a_value_with_which_a_stage_cannot_do_what_it_says_is_refused",
    "vllm_max_model_length": "test_lengths.py::test_a_study_that_vllm_has_no_room_for_is_left_out",
    "dataloader_drop_last": "test_keys.py::test_a_stage_is_another_with_another_product_and_not_with_other_factors",
    "cast_lm_head_to_fp32": "test_keys.py::test_a_head_in_float32_works_with_tied_embeddings",
    "use_vllm": "test_vllm_training.py::",
    "vllm_mode": "test_vllm_training.py::",
    "vllm_importance_sampling_correction": "test_vllm_guards.py::",
    "gradient_checkpointing": "test_keys.py::test_every_adapter_learns_also_with_reentrant_checkpointing",
    "gradient_checkpointing_kwargs": "test_keys.py::test_every_adapter_learns_also_with_reentrant_checkpointing",
    "save_strategy": "test_key_effects.py::test_what_is_saved_and_logged",
    "save_steps": "test_key_effects.py::test_what_is_saved_and_logged",
    "save_total_limit": "test_key_effects.py::test_what_is_saved_and_logged",
    "logging_steps": "test_key_effects.py::test_what_is_saved_and_logged",
    "report_to": "test_tracking.py::test_a_tensorboard_run_holds_each_reward_part_and_monitor_as_a_curve",
    "log_completions": "test_tracking.py::test_report_text_and_checkpoints_go_to_no_tracker",
    "push_to_hub": "test_hub.py::test_every_upload_of_a_stage_is_a_model_file_of_its_final",
    "hub_model_id": "test_hub.py::test_every_upload_of_a_stage_is_a_model_file_of_its_final",
    "hub_private_repo": "test_hub.py::test_a_public_repository_takes_nothing_unless_public_is_said",
    "hub_revision": "test_hub.py::test_a_branch_is_committed_to",
}


def test_every_key_that_works_has_a_test_of_its_effect() -> None:
    assert set(OF_SFT) | set(OF_GRPO) | set(ELSEWHERE) == WORKS
    for named in ELSEWHERE.values():
        file, _, test = named.partition("::")
        assert f"def {test}" in next(TESTS.rglob(file)).read_text()


def sft_weights(out: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict:
    sft_run(out, base, data, monkeypatch, **{"max_steps": 3, **settings})
    return load_file(out / "final" / "model.safetensors")


def differ(one: dict, other: dict) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one.keys() & other.keys())


@pytest.mark.slow
@pytest.mark.parametrize("key", OF_SFT)
def test_a_key_of_sft_changes_what_is_trained(
    key: str, tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, both = OF_SFT[key]
    one = sft_weights(tmp_path / "one" / "sft", tiny_base, phantom_data, monkeypatch, **both)
    changed = {**both, **(LORA if key == "use_peft" else {}), key: value}
    assert differ(one, sft_weights(tmp_path / "other" / "sft", tiny_base, phantom_data, monkeypatch, **changed))


@pytest.mark.slow
@pytest.mark.parametrize("key", OF_GRPO)
def test_a_key_of_grpo_changes_what_is_trained(key: str, tiny_base: Path, phantom_data: Path, tmp_path: Path) -> None:
    value, both = OF_GRPO[key]
    both = {"max_steps": 2, "mask_truncated_completions": "false", **both}
    runs = [
        grpo_run(tmp_path / name, tiny_base, phantom_data, **settings)
        for name, settings in (("one", both), ("other", {**both, key: value}))
    ]
    one, other = (dict(run.trainer.model.named_parameters()) for run in runs)
    assert differ(one, other)


@pytest.mark.slow
def test_what_a_model_is_loaded_with(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen3VLForConditionalGeneration as Model

    asked = []
    load = Model.from_pretrained.__func__
    monkeypatch.setattr(
        Model, "from_pretrained", classmethod(lambda cls, *a, **given: asked.append(given) or load(cls, *a, **given))
    )
    settings = {"attn_implementation": "eager", "model_init_kwargs": '{"low_cpu_mem_usage": false}', "max_steps": 1}
    sft_weights(tmp_path / "sft", tiny_base, phantom_data, monkeypatch, **settings)
    trained = [given for given in asked if given.get("low_cpu_mem_usage") is False]
    assert len(trained) == 1
    assert trained[0]["attn_implementation"] == "eager"


@pytest.mark.slow
def test_what_is_saved_and_logged(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "logging_steps": 1}
    sft_weights(tmp_path / "sft", tiny_base, phantom_data, monkeypatch, **settings)
    assert sorted(path.name for path in (tmp_path / "sft").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert capsys.readouterr().out.count("sft step ") == 3
