"""One synthetic hospital from the first look to rows for training: DICOM of eight transfer syntaxes, a semicolon CSV in Latin 1,
Spanish headings and views, times with zones, numbers within patients, priors; each study's fate accounted for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from data_prep.__main__ import main
from data_prep.study import SPLITS, read_studies, report_text
from tests.data_prep.test_films import dicom, lossless

SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
)
SPANISH = """sections:
  headings: {indication: [INDICACIÓN], findings: [HALLAZGOS], impression: [IMPRESIÓN]}
values: {view: {Tórax AP encamado: AP}}
"""


def hospital(root: Path, studies: int) -> dict[tuple[str, str], str]:
    """Write it; (patient, visit) → `kept` or the reason for which it is rejected."""
    films = root / "placas"
    films.mkdir(parents=True)
    for number, syntax in enumerate(SYNTAXES):
        path = films / f"1.2.840.{number}"  # named by UID, without a suffix
        if syntax == JPEGLosslessSV1:
            lossless(path)
            (films / "plain").unlink()
        else:
            dicom(
                path,
                syntax=syntax
                if not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian
                else ExplicitVRLittleEndian,
            )
            if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
                file = dcmread(path)
                file.compress(syntax)
                file.save_as(path)
        assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    (films / "rota").write_bytes((films / "1.2.840.5").read_bytes()[:2000])
    fates, lines = {}, ["Historia;Visita;Placa;Informe;Proyección;Fecha;Sexo;Edad"]
    for number in range(studies):
        patient, visit = f"{number // 3:05d}", str(number % 3 + 1)  # numbers within a patient
        fate = {7: "no_report", 11: "view_unknown", 13: "no_frontal", 17: "image_missing", 19: "image_unreadable"}.get(
            number % 20, "kept"
        )
        file = {"image_missing": "placas/no", "image_unreadable": "placas/rota"}.get(
            fate, f"placas/1.2.840.{number % 8}"
        )
        view = {"view_unknown": "Parrilla", "no_frontal": "Perfil"}.get(
            fate, ("Tórax PA", "Tórax AP encamado")[number % 2]
        )
        text = f"INDICACIÓN: Tos.\\nHALLAZGOS: Opacidad número {number}; sin derrame.\\nIMPRESIÓN: Neumonía {number}."
        text = "N/A" if fate == "no_report" else text
        time = f"2020-{number % 3 + 1:02d}-0{number % 9 + 1}T10:{number % 60:02d}:00+0{number % 2 + 1}:00"
        lines.append(
            f'{patient};{visit};{file};"{text}";{view};{time};{("Mujer", "Hombre")[number % 2]};{20 + number % 70} años'
        )
        fates[patient, visit] = fate
    (root / "informes.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode("latin-1"))
    return fates


@pytest.mark.parametrize("studies", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_from_the_first_look_to_rows_for_training(tmp_path: Path, capsys: pytest.CaptureFixture, studies: int) -> None:
    root, out = tmp_path / "hospital", tmp_path / "out"
    fates = hospital(root, studies)
    assert main(["try", "--source", str(root), "--workers", "1"]) in (0, 2)
    said = capsys.readouterr().out
    proposal = said.split("\n\n")[1]
    place = Path(said.split("lies there (")[1].split(")")[0]).parent
    shutil.rmtree(place)
    for line in (
        "table: informes.csv",
        "study_id: [Historia, Visita]",
        "image: Placa",
        "report: Informe",
        "sex: Sexo",
        "age: Edad",
    ):
        assert line in proposal
    mapping = root / "mapping.yaml"
    mapping.write_text(f"{proposal}\n{SPANISH}", encoding="utf-8")
    arguments = ["custom", "--source", str(root), "--mapping", str(mapping), "--name", "nuestro", "--out", str(out)]
    assert main([*arguments, "--workers", "2" if studies > 100 else "1"]) == 0
    assert main(["check", str(out), "--images", str(root)]) == 0

    rejects = {r["study_id"]: r["reason"] for r in pq.read_table(out / "rejects.parquet").to_pylist()}
    kept = {row["study_id"]: row for split in SPLITS for row in read_studies(out, split).to_pylist()}
    fate_of = {**rejects, **dict.fromkeys(kept, "kept")}
    assert fate_of == {f"{patient}_{visit}": fate for (patient, visit), fate in fates.items()}
    priors = 0
    for number, ((patient, visit), fate) in enumerate(fates.items()):
        if fate != "kept":
            continue
        row = kept[f"{patient}_{visit}"]
        assert row["patient_id"] == patient
        assert (row["indication"], row["findings"]) == ("Tos.", f"Opacidad número {number}; sin derrame.")
        assert row["impression"] == f"Neumonía {number}."
        assert (row["view"], row["sex"], row["age"]) == (
            ("PA", "AP")[number % 2],
            ("F", "M")[number % 2],
            20 + number % 70,
        )
        earlier = [v for v in range(1, int(visit)) if fates[patient, str(v)] == "kept"]
        assert row["prior_study_id"] == (f"{patient}_{earlier[-1]}" if earlier else None)
        if earlier:
            prior = kept[row["prior_study_id"]]
            assert row["prior_report"] == report_text(prior["findings"], prior["impression"])
            priors += 1
    assert priors > studies / 4
    card = json.loads((out / "card.json").read_text())
    assert card["unknown_words"] == {"view": {"Parrilla": sum(fate == "view_unknown" for fate in fates.values())}}
    assert "cp1252" in " ".join(card["notes"])
