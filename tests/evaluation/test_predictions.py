"""Prediction files as they come: NaN tokens, missing, extra, repeated, null and empty predictions; sections; paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_files import make_studies, write_predictions

from evaluation.predictions import (
    PredictionFile,
    candidate_text,
    inside,
    pair,
    read_predictions,
    reference_text,
    rexrank_entry,
    studies_of_file,
)
from foundation.errors import EvaluationError


def test_nan_tokens_are_read_as_missing_sections(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"a": {"section_findings": NaN, "section_impression": "Clear.", "age": NaN, "context": NaN}}')
    (study,) = studies_of_file(read_predictions(path))
    assert (study["findings"], study["impression"], study["age"], study["indication"]) == (None, "Clear.", None, None)


def test_context_of_each_rexrank_source_is_read(tmp_path):
    path = tmp_path / "p.json"
    entries = {
        "50051329": {
            "context": "Age:50-60.Gender:M.Indication: Cough.Comparison: CT of May.",
            "subject_id": "10000032",
        },
        "patient64620_study1": {
            "context": "Age:72.0.Gender:F.Indication:nanComparison: None.",
            "age": 72.0,
            "race": "Asian",
        },
        "CXR2279_IM-0865": {"context": "Indication: Seizure. Comparison: None."},
    }
    path.write_text(
        json.dumps({k: {**v, "section_findings": "Clear.", "section_impression": None} for k, v in entries.items()})
    )
    mimic, chexpert, iu = studies_of_file(read_predictions(path))
    assert (mimic["patient_id"], mimic["sex"], mimic["age"], mimic["indication"]) == ("10000032", "M", 55.0, "Cough.")
    assert mimic["comparison"] == "CT of May."
    assert (chexpert["patient_id"], chexpert["sex"], chexpert["age"]) == ("patient64620", "F", 72.0)
    assert (chexpert["indication"], chexpert["comparison"], chexpert["race"]) == (None, None, "Asian")
    assert (iu["patient_id"], iu["indication"], iu["comparison"]) == ("CXR2279", "Seizure.", None)


def test_studies_of_one_patient_are_his_in_every_sources_files(tmp_path):
    entries = {
        "pGRD0007_aACC1_s1.2.3": {},
        "pGRD0007_aACC2_s1.2.4": {},
        "patient64620_study2": {},
        "CXR2279_IM-0865": {},
        "50051329": {"image_path": ["/p10/p10000032/s50051329/a.jpg"]},
        "50051330": {"subject_id": 10000032},
        "other-1": {"PatientID": "x7"},
        "other-2": {"patient_id": float("nan")},
    }
    (tmp_path / "p.json").write_text(json.dumps(entries))
    patients = [study["patient_id"] for study in studies_of_file(read_predictions(tmp_path / "p.json"))]
    assert patients == ["GRD0007", "GRD0007", "patient64620", "CXR2279", "10000032", "10000032", "x7", "other-2"]


def test_every_unusual_prediction_is_listed_and_none_is_dropped(tmp_path):
    studies = make_studies(4)
    ids = [study["study_id"] for study in studies]
    entries = {key: {"model_prediction": f"Report of {key}."} for key in ids[1:]}
    entries[ids[1]]["model_prediction"] = None
    entries[ids[2]]["model_prediction"] = ""
    entries[ids[3]]["model_prediction"] = "  \n"
    entries[ids[4]]["model_prediction"] = 7
    entries["unknown study"] = {"model_prediction": "A report of nobody."}
    text = json.dumps(entries)
    twice = json.dumps({ids[5]: {"model_prediction": "The later one."}})
    path = tmp_path / "p.json"
    path.write_text(text[:-1] + ", " + twice[1:])
    rows, problems = pair(studies, read_predictions(path), "available")
    assert problems.missing == [ids[0]]
    assert problems.null == [ids[1]]
    assert problems.empty == [ids[2], ids[3]]
    assert problems.not_text == [ids[4]]
    assert problems.extra == ["unknown study"]
    assert problems.duplicate == [ids[5]]
    assert [row["study_id"] for row in rows] == ids
    assert [row["candidate"] for row in rows][:5] == [""] * 5
    assert rows[5]["candidate"] == "The later one."


def test_nan_as_a_prediction_is_null(tmp_path):
    studies = make_studies(2)
    ids = [study["study_id"] for study in studies]
    (tmp_path / "p.json").write_text(
        json.dumps({key: {"model_prediction": float("nan") if key == ids[0] else "x"} for key in ids})
    )
    assert pair(studies, read_predictions(tmp_path / "p.json"), "available")[1].null == [ids[0]]


def test_moved_rows_still_meet_their_own_study(tmp_path):
    studies = make_studies(10)
    path = write_predictions(tmp_path / "p.json", studies)
    entries = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(entries.items(), reverse=True))))
    rows, problems = pair(studies, read_predictions(path), "findings_impression")
    assert not any(problems.counts().values())
    for row in rows:
        assert row["candidate"] == row["reference"]


def test_keys_of_another_data_set_are_one_clear_error(tmp_path):
    path = write_predictions(tmp_path / "p.json", make_studies(3, split="train"))
    with pytest.raises(EvaluationError, match=r"no prediction for any of the 6 studies: its keys \(train000_1"):
        pair(make_studies(3), read_predictions(path), "available")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "keyed by study"),
        ("{}", "keyed by study"),
        ('{"a": 3}', "study a is not an object"),
    ],
)
def test_a_file_that_is_no_prediction_file(tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(EvaluationError, match=message):
        read_predictions(tmp_path / "p.json")


def test_absent_file():
    with pytest.raises(EvaluationError, match="no prediction file nowhere"):
        read_predictions("nowhere/p.json")


def test_reference_forms():
    both = {"findings": "Clear.", "impression": "Normal."}
    assert reference_text(both, "available") == "Findings: Clear. Impression: Normal."
    only = {"findings": "Clear.", "impression": None}
    assert reference_text(only, "available") == "Findings: Clear."
    assert reference_text(only, "findings_impression") == "Findings: Clear. Impression: None"
    assert reference_text({"findings": "None.", "impression": "Normal."}, "findings") is None


def test_a_study_without_the_compared_section_is_listed(tmp_path):
    studies = make_studies(3)
    studies[0]["findings"] = None
    path = write_predictions(tmp_path / "p.json", studies)
    rows, problems = pair(studies, read_predictions(path), "findings")
    assert problems.no_reference == [studies[0]["study_id"]]
    assert len(rows) == len(studies) - 1


def test_a_candidate_without_findings_is_counted_where_findings_are_compared(tmp_path):
    studies = make_studies(2)
    reports = {study["study_id"]: "Findings: A." for study in studies}
    reports[studies[1]["study_id"]] = "Impression: Normal."
    file = read_predictions(write_predictions(tmp_path / "p.json", studies, reports))
    rows, problems = pair(studies, file, "findings")
    assert problems.no_findings == [studies[1]["study_id"]]
    assert [(row["candidate"], row["status"]) for row in rows[:2]] == [("A.", "ok"), ("", "no_findings")]
    assert pair(studies, file, "findings_impression")[1].no_findings == []


def test_findings_of_a_candidate():
    assert candidate_text("Findings: A b. Impression: C.", "findings") == "A b."
    assert candidate_text("FINDINGS : A b.", "findings") == "A b."
    assert candidate_text("A b. Impression: C.", "findings") == "A b."
    assert candidate_text("A b.", "findings") == "A b."
    assert candidate_text("Impression: C.", "findings") == ""
    assert candidate_text("FINDINGS AND IMPRESSION: A b.", "findings") == "A b."
    assert candidate_text("A. Other findings: none.", "findings") == "A. Other findings: none."
    assert candidate_text("Findings: A. Impression: C.", "available") == "Findings: A. Impression: C."


def test_paths_stay_inside_the_image_root(tmp_path):
    assert inside(tmp_path, "/p10/a.jpg") == tmp_path.resolve() / "p10/a.jpg"
    with pytest.raises(EvaluationError, match="leaves"):
        inside(tmp_path, "/../../etc/passwd")


def test_an_entry_has_rexranks_form():
    study = {**make_studies(1)[0], "comparison": "None."}
    entry = rexrank_entry(study, "Findings: x.")
    assert {"report", "section_findings", "section_impression", "context", "image_path", "key_image_path"} < set(entry)
    assert entry["report"].startswith("Findings: ")
    assert "Impression: " in entry["report"]
    assert entry["context"] == f"Indication: {study['indication']} Comparison: None."
    assert entry["model_prediction"] == "Findings: x."


@pytest.mark.parametrize(
    "report",
    [
        "Findings: Lungs clear. Impression: Normal.",
        "**Findings:** Lungs clear.\n\n**Impression:** Normal.",
        "### Findings\nLungs clear.\n\n### Impression\nNormal.",
        "FINDINGS: Lungs clear.\nIMPRESSION: Normal.",
    ],
)
def test_candidates_of_any_form_are_compared_in_one(report):
    assert candidate_text(report, "available", ["findings"]) == "Findings: Lungs clear."
    assert candidate_text(report, "available", ["impression"]) == "Impression: Normal."
    assert candidate_text(report, "available") == "Findings: Lungs clear. Impression: Normal."
    assert candidate_text(report, "findings") == "Lungs clear."
    whole = candidate_text(report, "findings_impression")
    assert not set(whole) & set("*#")
    assert " ".join(whole.split()).lower() == "findings: lungs clear. impression: normal."


def test_what_has_no_heading_is_compared_whole():
    for sections in ("available", "findings", "findings_impression"):
        assert (
            candidate_text("The lungs are clear. **No** effusion.", sections) == "The lungs are clear. **No** effusion."
        )


def test_the_same_findings_score_the_same_whoever_else_wrote_an_impression():
    """Ours are told which sections the reference has, other people's models write both."""
    studies = [{"study_id": "1", "patient_id": "p", "dataset": "d", "findings": "Lungs clear.", "impression": None}]
    candidates = []
    for text in ("Findings: Lungs clear.", "**Findings:** Lungs clear.\n**Impression:** No acute process."):
        file = PredictionFile(Path("x"), {"1": {"model_prediction": text}}, [], "")
        rows, _ = pair(studies, file, "available")
        candidates.append(rows[0]["candidate"])
    assert candidates == [rows[0]["reference"]] * 2
