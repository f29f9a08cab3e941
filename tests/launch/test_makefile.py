"""What `make` hands to the stages, by `make -n`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """`make -n`, untouched by the variables of a `make test` around it."""
    of_make = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in of_make}
    return subprocess.run(["make", "-n", *words], cwd=REPOSITORY, capture_output=True, text=True, env=environment)


def commands(*words: str) -> str:
    """The commands that `make words` would run, those of setup left out."""
    made = make("-o", "setup", *words)
    assert made.returncode == 0, made.stderr
    return " ".join(made.stdout.replace("\\\n", " ").split())


@pytest.mark.parametrize("target", ["rl-step1", "rl-step2", "select", "eval"])
def test_weights_in_a_folder_of_ones_own_reach_every_stage_that_scores(target: str) -> None:
    assert "--weights_dir /big/weights" in commands(target, "WEIGHTS_DIR=/big/weights")
    assert "--weights_dir" not in commands(target)


def test_a_base_model_of_the_weights_folder_is_taken_from_ones_own() -> None:
    own = "--model_name_or_path /big/weights/Qwen3-VL-8B-Instruct"
    assert own in commands("sft", "WEIGHTS_DIR=/big/weights")
    assert own in commands("sft", "WEIGHTS_DIR=/big/weights", "VARIANT=lora")
    assert "--model_name_or_path" not in commands("sft")
    assert "--model_name_or_path" not in commands("sft", "WEIGHTS_DIR=/big/weights", "RECIPE=demo")


def test_one_node_alone_selects_the_best_checkpoint() -> None:
    assert "recipes.select_checkpoint" in commands("select", "NODES=2", "NODE_RANK=0")
    other = commands("select", "NODES=2", "NODE_RANK=1")
    assert "recipes.select_checkpoint" not in other
    assert "until test -e outputs/unirg_cxr/rl_step1/best" in other
    assert "recipes.select_checkpoint" in commands("select")


def test_a_variant_is_trained_and_planned_as_such() -> None:
    assert "--config recipes/unirg_cxr/sft_lora.yaml" in commands("sft", "VARIANT=lora")
    planned = commands("plan", "VARIANT=lora", "GPUS=8").partition("--stage ")[2].split()
    assert set(planned) == {"sft_lora", "rl_step1_lora", "rl_step2_lora", "eval"}
    assert commands("plan", "VARIANT=lora", "ASK=sft eval").endswith("--stage sft_lora eval")
    assert commands("plan", "ASK=rl-step1").endswith("--stage rl_step1")
    assert "--stage" not in commands("plan")
    doctor = commands("doctor", "ASK=rl-step1", "VARIANT=lora", "PARALLEL=fsdp2", "GPUS=2")
    assert doctor.endswith("--gpus 2 --variant lora --parallel fsdp2 --stage rl_step1")
    assert commands("doctor", "ASK=train").endswith("--stage train")  # which it refuses, rather than to ask for all


@pytest.mark.parametrize("target", ["sft", "rl-step1", "rl-step2"])
def test_a_deterministic_mode_reaches_every_training_stage(target: str) -> None:
    assert "--full_determinism true" in commands(target, "DETERMINISTIC=1")
    assert "--full_determinism" not in commands(target)


def test_nodes_are_planned_with_or_without_gpus() -> None:
    assert '--nodes "2"' in commands("plan", "NODES=2")
    assert '--gpus "8" --nodes "2"' in commands("plan", "NODES=2", "GPUS=8")
    assert '--gpus "abc"' in commands("plan", "GPUS=abc")  # which it refuses
    assert "--judge_gpus 4 --server_gpus 2" in commands("plan", "JUDGE_GPUS=4", "SERVER_GPUS=2")


@pytest.mark.parametrize("run", ["../data", "", "a/b", "a b", ".", "..", "-rf", "x;y", "outputs*", "a\tb"])
@pytest.mark.parametrize("target", ["clean", "sft", "report"])
def test_a_run_is_one_folder_below_outputs_whatever_the_target(target: str, run: str) -> None:
    made = make("-o", "setup", target, f"RUN={run}")
    assert made.returncode == 2
    assert "is no name; it is one word of letters, digits, - _ and ." in made.stderr
    assert "rm -rf" not in made.stdout


def test_names_of_runs_that_are_names_are_taken() -> None:
    assert 'rm -rf "outputs/my_run-2.b"' in commands("clean", "RUN=my_run-2.b")
    assert 'rm -rf "outputs/demo-phantom_summit-seed3"' in commands(
        "clean", "RECIPE=demo", "DATASET=phantom_summit", "SEED=3"
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("RECIPE=typo", "RECIPE=typo is not there (recipes/typo/*.yaml); there are demo open_data unirg_cxr"),
        ("SEED=-1", "SEED=-1 is no seed"),
        ("SEED=1.5", "SEED=1.5 is no seed"),
        ("SEED=", "SEED= is no seed"),
        ("VARIANT=../x", "VARIANT=../x is no name"),
        ("DATASET=../x", "DATASET=../x is no name"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_one_line(word: str, message: str) -> None:
    made = make("sft", word)
    assert made.returncode == 2
    assert message in made.stderr
    assert len(made.stderr.strip().splitlines()) == 1


def test_a_stage_that_a_recipe_lacks_is_named_by_the_recipe() -> None:
    made = make("sft", "RECIPE=ablations")
    assert made.returncode == 2
    assert "RECIPE=ablations has no sft (no recipes/ablations/sft.yaml)" in made.stderr


def test_a_variant_that_a_stage_lacks_is_one_line_that_names_those_there_are() -> None:
    made = make("sft", "VARIANT=no")
    assert made.returncode == 2
    assert "VARIANT=no has no sft of its own" in made.stderr
    assert "sft_lora" in made.stderr


@pytest.mark.parametrize("target", ["sft", "rl-step1", "rl-step2", "select", "eval", "report", "summary", "doctor"])
def test_one_variable_each_moves_data_weights_and_outputs(target: str) -> None:
    line = commands(target, "OUTPUTS_DIR=/big/out", "DATA_DIR=/big/data", "WEIGHTS_DIR=/big/weights")
    assert "/big/out/unirg_cxr" in line
    assert " outputs/" not in line
    assert " data " not in line
    if target not in ("report", "summary"):
        assert "/big/data" in line
        assert "/big/weights" in line
    if target in ("rl-step1", "rl-step2"):
        assert "--judge_cache_dir /big/out/judge_cache --score_cache_dir /big/out/score_cache" in line


def test_check_data_without_a_data_set_says_which_there_are() -> None:
    made = subprocess.run(
        ["make", "-o", "setup", "check-data", f"DATA_DIR={REPOSITORY}/no"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert "name the data set: make check-data DATASET=mimic; in" in made.stderr
