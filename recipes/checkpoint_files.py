"""Damage in a checkpoint's files, found by headers and sizes: before a model is loaded, and without reading weights."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.errors import RecipeError, read_json

_LENGTH_BYTES = 8  # at the start of a safetensors file: how long its JSON header is


def check_weight_files(folder: Path) -> None:
    """Raise `RecipeError` for a weight file in `folder` that is cut short, broken, or named in its index and absent."""
    again = "fetch it again (make weights; make weights-check), or train the stage that made it again"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = set(read_json(index).get("weight_map", {}).values())
        if absent := sorted(name for name in named if not (folder / name).is_file()):
            raise RecipeError(f"{folder / absent[0]} is missing, which {index.name} names; {again}")
    for path in sorted(folder.glob("*.safetensors")):
        wanted, there = _expected_bytes(path), path.stat().st_size
        if wanted is None:
            raise RecipeError(f"{path} is not a safetensors file, or its header is cut short; {again}")
        if wanted != there:
            raise RecipeError(f"{path} has {there:,} bytes, its header says {wanted:,}: it was cut short; {again}")


def _expected_bytes(path: Path) -> int | None:
    """The size that a safetensors file's header gives it; None where there is no such header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < header <= path.stat().st_size - _LENGTH_BYTES:
            return None
        try:
            tensors = json.loads(file.read(header))
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None
    ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    return _LENGTH_BYTES + header + max(ends, default=0)
