"""Every comparison and every variant of the paper's recipe parses, and differs from the recipe by what it says."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from evaluation_files import make_data, make_studies, write_predictions
from synthetic_reports import grpo_batch

from evaluation.ablation_table import heading_of, interval, table
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from foundation.errors import RecipeError
from foundation.governance import JudgeError
from foundation.recipe_files import read_yaml
from recipes import ablate
from recipes.ablate import STAGE_ARGUMENTS, split_options, stage_recipe, start_of
from rewards.chexprompt.settings import JudgeSettings
from rewards.composite import CompositeReward
from rewards.grpo_reward import GrpoReward
from rewards.registry import load_metrics
from settings.ablations import Ablation, names, read_ablation
from settings.arguments import EvaluationArguments
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = ["--use_cpu", "true", "--bf16", "false"]


def parsed(ablation: Ablation, stage: str, recipe: str, folder: Path) -> tuple:
    path = folder / f"{ablation.name}-{stage}.yaml"
    path.write_text(yaml.safe_dump(stage_recipe(ablation, stage, recipe, "some/model", folder / stage)))
    return parse_recipe(STAGE_ARGUMENTS[stage], ["--config", str(path), *CPU])


@pytest.mark.parametrize("recipe", ["unirg_cxr", "demo"])
@pytest.mark.parametrize("name", names())
def test_every_ablation_makes_recipes_that_load(name: str, recipe: str, tmp_path: Path) -> None:
    ablation = read_ablation(name)
    for stage in ablation.stages:
        parsed(ablation, stage, recipe, tmp_path)


def test_the_papers_comparisons_are_all_there() -> None:
    table_1 = {"only_sft", "only_rl", "both_sft_and_rl"}
    figure_2 = {f"reward_{name}" for name in ("combined", "bleu2", "bertscore", "sembscore", "radgraph")}
    others = {"no_error_awareness", "no_priors", "without_iu"}
    ours = {"reward_negative_radcliq_v1", "loss_grpo", "reward_normalized_parts"}
    assert table_1 | figure_2 | others | ours <= set(names())


@pytest.mark.parametrize("metric", ["bleu2", "bertscore", "sembscore", "radgraph"])
def test_a_single_metric_reward_optimises_that_metric_alone(metric: str, tmp_path: Path) -> None:
    _, reward, *_ = parsed(read_ablation(f"reward_{metric}"), "rl_step1", "unirg_cxr", tmp_path)
    assert {name for name, weight in reward.metric_weights.items() if weight} == {metric}


def test_what_the_ablations_change(tmp_path: Path) -> None:
    data, reward, *_, training = parsed(read_ablation("no_error_awareness"), "rl_step2", "unirg_cxr", tmp_path)
    assert (reward.weight_chexprompt, training.beta, data.datasets) == (0.0, 0.03, ["mimic"])
    for stage in ("rl_step1", "rl_step2"):
        data, *_ = parsed(read_ablation("no_priors"), stage, "unirg_cxr", tmp_path)
        assert not data.longitudinal
    for stage in ("sft", "rl_step1", "rl_step2"):
        data, *_ = parsed(read_ablation("without_iu"), stage, "unirg_cxr", tmp_path)
        assert data.datasets == ["mimic", "chexpert_plus", "rexgradient"]
    *_, training = parsed(read_ablation("both_sft_and_rl"), "rl_step1", "unirg_cxr", tmp_path)
    assert training.num_train_epochs == 2
    *_, training = parsed(read_ablation("loss_grpo"), "rl_step1", "unirg_cxr", tmp_path)
    assert training.loss_type == "grpo"
    _, reward, *_ = parsed(read_ablation("reward_negative_radcliq_v1"), "rl_step1", "unirg_cxr", tmp_path)
    assert {name: weight for name, weight in reward.metric_weights.items() if weight} == {"radcliq_v1": -1.0}


# What a reward can do to reports; the recipe stops a run for it.
OF_REPORTS = ("max_length_drift", "max_truncated", "max_prior_copies", "max_negation_flips", "max_heldout_drop")


@pytest.mark.parametrize("name", ["only_rl", *(name for name in names() if name.startswith("reward_"))])
def test_a_comparison_is_not_stopped_by_what_it_is_to_show(name: str, tmp_path: Path) -> None:
    *_, watched, _, _ = parsed(read_ablation(name), "rl_step1", "unirg_cxr", tmp_path)
    assert [getattr(watched, f"monitor_{limit}") for limit in OF_REPORTS] == [None] * len(OF_REPORTS)
    # Where there is nothing left to learn from, it still stops.
    assert None not in (watched.monitor_min_unique, watched.monitor_min_entropy, watched.monitor_max_zero_spread)


@pytest.mark.slow
def test_rl_from_the_base_model_runs_to_its_end(phantom_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    """An untrained model never ends its reports: above the limit on truncated ones from the first update on."""
    run = tmp_path / "run"
    shutil.copytree(tiny_base, run / "base")
    command = [sys.executable, "-m", "recipes.ablate", "run", "only_rl", "--recipe", "demo", "--run", str(run)]
    command += ["--data_dir", str(phantom_data), "--only_dataset", "phantom_prairie"]
    command += ["--", "--max_steps", "3", "--save_steps", "3", "--logging_steps", "1", "--max_completion_length", "32"]
    command += ["--updates_per_generation", "1", "--monitor_patience", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    log = json.loads((run / "ablations" / "only_rl" / "rl_step1" / "log_history.json").read_text())
    assert max(entry["completions/clipped_ratio"] for entry in log if "loss" in entry) > 0.5
    assert "| only_rl | " in (run / "ablations" / "table.md").read_text()


@pytest.mark.slow
def test_errors_over_step_2_with_the_judge_in_the_reward_and_without(
    phantom_data: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_base, run / "rl_step1" / "best")
    for name in ("error_awareness", "no_error_awareness"):
        command = [sys.executable, "-m", "recipes.ablate", "run", name, "--recipe", "demo", "--run", str(run)]
        command += ["--data_dir", str(phantom_data), "--only_dataset", "phantom_prairie"]
        command += ["--", "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--global_batch_size", "2"]
        command += ["--max_completion_length", "16", "--monitor_max_truncated", "1", "--learning_rate", "1e-2"]
        command += ["--monitor_max_length_drift", "9", "--", "--max_new_tokens", "24"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        selection = json.loads((run / "ablations" / name / "rl_step2" / "selection.json").read_text())
        rated = [selection["start"], *selection["checkpoints"]]
        assert [entry["checkpoint"] for entry in rated] == ["start", "checkpoint-1", "checkpoint-2"]
        assert all(entry["errors"]["low"] < entry["errors"]["mean"] for entry in rated)
        assert selection["judge"]["name"] == "chexprompt[offline-rules-judge]"
    text = (run / "ablations" / "table.md").read_text()
    assert "| no_error_awareness − error_awareness | " in text
    trajectory = text.partition("## errors a report on validation")[2]
    assert "| step | error_awareness | no_error_awareness |" in trajectory
    assert [line.split()[1] for line in trajectory.splitlines() if line.startswith("| ")] == ["step", "0", "1", "2"]


def test_data_sets_that_a_recipe_does_not_have_are_left_out_aloud(tmp_path: Path, capsys) -> None:
    content = stage_recipe(read_ablation("reward_bleu2"), "rl_step1", "demo", "m", tmp_path)
    demo = yaml.safe_load((REPOSITORY / "recipes/demo/rl_step1.yaml").read_text())
    assert content["datasets"] == demo["datasets"]
    assert "the recipe demo has no mimic" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no ablation 'nothing'; there are both_sft_and_rl, "):
        read_ablation("nothing")
    with pytest.raises(RecipeError, match=r"wrong\.yaml: unknown key\(s\) lerning_rate"):
        stage_recipe(Ablation("wrong", ("sft",), "base", {"lerning_rate": 1}), "sft", "demo", "m", tmp_path)
    with pytest.raises(RecipeError, match="make ablation NAME=only_sft"):
        start_of(read_ablation("both_sft_and_rl"), tmp_path, "unirg_cxr")
    with pytest.raises(RecipeError, match="make rl-step1"):
        start_of(read_ablation("no_error_awareness"), tmp_path, "unirg_cxr")
    with pytest.raises(RecipeError, match="nothing is evaluated"):
        table(tmp_path)


def test_normalized_parts_are_trls_normalize_then_sum() -> None:
    """Each part as a z-score within its study, then the weighted sum (GRPOTrainer, `multi_objective_aggregation`)."""
    weights = {"bertscore": 0.370, "sembscore": 0.253, "radgraph": 0.377}
    composite = CompositeReward(weights, load_metrics(list(weights), "offline"))
    candidates, references = grpo_batch(prompts=2, rollouts=4)
    rewards = asyncio.run(
        GrpoReward(composite, normalize_groups_of=4)(
            completions=candidates, reference=references, source=["phantom_x"] * 8
        )
    )
    parts = np.array(list(asyncio.run(composite.score(candidates, references, [""] * 8)).parts.values()), dtype=float)
    grouped = parts.reshape(3, 2, 4)
    scores = (grouped - grouped.mean(2, keepdims=True)) / (grouped.std(2, ddof=1, keepdims=True) + 1e-4)
    expected = np.tensordot(list(weights.values()), scores, axes=1).ravel()
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    assert np.ptp(expected) > 0


# ---- variants of the paper's recipe ----------------------------------------------------------------------------------

LORA = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "learning_rate"}
QLORA = LORA | {"load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "checkpoint_above_tokens"}
BY_TRANSFORMERS = {"use_vllm", "vllm_gpu_memory_utilization"}
WHERE = {"output_dir", "model_name_or_path"}


@pytest.mark.parametrize(
    ("variant", "of", "may_differ"),
    [
        ("sft_lora", "sft", LORA),
        ("rl_step1_lora", "rl_step1", LORA | {"vllm_gpu_memory_utilization"}),
        ("rl_step2_lora", "rl_step2", LORA | {"vllm_gpu_memory_utilization"}),
        ("sft_qlora", "sft", QLORA | {"per_device_train_batch_size"}),
        ("rl_step1_qlora", "rl_step1", QLORA | BY_TRANSFORMERS),
        ("rl_step2_qlora", "rl_step2", QLORA | BY_TRANSFORMERS),
        ("rl_step1_completions", "rl_step1", {"batch_counts", "save_steps"}),
        ("rl_step2_completions", "rl_step2", {"batch_counts", "save_steps"}),
        ("sft_no_priors", "sft", {"longitudinal"}),
        ("rl_step1_no_priors", "rl_step1", {"longitudinal"}),
        ("rl_step2_no_priors", "rl_step2", {"longitudinal"}),
        ("eval_no_priors", "eval", {"longitudinal", "also"}),
    ],
)
def test_a_variant_differs_from_the_recipe_by_what_its_name_says(variant: str, of: str, may_differ: set[str]) -> None:
    folder = REPOSITORY / "recipes" / "unirg_cxr"
    one, other = (read_yaml(folder / f"{name}.yaml") for name in (variant, of))
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert may_differ <= differing <= may_differ | WHERE


def test_a_variant_starts_from_its_own_stages() -> None:
    folder = REPOSITORY / "recipes" / "unirg_cxr"
    for variant in ("lora", "qlora", "no_priors"):
        step1, step2 = (read_yaml(folder / f"rl_step{n}_{variant}.yaml") for n in (1, 2))
        assert step1["model_name_or_path"] == f"outputs/unirg_cxr_{variant}/sft/final"
        assert step2["model_name_or_path"] == f"outputs/unirg_cxr_{variant}/rl_step1/best"


def test_every_key_of_the_papers_recipe_says_whose_choice_it_is() -> None:
    """A comment names the paper or says "our choice"; a section's own comment covers its keys."""
    for path in sorted((REPOSITORY / "recipes" / "unirg_cxr").glob("*.yaml")):
        covered = False
        for line in path.read_text().splitlines():
            if line.startswith("extends: "):
                continue
            if line.startswith("# ") or not line:
                covered = "our choice, all" in line
            elif "our choice, as all below" in line:
                covered = True
            elif not covered:
                assert "paper" in line or "our " in line, f"{path.name}: {line}"


