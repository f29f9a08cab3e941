"""Recipe YAML: every shipped file loads, and a mistake is one clear line before any model is loaded."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from stage_runs import run_stage
from trl import GRPOConfig, ModelConfig, SFTConfig
from trl.generation import vllm_generation
from trl.trainer import grpo_trainer

from foundation.errors import RecipeError
from recipes.grpo import ARGUMENTS
from settings.arguments import DataArguments, RewardArguments, RolloutArguments, StageArguments
from settings.batch import set_global_batch
from settings.keys import GRPO_CHOICES
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
SFT = (DataArguments, StageArguments, ModelConfig, SFTConfig)
GRPO = ARGUMENTS
CPU = ["--use_cpu", "true", "--bf16", "false"]


def shipped(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(f"recipes/*/{pattern}"))


@pytest.mark.parametrize("path", shipped("sft*.yaml"))
def test_every_shipped_sft_recipe_loads(path):
    data, _, model, _ = parse_recipe(SFT, ["--config", str(REPOSITORY / path), *CPU])
    assert data.datasets
    assert model.model_name_or_path


@pytest.mark.parametrize("path", shipped("rl*.yaml"))
def test_every_shipped_rl_recipe_loads_and_samples_16_rollouts(path):
    data, reward, *_, training = parse_recipe(GRPO, ["--config", str(REPOSITORY / path), *CPU])
    assert data.datasets
    assert training.num_generations == 16
    assert any(reward.metric_weights.values())


@pytest.mark.parametrize("path", shipped("sft*.yaml") + shipped("rl*.yaml") + shipped("eval*.yaml"))
def test_the_commands_of_a_recipes_header_are_those_that_use_it(path):
    """By `make -n`, untouched by the variables of a make around it: the YAML is the stage's, the override reaches it."""
    header = (REPOSITORY / path).read_text().partition("\n\n")[0]
    (run,) = re.findall(r"# Run: +(make .*?)(?:   .*)?$", header, re.MULTILINE)
    (override,) = re.findall(r"Override: (make .*)$", header, re.MULTILINE)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for command in (run, override):
        words = ["make", "-n", "-o", "setup", "-o", "base", *shlex.split(command)[1:]]
        made = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
        assert made.returncode == 0, made.stderr
        assert f"--config {path} " in made.stdout, command
        if "ARGS=" in command:
            assert command.partition('ARGS="')[2].rstrip('"') in made.stdout
    assert "ARGS=" in override


