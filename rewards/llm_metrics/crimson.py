"""CRIMSON (rajpurkarlab, March 2026): findings matched one by one, weighted by what they mean for the patient.

Prompt and reader of answers are those of the installed `crimson-score` package (0.2.0), asked through the judge's client; age
and indication are part of the prompt where they are known. The score's formula is written here (`crimson_score`) so that an
answer is checked before it counts, and equals the package's on recorded answers (tests).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

from rewards.chexprompt.parse import AnswerError
from rewards.llm_metrics.base import LlmMetric, LlmScore, MetricPrompt

# Weights of a finding by its significance, and of an attribute's error by its severity (CRIMSON 0.2.0).
FINDING_WEIGHTS = {
    "urgent": 1.0,
    "actionable_not_urgent": 0.5,
    "not_actionable_not_urgent": 0.25,
    "benign_expected": 0.0,
}
ATTRIBUTE_WEIGHTS = {"significant": 0.5, "negligible": 0.0}
MOST_FINDINGS = 200  # of one side of an answer; more is no report
# Trained without the guidelines that the prompt has for other models.
OWN_MODEL = "rajpurkarlab/medgemma-4b-it-crimson"
CONTEXT = ("age", "indication")


class Crimson(LlmMetric):
    """Score in (−1, 1]; counts `false`, `missing`, `attribute` errors and `matched` findings."""

    metric = "crimson"
    range = (-1.0, 1.0)
    longest_answer = 8192
    as_json = True

    @staticmethod
    def prompt_for(model: str) -> MetricPrompt:
        return crimson_prompt(model != OWN_MODEL)

    def parse(self, text: str) -> LlmScore:
        from CRIMSON.utils import parse_json_response

        if not text.strip():
            raise AnswerError("empty answer")
        try:
            answer = parse_json_response(text)
        except (ValueError, RecursionError, IndexError) as error:
            raise AnswerError("the answer is not JSON, mended or not") from error
        return crimson_score(answer)


@lru_cache(maxsize=2)
def crimson_prompt(guidelines: bool) -> MetricPrompt:
    """CRIMSON's messages, as its package sends them.

    Raises:
        ValueError: crimson-score is not installed.
    """
    how = "CRIMSON's prompt is taken from its package: pip install --no-deps crimson-score==0.2.0"
    try:
        package = version("crimson-score")
        from CRIMSON.generate_score import CRIMSONScore
        from CRIMSON.prompt_parts import build_prompt
    except PackageNotFoundError as error:
        raise ValueError(f"crimson-score is not installed; {how}") from error
    except ImportError as error:
        raise ValueError(f"crimson-score cannot be imported ({error}); {how}") from error

    def messages(reference: str, candidate: str, context: Mapping[str, str]) -> list[dict[str, str]]:
        prompt = build_prompt(
            reference,
            candidate,
            patient_context={name: context[name] for name in CONTEXT if context.get(name)} or None,
            include_significance_examples=guidelines,
            include_attribute_guidelines=guidelines,
            include_context_guidelines=guidelines,
        )
        return _sent_by(CRIMSONScore, prompt)

    shown = json.dumps(messages("reference", "candidate", {"age": "60"}))
    return MetricPrompt(f"crimson-{package}-{hashlib.sha256(shown.encode()).hexdigest()[:12]}", messages)


def _sent_by(scorer_class: type, prompt: str) -> list[dict[str, str]]:
    """The messages in which the package sends `prompt`: its system message stands in the middle of its client's code."""
    sent: list[list[dict[str, str]]] = []

    def create(messages: list[dict[str, str]], **_: Any) -> Any:
        sent.append(messages)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=""))])

    scorer = scorer_class.__new__(scorer_class)  # its __init__ would load a model, or want a key
    scorer.api, scorer.model_name = "openai", ""
    scorer.client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    scorer._chat_completion(prompt)
    return sent[0]


def crimson_score(answer: Any) -> LlmScore:
    """The score of an answer, which is checked first.

    With weights w of findings: credit = Σ w over matched reference findings, each times w / (w + Σ of its attribute errors'
    weights); S = (credit − Σ w of false findings) / Σ w of the reference's. The score is S, or where S is below 0
    −x / (1 + x) with x = false − credit. Without weighty findings in the reference: 1 where nothing is false or missing.

    Raises:
        AnswerError: not CRIMSON's format: a key is missing, a word is none of its levels, an id is unknown or twice.
    """
    try:
        reference, predicted = (_weights(answer[f"{side}_findings"]) for side in ("reference", "predicted"))
        errors = answer["errors"]
        false, missing = errors["false_findings"], errors["missing_findings"]
        matched = list(dict.fromkeys(match["ref_id"] for match in answer["matched_findings"]))
        by_reference: dict[str, float] = {}
        for error in errors["attribute_errors"]:
            weight = ATTRIBUTE_WEIGHTS[error["severity"]]
            by_reference[error["ref_id"]] = by_reference.get(error["ref_id"], 0.0) + weight
        of_false, of_missing = sum(predicted[i] for i in false), sum(reference[i] for i in missing)
        credit = sum(_credit(reference[i], by_reference.get(i)) for i in matched)
        if set(by_reference) - set(reference):
            raise KeyError("ref_id")
    except (KeyError, TypeError, AttributeError) as error:
        raise AnswerError("the answer is not in CRIMSON's format") from error
    counts = {
        "false": len(false),
        "missing": len(missing),
        "attribute": len(errors["attribute_errors"]),
        "matched": len(matched),
    }
    return LlmScore(round(_formula(sum(reference.values()), credit, of_false, of_missing), 4), counts)


def _weights(findings: Any) -> dict[str, float]:
    weights = {finding["id"]: FINDING_WEIGHTS[finding["clinical_significance"]] for finding in findings}
    if len(weights) != len(findings) or len(weights) > MOST_FINDINGS:
        raise KeyError("id")
    return weights


def _credit(weight: float, errors: float | None) -> float:
    if errors is None or weight + errors == 0:
        return weight
    return weight * weight / (weight + errors)


def _formula(total: float, credit: float, false: float, missing: float) -> float:
    if total == 0:
        share = 1.0 if false == 0 and missing == 0 else -(false + missing + 1)
    else:
        share = (credit - false) / total
    if share >= 0:
        return share
    beyond = false - credit
    return -beyond / (1 + beyond) if beyond > 0 else 0.0
