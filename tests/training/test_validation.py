"""Checkpoints rated while training: scores in the log, the best and the newest kept, nothing rated twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rl_runs import SMALL, train_by_yaml

from evaluation import generate
from evaluation.predictions import studies_of_data
from foundation.errors import RecipeError
from model.engines import GenerationSettings, make_writer
from recipes import grpo, select_checkpoint
from training.validation import KEY, RateCheckpoints

VALIDATED = {
    **SMALL,
    "max_steps": 3,
    "save_steps": 1,
    "updates_per_generation": 1,
    "share_prompts": "false",
    "keep_best": 1,
    "keep_optimizer_states": 1,
    "validation_studies": 5,
    "validation_batch_size": 2,
    "score_cache_dir": "null",
    "rollouts_logged": 0,
}


def train(out: Path, base: Path, data: Path, **settings: object) -> None:
    train_by_yaml(out, base, data, {**VALIDATED, **settings})


def select(run: Path, data: Path) -> dict:
    recipe = run / "eval.yaml"
    recipe.write_text(
        "datasets: [phantom_prairie]\nvalidation_studies: 5\nbatch_size: 2\nmax_new_tokens: 16\nreward_backend: offline\n"
    )
    words = ["select", "--config", str(recipe), "--run", str(run), "--data_dir", str(data), "--stage", "rl_step1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        select_checkpoint.main()
    return json.loads((run / "rl_step1" / "selection.json").read_text())


def records(stage: Path) -> list[dict]:
    return json.loads((stage / "selection" / "validation.json").read_text())["checkpoints"]


def curve(stage: Path) -> dict[int, float]:
    history = json.loads((stage / "log_history.json").read_text())
    return {entry["step"]: entry[KEY] for entry in history if KEY in entry}


@pytest.fixture(scope="module")
def stage(tiny_base: Path, phantom_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage of three updates, each saved and rated. Read-only but for what `make select` writes."""
    out = tmp_path_factory.mktemp("run") / "rl_step1"
    train(out, tiny_base, phantom_data)
    return out


def test_each_checkpoint_is_rated_and_the_best_and_the_newest_stay(stage):
    rated = records(stage)
    assert [record["step"] for record in rated] == [1, 2, 3]
    means = {record["step"]: record["radcliq_v1"]["mean"] for record in rated}
    assert curve(stage) == means
    # The best is chosen among those that were there when it was saved: a later one replaces it if it is better.
    best = min(means, key=means.get)
    assert {path.name for path in stage.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-3"}
    assert not list(stage.glob(".removed-*"))
    assert not list(stage.glob("checkpoint-*/optimizer*"))  # nothing resumes from a finished stage


def test_reports_are_those_of_the_saved_model(stage, phantom_data):
    settings = GenerationSettings(max_new_tokens=16, engine="transformers")
    studies = studies_of_data(phantom_data / "phantom_prairie", "validation")[:5]
    written = json.loads((stage / "selection/checkpoint-3/phantom_prairie/predictions.json").read_text())
    write = make_writer(str(stage / "checkpoint-3"), settings)
    reports = [report for study in studies for report, _ in write([study])]
    assert [written[study["study_id"]]["model_prediction"] for study in studies] == reports


def test_select_confirms_without_generating(stage, phantom_data, monkeypatch):
    monkeypatch.setattr(generate, "load_engine", lambda *_: pytest.fail("generated again"))
    chosen = select(stage.parent, phantom_data)
    assert [result["checkpoint"] for result in chosen["checkpoints"]] == [
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    ]
    means = {record["checkpoint"]: record["radcliq_v1"] for record in records(stage)}
    assert {result["checkpoint"]: result["radcliq_v1"] for result in chosen["checkpoints"]} == means
    assert chosen["best"] == min(means, key=lambda name: means[name]["mean"])
    assert (stage / "best" / "config.json").is_file()


def test_a_run_that_goes_on_rates_what_was_not_and_forgets_nothing(tiny_base, phantom_data, tmp_path, monkeypatch):
    out, wrote = tmp_path / "rl_step1", []
    write = RateCheckpoints._write
    monkeypatch.setattr(
        RateCheckpoints, "_write", lambda self, data: wrote.append(self.trainer.state.global_step) or write(self, data)
    )
    with monkeypatch.context() as killed:  # before the stage was finished
        killed.setattr(grpo, "trim_checkpoint", lambda checkpoint: None)
        train(out, tiny_base, phantom_data, max_steps=2, keep_best=2)
    assert wrote == [1, 2]
    first = records(out)
    # As a kill after checkpoint-2 was saved and before it was rated leaves it.
    path = out / "selection" / "validation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "checkpoints": first[:1]}))
    (out / "result.json").unlink()
    wrote.clear()
    train(out, tiny_base, phantom_data, max_steps=3, keep_best=2)
    assert wrote == [2, 3]
    assert {step: round(mean, 6) for step, mean in curve(out).items()} == {
        record["step"]: round(record["radcliq_v1"]["mean"], 6) for record in records(out)
    }
    assert [record["radcliq_v1"] for record in records(out)[:2]] == [record["radcliq_v1"] for record in first]
    assert len(curve(out)) == 3


def test_two_rules_that_remove_checkpoints_are_refused(tiny_base, phantom_data, tmp_path):
    with pytest.raises(RecipeError, match="save_total_limit"):
        train(tmp_path / "rl_step1", tiny_base, phantom_data, save_total_limit=2)
    with pytest.raises(RecipeError, match="keep_best is 0"):
        train(tmp_path / "rl_step1", tiny_base, phantom_data, keep_best=0)
