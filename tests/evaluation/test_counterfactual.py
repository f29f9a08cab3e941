"""Counterfactuals tell a model that looks at the film from one that does not, and one that copies its prior from one that reads."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from evaluation_files import make_data, write_predictions
from PIL import Image

from data_prep.study import read_studies, report_text
from evaluation import counterfactual
from evaluation.counterfactual_part import sentences, shares
from evaluation.counterfactual_results import read_results
from evaluation.run_folder import read_run
from evaluation.scorers import open_scorers
from evaluation.scoring import score_file
from evaluation.summary import summarise_run
from model.changed_studies import exchanged, mirrored_films, other_films, other_priors, without_prior
from rewards.conditions import CONDITIONS, NEGATIVE, POSITIVE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "phantom_small", train=2, test=16)


def grey(study: dict) -> int:
    """What a model that looks sees: the film's grey, which is another for each study of `make_data`."""
    image = study["image"]
    content = image if isinstance(image, bytes) else (Path(study["folder"]) / image).read_bytes()
    with Image.open(BytesIO(content)) as opened:
        return int(np.asarray(opened.convert("L")).mean())


def reports_by_film(data: Path) -> dict[int, str]:
    studies = read_studies(data, "test").to_pylist()
    return {grey({**s, "folder": str(data)}): report_text(s["findings"], s["impression"]) for s in studies}


def writers(data: Path) -> dict[str, object]:
    """A model that reads the film, one that writes the same of any, one that copies its prior."""
    by_film = reports_by_film(data)

    def blind(study: dict) -> str:
        return "Findings: The heart is enlarged. Impression: Cardiomegaly."

    return {
        "rl_step1": lambda study: by_film.get(grey(study), "Findings: The lungs are clear."),
        "base": blind,
        "sft": lambda study: study.get("prior_report") or blind(study),
    }


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run of the three, and what was measured of it."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    studies = [{**s, "folder": str(data)} for s in read_studies(data, "test").to_pylist()]
    models = writers(data)
    with open_scorers("offline") as scorers:
        for name, write in models.items():
            out = root / "eval" / "phantom_small" / name
            out.mkdir(parents=True)
            made_by = {"model": name, "model_sha256": name, "data_sha256": "x", "sections": "available"}
            (out / "generation.json").write_text(json.dumps({"made_by": {**made_by, "longitudinal": True}}))
            path = write_predictions(out / "predictions.json", studies, {s["study_id"]: write(s) for s in studies})
            score_file(path, scorers, out, data=data, resamples=100)
        with pytest.MonkeyPatch.context() as patch:
            # The models stand for checkpoints: what a writer of theirs gives.
            loaded = lambda model, settings: lambda batch: [(models[model](s), False) for s in batch]  # noqa: E731
            patch.setattr(counterfactual, "make_writer", loaded)
            counterfactual.measure(read_run(root), scorers, resamples=200)
    return root


def test_the_one_that_looks_is_told_from_the_one_that_does_not(run: Path) -> None:
    found = read_results(read_run(run))
    assert found["rl_step1"]["looks_at_film"]["low"] > 0.1
    assert found["base"]["looks_at_film"]["mean"] == 0
    assert found["base"]["changes"]["other_film"]["unchanged"]["mean"] == 1
    assert found["base"]["distinct_reports"] == 2  # of a study whose reference has findings alone, these are compared
    assert found["base"]["most_frequent_report"] > 20
    assert found["rl_step1"]["changes"]["no_prior"]["unchanged"]["mean"] == 1
    assert found["rl_step1"]["changes"]["mirrored"]["unchanged"]["mean"] == 1  # an even film has no sides


def test_the_one_that_copies_its_prior_is_told_from_the_one_that_reads(run: Path) -> None:
    found = read_results(read_run(run))
    assert found["sft"]["copies_prior"]["mean"] > 0.9
    assert found["rl_step1"]["copies_prior"]["mean"] == found["base"]["copies_prior"]["mean"] == 0
    assert found["sft"]["changes"]["other_film"]["unchanged"]["mean"] == 1
    # Time turned round, the current report is the prior: a copy of it meets the reference of neither film.
    assert found["rl_step1"]["changes"]["exchanged"]["studies"] == 16


