"""Every comparison and every variant of the paper's recipe parses, and differs from the recipe by what it says."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic_reports import grpo_batch

from recipes.ablate import (
    STAGE_ARGUMENTS,
    Ablation,
    heading_of,
    interval,
    names,
    read_ablation,
    stage_recipe,
    start_of,
    table,
)
from recipes.arguments import parse_recipe
from recipes.errors import RecipeError
from rewards.composite import CompositeReward
from rewards.grpo_reward import GrpoReward
from rewards.registry import load_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
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
WHERE = {"output_dir", "model_name_or_path"}


@pytest.mark.parametrize(
    ("variant", "of", "may_differ"),
    [
        ("sft_lora", "sft", LORA),
        ("rl_step1_lora", "rl_step1", LORA),
        ("rl_step2_lora", "rl_step2", LORA),
        ("rl_step1_completions", "rl_step1", {"batch_counts", "save_steps"}),
        ("rl_step2_completions", "rl_step2", {"batch_counts", "save_steps"}),
        ("sft_no_priors", "sft", {"longitudinal"}),
        ("rl_step1_no_priors", "rl_step1", {"longitudinal"}),
        ("rl_step2_no_priors", "rl_step2", {"longitudinal"}),
        ("eval_no_priors", "eval", {"longitudinal"}),
    ],
)
def test_a_variant_differs_from_the_recipe_by_what_its_name_says(variant: str, of: str, may_differ: set[str]) -> None:
    folder = REPOSITORY / "recipes" / "unirg_cxr"
    one, other = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in (variant, of))
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert may_differ <= differing <= may_differ | WHERE


def test_a_variant_starts_from_its_own_stages() -> None:
    folder = REPOSITORY / "recipes" / "unirg_cxr"
    for variant in ("lora", "no_priors"):
        step1, step2 = (yaml.safe_load((folder / f"rl_step{n}_{variant}.yaml").read_text()) for n in (1, 2))
        assert step1["model_name_or_path"] == f"outputs/unirg_cxr_{variant}/sft/final"
        assert step2["model_name_or_path"] == f"outputs/unirg_cxr_{variant}/rl_step1/best"


def test_every_key_of_the_papers_recipe_says_whose_choice_it_is() -> None:
    """A comment names the paper or says "our choice"; a section's own comment covers its keys."""
    plain = {"seed", "output_dir", "datasets", "reward_backend", "weights_dir", "weights_total", "use_vllm", "context"}
    for path in sorted((REPOSITORY / "recipes" / "unirg_cxr").glob("*.yaml")):
        covered = False
        for line in path.read_text().splitlines():
            if line.startswith("# ") or not line:
                covered = "our choice, all" in line
            elif "our choice, as all below" in line:
                covered = True
            elif not covered and line.split(":")[0] not in plain:
                assert "paper" in line or "our " in line, f"{path.name}: {line}"


# ---- the table -------------------------------------------------------------------------------------------------------


def scored(folder: Path, errors: float, backend: str = "offline-rules") -> None:
    folder.mkdir(parents=True)
    metrics = {
        "bertscore[offline-hash]": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "errors chexprompt[offline-rules-judge]": {"mean": errors, "low": errors - 0.1, "high": errors + 0.1},
        "radgraph[offline-rules]": {"mean": 0.25, "low": 0.2, "high": 0.3},
    }
    result = {"metrics": metrics, "made_by": {"scorers": {"metrics": {"radgraph": {"backend": backend}}}}}
    (folder / "scores.json").write_text(json.dumps(result))


def test_the_table_has_the_recipes_stages_and_every_ablation_that_has_run(tmp_path: Path) -> None:
    scored(tmp_path / "eval" / "mimic" / "rl_step2", 1.5)
    scored(tmp_path / "eval" / "mimic" / "copy_prior", 9.0)
    scored(tmp_path / "ablations" / "no_error_awareness" / "eval" / "mimic" / "no_error_awareness", 2.5)
    scored(tmp_path / "ablations" / "no_error_awareness" / "eval" / "mimic" / "copy_prior", 9.0)
    lines = table(tmp_path).splitlines()
    assert lines[0] == "## mimic"
    assert (
        lines[2]
        == "| model | BERTScore [offline-hash] | RadGraph-F1 [offline-rules] | errors a report chexprompt [offline-rules-judge] |"
    )
    assert lines[4].startswith("| rl_step2 | 0.500 [0.400, 0.600] | 0.250 [0.200, 0.300] | 1.500 ")
    assert lines[5].startswith("| no_error_awareness | ")
    assert len(lines) == 6


def test_numbers_of_different_backends_are_not_put_together(tmp_path: Path) -> None:
    scored(tmp_path / "eval" / "mimic" / "rl_step2", 1.5)
    scored(tmp_path / "ablations" / "a" / "eval" / "mimic" / "a", 2.5, backend="real")
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
