"""The study table and mixtures of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_prep.demographics import age_of, race
from data_prep.mixture import read_mixture
from data_prep.study import StudyError, read_studies, report_text, study_table, write_studies


def record(study: str, **changes: object) -> dict:
    row = {
        "study_id": study,
        "patient_id": f"p{study}",
        "dataset": "d",
        "split": "train",
        "image": f"images/{study}.jpg",
        "view": "AP",
        "findings": "Clear.",
        "encounter": 1,
    }
    return {**row, **changes}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    table = study_table([record("a"), record("b", impression="Normal.", sex="F", age=50)])
    write_studies(table, tmp_path / "train.parquet")
    assert read_studies(tmp_path, "train").equals(table)
    assert [p.name for p in tmp_path.iterdir()] == ["train.parquet"], "no temporary file stays"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"split": "dev"}, "split 'dev'"),
        ({"view": "lateral"}, "view 'lateral'"),
        ({"sex": "female"}, "sex 'female'"),
        ({"encounter": 0}, "encounter 0"),
        ({"findings": None}, "no impression either"),
        ({"findings": "", "impression": ""}, "no impression either"),
        ({"prior_study_id": "a"}, "itself"),
        ({"image": None}, "image"),
        ({"colour": "red"}, "unknown column"),
        ({"encounter": "first"}, "wrong type"),
        ({"study_id": "b"}, "study b appears twice"),
    ],
)
def test_each_rule_of_a_row(changes: dict, expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        study_table([record("b"), record("a", **changes)])


def test_an_empty_table_is_written_but_not_read_as_data(tmp_path: Path) -> None:
    write_studies(study_table([]), tmp_path / "test.parquet")
    with pytest.raises(StudyError, match="holds no study"):
        read_studies(tmp_path, "test")
    with pytest.raises(StudyError, match="missing"):
        read_studies(tmp_path, "train")
    with pytest.raises(StudyError, match="make data"):
        read_studies(tmp_path / "none", "train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(StudyError, match="not a readable Parquet"):
        read_studies(tmp_path, "train")


def test_report_text() -> None:
    assert report_text("A.", "B.") == "Findings: A. Impression: B."
    assert report_text("A.", None) == "Findings: A."
    assert report_text(None, "B.") == "Impression: B."


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for name, number in (("x", 10), ("y", 4)):
        rows = [record(f"{name}{n}", dataset=name) for n in range(number)]
        write_studies(study_table(rows), tmp_path / name / "train.parquet")
    return [tmp_path / "x", tmp_path / "y"]


def test_a_mixture_holds_every_study_once(folders: list[Path]) -> None:
    mixture = read_mixture(folders, "train")
    assert mixture.column("study_id").to_pylist() == [*(f"x{n}" for n in range(10)), *(f"y{n}" for n in range(4))]
    assert Counter(mixture.column("folder").to_pylist()) == {str(folders[0]): 10, str(folders[1]): 4}


def test_weights_of_a_mixture(folders: list[Path]) -> None:
    ids = Counter(read_mixture(folders, "train", [0.5, 2.5], seed=1).column("study_id").to_pylist())
    assert sum(n for s, n in ids.items() if s[0] == "x") == 5
    assert max(n for s, n in ids.items() if s[0] == "x") == 1, "a part is drawn without replacement"
    assert sorted(n for s, n in ids.items() if s[0] == "y") == [2, 2, 3, 3]
    again = read_mixture(folders, "train", [0.5, 2.5], seed=1)
    assert Counter(again.column("study_id").to_pylist()) == ids
    assert {s[0] for s in read_mixture(folders, "train", [1, 0]).column("study_id").to_pylist()} == {"x"}


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0]])
def test_bad_weights(folders: list[Path], weights: list) -> None:
    with pytest.raises(StudyError, match="weights"):
        read_mixture(folders, "train", weights)
    with pytest.raises(StudyError, match="at least one"):
        read_mixture([], "train")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("WHITE - RUSSIAN", "White"),
        ("BLACK/AFRICAN AMERICAN", "Black"),
        ("ASIAN - SOUTH EAST ASIAN", "Asian"),
        ("HISPANIC/LATINO - PUERTO RICAN", "Hispanic"),
        ("White, non-Hispanic", "White"),
        ("Native Hawaiian or Other Pacific Islander", "Other"),
        ("AMERICAN INDIAN/ALASKA NATIVE", "Other"),
        ("UNKNOWN", None),
        ("PATIENT DECLINED TO ANSWER", None),
        ("", None),
        (None, None),
    ],
)
def test_race(written: str | None, expected: str | None) -> None:
    assert race(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("045Y", 45),
        ("006M", 0.5),
        ("002D", 0.005),
        ("72.0", 72),
        ("50-60", 55),
        ("old", None),
        ("999Y", None),
        (None, None),
    ],
)
def test_age(written: str | None, expected: float | None) -> None:
    assert age_of(written) == expected
