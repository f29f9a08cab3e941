"""What a user sees while a stage trains."""

from __future__ import annotations

import logging
import time
import warnings
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

from training.result import peak_gpu_memory_mib
from training.step_times import PREFIX as SECONDS

_PROGRESS_KEYS = {
    "loss": "loss",
    "reward": "reward",
    "reward_std": "spread",
    "kl": "KL",
    "completions/mean_length": "tokens",
    "mean_token_accuracy": "token accuracy",
}


def announce(line: str) -> None:
    """Print `line` once, however many processes train."""
    if PartialState().is_main_process:
        print(line, flush=True)


def quiet_logs() -> None:
    """Keep the libraries' routine chatter off a user's screen; warnings and errors stay."""
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of calls between libraries
    transformers.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.WARNING)


class StageProgress(TrainerCallback):
    """One readable line a logging step: step, the principal numbers, time left, this process's peak of GPU memory."""

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
        spent = {key.removeprefix(SECONDS): value for key, value in logs.items() if key.startswith(SECONDS)}
        parts += [f"{part} {seconds:.1f} s" for part, seconds in spent.items() if seconds >= 0.05]
        line = f"{self.stage} step {state.global_step}/{state.max_steps} · " + " · ".join(numbers + parts)
        memory = peak_gpu_memory_mib()
        gpu = f" · GPU {memory['reserved'] / 1024:.1f} GiB" if memory else ""
        print(f"{line} · {format_seconds(left)} left{gpu}", flush=True)


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
