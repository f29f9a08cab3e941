"""The stand-in's answers to the prompts of GREEN, CRIMSON and RadMatch: what the rules find, in their formats."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from rewards.chexprompt.judgement import Judgement
from rewards.offline.graph import report_findings
from rewards.offline.phrases import ABSENT, Finding

_GREEN = re.compile(r"Reference Report:\s*(.*?)\s*\n\s*\d+\. Candidate Report:\s*(.*?)\s*\n\s*\d+\. ", re.DOTALL)
_CRIMSON = re.compile(
    r"Reference Findings \(Ground Truth\):\n(.*?)\n\nPredicted Findings \(Candidate\):\n(.*?)\n\n", re.DOTALL
)
_RADMATCH = re.compile(r"extract findings from the following radiology report:\n\n(.*)", re.DOTALL)
_RADMATCH_PAYLOADS = ('{"pred_findings"', '{"series_uuid"', '{"indication"')
_COMPARISONS = {
    "unchanged": "stable",
    "worse": "worsening",
    "improved": "improving",
    "new": "new",
    "resolved": "resolved",
}
_DEGREES = ("", "mild", "moderate", "severe")
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
    """The answer to a prompt of GREEN, CRIMSON or RadMatch; None where the message is none of them."""
    if match := _RADMATCH.search(message):
        return _radmatch_findings(match[1])
    if message.startswith(_RADMATCH_PAYLOADS):
        asked = json.loads(message)
        if "pairs" in asked:
            return _radmatch_errors([(pair["pred_finding"], pair["gt_finding"]) for pair in asked["pairs"]])
        if "pred_findings" in asked:
            return _radmatch_matching(asked["pred_findings"], asked["gt_findings"])
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


def _radmatch_findings(report: str) -> str:
    """Each finding once, in a sentence that the rules read as the same finding."""
    made = {}
    for finding in report_findings(report):
        if finding.is_statement:
            continue
        absent = finding.status == ABSENT
        words = ["no"] * absent + [finding.severity, *sorted(finding.sides), finding.name]
        urgent = "Pneumothorax" in finding.conditions and not absent
        made.setdefault(
            (finding.name, finding.sides, absent),
            {
                "text": " ".join(filter(None, words)) + ".",
                "clinical_status": "normal" if absent else "abnormal",
                "clinical_significance": "routine" if absent else "critical" if urgent else "notable",
                "comparison": _COMPARISONS.get(finding.change),
                "measurements": [],
            },
        )
    return json.dumps({"findings": list(made.values())})


def _read(finding: dict) -> Finding | None:
    return next(iter(report_findings(finding["text"])), None)


def _radmatch_matching(theirs: list[dict], ours: list[dict]) -> str:
    """Findings of one name, those of one side first; each once."""
    left = {finding["finding_id"]: _read(finding) for finding in ours}
    matches, alone = [], []
    for finding in theirs:
        read = _read(finding)
        same = [i for i, other in left.items() if read and other and other.name == read.name]
        if not same:
            alone.append(finding["finding_id"])
            continue
        best = max(same, key=lambda i: left[i].sides == read.sides)
        del left[best]
        matches.append({"pred_id": finding["finding_id"], "gt_id": best, "reasoning": "By rules."})
    return json.dumps({"matches": matches, "unmatched_pred": alone, "unmatched_gt": list(left)})


def _radmatch_errors(pairs: list[tuple[dict, dict]]) -> str:
    """Another side, and another degree of the same finding."""
    errors = []
    for theirs, ours in ((_read(pred), _read(gt)) for pred, gt in pairs):
        found = []
        if theirs and ours and theirs.sides != ours.sides:
            found.append(("location", "major" if theirs.sides and ours.sides else "minor"))
        if theirs and ours and theirs.severity != ours.severity:
            apart = abs(_DEGREES.index(theirs.severity) - _DEGREES.index(ours.severity))
            found.append(("severity", "major" if theirs.severity and ours.severity and apart > 1 else "minor"))
        errors.append([{"dimension": d, "severity": s, "reasoning": "By rules."} for d, s in found])
    return json.dumps({"errors_per_match": errors})
