"""Which data and models an evaluation is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.study import study_table, write_studies
from foundation.errors import EvaluationError, RecipeError
from foundation.governance import JudgeError
from recipes.evaluate import available_split, resolve_models, scorers_of
from recipes.select_checkpoint import count_errors, open_judge, start_of
from rewards.chexprompt.judge import JudgeResult
from rewards.chexprompt.judgement import Judgement
from rewards.chexprompt.settings import JudgeSettings
from settings.arguments import EvaluationArguments
from settings.parser import parse_recipe

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(str(p) for p in (REPOSITORY / "recipes").glob("*/eval*.yaml")))
def test_every_shipped_evaluation_recipe_loads(path):
    evaluation, _ = parse_recipe((EvaluationArguments, JudgeSettings), ["--config", path])
    assert evaluation.datasets
    assert not set(evaluation.zero_shot_datasets) & set(evaluation.datasets)


def test_one_data_set_alone_replaces_those_of_the_recipe():
    evaluation = EvaluationArguments(datasets=["a", "b"], zero_shot_datasets=["c"], only_dataset="iu_xray")
    assert evaluation.datasets == ["iu_xray"]
    assert evaluation.zero_shot_datasets == []


def test_an_empty_test_split_gives_way_to_validation_aloud(tmp_path, capsys):
    write_studies(study_table([]), tmp_path / "test.parquet")
    assert available_split(tmp_path, "test", "validation") == "validation"
    assert "no test studies" in capsys.readouterr().out
    assert available_split(tmp_path, "validation", "validation") == "validation"


def test_the_last_trained_stage_is_the_default_model(tmp_path):
    with pytest.raises(RecipeError, match="no trained model"):
        resolve_models(tmp_path, [])
    (tmp_path / "sft" / "final").mkdir(parents=True)
    assert resolve_models(tmp_path, []) == {"sft": str(tmp_path / "sft" / "final")}
    (tmp_path / "rl_step1" / "best").mkdir(parents=True)
    assert resolve_models(tmp_path, []) == {"rl_step1": str(tmp_path / "rl_step1" / "best")}


def test_models_are_stages_or_named_paths(tmp_path):
    assert resolve_models(tmp_path, ["theirs=/models/theirs"]) == {"theirs": "/models/theirs"}
    with pytest.raises(RecipeError, match="none of"):
        resolve_models(tmp_path, ["unknown"])
    with pytest.raises(RecipeError, match="train that stage first"):
        resolve_models(tmp_path, ["rl_step2"])


# ---- errors over the checkpoints of a stage --------------------------------------------------------------------------


class JudgeThatFailsFor:
    """Two errors in each report but those of `texts`, for which it fails."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.failures, self.stopped = texts, {"timeout": len(texts)}, None

    async def judge(self, candidates, references, sources):
        two = Judgement(significant=(1, 0, 0, 0, 0, 0), insignificant=(1, 0, 0, 0, 0, 0))
        return [JudgeResult(None, "timeout") if text in self.texts else JudgeResult(two, None) for text in candidates]


def test_a_report_that_the_judge_failed_for_has_no_errors_counted_and_none_at_all_is_said():
    errors = count_errors(JudgeThatFailsFor("b"), ["a", "b"], ["r", "r"], ["mimic", "mimic"])
    np.testing.assert_array_equal(errors, [2, np.nan])
    with pytest.raises(JudgeError, match=r"failed for every report \(timeout × 1\); run the same command again"):
        count_errors(JudgeThatFailsFor("b"), ["b"], ["r"], ["mimic"])


def test_errors_need_a_judge_and_the_model_that_training_started_from(tmp_path):
    with pytest.raises(RecipeError, match="judge_base_url, or JUDGE_URL="):
        open_judge(JudgeSettings(judge_base_url=""), EvaluationArguments(datasets=["mimic"]))
    with pytest.raises(RecipeError, match="train the stage first"):
        start_of(tmp_path)
    (tmp_path / "settings.json").write_text('{"model_name_or_path": "outputs/demo/rl_step1/best"}')
    assert start_of(tmp_path) == Path("outputs/demo/rl_step1/best")


@pytest.mark.parametrize(
    ("change_labels", "judge_base_url", "by_judge"),
    [
        ("auto", "", False),
        ("auto", "offline", False),  # a stand-in, which reads no sentence
        ("auto", "http://127.0.0.1:9/v1", True),
        ("rules", "http://127.0.0.1:9/v1", False),
        ("judge", "http://127.0.0.1:9/v1", True),
    ],
)
def test_change_is_labelled_by_the_judge_where_there_is_one(change_labels, judge_base_url, by_judge):
    settings = EvaluationArguments(reward_backend="offline", change_labels=change_labels)
    judge = JudgeSettings(judge_base_url=judge_base_url, judge_model="m")
    with scorers_of(settings, judge) as scorers:
        assert scorers.temporal_by_judge == by_judge
        assert scorers.described()["temporal"]["backend"] == ("m" if by_judge else "offline-rules")


def test_change_labels_by_a_judge_that_is_not_there_are_refused():
    settings = EvaluationArguments(reward_backend="offline", change_labels="judge")
    with (
        pytest.raises(EvaluationError, match="need a language model"),
        scorers_of(settings, JudgeSettings(judge_base_url="")),
    ):
        pass
    with pytest.raises(RecipeError, match="change_labels is 'gpt'; choose one of auto, rules, judge"):
        EvaluationArguments(change_labels="gpt")
