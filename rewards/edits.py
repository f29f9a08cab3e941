"""Controlled edits of a report: one known error each, made by rules on its own words.

An edit takes a report and gives the edited one, or None where the report has nothing that it could change. Which findings a
sentence states is read by the rules of `offline/graph.py`; where those misread a sentence the edit misses its mark, so that
effects are means over many reports and never one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from rewards.offline.graph import report_findings
from rewards.offline.phrases import PRESENT

# A sentence with its white space behind it; a number's own point ends none.
_SENTENCE = re.compile(r"[^.!?]*(?:\.(?=\d)[^.!?]*)*[.!?]+\s*|[^.!?]+$")
_HEADING = re.compile(r"((?:^|\s)(?:Findings|Impression)\s*:\s*)", re.IGNORECASE)

Edit = Callable[[str, random.Random], str | None]

_NEGATIONS = (  # of a finding, and what is left of it
    (r"\bThere (is|are) no (evidence of )?", r"There \1 "),
    (r"\bNo (evidence of )?(?=[a-z])", "There is "),
    (r"\bwithout (evidence of )?", "with "),
    (r"\b(?<=[a-z] )no (evidence of )?(?=[a-z])", ""),
)
_SIDES = {"left": "right", "right": "left"}
_DEGREES = {
    **dict.fromkeys(("mild", "minimal", "small", "tiny", "trace", "slight"), "severe"),
    **dict.fromkeys(("mildly", "minimally", "slightly"), "severely"),
    **dict.fromkeys(("moderate", "severe", "large", "marked", "extensive"), "minimal"),
    **dict.fromkeys(("moderately", "severely", "markedly"), "minimally"),
}
_POSITIONS = (  # where a device ends, and where it should not
    (r"\b(?:superior vena cava|svc)\b", "azygos vein"),
    (r"\b(?:cavoatrial junction|right atrium)\b", "right ventricle"),
    (r"\babove the carina\b", "in the right main bronchus"),
    (r"\b(?:in|within) the stomach\b", "in the distal esophagus"),
    (r"\b(?:right ventricle)\b", "inferior vena cava"),
)
_DEVICES = re.compile(
    r"\b(?:tip|tips|catheter|tube|line|picc|port|port-a-cath|pacemaker|pacer|lead|leads|cannula|device)\b",
    re.IGNORECASE,
)
ADDED = (  # a finding that the reference does not have: the first whose condition it does not speak of
    ("Pneumothorax", "There is a small right pneumothorax."),
    ("Pleural Effusion", "There is a moderate left pleural effusion."),
    ("Consolidation", "There is consolidation in the right lower lobe."),
    ("Edema", "There is moderate pulmonary edema."),
    ("Fracture", "There is an acute left rib fracture."),
)


def sections(report: str) -> list[str]:
    """The report in parts that make it again when joined: headings (odd places) and the texts between them."""
    return _HEADING.split(report)


def sentences(text: str) -> list[str]:
    """The sentences of a text, with the white space behind each; joined they make it again."""
    return _SENTENCE.findall(text)


def _states_finding(sentence: str) -> bool:
    """A finding of the fourteen conditions that is there; a device is none."""
    return any(
        f.status == PRESENT and not f.is_statement and set(f.conditions) - {"Support Devices"}
        for f in report_findings(sentence)
    )


def _edit_one_sentence(
    report: str, rng: random.Random, change: Callable[[str], str | None], only: Callable[[str], bool] = lambda _: True
) -> str | None:
    """The report with one sentence changed, drawn from those that `change` can change; None where there is none."""
    parts = [
        sentence for part in sections(report) for sentence in ([part] if _HEADING.fullmatch(part) else sentences(part))
    ]
    changed = {i: new for i, part in enumerate(parts) if only(part) and (new := change(part)) not in (None, part)}
    if not changed:
        return None
    chosen = rng.choice(sorted(changed))
    edited = "".join(changed[chosen] if i == chosen else part for i, part in enumerate(parts)).strip()
    return edited or None


def flip_negation(report: str, rng: random.Random) -> str | None:
    """A finding that is denied is stated: "No pleural effusion." → "There is pleural effusion." """

    def change(sentence: str) -> str | None:
        for pattern, replacement in _NEGATIONS:
            if re.search(pattern, sentence):
                return re.sub(pattern, replacement, sentence, count=1)
        return None

    return _edit_one_sentence(report, rng, change, lambda s: any(f.conditions for f in report_findings(s)))


def _replace_words(words: dict[str, str]) -> Callable[[str], str | None]:
    pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)

    def other(match: re.Match) -> str:
        new = words[match[0].lower()]
        return new.capitalize() if match[0][0].isupper() else new

    return lambda sentence: pattern.sub(other, sentence) if pattern.search(sentence) else None


def swap_side(report: str, rng: random.Random) -> str | None:
    """Left and right change places in one sentence that states a finding."""
    return _edit_one_sentence(report, rng, _replace_words(_SIDES), _states_finding)


def change_severity(report: str, rng: random.Random) -> str | None:
    """A degree becomes the opposite one: small → severe, severe → minimal, in one sentence that states a finding."""
    return _edit_one_sentence(report, rng, _replace_words(_DEGREES), _states_finding)


def drop_finding(report: str, rng: random.Random) -> str | None:
    """A sentence that states a finding is left out."""
    return _edit_one_sentence(report, rng, lambda _: "", _states_finding)


def add_finding(report: str, rng: random.Random) -> str | None:
    """A sentence of `ADDED` is put behind another one."""
    spoken_of = {condition for f in report_findings(report) if f.status == PRESENT for condition in f.conditions}
    added = next((text for condition, text in ADDED if condition not in spoken_of), None)
    if added is None:
        return None
    return _edit_one_sentence(report, rng, lambda s: None if _HEADING.fullmatch(s) else f"{s.rstrip()} {added} ")


def add_comparison(report: str, rng: random.Random) -> str | None:
    """A finding of which no change is said becomes one that is "increased from the prior study"."""

    def change(sentence: str) -> str | None:
        if any(f.change for f in report_findings(sentence)):
            return None
        words = sentence.rstrip()
        return f"{words.rstrip('.!?')}, increased from the prior study.{sentence[len(words) :] or ' '}"

    return _edit_one_sentence(report, rng, change, _states_finding)


def move_device(report: str, rng: random.Random) -> str | None:
    """A device ends where it should not: "tip in the SVC" → "tip in the azygos vein"."""

    def change(sentence: str) -> str | None:
        for pattern, place in _POSITIONS:
            if re.search(pattern, sentence, re.IGNORECASE):
                return re.sub(pattern, place, sentence, count=1, flags=re.IGNORECASE)
        return None

    return _edit_one_sentence(report, rng, change, lambda s: _DEVICES.search(s) is not None)


def reorder_sentences(report: str, rng: random.Random) -> str | None:
    """The sentences of each section in another order: no error at all."""
    parts, moved = [], False
    for part in sections(report):
        own = sentences(part)
        if not _HEADING.fullmatch(part) and len(own) > 1:
            texts = [sentence.strip() for sentence in own]
            shuffled = texts[:]
            while shuffled == texts and len(set(texts)) > 1:
                rng.shuffle(shuffled)
            moved = moved or shuffled != texts
            part = " ".join(shuffled)
        parts.append(part)
    return "".join(parts).strip() if moved else None


EDITS: dict[str, Edit] = {
    "negation flipped": flip_negation,
    "side swapped": swap_side,
    "severity changed": change_severity,
    "finding dropped": drop_finding,
    "finding added": add_finding,
    "comparison added": add_comparison,
    "device moved": move_device,
    "sentences reordered": reorder_sentences,
}