# ---- what is handed to training and evaluation ------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`started(name, …)`: the commands that an ablation would run, none of which is run; stages before it are there."""
    for stage in ("sft/final", "rl_step1/best"):
        (tmp_path / "run" / stage).mkdir(parents=True)

    def commands(name: str, **given: object) -> list[list[str]]:
        seen: list[list[str]] = []
        monkeypatch.setattr(ablate, "call", lambda command: seen.append([*map(str, command)]))
        settings = {"recipe": "unirg_cxr", "variant": "", "data_dir": "data", "weights_dir": "", "only_dataset": ""}
        settings |= {"judge_base_url": "", "judge_model": "", "force": False, "options": [], "evaluation_options": []}
        settings |= dict.fromkeys(("processes", "gpus", "nodes", "parallel")) | {"run": tmp_path / "run"} | given
        ablate.run(read_ablation(name), argparse.Namespace(**settings), tmp_path / "run" / "ablations" / name)
        return seen

    return commands


def of(module: str, commands: list[list[str]]) -> list[str]:
    """Each command of this module, as one line."""
    return [" ".join(command) for command in commands if module in command]


def test_judge_and_weights_reach_training_selection_and_evaluation(started, monkeypatch) -> None:
    monkeypatch.setattr(ablate, "check_evaluation", lambda options, needs_judge: None)
    judge = {"judge_base_url": "http://127.0.0.1:9/v1", "judge_model": "some-model"}
    seen = started("without_iu", weights_dir="/big/weights", **judge)
    named = "--judge_base_url http://127.0.0.1:9/v1 --judge_model some-model"
    for command in (*of("recipes.grpo", seen), *of("recipes.select_checkpoint", seen), *of("recipes.evaluate", seen)):
        assert "--weights_dir /big/weights" in command
        assert named in command
    assert len(of("recipes.grpo", seen)) == 2
    (sft,) = of("recipes.sft", seen)  # which knows neither
    assert "--weights_dir" not in sft
    assert "--judge" not in sft


