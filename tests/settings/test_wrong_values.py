"""Every key of every shipped recipe with values that cannot be: one line that names the key, status 2, nothing written."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import ModelConfig, SFTConfig

from foundation.errors import RecipeError, run_command
from foundation.governance import JudgeError
from foundation.recipe_files import read_yaml
from recipes import evaluate, grpo, sft
from recipes.grpo import ARGUMENTS
from rewards.chexprompt.settings import JudgeSettings
from settings.arguments import DataArguments, EvaluationArguments, StageArguments
from settings.parser import parse_recipe
from settings.values import CHOICES, EMPTY, RANGES, check_values

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = {
    "sft": (DataArguments, StageArguments, ModelConfig, SFTConfig),
    "rl": ARGUMENTS,
    "eval": (EvaluationArguments, JudgeSettings),
}
BASES = {"sft": "sft.yaml", "rl": "rl_step2.yaml", "eval": "eval.yaml"}


def shipped(kind: str) -> dict[str, Any]:
    """Each key of the kind's recipes, with a value that one of them has, preferably not null."""
    keys: dict[str, Any] = {}
    for path in sorted(REPOSITORY.glob(f"recipes/*/{kind}*.yaml")):
        for key, value in read_yaml(path).items():
            if keys.get(key) is None:
                keys[key] = value
    return keys


def wrong_values(key: str, good: Any) -> list[Any]:
    """Values of another type, NaN, empty, huge, and beyond the key's range."""
    wrong: list[Any] = [{"a": 1}]
    if not isinstance(good, list):
        wrong += [[1, 2], ["a"]]
    if isinstance(good, bool):
        wrong += ["perhaps", 2, -1, math.nan]
    elif isinstance(good, (int, float)) or key in RANGES:
        wrong += [math.nan, math.inf, -math.inf, "many", "", True, -(10**30)]
        bounds = RANGES.get(key) or pytest.fail(f"{key} has no range in settings/values.py")
        wrong += [
            bound for bound in (bounds.low - 1, bounds.high + 1) if math.isfinite(bound) and not bounds.holds(bound)
        ]
        # A learning rate may be as high as one likes: training that diverges stops at its step.
        wrong += [] if key == "learning_rate" else [10**30]
        wrong += [bound for bound in (0, -1) if not bounds.holds(bound)]
    elif isinstance(good, str):
        wrong += [7, math.nan, True] + ([] if key in EMPTY else ["", "  "]) + (["typo"] if key in CHOICES else [])
    elif isinstance(good, list):
        wrong += ["a text", 7, [{"a": 1}]] + ([[math.nan], [-1]] if isinstance(good[0], float) else [[""], [7]])
    return wrong


CASES = [(kind, key, good) for kind in KINDS for key, good in shipped(kind).items() if not key.startswith("judge_")]


@pytest.mark.parametrize(("kind", "key", "good"), CASES, ids=[f"{kind}-{key}" for kind, key, _ in CASES])
def test_wrong_values_of_every_key_are_refused_and_right_ones_are_not(kind, key, good):
    check_values({key: good}, KINDS[kind])
    if key in ("report_to", "lora_target_modules"):  # a text or a list, and of any length
        wrong = [{"a": 1}, 7, math.nan, [7]]
    else:
        wrong = wrong_values(key, good)
    for value in wrong:
        with pytest.raises(RecipeError) as caught:
            check_values({key: value}, KINDS[kind], "recipe.yaml")
        assert str(caught.value).startswith(f"recipe.yaml: {key} is "), value
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"judge_max_failure_rate": 2}, {"judge_concurrency": math.nan}, {"judge_base_url": 7}, {"judge_model": ["m"]}],
)
def test_the_judges_keys_are_checked_by_its_own_settings(wrong):
    with pytest.raises(JudgeError, match=next(iter(wrong))):
        JudgeSettings(**wrong)


END = {"sft": (sft.main, "sft.yaml"), "rl": (grpo.main, "rl_step1.yaml"), "eval": (evaluate.main, "eval.yaml")}


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("sft", ["--learning_rate", "nan"], "learning_rate is nan; it must be a finite number"),
        ("sft", ["--learning_rate", "-1"], "learning_rate is -1.0; it must be at least 0"),
        ("sft", ["--seed", "-1"], "seed is -1; it must be at least 0"),
        ("sft", ["--output_dir", ""], "output_dir is ''; it must be a text that is not empty"),
        ("sft", ["--max_steps", "1e3"], "max_steps"),
        ("rl", ["--num_generations", "1"], "num_generations is 1; it must be at least 2"),
        ("rl", ["--temperature", "0"], "temperature is 0.0; rollouts must differ"),
        ("rl", ["--weight_radgraph", "inf"], "weight_radgraph is inf"),
        ("eval", ["--batch_size", "0"], "batch_size is 0; it must be at least 1"),
        ("eval", ["--sections", "all"], "sections is 'all'; it must be one of available"),
        ("eval", ["--run", ""], "run is ''"),
    ],
)
def test_a_command_ends_with_one_line_and_status_2_and_writes_nothing(
    tmp_path, monkeypatch, capsys, kind, flags, message
):
    main, recipe = END[kind]
    out = [] if "--output_dir" in flags or "--run" in flags else ["--run" if kind == "eval" else "--output_dir", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [kind, "--config", str(REPOSITORY / "recipes/demo" / recipe), *out, *flags])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_any_key_ends_otherwise_than_with_one_line(tmp_path, kind):
    base = yaml.safe_load((REPOSITORY / "recipes/demo" / BASES[kind]).read_text())
    path = tmp_path / "recipe.yaml"
    for key in shipped(kind):
        for value in (
            None,
            -1,
            0,
            1,
            0.5,
            math.nan,
            math.inf,
            10**30,
            "",
            "typo",
            True,
            [],
            ["a"],
            [-1.0],
            {},
            {"a": 1},
        ):
            path.write_text(yaml.safe_dump({**base, key: value}))
            try:
                parse_recipe(KINDS[kind], ["--config", str(path), *(["--run", "x"] if kind == "eval" else [])])
            except RecipeError as error:
                told = str(error)
            else:
                told = ""
            assert "\n" not in told, (key, value)
