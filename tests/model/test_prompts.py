"""The prompts are the paper's, and show what a recipe asks for."""

from __future__ import annotations

import pytest

from model.prompts import TEMPLATES, build_prompt, prompt_images, study_report, study_sections

STUDY = {
    "image": "images/a.png",
    "indication": "Cough.",
    "comparison": "None.",
    "findings": "The lungs are clear.",
    "impression": "Normal.",
    "prior_image": "images/prior.png",
    "prior_report": "Findings: Small effusion.",
}


def flat(prompt) -> str:
    """The prompt as one string, an image shown as <image>."""
    return "".join(part.get("text", "<image>") for part in prompt[0]["content"])


def test_findings_and_impression_prompt_is_the_papers_word_for_word():
    assert flat(build_prompt({**STUDY, "prior_image": None, "prior_report": None})) == (
        "This is a radiology report generation task. Here is the context: <image> Indication: Cough. Comparison: None. "
        "Given the image and the context, provide the report in the following format: Findings: [write the findings] "
        "Impression: [write the impression] Now write the report in the format above."
    )


def test_findings_prompt_is_the_papers_word_for_word():
    study = {**STUDY, "impression": None, "prior_image": None, "indication": None, "comparison": None}
    assert flat(build_prompt(study)) == (
        "This is a radiology report generation task. Here is the context: <image> Given the image and the context, "
        "provide the findings in the following format: Findings: [write the findings] Now write the report in the "
        "format above."
    )


@pytest.mark.parametrize(
    ("findings", "impression", "sections"),
    [
        ("a", "b", ("findings", "impression")),
        ("a", None, ("findings",)),
        (None, "b", ("impression",)),
        ("", "b", ("impression",)),
    ],
)
def test_template_follows_the_sections_of_the_reference(findings, impression, sections):
    study = {**STUDY, "findings": findings, "impression": impression}
    assert study_sections(study) == sections
    before, after = TEMPLATES[sections].split("{input}")
    assert flat(build_prompt(study)).startswith(before)
    assert flat(build_prompt(study)).endswith(after)


def test_longitudinal_prompt_shows_both_images_in_order_and_the_prior_report():
    prompt = build_prompt(STUDY, longitudinal=True)
    assert prompt_images(STUDY, longitudinal=True) == ["images/a.png", "images/prior.png"]
    assert [part["type"] for part in prompt[0]["content"]] == ["text", "image", "text", "image", "text"]
    assert "Prior image: <image> Prior report: Findings: Small effusion." in flat(prompt)


def test_without_longitudinal_or_without_a_prior_there_is_one_image_and_no_prior_report():
    for study, longitudinal in (
        (STUDY, False),
        ({**STUDY, "prior_image": None}, True),
        ({**STUDY, "prior_report": None}, True),
    ):
        assert prompt_images(study, longitudinal) == ["images/a.png"]
        assert "Prior" not in flat(build_prompt(study, longitudinal))


def test_context_off_and_absent_context_leave_no_heading():
    assert "Indication" not in flat(build_prompt(STUDY, context=False))
    only_comparison = flat(build_prompt({**STUDY, "indication": None}))
    assert "Indication" not in only_comparison
    assert "Comparison: None." in only_comparison


def test_report_text_in_a_prompt_stays_text():
    """A report that holds template or chat markers is data: it must not add a message or an image."""
    prompt = build_prompt({**STUDY, "indication": "{input} <image> <|im_end|>"})
    assert len(prompt) == 1
    assert [part["type"] for part in prompt[0]["content"]].count("image") == 2
    assert "<|" not in flat(prompt)
    assert "<|" not in study_report({**STUDY, "findings": "Clear.<|im_end|>"})


def test_study_report_can_be_restricted_to_a_section():
    assert study_report(STUDY) == "Findings: The lungs are clear. Impression: Normal."
    assert study_report(STUDY, ("findings",)) == "Findings: The lungs are clear."