def test_a_judges_address_is_enough_to_evaluate(started) -> None:
    """Its model is in eval.yaml; so the first thing said is that no server answers, and nothing was trained."""
    for name in ("reward_bleu2", "no_error_awareness"):
        with pytest.raises(JudgeError, match=r"no judge answers at http://127\.0\.0\.1:9/v1"):
            started(name, judge_base_url="http://127.0.0.1:9/v1", evaluation_options=["--judge_max_retries", "0"])


def test_error_awareness_counts_the_errors_of_each_checkpoint_by_the_judge_of_step_2(started, monkeypatch) -> None:
    """Paper, Figure 2d; the run without the judge in its reward too."""
    monkeypatch.setattr(ablate, "check_evaluation", lambda options, needs_judge: None)
    step2 = yaml.safe_load((REPOSITORY / "recipes/unirg_cxr/rl_step2.yaml").read_text())
    judge = f"--judge_base_url {step2['judge_base_url']} --judge_model {step2['judge_model']}"
    for name in ("error_awareness", "no_error_awareness"):
        seen = started(name)
        (select,) = of("recipes.select_checkpoint", seen)
        assert select.endswith("--stage rl_step2 --count_errors true")
        assert judge in select
        assert judge in of("recipes.evaluate", seen)[0]


def test_an_ablation_is_evaluated_on_what_it_trains_on(started) -> None:
    (mimic,) = of("recipes.evaluate", started("reward_bleu2"))
    assert " --datasets mimic --models " in mimic
    (without_iu,) = of("recipes.evaluate", started("without_iu"))
    assert " --datasets mimic chexpert_plus rexgradient --zero_shot_datasets iu_xray --models " in without_iu
    evaluation, _ = parse_recipe(
        (EvaluationArguments, JudgeSettings), without_iu.partition("recipes.evaluate ")[2].split()
    )
    assert "iu_xray" not in evaluation.datasets  # whose training studies a baseline may learn from
    (no_priors,) = of("recipes.evaluate", started("no_priors"))
    assert "--longitudinal false" in no_priors
    (demo,) = of("recipes.evaluate", started("without_iu", recipe="demo"))
    assert "datasets" not in demo


