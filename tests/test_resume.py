"""A run that is killed or told to stop goes on where it was, and ends where it would have ended.

What cannot be bit-equal: a checkpoint inside a generation that is used for several updates (`save_steps` not a multiple
of `updates_per_generation`, or a signal). Its rollouts are sampled again from the policy of the checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_runs import REPOSITORY, SMALL, Run, grpo_run, options
from safetensors.torch import load_file

from recipes.errors import RecipeError
from recipes.models import check_model_folder
from recipes.stage import start_or_resume

SFT = {
    "datasets": "phantom_prairie",
    "max_steps": 12,
    "global_batch_size": 8,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "save_steps": 3,
    "save_total_limit": 10,
    "seed": 3,
}


def command(module: str, recipe: str, out: Path, model: Path, data: Path, **settings) -> list[str]:
    given = {"model_name_or_path": model, "data_dir": data, "output_dir": out, **settings}
    return [sys.executable, "-m", module, "--config", f"recipes/demo/{recipe}.yaml", *options(given)]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        arguments, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(arguments: list[str]) -> str:
    process = start(arguments)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def losses(folder: Path) -> list[float]:
    """By step, of a finished stage."""
    return [entry["loss"] for entry in json.loads((folder / "log_history.json").read_text()) if "loss" in entry]


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.02)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


# ---- in one process --------------------------------------------------------------------------------------------------


def test_a_grpo_run_resumed_between_generations_is_the_uninterrupted_run(
    step_1: Run, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    before = Path(step_1.trainer.args.output_dir)
    out = tmp_path / "rl_step1"
    shutil.copytree(before / "checkpoint-2", out / "checkpoint-2")
    resumed = grpo_run(out, tiny_base, phantom_data, checkpoint=str(out / "checkpoint-2"))
    assert resumed.losses == step_1.losses  # the log of steps 1 and 2 comes with the checkpoint
    assert [seen.candidates for seen in resumed.seen] == [step_1.seen[1].candidates]
    assert [seen.study_ids for seen in resumed.seen] == [step_1.seen[1].study_ids]
    assert same_weights(out / "checkpoint-4", before / "checkpoint-4")


def test_a_grpo_run_resumed_inside_a_generation_keeps_to_its_studies(
    step_1: Run, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    """Its rollouts are new, but no study is skipped or seen twice: generations stay in step with the data."""
    out = tmp_path / "rl_step1"
    first = grpo_run(out, tiny_base, phantom_data, max_steps=1, save_steps=1)
    assert first.seen[0].study_ids == step_1.seen[0].study_ids
    resumed = grpo_run(out, tiny_base, phantom_data, checkpoint=str(out / "checkpoint-1"), max_steps=3)
    assert [seen.study_ids for seen in resumed.seen] == [seen.study_ids for seen in step_1.seen]
    assert [seen.step for seen in resumed.seen] == [1, 2]


def test_a_checkpoint_whose_writing_was_cut_short_is_not_resumed_from(tmp_path: Path, capsys) -> None:
    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert start_or_resume(tmp_path, {"seed": 1}) == str(tmp_path / "checkpoint-10")
    assert "checkpoint-20: incomplete" in capsys.readouterr().out
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')
    assert start_or_resume(tmp_path, {"seed": 1}) is None


def test_checkpoints_of_another_model_or_other_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    begun = {"model_sha256": "a" * 64, "learning_rate": 1e-4, "per_device_train_batch_size": 8, "seed": 1}
    start_or_resume(tmp_path, begun)
    with pytest.raises(RecipeError, match=r"other settings \(model_sha256: .*FORCE=1"):
        start_or_resume(tmp_path, {**begun, "model_sha256": "b" * 64})
    with pytest.raises(RecipeError, match=r"learning_rate: 0\.0001 → 0\.001"):
        start_or_resume(tmp_path, {**begun, "learning_rate": 1e-3})
    assert start_or_resume(tmp_path, {**begun, "per_device_train_batch_size": 4})  # another machine may go on


def test_step_2_without_a_selected_step_1_checkpoint_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="make select STAGE_NAME=rl_step1 RECIPE=demo"):
        check_model_folder("outputs/demo/rl_step1/best".replace("outputs", str(tmp_path)))


def test_a_checkpoint_of_another_model_is_refused_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(RecipeError, match=r"another model .*'llama', not 'qwen3_vl'"):
        check_model_folder(str(tmp_path))


# ---- killed and told to stop -----------------------------------------------------------------------------------------


def test_sigterm_saves_first_and_the_same_command_ends_with_the_same_losses(
    tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    arguments = command("recipes.sft", "sft", tmp_path / "sft", tiny_base, phantom_data, **SFT)
    uninterrupted = command("recipes.sft", "sft", tmp_path / "whole" / "sft", tiny_base, phantom_data, **SFT)
    process = start(arguments)
    wait_for(tmp_path / "sft" / "checkpoint-3", process)  # in training now
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "SIGTERM received; checkpoint-" in output
    assert "Traceback" not in output
    assert not (tmp_path / "sft" / "result.json").exists()
    assert "going on from checkpoint-" in finish(arguments)
    finish(uninterrupted)
    assert len(losses(tmp_path / "sft")) == 12
    assert losses(tmp_path / "sft") == losses(tmp_path / "whole" / "sft")
    assert same_weights(tmp_path / "sft" / "final", tmp_path / "whole" / "sft" / "final")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "status"), [(signal.SIGKILL, -9), (signal.SIGUSR1, 128 + signal.SIGUSR1)])
@pytest.mark.parametrize("stage", ["sft", "rl_step1", "rl_step2"])
def test_every_stage_goes_on_after_a_kill_and_after_slurms_warning(
    stage: str, kind: signal.Signals, status: int, tiny_base: Path, phantom_data: Path, tmp_path: Path
) -> None:
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    # One update a generation: every checkpoint is between generations, so that even a signal's can be bit-equal.
    rl = {**SMALL, "updates_per_generation": 1, "max_steps": 8, "judge_cache_dir": tmp_path / "cache"}
    settings = SFT if stage == "sft" else rl
    arguments = command(module, stage, tmp_path / stage, tiny_base, phantom_data, **settings)
    uninterrupted = command(module, stage, tmp_path / "whole" / stage, tiny_base, phantom_data, **settings)
    process = start(arguments)
    wait_for(tmp_path / stage / f"checkpoint-{settings['save_steps']}", process)
    process.send_signal(kind)
    output, _ = process.communicate()
    assert process.returncode == status, output
    assert "going on from checkpoint-" in finish(arguments)
    finish(uninterrupted)
    assert losses(tmp_path / stage) == losses(tmp_path / "whole" / stage)
    assert same_weights(tmp_path / stage / "final", tmp_path / "whole" / stage / "final")
