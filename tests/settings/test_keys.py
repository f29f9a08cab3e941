"""Each key of TRL's three configurations works here, is refused in one line, or is known to be TRL's own affair."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from rl_runs import grpo_run, options
from safetensors.torch import load_file
from trl import GRPOConfig, ModelConfig, SFTConfig

from foundation.errors import RecipeError
from model.lora import check_lora_targets
from recipes import sft
from recipes.grpo import ARGUMENTS
from settings import keys
from settings.arguments import DataArguments, StageArguments
from settings.keys import CONFIGURATIONS, PASSED, REFUSED, WORKS, check_packages
from settings.parser import parse_recipe
from training.finished import stage_settings
from training.gradients import EveryTensorLearns
from training.stage import check_revision

SFT = (DataArguments, StageArguments, ModelConfig, SFTConfig)
LORA = {
    "use_peft": "true",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "lora_target_modules": ["q_proj", "v_proj"],
}


def test_every_key_of_the_pinned_trl_is_in_one_of_the_three_lists() -> None:
    """An update of TRL or transformers that adds a key, or takes one away, is seen here."""
    there = {field.name for configuration in CONFIGURATIONS for field in fields(configuration)}
    assert there == WORKS | set(REFUSED) | PASSED
    assert len(WORKS) + len(REFUSED) + len(PASSED) == len(there)


# A value of each refused key that is not its default.
OTHER_VALUES = {
    "lora_target_parameters": "experts",
    "lora_task_type": "SEQ_CLS",
    "truncation_mode": "keep_end",
    "packing_strategy": "wrapped",
    "completion_only_loss": "false",
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "tokens",
    "label_names": "labels",
    "label_smoothing_factor": "0.1",
    "reward_weights": "2.0",
    "multi_objective_aggregation": "normalize_then_sum",
    "ref_model_mixup_alpha": "0.5",
    "eval_strategy": "steps",
    "eval_delay": "1",
    "eval_do_concat_batches": "false",
    "include_for_metrics": "inputs",
    "metric_for_best_model": "loss",
    "dataset_kwargs": '{"skip_prepare_dataset": true}',
    "chat_template_kwargs": '{"enable_thinking": false}',
    "transformers_continuous_batching_config": "{}",
    "hub_strategy": "end",
    "vllm_importance_sampling_cap": "2.0",
    "router_aux_loss_coef": "0.1",
    "remove_unused_columns": "false",  # SFT's default is true
}
NUMBERS = [
    "data_seed",
    "dataset_num_proc",
    "max_tool_calling_iterations",
    "ref_model_sync_steps",
    "eval_steps",
    "eval_accumulation_steps",
    "per_device_eval_batch_size",
    "num_generations_eval",
]
NAMES = [
    "chat_template_path",
    "eos_token",
    "pad_token",
    "dataset_text_field",
    "resume_from_checkpoint",
    "hub_token",
    "log_completions_hub_repo",
]


@pytest.mark.parametrize("key", sorted(REFUSED))
@pytest.mark.filterwarnings("ignore")
def test_a_refused_key_is_one_line_with_what_to_do_instead(key: str) -> None:
    value = OTHER_VALUES.get(key, "4" if key in NUMBERS else "words" if key in NAMES else "true")
    of_sft = key in {field.name for part in SFT for field in fields(part)}
    recipe, types = ("sft", SFT) if of_sft else ("rl_step1", ARGUMENTS)
    # TRL hands a renamed key on to its new name, which is then the one that is refused.
    shown = "use_transformers_continuous_batching" if key == "use_transformers_paged" else key
    with pytest.raises(RecipeError, match=shown) as refused:
        parse_recipe(types, ["--config", f"recipes/demo/{recipe}.yaml", f"--{key}", value])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("sft", {"lora_r": 8}, "use_peft is not: all weights would train"),
        ("sft", {"use_dora": "true"}, "use_peft is not"),
        ("sft", {**LORA, "lora_r": 0}, "lora_r is 0"),
        ("sft", {**LORA, "lora_alpha": 0}, "both must be above 0"),
        ("sft", {**LORA, "lora_dropout": 1}, "lora_dropout is 1.0"),
        ("rl_step1", {**LORA, "lora_dropout": 0.1}, "set lora_dropout: 0.0"),
        ("sft", {"load_in_4bit": "true"}, "set use_peft: true"),
        ("sft", {**LORA, "bnb_4bit_quant_type": "fp4"}, "acts with load_in_4bit"),
        ("rl_step1", {"temperature": 0}, "temperature is 0.0; rollouts must differ"),
        ("rl_step1", {"loss_type": "bnpo"}, "set loss_type: dapo"),
        ("rl_step1", {"neftune_noise_alpha": 5}, "it is for SFT"),
        ("sft", {"num_train_epochs": 0, "max_steps": -1}, "nothing would be trained"),
        ("sft", {"max_steps": 0}, "nothing would be trained"),
        ("sft", {"model_init_kwargs": '{"dtype": "float16"}'}, "model_init_kwargs: dtype has a key of its own"),
    ],
)
def test_a_value_with_which_a_stage_cannot_do_what_it_says_is_refused(stage: str, settings: dict, message: str) -> None:
    types = SFT if stage == "sft" else ARGUMENTS
    with pytest.raises(RecipeError, match=message):
        parse_recipe(types, ["--config", f"recipes/demo/{stage}.yaml", *options(settings)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True}, "fp16: true does nothing on a CPU"),
        ({"optim": "paged_adamw_8bit"}, "optim: paged_adamw_8bit needs a package; pip install bitsandbytes"),
        ({"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}, "pip install galore-torch"),
        ({"use_liger_kernel": True}, "use_liger_kernel needs a package; pip install liger-kernel"),
    ],
)
def test_what_this_machine_cannot_do_is_one_line(settings: dict, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(keys, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    for key, value in settings.items():
        setattr(training, key, value)
    with pytest.raises(RecipeError, match=message):
        check_packages(ModelConfig(), training)


def test_ligers_kernels_without_a_gpu_are_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(keys, "find_spec", lambda name: "there")
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    check_packages(ModelConfig(), training)
    training.use_liger_kernel = True
    with pytest.raises(RecipeError, match="use_liger_kernel needs a GPU"):
        check_packages(ModelConfig(), training)


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_quantised_training_without_its_package_is_one_line(key: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(keys, "find_spec", lambda name: None)
    training = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(RecipeError, match=f"{key} needs a package; pip install bitsandbytes"):
        check_packages(ModelConfig(use_peft=True, **{key: True}), training)


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="model_revision: 'v2' is a version on the hub"):
        check_revision(ModelConfig(str(tmp_path), model_revision="v2"))
    check_revision(ModelConfig("Qwen/Qwen3-VL-8B-Instruct", model_revision="v2"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_modules_to_save": ["no_such_module"]}, "lora_modules_to_save: 'no_such_module' is no module of"),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, r"set lora_modules_to_save: \[lm_head\]"),
        ({"lora_target_modules": None}, "use_peft needs lora_target_modules"),
    ],
)
def test_adapters_that_would_train_nothing_are_refused(settings: dict, message: str, tiny_base: Path) -> None:
    given = {"lora_target_modules": ["q_proj", "v_proj"], **settings}
    with pytest.raises(RecipeError, match=message):
        check_lora_targets(ModelConfig(str(tiny_base), use_peft=True, **given))
    fits = ModelConfig(str(tiny_base), use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    fits.lora_modules_to_save = ["lm_head", "merger"]
    check_lora_targets(fits)


def config(kind: type, folder: Path, **settings: object) -> SFTConfig | GRPOConfig:
    return kind(output_dir=str(folder), use_cpu=True, bf16=False, **settings)


@pytest.mark.filterwarnings("ignore")
def test_a_stage_is_another_with_another_product_and_not_with_other_factors(tmp_path: Path) -> None:
    def settings(kind: type, **given: object) -> dict:
        found = stage_settings("a/hub-name", "data", config(kind, tmp_path, **given))
        return {key: value for key, value in found.items() if not key.startswith(keys_of_the_machine)}

    from training.finished import OF_THE_MACHINE as keys_of_the_machine

    one = settings(SFTConfig, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert one == settings(SFTConfig, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert one != settings(SFTConfig, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert settings(SFTConfig) != settings(SFTConfig, dataloader_drop_last=True)
    assert settings(SFTConfig) == settings(SFTConfig, dataloader_num_workers=2)
    rl = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 8}
    assert settings(GRPOConfig, **rl, steps_per_generation=2) != settings(GRPOConfig, **rl, steps_per_generation=4)
    before = settings(GRPOConfig, **rl)
    assert before != settings(GRPOConfig, **rl, vllm_importance_sampling_mode="token_mask")
    assert before == settings(GRPOConfig, **rl, vllm_gpu_memory_utilization=0.5)


def sft_run(out: Path, base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    given = {
        "model_name_or_path": base,
        "data_dir": data,
        "output_dir": out,
        "datasets": "phantom_prairie",
        "max_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "global_batch_size": 4,
        "per_device_train_batch_size": 4,
        **settings,
    }
    monkeypatch.setattr(sys, "argv", ["sft", "--config", "recipes/demo/sft.yaml", *options(given)])
    sft.main()


def test_every_adapter_learns_also_with_reentrant_checkpointing(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reentrant = {"gradient_checkpointing": "true", "gradient_checkpointing_kwargs": '{"use_reentrant": true}'}
    lora = {**LORA, "lora_target_modules": "all-linear"}
    sft_run(tmp_path / "sft", tiny_base, phantom_data, monkeypatch, **lora, **reentrant)
    weights = load_file(tmp_path / "sft" / "adapter" / "adapter_model.safetensors")
    learned = {name: bool(weight.any()) for name, weight in weights.items() if "lora_B" in name}
    assert any("visual" in name for name in learned)
    assert all(learned.values())
    assert json.loads((tmp_path / "sft" / "result.json").read_text())["merge"]["max_logp_difference"] < 1e-4


def test_a_tensor_without_gradient_stops_the_run_and_is_named(
    tiny_base: Path, phantom_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.trainers.let_vision_adapters_learn", lambda model, training: None)
    reentrant = {"gradient_checkpointing": "true", "gradient_checkpointing_kwargs": '{"use_reentrant": true}'}
    lora = {**LORA, "lora_target_modules": "all-linear"}
    with pytest.raises(RecipeError, match=r"trainable tensors had no gradient at the first update .*visual\.blocks"):
        sft_run(tmp_path / "sft", tiny_base, phantom_data, monkeypatch, **lora, **reentrant)


def test_a_gradient_of_zeros_is_one() -> None:
    model = torch.nn.Linear(2, 1)
    check = EveryTensorLearns()
    check.on_train_begin(None, None, None, model=model)
    (model(torch.ones(1, 2)) * 0).sum().backward()
    check.on_pre_optimizer_step(None, None, None)


def test_dropout_of_adapters_is_off_in_rl_by_itself(tiny_base: Path) -> None:
    given = {key: value for key, value in LORA.items() if key != "lora_dropout"}
    parsed = parse_recipe(ARGUMENTS, ["--config", "recipes/demo/rl_step1.yaml", *options(given)])
    assert parsed[-2].lora_dropout == 0
    parsed = parse_recipe(SFT, ["--config", "recipes/demo/sft.yaml", *options(given)])
    assert parsed[-2].lora_dropout == 0.05  # TRL's default


@pytest.mark.parametrize("lora", [False, True])
def test_a_head_in_float32_works_with_tied_embeddings(
    lora: bool, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    given = {key: value for key, value in LORA.items() if lora}
    run = grpo_run(
        tmp_path / "rl",
        tiny_base,
        phantom_data,
        max_steps=1,
        updates_per_generation=1,
        dtype="bfloat16",
        cast_lm_head_to_fp32="true",
        mask_truncated_completions="false",
        **given,
    )
    base = run.trainer.model.get_base_model() if lora else run.trainer.model
    assert base.lm_head.weight is base.model.language_model.embed_tokens.weight  # still tied
    assert base.lm_head.weight.dtype == torch.float32
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = base(input_ids=ids).logits
        # Where all weights train they are float32, computed with in bfloat16 by autocast, which does not reach the head.
        with torch.autocast("cpu", torch.bfloat16, enabled=not lora):
            hidden = base.model(input_ids=ids).last_hidden_state
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, hidden.float() @ base.lm_head.weight.T)
    assert run.log[0]["loss"] == run.log[0]["loss"]  # not NaN