def test_a_variant_is_trained_and_evaluated_from_its_own_yaml(started, tmp_path: Path) -> None:
    seen = started("no_priors", variant="lora")
    for stage in ("rl_step1", "rl_step2"):
        assert yaml.safe_load((tmp_path / f"run/ablations/no_priors/{stage}.yaml").read_text())["use_peft"] is True
    assert all("recipes/unirg_cxr/eval.yaml" in command for command in of("recipes.evaluate", seen))
    seen = started("reward_bleu2", variant="no_priors")
    assert all("recipes/unirg_cxr/eval_no_priors.yaml" in command for command in of("recipes.select_checkpoint", seen))
    with pytest.raises(RecipeError, match=r"VARIANT=completions .* has no sft; it has rl_step1_completions, "):
        started("only_sft", variant="completions")
    with pytest.raises(RecipeError, match=r"VARIANT=nothing .* it has no file at all"):
        started("reward_bleu2", variant="nothing")


def test_a_variant_without_the_stage_before_starts_from_the_recipes_own_run(tmp_path: Path) -> None:
    (tmp_path / "unirg_cxr" / "sft" / "final").mkdir(parents=True)
    found = start_of(read_ablation("reward_bleu2"), tmp_path / "unirg_cxr_completions", "unirg_cxr", "completions")
    assert found == str(tmp_path / "unirg_cxr" / "sft" / "final")
    base = start_of(read_ablation("only_rl"), tmp_path / "unirg_cxr", "unirg_cxr", weights_dir="/big/weights")
    assert base == "/big/weights/Qwen3-VL-8B-Instruct"
    with pytest.raises(RecipeError, match="make sft VARIANT=lora"):
        start_of(read_ablation("reward_bleu2"), tmp_path / "unirg_cxr_lora", "unirg_cxr", "lora")


