"""ROUGE-L and temporal entity F1, against their definitions and against RadEval where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import pytest
from synthetic_reports import grpo_batch

from rewards.assemble import load_parts
from rewards.registry import load_metrics
from rewards.temporal_f1 import WORDS, temporal_words


def scores(name: str, candidates: list[str], references: list[str]) -> list[float]:
    return load_metrics([name])[name](candidates, references).tolist()


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence_of_stems() -> None:
    # heart size normal | heart normal in size: longest common subsequence "heart normal" or "heart size": 2 of 3 and of 4
    assert scores("rouge_l", ["Heart normal in size."], ["heart size: normal"]) == [pytest.approx(2 * 2 / 7)]
    assert scores("rouge_l", ["effusions"], ["Effusion."]) == [1.0]  # one stem
    assert scores("rouge_l", ["", "…", "edema"], ["edema", "…", ""]) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("Stable effusion.", "Unchanged, stable effusion.", 2 / 3),
        ("No change.", "No CHANGE since the prior.", 1.0),
        ("Edema.", "No edema.", 1.0),  # neither speaks of change
        ("Edema has worsened.", "Edema.", 0.0),
        ("Edema.", "Edema has worsened.", 0.0),
        ("un-changed", "unchanged", 0.0),  # RadEval reads dashes as spaces
        ("newly large", "new", 0.0),  # whole words
        ("", "", 1.0),
    ],
)
def test_temporal_f1_compares_the_words_of_change(candidate: str, reference: str, expected: float) -> None:
    assert scores("temporal_f1", [candidate], [reference]) == [pytest.approx(expected)]


def reports_of_change() -> tuple[list[str], list[str]]:
    candidates, references = grpo_batch(prompts=4, rollouts=8)
    words = sorted(WORDS)
    extra = [
        f" Effusion is {words[i % len(words)]}, {words[(7 * i + 3) % len(words)]}." for i in range(len(candidates))
    ]
    return [c + e for c, e in zip(candidates, extra, strict=True)], [
        r + extra[i // 3] for i, r in enumerate(references)
    ]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("radeval") is None, reason="radeval is not installed")
def test_both_are_radevals_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """RadEval's own code. Its stanza model cannot be had here: it stands aside, and the words decide (rewards/temporal_f1.py)."""
    candidates, references = reports_of_change()
    stanza = types.ModuleType("stanza")
    stanza.Pipeline = lambda **_: lambda text: types.SimpleNamespace(entities=[])
    monkeypatch.setitem(sys.modules, "stanza", stanza)
    from radeval.metrics.f1temporal.f1temporal import KEYWORDS, F1Temporal, extract_entities

    assert frozenset(KEYWORDS) == WORDS
    assert [temporal_words(text) for text in candidates] == [extract_entities(text, KEYWORDS) for text in candidates]
    theirs = F1Temporal(predictions=candidates, references=references)["sample_scores"]
    np.testing.assert_allclose(scores("temporal_f1", candidates, references), theirs, atol=1e-6)
    assert len(set(np.round(theirs, 3))) > 3
    (rouge,) = load_parts(["radeval:rouge:rougeL"]).values()
    np.testing.assert_allclose(scores("rouge_l", candidates, references), rouge(candidates, references), atol=1e-6)
