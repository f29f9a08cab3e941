"""What this project adds to a GRPO step: rewards' plumbing, monitors, kept rollouts. Prints one JSON object.

    python -m benchmarks.bench_train [--minutes 8] [--steps 8] [--parts shared_prompts packed_studies step overlap]

shared_prompts: a forward and backward pass with each study handled once, beside TRL's row for each rollout, at the paper's
  shape (benchmarks/shared_prompts.py): CPU seconds, memory, and how far log-probabilities and gradients are apart.

packed_studies: SFT's forward and backward pass with its studies in one row, beside TRL's padded rows
  (benchmarks/packed_studies.py): CPU seconds, computed tokens for each real one, and how far loss and gradients are apart.

step: the demo's step 1 on the untrained tiny model, against a bare TRL script with the same metrics. Both arms train from the
  same seed and sample the same rollouts, which is checked; rounds of one training each alternate in their order (AB, BA,
  AB, …) until the minutes are over. A first round fills the metrics' caches for both and is not counted: a real step, whose
  texts are new, is longer, so the ratio is not flattered. CPU seconds of the process (one thread) from one step to the
  next, the first step of a training left out; ratio: the median of ours by bare over steps of the same number in one
  round, with a 95% bootstrap interval over rounds. At most 1.02 is wanted.
direct_share: CPU seconds inside monitors and kept rollouts by all of our arm's, which needs no second arm; at most 0.02.
overlap: scoring one generation with a judge that takes `--judge_delay` seconds. Metrics run while its calls are in flight:
  `both` is near the longer of `metrics` and `judge`, not their sum.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from benchmarks import packed_studies, shared_prompts
from benchmarks.keep import keep
from data_prep.prepared import load_studies
from data_prep.sources.phantom import prepare
from model.processor import load_processor
from recipes.grpo import ARGUMENTS, build_composite, build_trainer
from recipes.tiny_model import save_tiny_model, training_texts
from rewards.chexprompt.judgement import Judgement
from rewards.composite import CompositeReward, CompositeScores
from rewards.grpo_reward import completion_text
from settings.batch import set_global_batch
from settings.parser import parse_recipe
from training.data import rollout_dataset
from training.monitors import MONITORS, build_monitors
from training.progress import quiet_logs
from training.run import run_training

DATASET = "phantom_prairie"
PARTS = ("shared_prompts", "packed_studies", "step", "overlap")
MIN_ROUNDS = 3
RESAMPLES = 2000


class Clock(TrainerCallback):
    """CPU seconds of the process at the start of each step and at the end of training."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        """Of each step, all that happens until the next."""
        return [after - before for before, after in itertools.pairwise(self.marks)]


class Timed:
    """A callable that adds up the CPU seconds it takes."""

    def __init__(self, called: Any) -> None:
        self.called, self.seconds = called, 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return self.called(*args, **kwargs)
        finally:
            self.seconds += time.thread_time() - began


class SlowJudge:
    """Answers after a delay."""

    name = "judge[delay]"

    def __init__(self, delay: float) -> None:
        self.delay = delay

    async def judge(self, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[Any]:
        await asyncio.sleep(self.delay)
        answer = argparse.Namespace(judgement=Judgement((0,) * 6, (0,) * 6), failure=None)
        return [answer] * len(candidates)


@dataclass(frozen=True)
class Training:
    """One training of one arm.

    Attributes:
        seconds: CPU seconds of each step.
        inside: of them, those in monitors and kept rollouts.
        rollouts: a hash of each generation's texts.
    """

    seconds: list[float]
    inside: float
    rollouts: list[int]


def _settings(folder: Path, steps: int) -> tuple[Any, ...]:
    """The demo's settings of step 1, as far as TRL alone can have them too."""
    given = {
        "model_name_or_path": folder / "base",
        "data_dir": folder,
        "datasets": DATASET,
        "dataset_weights": 1,
        "output_dir": tempfile.mkdtemp(dir=folder),
        "max_steps": steps,
        "updates_per_generation": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "mask_truncated_completions": False,
        "shuffle_dataset": False,  # the recipe draws its order in a way of its own
        "share_prompts": False,  # what else the recipe adds; the shared prompts have a part of their own
    }
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "demo" / "rl_step1.yaml"
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    return parse_recipe(ARGUMENTS, ["--config", str(recipe), *options])


def one_training(ours: bool, folder: Path, steps: int) -> Training:
    """Train from the same seed, as the recipe does or by TRL alone."""
    data, reward, judge, stage, rollouts, watched, model, training = _settings(folder, steps)
    set_global_batch(stage, training, rollouts)
    for monitor in MONITORS:  # all at work, none trips on an untrained model
        setattr(watched, monitor.limit, -math.inf if "_min_" in monitor.limit else math.inf)
    composite = build_composite(reward, judge, set(), contextlib.ExitStack())
    score_all = composite.score
    seen: list[int] = []

    async def score_and_note(candidates: Sequence[str], *others: Sequence[str]) -> CompositeScores:
        seen.append(hash(tuple(candidates)))
        return await score_all(candidates, *others)

    composite.score = score_and_note
    studies = load_studies([DATASET], folder, "train")
    inside = []
    if ours:
        monitors = build_monitors(watched, reward, composite, Path(training.output_dir))
        monitors.observe, monitors.on_log = Timed(monitors.observe), Timed(monitors.on_log)
        inside = [monitors.observe, monitors.on_log]
        trainer = build_trainer(data, reward, judge, rollouts, model, training, studies, composite, monitors)
    else:

        async def score(completions, reference, source, **columns):
            return (await composite.score([completion_text(text) for text in completions], reference, source)).total

        trainer = GRPOTrainer(
            model=str(folder / "base"),
            reward_funcs=score,
            args=training,
            train_dataset=rollout_dataset(studies, data.longitudinal, data.context),
            processing_class=load_processor(str(folder / "base")),
        )
    # An update is a whole generation, so its order does not matter; but the two draw it by different random numbers.
    trainer._order_of_rollouts = lambda lengths: torch.arange(len(lengths))
    clock = Clock()
    trainer.add_callback(clock)
    gc.collect()
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        mock.patch("trl.trainer.grpo_trainer.shuffle_sequence_dict", dict),
    ):
        if ours:
            run_training(trainer, "bench", None)
        else:
            trainer.train()
    return Training(clock.seconds, sum(timed.seconds for timed in inside), seen)


