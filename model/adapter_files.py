"""What lies in the folder of a LoRA adapter: which base it belongs to."""

from __future__ import annotations

from pathlib import Path

from foundation.errors import RecipeError, read_json

BASE_FILE = "base_model.json"  # beside an adapter: the base that it was trained on, by `note_base`


def is_adapter(path: str) -> bool:
    """Whether `path` is a folder with a LoRA adapter, which needs its base model."""
    return (Path(path) / "adapter_config.json").is_file()


def adapter_base(path: str) -> str:
    """The base model of the adapter in `path`, as its configuration names it.

    Raises:
        RecipeError: it names none.
    """
    base = read_json(Path(path) / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise RecipeError(
            f"{path}/adapter_config.json names no base_model_name_or_path; write the base model's folder there"
        )
    return base
