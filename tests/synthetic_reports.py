"""Made-up chest X-ray reports for the metrics' tests and benchmark: seeded, no patient's text."""

from __future__ import annotations

import random

_SIDE = ("left", "right")
_LOBE = ("upper lobe", "lower lobe", "base", "apex", "mid lung")
_SIZE = ("small", "moderate", "large", "tiny", "mild")
_CHANGE = ("unchanged", "increased", "new", "improved", "stable compared to the prior study", "slightly worsened")
_FINDINGS = (
    "There is a {size} {side} pleural effusion, {change}.",
    "{size} patchy opacity in the {side} {lobe}, concerning for pneumonia.",
    "Linear opacities at the {side} {lobe} likely reflect subsegmental atelectasis.",
    "{size} {side} apical pneumothorax is {change}.",
    "A 1.2 cm nodule projects over the {side} {lobe}; it is {change}.",
    "{size} pulmonary vascular congestion with interstitial edema has {change}.",
    "Old healed fractures of the {side} fifth and sixth ribs are noted.",
    "{size} cardiomegaly is {change}.",
    "{side} internal jugular central venous catheter ends in the mid SVC.",
    "Endotracheal tube terminates approximately 4.5 cm above the carina.",
    "Retrocardiac consolidation/atelectasis in the {side} {lobe} is {change}.",
    "The {side} costophrenic angle is blunted (unchanged).",
)
_NORMAL = (
    "The heart size is normal.",
    "The cardiomediastinal silhouette is within normal limits.",
    "No focal consolidation, pleural effusion, or pneumothorax is seen.",
    "The lungs are clear bilaterally.",
    "No acute osseous abnormality is identified.",
    "There is no evidence of pulmonary edema.",
    "No free air beneath the {side} hemidiaphragm.",
)
_IMPRESSION = (
    "No acute cardiopulmonary process.",
    "{size} {side} effusion with {side} basilar atelectasis.",
    "{side} {lobe} opacity, which may represent pneumonia; follow up is recommended.",
    "{change} support devices. No pneumothorax.",
    "1. {size} edema, {change}. 2. Cardiomegaly.",
)


def _fill(sentence: str, rng: random.Random) -> str:
    text = sentence.format(
        side=rng.choice(_SIDE), lobe=rng.choice(_LOBE), size=rng.choice(_SIZE), change=rng.choice(_CHANGE)
    )
    return text[0].upper() + text[1:]


def report(rng: random.Random) -> str:
    """One report of `Findings: … Impression: …`, 30 to 110 words."""
    sentences = rng.sample(_FINDINGS, rng.randint(1, 4)) + rng.sample(_NORMAL, rng.randint(1, 4))
    rng.shuffle(sentences)
    impression = rng.sample(_IMPRESSION, rng.randint(1, 2))
    join = " ".join
    return f"Findings: {join(_fill(s, rng) for s in sentences)} Impression: {join(_fill(s, rng) for s in impression)}"


def reports(n: int, seed: int = 0) -> list[str]:
    """n reports, almost all different."""
    rng = random.Random(seed)
    return [report(rng) for _ in range(n)]


def grpo_batch(
    prompts: int = 16, rollouts: int = 16, unique: float = 0.63, seed: int = 0
) -> tuple[list[str], list[str]]:
    """(candidates, references) of a GRPO step: `rollouts` candidates a reference, of which a share is unique."""
    rng = random.Random(seed)
    candidates: list[str] = []
    references: list[str] = []
    for _ in range(prompts):
        different = [report(rng) for _ in range(max(1, round(unique * rollouts)))]
        group = different + [rng.choice(different) for _ in range(rollouts - len(different))]
        rng.shuffle(group)
        candidates += group
        references += [report(rng)] * rollouts
    return candidates, references
