"""What SFT and GRPO share around a TRL trainer: finished or not, resume, readable progress, the result files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from recipes.errors import RecipeError
from recipes.models import model_fingerprint

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "peft")
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
    "dataloader",
    "force",
    "judge_",
)

_PROGRESS_KEYS = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "spread",
    "kl": "KL",
    "completions/mean_length": "tokens",
    "mean_token_accuracy": "token accuracy",
}


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically (temporary name, then rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def package_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    return {name: version(name) for name in PACKAGES}


def data_fingerprint(datasets: Sequence[str], data_dir: str, split: str) -> str:
    """sha256 over the study tables that a stage trains on."""
    digest = hashlib.sha256()
    for name in datasets:
        path = Path(data_dir) / name / f"{split}.parquet"
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def stage_settings(model: str, data_sha256: str, *arguments: Any) -> dict[str, Any]:
    """All settings that decide what a stage learns, flat, as they are written to `result.json` and compared."""
    settings: dict[str, Any] = {"model_sha256": model_fingerprint(model), "data_sha256": data_sha256}
    for part in arguments:
        values = part.to_dict() if isinstance(part, TrainingArguments) else asdict(part) if is_dataclass(part) else part
        settings |= {key: value for key, value in values.items() if not key.startswith(_IRRELEVANT)}
    return json.loads(json.dumps(settings, default=str))


def is_finished(output_dir: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether the stage in `output_dir` has finished with these settings; with `force` its remains are removed first.

    Raises:
        RecipeError: it has finished, but with other settings.
    """
    state = PartialState()
    if force:
        if state.is_main_process:
            shutil.rmtree(output_dir, ignore_errors=True)
        state.wait_for_everyone()
    result_path = output_dir / "result.json"
    if not result_path.is_file():
        return False
    before = json.loads(result_path.read_text(encoding="utf-8"))["settings"]
    changed = [key for key in settings if key in before and before[key] != settings[key]]
    if changed:
        shown = ", ".join(f"{key}: {_short(before[key])} → {_short(settings[key])}" for key in changed[:3])
        raise RecipeError(
            f"{output_dir} was finished with other settings ({shown}); FORCE=1 trains it again, RUN=name starts another run"
        )
    announce(f"{output_dir}: finished already (FORCE=1 trains it again)")
    return True


def last_checkpoint(output_dir: Path) -> str | None:
    """The checkpoint to go on from, or None; says which."""
    checkpoint = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    if checkpoint:
        announce(f"{output_dir}: going on from {Path(checkpoint).name}")
    return checkpoint


def announce(line: str) -> None:
    """Print `line` once, however many processes train."""
    if PartialState().is_main_process:
        print(line, flush=True)


def quiet_logs() -> None:
    """Keep the libraries' routine chatter off a user's screen; warnings and errors stay."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)


class StageProgress(TrainerCallback):
    """One readable line a logging step: step, the principal numbers, time left."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.started = 0.0
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started = time.monotonic()
        self.first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        done = state.global_step - self.first_step
        left = (time.monotonic() - self.started) / max(done, 1) * (state.max_steps - state.global_step)
        numbers = [
            f"{name} {float(logs[key]):.3g}" for key, name in _PROGRESS_KEYS.items() if logs.get(key) is not None
        ]
        parts = [
            f"{key.removeprefix('parts/').split('[')[0]} {float(value):.3f}"
            for key, value in logs.items()
            if key.startswith("reward_parts/") and value is not None
        ]
        line = f"{self.stage} step {state.global_step}/{state.max_steps} · " + " · ".join(numbers + parts)
        print(f"{line} · {format_seconds(left)} left", flush=True)


def add_progress(trainer: transformers.Trainer, stage: str) -> None:
    """Replace the trainer's raw dictionaries and bars by `StageProgress`."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(StageProgress(stage))


def format_seconds(seconds: float) -> str:
    """Seconds for people: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def finish_stage(trainer: transformers.Trainer, stage: str, settings: dict[str, Any], extra: dict[str, Any]) -> None:
    """Save the final model and processor in `<output_dir>/final`, the log history, and last of all `result.json`."""
    output_dir = Path(trainer.args.output_dir)
    trainer.save_model(str(output_dir / "final"))
    if not trainer.is_world_process_zero():
        return
    trainer.processing_class.save_pretrained(output_dir / "final")
    history = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
    write_json(output_dir / "log_history.json", history)
    result = {
        "stage": stage,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": next(
            (entry["train_runtime"] for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), None
        ),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "processes": trainer.accelerator.num_processes,
        "final_sha256": model_fingerprint(str(output_dir / "final")),
        "last_log": history[-1] if history else None,
        "versions": package_versions(),
        "settings": settings,
        **extra,
    }
    write_json(output_dir / "result.json", result)
    print(f"{stage}: {result['steps']} steps, model in {output_dir / 'final'}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
