"""The paper's prompt templates, filled for one study: what the model reads, and what it should write.

The two first templates are the paper's, word for word (Supplementary Information, "Prompt Templates"). What the paper
leaves open is ours and marked so: the template for a study that has an impression only, and how `{input}` is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_prep.study import report_text

SECTIONS = ("findings", "impression")

TEMPLATES: dict[tuple[str, ...], str] = {
    ("findings", "impression"): (
        "This is a radiology report generation task. Here is the context: {input} Given the image and the context, "
        "provide the report in the following format: Findings: [write the findings] Impression: [write the impression] "
        "Now write the report in the format above."
    ),
    ("findings",): (
        "This is a radiology report generation task. Here is the context: {input} Given the image and the context, "
        "provide the findings in the following format: Findings: [write the findings] Now write the report in the "
        "format above."
    ),
    # Our choice: the same form where a reference has an impression only (the paper keeps such studies).
    ("impression",): (
        "This is a radiology report generation task. Here is the context: {input} Given the image and the context, "
        "provide the impression in the following format: Impression: [write the impression] Now write the report in "
        "the format above."
    ),
}

Message = dict[str, Any]


def study_sections(study: Mapping[str, Any]) -> tuple[str, ...]:
    """The report sections that the study's reference has, a key of `TEMPLATES` (paper, Dataset Details)."""
    return tuple(section for section in SECTIONS if study.get(section))


def study_report(study: Mapping[str, Any], sections: tuple[str, ...] | None = None) -> str:
    """The reference report (training target), restricted to `sections` (default: all it has)."""
    wanted = sections or study_sections(study)
    return plain_text(report_text(*(study.get(name) if name in wanted else None for name in SECTIONS)))


def plain_text(text: str) -> str:
    """`text` without Qwen's control tokens: a report that spells `<|image_pad|>` or `<|im_end|>` must stay a report."""
    return text.replace("<|", "< |")


def is_longitudinal(study: Mapping[str, Any], longitudinal: bool) -> bool:
    """Whether the prompt shows the prior: asked for, and the study has a prior image and report."""
    return bool(longitudinal and study.get("prior_image") and study.get("prior_report"))


def prompt_images(study: Mapping[str, Any], longitudinal: bool) -> list[str]:
    """Image paths (inside the prepared folder) in the order of the prompt's placeholders: current, then prior."""
    return [study["image"], study["prior_image"]] if is_longitudinal(study, longitudinal) else [study["image"]]


def build_prompt(
    study: Mapping[str, Any],
    longitudinal: bool = True,
    context: bool = True,
    sections: tuple[str, ...] | None = None,
) -> list[Message]:
    """The prompt of one study as one user message with image placeholders.

    Args:
        study: a row of the study table.
        longitudinal: show the prior image and report where the study has both (paper, Tasks).
        context: show indication and comparison (paper, Inference: as ReXrank does).
        sections: which template; default by the sections of the study's reference.

    Returns:
        One message; its content holds text parts and one `{"type": "image"}` part per path of `prompt_images`.

    Layout of `{input}` (our choice): the current image; then `Indication: …` and `Comparison: …`, an absent one left
    out with its heading; then, where there is a prior, `Prior image: <image> Prior report: …`.
    """
    before, after = TEMPLATES[sections or study_sections(study)].split("{input}")
    parts: list[dict[str, str]] = [_text(before), _image()]
    if context:
        lines = [f"{name.capitalize()}: {study[name]}" for name in ("indication", "comparison") if study.get(name)]
        if lines:
            parts.append(_text(" " + " ".join(lines)))
    if is_longitudinal(study, longitudinal):
        parts += [_text(" Prior image: "), _image(), _text(f" Prior report: {study['prior_report']}")]
    parts.append(_text(after))
    return [{"role": "user", "content": _merge_texts(parts)}]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": plain_text(text)}


def _image() -> dict[str, str]:
    return {"type": "image"}


def _merge_texts(parts: list[dict[str, str]]) -> list[dict[str, str]]:
    """Neighbouring text parts as one, so that tokens do not depend on how the prompt was put together."""
    merged: list[dict[str, str]] = []
    for part in parts:
        if merged and part["type"] == merged[-1]["type"] == "text":
            merged[-1] = _text(merged[-1]["text"] + part["text"])
        else:
            merged.append(part)
    return merged
