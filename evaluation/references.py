"""In which form references were compared, what another form would have given, and whether ReXrank's board has the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.study import references_fingerprint
from evaluation.predictions import ReferenceForm, reference_text
from rewards.bleu import bleu2

OTHERS = (ReferenceForm(), ReferenceForm(text="single_spaced"), ReferenceForm(missing_section="None."))


def described(rows: Sequence[Mapping[str, Any]], sections: str, form: ReferenceForm) -> dict[str, Any]:
    """The form of the references of paired rows (`predictions.pair`), their fingerprint, and for each of OTHERS how many
    references it changes and the mean BLEU-2 of the same candidates (exact, and the metric that it changes most)."""
    others = []
    for other in OTHERS:
        texts = [reference_text(row, sections, other) or "" for row in rows]
        others.append(
            {
                **vars(other),
                "changed": sum(text != row["reference"] for text, row in zip(texts, rows, strict=True)),
                "bleu2": sum(bleu2(row["candidate"], text) for text, row in zip(texts, rows, strict=True)) / len(rows),
            }
        )
    return {
        **vars(form),
        "sha256": references_fingerprint({row["study_id"]: row["reference"] for row in rows}),
        "others": others,
    }


def unlike_the_board(made_by: Mapping[str, Any]) -> str:
    """Why references of this form are not those of ReXrank's board; empty where they are as its script makes them."""
    form = made_by.get("reference_form")
    if form is None:
        return "these scores do not say in which form their references were; score again"
    if form["text"] != ReferenceForm.text:
        return "ReXrank scores raw sections with their line breaks; these references are single-spaced"
    if made_by["sections"] == "findings_impression" and form["missing_section"] != ReferenceForm.missing_section:
        return f"ReXrank's script writes None for a missing section; these references have {form['missing_section']}"
    return ""


def form_table(described: Mapping[str, Any]) -> list[list[str]]:
    """Rows of `others`: text, word for a missing section, references that differ from those scored, BLEU-2."""
    scored = {name: described[name] for name in vars(ReferenceForm())}
    return [
        [
            other["text"].replace("_", "-") + (" (scored)" if scored.items() <= other.items() else ""),
            other["missing_section"],
            f"{other['changed']:,}",
            f"{other['bleu2']:.4f}",
        ]
        for other in described["others"]
    ]
