"""What of a model LoRA adapts, checked before its weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from trl import ModelConfig

from recipes.errors import RecipeError, read_json

ALL_LINEAR = "all-linear"


def check_lora_targets(model: ModelConfig) -> None:
    """Raise `RecipeError` for an entry of lora_target_modules that no module of the model has.

    PEFT says nothing of one among others that fit. The model is built without weights; a hub name is left to PEFT.
    """
    targets = model.lora_target_modules
    if not model.use_peft or not targets or targets == ALL_LINEAR:
        return
    folder = Path(model.model_name_or_path)
    if (folder / "adapter_config.json").is_file():
        folder = Path(read_json(folder / "adapter_config.json")["base_model_name_or_path"])
    if not folder.is_dir():
        return
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    names = [name for name, _ in skeleton.named_modules()]
    for target in [targets] if isinstance(targets, str) else targets:
        if not _fits(target, names, pattern=isinstance(targets, str)):
            last = sorted({name.rpartition(".")[2] for name in names if name.endswith("_proj")})
            pattern = " (a single entry is a pattern of whole names, such as .*q_proj)" if targets == target else ""
            raise RecipeError(
                f"lora_target_modules: {target!r} is no module of {folder}{pattern}; it has {', '.join(last)}, … "
                f"(or {ALL_LINEAR})"
            )


def _fits(target: str, names: list[str], pattern: bool) -> bool:
    """As PEFT matches: a single text is a pattern of whole names, an entry of a list is a name's end."""
    if pattern:
        return any(re.fullmatch(target, name) for name in names)
    return any(name == target or name.endswith(f".{target}") for name in names)
