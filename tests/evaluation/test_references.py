"""The form of references: raw as ReXrank scores them, or single-spaced; the word for a missing section; which may stand
beside published numbers."""

from __future__ import annotations

import json

import pytest
from evaluation_files import make_studies

from data_prep.sections import parse_report
from data_prep.sources.rexrank import recorded
from data_prep.study import ids_fingerprint, study_table, write_studies
from evaluation.predictions import (
    ReferenceForm,
    pair,
    read_predictions,
    reference_text,
    rexrank_entry,
    studies_of_data,
    studies_of_file,
)
from evaluation.published import caution, comparable
from evaluation.references import described, form_table, unlike_the_board
from foundation.errors import EvaluationError
from rewards.bleu import bleu2

RAW = "The lungs are clear.\nThere is no effusion."
SINGLE = ReferenceForm(text="single_spaced")


def test_a_report_from_mimics_text_gives_rexranks_reference():
    prepared = parse_report(
        f" FINAL REPORT\n FINDINGS: \n {RAW.replace(chr(10), chr(10) + ' ')}\n\n IMPRESSION: \n Normal.\n"
    )
    rexrank = {"findings": RAW, "impression": "Normal."}
    for sections in ("findings", "findings_impression"):
        assert reference_text(prepared, sections) == reference_text(rexrank, sections)
    candidate = "The lungs are clear. There is no effusion."
    assert bleu2(candidate, reference_text(prepared, "findings")) < 0.8
    assert bleu2(candidate, reference_text(prepared, "findings", SINGLE)) == pytest.approx(1)


def test_the_word_for_a_missing_section():
    study = {"findings": "Clear lungs.", "impression": None}
    assert reference_text(study, "findings_impression") == "Findings: Clear lungs. Impression: None"
    other = ReferenceForm(missing_section="None.")
    assert reference_text(study, "findings_impression", other) == "Findings: Clear lungs. Impression: None."
    # Where the file itself holds the word, the script prints it as it is.
    study["impression"] = "None."
    assert reference_text(study, "findings_impression") == "Findings: Clear lungs. Impression: None."
    assert reference_text({"findings": float("nan"), "impression": "Normal."}, "findings_impression") == (
        "Findings: None Impression: Normal."
    )


def test_references_of_a_rexrank_file_are_its_sections_to_the_byte(tmp_path):
    entry = {"section_findings": f" {RAW}\n", "section_impression": "1.  Normal.\n \n2. No change."}
    (tmp_path / "p.json").write_text(json.dumps({"a": entry}))
    (study,) = studies_of_file(read_predictions(tmp_path / "p.json"))
    assert reference_text(study, "findings") == entry["section_findings"]
    wanted = f"Findings: {entry['section_findings']} Impression: {entry['section_impression']}"
    assert reference_text(study, "findings_impression") == wanted


def test_references_of_the_real_files_are_their_sections(shared_data):
    file = read_predictions(shared_data / "iu_xray" / "ReXRank_IUXray_valid.json")
    for study in studies_of_file(file):
        entry = file.entries[study["study_id"]]
        assert reference_text(study, "findings") == entry["section_findings"]
        assert reference_text(study, "findings_impression") == entry["report"]


def prepared(tmp_path, drop=()):
    studies = make_studies(3)
    for study in studies:
        study["findings_raw"] = study["findings"].replace(". ", ".\n")
    table = study_table(studies)
    write_studies(table, tmp_path / "data" / "test.parquet")
    if drop:
        import pyarrow.parquet as pq

        pq.write_table(table.drop_columns(list(drop)), tmp_path / "data" / "test.parquet")
    return studies_of_data(tmp_path / "data", "test")


def test_prepared_studies_are_scored_against_their_raw_sections(tmp_path):
    studies = prepared(tmp_path)
    entries = {study["study_id"]: rexrank_entry(study, study["findings"]) for study in studies}
    (tmp_path / "p.json").write_text(json.dumps(entries))
    file = read_predictions(tmp_path / "p.json")
    rows, _ = pair(studies, file, "findings")
    assert [row["reference"] for row in rows] == [study["findings_raw"] for study in studies]
    assert [entry["section_findings"] for entry in entries.values()] == [study["findings_raw"] for study in studies]
    told = described(rows, "findings", ReferenceForm())
    broken = sum("\n" in study["findings_raw"] for study in studies)
    assert broken > 0
    assert [other["changed"] for other in told["others"]] == [0, broken, 0]
    assert told["others"][1]["bleu2"] == pytest.approx(1)
    assert told["others"][0]["bleu2"] < 1
    assert form_table(told)[1][2] == str(broken)
    again, _ = pair(studies, file, "findings", SINGLE)
    assert described(again, "findings", SINGLE)["sha256"] != told["sha256"]


