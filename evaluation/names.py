"""Names for people: of models, of numbers, with what each number is and where it comes from."""

from __future__ import annotations

import re
from dataclasses import dataclass

MODELS = {
    "most_frequent": "baseline: most frequent report",
    "copy_prior": "baseline: copy the prior report",
    "retrieval": "baseline: retrieval by indication",
    "sft": "SFT",
    "rl_step1": "RL step 1",
    "rl_step2": "RL step 2",
}
SHORT_MODELS = {"most_frequent": "most frequent", "copy_prior": "copy prior", "retrieval": "retrieval"}


@dataclass(frozen=True)
class Number:
    """A number of the report: its name, which way is better, what it is."""

    name: str
    meaning: str
    lower_is_better: bool = False


NUMBERS = {
    "bleu2": Number(
        "BLEU-2", "Matching words and word pairs, with a penalty for short reports. Exact on every machine."
    ),
    "rouge_l": Number(
        "ROUGE-L", "F1 of the longest common subsequence of word stems (Lin 2004). Exact on every machine."
    ),
    "temporal_f1": Number(
        "temporal F1",
        "F1 of the words of change (new, stable, worsened …) that the two reports use; 1 where neither has one.",
    ),
    "bertscore": Number(
        "BERTScore",
        "Likeness of the words' vectors (F1, distilroberta-base, layer 5, rescaled so that unlike texts give 0).",
    ),
    "sembscore": Number("SembScore", "Cosine of the two reports' CheXbert vectors."),
    "sembscore_labels": Number("SembScore of labels", "Cosine of the two reports' CheXbert labels."),
    "radgraph": Number(
        "RadGraph-F1",
        "Mean of the F1 of entities (anatomy and observations, present, absent or uncertain) and of the F1 of their "
        "relations; 0.5 at most where a report has no relation.",
    ),
    "1/radcliq_v1": Number(
        "1/RadCliQ-v1",
        "One over the mean RadCliQ-v1, ReXrank's main number. RadCliQ can reach zero and below, where its inverse says "
        "nothing: it is left out there.",
    ),
    "radcliq_v1": Number(
        "RadCliQ-v1",
        "Regression of radiologists' error counts on BLEU-2, BERTScore, SembScore and RadGraph-F1 (Yu et al. 2023).",
        lower_is_better=True,
    ),
    "ratescore": Number("RaTEScore", "Likeness of medical entities with their types (Zhao et al. 2024)."),
    "green": Number(
        "GREEN", "Matched findings over these and significant errors, by a language model (Ostmeier et al. 2024)."
    ),
    "crimson": Number(
        "CRIMSON", "Findings matched and weighted by what they mean for the patient, by a language model (2026)."
    ),
    "radmatch": Number(
        "RadMatch", "1 / (actionable errors + 1), of findings matched one by one by a language model (Raidium 2026)."
    ),
    "composite": Number("composite reward", "Step 1's reward: 0.370 BERTScore + 0.253 SembScore + 0.377 RadGraph-F1."),
    "errors chexprompt": Number(
        "CheXprompt errors a report",
        "Errors of six types that the judge counts, significant or not.",
        lower_is_better=True,
    ),
    "significant errors chexprompt": Number(
        "CheXprompt significant errors a report", "Those of them that the judge calls clinically significant.", True
    ),
}
for _average in ("micro", "macro"):
    for _n in (14, 5):
        for _kind, _source in (("label", "labels of the references"), ("truth", "true labels")):
            NUMBERS[f"{_kind}_{_average}_f1_{_n}"] = Number(f"{_average}-F1, {_n} conditions, {_source}", "")
for _kind, _source in (("label", "labels of the references"), ("truth", "true labels")):
    NUMBERS[f"{_kind}_macro_f1_common"] = Number(f"macro-F1, conditions of at least 5 patients, {_source}", "")
F1_MEANING = (
    "Conditions that the labeler finds in the written report, against those that it finds in the reference (labels of the "
    "references) or that the image shows (true labels); uncertain counts as present. Micro: pooled over conditions; macro: "
    "their mean, in which a condition that no reference has counts as 0; 5: cardiomegaly, edema, consolidation, atelectasis, "
    "pleural effusion. Macro-F1 has an interval where each of its conditions is present in at least five patients: with rarer "
    "ones none that was tried holds the true value often enough."
)


def shown_name(model: str) -> str:
    """A model, or a comparison, in tables."""
    return MODELS.get(model, model.replace("_", " "))


def short_name(model: str) -> str:
    """The same, where there is little room: in figures."""
    return SHORT_MODELS.get(model, shown_name(model))


def shown_number(number: str, arrow: bool = True) -> str:
    """A number's name with the mark of a stand-in, and ↓ where lower is better: `BERTScore [offline-hash]`."""
    base, mark = split_number(number)
    known = NUMBERS.get(base)
    name = known.name if known else base
    return name + (" ↓" if arrow and known and known.lower_is_better else "") + (f" {mark}" if mark else "")


def lower_is_better(number: str) -> bool:
    known = NUMBERS.get(split_number(number)[0])
    return bool(known and known.lower_is_better)


def split_number(number: str) -> tuple[str, str]:
    """A number's bare name and the mark of its backend: `radgraph`, `[offline-rules]`."""
    match = re.fullmatch(r"(.*?)(\[.*\])?", number)
    return match.group(1), match.group(2) or ""


def meaning(number: str) -> str:
    known = NUMBERS.get(split_number(number)[0])
    return known.meaning if known else ""


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