def test_summary_and_page_tell_it_and_of_other_predictions_nothing(run: Path, data: Path) -> None:
    summary = summarise_run(run, resamples=100)
    assert set(summary["counterfactual"]) == {"rl_step1", "base", "sft"}
    assert set(summary["counterfactual"]["sft"]) == {"looks_at_film", "uses_prior", "copies_prior"}
    found = read_results(read_run(run))
    told = dict(sentence.split(" ", 1) for sentence in sentences(found))
    assert told["base"].startswith("does not show that it looks at the film")
    assert told["RL"].startswith("step 1 looks at the film")
    assert "is led by what a prior says" in told["SFT"]
    assert {row[0] for row in shares(found).rows} == {"RL step 1", "base", "SFT"}
    predictions = run / "eval" / "phantom_small" / "sft" / "predictions.json"
    before = predictions.read_text()
    predictions.write_text(before.replace("clear", "dark"))
    assert set(read_results(read_run(run))) == {"rl_step1", "base"}
    predictions.write_text(before)


def test_changes_are_what_they_say(phantom_data: Path) -> None:
    folder = phantom_data / "phantom_prairie"
    studies = [
        {**s, "folder": str(folder), "reference_report": report_text(s["findings"], s["impression"])}
        for s in read_studies(folder, "train").to_pylist()
    ]
    by_image = {s["image"]: s for s in studies}
    changed = other_films(studies)
    assert len(changed) == len(studies)
    for before, after in zip(studies, changed, strict=True):
        other = by_image[after["image"]]
        assert other["patient_id"] != before["patient_id"]
        assert other["view"] == before["view"]
        assert {**after, "image": before["image"]} == before
    mirrored = mirrored_films(studies[:1])[0]["image"]
    with Image.open(folder / studies[0]["image"]) as one, Image.open(BytesIO(mirrored)) as other:
        assert np.array_equal(np.asarray(one)[:, ::-1], np.asarray(other))
    longitudinal = [s for s in studies if s["prior_report"]]
    assert longitudinal
    for before, after in zip(longitudinal, exchanged(studies), strict=True):
        assert (after["image"], after["prior_image"]) == (before["prior_image"], before["image"])
        assert after["prior_report"] == before["reference_report"]
    assert all(s["prior_report"] is None and s["prior_image"] is None for s in without_prior(studies))
    for before, after in zip(longitudinal, other_priors(studies), strict=True):
        assert after["prior_image"] != before["prior_image"]
        assert after["image"] == before["image"]


def test_the_opposite_prior_says_the_opposite() -> None:
    with open_scorers("offline") as scorers:
        study = {"prior_image": "x.png", "prior_report": "Findings: Large left pleural effusion. No pneumothorax."}
        (changed,) = counterfactual.opposite_priors([study, {"prior_image": None}], scorers.labeler)
        labels = dict(zip(CONDITIONS, scorers.labeler.label([changed["prior_report"]])[0], strict=True))
    assert labels["Pleural Effusion"] == NEGATIVE
    assert labels["Pneumothorax"] == POSITIVE


def test_words_of_change_and_sides_that_turn_round() -> None:
    before = ["Worsened edema.", "Improved edema.", "Clear.", "Worsened edema."]
    after = ["Improved edema.", "Improved edema.", "Worsened edema.", "Clear."]
    turned = counterfactual._turned(before, after, counterfactual._direction)
    assert turned[[0, 1, 3]].tolist() == [1, 0, 0]
    assert np.isnan(turned[2])
    sides = counterfactual._turned(
        ["Left effusion.", "Left and right."], ["Right effusion.", "Left."], counterfactual._side
    )
    assert sides[0] == 1
    assert np.isnan(sides[1])
