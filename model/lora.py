"""LoRA adapters: what of a model they adapt, checked before weights are loaded, and the weights that they make."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from trl import ModelConfig

from foundation.errors import RecipeError, read_json

ALL_LINEAR = "all-linear"


def check_lora_targets(model: ModelConfig, use_vllm: bool = False) -> None:
    """Raise `RecipeError` for an entry of lora_target_modules or lora_modules_to_save that would train nothing.

    PEFT says nothing of one that no module of the model has. The model is built without weights; a hub name is left to PEFT.

    Args:
        use_vllm: rollouts come from vLLM, which has one tensor for embeddings and head where they are tied.
    """
    targets = model.lora_target_modules
    if not model.use_peft:
        return
    if not targets:
        raise RecipeError(f"use_peft needs lora_target_modules, e.g. [q_proj, k_proj, v_proj, o_proj] or {ALL_LINEAR}")
    folder = Path(model.model_name_or_path)
    if (folder / "adapter_config.json").is_file():
        folder = Path(read_json(folder / "adapter_config.json", "base_model_name_or_path")["base_model_name_or_path"])
    if not folder.is_dir():
        return
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
        )
    names = [name for name, _ in skeleton.named_modules()]
    keys = {"lora_modules_to_save": model.lora_modules_to_save or []}
    tied = skeleton.config.tie_word_embeddings or skeleton.config.get_text_config().tie_word_embeddings
    if targets != ALL_LINEAR:
        keys["lora_target_modules"] = targets
    for key, entries in keys.items():
        for entry in [entries] if isinstance(entries, str) else entries:
            if not _fits(entry, names, pattern=isinstance(entries, str)):
                last = sorted({name.rpartition(".")[2] for name in names if name.endswith("_proj")})
                pattern = " (a single entry is a pattern of whole names, such as .*q_proj)" if entries == entry else ""
                known = (
                    f"{', '.join(last)}, … (or {ALL_LINEAR})" if key == "lora_target_modules" else "lm_head, merger, …"
                )
                raise RecipeError(f"{key}: {entry!r} is no module of {folder}{pattern}; it has {known}")
            ends = ["lm_head", *(name for name in names if name.endswith("embed_tokens"))]
            if use_vllm and tied and _fits(entry, ends, pattern=isinstance(entries, str)):
                raise RecipeError(
                    f"{key}: {entry!r} unties embeddings and head in training, and vLLM keeps those of {folder} tied: its "
                    "rollouts would be of another policy; take it out, or set use_vllm: false"
                )
            if key == "lora_target_modules" and _fits(entry, ["lm_head"], pattern=isinstance(entries, str)):
                raise RecipeError(
                    "lora_target_modules: the loss takes lm_head's weight itself, so that an adapter on it would not train; "
                    "set lora_modules_to_save: [lm_head]"
                )


def _fits(target: str, names: list[str], pattern: bool) -> bool:
    """As PEFT matches: a single text is a pattern of whole names, an entry of a list is a name's end."""
    if pattern:
        return any(re.fullmatch(target, name) for name in names)
    return any(name == target or name.endswith(f".{target}") for name in names)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The layers of `model` that have an adapter, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def merged_layer(
    layer: LoraLayer, read: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
) -> dict[str, torch.Tensor]:
    """The layer's weight (and bias) with its adapter added in float32 and rounded once to the base's dtype.

    By PEFT's own arithmetic (LoRA, rsLoRA, DoRA, embeddings, convolutions), on a copy: the layer itself is not touched.

    Args:
        read: makes a parameter whole where it is sharded.

    Raises:
        RecipeError: the base is quantised; it is merged from its 16-bit checkpoint.
    """
    base = layer.get_base_layer()
    dtype = base.weight.dtype
    if not dtype.is_floating_point:
        raise RecipeError("a quantised layer cannot be merged; load the base model in 16 bits")
    shadow = _in_float32(layer, read)
    shadow.merge()
    merged = dict(shadow.get_base_layer().named_parameters(recurse=False))
    return {name: tensor.detach().to(dtype) for name, tensor in merged.items()}


def _in_float32(module: nn.Module, read: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of `module`, without hooks, whose floating-point tensors are whole and in float32."""
    shadow = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | list):  # hooks, caches and the lists of merged adapters are the copy's own
            setattr(shadow, name, type(value)(value))
    for name in [name for name in vars(shadow) if name.endswith("_hooks")]:
        getattr(shadow, name).clear()
    shadow._parameters = {
        name: None if value is None else nn.Parameter(read(value.detach()).float().clone(), requires_grad=False)
        for name, value in module._parameters.items()
    }
    shadow._buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
    shadow._modules = {name: child and _in_float32(child, read) for name, child in module._modules.items()}
    return shadow


def merge_in_place(model: PeftModel) -> PreTrainedModel:
    """The model without adapters whose weights are `merged_layer`'s; modules_to_save take their modules' place.

    Input and output embeddings that were tied and now differ are two tensors from then on, as they were in training.
    """
    for _, layer in adapted_layers(model):
        base = layer.get_base_layer()
        for name, tensor in merged_layer(layer).items():
            setattr(base, name, nn.Parameter(tensor, requires_grad=False))  # a new one: a tied twin keeps the old
        layer.merged_adapters = list(layer.active_adapters)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")  # by the lines above
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        merged = model.merge_and_unload()
    incoming, outgoing = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    if incoming is not outgoing and not torch.equal(incoming, outgoing):
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = False
        merged.all_tied_weights_keys = {}
    return merged
