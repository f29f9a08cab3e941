"""The stand-in's answers to the prompts of GREEN and CRIMSON: the counts of `judge_server.count_errors` in their formats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from rewards.chexprompt.judgement import Judgement
from rewards.offline.graph import report_findings
from rewards.offline.phrases import ABSENT

_GREEN = re.compile(r"Reference Report:\s*(.*?)\s*\n\s*\d+\. Candidate Report:\s*(.*?)\s*\n\s*\d+\. ", re.DOTALL)
_CRIMSON = re.compile(
    r"Reference Findings \(Ground Truth\):\n(.*?)\n\nPredicted Findings \(Candidate\):\n(.*?)\n\n", re.DOTALL
)
_GREEN_TYPES = (
    "False report of a finding in the candidate",
    "Missing a finding present in the reference",
    "Misidentification of a finding's anatomic location/position",
    "Misassessment of the severity of a finding",
    "Mentioning a comparison that isn't in the reference",
    "Omitting a comparison detailing a change from a prior study",
)

Count = Callable[[str, str], Judgement]


def llm_metric_answer(message: str, count: Count) -> str | None:
    """The answer to a prompt of GREEN or CRIMSON; None where the message is neither."""
    for pattern, answer in ((_GREEN, _green), (_CRIMSON, _crimson)):
        if match := pattern.search(message):
            return answer(match[1], match[2], count)
    return None


def _stated(report: str) -> list[str]:
    return list(dict.fromkeys(f.name for f in report_findings(report) if f.status != ABSENT and not f.is_statement))


def _green(reference: str, candidate: str, count: Count) -> str:
    judgement = count(reference, candidate)

    def lines(counts: tuple[int, ...]) -> str:
        return "\n".join(f"({x}) {name}: {n}." for x, name, n in zip("abcdef", _GREEN_TYPES, counts, strict=True))

    stated = _stated(candidate)
    matched = [name for name in _stated(reference) if name in stated]
    found = f"{len(matched)}. {'; '.join(matched)}" if matched else "No matched findings."
    return (
        "[Explanation]:\nBy rules.\n\n"
        f"[Clinically Significant Errors]:\n{lines(judgement.significant)}\n\n"
        f"[Clinically Insignificant Errors]:\n{lines(judgement.insignificant)}\n\n[Matched Findings]:\n{found}"
    )


def _crimson(reference: str, candidate: str, count: Count) -> str:
    """Findings matched by name; each counts as actionable, and a finding that is matched with an error has its attribute wrong."""
    ours, theirs = _stated(reference), _stated(candidate)
    judgement = count(reference, candidate)
    wrong = sum(judgement.significant[2:]) + sum(judgement.insignificant[2:])
    severity = "significant" if sum(judgement.significant[2:]) else "negligible"
    level = "actionable_not_urgent"
    matches = [(f"R{i}", f"P{theirs.index(name)}") for i, name in enumerate(ours) if name in theirs]
    return json.dumps(
        {
            "reference_findings": [
                {"id": f"R{i}", "finding": n, "clinical_significance": level} for i, n in enumerate(ours)
            ],
            "predicted_findings": [
                {"id": f"P{i}", "finding": n, "clinical_significance": level} for i, n in enumerate(theirs)
            ],
            "matched_findings": [{"ref_id": ref, "pred_id": pred} for ref, pred in matches],
            "errors": {
                "false_findings": [f"P{i}" for i, name in enumerate(theirs) if name not in ours],
                "missing_findings": [f"R{i}" for i, name in enumerate(ours) if name not in theirs],
                "attribute_errors": [
                    {
                        "ref_id": ref,
                        "pred_id": pred,
                        "severity": severity,
                        "error_types": ["location"],
                        "explanation": "",
                    }
                    for ref, pred in matches[:wrong]
                ],
            },
        }
    )
