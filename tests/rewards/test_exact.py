"""BLEU-2 and RadCliQ: exact numbers, and what every metric does with odd input."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from synthetic_reports import reports

from rewards.bleu import Bleu2, bleu2, tokens
from rewards.radcliq import radcliq_v0, radcliq_v1

NORMAL = "The heart size is normal. No pleural effusion."


# fast_bleu's numbers, worked out by hand from its definition.
@pytest.mark.parametrize(
    ("reference", "candidate", "score"),
    [
        (NORMAL, NORMAL, 1.0),
        ("Mild Cardiomegaly. No edema.", "mild cardiomegaly . no edema .", 1.0),
        ("Lungs are clear.", "Severe cardiomegaly with edema.", np.sqrt((1 / 5) * (0.1 / 4))),
        ("Lungs are clear", "Severe edema", 0.0),
        ("Lungs are clear.", "", 0.0),
        ("", "Lungs are clear.", 0.0),
        ("a b c d", "a", np.exp(1 - 4) * np.sqrt(0.1)),
        ("no edema\nseen", "no edema seen", np.exp(0) * np.sqrt((1 / 3) * (0.1 / 2))),
    ],
)
def test_bleu2_gives_the_definitions_numbers(reference: str, candidate: str, score: float) -> None:
    assert bleu2(candidate, reference) == pytest.approx(score, abs=1e-12)


def test_bleu2_equals_nltk_with_method_one_smoothing() -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    rng = random.Random(0)
    for _ in range(500):
        candidate, reference = (
            " ".join(rng.choice(["no", "edema.", "effusion", "is", "seen."]) for _ in range(rng.randint(1, 12)))
            for _ in range(2)
        )
        expected = sentence_bleu([tokens(reference)], tokens(candidate), (0.5, 0.5), smooth)
        assert bleu2(candidate, reference) == pytest.approx(float(expected), abs=1e-12)


def test_bleu2_equals_fast_bleu() -> None:
    fast_bleu = pytest.importorskip("fast_bleu", reason="pip install fast-bleu==0.0.90 (wants a C++ compiler)")
    for candidate, reference in zip(reports(50, seed=1), reports(50, seed=2), strict=True):
        oracle = fast_bleu.BLEU([tokens(reference)], {"bigram": (0.5, 0.5)})
        assert bleu2(candidate, reference) == pytest.approx(
            oracle.get_score([tokens(candidate)])["bigram"][0], abs=1e-12
        )


def test_golden_numbers(shared_data: Path) -> None:
    golden = json.loads((shared_data / "golden_metrics.json").read_text())
    assert len(golden["bleu2"]) >= 7
    for pair in golden["bleu2"]:
        assert bleu2(pair["hypothesis"], pair["reference"]) == pytest.approx(pair["bleu2_fast_bleu"], abs=1e-9)
    for row in golden["radcliq"]:
        parts = [row[key] for key in ("radgraph_combined", "bertscore", "semb_score", "bleu_score")]
        assert radcliq_v1(*parts) == pytest.approx(row["radcliq_v1"], abs=1e-9)
        assert radcliq_v0(*parts) == pytest.approx(row["radcliq_v0"], abs=1e-9)


def test_radcliq_reproduces_published_numbers() -> None:
    # MedVersa on MIMIC-CXR, ReXrank: the published means of the parts give the published RadCliQ-v1.
    assert radcliq_v1(0.273, 0.430, 0.315, 0.193) == pytest.approx(1.088, abs=0.002)
    assert radcliq_v1(1, 1, 1, 1) == pytest.approx(-1.4407, abs=1e-4)
    assert radcliq_v1(0, 0, 0, 0) == pytest.approx(2.4501, abs=1e-4)


def test_radcliq_is_linear_over_arrays() -> None:
    parts = np.random.default_rng(0).random((4, 20))
    assert radcliq_v1(*parts).shape == (20,)
    assert radcliq_v1(*parts).mean() == pytest.approx(float(radcliq_v1(*parts.mean(axis=1))), abs=1e-9)
    with pytest.raises(ValueError, match=r"one shape.*radgraph \(20,\), bertscore \(19,\)"):
        radcliq_v1(parts[0], parts[1, :-1], parts[2], parts[3])


def test_unequal_lists_are_an_error_that_says_both_lengths() -> None:
    with pytest.raises(ValueError, match="2 candidates but 3 references"):
        Bleu2()(["a", "b"], ["a", "b", "c"])


def test_no_pairs_give_no_scores() -> None:
    assert Bleu2()([], []).shape == (0,)
