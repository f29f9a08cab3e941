"""Damage in a checkpoint's files: by headers and sizes before a model is loaded, by a manifest before training resumes."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.errors import RecipeError, read_json
from foundation.files import sha256_of, write_json

MANIFEST = "manifest.json"  # of a checkpoint: its files, their bytes and sha256; written last
# What a checkpoint holds to resume training, by transformers, FSDP and DeepSpeed; the model is not among it.
OPTIMIZER_STATE = ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*")
OTHER_STATE = ("scheduler.pt", "scaler.pt", "rng_state*.pth", "latest", "zero_to_fp32.py", "*.rollouts")
_PICKLES = ("pytorch_model*.bin", "adapter_model*.bin", "model*.bin")
_LENGTH_BYTES = 8  # at the start of a safetensors file: how long its JSON header is


def check_weight_files(folder: Path) -> None:
    """Raise `RecipeError` for a weight file in `folder` that is cut short, broken, or named in its index and absent.

    Nothing but `*.safetensors` of the folder itself is loaded: a pickle can run code, and what lies elsewhere is not what the
    folder's fingerprint is of.
    """
    again = "fetch it again (make weights; make weights-check), or train the stage that made it again"
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        loaded = "adapter_model" if (folder / "adapter_config.json").is_file() else "model"
        if not any(folder.glob(f"{loaded}*.safetensors")):
            raise RecipeError(
                f"{folder} holds its weights as {pickles[0]}, which is never loaded (a pickle can run code); save them as "
                "safetensors: model.save_pretrained(…) of transformers does"
            )
    for index in sorted(folder.glob("*.safetensors.index.json")):
        named = _named_in_index(index)
        if outside := sorted(name for name in named if Path(name).name != name or not name.endswith(".safetensors")):
            raise RecipeError(f"{index} names {outside[0]!r}, which is not a safetensors file of {folder}; {again}")
        if absent := sorted(name for name in named if not (folder / name).is_file()):
            raise RecipeError(f"{folder / absent[0]} is missing, which {index.name} names; {again}")
    for path in sorted(folder.glob("*.safetensors")):
        wanted, there = _expected_bytes(path), path.stat().st_size
        if wanted is None:
            raise RecipeError(f"{path} is not a safetensors file, or its header is cut short; {again}")
        if wanted != there:
            raise RecipeError(f"{path} has {there:,} bytes, its header says {wanted:,}: it was cut short; {again}")


def _named_in_index(index: Path) -> set[str]:
    names = read_json(index, "weight_map")["weight_map"]
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise RecipeError(f"{index} is no index of weight files; fetch the checkpoint again")
    return set(names.values())


def _expected_bytes(path: Path) -> int | None:
    """The size that a safetensors file's header gives it; None where there is no such header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < header <= path.stat().st_size - _LENGTH_BYTES:
            return None
        try:
            tensors = json.loads(file.read(header))
        except (ValueError, RecursionError):
            return None
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (AttributeError, KeyError, IndexError, TypeError):
        return None
    return _LENGTH_BYTES + header + max(ends, default=0)


def described_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each file below `folder`, by its path in it; on return all of them are on the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    found = {str(path.relative_to(folder)): _described(path) for path in paths}
    for parent in {path.parent for path in paths} | {folder}:
        _to_disk(parent)
    return found


def _described(path: Path) -> dict[str, Any]:
    _to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(checkpoint: Path) -> None:
    """Describe a checkpoint that is written, in its `manifest.json`: by that it counts as whole."""
    write_json(checkpoint / MANIFEST, {"files": described_files(checkpoint)})


def forget_in_manifest(checkpoint: Path, paths: list[Path]) -> None:
    """Take files and folders out of a checkpoint's manifest, before they are removed on purpose."""
    if (checkpoint / MANIFEST).is_file():
        gone = [str(path.relative_to(checkpoint)) for path in paths]
        files = read_manifest(checkpoint)
        kept = {name: of for name, of in files.items() if not any(name == g or name.startswith(f"{g}/") for g in gone)}
        write_json(checkpoint / MANIFEST, {"files": kept})


def read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 by file name, as `write_manifest` left them.

    Raises:
        RecipeError: the manifest is damaged.
    """
    path = checkpoint / MANIFEST
    files = read_json(path, "files")["files"]
    if not isinstance(files, dict) or not all(
        isinstance(of, dict) and {"bytes", "sha256"} <= set(of) for of in files.values()
    ):
        raise RecipeError(f"{path} does not describe the checkpoint's files")
    return files


def damaged_file(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first of `files` that is missing in `folder` or differs from its description, and how; None where all are whole.

    Sizes are compared first: a file that was cut short is found without reading the others.
    """
    for name, of in files.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if (there := (folder / name).stat().st_size) != of["bytes"]:
            return f"{folder / name} has {there:,} bytes instead of {of['bytes']:,}"
    for name, of in files.items():
        if sha256_of(folder / name) != of["sha256"]:
            return f"{folder / name} is not as it was written (another sha256)"
    return None


def checkpoint_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words that name the file; None where it is whole.

    Without a manifest (the run was killed while it was made, or is of before there were any) its files' own checks must
    pass: a safetensors file's size, the checksums inside PyTorch's files, and nothing that training resumes from missing.
    """
    try:
        if (checkpoint / MANIFEST).is_file():
            return damaged_file(checkpoint, read_manifest(checkpoint))
        return _damage_by_own_checks(checkpoint)
    except RecipeError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or checkpoint} cannot be read ({error.strerror})"


def model_damage(checkpoint: Path) -> str | None:
    """`checkpoint_damage` of what selection and evaluation read alone; the state of the optimiser is not read."""
    if not (checkpoint / MANIFEST).is_file():
        return None  # its weights' own checks are made when it is loaded
    training = [path.name for pattern in (*OPTIMIZER_STATE, *OTHER_STATE) for path in checkpoint.glob(pattern)]
    try:
        files = read_manifest(checkpoint)
        return damaged_file(checkpoint, {name: of for name, of in files.items() if name.split("/")[0] not in training})
    except RecipeError as error:
        return str(error)


def _damage_by_own_checks(checkpoint: Path) -> str | None:
    state = checkpoint / "trainer_state.json"
    if not state.is_file():
        return f"{state} is missing: its writing was cut short"
    read_json(state, "global_step", "max_steps", "log_history")
    if not any(
        path
        for pattern in ("*.safetensors", "global_step*", "pytorch_model_fsdp*")
        for path in checkpoint.glob(pattern)
    ):
        return f"{checkpoint} holds no weights (*.safetensors)"
    check_weight_files(checkpoint)
    if any((checkpoint / name).is_file() for name in ("optimizer.pt", "optimizer.bin")):
        for name in ("scheduler.pt", "rng_state*.pth"):
            if not any(checkpoint.glob(name)):
                return f"{checkpoint / name} is missing"
    for path in sorted(path for pattern in (*OPTIMIZER_STATE, *OTHER_STATE) for path in checkpoint.glob(pattern)):
        if path.suffix in (".pt", ".pth", ".bin") and (broken := _broken_archive(path)):
            return broken
    return None


def _broken_archive(path: Path) -> str | None:
    """What is wrong with a file of torch.save, a zip archive whose parts have checksums; None where nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, EOFError):
        return f"{path} is not a whole file of PyTorch"
    return f"{path} is damaged ({part})" if part else None


def saved_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a stage's folder, by step."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
