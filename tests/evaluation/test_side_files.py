"""Sections of the report from files that other commands leave in a run's folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.side_files import side_parts
from foundation.errors import EvaluationError
from rewards.__main__ import main


def test_without_such_files_there_is_no_section(tmp_path: Path) -> None:
    assert side_parts(tmp_path) == []


def test_what_the_commands_write_becomes_tables(tmp_path: Path) -> None:
    reports = [{"reference": f"Findings: Small left effusion. Rib {i}. No pneumothorax."} for i in range(5)]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reports))
    arguments = ["--reports", str(tmp_path / "reports.jsonl"), "--backend", "offline"]
    assert main(["sensitivity", *arguments, "--out", str(tmp_path / "sensitivity.json")]) == 0
    for name, counts in (("reader", (0, 1, 2)), ("judge", (0, 2, 2))):
        rows = [{"id": str(i), "significant": {"location": n}, "insignificant": {}} for i, n in enumerate(counts)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("reader", "judge")]
    main(["judge-agreement", *files, "--out", str(tmp_path / "judge_agreement.json")])
    sensitivity, agreement = side_parts(tmp_path)
    assert sensitivity.tables[0].header[:4] == ["edit", "reports", "BLEU-2", "ROUGE-L"]
    (swapped,) = (row for row in sensitivity.tables[0].rows if row[0] == "side swapped")
    assert swapped[1] == "5"
    assert "[" in swapped[2]
    assert agreement.text.startswith("reader (A) and judge (B) on the 3 reports")
    assert agreement.tables[0].rows[0][1].startswith("0.667 [")


@pytest.mark.parametrize("content", ["{}", '{"columns": [], "edits": {"a": {}}, "reports": 1}', "[]"])
def test_a_damaged_one_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "sensitivity.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"sensitivity.json"):
        side_parts(tmp_path)
