"""The report's page of counterfactuals: what of a study a model's report depends on, read in a minute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.counterfactual_results import CHANGES
from evaluation.names import shown_name
from evaluation.tables import Table, cell

THREE = {
    "looks_at_film": "looks at the film: fall of micro-F1 with another patient's film",
    "uses_prior": "uses the prior: fall of the composite reward with another patient's prior",
    "copies_prior": "copies the prior: agreement gained by a prior that says the opposite",
}
INTRODUCTION = (
    "Test reports written once more with one thing of each study changed. A text that changes proves nothing, since a random "
    "model's does too; what counts is how far scores and labels against the right reference fall. 95% intervals over patients; "
    "zero within one means that nothing shows."
)


def shares(models: Mapping[str, Any]) -> Table:
    """One row a model: the three numbers, and how many different reports it writes."""
    rows = []
    for name, found in models.items():
        rows.append(
            [
                shown_name(name),
                *(cell(found[key], signed=True) if found.get(key) else "–" for key in THREE),
                f"{found['distinct_reports']:,} of {found['studies']:,}",
                f"{found['most_frequent_report']:,}",
                *(cell(found["against_baselines"].get(b), signed=True) for b in ("most_frequent", "retrieval")),
            ]
        )
    header = ["", *THREE.values(), "distinct reports", "the most frequent one, times"]
    header += ["composite less that of the most frequent report", "composite less retrieval's"]
    return Table(header, rows)


def changes(found: Mapping[str, Any], name: str) -> Table:
    """One row a change, of one model."""
    rows = []
    for change, numbers in found["changes"].items():
        turned = ""
        for key, what in (("change_words_turned", "change words"), ("sides_turned", "sides")):
            if key in numbers:
                turned = f"{what} {cell(numbers[key], percent=True)}% of {numbers[key]['n']:,}"
        rows.append(
            [
                CHANGES[change],
                f"{numbers['studies']:,}",
                f"{cell(numbers['unchanged'], percent=True)}%",
                cell(numbers.get("composite"), signed=True),
                *(cell(numbers.get(key), signed=True) for key in ("bertscore", "sembscore", "radgraph", "bleu2")),
                cell(numbers.get("micro_f1"), signed=True),
                f"{cell(numbers['labels_changed'], percent=True)}%",
                turned,
            ]
        )
    header = ["what is changed", "studies", "reports unchanged", "fall of composite", "of BERTScore", "of SembScore"]
    header += ["of RadGraph-F1", "of BLEU-2", "of micro-F1", "labels changed", "turned round"]
    return Table(header, rows, folded=f"{shown_name(name)}: every change")


def sentences(models: Mapping[str, Any]) -> list[str]:
    """What the numbers say, by rule: a number counts where its interval lies above zero."""
    told = []
    for name, found in models.items():
        words = []
        for key, yes, no in (
            ("looks_at_film", "looks at the film", "does not show that it looks at the film"),
            ("uses_prior", "uses the prior", "does not show that it uses the prior"),
            ("copies_prior", "is led by what a prior says", "does not show that it copies the prior"),
        ):
            value = found.get(key)
            if value and value["low"] is not None:
                words.append(yes if value["low"] > 0 else no)
        if words:
            told.append(f"{shown_name(name)} {'; '.join(words)}.")
    return told


def text(result: Mapping[str, Any]) -> str:
    """The three numbers for a terminal."""
    lines = [f"{'':<14}{'looks at film':<26}{'uses prior':<26}{'copies prior':<26}distinct reports"]
    for name, found in result["models"].items():
        cells = [cell(found[key], signed=True) if found.get(key) else "–" for key in THREE]
        distinct = f"{found['distinct_reports']} of {found['studies']}"
        lines.append(f"{name:<14}" + "".join(f"{one:<26}" for one in cells) + distinct)
    return "\n".join(lines)
