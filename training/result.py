"""What a finished stage leaves: the model, its card, its log history, and last of all `result.json`."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from foundation.errors import RecipeError
from foundation.files import write_json
from model.adapter import merge_adapter
from model.adapter_files import is_adapter
from model.card import write_model_card
from model.checkpoint_files import (
    described_files,
)
from model.films import FilmForm, write_form
from model.fingerprint import model_fingerprint
from training.processes import leave_together

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft")


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    return {name: version(name) for name in PACKAGES}


def finish_stage(trainer: transformers.Trainer, stage: str, settings: dict[str, Any], extra: dict[str, Any]) -> None:
    """Save the final model and processor in `<output_dir>/final`, the log history, and last of all `result.json`."""
    if trainer.state.global_step == 0:
        raise RecipeError(
            f"{stage}: no step was trained; check datasets, num_train_epochs, max_steps and the size of the batch"
        )
    trainer.save_model(str(Path(trainer.args.output_dir) / "final"))
    if trainer.is_world_process_zero():
        write_result(trainer, stage, settings, extra)
    leave_together()


def write_result(trainer: transformers.Trainer, stage: str, settings: dict[str, Any], extra: dict[str, Any]) -> None:
    output_dir = Path(trainer.args.output_dir)
    trainer.processing_class.save_pretrained(output_dir / "final")
    (output_dir / "final" / "training_args.bin").unlink(missing_ok=True)  # a pickle, and no part of the model
    merge = {}
    if is_adapter(str(output_dir / "final")):  # the next stage and the evaluation take whole models
        adapter = output_dir / "adapter"
        shutil.rmtree(adapter, ignore_errors=True)
        (output_dir / "final").rename(adapter)
        merge = {"merge": merge_adapter(str(adapter), output_dir / "final")}
    write_form(output_dir / "final", FilmForm(**settings["films"]) if "films" in settings else None)
    fingerprint = model_fingerprint(str(output_dir / "final"))
    write_model_card(output_dir / "final", fingerprint)
    history = [finite(entry) for entry in trainer.state.log_history if "train_runtime" not in entry]
    write_json(output_dir / "log_history.json", history)
    result = {
        "stage": stage,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": next(
            (entry["train_runtime"] for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), None
        ),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **({"peak_gpu_memory_mib": memory} if (memory := peak_gpu_memory_mib()) else {}),
        "processes": trainer.accelerator.num_processes,
        "final_sha256": fingerprint,
        # Not the card, into which an evaluation writes its scores.
        "final_files": {
            name: file for name, file in described_files(output_dir / "final").items() if name != "README.md"
        },
        "last_log": history[-1] if history else None,
        "versions": package_versions(),
        "settings": settings,
        **merge,
        **extra,
    }
    write_json(output_dir / "result.json", result)
    print(f"{stage}: {result['steps']} steps, model in {output_dir / 'final'}")


def peak_gpu_memory_mib() -> dict[str, int]:
    """This process's peak of GPU memory so far in MiB: of its tensors (`allocated`), and of what PyTorch held for them
    (`reserved`). Empty where it uses no GPU."""
    if not torch.cuda.is_initialized():
        return {}
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {name: peak >> 20 for name, peak in peaks.items()}


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with null for NaN and infinities, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
