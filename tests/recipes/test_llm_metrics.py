"""Metrics of language models as keys: of the RL recipe (weights, own settings, context, faults) and of the evaluation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluation_files import make_data, make_studies, write_predictions
from llm_packages import Scripted, stand_in_packages
from rl_runs import grpo_run

from data_prep.study import read_studies, report_text
from evaluation.__main__ import run as evaluation
from evaluation.compare import compare
from evaluation.scorers import open_scorers
from evaluation.scores import Scores
from evaluation.scoring import score_file
from foundation.errors import EvaluationError, RecipeError, run_command
from foundation.governance import JudgeError
from recipes import evaluate, grpo
from recipes.grpo import build_composite, describe, judge_costs, llm_metric_answers, llm_metrics_of
from rewards.chexprompt import calls
from rewards.chexprompt.settings import JudgeSettings
from rewards.grpo_reward import GrpoReward
from rewards.llm_metrics import LLM_METRICS, settings_by_metric
from rewards.registry import LLM_METRIC_NAMES
from settings.arguments import EvaluationArguments, RewardArguments
from settings.parser import parse_recipe
from training.data import rollout_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
OFFLINE = {"judge_base_url": "offline", "judge_cache_dir": None}
GREEN = """[Clinically Significant Errors]:
(b) Missing a finding present in the reference: 1. edema

