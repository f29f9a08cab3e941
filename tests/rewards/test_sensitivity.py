"""Controlled edits, and how far each moves each metric."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rewards.__main__ import main
from rewards.edits import EDITS
from rewards.sensitivity import UNRELATED, edited_pairs, effects

REPORT = (
    "Findings: There is a small left pleural effusion. The tip of the PICC is in the SVC. No pneumothorax. "
    "Impression: Small left effusion."
)


def edited(name: str, report: str) -> str | None:
    return EDITS[name](report, random.Random(0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("negation flipped", REPORT.replace("No pneumothorax", "There is pneumothorax")),
        ("side swapped", REPORT.replace("small left", "small right")),
        ("severity changed", REPORT.replace("a small", "a severe")),
        ("finding dropped", REPORT.replace("There is a small left pleural effusion. ", "")),
        ("comparison added", REPORT.replace("l effusion.", "l effusion, increased from the prior study.", 1)),
        ("device moved", REPORT.replace("SVC", "azygos vein")),
    ],
)
def test_an_edit_makes_one_error_and_leaves_the_rest(name: str, expected: str) -> None:
    once = REPORT.replace("Small left effusion.", "As above.")  # one sentence that each could change
    assert edited(name, once) == expected.replace("Small left effusion.", "As above.")


def test_a_finding_that_is_added_is_one_that_the_report_does_not_have() -> None:
    assert "small right pneumothorax" in edited("finding added", REPORT)
    assert "moderate left pleural effusion" in edited("finding added", "There is a right pneumothorax.")


def test_reordering_keeps_every_sentence_in_its_section() -> None:
    new = edited("sentences reordered", REPORT)
    assert new != REPORT
    findings, impression = new.split(" Impression: ")
    assert impression == "Small left effusion."
    assert sorted(findings.split()) == sorted(REPORT.split(" Impression: ")[0].split())


@pytest.mark.parametrize("name", sorted(set(EDITS) - {"finding added"}))
def test_a_report_that_has_nothing_of_the_kind_is_left_alone(name: str) -> None:
    assert edited(name, "Normal.") is None


def test_the_share_is_of_the_way_to_another_report_and_its_interval_over_reports() -> None:
    pairs = {"edit": [(0, "x"), (2, "y")], UNRELATED: [(0, ""), (1, ""), (2, "")]}
    scores = {
        "": {"m": np.array([1.0, 1.0, 1.0]), "blind": np.ones(3)},
        "edit": {"m": np.array([0.9, 0.7]), "blind": np.ones(2)},
        UNRELATED: {"m": np.array([0.2, 0.0, 0.4]), "blind": np.ones(3)},
    }
    table = effects(pairs, scores, seed=0)
    found = table["edit"]["m"]
    assert found["n"] == 2
    assert found["change"] == pytest.approx(-0.2)
    assert found["share"] == pytest.approx(0.4 / 1.4)
    assert found["low"] == pytest.approx(0.1 / 0.8)
    assert found["high"] == pytest.approx(0.3 / 0.6)
    assert table[UNRELATED]["m"]["share"] == 1
    assert table["edit"]["blind"]["share"] is None  # a metric that never moves has no scale


def test_a_failed_judge_call_is_left_out_of_its_column() -> None:
    pairs = {"edit": [(0, "x"), (1, "y")], UNRELATED: [(0, ""), (1, "")]}
    scores = {
        "": {"judge": np.ones(2)},
        "edit": {"judge": np.array([0.5, np.nan])},
        UNRELATED: {"judge": np.zeros(2)},
    }
    assert effects(pairs, scores, seed=0)["edit"]["judge"] | {"low": 0, "high": 0} == {
        "n": 1, "change": -0.5, "share": 0.5, "low": 0, "high": 0,
    }  # fmt: skip


def write_reports(path: Path) -> Path:
    sides, degrees = ("left", "right"), ("Small", "Moderate", "Large")
    findings = ("pleural effusion", "lower lobe consolidation")
    rows = [
        {"reference": f"Findings: {degree} {side} {findings[i % 2]}. No pneumothorax. Rib {i}. Impression: Abnormal."}
        for i, (side, degree) in enumerate((s, d) for s in sides for d in degrees)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command_says_what_each_metric_sees(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    reports = write_reports(tmp_path / "reports.jsonl")
    arguments = ["sensitivity", "--reports", str(reports), "--backend", "offline", "--out", str(tmp_path / "s.json")]
    assert main([*arguments, "--judge", "offline", "--source", "iu_xray"]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    swapped, order = result["edits"]["side swapped"], result["edits"]["sentences reordered"]
    assert swapped["bertscore[offline-hash]"]["n"] == 6
    assert swapped["sembscore[offline-rules]"]["share"] == pytest.approx(0, abs=1e-6)  # labels have no side
    assert swapped["composite of step 2"]["share"] > swapped["composite of step 1"]["share"]
    assert order["rouge_l"]["share"] > order["radgraph[offline-rules]"]["share"] == 0
    assert result["not_applicable"] == ["device moved"]
    shown = capsys.readouterr().out
    assert "side swapped" in shown
    assert "-0%" not in shown
    assert edited_pairs(["a.", "b."], 3) == edited_pairs(["a.", "b."], 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "neither ReXrank's JSON"),
        ('{"a": {"report": "x"}}', "has 1 different reports"),
        ('{"a": {"report": 1}, "b": {"report": "x"}}', "a report is no text"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, capsys, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    arguments = ["--reports", str(tmp_path / "r.json"), "--backend", "offline", "--out", str(tmp_path / "s.json")]
    assert main(["sensitivity", *arguments]) == 2
    assert message in capsys.readouterr().err
