"""Whether a folder is a checkpoint that can be loaded whole."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForImageTextToText,
    Qwen3VLConfig,
    dynamic_module_utils,
)
from transformers.integrations import deepspeed

from foundation.errors import RecipeError
from model.adapter_files import adapter_base, is_adapter
from model.checkpoint_files import check_weight_files
from model.fingerprint import file_states
from model.finite import check_finite_weights

MODEL_TYPE = Qwen3VLConfig.model_type  # `qwen3_vl`

dynamic_module_utils.TIME_OUT_REMOTE_CODE = (
    0  # a checkpoint with code of its own is refused; nothing asks on the terminal
)


def check_model_folder(path: str) -> None:
    """Raise `RecipeError` if `path` is meant as a local checkpoint and is not one. A hub name passes."""
    folder = Path(path)
    looks_local = folder.is_absolute() or path.startswith((".", "outputs", "weights")) or path.count("/") != 1
    if folder.is_dir():
        check_weight_files(folder)
        check_finite_weights(folder)
        if is_adapter(path):
            if not (folder / "adapter_model.safetensors").is_file():
                raise RecipeError(f"{path} has an adapter_config.json and no adapter_model.safetensors; save it again")
            check_model_folder(adapter_base(path))
            return
        if not (folder / "config.json").is_file():
            raise RecipeError(f"{path} is not a checkpoint (no config.json in it); check model_name_or_path")
        _check_architecture(folder)
        check_named_tensors(str(folder), file_states(folder))
    elif folder.name == "best":
        run = folder.parent.parent.name
        raise RecipeError(
            f"no {path}: the best checkpoint of {folder.parent.name} is not selected yet; make it with: "
            f"make select STAGE_NAME={folder.parent.name} {'RECIPE' if Path('recipes', run).is_dir() else 'RUN'}={run} "
            "(or name another checkpoint in model_name_or_path)"
        )
    elif looks_local:
        made_by = "fetch it with: make weights" if folder.parts[0] == "weights" else "run the stage that makes it first"
        raise RecipeError(f"no model in {path}; {made_by}, or set model_name_or_path")


def check_tensors(path: str, revision: str = "main") -> None:
    """Raise `RecipeError` unless the weights of a checkpoint are its model's own, by name and shape.

    transformers completes a model that lacks tensors, or has them under other names, with random weights. Nothing is
    read but the files' headers; a hub name is fetched first.
    """
    folder = Path(path)
    if folder.is_dir():
        check_named_tensors(path, file_states(folder))
    else:
        check_named_tensors(path, (), revision)


@functools.lru_cache(maxsize=32)
def check_named_tensors(path: str, states: tuple[Any, ...], revision: str = "main") -> None:
    """`states` are those of the files: what has changed since is checked again."""
    try:
        with whole_weights():
            _, found = AutoModelForImageTextToText.from_pretrained(
                path,
                device_map="meta",
                revision=revision,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"cannot load the model of {path}: {first_line(error)}") from error
    wrong = []
    if missing := sorted(found["missing_keys"]):
        wrong.append(f"lacks {len(missing)} tensors of its model ({missing[0]}, …)")
    if others := sorted(found["unexpected_keys"]):
        wrong.append(f"holds {len(others)} that its model does not have ({others[0]}, …)")
    for name, there, wanted in sorted(found["mismatched_keys"])[:1]:
        wrong.append(f"has {name} as {list(there)} and not {list(wanted)}")
    if wrong:
        raise RecipeError(
            f"{path} {' and '.join(wrong)}: it would be completed with random weights; fetch or save it again as "
            "transformers' Qwen3VLForConditionalGeneration does"
        )


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Let a model be loaded whole by this process alone where DeepSpeed's ZeRO-3 would share it among all."""
    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_architecture(folder: Path) -> None:
    """Raise `RecipeError` for the checkpoint of a model that is not a Qwen3-VL."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{folder / 'config.json'} is not JSON ({error}); the checkpoint is damaged") from error
    if found != MODEL_TYPE:
        raise RecipeError(
            f"{folder} is a checkpoint of another model (model_type {found!r}, not {MODEL_TYPE!r}); "
            "set model_name_or_path to a Qwen3-VL"
        )
