"""What this project adds to a GRPO step: rewards' plumbing, monitors, kept rollouts. Prints one JSON object.

    python -m benchmarks.bench_train [--steps 8] [--rounds 3]

step: the demo's step 1 on the untrained tiny model, against a bare TRL script with the same metrics, in alternating
  rounds from the same seed, so that both sample the same rollouts. CPU seconds of the process a step, the first step of a
  round left out; ratio: ours by bare, median over steps. direct_share: seconds inside monitors and kept rollouts by all
  seconds of the steps. At most 1.02 and 0.02 are wanted.
overlap: scoring one generation with a judge that takes `--judge_delay` seconds. Metrics run while its calls are in flight:
  `both` is near the longer of `metrics` and `judge`, not their sum.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback
from trl import GRPOTrainer

from data_prep.sources.phantom import prepare
from recipes.arguments import parse_recipe, set_global_batch
from recipes.data import load_studies, rollout_dataset
from recipes.grpo import ARGUMENTS, build_composite, build_trainer
from recipes.models import load_processor
from recipes.monitors import build_monitors
from recipes.stage import add_progress, quiet_logs
from recipes.tiny_model import save_tiny_model, training_texts
from rewards.chexprompt.judgement import Judgement
from rewards.composite import CompositeReward
from rewards.grpo_reward import completion_text

DATASET = "phantom_prairie"


class Clock(TrainerCallback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_log(self, *args: Any, **kwargs: Any) -> None:  # after the monitors', which are added before it
        self.seconds.append(time.process_time() - self.began)


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


def one_run(ours: bool, folder: Path, steps: int) -> tuple[list[float], float]:
    """CPU seconds of each step, and those inside our monitors, of one training."""
    given = {
        "model_name_or_path": folder / "base",
        "data_dir": folder,
        "datasets": DATASET,
        "output_dir": tempfile.mkdtemp(dir=folder),
        "max_steps": steps,
        "updates_per_generation": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "mask_truncated_completions": False,
    }
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "demo" / "rl_step1.yaml"
    options = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    data, reward, judge, stage, rollouts, watched, model, training = parse_recipe(
        ARGUMENTS, ["--config", str(recipe), *options]
    )
    set_global_batch(stage, training, rollouts)
    composite = build_composite(reward, judge, set(), contextlib.ExitStack())
    studies = load_studies([DATASET], folder, "train")
    inside = []
    if ours:
        monitors = build_monitors(watched, reward, composite, Path(training.output_dir))
        monitors.observe, monitors.on_log = Timed(monitors.observe), Timed(monitors.on_log)
        inside = [monitors.observe, monitors.on_log]
        trainer = build_trainer(data, reward, judge, model, training, studies, composite, monitors)
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
    add_progress(trainer, "bench")
    clock = Clock()
    trainer.add_callback(clock)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer.train()
    return clock.seconds[:steps], sum(timed.seconds for timed in inside)


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
    parser.add_argument("--steps", type=int, default=6, help="updates a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--judge_delay", type=float, default=0.5, help="seconds")
    arguments = parser.parse_args()
    quiet_logs()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    bare: list[float] = []
    ours: list[float] = []
    inside = total = 0.0
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        folder = Path(name)
        with contextlib.redirect_stdout(nowhere):
            prepare(folder / DATASET, "prairie", seed=5, studies={"train": 64, "validation": 8, "test": 8})
            save_tiny_model(training_texts([DATASET], str(folder)), folder / "base", vocabulary_size=700)
        for round_ in range(arguments.rounds):
            for is_ours in (False, True) if round_ % 2 == 0 else (True, False):  # neither is always the second
                steps, seconds = one_run(is_ours, folder, arguments.steps)
                (ours if is_ours else bare).extend(steps[1:])
                inside += seconds
                total += sum(steps) if is_ours else 0.0
        both = overlap(folder, arguments.judge_delay)
    ratios = sorted(one / other for one, other in zip(ours, bare, strict=True))
    print(
        json.dumps(
            {
                "step": {
                    "bare_seconds": round(statistics.median(bare), 3),
                    "our_seconds": round(statistics.median(ours), 3),
                    "ratio": round(statistics.median(ratios), 4),
                    "ratio_quartiles": [round(ratios[len(ratios) // 4], 4), round(ratios[3 * len(ratios) // 4], 4)],
                    "direct_share": round(inside / total, 5),
                    "steps": len(ratios),
                    "completions_a_step": 32,
                },
                "overlap": both,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
