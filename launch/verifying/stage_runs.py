"""Short runs of a recipe's stages, as `make sft` and its like start them, in a folder that is removed afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foundation.errors import RecipeError, read_json
from foundation.files import write_text
from foundation.provenance import REPOSITORY
from foundation.stage_command import settings_of
from launch.verifying.line import Subject

UPDATES = 2
# What a run of two updates has no use for: an untrained model breaks every limit, and nothing is kept.
_LEFT_OUT = ("config", "keep_best", "keep_optimizer_states", "num_train_epochs", "push_to_hub")
_LEFT_OUT_STARTS = ("monitor_", "validation_", "rollouts_logged")
_POLL_SECONDS = 0.02
_LONGEST_SECONDS = 3600


@dataclass(frozen=True)
class Done:
    """A run that has ended: its updates as they were logged, and `result.json`.

    Attributes:
        error: the last line of a run that failed; None for one that finished.
        killed: whether it ended because `run_stage` was to kill it.
    """

    updates: list[dict[str, Any]]
    result: dict[str, Any]
    error: str | None = None
    killed: bool = False


def recipe_file(subject: Subject, stage: str) -> Path | None:
    """The YAML of a stage: the variant's, else the recipe's; None where it has no such stage."""
    folder = REPOSITORY / "recipes" / subject.recipe
    names = [f"{stage}_{subject.variant}", stage] if subject.variant else [stage]
    return next((path for name in names if (path := folder / f"{name}.yaml").is_file()), None)


def short_recipe(subject: Subject, stage: str, folder: Path, **changes: Any) -> Path:
    """A YAML in `folder` (which is the run's, too): the stage's own, for two updates on the subject's studies.

    Raises:
        RecipeError: the recipe has no such stage.
    """
    source = recipe_file(subject, stage)
    if source is None:
        raise RecipeError(f"recipe {subject.recipe} has no {stage}; verify another with RECIPE=…")
    settings = settings_of(["--config", str(source)])
    settings = {k: v for k, v in settings.items() if k not in _LEFT_OUT and not k.startswith(_LEFT_OUT_STARTS)}
    rows = subject.studies // UPDATES * (1 if stage == "sft" else subject.rollouts)
    each = rows // max(subject.gpus, 1)
    settings |= {
        "model_name_or_path": subject.model,
        "data_dir": str(subject.data_dir),
        "output_dir": str(folder / stage),
        "max_steps": UPDATES,
        "warmup_steps": 0,  # or the first update would change nothing
        "global_batch_size": subject.studies // UPDATES,
        "per_device_train_batch_size": min(each, int(settings.get("per_device_train_batch_size", each))),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if subject.datasets:
        settings |= {"datasets": list(subject.datasets), "dataset_weights": [1.0] * len(subject.datasets)}
    if stage != "sft":
        settings |= _rollout_settings(subject, folder)
    path = folder / f"{stage}.yaml"
    write_text(path, yaml.safe_dump(settings | changes, sort_keys=False))
    return path


def _rollout_settings(subject: Subject, folder: Path) -> dict[str, Any]:
    judge = {"judge_base_url": subject.judge_base_url, "judge_model": subject.judge_model}
    return {
        "batch_counts": "prompts",
        "num_generations": subject.rollouts,
        "updates_per_generation": UPDATES,
        "max_completion_length": 64,
        "mask_truncated_completions": False,  # an untrained model ends few of its reports
        "use_vllm": False,  # whose sampling does not repeat
        "weights_dir": str(subject.weights_dir),
        "judge_cache_dir": str(folder / "judge_cache"),
        "score_cache_dir": str(folder / "score_cache"),
        **{key: value for key, value in judge.items() if value},
    }


def run_stage(subject: Subject, recipe: Path, kill_after: int | None = None) -> Done:
    """Run a stage by a `short_recipe`; with `kill_after` all of its processes are killed once that checkpoint is whole.

    Its output is added to a log beside the report.
    """
    stage = recipe.stem
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    command = [sys.executable, "-m", "launch.stage", "--processes", "1"]
    command += ["--gpus", str(subject.gpus)] if subject.gpus else []
    command += ["--", "-m", module, "--config", str(recipe)]
    log = subject.out / f"{recipe.parent.name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        killed = False
        try:
            killed = _wait(
                process, recipe.parent / stage / f"checkpoint-{kill_after}" / "manifest.json" if kill_after else None
            )
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    folder = recipe.parent / stage
    if process.returncode or not (folder / "result.json").is_file():
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return Done([], {}, f"exit status {process.returncode} ({log}): {''.join(last)[-300:]}", killed)
    result = read_json(folder / "result.json", "steps", "final_sha256", "peak_memory_mib")
    history = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    return Done([entry for entry in history if "loss" in entry], result)


def _wait(process: subprocess.Popen, until: Path | None) -> bool:
    """Until the process has ended (False), or `until` is there (True)."""
    start = time.monotonic()
    while process.poll() is None and time.monotonic() - start < _LONGEST_SECONDS:
        if until and until.is_file():
            return True
        time.sleep(_POLL_SECONDS)
    return False
