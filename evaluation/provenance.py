"""The report's last words: what each number is, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.compare import read_result
from evaluation.material import Material
from evaluation.names import F1_MEANING, meaning, shown_name, shown_number, split_number
from evaluation.references import form_table
from evaluation.statistics import MIN_PATIENTS, PERMUTATIONS
from evaluation.statistics.resampling import EXACT_PATIENTS
from evaluation.tables import Table, listed
from foundation.errors import read_record

SECTIONS_IN_WORDS = {
    "available": "the sections that the reference has",
    "findings_impression": "findings and impression",
    "findings": "findings",
}
ASKED = (
    "What each model was told. A model that is asked for the sections that the reference has knows more than one that is asked "
    "for both; what a report has beside the compared sections does not count."
)
FINGERPRINT = 16  # hexadecimal digits shown; scores.json has all


def lead(m: Material) -> str:
    models = listed([shown_name(model) for model in m.trained or m.models])
    return f"{models}: reports of studies from {listed(m.run.shown(m.run.datasets))}."


def notices(m: Material, unusual: int) -> list[str]:
    """What a reader must know before any number."""
    found = []
    if any(d["backend"] == "offline" for d in m.described.values()):
        found.append(
            "Numbers marked [offline…] come from rule-based stand-ins for machines without the metrics' weights. They are "
            "not the published metrics and must not be compared with published numbers."
        )
    skipped = {name for d in m.described.values() for name in d.get("skipped", [])}
    if skipped:
        found.append(
            f"Not scored: {listed([shown_number(name) for name in sorted(skipped)])} (reasons: How it was made)."
        )
    if unusual:
        found.append(
            f"{unusual} unusual things about the prediction files (missing, extra, empty or null predictions, failed judge "
            "calls): see the table in the summary. Missing, null and empty predictions count as empty reports."
        )
    if m.summary["not_rexranks_test"]:
        found.append(
            f"Not ReXrank's test: {listed(m.summary['not_rexranks_test'])}. These studies are not those of ReXrank's board "
            "or of the paper's figures, and their numbers do not compare with either."
        )
    if m.summary["not_evaluated"]:
        found.append(f"Not evaluated in this run: {listed([shown_name(s) for s in m.summary['not_evaluated']])}.")
    return found


def how_it_was_made(m: Material, data_dir: Path | None) -> dict[str, Any]:
    """Words, tables and data cards of the section."""
    scored, generated, skipped, forms, asked = [], [], {}, [], []
    for model in m.run.models:
        for dataset, folder in m.run.folders[model].items():
            result = read_result(folder)
            sha = result["made_by"]["predictions_sha256"][:FINGERPRINT]
            scored.append([shown_name(model), dataset, result.get("command", ""), sha])
            if form := result["made_by"].get("reference_form"):
                forms += [[shown_name(model), dataset, *row] for row in form_table(form)]
            path = folder / "generation.json"
            made_by = read_record(path, "made_by")["made_by"] if path.is_file() else {}
            compared = SECTIONS_IN_WORDS.get(result["made_by"]["sections"], result["made_by"]["sections"])
            asked.append([shown_name(model), dataset, *_told(made_by), compared])
            if made_by:
                told = ", ".join(
                    f"{k} {str(v)[:FINGERPRINT] if k.endswith('sha256') else v}" for k, v in made_by.items()
                )
                generated.append([shown_name(model), dataset, told])
            skipped |= result.get("skipped_metrics", {})
    cards = []
    for dataset in m.run.datasets:
        folder = m.run.data_folder(dataset, data_dir)
        card = folder / "card.md" if folder else None
        if card and card.is_file():
            cards.append((dataset, card.read_text(encoding="utf-8")))
    tables = [
        Table(["number", "what it is", "backend", "fingerprint"], _numbers(m)),
        Table(["model", "data set", "asked for", "shown besides the image", "compared with"], asked, caption=ASKED),
    ]
    if skipped:
        rows = [[shown_number(name), reason] for name, reason in skipped.items()]
        tables.append(Table(["not scored", "why"], rows))
    if forms:
        columns = ["model", "data set", "references", "for a missing section", "references that differ", "BLEU-2"]
        tables.append(Table(columns, forms, folded="BLEU-2 of the same reports against references of other forms"))
    tables += [
        Table(["model", "data set", "command", "predictions (sha256)"], scored, folded="Scoring commands"),
        Table(["model", "data set", "settings"], generated, folded="Generation settings"),
        Table(["package", "version"], [[k, v] for k, v in m.summary["versions"].items()], folded="Versions"),
    ]
    return {"statistics": _statistics(m), "tables": tables, "cards": cards}


def _told(made_by: Mapping[str, Any]) -> tuple[str, str]:
    """What a model was asked for and shown, by its `generation.json`; of a file from elsewhere that is not known."""
    if not made_by:
        return "not known", "not known"
    asked = SECTIONS_IN_WORDS.get(made_by.get("sections"), "not known")
    if "baseline" in made_by:
        return asked, "no image"
    shown = [
        name for key, name in (("context", "indication and comparison"), ("longitudinal", "prior")) if made_by.get(key)
    ]
    return asked, listed(shown)


def _statistics(m: Material) -> list[str]:
    return [
        f"Intervals: 95%, over patients: a patient's studies are kept together, because they are alike. Means and differences: "
        f"{m.resamples:,} bootstrap resamples (percentiles, widened as Student's t is for few patients; seed {m.seed}; another "
        "seed moves an end by about 2% of the half width). Shares and F1: Jeffreys' interval of the effective number of studies, "
        "exact where all or none are hits. Errors by type: the gamma interval of the effective number of errors. Fewer than "
        f"{MIN_PATIENTS} patients: none. Simulated, they hold the true value in at least 92% of cases from 120 studies on.",
        "Differences between models are paired: the same studies, the same resamples. p is of a permutation test that swaps "
        f"the two models' reports within patients, two-sided ({PERMUTATIONS:,} permutations; beyond them the tail of the normal "
        f"distribution with their spread; of up to {EXACT_PATIENTS} patients whose values differ, all swaps). So few patients may "
        "not allow a smaller p, however large the difference; this is said beside it. Holm's correction is over two families: the principal numbers (RadCliQ-v1, micro-F1 of "
        "14 conditions, composite, the judge's errors) of all pairs of a table, and all its other numbers.",
        "One over RadCliQ is one over its mean, and its interval is the mean's inverted; studies are never inverted one by one.",
        f"A number is printed as – where it does not exist. {shown_number('composite')}: "
        + " + ".join(f"{w:g} × {shown_number(n)}" for n, w in _weights(m).items() if w)
        + " (step 1's reward).",
    ]


def _weights(m: Material) -> Mapping[str, float]:
    return m.described[m.run.models[0]]["composite"]["weights"]


def _numbers(m: Material) -> list[list[str]]:
    """Rows: number, meaning, backend, fingerprint; a number whose backend differs between models has a row for each."""
    rows: dict[tuple[str, str], list[str]] = {}
    for described in m.described.values():
        for number in next(iter(m.means.values())):
            base, _ = split_number(number)
            if base.startswith(("errors", "significant")):
                made = {"backend": described["judge"]["model"], "fingerprint": described["judge"]["fingerprint"]}
            elif "_f1_" in base:
                continue
            elif base == "composite":
                made = {"backend": "its parts'", "fingerprint": ""}
            else:
                made = described["metrics"].get(number.removeprefix("1/"), {"backend": "–", "fingerprint": ""})
            if base.startswith(("1/radcliq", "radcliq")):
                made = {"backend": made["backend"], "fingerprint": "its parts'"}
            row = [shown_number(number), meaning(number), made["backend"], made["fingerprint"][:FINGERPRINT]]
            rows[(number, made["fingerprint"])] = row
        labels = described["labels"]
        row = ["F1 of conditions", F1_MEANING, labels["backend"], labels["fingerprint"][:FINGERPRINT]]
        rows[("f1", labels["fingerprint"])] = row
    return list(rows.values())