def test_options_are_of_training_and_after_a_second_mark_of_evaluation() -> None:
    assert split_options(["run", "a"]) == [["run", "a"], [], []]
    assert split_options(["run", "--", "--seed", "2"]) == [["run"], ["--seed", "2"], []]
    assert split_options(["run", "--", "--", "--batch_size", "3"]) == [["run"], [], ["--batch_size", "3"]]


def test_make_hands_over_what_it_was_given() -> None:
    given = ["NAME=reward_bleu2", "VARIANT=lora", "WEIGHTS_DIR=/big", "JUDGE_URL=http://h/v1", "ARGS=--max_steps 3"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    for target, wanted in (
        ("ablation", ["--judge_base_url http://h/v1", " -- --max_steps 3 -- --batch_size 3"]),
        ("sft-grid", [" -- --max_steps 3 -- --batch_size 3"]),
    ):
        words = ["make", "-n", "-o", "setup", target, *given, "EVAL_ARGS=--batch_size 3"]
        made = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
        command = " ".join(made.stdout.split())
        for part in ("--run outputs/unirg_cxr_lora", "--variant lora", "--weights_dir /big", *wanted):
            assert part in command


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 12 patients."""
    return make_data(tmp_path_factory.mktemp("data") / "mimic", dataset="mimic")


def scored(folder: Path, studies: Path, wrong: int, sections: str = "available", **changed: str) -> None:
    """Score in `folder` reports that are the references', but for the first `wrong`, which deny everything."""
    material = make_studies(12, dataset="mimic", seed=len("test"))
    reports = {
        study["study_id"]: "Findings: The lungs are clear." if i < wrong else f"Findings: {study['findings']}"
        for i, study in enumerate(material)
    }
    predictions = write_predictions(folder / "predictions.json", material, reports)
    with open_scorers("offline", judge={"judge_base_url": "offline", "judge_cache_dir": None}) as scorers:
        score_file(predictions, scorers, folder, data=studies, sections=sections, resamples=200)
    if changed:
        result = json.loads((folder / "scores.json").read_text())
        result["made_by"]["scorers"] |= changed
        (folder / "scores.json").write_text(json.dumps(result))


def ablation_folder(run: Path, name: str, model: str | None = None) -> Path:
    return run / "ablations" / name / "eval" / "mimic" / (model or name)


def test_the_table_has_the_recipes_stages_every_ablation_that_has_run_and_differences(tmp_path: Path, studies) -> None:
    scored(tmp_path / "eval" / "mimic" / "rl_step2", studies, 0)
    scored(tmp_path / "eval" / "mimic" / "copy_prior", studies, 3)
    scored(ablation_folder(tmp_path, "error_awareness"), studies, 4)
    scored(ablation_folder(tmp_path, "no_error_awareness"), studies, 20)
    scored(ablation_folder(tmp_path, "no_error_awareness", "copy_prior"), studies, 9)
    scored(ablation_folder(tmp_path, "reward_bleu2"), studies, 5)
    lines = table(tmp_path).splitlines()
    assert lines[0] == "## mimic"
    assert lines[2] == "24 test studies of 12 patients that all models have."
    assert lines[4].startswith("| model | BLEU-2 | BERTScore [offline-hash] | SembScore [offline-rules] | RadGraph-F1 ")
    assert lines[4].endswith("| errors a report chexprompt [offline-rules-judge] |")
    models = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert models[1:5] == ["rl_step2", "error_awareness", "no_error_awareness", "reward_bleu2"]
    (row,) = [line for line in lines if line.startswith("| no_error_awareness − error_awareness | ")]
    cells = row.split(" | ")
    assert cells[1].startswith("-")  # BLEU-2 fell, beyond its interval, and by a paired test
    assert float(cells[1].partition("[")[2].partition(",")[2].partition("]")[0]) < 0
    assert float(cells[1].partition(", p ")[2].removeprefix("< ").split()[0]) < 0.05
    assert "reward_bleu2 is not compared: reward_combined is not evaluated so on mimic." in lines
    assert "stand-ins: not to be put beside a published one" in "".join(lines)


@pytest.mark.parametrize(("trained_on", "compared"), [("phantom_summit", True), ("mimic", False)])
def test_the_recipes_own_stage_stands_for_a_comparison_on_the_same_data(
    tmp_path: Path, studies, trained_on: str, compared: bool
) -> None:
    for folder, datasets in ((tmp_path, "phantom_summit"), (tmp_path / "ablations/no_error_awareness", trained_on)):
        (folder / "rl_step2").mkdir(parents=True)
        (folder / "rl_step2/result.json").write_text(json.dumps({"settings": {"datasets": [datasets]}}))
    scored(tmp_path / "eval" / "mimic" / "rl_step2", studies, 0)
    scored(ablation_folder(tmp_path, "no_error_awareness"), studies, 6)
    text = table(tmp_path)
    assert ("| no_error_awareness − rl_step2 | " in text) == compared
    assert ("no_error_awareness is not compared: error_awareness" in text) != compared


def test_the_table_is_over_the_studies_that_all_have_and_shows_no_inverse_that_says_nothing(
    tmp_path: Path, studies
) -> None:
    """1/RadCliQ-v1 jumps where mean RadCliQ nears zero: 102.3 here, −14.9 there."""
    folders = [tmp_path / "eval" / "mimic" / "rl_step2", ablation_folder(tmp_path, "no_error_awareness")]
    for i, folder in enumerate(folders):
        scored(folder, studies, 4)
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        for k, line in enumerate(lines):
            name = next(name for name in line["metrics"] if name.startswith("radcliq"))
            line["metrics"][name] = 0.01 + (-1) ** k + 0.1 * i
            line["metrics"]["bleu2"] = 0.9 if k == 0 else 0.2
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[i:]))
    (tmp_path / "rl_step2").mkdir()
    (tmp_path / "ablations/no_error_awareness/rl_step2").mkdir()
    for folder in (tmp_path, tmp_path / "ablations/no_error_awareness"):
        (folder / "rl_step2/result.json").write_text(json.dumps({"settings": {"datasets": ["mimic"]}}))
    lines = table(tmp_path).splitlines()
    assert (
        "23 test studies of 12 patients that all models have. Left out, because another model lacks them: 1 of"
        in lines[2]
    )
    header = lines[4].split(" | ")
    inverse = next(i for i, name in enumerate(header) if name.startswith("1/RadCliQ"))
    for model in ("rl_step2", "no_error_awareness", "no_error_awareness − rl_step2"):
        cells = next(line for line in lines if line.startswith(f"| {model} | ")).split(" | ")
        assert cells[inverse] == "–"
        assert cells[1].startswith("+0.000" if "−" in model else "0.200")


