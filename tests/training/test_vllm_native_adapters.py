"""vLLM's own adapters: what they cannot be is refused, and with vLLM itself rollouts are of the policy at each step."""

from __future__ import annotations

import pytest
from trl import GRPOConfig, ModelConfig

from foundation.errors import RecipeError
from training.vllm_native_adapters import check_native_adapters

LORA = {"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]}
COLOCATED = {"use_vllm": True, "vllm_mode": "colocate", "vllm_enable_sleep_mode": False}


def settings(tmp_path, model: dict, training: dict) -> tuple[ModelConfig, GRPOConfig]:
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    return ModelConfig("base", **{**LORA, **model}), GRPOConfig(**common, **{**COLOCATED, **training})


def test_an_ordinary_adapter_is_accepted(tmp_path) -> None:
    check_native_adapters(*settings(tmp_path, {}, {}))


@pytest.mark.parametrize(
    ("model", "training", "wanted"),
    [
        ({}, {"use_vllm": False}, "use_vllm: true with vllm_mode: colocate"),
        ({}, {"vllm_mode": "server"}, "use_vllm: true with vllm_mode: colocate"),
        ({"use_peft": False}, {}, "use_peft: true"),
        ({}, {"vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode: false"),
        ({"use_dora": True}, {}, "use_dora: false"),
        ({"lora_modules_to_save": ["lm_head"]}, {}, "no lora_modules_to_save"),
        ({"lora_target_modules": ["q_proj", "embed_tokens"]}, {}, "lora_target_modules among q_proj"),
        ({"lora_target_modules": None}, {}, "lora_target_modules among q_proj"),
        ({"lora_r": 1024}, {}, "lora_r of at most 512"),
        ({"load_in_4bit": True}, {}, "a base in 16 or 32 bits"),
    ],
)
def test_what_vllm_cannot_hold_is_refused(tmp_path, model, training, wanted) -> None:
    with pytest.raises(
        RecipeError, match=r"vllm_native_adapters needs .*or set vllm_native_adapters: false$"
    ) as refused:
        check_native_adapters(*settings(tmp_path, model, training))
    assert wanted in str(refused.value)
