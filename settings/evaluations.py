"""What can be evaluated: the sections that a model is asked for, the form of references, the baselines, an evaluation's name."""

from __future__ import annotations

from model.engines import SECTIONS

REFERENCE_FORMS = {"text": ("raw", "single_spaced"), "missing_section": ("None", "None.")}
BASELINES = ("most_frequent", "copy_prior", "retrieval")


def evaluation_name(sections: str, longitudinal: bool) -> str:
    """What a model was asked and shown, as one word: `findings_no_priors`."""
    return f"{sections}_{'with' if longitudinal else 'no'}_priors"


def evaluation_named(name: str) -> tuple[str, bool]:
    """Sections, and whether priors are shown, of an evaluation's name.

    Raises:
        ValueError: no such evaluation.
    """
    named = {evaluation_name(sections, shown): (sections, shown) for sections in SECTIONS for shown in (True, False)}
    if name not in named:
        raise ValueError(f"evaluation {name!r} is none of {', '.join(named)}")
    return named[name]
