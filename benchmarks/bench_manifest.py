"""What a checkpoint's manifest costs training: SFT steps beside the thread that sums a checkpoint, and alone, in turns.

    python -m benchmarks.bench_manifest [--gib 2] [--rounds 6]

The steps are those of benchmarks/packed_studies.py on one thread; the sums are training's own (`write_manifest`), over and over
while a round lasts. What a step loses beside them counts for the share of the time that they take between two checkpoints: the
bytes that the first process sums, at the rate measured here, over the planned seconds of `save_steps`. Wants a core for each of
the two. Writes benchmarks/manifest.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import packed_studies
from benchmarks.keep import HERE, keep
from foundation.machine import GIB
from launch.planning.assumed import Assumptions, Target
from launch.planning.stage import plan_training, read_stage
from model.checkpoint_files import write_manifest

ROOT = HERE.parent
STEPS = 3  # a round


def checkpoint(folder: Path, gib: float) -> Path:
    """A folder with so many GiB in four files."""
    folder.mkdir()
    block = os.urandom(2**26)
    for part in range(4):
        with (folder / f"model-{part}.safetensors").open("wb") as file:
            for _ in range(round(gib * GIB / 4 / len(block))):
                file.write(block)
    return folder


def seconds_of_steps(trainer: Any, batches: list[Any]) -> list[float]:
    """Wall seconds of each of `STEPS` forward and backward passes."""
    return [_timed(lambda batch=batch: packed_studies.one(trainer, batch)) for batch in batches[:STEPS]]


def _timed(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(gib: float, rounds: int) -> dict[str, Any]:
    """Seconds of a step alone and beside, the ratio of each pair of rounds, and GiB summed a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint(Path(name) / "checkpoint-1", gib)
        trainer, padded = packed_studies.make(Path(name) / "run")
        collate = trainer.data_collator
        collate.collate = lambda batch: batch
        batches = [collate(dict(batch)) for batch in padded]
        seconds_of_steps(trainer, batches)
        alone, beside, sums = [], [], []
        for turn in range(rounds):
            for way in ("alone", "beside") if turn % 2 == 0 else ("beside", "alone"):
                if way == "alone":
                    alone.append(statistics.median(seconds_of_steps(trainer, batches)))
                    continue
                done = threading.Event()

                def sum_up(done: threading.Event = done) -> None:
                    while not done.is_set():
                        sums.append(_timed(lambda: write_manifest(folder)))

                worker = threading.Thread(target=sum_up)
                worker.start()
                beside.append(statistics.median(seconds_of_steps(trainer, batches)))
                done.set()
                worker.join()
    ratios = [other / one for one, other in zip(alone, beside, strict=True)]
    return {
        "step_seconds_alone": round(statistics.median(alone), 3),
        "step_seconds_beside": round(statistics.median(beside), 3),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 4),
        "gib_a_second": round(gib / statistics.median(sums), 2),
    }


def share_of_training(stage: str, gib_a_second: float, ratio: float) -> dict[str, float]:
    """Of a stage of the paper's recipe on eight H100s: how long the sums take between two checkpoints, and what they cost."""
    path = ROOT / "recipes" / "unirg_cxr" / f"{stage}.yaml"
    target = Target(8, "h100", "zero3", Path("nowhere"), Assumptions())
    plan, (read, _) = plan_training(path, target), read_stage(path, target)
    between = plan.hours * 3600 / plan.steps * read.training.save_steps
    written = plan.momentary_bytes / GIB  # one checkpoint, with its optimiser state
    share = written / gib_a_second / between
    return {
        "gib": round(written, 1),
        "seconds_of_sums": round(written / gib_a_second, 1),
        "seconds_between": round(between),
        "cost": round(max(0.0, ratio - 1) * share, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = measure(arguments.gib, arguments.rounds)
    content["stages"] = {
        stage: share_of_training(stage, content["gib_a_second"], content["ratio"])
        for stage in ("sft", "rl_step1", "rl_step2")
    }
    keep("manifest", content)


if __name__ == "__main__":
    main()
