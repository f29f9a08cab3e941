"""A film in, a report out: the text that `generate` writes for the same study, from the film as it came."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from material import write_dicom
from PIL import Image
from pydicom import dcmread

from data_prep.__main__ import main as data_prep
from data_prep.study import read_studies
from evaluation.__main__ import main
from evaluation.generate import Task, generate
from foundation.errors import EvaluationError
from model.engines import GenerationSettings
from model.films import FilmForm, form_of_data, write_form
from model.report_writer import FilmRefused, ReportWriter

SETTINGS = GenerationSettings(sections="findings_impression", max_new_tokens=12, engine="transformers")
FLAGS = ["--max_new_tokens", "12", "--engine", "transformers"]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital's table and DICOM films: two patients, the first with a prior; and what is prepared from them."""
    folder = tmp_path_factory.mktemp("hospital")
    rng = np.random.default_rng(3)
    lines = ["acc,mrn,file,taken,report,why,view"]
    for number, (patient, day) in enumerate([("p1", 1), ("p1", 2), ("p2", 1)]):
        steps = np.kron(rng.integers(300, 3000, (10, 8)), np.ones((30, 30))).astype(np.uint16)
        write_dicom(folder / f"source/s{number}.dcm", steps)
        lines.append(
            f"s{number},{patient},s{number}.dcm,2024-01-0{day},FINDINGS: Clear {number}. IMPRESSION: Normal.,Cough.,AP"
        )
    (folder / "source/studies.csv").write_text("\n".join(lines) + "\n")
    columns = "study_id: acc, patient_id: mrn, image: file, study_datetime: taken, indication: why, view: view"
    (folder / "m.yaml").write_text(f"table: studies.csv\ncolumns: {{{columns}, report: report}}\nshares: [0, 0, 1]\n")
    (folder / "unread.yaml").write_text(f"table: studies.csv\ncolumns: {{{columns}}}\n")
    command = ["custom", "--source", folder / "source", "--mapping", folder / "m.yaml", "--out", folder / "ours"]
    assert data_prep([*map(str, command), "--workers", "1", "--image-size", "64"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(tiny_base: Path, hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("trained") / "final"
    shutil.copytree(tiny_base, folder)
    write_form(folder, form_of_data(hospital / "ours"))
    return folder


@pytest.fixture(scope="module")
def writer(model: Path) -> ReportWriter:
    return ReportWriter(model, SETTINGS)


@pytest.fixture(scope="module")
def generated(model: Path, hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `generate` writes of the prepared folder, by study."""
    out = tmp_path_factory.mktemp("generated")
    generate(Task(str(model), hospital / "ours", "test", out, SETTINGS))
    return {k: e["model_prediction"] for k, e in json.loads((out / "predictions.json").read_text()).items()}


def test_the_text_is_that_of_generate_for_the_same_study(writer: ReportWriter, hospital: Path, generated: dict) -> None:
    with_prior = 0
    for study in read_studies(hospital / "ours", "test").to_pylist():
        prior = None
        if study["prior_study_id"]:
            prior = (hospital / f"source/{study['prior_study_id']}.dcm", "FINDINGS: Clear 0.\n\nIMPRESSION:\nNormal.")
            with_prior += 1
        result = writer.write(hospital / f"source/{study['study_id']}.dcm", "Cough.", prior=prior)
        assert result.report == generated[study["study_id"]]
        assert writer._write([{**study, "folder": str(hospital / "ours")}])[0][0] == result.report
    assert with_prior == 1


def test_what_the_engine_is_shown_are_the_prepared_films_bytes(writer: ReportWriter, hospital: Path) -> None:
    for study in read_studies(hospital / "ours", "test").to_pylist():
        prepared = (hospital / "ours" / study["image"]).read_bytes()
        assert writer.study(hospital / f"source/{study['study_id']}.dcm")[0]["image"] == prepared


def test_a_phantom_is_shown_as_it_was_drawn(tiny_base: Path, phantom_data: Path, tmp_path: Path) -> None:
    import shutil

    model = tmp_path / "final"
    shutil.copytree(tiny_base, model)
    form = form_of_data(phantom_data / "phantom_harbor")
    assert form == FilmForm("stretch", 96)
    write_form(model, form)
    study = read_studies(phantom_data / "phantom_harbor", "test").to_pylist()[0]
    shown = ReportWriter(model, SETTINGS).study(phantom_data / "phantom_harbor" / study["image"])[0]["image"]
    (tmp_path / "shown.png").write_bytes(shown)
    with (
        Image.open(tmp_path / "shown.png") as one,
        Image.open(phantom_data / "phantom_harbor" / study["image"]) as other,
    ):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def _dicom(folder: Path, **elements: str) -> Path:
    path = folder / "film.dcm"
    write_dicom(path, np.kron(np.arange(80).reshape(10, 8) * 30, np.ones((30, 30))).astype(np.uint16))
    data = dcmread(path)
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "DX", "ViewPosition": "LL"}, "a lateral or oblique view"),
        ({"Modality": "CT"}, "no X-ray film .modality CT"),
        ({"Modality": "DX", "BodyPartExamined": "HAND"}, "a film of another part of the body .hand"),
    ],
)
def test_what_a_header_says_is_no_frontal_chest_film_is_refused(
    writer: ReportWriter, tmp_path: Path, elements: dict, reason: str
) -> None:
    path = _dicom(tmp_path, **elements)
    with pytest.raises(FilmRefused, match=f"this is {reason}"):
        writer.write(path)
    result = writer.write(path, anyway=True)
    assert len(result.overridden) == 1


def test_a_chest_films_header_is_taken(writer: ReportWriter, tmp_path: Path) -> None:
    path = _dicom(tmp_path, Modality="DX", ViewPosition="PA", BodyPartExamined="PORT CHEST")
    assert writer.write(path).overridden == []


def test_photographs_and_empty_films_are_refused(writer: ReportWriter, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    with pytest.raises(FilmRefused, match="a colour picture"):
        writer.write(Image.fromarray(colour))
    with pytest.raises(FilmRefused, match="almost no contrast"):
        writer.write(Image.new("L", (300, 300), 90))
    grey = Image.fromarray(colour[:, :, 0])
    assert writer.write(grey).report == writer.write(grey.convert("RGB")).report  # grey in three channels is a film
    with pytest.raises(EvaluationError, match="no picture in a form"):
        writer.write(b"no picture", anyway=True)
    with pytest.raises(FilmRefused, match="almost no contrast"):  # the prior is looked at too
        writer.write(grey, prior=(Image.new("L", (300, 300), 90), "Normal."))
    with pytest.raises(EvaluationError, match="prior has no report"):
        writer.write(grey, prior=(grey, " "))


def test_one_film_on_the_command_line(model: Path, hospital: Path, tmp_path: Path, capsys, generated: dict) -> None:
    (tmp_path / "prior.txt").write_text("FINDINGS: Clear 0. IMPRESSION: Normal.")
    film = ["--image", str(hospital / "source/s1.dcm"), "--indication", "Cough."]
    prior = ["--prior_image", str(hospital / "source/s0.dcm"), "--prior_report", str(tmp_path / "prior.txt")]
    main(["write", "--model", str(model), *film, *prior, "--json", *FLAGS])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["report"] == generated["s1"]
    assert result["films"] == "stretch 64"
    assert len(result["model_sha256"]) == 64
    assert "not for diagnosis" in printed.err
    with pytest.raises(EvaluationError, match="prior_image and --prior_report, or neither"):
        main(["write", "--model", str(model), *film, *prior[:2]])


def test_a_table_is_written_with_its_priors_and_goes_on(
    model: Path, hospital: Path, tmp_path: Path, capsys, generated: dict
) -> None:
    table = ["write", "--model", str(model), "--source", str(hospital / "source"), *FLAGS, "--out"]
    out = tmp_path / "reports.jsonl"
    main([*table, str(out), "--mapping", str(hospital / "m.yaml")])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["study_id"]: line["report"] for line in lines} == generated
    out.write_text(out.read_text().splitlines()[0] + "\n" + out.read_text().splitlines()[1][:30])  # killed
    main([*table, str(out), "--mapping", str(hospital / "m.yaml")])
    assert "2 written, 0 refused, 1 there already" in capsys.readouterr().out
    with pytest.raises(EvaluationError, match="made with another max_new_tokens"):
        main([*table, str(out), "--mapping", str(hospital / "m.yaml"), "--max_new_tokens", "9"])
    main(
        [*table, str(tmp_path / "unread.jsonl"), "--mapping", str(hospital / "unread.yaml")]
    )  # no report column: no priors
    unread = {line["study_id"]: line["report"] for line in map(json.loads, (tmp_path / "unread.jsonl").open())}
    assert {key for key in unread if unread[key] == generated[key]} >= {"s0", "s2"}


def test_of_a_folder_each_file_is_a_study_or_a_reason(model: Path, hospital: Path, tmp_path: Path, capsys) -> None:
    main(
        [
            "write",
            "--model",
            str(model),
            "--folder",
            str(hospital / "source"),
            "--out",
            str(tmp_path / "r.jsonl"),
            *FLAGS,
        ]
    )
    lines = {line["study_id"]: line for line in map(json.loads, (tmp_path / "r.jsonl").open())}
    assert set(lines) == {"s0.dcm", "s1.dcm", "s2.dcm", "studies.csv"}
    assert lines["studies.csv"]["report"] is None
    assert "studies.csv" in lines["studies.csv"]["refused"]
    assert "3 written, 1 refused" in capsys.readouterr().out
