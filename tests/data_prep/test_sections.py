"""Free-text reports into sections."""

from __future__ import annotations

import pytest

from data_prep.sections import iterate_sections, parse_report, section_name

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  Cough and fever,
 evaluate for pneumonia.
 
 COMPARISON:  None.
 
 FINDINGS:
 
 The lungs are clear.  No
 effusion.
 
 IMPRESSION:
 
 1. No acute process.
"""  # noqa: W293


def test_the_four_sections_with_single_spaces() -> None:
    assert parse_report(REPORT) == {
        "indication": "Cough and fever, evaluate for pneumonia.",
        "comparison": "None.",
        "findings": "The lungs are clear. No effusion.",
        "impression": "1. No acute process.",
        "findings_raw": "The lungs are clear.  No\neffusion.",
        "impression_raw": "1. No acute process.",
    }


@pytest.mark.parametrize(
    ("header", "section"),
    [
        ("FINDINGS", "findings"),
        ("CHEST, PA AND LATERAL", "findings"),
        ("PORTABLE AP CHEST RADIOGRAPH", "findings"),
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("IMPRESSIOIN", "impressioin"),
        ("IMPRESSION ON WET READ", "impression"),
        ("IMPERSSION", "impression"),
        ("REASON FOR EXAM", "indication"),
        ("CLINICAL INDICATION", "indication"),
        ("CLINICAL HISTORY", "history"),
        ("COMPARISONS", "comparison"),
        ("TECHNIQUE", "technique"),
        ("NOTIFICATION", "notification"),
    ],
)
def test_header_synonyms(header: str, section: str) -> None:
    assert section_name(header) == section


def test_history_stands_in_for_an_absent_indication_only() -> None:
    assert parse_report(" HISTORY: Fall.\n FINDINGS: Clear.\n")["indication"] == "Fall."
    assert parse_report(" HISTORY: Fall.\n INDICATION: Pain.\n FINDINGS: Clear.\n")["indication"] == "Pain."


def test_the_last_section_of_a_name_counts_unless_empty() -> None:
    assert parse_report(" FINDINGS: First.\n IMPRESSION: A.\n FINDINGS: Second.\n")["findings"] == "Second."
    assert parse_report(" FINDINGS: First.\n FINDINGS:\n \n IMPRESSION: A.\n")["findings"] == "First."


def test_the_last_paragraph_counts_only_where_findings_and_impression_are_absent() -> None:
    text = " FINAL REPORT\n INDICATION: Cough.\n \n The lungs are clear.\n"
    assert parse_report(text) == {
        "indication": "Cough.",
        "comparison": None,
        "findings": "The lungs are clear.",
        "impression": None,
        "findings_raw": "The lungs are clear.",
        "impression_raw": None,
    }
    with_impression = parse_report(text + " \n IMPRESSION: Normal.\n")
    assert with_impression["findings"] is None
    assert with_impression["impression"] == "Normal."


def test_a_report_without_headers_is_its_text_after_the_title() -> None:
    assert (
        parse_report("PORTABLE CHEST\n\nHeart size is normal.\n\nLungs clear.")["findings"]
        == "Heart size is normal. Lungs clear."
    )


def test_a_report_with_nothing_seen_has_no_sections() -> None:
    assert set(parse_report(" INDICATION: Cough.\n FINDINGS:\n \n IMPRESSION:\n").values()) == {"Cough.", None}


def test_capitals_inside_a_sentence_are_no_header() -> None:
    report = parse_report(
        " FINDINGS: There is a PICC: its tip is in the SVC. IMPRESSION of the tube.\n IMPRESSION: PICC in SVC.\n"
    )
    assert report["findings"].endswith("IMPRESSION of the tube.")
    assert report["impression"] == "PICC in SVC."


def test_headers_in_lower_case_count_where_they_are_known() -> None:
    assert parse_report("Findings: Clear.\nImpression: Normal.\nNote: x")["impression"] == "Normal. Note: x"


def test_reports_with_a_rule_of_their_own() -> None:
    text = " RECOMMENDATIONS: Lungs are clear.\n"
    assert parse_report(text, "50913680")["findings"] == "Lungs are clear."
    assert parse_report(text, "1")["findings"] is None
    assert parse_report("x" * 400, "50525523")["findings"] == "x" * 148
    assert parse_report(" FINDINGS: not these\n", "58235663")["findings"] is None


def test_raw_sections_keep_the_line_breaks_that_rexrank_scores() -> None:
    report = parse_report(
        " FINDINGS: \n The lungs are clear.\n There is  no effusion.\r\n \n IMPRESSION: \n No change.\n"
    )
    assert report["findings_raw"] == "The lungs are clear.\nThere is  no effusion."
    assert report["findings"] == "The lungs are clear. There is no effusion."
    assert report["impression_raw"] == "No change."


def test_nothing_of_the_text_is_lost_between_sections() -> None:
    bodies = [body for _, body in iterate_sections(REPORT)]
    assert len("".join(bodies)) == len(REPORT) - sum(
        map(len, [" EXAMINATION:", " INDICATION:", " COMPARISON:", " FINDINGS:", " IMPRESSION:"])
    )
