"""`make check-data` of a folder that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.check import check_folder
from data_prep.study import StudyError


def test_a_folder_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no prepared data set yet \(make data DATASET=mimic SOURCE="):
        check_folder(tmp_path / "mimic")
    for name in ("iu_xray", "chexpert_plus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "card.json").write_text("{}")
    (tmp_path / "half").mkdir()
    with pytest.raises(StudyError, match=r"no such folder; .* has chexpert_plus, iu_xray$"):
        check_folder(tmp_path / "mimic")
