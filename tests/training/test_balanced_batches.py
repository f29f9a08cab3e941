"""Passes of nearly the same length, from the studies that an optimiser step has anyway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rl_runs import options
from torch.utils.data import SequentialSampler

from training.balanced_batches import BalancedBatches, balanced

REPOSITORY = Path(__file__).resolve().parents[2]


def passes(order: list[int], lengths: np.ndarray, rows: int) -> np.ndarray:
    return lengths[order].reshape(-1, rows).sum(1)


def test_a_step_keeps_its_studies_and_its_passes_are_of_one_length() -> None:
    lengths = np.random.default_rng(0).gamma(4, 150, 256 * 3).astype(int)
    order = list(BalancedBatches(SequentialSampler(lengths), lengths.tolist(), rows=4, passes=64))
    for start in range(0, len(order), 256):
        assert sorted(order[start : start + 256]) == list(range(start, start + 256))
    at_random, made = passes(list(range(768)), lengths, 4), passes(order, lengths, 4)
    assert at_random.std() > 0.2 * at_random.mean()
    # Of the eight passes at once, the longest over the mean.
    assert (made.reshape(-1, 8).max(1) / made.reshape(-1, 8).mean(1)).max() < 1.02


def test_the_rest_of_an_epoch_stays_as_it_is() -> None:
    sampler = BalancedBatches(SequentialSampler(range(11)), list(range(11)), rows=2, passes=4)
    order = list(sampler)
    assert sorted(order[:8]) == list(range(8))
    assert order[8:] == [8, 9, 10]
    assert len(sampler) == 11


def test_groups_are_of_one_size_whatever_the_lengths() -> None:
    groups = balanced([1000, 1, 1, 1, 1, 1, 1, 1], 4)
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    assert 0 in groups[-1]  # the longest comes last
    assert balanced([], 4) == [[], [], [], []]


LOSSES = """
import json, sys
from pathlib import Path
from trl import ModelConfig, SFTConfig
from accelerate import PartialState
from data_prep.prepared import load_studies
from recipes.sft import build_trainer
from settings.arguments import DataArguments, StageArguments
from settings.batch import set_global_batch
from settings.parser import parse_recipe
out, lengths = Path(sys.argv[1]), json.loads(sys.argv[2])
data, stage, model, training = parse_recipe((DataArguments, StageArguments, ModelConfig, SFTConfig), sys.argv[3:])
set_global_batch(stage, training)
rows = load_studies(data.datasets, data.data_dir, "train", (), training.seed)[:64]
trainer = build_trainer(data, model, training, rows, True, lengths)
seen = []
forward = trainer.compute_loss
def watched(model, inputs, *args, **kwargs):
    seen.append(inputs["study_lengths"].sum().item())
    return forward(model, inputs, *args, **kwargs)
trainer.compute_loss = watched
trainer.train()
process = PartialState().process_index
out.joinpath(f"{process}.json").write_text(json.dumps({"losses": [e["loss"] for e in trainer.state.log_history if "loss" in e], "seen": seen}))
"""


@pytest.mark.slow
def test_two_processes_have_passes_of_one_length_and_all_studies_of_each_epoch(
    tiny_base, phantom_data, tmp_path
) -> None:
    """Two epochs of 64 studies in steps of 16: the losses of one process, whose order is another, are not the same; the sum of the
    studies' tokens is, and two processes wait little for one another."""
    from data_prep.prepared import load_studies
    from model.processor import load_processor
    from training.lengths import count_tokens

    studies = load_studies(["phantom_harbor"], phantom_data, "train", (), 42)[:64]
    lengths = [sum(pair) for pair in count_tokens(studies, load_processor(str(tiny_base)), True, True)]
    given = options(
        {
            "model_name_or_path": tiny_base,
            "data_dir": phantom_data,
            "output_dir": tmp_path / "out",
            "datasets": "phantom_harbor",
            "global_batch_size": 16,
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "max_steps": -1,
            "logging_steps": 1,
            "save_strategy": "no",
            "attn_implementation": "sdpa",
        }
    )
    script = tmp_path / "train.py"
    script.write_text(LOSSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += [str(tmp_path), json.dumps(lengths), "--config", str(REPOSITORY / "recipes/demo/sft.yaml"), *given]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300)
    first, second = (json.loads((tmp_path / f"{process}.json").read_text())["seen"] for process in (0, 1))
    assert len(first) == len(second) == 2 * 64 // 16 * 2
    assert sum(first) + sum(second) == 2 * sum(lengths)
    assert sum(first[:8]) + sum(second[:8]) == sum(lengths)
    waiting = sum(map(max, first, second)) * 2 / (sum(first) + sum(second))
    assert waiting < 1.02
    assert first[:8] != first[8:]
