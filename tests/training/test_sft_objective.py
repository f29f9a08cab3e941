"""SFT's objective: the mean over the report tokens of an optimiser step, however its batch is split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rl_runs import options
from safetensors.torch import load_file
from trl import ModelConfig, SFTConfig

from data_prep.prepared import load_studies
from recipes.sft import build_trainer
from settings.arguments import DataArguments, StageArguments
from settings.batch import set_global_batch
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
# Plain gradient descent at rate 1: what a step changes is the gradient.
ONE_STEP = {
    "datasets": "phantom_harbor",
    "global_batch_size": 16,
    "max_steps": 1,
    "optim": "sgd",
    "learning_rate": 1.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "logging_steps": 1,
    "save_strategy": "no",
}
LOGGED = ("loss", "entropy", "mean_token_accuracy", "num_tokens")


def arguments(base: Path, data: Path, out: Path, **settings: object) -> list[str]:
    given = {"model_name_or_path": base, "data_dir": data, "output_dir": out, **ONE_STEP, **settings}
    return ["--config", str(REPOSITORY / "recipes/demo/sft.yaml"), *options(given)]


def step(base: Path, data: Path, out: Path, studies: int = 64, **settings: object) -> tuple[torch.Tensor, list[dict]]:
    """All weights after training in this process, as one vector, and the log."""
    types = (DataArguments, StageArguments, ModelConfig, SFTConfig)
    data_, stage, model, training = parse_recipe(types, arguments(base, data, out, **settings))
    set_global_batch(stage, training)
    rows = load_studies(data_.datasets, data_.data_dir, "train", (), training.seed)[:studies]
    trainer = build_trainer(data_, model, training, rows, stage.pack_studies)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    return changes(before, after), [entry for entry in trainer.state.log_history if "loss" in entry]


def changes(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(after[name].detach() - before[name]).flatten().double() for name in sorted(before)])


def different(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


@pytest.fixture(scope="module")
def whole(tiny_base, phantom_data, tmp_path_factory):
    """The gradient of 16 reports in one forward pass, and what is logged of it."""
    return step(tiny_base, phantom_data, tmp_path_factory.mktemp("whole"), per_device_train_batch_size=16)


@pytest.mark.parametrize("rows", [4, 1])
def test_gradient_and_log_are_the_same_however_a_batch_is_split(whole, tiny_base, phantom_data, tmp_path, rows):
    gradient, log = step(tiny_base, phantom_data, tmp_path, per_device_train_batch_size=rows)
    assert different(whole[0], gradient) < 1e-5
    for name in LOGGED:
        assert log[0][name] == pytest.approx(whole[1][0][name], rel=1e-5)


@pytest.mark.parametrize("rows", [16, 4, 1])
def test_packed_studies_give_the_gradient_and_log_of_a_row_for_each(whole, tiny_base, phantom_data, tmp_path, rows):
    settings = {"per_device_train_batch_size": rows, "pack_studies": True}
    gradient, log = step(tiny_base, phantom_data, tmp_path, **settings)
    assert different(whole[0], gradient) < 1e-4
    for name in LOGGED:
        assert log[0][name] == pytest.approx(whole[1][0][name], rel=1e-5)


def test_short_last_step_of_an_epoch_weighs_its_own_tokens(tiny_base, phantom_data, tmp_path):
    """20 studies: a step of 16, then one of 4."""
    settings = {"max_steps": 2, "learning_rate": 1e-3}
    ends = [
        step(tiny_base, phantom_data, tmp_path / str(rows), 20, per_device_train_batch_size=rows, **settings)
        for rows in (4, 1)
    ]
    assert len(ends[0][1]) == 2
    assert different(ends[0][0], ends[1][0]) < 1e-5
    assert ends[1][1][1]["mean_token_accuracy"] == pytest.approx(ends[0][1][1]["mean_token_accuracy"], rel=1e-5)


def test_workers_that_read_ahead_change_nothing(whole, tiny_base, phantom_data, tmp_path):
    settings = {"per_device_train_batch_size": 4, "dataloader_num_workers": 2, "pack_studies": True}
    gradient, log = step(tiny_base, phantom_data, tmp_path, **settings)
    assert different(whole[0], gradient) < 1e-4
    assert log[0]["loss"] == pytest.approx(whole[1][0]["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 2, "pack_studies": True}],
    ids=["rows", "packed_by_length"],
)
def test_two_processes_have_the_gradient_of_one(whole, tiny_base, phantom_data, tmp_path, settings):
    words = arguments(tiny_base, phantom_data, tmp_path / "sft", **settings)
    command = [sys.executable, "-m", "launch.torchrun", "--standalone", "--nproc_per_node", "2", "-m", "recipes.sft"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, *words], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_base, tmp_path / "sft" / "final"))
    assert different(whole[0], changes(before, after)) < (1e-4 if "pack_studies" in settings else 1e-5)
    (log,) = [entry for entry in json.loads((tmp_path / "sft" / "log_history.json").read_text()) if "loss" in entry]
    for name in LOGGED:
        assert log[name] == pytest.approx(whole[1][0][name], rel=1e-5)