def test_step_1_and_step_2_differ_by_judge_and_kl_as_in_the_paper():
    for recipe in ("demo", "unirg_cxr"):
        parsed = [
            parse_recipe(GRPO, ["--config", str(REPOSITORY / f"recipes/{recipe}/rl_step{step}.yaml"), *CPU])
            for step in (1, 2)
        ]
        for _, _, _, stage, rollouts, *_, training in parsed:
            set_global_batch(stage, training, rollouts)
        (_, reward1, *_, grpo1), (_, reward2, *_, grpo2) = parsed
        expected = {"bleu2": 0.0, "bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
        assert reward1.metric_weights == reward2.metric_weights == expected
        assert (reward1.weight_chexprompt, reward2.weight_chexprompt) == (0.0, 0.5)
        assert (grpo1.beta, grpo2.beta) == (0.0, 0.03)
        assert grpo1.epsilon_high > grpo1.epsilon  # clip-higher
        assert grpo1.steps_per_generation > grpo1.gradient_accumulation_steps  # without reuse the ratio stays 1


def test_unknown_key_is_named_with_its_file(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("datasets: [a]\nlerning_rate: 1.0e-3\n")
    with pytest.raises(RecipeError, match=r"sft\.yaml.*lerning_rate"):
        parse_recipe(SFT, ["--config", str(path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "mapping"),
        ("a: [1", "not readable YAML"),
        ("", "mapping"),
        ("max_steps: many\n", "max_steps|many|int"),
    ],
)
def test_broken_yaml_is_one_line_that_names_the_file(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        parse_recipe(SFT, ["--config", str(path), *CPU])
    assert "broken.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe_file_and_unknown_flag_are_named():
    with pytest.raises(RecipeError, match=r"no recipe file nowhere\.yaml"):
        parse_recipe(SFT, ["--config", "nowhere.yaml"])
    with pytest.raises(RecipeError, match="--frobnicate"):
        parse_recipe(SFT, [*CPU, "--frobnicate", "1"])


def test_weights_that_do_not_sum_as_declared_are_refused():
    with pytest.raises(RecipeError, match=r"sum to 0\.623, but weights_total says 1"):
        RewardArguments(weight_bertscore=0.370, weight_sembscore=0.253, weights_total=1.0)


def test_command_line_overrides_yaml(tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("datasets: [a]\nlearning_rate: 1.0e-3\n")
    *_, training = parse_recipe(SFT, ["--config", str(path), "--learning_rate", "5e-5", *CPU])
    assert training.learning_rate == 5e-5


@pytest.mark.parametrize(("counts", "completions"), [("prompts", 4096), ("completions", 256)])
def test_both_readings_of_global_batch_256_with_16_rollouts(tmp_path, counts, completions):
    training = GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=32, num_generations=16, use_cpu=True, bf16=False
    )
    set_global_batch(
        StageArguments(global_batch_size=256),
        training,
        RolloutArguments(batch_counts=counts, updates_per_generation=2),
    )
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == completions
    assert training.generation_batch_size == 2 * completions


def test_global_batch_that_does_not_divide_is_refused(tmp_path):
    training = SFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=3, use_cpu=True, bf16=False)
    with pytest.raises(RecipeError, match=r"global_batch_size 256 .* does not divide by 3 rows"):
        set_global_batch(StageArguments(global_batch_size=256), training)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight_bertscore", "nan"], "weight_bertscore is nan; it must be a finite number"),
        (["--weight_chexprompt", "inf"], "weight_chexprompt is inf; it must be a finite number"),
        (["--weight_bertscore", "0", "--weight_sembscore", "0", "--weight_radgraph", "0"], "every reward weight is 0"),
        (["--global_batch_size", "0"], "global_batch_size is 0; it must be at least 1"),
        (["--global_batch_size", "-256"], "global_batch_size is -256; it must be at least 1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; it must be at least 1"),
        (["--loss_type", "foo"], "loss_type is 'foo'; choose one of dapo, grpo, "),
        (["--scale_rewards", "foo"], "scale_rewards is 'foo'; choose one of group, batch, none"),
        (["--importance_sampling_level", "foo"], "importance_sampling_level is 'foo'; choose one of token, sequence"),
        (["--vllm_mode", "foo"], "vllm_mode is 'foo'; choose one of colocate, server"),
    ],
)
def test_values_that_cannot_train_are_refused_with_the_recipe_and_not_at_the_first_step(flags, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as refused:
        parse_recipe(GRPO, ["--config", str(REPOSITORY / "recipes/demo/rl_step1.yaml"), *flags])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", sorted(GRPO_CHOICES))
def test_the_choices_are_those_that_trl_knows(key):
    """Each is a name in TRL's own source, so that an update of TRL that renames one is seen here."""
    source = "".join(Path(inspect.getfile(module)).read_text() for module in (grpo_trainer, vllm_generation))
    for choice in GRPO_CHOICES[key]:
        assert f'"{choice}"' in source or f"'{choice}'" in source


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["recipes.sft", "--config", "recipes/demo/sft.yaml", "--data_dir", "{tmp}/none"], "no prepared data"),
        (["recipes.sft", "--config", "recipes/demo/sft.yaml", "--model_name_or_path", "outputs/none"], "no model in"),
        (["recipes.sft", "--config", "recipes/demo/sft.yaml", "--model_name_or_path", "weights/none"], "make weights"),
        (["recipes.sft", "--config", "recipes/demo/sft.yaml", "--keep_optimizer_states", "0"], "at least 1"),
        (["recipes.sft", "--config", "recipes/demo/nothing.yaml"], "no recipe file"),
        (["recipes.grpo", "--config", "recipes/demo/rl_step1.yaml", "--loss_type", "foo"], "loss_type is 'foo'"),
        (["recipes.grpo", "--config", "recipes/demo/rl_step1.yaml", "--model_name_or_path", "./none"], "no model in"),
    ],
)
def test_user_mistakes_at_the_command_line_are_one_line_and_status_2(tiny_base, tmp_path, command, message):
    command = [part.replace("{tmp}", str(tmp_path)) for part in command]
    if "--data_dir" in command:
        command += ["--model_name_or_path", str(tiny_base)]
    command += ["--output_dir", str(tmp_path / "out")]
    run = run_stage(*command)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert message in run.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
def test_any_batch_a_device_trains_a_generation_of_whole_groups(tmp_path, rows):
    """TRL alone refuses fewer rows than a group has rollouts, before the global batch is set."""
    given = ["--config", "recipes/demo/rl_step1.yaml", "--per_device_train_batch_size", str(rows)]
    *_, stage, rollouts, _, _, training = parse_recipe(GRPO, [*given, "--output_dir", str(tmp_path)])
    set_global_batch(stage, training, rollouts)
    assert training.gradient_accumulation_steps == 32 // rows
    assert (training.steps_per_generation, training.generation_batch_size) == (128 // rows, 128)


def test_a_group_of_rollouts_split_between_processes_is_refused(tmp_path, monkeypatch):
    given = ["--config", "recipes/demo/rl_step1.yaml", "--global_batch_size", "1", "--updates_per_generation", "1"]
    *_, stage, rollouts, _, _, training = parse_recipe(GRPO, [*given, "--per_device_train_batch_size", "8"])
    monkeypatch.setattr(type(training), "world_size", 2)
    with pytest.raises(
        RecipeError, match=r"a process generates 8 completions .* no whole groups of 16 rollouts"
    ) as told:
        set_global_batch(stage, training, rollouts)
    assert "\n" not in str(told.value)
