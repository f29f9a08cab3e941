"""The guard that stops RL where reports no longer depend on the film."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rl_runs import SMALL, train_by_yaml

from data_prep.study import read_studies
from foundation.errors import RecipeError
from model.engines import GenerationSettings
from model.prompts import study_report
from rewards.registry import load_labeler
from training.film_guard import FILE, film_effect, guarded_studies
from training.validation import Greedy

GUARDED = {
    **SMALL,
    "save_steps": 1,
    "max_completion_length": 8,
    "updates_per_generation": 1,
    "share_prompts": "false",
    "keep_best": "null",
    "save_total_limit": 5,
    "score_cache_dir": "null",
    "rollouts_logged": 0,
}


def train(out: Path, base: Path, data: Path, **settings: object) -> None:
    train_by_yaml(out, base, data, {**GUARDED, **settings})


def test_a_run_whose_reports_do_not_depend_on_the_film_stops(tiny_base: Path, phantom_data: Path, tmp_path: Path):
    out = tmp_path / "rl_step1"
    limit = 0.5  # more than an untrained model's reports can fall by
    with pytest.raises(RecipeError, match=r"no longer depend on the film.*checkpoint-2 is saved"):
        train(out, tiny_base, phantom_data, monitor_min_film_effect=limit)
    stopped = json.loads((out / "stopped.json").read_text())
    assert (stopped["monitor"], stopped["step"], stopped["limit"]) == ("monitor_min_film_effect", 2, limit)
    saves = json.loads((out / FILE).read_text())["saves"]
    assert [record["step"] for record in saves] == [1, 2]
    assert (out / "checkpoint-2").is_dir()
    train(
        out, tiny_base, phantom_data, monitor_min_film_effect=-1, max_steps=3
    )  # it resumes from there, by another limit
    assert [record["step"] for record in json.loads((out / FILE).read_text())["saves"]] == [1, 2, 3]
    history = json.loads((out / "log_history.json").read_text())
    assert 3 in {entry["step"] for entry in history if "monitor/film_effect" in entry}


def test_a_limit_that_no_run_can_hold_is_refused(tiny_base: Path, phantom_data: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="monitor_min_film_effect"):
        train(tmp_path / "rl_step1", tiny_base, phantom_data, monitor_min_film_effect=2)


def test_each_study_is_written_with_its_film_and_another_patients(phantom_data: Path):
    folders = tuple(phantom_data / f"phantom_{name}" for name in ("harbor", "prairie"))
    studies = guarded_studies(Greedy(folders, "validation", GenerationSettings(), 4), 20)
    assert len({study["study_id"] for study in studies}) == len(studies) == 2 * 20
    assert {study["folder"] for study in studies[:20]} == {str(folders[0])}
    films = {row["image"]: row["patient_id"] for f in folders for row in read_studies(f, "validation").to_pylist()}
    for own, other in zip(studies[::2], studies[1::2], strict=True):
        assert films[own["image"]] == own["patient_id"] == other["patient_id"] != films[other["image"]]
        assert {**own, "image": "", "study_id": ""} == {**other, "image": "", "study_id": ""}


def test_what_counts_is_the_fall_against_the_right_report(phantom_data: Path):
    labeler = load_labeler("offline", Path("weights"))
    rows = read_studies(phantom_data / "phantom_harbor", "validation").to_pylist()
    right = [study_report(row) for row in rows]
    wrong = right[3:] + right[:3]
    assert film_effect(right, wrong, right, labeler)["effect"] > 0.2
    same = film_effect(right, right, right, labeler)
    assert same == {"effect": 0.0, "unchanged": 1.0}
    reworded = [f"As before. {text}" for text in right]  # another text that says the same
    assert film_effect(right, reworded, right, labeler) == {"effect": 0.0, "unchanged": 0.0}
