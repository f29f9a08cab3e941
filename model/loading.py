"""Loading and saving a Qwen3-VL checkpoint and its processor, with or without torchvision."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    Qwen3VLProcessor,
    TrainingArguments,
)
from trl import ModelConfig

from foundation import Path
from foundation.errors import RecipeError, read_json
from model.adapter_files import BASE_FILE, adapter_base, is_adapter
from model.check import check_model_folder, check_tensors, first_line, whole_weights
from model.fingerprint import model_fingerprint
from model.lora import merge_in_place
from model.merge_check import compared
from model.processor import end_tokens, load_processor


def load_model(path: str, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> PreTrainedModel:
    """The model of a checkpoint in evaluation mode, on `device`; an adapter's is the merged one, as a next stage has it.

    Raises:
        RecipeError: no such checkpoint, or its files cannot be loaded.
    """
    check_model_folder(path)
    if is_adapter(path):
        model, _ = load_merged(path, device)
        return (model if dtype == "auto" else model.to(dtype)).eval()
    check_tensors(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot load the model of {path}: {first_line(error)}") from error
    return model.to(device).eval()


def model_options(model: ModelConfig, training: TrainingArguments) -> dict[str, Any]:
    """How a trainer is to load its model: from safetensors, with no code but transformers' own; and as the user says."""
    return {
        **(training.model_init_kwargs or {}),
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": model.model_revision,
        "use_safetensors": True,
        "trust_remote_code": False,
    }


def load_model_and_processor(
    path: str, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Qwen3VLProcessor]:
    """Both, ready for batched greedy generation (left padding), whatever the checkpoint says of sampling."""
    model, processor = load_model(path, dtype, device), load_processor(path)
    generate_neutrally(model, processor)
    return model, processor


def generate_neutrally(model: PreTrainedModel, processor: Qwen3VLProcessor) -> None:
    """Replace, in place, what the checkpoint's `generation_config.json` says of generation: greedy, no penalties, our ends.

    transformers would take penalties, forbidden repetitions, beams and the like from there, for greedy reports and for
    rollouts too, whose probabilities would then not be the policy's; vLLM takes none of them.
    """
    neutral = GenerationConfig(eos_token_id=end_tokens(processor), pad_token_id=processor.tokenizer.pad_token_id)
    vars(model.generation_config).clear()
    vars(model.generation_config).update(vars(neutral))


def load_merged(path: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, dict[str, Any]]:
    """Base and adapter as one model, in the dtype of the stage that trained them, and how far it is from the two.

    Raises:
        RecipeError: the base is not where the adapter says, or is another one than was trained; tensors of the adapter
            are missing; or the merged model is another policy, beyond rounding.
    """
    base, noted = adapter_base(path), Path(path) / BASE_FILE
    trained = read_json(noted) if noted.is_file() else {"sha256": None, "dtype": "auto"}
    if trained["sha256"] not in (None, model_fingerprint(base)):
        raise RecipeError(
            f"{base} is not the model that the adapter in {path} was trained on: its weights have changed since; put the "
            "earlier ones back, or train the adapter again"
        )
    with whole_weights():
        model = _with_adapter(load_model(base, trained["dtype"], device), path).eval()
    model, difference = compared(model, merge_in_place, load_processor(path), Path(path).resolve())
    print(f"{path} merged with {base}: {difference['summary']}", flush=True)
    return model, difference


def _with_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """`model` with the adapter of `path`, every tensor of which is there and has its place."""
    try:
        adapted = PeftModel.from_pretrained(model, path)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cannot load the adapter of {path}: {first_line(error)}") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(Path(path) / "adapter_model.safetensors", framework="pt") as file:
        there = set(file.keys())
    # Where embeddings are adapted, PEFT also saves the base's own.
    extra = {
        name
        for name in there - wanted
        if not name.endswith((".base_layer.weight", "embed_tokens.weight", "lm_head.weight"))
    }
    if wanted - there or extra:
        name = min(wanted - there or extra)
        raise RecipeError(
            f"{path}/adapter_model.safetensors and adapter_config.json do not belong together: {len(wanted - there)} "
            f"tensors are missing and {len(extra)} have no place ({name}, …); save the adapter again"
        )
    return adapted
