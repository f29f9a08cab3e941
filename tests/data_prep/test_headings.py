"""Reports of any hospital, and reports that models write, into sections by headings known by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.__main__ import main
from data_prep.headings import HeadingRulesError, findings_of, parse_free_text, read_rules, unknown_headings


def cut(text: str, **rules: object) -> tuple[str | None, str | None]:
    report = parse_free_text(text, read_rules(rules))
    return report["findings"], report["impression"]


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS:Clear lungs.\nIMPRESSION:Normal chest.\n", "Clear lungs.", "Normal chest."),
        ("INDICATION: Cough. FINDINGS: Clear. No effusion. IMPRESSION: Normal.", "Clear. No effusion.", "Normal."),
        ("Clear lungs.IMPRESSION:Normal", "Clear lungs.", "Normal"),
        ("FINDINGS:\nLUNGS: Clear.\nHEART: Large.\nIMPRESSION: Large.", "LUNGS: Clear. HEART: Large.", "Large."),
        ("FINDINGS\nLungs clear\n\nIMPRESSION\nNormal", "Lungs clear", "Normal"),
        ("Findings\nLungs clear\nImpression\nNormal", "Lungs clear", "Normal"),
        ("FINDINGS - Lungs clear.\nIMPRESSION – Normal.", "Lungs clear.", "Normal."),
        ("FINDINGS – Lungs clear. IMPRESSION – Normal.", "Lungs clear.", "Normal."),
        ("Cough FINDINGS The lungs are clear.\nIMPRESSION No disease.", "The lungs are clear.", "No disease."),
        ("**FINDINGS:** Lungs clear.\n\n**Impression**: Normal", "Lungs clear.", "Normal"),
        ("## Findings\nClear.\n## Impression\n1. Normal\n2. Line", "Clear.", "1. Normal 2. Line"),
        ("1. FINDINGS (2 VIEWS): Clear.\n2. IMPRESSION (final): Normal.", "Clear.", "Normal."),
        ("findings : heart is normal . impression : no disease .", "heart is normal .", "no disease ."),
        ("Findings: Lungs clear Impression: Normal", "Lungs clear", "Normal"),
        ("FINDINGS:\r\nClear.\r\n\r\nIMPRESSION:\r\nNormal.\r\n", "Clear.", "Normal."),
        ("CLINICAL DETAILS: Cough.\nREPORT: Clear.\nCONCLUSION: Normal.", "Clear.", "Normal."),
        ("FINDINGS: Clear.\nIMPRESSION AND RECOMMENDATION: Normal.", "Clear.", "Normal."),
        ("FINDINGS: A.\nIMPRESSION: B.\nFINDINGS: C.", "A. C.", "B."),
        # what only looks like a heading
        ("Findings: Clear. Other findings: none. Impression: Normal.", "Clear. Other findings: none.", "Normal."),
        ("FINDINGS: CLEAR\nOTHER FINDINGS: NONE\nIMPRESSION: NORMAL", "CLEAR OTHER FINDINGS: NONE", "NORMAL"),
        ("IMPRESSION: Stable. Findings discussed with Dr. X.", None, "Stable. Findings discussed with Dr. X."),
        ("IMPRESSION: FINDINGS CONSISTENT WITH EDEMA.", None, "FINDINGS CONSISTENT WITH EDEMA."),
        ("FINDINGS: There are no other\nfindings: none at all.", "There are no other findings: none at all.", None),
        # no heading of the findings
        ("The lungs are clear.\nHeart normal.", "The lungs are clear. Heart normal.", None),
        ("PORTABLE CHEST\n\nHeart is normal.\n\nLungs clear.", "Heart is normal. Lungs clear.", None),
        ("INDICATION: Cough.\n\nThe lungs are clear.\n\nIMPRESSION: Normal.", "The lungs are clear.", "Normal."),
        ("EXAM: X\nCHEST, PA AND LATERAL: Clear.\nIMPRESSION: Normal.", "Clear.", "Normal."),
        ("Patient: Smith\nMRN: 7\nIMPRESSION: Normal.", None, "Normal."),
        ("", None, None),
    ],
)
def test_sections_that_a_reader_would_take(text: str, findings: str | None, impression: str | None) -> None:
    assert cut(text) == (findings, impression)


@pytest.mark.parametrize("heading", ["FINDINGS AND IMPRESSION", "Findings/Impression", "Impression & findings"])
def test_a_joint_heading_is_the_whole_report(heading: str) -> None:
    text = f"INDICATION: Cough.\n{heading}: Heart normal. No effusion."
    assert cut(text) == ("Heart normal. No effusion.", None)
    assert cut(text, joint="impression") == (None, "Heart normal. No effusion.")
    assert findings_of(text) == "Heart normal. No effusion."


def test_an_addendum_never_replaces_the_report() -> None:
    after = (
        "FINDINGS: Clear.\nIMPRESSION: Normal.\n\nADDENDUM #2 BY DR X ON 3/4/2020:\nNodule.\nIMPRESSION: Nodule seen."
    )
    assert cut(after) == ("Clear.", "Normal.")
    assert cut(after, addenda="append") == ("Clear.", "Normal. Nodule. Nodule seen.")
    assert cut("ADDENDUM: Told the ward.\nFINDINGS: Clear.\nIMPRESSION: Normal.") == ("Clear.", "Normal.")
    before = "ADDENDUM\nIMPRESSION: Corrected.\n\nFINAL REPORT\nFINDINGS: Clear.\nIMPRESSION: Normal."
    assert cut(before) == ("Clear.", "Normal.")
    assert cut("FINDINGS: Clear. IMPRESSION: Normal. ADDENDUM: IMPRESSION: Nodule.") == ("Clear.", "Normal.")


def test_a_user_adds_headings_and_languages_and_takes_some_away() -> None:
    german = {"findings": ["Befund"], "impression": ["Beurteilung"]}
    assert cut("BEFUND: Frei.\nBEURTEILUNG: Normal.", headings=german) == ("Frei.", "Normal.")
    chinese = {"findings": ["检查所见"], "impression": ["诊断意见"]}
    assert cut("检查所见：双肺清晰。诊断意见：正常。", headings=chinese) == ("双肺清晰。", "正常。")
    text = "FINDINGS: Clear. Technique: poor."
    assert cut(text)[0] == "Clear."
    assert cut(text, ignored=["technique"])[0] == "Clear. Technique: poor."


def test_raw_sections_keep_their_lines() -> None:
    report = parse_free_text("FINDINGS:\n Clear.\n Heart  normal.\nIMPRESSION: Normal.")
    assert report["findings_raw"] == "Clear.\nHeart  normal."


def test_findings_of_a_report_that_a_model_wrote() -> None:
    assert findings_of("Findings: A b. Impression: C.") == "A b."
    assert findings_of("A b. Impression: C.") == "A b."
    assert findings_of("A b. My impression: normal.") == "A b. My impression: normal."
    assert findings_of("Impression: C.") == ""


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "must be a mapping"),
        ({"heading": {}}, "unknown key heading"),
        ({"addenda": "drop"}, "must be leave_out or append"),
        ({"headings": {"findings": "Befund"}}, "must be a list of words"),
        ({"headings": ["Befund"]}, "must be a mapping of sections"),
        ({"not_after": [False]}, "must be a list of words"),
    ],
)
def test_wrong_rules_are_one_line(rules: object, message: str) -> None:
    with pytest.raises(HeadingRulesError, match=message):
        read_rules(rules)


def test_unknown_headings_are_told_with_the_section_they_stay_in() -> None:
    text = "FINDINGS:\nLUNGS: Clear.\nIMPRESSION: Normal.\nBEURTEILUNG: Normal."
    assert unknown_headings(text) == [("lungs", "findings"), ("beurteilung", "impression")]


def test_the_command_shows_reports_as_they_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"id": "a", "mrn": 1, "file": "a.png", "text": "FINDINGS:\nLUNGS: Clear.\nIMPRESSION: Normal."},
        {"id": "b", "mrn": 2, "file": "b.png", "text": "BEFUND: Frei.\nADDENDUM: x"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mapping = tmp_path / "m.yaml"
    mapping.write_text("table: t.jsonl\ncolumns: {study_id: id, patient_id: mrn, image: file, report: text}\n")
    command = ["sections", "--source", str(tmp_path), "--mapping", str(mapping)]
    assert main([*command, "--show", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 reports" in out
    assert "1 befund: (in preamble)" in out
    assert "1 an addendum, left out" in out
    assert out.count("-> as cut") == 1
    mapping.write_text(mapping.read_text() + "sections: {addenda: gone}\n")
    assert main(command) == 2
    assert "must be leave_out or append" in capsys.readouterr().err
