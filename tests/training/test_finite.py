"""Losses, gradients and weights that are no numbers end a stage with one line, and no checkpoint of them is taken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rl_runs import REPOSITORY, options
from safetensors.torch import load_file, save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from foundation.errors import RecipeError
from model.check import check_model_folder
from model.finite import check_finite_weights, first_not_finite
from training.finite import StopNotFinite

NAN, INFINITE = float("nan"), float("inf")


def watched(tmp_path: Path, losses: list[float], norm: float | None, scaler: object = None):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], learning_rate=3.0)
    trainer = SimpleNamespace(
        args=args,
        losses=tuple(torch.tensor(loss) for loss in losses),
        grad_norm=norm,
        accelerator=SimpleNamespace(scaler=scaler),
    )
    return StopNotFinite(trainer), trainer, (args, TrainerState(global_step=6), TrainerControl())


@pytest.mark.parametrize(
    ("losses", "norm", "what"),
    [
        ([1.0, NAN, 2.0], 1.0, "the loss is nan at step 7"),
        ([1.0, INFINITE], 1.0, "the loss is inf at step 7"),
        ([1.0, 1.0], NAN, "the gradients' norm is nan at step 7"),
    ],
)
def test_the_step_and_the_likely_cause_are_named_before_the_update(tmp_path, losses, norm, what):
    callback, _, event = watched(tmp_path, losses, norm)
    with pytest.raises(RecipeError, match=what) as error:
        callback.on_pre_optimizer_step(*event)
    assert "learning_rate 3 is too high" in str(error.value)
    assert "no checkpoint was saved before" in str(error.value)
    assert "\n" not in str(error.value)


def test_finite_steps_go_on_and_each_step_is_judged_by_its_own_losses(tmp_path):
    callback, trainer, event = watched(tmp_path, [1.0, 2.0], 0.5)
    callback.on_pre_optimizer_step(*event)
    assert trainer.losses == ()
    callback.on_pre_optimizer_step(*event)
    assert trainer.args.logging_nan_inf_filter is False


def test_an_overflow_that_a_float16_scaler_skips_is_none(tmp_path):
    callback, _, event = watched(tmp_path, [1.0], INFINITE, scaler=object())
    callback.on_pre_optimizer_step(*event)


def test_weights_that_are_none_are_neither_saved_nor_kept_as_the_final_model(tmp_path):
    callback, _, (args, state, control) = watched(tmp_path, [1.0], 1.0)
    model = torch.nn.Linear(2, 2)
    callback.on_train_end(args, state, control, model=model)
    with torch.no_grad():
        model.weight[0, 1] = INFINITE
    callback.on_step_end(args, state, control, model=model)  # nothing is saved at this step
    control.should_save = True
    for event in (callback.on_step_end, callback.on_train_end):
        with pytest.raises(RecipeError, match=r"the weight weight is not finite.* at step 6"):
            event(args, state, control, model=model)


def test_the_first_tensor_that_holds_no_number_is_found_in_any_dtype():
    good = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor([1]), "e": torch.ones(0)}
    assert first_not_finite(good.items()) is None
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        bad = torch.ones(4, dtype=dtype)
        bad[2] = NAN
        assert first_not_finite([*good.items(), ("bad", bad)]) == "bad"
        assert first_not_finite([("bad", -bad.nan_to_num(INFINITE))]) == "bad"
    assert first_not_finite([("bad", torch.tensor([1.0, -1e30]))]) == "bad"  # one update at a learning rate of 1e30
    assert first_not_finite([("good", torch.tensor([65504.0], dtype=torch.float16))]) is None


def test_a_checkpoint_with_such_weights_is_refused_and_a_mended_one_taken(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"layer.weight": torch.tensor([1.0, NAN])}, file)
    for check in (check_finite_weights, lambda folder: check_model_folder(str(folder))):
        with pytest.raises(
            RecipeError, match=r"layer.weight holds NaN, infinite or overflowing weights.*lower learning_rate"
        ):
            check(tmp_path)
    save_file({"layer.weight": torch.tensor([1.0, 2.0])}, file)
    check_finite_weights(tmp_path)


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl_step1"])
def test_a_stage_that_diverges_ends_with_one_line_and_no_result(tmp_path, tiny_base, phantom_data, stage):
    settings = {
        "model_name_or_path": tiny_base,
        "data_dir": phantom_data,
        "datasets": "phantom_prairie",
        "dataset_weights": 1,
        "output_dir": tmp_path / stage,
        "max_steps": 8,
        "global_batch_size": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e30,
        "warmup_steps": 0,
        "save_steps": 2,
        "logging_steps": 1,
    }
    if stage == "rl_step1":
        settings |= {"num_generations": 2, "max_completion_length": 8, "monitor_max_truncated": 1}
        settings |= {"monitor_max_length_drift": 1e9, "monitor_min_unique": 0}
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    done = run(module, "--config", f"recipes/demo/{stage}.yaml", *options(settings))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "at step" in done.stderr
    assert "learning_rate 1e+30 is too high" in done.stderr
    assert not (tmp_path / stage / "result.json").exists()
    assert not (tmp_path / stage / "final").exists()


@pytest.mark.slow
def test_evaluation_refuses_a_checkpoint_that_diverged(tmp_path, tiny_base, phantom_data):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = load_file(broken / "model.safetensors")
    next(iter(weights.values())).fill_(NAN)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    arguments = ["--config", "recipes/demo/eval.yaml", "--run", str(tmp_path / "run"), "--models", f"x={broken}"]
    done = run("recipes.evaluate", *arguments, "--data_dir", str(phantom_data), "--only_dataset", "phantom_prairie")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NaN, infinite or overflowing weights" in done.stderr
    assert "Traceback" not in done.stderr