def test_a_folder_of_an_earlier_version_says_how_to_get_raw_sections(tmp_path):
    studies = prepared(tmp_path, drop=("findings_raw", "impression_raw"))
    (tmp_path / "p.json").write_text(json.dumps({s["study_id"]: rexrank_entry(s, "x") for s in studies}))
    file = read_predictions(tmp_path / "p.json")
    with pytest.raises(EvaluationError, match="FORCE=1, or score with --reference_form single_spaced"):
        pair(studies, file, "findings")
    assert len(pair(studies, file, "findings", SINGLE)[0]) == len(studies)


@pytest.mark.parametrize(
    ("form", "sections", "reason"),
    [
        ({"text": "raw", "missing_section": "None"}, "findings_impression", ""),
        ({"text": "raw", "missing_section": "None."}, "findings", ""),
        ({"text": "raw", "missing_section": "None."}, "findings_impression", "writes None for a missing section"),
        ({"text": "single_spaced", "missing_section": "None"}, "findings", "line breaks"),
        (None, "findings", "do not say"),
    ],
)
def test_only_references_of_the_boards_form_stand_beside_it(form, sections, reason):
    found = unlike_the_board({"sections": sections, "reference_form": form})
    assert (reason in found) if reason else found == ""


@pytest.mark.parametrize("wrong", [{"text": "collapsed"}, {"missing_section": "nothing"}])
def test_an_unknown_form_is_one_line(wrong):
    with pytest.raises(EvaluationError, match="choose"):
        ReferenceForm(**wrong)


def test_prepared_from_a_rexrank_file_the_references_are_its_sections_to_the_byte(tmp_path):
    from data_prep.source import Options
    from data_prep.sources import rexrank
    from data_prep.study_tables import to_table

    entries = {
        f"5000000{n}": {
            "image_path": [f"/p10/p1000000{n}/s5000000{n}/a.jpg"],
            "key_image_path": f"/p10/p1000000{n}/s5000000{n}/a.jpg",
            "section_findings": f"{RAW}\n  {n} wires.  ",
            "section_impression": None if n else "1.  No change.\n2. Line in place.\n",
            "context": "Indication: Cough.",
        }
        for n in range(3)
    }
    file = tmp_path / "ReXRank_MIMICCXR_test.json"
    file.write_text(json.dumps(entries))
    found = rexrank.read(file, Options("rexrank", images=tmp_path))
    studies = found.studies.assign(
        image="images/a.jpg", prior_text=0, prior_study_id=None, prior_image=None, encounter=1
    )
    for study in to_table(studies, found.texts).to_pylist():
        entry = entries[study["study_id"]]
        assert reference_text(study, "findings") == entry["section_findings"]
        wanted = f"Findings: {entry['section_findings']} Impression: {entry['section_impression']}"
        assert reference_text(study, "findings_impression") == wanted


@pytest.mark.parametrize("sections", ["findings", "findings_impression"])
@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda text: text, True),
        (lambda text: text.replace("\n", " "), False),  # white space collapsed
        (lambda text: text.replace("clear", "cleer"), False),
        (lambda text: text + " ", False),
    ],
)
def test_published_rows_need_the_references_of_the_file_to_the_byte(sections, change, same):
    file = {"50000001": (RAW, "Normal."), "50000002": ("Clear.\nNo effusion.", float("nan"))}
    listed = recorded("mimic", file)
    shown = {key: (change(findings), impression) for key, (findings, impression) in file.items()}
    rows = []
    for key, (findings, impression) in shown.items():
        study = {"study_id": key, "findings": findings, "impression": impression}
        rows.append({**study, "reference": reference_text(study, sections), "candidate": "Clear."})
    made_by = {"scorers": {"backend": "real"}, "sections": sections, "test_file": listed, "longitudinal": False}
    made_by["reference_form"] = described(rows, sections, ReferenceForm())
    result = {"made_by": made_by, "datasets": ["mimic"], "studies": 2, "study_ids_sha256": ids_fingerprint(file)}
    found, reason = comparable(result)
    assert bool(found) is same
    assert same or "not, to the byte, those of ReXrank's test file" in reason
    del listed["references_sha256"]  # a card of an earlier version
    found, _ = comparable(result)
    assert found
    assert "not compared" in caution({**result, "studies": found[0]["studies"]}, found)
