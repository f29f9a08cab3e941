"""The real IU X-ray sample, where it is present: every study accounted for, texts and key images as the sources have them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageChops, ImageStat

from data_prep.__main__ import main
from data_prep.check import check_folder
from data_prep.sources.iu_xray import image_name
from data_prep.splits import frame_of
from data_prep.study import SPLITS


@pytest.fixture(scope="module")
def prepared(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("iu") / "iu_xray"
    command = ["iu_xray", "--source", str(shared_data / "iu_xray"), "--out", str(out), "--workers", "2"]
    assert main([*command, "--image-mode", "longest"]) == 0  # the sample's own size, to be compared with it
    return out


@pytest.fixture(scope="module")
def studies(prepared: Path) -> pd.DataFrame:
    return pd.concat([frame_of(pq.read_table(prepared / f"{split}.parquet")) for split in SPLITS]).set_index("study_id")


def test_every_study_is_accounted_for(prepared: Path, studies: pd.DataFrame, shared_data: Path) -> None:
    splits = json.loads((shared_data / "iu_xray" / "splits.json").read_text())
    rejected = set(pq.read_table(prepared / "rejects.parquet").column("study_id").to_pylist())
    assert set(studies.index) | rejected == {*splits["train"], *splits["valid"]}
    assert not set(studies.index) & rejected
    assert len(studies) + len(rejected) == 2063 + 294
    assert set(studies.index[studies["split"] == "train"]) | rejected == set(splits["train"]) | rejected
    assert set(studies.index[studies["split"] == "validation"]) | rejected == set(splits["valid"]) | rejected
    assert json.loads((prepared / "card.json").read_text())["evaluation_split"] == "validation"
    assert "good" in check_folder(prepared)


def test_sections_are_the_xml_text(studies: pd.DataFrame, shared_data: Path) -> None:
    for study_id, row in studies.iterrows():
        root = ElementTree.parse(
            shared_data / "iu_xray" / "ecgen-radiology" / f"{row['patient_id'].removeprefix('CXR')}.xml"
        )
        for element in root.iter("AbstractText"):
            assert row[element.get("Label").lower()] == ((element.text or "").strip() or None), (
                study_id,
                element.get("Label"),
            )


def test_reports_of_validation_are_rexranks(studies: pd.DataFrame, shared_data: Path) -> None:
    rexrank = json.loads((shared_data / "iu_xray" / "ReXRank_IUXray_valid.json").read_text())
    validation = studies[studies["split"] == "validation"]
    assert len(validation) == 294
    for study_id, row in validation.iterrows():
        for name in ("findings", "impression"):
            assert row[name] == rexrank[study_id][f"section_{name}"]


def test_key_images_of_validation_are_rexranks(studies: pd.DataFrame, prepared: Path, shared_data: Path) -> None:
    """ReXrank's rule is the first frontal image. Its view lists are of another length than the image lists in some
    studies; there the projections file says which is frontal."""
    source = shared_data / "iu_xray"
    rexrank = json.loads((source / "ReXRank_IUXray_valid.json").read_text())
    projections = pd.read_csv(source / "indiana_projections.csv", dtype=str)
    by_uid = {
        uid: dict(zip(rows["filename"].map(image_name), rows["projection"], strict=True))
        for uid, rows in projections.groupby("uid")
    }
    file_of = dict(zip(projections["filename"].map(image_name), projections["filename"], strict=True))
    by_list = 0
    for study_id, row in studies[studies["split"] == "validation"].iterrows():
        uid = row["patient_id"].removeprefix("CXR")
        root = ElementTree.parse(source / "ecgen-radiology" / f"{uid}.xml")
        names = sorted(image_name(element.get("id")) for element in root.iter("parentImage"))
        expected = next(name for name in names if by_uid[uid].get(name) == "Frontal")
        views = rexrank[study_id]["frontal_lateral"]
        if len(views) == len(names):
            by_list += 1
            assert names[views.index("Frontal")] == expected, study_id
        with (
            Image.open(source / "images" / file_of[expected]) as original,
            Image.open(prepared / row["image"]) as image,
        ):
            difference = ImageChops.difference(original.convert("L"), image)
            assert ImageStat.Stat(difference).mean[0] < 2, study_id
    assert by_list > 270
