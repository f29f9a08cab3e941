"""Trackers (`report_to`) get curves, never text."""

from __future__ import annotations

import os
from importlib.util import find_spec

from transformers import (
    TrainingArguments,
)

from foundation.errors import RecipeError

TRACKERS = {"wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard"}  # report_to → package


def check_report_to(training: TrainingArguments) -> None:
    """Raise `RecipeError` unless the trackers of `report_to` are known, installed, and get curves alone.

    Curves are numbers. TRL would also send report text with `log_completions`, and transformers whole checkpoints with
    WANDB_LOG_MODEL.
    """
    trackers = training.report_to or []
    for name in trackers:
        if name not in TRACKERS:
            raise RecipeError(f"report_to: {name} is not one of {', '.join(TRACKERS)}; set one of them, or none")
        if find_spec(TRACKERS[name]) is None:
            raise RecipeError(
                f"report_to: {name} needs a package; pip install {TRACKERS[name]}, or set report_to: none"
            )
    if getattr(training, "log_completions", False) and set(trackers) & {"wandb", "trackio"}:
        raise RecipeError(
            f"log_completions would send report text to {', '.join(trackers)}, which get curves alone; "
            "set log_completions: false (rollouts are kept as Parquet in <stage>/rollouts)"
        )
    log_model = os.environ.get("WANDB_LOG_MODEL", "false").lower()
    if "wandb" in trackers and log_model not in ("false", "0", ""):
        raise RecipeError(
            f"WANDB_LOG_MODEL={log_model} would send checkpoints to wandb, which gets curves alone; unset it "
            "(push_to_hub: true uploads final/)"
        )
