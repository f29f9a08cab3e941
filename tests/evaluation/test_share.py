"""A shared folder holds what others need to score it again, and nothing that a licence closes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_files import make_data, make_studies, write_predictions

from data_prep.study import read_studies
from evaluation.__main__ import main
from evaluation.baselines import write_baseline
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from foundation.errors import EvaluationError


def evaluated(root: Path, dataset: str) -> Path:
    """A run with one model and one baseline, scored on a data set of that name."""
    data = make_data(root / "data" / dataset, train=4, test=6, dataset=dataset)
    studies = read_studies(data, "test").to_pylist()
    out = root / "outputs" / "run" / "eval" / dataset
    reports = {s["study_id"]: f"Findings: Written by a model, {i}." for i, s in enumerate(studies)}
    write_predictions(out / "sft" / "predictions.json", studies, reports)
    (out / "sft" / "generation.json").write_text(
        '{"made_by": {"model": "/home/me/final", "model_sha256": "abc", "longitudinal": true}}'
    )
    write_baseline("copy_prior", data, "test", [data], out / "copy_prior")
    with open_scorers("offline") as scorers:
        for name in ("sft", "copy_prior"):
            score_file(out / name / "predictions.json", scorers, out / name, data=data, resamples=50)
    return root / "outputs" / "run"


def test_others_score_it_again_and_find_no_reference_in_it(tmp_path: Path) -> None:
    outputs = evaluated(tmp_path, "phantom_small")
    main(["share", "--outputs", str(outputs), "--out", str(tmp_path / "shared")])
    texts = {path: path.read_text() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    together = "\n".join(texts.values())
    for study in make_studies(6, dataset="phantom_small"):
        for name in ("findings", "indication", 'patient_id": "' + study["patient_id"]):
            assert study.get(name, name) not in together
    assert "copy_prior" not in together
    assert "/home/me" not in together
    manifest = json.loads((tmp_path / "shared" / "manifest.json").read_text())
    assert [row["model"] for row in manifest["shared"]] == ["sft"]
    predictions = tmp_path / "shared" / "eval" / "phantom_small" / "sft" / "predictions.json"
    before = json.loads((outputs / "eval" / "phantom_small" / "sft" / "scores.json").read_text())["metrics"]
    with open_scorers("offline") as scorers:
        again = score_file(
            predictions, scorers, tmp_path / "again", data=tmp_path / "data" / "phantom_small", resamples=50
        )
    assert {k: v["mean"] for k, v in again["metrics"].items()} == {k: v["mean"] for k, v in before.items()}
    with pytest.raises(EvaluationError, match="--force replaces it"):
        main(["share", "--outputs", str(outputs), "--out", str(tmp_path / "shared")])


def test_closed_data_are_refused_unless_the_user_says_so(tmp_path: Path) -> None:
    outputs = evaluated(tmp_path, "mimic")
    with pytest.raises(EvaluationError, match=r"of mimic is not shared: PhysioNet .*--i_may_share mimic"):
        main(["share", "--outputs", str(outputs), "--out", str(tmp_path / "shared")])
    assert not (tmp_path / "shared").exists()
    main(["share", "--outputs", str(outputs), "--out", str(tmp_path / "shared"), "--i_may_share", "mimic"])
    assert "PhysioNet" in (tmp_path / "shared" / "README.md").read_text()
