"""The start of a stage: rows are made when they are read, images are checked by one process and remembered."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from data_prep import prepared as data
from data_prep.prepared import CHECKED, check_images, load_studies
from data_prep.study import StudyError, read_studies
from model.prompts import build_prompt, prompt_images, study_report
from training.data import completion_dataset, rollout_dataset


@pytest.fixture
def folder(phantom_data: Path, tmp_path: Path) -> Path:
    """A prepared folder of its own, `phantom_prairie` in tmp_path."""
    # As it was prepared: another test's stage may have noted that its images were whole.
    checked = shutil.ignore_patterns(CHECKED)
    shutil.copytree(phantom_data / "phantom_prairie", tmp_path / "phantom_prairie", ignore=checked)
    return tmp_path / "phantom_prairie"


def test_studies_read_by_row_are_those_of_the_table(phantom_data):
    studies = load_studies(["phantom_prairie", "phantom_harbor"], phantom_data, "train", [1, 0.5], seed=3)
    whole = read_studies(phantom_data / "phantom_prairie", "train").to_pylist()
    assert len(studies) == 64 + 32
    assert studies.sources == {"phantom_prairie", "phantom_harbor"}
    assert list(studies)[5] == studies[5] == studies[5:7][0]
    assert studies[-1] == list(studies)[-1]
    assert studies[5] == {name: whole[5][name] for name in data.COLUMNS if name != "folder"} | {
        "folder": str(phantom_data / "phantom_prairie")
    }
    with pytest.raises(IndexError):
        studies[96]


def test_rows_of_both_trainers_are_prompt_images_and_report(phantom_data):
    studies = load_studies(["phantom_prairie"], phantom_data, "train")
    at = next(i for i, study in enumerate(studies) if study["prior_report"])
    study = studies[at]
    for made in (completion_dataset(studies, True, True), rollout_dataset(studies, True, True)):
        assert len(made) == 64
        row = made[at]
        assert row["prompt"] == build_prompt(study)
        assert [image.size for image in row["images"]] == [(96, 96), (96, 96)]
    assert row["image_paths"] == [str(Path(study["folder"]) / name) for name in prompt_images(study, True)]
    assert row["reference"] == study_report(study)
    assert row["prior_report"] == study["prior_report"]
    plain = completion_dataset(studies, False, False)[at]
    assert len(plain["images"]) == 1
    assert plain["completion"][0]["content"][0]["text"] == study_report(study)


def test_memory_does_not_grow_by_dictionaries(phantom_data):
    """Arrow's bytes a study, where dictionaries take some 15 kB."""
    studies = load_studies(["phantom_prairie"], phantom_data, "train", [200])
    before = pa.total_allocated_bytes()
    made = completion_dataset(studies, True, True)
    assert made[0]["images"]
    assert pa.total_allocated_bytes() - before < 1_000_000  # the table is not copied
    assert studies.table.nbytes / len(studies) < 2_000


def test_whole_images_are_not_read_again_until_the_folder_changes(folder, monkeypatch):
    studies = load_studies([folder.name], folder.parent, "train")
    read = []
    whole = data._is_whole
    monkeypatch.setattr(data, "_is_whole", lambda path: read.append(path) or whole(path))
    check_images(studies, True)
    assert len(set(read)) == len(read) >= 64  # each once, though a prior is another study's image
    read.clear()
    check_images(load_studies([folder.name], folder.parent, "train"), True)
    assert not read
    check_images(studies, False)  # other images are shown
    assert len(read) == 64
    check_images(studies, True)
    (folder / studies[3]["image"]).unlink()
    with pytest.raises(
        StudyError,
        match=rf"study {studies[3]['study_id']}: image .*{Path(studies[3]['image']).name} is missing; prepare the data again",
    ):
        check_images(studies, True)


@pytest.mark.parametrize("damage", ["cut", "half", "text", "empty"])
def test_an_image_that_is_not_whole_is_named(folder, damage):
    studies = load_studies([folder.name], folder.parent, "train")
    path = folder / studies[1]["image"]
    whole = path.read_bytes()
    content = {"cut": whole[:20], "half": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[damage]
    path.write_bytes(content)
    with pytest.raises(StudyError, match=f"{path} cannot be read as an image"):
        check_images(studies, True)
    assert not (folder / CHECKED).exists()


def test_a_folder_that_cannot_be_written_is_checked_each_time_and_says_so(folder, monkeypatch, capsys):
    def refuse(path, content):
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(data, "write_json", refuse)
    check_images(load_studies([folder.name], folder.parent, "train"), True)
    assert "Permission denied; each start checks" in capsys.readouterr().out


def test_an_image_that_goes_while_training_is_one_line(folder):
    studies = load_studies([folder.name], folder.parent, "train")
    rows = completion_dataset(studies, False, True)
    (folder / studies[0]["image"]).unlink()
    with pytest.raises(StudyError, match=rf"study {studies[0]['study_id']}: .* cannot be read"):
        rows[0]
