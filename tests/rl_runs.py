"""Small GRPO runs of the demo's recipe on the untrained tiny model, with all that passes through them recorded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.prepared import load_studies
from recipes import grpo
from recipes.grpo import ARGUMENTS, build_composite, build_trainer
from rewards.composite import CompositeReward
from rewards.grpo_reward import Rollouts
from settings.batch import set_global_batch
from settings.parser import parse_recipe
from training.monitors import build_monitors
from training.run import run_training
from training.trainers import RolloutTrainer, keep_rows_out_of_logs

REPOSITORY = Path(__file__).resolve().parent.parent
# 2 prompts × 4 rollouts an update, each generation used for 2 updates; steps large enough that the policy moves.
SMALL = {
    "datasets": "phantom_prairie",
    "dataset_weights": 1,
    "num_generations": 4,
    "global_batch_size": 2,
    "updates_per_generation": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 16,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_steps": 2,
    "seed": 3,
    # An untrained model breaks the demo's limits at once.
    "monitor_max_truncated": 1,
    "monitor_min_unique": 0,
    "monitor_max_length_drift": 1e9,
    "monitor_max_prior_copies": 1,
}


@dataclass
class Run:
    """A finished run: what the reward saw, what the loss got, what was logged."""

    trainer: RolloutTrainer
    seen: list[Rollouts] = field(default_factory=list)
    batches: list[dict[str, Any]] = field(
        default_factory=list
    )  # of TRL's tensors, and each rollout's films, one a generation
    generated: list[list[list[int]]] = field(default_factory=list)  # completion ids, one list a generation
    prompts: list[Sequence[Any]] = field(default_factory=list)  # what the processor's chat template was given

    @property
    def log(self) -> list[dict[str, Any]]:
        return [entry for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.log]


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as command-line flags; a list becomes several values."""
    flags = []
    for key, value in settings.items():
        flags += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return flags


def grpo_run(
    out: Path,
    model: Path,
    data: Path,
    recipe: str = "rl_step1",
    judge: Any = None,
    checkpoint: str | None = None,
    end_bias: float = 4.0,
    **settings: Any,
) -> Run:
    """Train as `recipes.grpo` does; `end_bias` lets the untrained model end some of its reports."""
    given = {"model_name_or_path": model, "data_dir": data, "output_dir": out, **SMALL, **settings}
    arguments = ["--config", str(REPOSITORY / f"recipes/demo/{recipe}.yaml"), *options(given)]
    data_, reward, judge_settings, stage, rollouts, watched, model_, training = parse_recipe(ARGUMENTS, arguments)
    set_global_batch(stage, training, rollouts)
    reward.weight_chexprompt = 0.0  # the judge, if any, is the caller's
    composite = build_composite(reward, judge_settings, set(), contextlib.ExitStack())
    if judge is not None:
        composite = CompositeReward(composite.weights, composite.metrics, judge=judge, judge_weight=0.5)
    studies = load_studies(data_.datasets, data_.data_dir, "train", (), training.seed)
    monitors = build_monitors(watched, reward, composite, out)
    keep_rows_out_of_logs()
    trainer = build_trainer(data_, reward, judge_settings, rollouts, model_, training, studies, composite, monitors)
    end = trainer.processing_class.tokenizer.eos_token_id
    trainer.generation_config.sequence_bias = [[[end], end_bias]]
    trainer.generation_kwargs["sequence_bias"] = [[[end], end_bias]]
    run = Run(trainer)
    trainer.reward_funcs[0].observers.append(lambda seen: run.seen.append(seen) or {})
    score, single_turn = trainer._generate_and_score_completions, trainer._generate_single_turn

    def recorded_score(inputs):
        batch = score(inputs)
        kept = {key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)}
        run.batches.append(kept | {"pixel_values": list(batch["pixel_values"])})
        return batch

    def recorded_turn(prompt_ids, images, *args, **kwargs):
        run.prompts.append(list(zip(prompt_ids, images, strict=True)))
        completion_ids, logprobs = single_turn(prompt_ids, images, *args, **kwargs)
        run.generated.append(completion_ids)
        return completion_ids, logprobs

    trainer._generate_and_score_completions = recorded_score
    trainer._generate_single_turn = recorded_turn
    run_training(trainer, recipe, checkpoint)
    return run


def train_by_yaml(out: Path, base: Path, data: Path, settings: Mapping[str, object]) -> None:
    """The demo's step 1 by its own command, in this process."""
    given = {"model_name_or_path": base, "data_dir": data, "output_dir": out, **settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["grpo", "--config", "recipes/demo/rl_step1.yaml", *options(given)])
        grpo.main()