def test_scores_of_other_sections_stand_in_a_table_of_their_own(tmp_path: Path, studies) -> None:
    scored(ablation_folder(tmp_path, "error_awareness"), studies, 4)
    scored(ablation_folder(tmp_path, "no_error_awareness"), studies, 6, sections="findings_impression")
    text = table(tmp_path)
    assert "## mimic\n" in text
    assert "## mimic, findings_impression\n" in text
    assert "no_error_awareness is not compared: error_awareness is not evaluated so" in text


@pytest.mark.parametrize("changed", [{"metrics": {}}, {"judge": {"name": "another"}}])
def test_numbers_of_different_backends_are_not_put_together(tmp_path: Path, studies, changed) -> None:
    scored(tmp_path / "eval" / "mimic" / "rl_step2", studies, 0)
    scored(ablation_folder(tmp_path, "a"), studies, 1, **changed)
    with pytest.raises(RecipeError, match="different backends"):
        table(tmp_path)


def test_a_heading_keeps_the_mark_of_a_stand_in() -> None:
    assert heading_of("bleu2") == "BLEU-2"
    assert heading_of("1/radcliq_v1[offline]") == "1/RadCliQ-v1 [offline]"


def test_a_number_without_interval_is_shown_as_such() -> None:
    """1/mean where the mean's interval includes 0, as it may on the demo."""
    assert interval({"mean": 15.9, "low": None, "high": None}) == "15.900 [no interval]"
    assert interval({"mean": None, "low": None, "high": None}) == "–"
    assert interval({"mean": 1.0, "low": 0.5, "high": 2.0}) == "1.000 [0.500, 2.000]"