def compare(folder: Path, steps: int, minutes: float) -> dict[str, Any]:
    """Rounds of both arms in alternating order; the ratio of their steps.

    Raises:
        RuntimeError: the arms sampled different rollouts.
    """
    one_training(True, folder, steps)
    rounds: list[tuple[Training, Training]] = []  # bare, ours
    end = time.monotonic() + 60 * minutes
    while len(rounds) < MIN_ROUNDS or time.monotonic() < end:
        order = (False, True) if len(rounds) % 2 == 0 else (True, False)
        trained = {ours: one_training(ours, folder, steps) for ours in order}
        if trained[False].rollouts != trained[True].rollouts:
            raise RuntimeError("the two arms sampled different rollouts, so their times do not compare")
        rounds.append((trained[False], trained[True]))
        print(f"round {len(rounds)}", file=sys.__stderr__, flush=True)
    ratios = np.array([np.divide(ours.seconds[1:], bare.seconds[1:]) for bare, ours in rounds])  # [rounds, steps - 1]
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn].reshape(RESAMPLES, -1), axis=1), [2.5, 97.5])
    all_of_ours = sum(sum(ours.seconds) for _, ours in rounds)
    return {
        "bare_seconds": round(float(np.median([bare.seconds[1:] for bare, _ in rounds])), 3),
        "our_seconds": round(float(np.median([ours.seconds[1:] for _, ours in rounds])), 3),
        "ratio": round(float(np.median(ratios)), 4),
        "ratio_interval": [round(float(low), 4), round(float(high), 4)],
        "ratio_quartiles": [round(float(value), 4) for value in np.percentile(ratios, [25, 75])],
        "direct_share": round(sum(ours.inside for _, ours in rounds) / all_of_ours, 5),
        "rounds": len(rounds),
        "steps": int(ratios.size),
        "completions_a_step": 32,
        "same_rollouts": True,
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def overlap(folder: Path, delay: float) -> dict[str, float]:
    """Wall-clock seconds of scoring 128 rollouts: metrics alone, judge alone, both together."""
    options = ["--reward_backend", "offline", "--weight_bertscore", "1", "--use_cpu", "true", "--bf16", "false"]
    _, reward, judge, *_ = parse_recipe(ARGUMENTS, options)
    metrics = build_composite(reward, judge, set(), contextlib.ExitStack()).metrics
    reports = [study["findings"] or study["impression"] for study in load_studies([DATASET], folder, "train")][:32]
    candidates = [f"{reports[(row * 7) % len(reports)]} {row}" for row in range(128)]  # no two alike: nothing is cached
    references = [reports[row // 16] for row in range(128)]

    def seconds(composite: CompositeReward) -> float:
        began = time.perf_counter()
        asyncio.run(composite.score(candidates, references, [DATASET] * 128))
        return round(time.perf_counter() - began, 3)

    weights = {name: 1.0 for name in metrics}
    return {
        "metrics": seconds(CompositeReward(weights, metrics)),
        "judge": seconds(CompositeReward({}, {}, SlowJudge(delay), 0.5)),
        "both": seconds(CompositeReward(weights, metrics, SlowJudge(delay), 0.5)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="updates a training; the first is not counted")
    parser.add_argument("--minutes", type=float, default=8, help=f"time for rounds; {MIN_ROUNDS} at least")
    parser.add_argument("--judge_delay", type=float, default=0.5, help="seconds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_logs()
    logging.getLogger("trl").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        folder = Path(name)
        with contextlib.redirect_stdout(nowhere):
            prepare(folder / DATASET, "prairie", seed=5, studies={"train": 64, "validation": 8, "test": 8})
            save_tiny_model(training_texts([DATASET], str(folder)), folder / "base", vocabulary_size=700)
        result = {}
        if "shared_prompts" in arguments.parts:
            result["shared_prompts"] = shared_prompts.measure()
        if "packed_studies" in arguments.parts:
            result["packed_studies"] = packed_studies.measure()
        if "step" in arguments.parts:
            result["step"] = compare(folder, arguments.steps, arguments.minutes)
        if "overlap" in arguments.parts:
            result["overlap"] = overlap(folder, arguments.judge_delay)
    keep("train", {part: figures for part, figures in result.items() if part in ("step", "overlap")})
    for part in set(result) - {"step", "overlap"}:  # of a file each
        keep(part, result[part])


if __name__ == "__main__":
    main()
