"""A folder of DICOM files and a table of reports, without a table of images: what the headers hold is read and said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from data_prep import card as cards
from data_prep.__main__ import main
from data_prep.splits import frame_of
from data_prep.study import SPLITS

Y, X = np.mgrid[0:72, 0:60]
BLOB = np.exp(-((X - 30) ** 2 + (Y - 36) ** 2) / 1100)
MAPPING = "dicom: films\ntable: reports.csv\ncolumns: {study_id: acc, findings: text}\nshares: [1, 0, 0]\n"


@pytest.fixture(autouse=True)
def no_histograms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the card's plots takes longer than all else here."""
    monkeypatch.setattr(cards, "write_plots", lambda *_: [])


def film(path: Path, accession: str | None, patient: str | None, view: str | None = "PA", **more: object) -> None:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"1.2.{abs(hash(path.name)) % 10**9}"
    for name, value in {
        "AccessionNumber": accession,
        "PatientID": patient,
        "ViewPosition": view,
        "Modality": "DX",
    }.items():
        if value is not None:
            setattr(file, name, value)
    for name, value in more.items():
        setattr(file, name, value)
    pixels = (500 + 2500 * BLOB).astype(np.uint16)
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel = 1
    file.PhotometricInterpretation = file.get("PhotometricInterpretation") or "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def hospital(root: Path) -> Path:
    films = root / "films"
    born = {"PatientSex": "F", "PatientBirthDate": "19600601"}
    film(films / "a/1.2.3", "A1", "P1", "LL", StudyDate="20200101", StudyTime="0930", **born)
    film(films / "a/1.2.4", "A1", "P1", StudyDate="20200101", StudyTime="093015.25", **born)
    film(
        films / "b/IM0.IMA",
        "A2",
        "P1",
        "",
        SeriesDescription="Tórax PA",
        StudyDate="20200301",
        TimezoneOffsetFromUTC="+0100",
        StudyTime="003000",
        PatientAge="059Y",
        SpecificCharacterSet="ISO_IR 100",
    )
    film(films / "b/IM1", "A3", "P2", "Zielaufnahme", PhotometricInterpretation="MONOCHROME1", BurnedInAnnotation="YES")
    film(films / "b/IM2", "A4", None)
    film(films / "b/IM3", "A5", "P3")
    film(films / "b/IM4", "A6", "P4", "AP")
    film(films / "ct", "A7", "P4", Modality="CT")
    (films / "notes.txt").write_text("no film")
    (films / "._IM4").write_bytes((films / "b/IM4").read_bytes())
    content = (films / "b/IM3").read_bytes()
    (films / "b/IM3").write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00US\xff\x7f"))
    rows = {"A1": "Clear.", "A2": "Effusion.", "A3": "Clear.", "A5": "Clear.", "A8": "No film."}
    (root / "reports.csv").write_text("acc,text\n" + "".join(f"{a},{t}\n" for a, t in rows.items()))
    (root / "m.yaml").write_text(MAPPING)
    return root


def prepare(root: Path, out: Path, *more: str) -> int:
    return main(
        ["custom", "--source", str(root), "--mapping", str(root / "m.yaml"), "--out", str(out), "--workers", "1", *more]
    )


def test_headers_give_study_patient_time_view_sex_and_age(tmp_path: Path) -> None:
    assert prepare(hospital(tmp_path / "s"), tmp_path / "o") == 0
    kept = pd.concat([frame_of(pq.read_table(tmp_path / "o" / f"{s}.parquet")) for s in SPLITS]).set_index("study_id")
    assert set(kept.index) == {"A1", "A2"}
    one, two = kept.loc["A1"], kept.loc["A2"]
    assert (one.patient_id, one.view, one.sex, one.age, one.findings) == ("P1", "PA", "F", 59.0, "Clear.")
    assert one.study_datetime == pd.Timestamp("2020-01-01 09:30:15")
    assert (two.view, two.age, two.prior_study_id) == ("PA", 59.0, "A1")
    assert two.study_datetime == pd.Timestamp("2020-02-29 23:30:00"), "in UTC"
    rejects = {r["study_id"]: r for r in pq.read_table(tmp_path / "o" / "rejects.parquet").to_pylist()}
    reasons = {study: reject["reason"] for study, reject in rejects.items()}
    assert reasons == {
        "A3": "view_unknown",
        "A4": "no_patient",
        "A6": "no_report",
        "A8": "no_image",
        **{study: reason for study, reason in reasons.items() if study in ("A5", "films/b/IM3")},
    }
    assert {"A5", "films/b/IM3"} & set(reasons), "the damaged header is said"
    card = json.loads((tmp_path / "o" / "card.json").read_text())
    assert card["unknown_words"] == {"view": {"Zielaufnahme": 1}}
    notes = " ".join(card["notes"])
    for said in (
        "patient_id from PatientID",
        "1 films are marked as having burnt-in",
        "1 CT",
        "1 MONOCHROME1",
        "by AccessionNumber",
    ):
        assert said in notes


def test_new_films_are_seen_and_an_unknown_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = hospital(tmp_path / "s")
    assert prepare(root, tmp_path / "o") == 0
    capsys.readouterr()
    assert prepare(root, tmp_path / "o") == 0
    assert "nothing to do" in capsys.readouterr().out
    film(root / "films/c", "A9", "P9")
    assert prepare(root, tmp_path / "o") == 2
    assert "other inputs" in capsys.readouterr().err
    (root / "m.yaml").write_text(MAPPING.replace("films", "../films"))
    assert prepare(root, tmp_path / "o2") == 2
    assert "not a folder below it" in capsys.readouterr().err


def test_accession_numbers_within_a_patient(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "s"
    for patient in ("P1", "P2"):
        film(root / "films" / patient, "1", patient)
    (root / "reports.csv").write_text("mrn,acc,text\nP1,1,Clear.\nP2,1,Effusion.\n")
    (root / "m.yaml").write_text(MAPPING)
    assert prepare(root, tmp_path / "o") == 2
    assert "study 1 has rows of two patients" in capsys.readouterr().err
    (root / "m.yaml").write_text(MAPPING.replace("study_id: acc", "study_id: [mrn, acc], patient_id: mrn"))
    assert prepare(root, tmp_path / "o") == 0
    train = pq.read_table(tmp_path / "o" / "train.parquet").to_pylist()
    assert {(r["study_id"], r["patient_id"], r["findings"]) for r in train} == {
        ("P1_1", "P1", "Clear."),
        ("P2_1", "P2", "Effusion."),
    }
