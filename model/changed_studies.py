"""Studies with one thing changed, to see what of a study a model's report depends on.

A change keeps the study's id, so that its report meets the same reference; a study that it says nothing about (no prior to take
away) is left out. Films change as pixels, texts as a prompt shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from model.prompts import is_longitudinal

Study = Mapping[str, Any]
BLANK = 128  # grey of 255


def other_films(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study with another patient's film of the same data set and view; a prior stays."""
    return [
        {**study, "image": other["image"], "folder": other["folder"]}
        for study, other in _with_another(studies, ("dataset", "view"))
        if other["folder"] == study["folder"]
    ]


def blank_films(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study with an even grey in place of its film."""
    return [{**s, "image": _redrawn(s, lambda image: Image.new("L", image.size, BLANK))} for s in studies]


def mirrored_films(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study with its film's left and right exchanged."""
    return [{**study, "image": _redrawn(study, ImageOps.mirror)} for study in studies]


def exchanged(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Time turned round: the prior's film as the current one, and the current study's film and report as the prior."""
    return [
        {**study, "image": study["prior_image"], "prior_image": study["image"], "prior_report": report}
        for study in studies
        if is_longitudinal(study, True) and (report := study["reference_report"])
    ]


def other_priors(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study that has a prior, with another patient's (film and report)."""
    longitudinal = [study for study in studies if is_longitudinal(study, True)]
    return [
        {**study, "prior_image": other["prior_image"], "prior_report": other["prior_report"]}
        for study, other in _with_another(longitudinal, ("dataset",))
        if other["folder"] == study["folder"]
    ]


def without_prior(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study that has a prior, without it."""
    return [{**s, "prior_image": None, "prior_report": None} for s in studies if is_longitudinal(s, True)]


def without_indication(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """Each study that has an indication, without it."""
    return [{**study, "indication": None} for study in studies if study.get("indication")]


def _with_another(studies: Sequence[Study], alike: Sequence[str]) -> list[tuple[Study, Study]]:
    """Pairs of a study and the next one of another patient with the same `alike`, in the order of study ids, from the last on
    to the first; of a study without one, no pair."""
    groups: dict[tuple, list[Study]] = {}
    for study in sorted(studies, key=lambda s: str(s["study_id"])):
        groups.setdefault(tuple(study.get(name) for name in alike), []).append(study)
    found: dict[tuple, Study] = {}
    for group in groups.values():
        for i, study in enumerate(group):
            others = (group[(i + step) % len(group)] for step in range(1, len(group)))
            if other := next((o for o in others if o["patient_id"] != study["patient_id"]), None):
                found[study["dataset"], study["study_id"]] = other
    pairs = [(study, found.get((study["dataset"], study["study_id"]))) for study in studies]
    return [(study, other) for study, other in pairs if other is not None]


def _redrawn(study: Study, draw: Callable[[Image.Image], Image.Image]) -> bytes:
    with Image.open(Path(study["folder"]) / study["image"]) as image:
        encoded = BytesIO()
        draw(image.convert("L")).save(encoded, "PNG")
    return encoded.getvalue()