[Matched Findings]:
1. effusion
"""
KEYS = '{"green": {"judge_base_url": "offline", "judge_cache_dir": null}}'


@pytest.fixture(autouse=True)
def prompts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from stand_in_packages(monkeypatch)


def test_the_names_that_settings_know_are_the_metrics() -> None:
    assert tuple(LLM_METRICS) == LLM_METRIC_NAMES


# ---- the RL recipe ---------------------------------------------------------------------------------------------------


def test_weights_and_own_settings_come_from_yaml_and_from_flags(tmp_path: Path) -> None:
    recipe = (
        "weight_bertscore: 1.0\nweight_llm_metrics: {green: 0.5}\nllm_metric_settings:\n  green: {judge_timeout: 7}\n"
    )
    (tmp_path / "rl.yaml").write_text(recipe, encoding="utf-8")
    flags = ["--weight_bertscore", "1", "--weight_llm_metrics", '{"green": 0.5}']
    flags += ["--llm_metric_settings", '{"green": {"judge_timeout": 7}}']
    for arguments in (["--config", str(tmp_path / "rl.yaml")], flags):
        reward, judge = parse_recipe((RewardArguments, JudgeSettings), [*arguments, "--judge_model", "m"])
        assert reward.weight_llm_metrics == {"green": 0.5}
        (settings,) = llm_metrics_of(reward, judge).values()
        assert (settings.judge_timeout, settings.judge_model) == (7, "m")  # its own key, else the judge's


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weight_llm_metrics", '{"grey": 1}'], "weight_llm_metrics has grey; the metrics of language models are"),
        (["--weight_llm_metrics", '{"green": "much"}'], "weight_llm_metrics is "),
        (["--weight_llm_metrics", "7"], "weight_llm_metrics is '7'"),
        (["--weight_llm_metrics", '{"green": NaN}'], "weight_llm_metrics (green) is nan; it must be a finite number"),
        (["--weight_llm_metrics", '{"green": 1}'], "weights_total says 1"),
        (["--llm_metric_settings", KEYS], "llm_metric_settings has green, which is not asked for"),
        (["--llm_metric_settings", "[1]"], "llm_metric_settings is '[1]'; it must be judge_ keys by metric"),
        (["--llm_metric_settings", '{"green": 1}'], "it must be judge_ keys by metric"),
        (["--llm_metric_settings", '{"green": {"timeout": 1}}'], "llm_metric_settings, green: timeout is none of"),
        (["--llm_metric_settings", '{"green": {"judge_timeout": 0}}'], "green: judge_timeout is 0; it must be above 0"),
        (
            ["--llm_metric_settings", '{"green": {"judge_timeout": "x"}}'],
            "green: judge_timeout is 'x'; it must be a number",
        ),
    ],
)
def test_a_wrong_value_is_one_line_before_anything_is_loaded(tmp_path, monkeypatch, capsys, flags, message) -> None:
    if flags[0] == "--llm_metric_settings" and "not asked for" not in message:
        flags = ["--weight_llm_metrics", '{"green": 0.0}', *flags]
    monkeypatch.chdir(tmp_path)
    recipe = str(REPOSITORY / "recipes/demo/rl_step1.yaml")
    monkeypatch.setattr(sys, "argv", ["rl", "--config", recipe, "--output_dir", "out", "--weights_total", "1", *flags])
    with pytest.raises(SystemExit) as end:
        run_command(grpo.main)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def reward_of(**given) -> RewardArguments:
    return RewardArguments(reward_backend="offline", weight_bertscore=1.0, score_cache_dir=None, **given)


def test_the_composite_of_a_recipe_asks_with_age_and_indication() -> None:
    answer = {"reference_findings": [], "predicted_findings": [], "matched_findings": []}
    answer["errors"] = {"false_findings": [], "missing_findings": [], "attribute_errors": []}
    study = make_studies(1, 1)[0] | {"folder": "."}
    with Scripted(json.dumps(answer)) as endpoint, contextlib.ExitStack() as resources:
        reward = reward_of(weight_llm_metrics={"crimson": 0.25})
        composite = build_composite(reward, endpoint.settings(), {"iu_xray"}, resources)
        assert describe(composite).endswith(" + 0.25 × crimson[m]")
        row = rollout_dataset([study], False, False)._data.to_pylist()[0]
        columns = {name: [row[name]] * 2 for name in ("age", "indication")}
        rewards = asyncio.run(GrpoReward(composite)(["no edema", "no"], ["no edema"] * 2, ["iu_xray"] * 2, **columns))
        assert [reward is not None for reward in rewards] == [True, True]
        shown = endpoint.asked[0]["messages"][-1]["content"]
        assert f"age: {study['age']:g}" in shown
        assert f"indication: {study['indication']}" in shown
        (costs,) = judge_costs(composite)
        assert costs(None)["crimson/calls"] == 2


def test_a_source_that_may_not_be_sent_stops_the_recipe_before_a_model_is_loaded(monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    far = JudgeSettings(judge_base_url="https://llm.example.com/v1", judge_model="m", judge_cache_dir=None)
    with (
        contextlib.ExitStack() as resources,
        pytest.raises(JudgeError, match="reports of mimic are not sent"),
    ):
        build_composite(reward_of(weight_llm_metrics={"green": 1.0}), far, {"mimic"}, resources)


def test_a_stage_is_of_the_metrics_model_and_prompt_and_not_of_its_clients_pace() -> None:
    def answers(**keys) -> dict:
        return llm_metric_answers(
            settings_by_metric(["green"], {"green": {"judge_model": "m"} | keys}, JudgeSettings())
        )

    assert answers(judge_concurrency=3) == answers()
    assert answers(judge_temperature=0.5) != answers() != answers(judge_model="other")
    assert answers()["green_prompt"].startswith("green-radeval-2.2.1-")


def test_a_run_learns_from_it_and_a_failure_is_neutral(tmp_path: Path, tiny_base: Path, phantom_data: Path) -> None:
    def answers(index: int) -> str:
        return "?" if index % 4 == 3 else GREEN

    with Scripted(*map(answers, range(16))) as endpoint:
        own = {"judge_base_url": endpoint.settings().judge_base_url, "judge_model": "m", "judge_max_retries": 0}
        own |= {"judge_cache_dir": None, "judge_max_failure_rate": 1.0}
        run = grpo_run(
            tmp_path,
            tiny_base,
            phantom_data,
            max_steps=2,
            weight_llm_metrics='{"green": 0.5}',
            weights_total=1.5,
            llm_metric_settings=json.dumps({"green": own}),
        )
    scores = run.seen[0].scores
    green = scores.parts["green[m]"]
    failed = np.isnan(green)
    assert 0 < failed.sum() < len(green)
    assert set(green[~failed]) == {0.5}
    assert [total is None for total in scores.total] == failed.tolist()
    assert sum(scores.failures.values()) == failed.sum()
    assert run.log[0]["reward_parts/green[m]"] == pytest.approx(0.5)
    assert run.log[0]["reward_parts/judge_failed"] == pytest.approx(failed.mean())
    assert run.log[0]["green/calls"] > 0
    assert all(math.isfinite(loss) for loss in run.losses)


# ---- the evaluation --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small")


def predictions(data: Path, out: Path) -> Path:
    studies = read_studies(data, "test").to_pylist()
    reports = {s["study_id"]: report_text(s["findings"], s["impression"]) for s in studies}
    return write_predictions(out / "predictions.json", studies, reports)


def test_a_score_has_its_column_with_backend_and_fingerprint_and_counts_failures(data: Path, tmp_path: Path) -> None:
    results = {}
    for name, answers in (("whole", [GREEN]), ("part", [*["?"] * 3, GREEN])):
        with Scripted(*answers) as endpoint:
            settings = endpoint.settings(judge_max_retries=0, judge_concurrency=1)
            with open_scorers("offline", llm_metrics={"green": settings}) as scorers:
                path = predictions(data, tmp_path / name)
                results[name] = score_file(path, scorers, tmp_path / name, data=data, resamples=50)
                described = scorers.described()
    made = results["whole"]["made_by"]["scorers"]["metrics"]["green[m]"]
    assert (made["backend"], len(made["fingerprint"]), made["prompt"][:5]) == ("m", 64, "green")
    assert results["whole"]["metrics"]["green[m]"]["mean"] == 0.5
    assert results["whole"]["metric_failures"] == {}
    lines = [json.loads(line) for line in (tmp_path / "part/scores.jsonl").read_text().splitlines()]
    lost = [line["study_id"] for line in lines if line["metrics"]["green[m]"] is None]
    assert len(lost) >= 3  # equal pairs are asked once
    assert results["part"]["metric_failures"] == {"green[m]": {calls.BAD_ANSWER: len(lost)}}
    assert results["part"]["metrics"]["green[m]"]["mean"] == 0.5  # over the others
    assert lines[-1]["asked"]["green[m]"] == {"significant": 1, "insignificant": 0, "matched": 1}
    scores = {name: Scores.read(tmp_path / name / "scores.jsonl") for name in results}
    both = compare(scores, dict.fromkeys(scores, described), resamples=50)
    assert both["studies_of"]["green[m]"] == len(lines) - len(lost)


def test_the_command_and_the_recipe_score_with_it(data: Path, tmp_path: Path, capsys) -> None:
    path = predictions(data, tmp_path)
    words = [
        "score",
        "--predictions",
        str(path),
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--backend",
        "offline",
    ]
    evaluation([*words, "--resamples", "50", "--llm_metrics", "green", "--llm_metric_settings", KEYS])
    assert "green[offline-rules-judge]" in capsys.readouterr().out
    flags = ["--llm_metrics", "green", "--llm_metric_settings", KEYS, "--run", "x", "--reward_backend", "offline"]
    settings, judge = parse_recipe((EvaluationArguments, JudgeSettings), [*flags, "--judge_base_url", ""])
    with evaluate.scorers_of(settings, judge) as scorers:
        assert [metric.name for metric in scorers.llm_metrics.values()] == ["green[offline-rules-judge]"]
    for wrong in ({"llm_metrics": ["grey"]}, {"llm_metric_settings": "[1]"}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            EvaluationArguments(**wrong)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--llm_metrics", "grey"], "invalid choice: 'grey'"),
        (["--llm_metrics", "green"], "green: judge_model is not set"),
        (["--llm_metrics", "green", "--llm_metric_settings", '{"green": {"judge_timeout": 0}}'], "judge_timeout is 0"),
        (["--llm_metrics", "green", "--llm_metric_settings", '{"crimson": {}}'], "has crimson, which is not asked for"),
        (["--llm_metrics", "green", "--llm_metric_settings", "{"], "llm_metric_settings is '{'"),
    ],
)
def test_a_wrong_value_of_the_command_is_one_line(data: Path, tmp_path: Path, capsys, words, message) -> None:
    path = predictions(data, tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluation(
            ["score", "--predictions", str(path), "--out", str(tmp_path / "out"), "--backend", "offline", *words]
        )
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_budget_that_is_reached_stops_scoring_with_its_reason(data: Path, tmp_path: Path) -> None:
    with Scripted(GREEN) as endpoint:
        settings = endpoint.settings(judge_budget_calls=2, judge_concurrency=1)
        with open_scorers("offline", llm_metrics={"green": settings}) as scorers:
            path = predictions(data, tmp_path)
            with pytest.raises(EvaluationError, match=r"judge_budget_calls.*run the same command again to resume"):
                score_file(path, scorers, tmp_path, data=data, resamples=50)
