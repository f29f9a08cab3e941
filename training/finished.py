"""Whether a stage is finished: what of its settings counts, what it left, and what FORCE=1 removes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import (
    TrainingArguments,
)
from trl import GRPOConfig, SFTConfig

from foundation.errors import RecipeError, read_json
from foundation.removal import remove_own
from model.checkpoint_files import (
    damaged_file,
    saved_checkpoints,
)
from model.fingerprint import model_fingerprint
from training.processes import in_first_process
from training.progress import announce

# Settings that do not change what is learned: a finished stage is not "made with other settings" for these.
_IRRELEVANT = (
    "output_dir",
    "log",
    "hub",
    "push",
    "run_name",
    "report_to",
    "save",
    "disable_tqdm",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "force",
    "score_cache",
    "rollouts_logged",
    "monitor_",
)
# Settings of the machine: a stage is the same, finished or to resume, where only these differ. Of the batch its
# products are compared (`_batch_products`), not the factors.
OF_THE_MACHINE = (
    "per_device_",
    "share_prompts",
    "gradient_accumulation_steps",
    "global_batch_size",
    "batch_counts",
    "updates_per_generation",
    "gradient_checkpointing",
    "steps_per_generation",
    "generation_batch_size",
    "use_cpu",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_server_",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
    "deepspeed",
    "fsdp",
    "accelerator_config",
    "ddp_",
)
OF_THE_LENGTH = ("max_steps",)  # a run that was interrupted may train for longer; a finished one has its length
# What a stage writes in its folder, result.json first: all that FORCE=1 removes.
_OWN = (
    "result.json",
    "settings.json",
    "checkpoint-*",
    ".removed-checkpoint-*",
    "damaged-checkpoint-*",
    "final",
    "adapter",
    "best",
    "selection",
    "selection.json",
    "rollouts",
    "completions",
    "runs",
    "log_history.json",
    "stopped.json",
    "film_effect.json",
    "README.md",
    "run.patch",
    "run.json",
    ".*.tmp",
)


def data_fingerprint(datasets: Sequence[str], data_dir: str, split: str) -> str:
    """sha256 over the study tables that a stage trains on."""
    digest = hashlib.sha256()
    for name in datasets:
        path = Path(data_dir) / name / f"{split}.parquet"
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def stage_settings(model: str, data_sha256: str, *arguments: Any) -> dict[str, Any]:
    """All settings that decide what a stage learns, flat, as they are written to `result.json` and compared.

    The first process reads the weights, and tells the others their fingerprint: all must call this.
    """
    fingerprint = [model_fingerprint(model) if PartialState().is_main_process else None]
    settings: dict[str, Any] = {"model_sha256": broadcast_object_list(fingerprint)[0], "data_sha256": data_sha256}
    for part in arguments:
        values = part.to_dict() if isinstance(part, TrainingArguments) else asdict(part) if is_dataclass(part) else part
        settings |= {key: value for key, value in values.items() if not key.startswith(_IRRELEVANT)}
        if isinstance(part, SFTConfig | GRPOConfig):
            settings |= _batch_products(part)
    return json.loads(json.dumps(settings, default=str))


def _batch_products(training: SFTConfig | GRPOConfig) -> dict[str, int]:
    """Rows (in GRPO completions) of an optimiser step over all processes, and of a generation."""
    at_once = training.per_device_train_batch_size * training.world_size
    products = {"rows_an_update": at_once * training.gradient_accumulation_steps}
    if isinstance(training, GRPOConfig):
        products["rows_a_generation"] = at_once * training.steps_per_generation
    return products


def is_finished(output_dir: Path, settings: dict[str, Any]) -> bool:
    """Whether the stage in `output_dir` has finished with these settings, and its model is there as it was saved.

    Raises:
        RecipeError: it has finished, but with other settings; or its model is damaged, and no checkpoint makes it again.
    """
    result_path = output_dir / "result.json"
    if not result_path.is_file():
        return False
    result = read_json(result_path)
    if not isinstance(result, dict) or not isinstance(result.get("settings"), dict):
        raise RecipeError(
            f"{result_path} is not a stage's result; FORCE=1 trains it again, RUN=name starts another run"
        )
    if changed := changed_settings(result["settings"], settings, OF_THE_MACHINE):
        raise RecipeError(
            f"{output_dir} was finished with other settings ({changed}); FORCE=1 trains it again, RUN=name starts another run"
        )
    if damage := in_first_process(lambda: _damage_to_final(output_dir / "final", result)):
        if not saved_checkpoints(output_dir):
            raise RecipeError(
                f"{damage}, though {output_dir} was finished; put that file back, or FORCE=1 trains it again"
            )
        announce(f"{output_dir}: {damage}; saving the model again from its last checkpoint")
        return False
    announce(f"{output_dir}: finished already (FORCE=1 trains it again)")
    return True


def _damage_to_final(final: Path, result: Mapping[str, Any]) -> str | None:
    """What differs from what `result.json` says of the final model; None where nothing does."""
    if isinstance(result.get("final_files"), dict):
        return damaged_file(final, result["final_files"])
    if not any(final.glob("*.safetensors")):  # of before its files were noted
        return f"{final} holds no model"
    return None if model_fingerprint(str(final)) == result.get("final_sha256") else f"{final} holds another model"


def remove_stage(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Remove what a stage wrote in `output_dir`, by its names, and nothing else.

    Raises:
        RecipeError: the folder is not a stage's, the run's own model or data lie in it, or something cannot be removed.
    """
    needed = {key: settings[key] for key in ("model_name_or_path", "data_dir") if settings.get(key)}
    remove_own(output_dir, _OWN, _is_stage(output_dir), needed, "FORCE=1")


def _is_stage(folder: Path) -> bool:
    """Whether a stage wrote here: it leaves its settings, its result and how it was run."""
    for name, key in (("settings.json", "data_sha256"), ("result.json", "settings"), ("run.json", "runs")):
        try:
            read_json(folder / name, key)
        except (RecipeError, OSError):
            continue
        return True
    return False


def changed_settings(before: dict[str, Any], now: dict[str, Any], ignored: tuple[str, ...]) -> str:
    """The first differences between two runs' settings, in words; empty where only those of these prefixes differ."""
    common = [key for key in now if key in before and not key.startswith(ignored)]
    changed = [key for key in common if before[key] != now[key]]
    return ", ".join(f"{key}: {_short(before[key])} → {_short(now[key])}" for key in changed[:3])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
