"""What each key of TRL's three configurations is here: one that works, one that is refused, or TRL's own affair.

`WORKS`: the recipes rest on it, and a test that `tests/settings/test_key_effects.py` names sees its effect. `REFUSED`: it has no
meaning here, or would act without being seen; the line says what to do instead. `PASSED`: handed to TRL as it is, and
documented there. `tests/settings/test_keys.py` fails where the pinned TRL has a key that is in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib.util import find_spec
from typing import Any

import torch
from transformers import TrainingArguments
from trl import GRPOConfig, ModelConfig, SFTConfig

from foundation.errors import RecipeError

_WORKS = {
    "the model and its adapter": """
        model_name_or_path model_revision dtype attn_implementation model_init_kwargs
        use_peft lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save use_rslora use_dora
        load_in_8bit load_in_4bit bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage
    """,
    "batches and lengths": """
        output_dir seed max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps
        steps_per_generation generation_batch_size num_generations max_length max_completion_length
        vllm_max_model_length dataloader_drop_last
    """,
    "GRPO": """
        temperature beta epsilon epsilon_high loss_type scale_rewards importance_sampling_level
        mask_truncated_completions cast_lm_head_to_fp32
        use_vllm vllm_mode vllm_importance_sampling_correction generation_kwargs
    """,
    "optimiser and machine": """
        learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm optim bf16
        gradient_checkpointing gradient_checkpointing_kwargs
    """,
    "files, curves, hub": """
        save_strategy save_steps save_total_limit logging_steps report_to log_completions
        push_to_hub hub_model_id hub_private_repo hub_revision
    """,
}
WORKS = frozenset(key for keys in _WORKS.values() for key in keys.split())

_EVALUATED = "models are evaluated by make eval, and checkpoints compared by make select"
_FILMS = "TRL cannot pack studies with films; leave it out"
_BATCHED = "a generation is one batch of a multimodal model; set use_vllm: true for continuous batching"
_TEMPLATE = "training would use another chat format than evaluation; it is the checkpoint's"
_HUB = "final/ alone is uploaded, once, when the stage has finished"
REFUSED = {
    # the model
    "lora_target_parameters": "a Qwen3-VL has no bare parameters; name its layers in lora_target_modules",
    "lora_task_type": "reports are generated, which is CAUSAL_LM",
    "trust_remote_code": "Qwen3-VL is part of transformers; no checkpoint's code is run",
    "router_aux_loss_coef": "a dense Qwen3-VL has no experts",
    # data: prepared folders of studies
    "chat_template_path": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "eos_token": _TEMPLATE,
    "pad_token": _TEMPLATE,
    "dataset_text_field": "rows are studies; set datasets and data_dir",
    "dataset_kwargs": "rows are studies; set datasets and data_dir",
    "dataset_num_proc": "films are opened when they are read; set dataloader_num_workers",
    "truncation_mode": "no report is cut: studies beyond max_length are left out and counted",
    "packing": _FILMS,
    "packing_strategy": _FILMS,
    "eval_packing": _FILMS,
    "padding_free": _FILMS,
    "completion_only_loss": "the loss is on the report alone",
    "assistant_only_loss": "the loss is on the report alone already",
    "label_names": "the trainer knows its labels",
    "remove_unused_columns": "the trainers know their columns",
    "data_seed": "the order of the studies depends on seed and epoch alone; set seed",
    "train_sampling_strategy": "the order of the studies is random by seed and epoch; leave it out",
    "length_column_name": "the order of the studies is random by seed and epoch; leave it out",
    "ignore_data_skip": "a resumed run would see other studies than an unbroken one",
    # objectives that the trainers do not have
    "label_smoothing_factor": "TRL computes the loss itself and does not smooth it; leave it out",
    "reward_weights": "there is one reward, of weighted parts; set weight_bertscore, weight_radgraph, …",
    "multi_objective_aggregation": "there is one reward, of weighted parts; set reward_normalize_parts",
    "max_tool_calling_iterations": "reports are written without tools",
    "sync_ref_model": "the KL reference is the model that the stage starts from (paper), also after a resume; start "
    "another stage from the newer policy",
    "ref_model_mixup_alpha": "the KL reference is the model that the stage starts from",
    "ref_model_sync_steps": "the KL reference is the model that the stage starts from",
    # evaluation within training
    "eval_strategy": _EVALUATED,
    "eval_steps": _EVALUATED,
    "eval_delay": _EVALUATED,
    "eval_on_start": _EVALUATED,
    "eval_do_concat_batches": _EVALUATED,
    "eval_use_gather_object": _EVALUATED,
    "eval_accumulation_steps": _EVALUATED,
    "per_device_eval_batch_size": _EVALUATED,
    "num_generations_eval": _EVALUATED,
    "bf16_full_eval": _EVALUATED,
    "fp16_full_eval": _EVALUATED,
    "prediction_loss_only": _EVALUATED,
    "include_for_metrics": _EVALUATED,
    "batch_eval_metrics": _EVALUATED,
    "load_best_model_at_end": _EVALUATED,
    "metric_for_best_model": _EVALUATED,
    "greater_is_better": _EVALUATED,
    "do_train": "the command says what is done",
    "do_eval": _EVALUATED,
    "do_predict": _EVALUATED,
    # running
    "resume_from_checkpoint": "a stage resumes from its newest checkpoint by itself; FORCE=1 starts again",
    "restore_callback_states_from_checkpoint": "a resumed stage restores what it needs by itself",
    "auto_find_batch_size": "the batch would no longer be global_batch_size; make plan says what fits",
    "enable_jit_checkpoint": "SIGTERM and SIGUSR1 save a checkpoint already",
    "use_transformers_continuous_batching": _BATCHED,
    "transformers_continuous_batching_config": _BATCHED,
    "use_transformers_paged": _BATCHED,
    "vllm_importance_sampling_cap": "TRL has renamed it; set vllm_importance_sampling_clip_max",
    # hub
    "hub_token": "a recipe is no place for a secret; log in with HF_TOKEN",
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "log_completions_hub_repo": "report text is not uploaded; rollouts are kept in <stage>/rollouts",
}

_SAME = {"completion_only_loss": True}  # another value that says what the default does

_PASSED = {
    "sampling, by transformers or vLLM": """
        top_p top_k min_p repetition_penalty cache_implementation
        vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host
        vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_tensor_parallel_size
        vllm_importance_sampling_mode vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
    """,
    "GRPO's variants": """
        num_iterations delta sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg
        vespo_lambda_neg top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max
        entropy_coef_delta entropy_target off_policy_mask_threshold use_bias_correction_kl shuffle_dataset
        ds3_gather_for_generation log_multimodal num_completions_to_print log_unique_prompts pad_to_multiple_of
    """,
    "optimiser": """
        lr_scheduler_kwargs optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon average_tokens_across_devices
        neftune_noise_alpha
    """,
    "memory, speed, processes": """
        activation_offloading activation_checkpointing activation_checkpointing_kwargs torch_compile torch_compile_backend
        torch_compile_mode fp16 use_liger_kernel liger_kernel_config disable_dropout use_cache torch_empty_cache_steps tf32 use_cpu full_determinism
        accelerator_config parallelism_config ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
        ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed local_rank debug skip_memory_metrics
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order
    """,
    "files and curves": """
        save_only_model save_on_each_node logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter
        include_num_input_tokens_seen log_level log_level_replica disable_tqdm run_name project trackio_space_id
        trackio_bucket_id trackio_static_space_id
    """,
}
PASSED = frozenset(key for keys in _PASSED.values() for key in keys.split())

CONFIGURATIONS = (ModelConfig, SFTConfig, GRPOConfig)
# What TRL 1.16 knows, and asks for at the first step only.
GRPO_CHOICES = {
    "loss_type": ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_mode": ("colocate", "server"),
}
_LORA_KEYS = tuple(
    field.name for field in fields(ModelConfig) if field.name.startswith(("lora_", "use_rslora", "use_dora"))
)
# Optimisers that another package has: how their names begin or what they contain → that package.
_OPTIMIZER_PACKAGES = {
    "bnb": "bitsandbytes",
    "paged_": "bitsandbytes",
    "lion_": "bitsandbytes",
    "ademamix": "bitsandbytes",
    "adamw_8bit": "bitsandbytes",
    "rmsprop_": "bitsandbytes",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "adamw_anyprecision": "torchdistx",
    "galore": "galore_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "apollo": "apollo_torch",
    "stable_adamw": "optimi",
}


def check_keys(parts: Sequence[Any]) -> None:
    """Raise `RecipeError` for a key, or a value, with which a stage could not do what it says: before a model is loaded.

    Args:
        parts: the parsed configurations; those that are not TRL's are ignored.
    """
    for part in parts:
        if isinstance(part, CONFIGURATIONS):
            for name in _changed(part, REFUSED):
                raise RecipeError(f"{name}: {getattr(part, name)!r} has no meaning here: {REFUSED[name]}")
    model = next((part for part in parts if isinstance(part, ModelConfig)), None)
    training = next((part for part in parts if isinstance(part, SFTConfig | GRPOConfig)), None)
    if model is not None:
        _check_adapter(model)
    if training is not None:
        _check_training(training)
    if isinstance(training, GRPOConfig):
        _check_grpo(training)
        if model is not None and model.use_peft:
            _switch_dropout_off(model)
            if training.use_vllm and (model.load_in_4bit or model.load_in_8bit):
                raise RecipeError(
                    "use_vllm: true with load_in_4bit or load_in_8bit: vLLM holds no quantised base that follows an adapter; set "
                    "use_vllm: false, or train the 16-bit base (VARIANT=lora)"
                )


def _changed(part: Any, names: Any) -> list[str]:
    """Those of `names` that `part` has at another value than the key's default."""
    changed = []
    for field in fields(part):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in names and getattr(part, field.name) not in (default, _SAME.get(field.name, default)):
            changed.append(field.name)
    return changed