def test_an_unknown_ablation_at_the_command_line_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.ablate", "run", "nothing", "--run", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("error: no ablation 'nothing'")
    assert len(run.stderr.strip().splitlines()) == 1


# ---- the grid of SFT -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_grid_trains_each_setting_once_and_rates_all(phantom_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_base, run / "base")
    command = [sys.executable, "-m", "recipes.ablate", "grid", "--recipe", "demo", "--run", str(run)]
    command += ["--data_dir", str(phantom_data), "--only_dataset", "phantom_prairie"]
    command += ["--learning_rates", "1e-5", "2e-3", "--batch_sizes", "8", "16"]
    command += ["--", "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1"]
    first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = json.loads((run / "sft_grid" / "grid.json").read_text())
    settings = {(row["learning_rate"], row["global_batch_size"]) for row in rows}
    assert settings == {(rate, batch) for rate in (1e-5, 2e-3) for batch in (8, 16)}
    for row in rows:
        folder = run / "sft_grid" / f"lr{row['learning_rate']:g}-batch{row['global_batch_size']}" / "sft"
        result = json.loads((folder / "result.json").read_text())
        assert result["settings"]["learning_rate"] == row["learning_rate"]
        assert result["steps"] == 4
        assert (folder / "best").resolve() == (folder / row["checkpoint"]).resolve()
    rated = [row["radcliq_v1"]["mean"] for row in rows]
    assert rated == sorted(rated)
    assert len(set(rated)) > 1  # the settings did matter
    assert "| 0.002 | 16 | checkpoint-" in (run / "sft_grid" / "grid.md").read_text()
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished already (FORCE=1 trains it again)") == 4
