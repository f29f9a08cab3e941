"""LoRA adapters: the base that they belong to, and the whole model that both make."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from foundation.errors import read_json
from foundation.files import write_json
from model.adapter_files import BASE_FILE, is_adapter
from model.films import copy_form
from model.fingerprint import model_fingerprint
from model.loading import load_merged
from model.processor import load_processor

MERGE_FILE = "merge.json"  # in a merged model's folder: of which adapter, and how far from it


def note_base(folder: Path, base: str, dtype: torch.dtype) -> None:
    """Write what an adapter in `folder` needs to be the model that was trained: its base's fingerprint and dtype."""
    write_json(folder / BASE_FILE, {"sha256": model_fingerprint(base), "dtype": str(dtype).removeprefix("torch.")})


def merged_checkpoint(path: str) -> str:
    """`path`, or for an adapter the folder `merged` in it: base and adapter as one model, made where it is not there.

    A next stage starts from it with an adapter of its own; without that adapter it is the policy of this stage.
    """
    if not is_adapter(path):
        return path
    folder = Path(path).resolve() / "merged"
    state = PartialState()
    if state.is_main_process and not _is_merged_of(folder, path):
        shutil.rmtree(folder, ignore_errors=True)
        merge_adapter(path, folder)
    state.wait_for_everyone()
    return str(folder)


def _is_merged_of(folder: Path, adapter: str) -> bool:
    """Whether `folder` holds the merged model of the adapter as it and its base are now."""
    file = folder / MERGE_FILE
    return file.is_file() and read_json(file)["adapter_sha256"] == model_fingerprint(adapter)


@contextlib.contextmanager
def whole_model(path: str) -> Iterator[str]:
    """`path`, or for an adapter a folder with the whole model, for readers that take no adapter (vLLM).

    The merged model (16 GB of an 8 B model) lies beside the adapter's folder and goes with the last process of this machine
    that reads it. Where `merged_checkpoint` left one, that is taken and stays.
    """
    adapter = Path(path).resolve()
    if not is_adapter(path):
        yield path
        return
    if _is_merged_of(adapter / "merged", path):
        yield str(adapter / "merged")
        return
    folder = adapter.with_name(f".{adapter.name}.merged.{socket.gethostname()}")
    # Not beside the checkpoint: file systems that are shared by machines do not all have locks.
    lock = Path(tempfile.gettempdir(), f"unirg-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        while not folder.is_dir():
            fcntl.flock(held, fcntl.LOCK_EX)
            if not folder.is_dir():
                merge_adapter(path, folder)
            fcntl.flock(held, fcntl.LOCK_SH)
        try:
            yield str(folder)
        finally:
            with contextlib.suppress(BlockingIOError):  # another process reads it, and removes it
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            fcntl.flock(held, fcntl.LOCK_UN)  # a process that the reader forked may still have the file open


def merge_adapter(path: str, output_dir: Path) -> dict[str, Any]:
    """Write the base model of the adapter in `path`, with the adapter added to its weights, to `output_dir` (atomically).

    Returns:
        What `MERGE_FILE` holds: how far the merged model's log-probabilities are from those of base and adapter.

    Raises:
        RecipeError: as `load_merged`.
    """
    model, difference = load_merged(path)
    for left in output_dir.parent.glob(f".{output_dir.name}.*.tmp"):  # by a kill
        shutil.rmtree(left)
    temporary = output_dir.with_name(f".{output_dir.name}.{os.getpid()}.tmp")
    model.save_pretrained(temporary)
    load_processor(path).save_pretrained(temporary)
    copy_form(Path(path), temporary)
    record = {"adapter_sha256": model_fingerprint(path), **difference}
    write_json(temporary / MERGE_FILE, record)
    os.replace(temporary, output_dir)
    return record