def _check_adapter(model: ModelConfig) -> None:
    quantised = model.load_in_4bit or model.load_in_8bit
    if not model.use_peft:
        if set_keys := _changed(model, _LORA_KEYS):
            raise RecipeError(
                f"{set_keys[0]} is set and use_peft is not: all weights would train, at LoRA's learning rate; set "
                "use_peft: true, or take the LoRA keys out"
            )
        if quantised:
            raise RecipeError("load_in_4bit and load_in_8bit train adapters only (QLoRA); set use_peft: true")
        return
    if model.lora_r < 1 or model.lora_alpha <= 0:
        raise RecipeError(f"lora_r is {model.lora_r} and lora_alpha {model.lora_alpha}; both must be above 0")
    if not 0 <= model.lora_dropout < 1:
        raise RecipeError(f"lora_dropout is {model.lora_dropout}; it is a share, at least 0 and below 1")
    if not model.load_in_4bit and (
        changed := _changed(model, ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"))
    ):
        raise RecipeError(f"{changed[0]} acts with load_in_4bit: true alone; set that, or take it out")


def _switch_dropout_off(model: ModelConfig) -> None:
    """GRPO compares the policy that sampled with the one that is trained: dropout would make them two."""
    if _changed(model, ("lora_dropout",)) and model.lora_dropout:
        raise RecipeError(
            f"lora_dropout is {model.lora_dropout}; in RL it would sample with one policy and score with another; set "
            "lora_dropout: 0.0"
        )
    model.lora_dropout = 0.0  # TRL's default is 0.05


def _check_training(training: SFTConfig | GRPOConfig) -> None:
    if training.per_device_train_batch_size < 1:
        raise RecipeError(
            f"per_device_train_batch_size is {training.per_device_train_batch_size}; it must be at least 1"
        )
    if training.gradient_accumulation_steps < 1:
        raise RecipeError(
            f"gradient_accumulation_steps is {training.gradient_accumulation_steps}; it must be at least 1"
        )
    if training.max_steps == 0 or (training.max_steps < 0 and training.num_train_epochs <= 0):
        raise RecipeError(
            f"max_steps is {training.max_steps} and num_train_epochs {training.num_train_epochs:g}: nothing would be "
            "trained; set one of them above 0"
        )
    ours = {"dtype": "dtype", "torch_dtype": "dtype", "attn_implementation": "attn_implementation"}
    ours |= {"revision": "model_revision", "quantization_config": "load_in_4bit"}
    for name in training.model_init_kwargs or {}:
        if name in ours:
            raise RecipeError(f"model_init_kwargs: {name} has a key of its own; set {ours[name]} instead")
        if name in ("use_safetensors", "trust_remote_code"):
            raise RecipeError(f"model_init_kwargs: {name} is not for a recipe to decide; take it out")


def _check_grpo(training: GRPOConfig) -> None:
    for key, choices in GRPO_CHOICES.items():
        if getattr(training, key) not in choices:
            raise RecipeError(f"{key} is {getattr(training, key)!r}; choose one of {', '.join(choices)}")
    if training.loss_type == "bnpo":
        raise RecipeError(
            "loss_type: bnpo is normalised by each forward pass, so that its gradient depends on how a batch is split; set "
            "loss_type: dapo, which is the same normalised by the whole batch"
        )
    if training.temperature <= 0:
        raise RecipeError(f"temperature is {training.temperature}; rollouts must differ, so it must be above 0")
    if training.neftune_noise_alpha:
        raise RecipeError(
            "neftune_noise_alpha adds noise to the policy that is scored and not to the one that samples; it is for SFT"
        )


def check_packages(model: ModelConfig, training: TrainingArguments) -> None:
    """Raise `RecipeError` for what this machine cannot do: packages that are not installed, fp16 or Liger without a GPU."""
    if training.fp16 and not torch.cuda.is_available():
        raise RecipeError("fp16: true does nothing on a CPU; set bf16: true or leave both out")
    wanted = {}
    if model.load_in_4bit or model.load_in_8bit:
        wanted["load_in_4bit" if model.load_in_4bit else "load_in_8bit"] = "bitsandbytes"
    if training.use_liger_kernel:
        wanted["use_liger_kernel"] = "liger_kernel"
    optimizer = str(getattr(training.optim, "value", training.optim))
    for part, package in _OPTIMIZER_PACKAGES.items():
        if part in optimizer:
            wanted[f"optim: {optimizer}"] = package
    for key, package in wanted.items():
        if find_spec(package) is None:
            raise RecipeError(f"{key} needs a package; pip install {package.replace('_', '-')}, or take it out")
    if training.use_liger_kernel and (training.use_cpu or not torch.cuda.is_available()):
        raise RecipeError("use_liger_kernel needs a GPU, for which its kernels are; take it out")
