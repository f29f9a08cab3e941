"""The whole method, as its commands: each stage on small phantoms, then what a user meets on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stage_runs import MODULES, run_stage

from data_prep.study import read_studies, study_table, write_studies

REPOSITORY = Path(__file__).resolve().parents[2]
SETS = ("phantom_harbor", "phantom_prairie")
TEST_YAML = """
datasets: [phantom_harbor, phantom_prairie]
batch_size: 16
max_new_tokens: 24
reward_backend: offline
judge_base_url: offline
judge_model: offline-rules-judge
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m …` as a user would, from the repository."""
    if arguments[0] in MODULES:
        return run_stage(*arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )


def succeed(*arguments: str) -> str:
    run = command(*arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def sft_arguments(data: Path, base: Path, out: Path, steps: int = 4) -> list[str]:
    return [
        *("recipes.sft", "--config", "recipes/demo/sft.yaml", "--datasets", *SETS, "--data_dir", str(data)),
        *("--model_name_or_path", str(base), "--output_dir", str(out), "--max_steps", str(steps)),
        *("--logging_steps", "1", "--save_steps", "2"),
    ]


def rl_arguments(step: int, data: Path, model: Path, out: Path) -> list[str]:
    return [
        *("recipes.grpo", "--config", f"recipes/demo/rl_step{step}.yaml", "--data_dir", str(data)),
        *("--datasets", "phantom_prairie", "--dataset_weights", "1"),
        *("--model_name_or_path", str(model), "--output_dir", str(out), "--max_steps", "4"),
        *("--logging_steps", "1", "--save_steps", "2", "--max_completion_length", "24", "--global_batch_size", "1"),
        *("--judge_cache_dir", str(out.parent / "judge_cache")),
    ]


def evaluation_arguments(data: Path, run: Path) -> list[str]:
    run.mkdir(parents=True, exist_ok=True)
    recipe = run / "eval.yaml"
    recipe.write_text(TEST_YAML)
    return [
        *("--config", str(recipe), "--run", str(run), "--data_dir", str(data)),
        *("--judge_cache_dir", str(run / "judge_cache")),
    ]


@pytest.fixture(scope="module")
def finished(phantom_data: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has been through every stage."""
    run = tmp_path_factory.mktemp("outputs") / "demo"
    shutil.copytree(tiny_base, run / "base")
    succeed(*sft_arguments(phantom_data, run / "base", run / "sft"))
    succeed(*rl_arguments(1, phantom_data, run / "sft" / "final", run / "rl_step1"))
    succeed("recipes.select_checkpoint", *evaluation_arguments(phantom_data, run), "--stage", "rl_step1")
    succeed(*rl_arguments(2, phantom_data, run / "rl_step1" / "best", run / "rl_step2"))
    models = ("base", "sft", "rl_step1", "rl_step2")
    succeed("recipes.evaluate", *evaluation_arguments(phantom_data, run), "--models", *models)
    succeed("evaluation", "summary", "--outputs", str(run))
    succeed("evaluation", "report", "--outputs", str(run))
    return run


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_training_stage_leaves_its_model_history_and_result(finished):
    for stage in ("sft", "rl_step1", "rl_step2"):
        result = read(finished / stage / "result.json")
        assert result["steps"] == 4
        assert result["settings"]["model_sha256"]
        assert {"torch", "trl", "transformers"} <= set(result["versions"])
        assert (finished / stage / "final" / "model.safetensors").is_file()
        losses = [entry["loss"] for entry in read(finished / stage / "log_history.json") if "loss" in entry]
        assert len(losses) == 4


def test_every_part_of_the_reward_is_logged_and_stand_ins_are_named(finished):
    logged = {key for entry in read(finished / "rl_step2" / "log_history.json") for key in entry}
    parts = {key.removeprefix("reward_parts/") for key in logged if key.startswith("reward_parts/")}
    assert "bleu2" in parts
    for metric in ("bertscore", "sembscore", "radgraph"):
        assert f"{metric}[offline" in " ".join(parts)
        assert metric not in parts  # never under the bare metric's name
    assert "kl" in logged
    assert "kl" not in {key for entry in read(finished / "rl_step1" / "log_history.json") for key in entry}


def test_selection_links_the_checkpoint_with_the_lowest_radcliq(finished):
    selection = read(finished / "rl_step1" / "selection.json")
    means = {entry["checkpoint"]: entry["radcliq_v1"]["mean"] for entry in selection["checkpoints"]}
    assert set(means) == {"checkpoint-2", "checkpoint-4"}
    assert selection["best"] == min(means, key=means.get)
    assert (finished / "rl_step1" / "best").resolve().name == selection["best"]
    assert all(entry["studies"] == 32 for entry in selection["checkpoints"])


def test_step_2_starts_from_the_selected_checkpoint(finished):
    selection = read(finished / "rl_step1" / "selection.json")
    chosen = next(entry for entry in selection["checkpoints"] if entry["checkpoint"] == selection["best"])
    assert read(finished / "rl_step2" / "result.json")["settings"]["model_sha256"] == chosen["model_sha256"]


def test_predictions_are_in_rexranks_form_for_every_study(finished, phantom_data):
    for name in SETS:
        predictions = read(finished / "eval" / name / "rl_step2" / "predictions.json")
        assert list(predictions) == read_studies(phantom_data / name, "test")["study_id"].to_pylist()
        for entry in predictions.values():
            assert {"report", "section_findings", "section_impression", "context", "model_prediction"} <= set(entry)


def test_summary_holds_every_stage_and_baseline_with_intervals(finished):
    summary = read(finished / "summary.json")
    assert list(summary["stages"]) == ["base", "sft", "rl_step1", "rl_step2"]
    assert set(summary["baselines"]) == {"most_frequent", "copy_prior"}
    for numbers in [*summary["stages"].values(), *summary["baselines"].values()]:
        assert numbers["n"] == 32
        for name in ("micro_f1", "composite", "judge_errors"):
            value = numbers[name]
            assert value["low"] <= value["mean"] <= value["high"]


def test_a_finished_stage_is_not_trained_again_and_other_settings_do_not_overwrite_it(finished, phantom_data):
    arguments = sft_arguments(phantom_data, finished / "base", finished / "sft")
    before = (finished / "sft" / "result.json").stat().st_mtime_ns
    assert "finished already" in succeed(*arguments)
    changed = command(*arguments, "--learning_rate", "0.5")
    assert changed.returncode == 2
    assert "other settings (learning_rate: 0.002 → 0.5)" in changed.stderr
    assert (finished / "sft" / "result.json").stat().st_mtime_ns == before


def test_evaluation_is_not_redone(finished, phantom_data):
    run = succeed("recipes.evaluate", *evaluation_arguments(phantom_data, finished), "--models", "sft")
    assert "predictions finished already" in run


@pytest.fixture
def broken_data(phantom_data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may break."""
    return Path(shutil.copytree(phantom_data, tmp_path / "data"))


def refused(*arguments: str) -> str:
    """The one line that a user gets for a mistake."""
    run = command(*arguments)
    assert run.returncode == 2, run.stderr[-2000:]
    assert "Traceback" not in run.stderr
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, run.stderr
    return lines[0]


def test_a_missing_image_is_named_before_training(broken_data, tiny_base, tmp_path):
    study = read_studies(broken_data / "phantom_harbor", "train").to_pylist()[3]
    (broken_data / "phantom_harbor" / study["image"]).unlink()
    line = refused(*sft_arguments(broken_data, tiny_base, tmp_path / "out"))
    assert study["study_id"] in line
    assert study["image"] in line
    assert "make data" in line
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_unreadable_image_stops_training_with_its_name(broken_data, tiny_base, tmp_path):
    for study in read_studies(broken_data / "phantom_harbor", "train").to_pylist():
        (broken_data / "phantom_harbor" / study["image"]).write_bytes(b"not an image")
    line = refused(*sft_arguments(broken_data, tiny_base, tmp_path / "out"))
    assert "phantom_harbor" in line
    assert "images/" in line
    assert not (tmp_path / "out" / "result.json").exists()


def test_an_empty_data_set_is_named(broken_data, tiny_base, tmp_path):
    write_studies(study_table([]), broken_data / "phantom_harbor" / "train.parquet")
    assert "holds no study" in refused(*sft_arguments(broken_data, tiny_base, tmp_path / "out"))


def test_a_broken_study_table_is_named(broken_data, tiny_base, tmp_path):
    path = broken_data / "phantom_harbor" / "train.parquet"
    pq.write_table(pq.read_table(path).drop(["findings"]), path)
    assert "findings missing" in refused(*sft_arguments(broken_data, tiny_base, tmp_path / "out"))
    path.write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refused(*sft_arguments(broken_data, tiny_base, tmp_path / "out"))


def test_a_judge_that_is_down_is_said_before_training(phantom_data, tiny_base, tmp_path):
    judge = ("--judge_base_url", "http://127.0.0.1:9/v1", "--judge_model", "some-model", "--judge_max_retries", "0")
    line = refused(*rl_arguments(2, phantom_data, tiny_base, tmp_path / "out"), *judge)
    assert "127.0.0.1:9" in line
    assert not (tmp_path / "out" / "result.json").exists()


def test_selection_without_checkpoints_and_evaluation_without_a_model_say_what_to_run(phantom_data, tmp_path):
    arguments = evaluation_arguments(phantom_data, tmp_path / "nothing")
    assert "train the stage first" in refused("recipes.select_checkpoint", *arguments, "--stage", "rl_step1")
    assert "no trained model" in refused("recipes.evaluate", *arguments)
