"""The data card: what is in a prepared folder, what was dropped and why, and what it was made from."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep.contact_sheet import draw_contact_sheet
from data_prep.folder import read_images, recorded_files
from data_prep.rejects import REASONS
from data_prep.study import SPLITS, TEST_REST
from foundation.files import write_bytes, write_text

FORMAT = 2  # of the prepared folder; a higher one is not read as done
SAMPLE = (
    "Films as prepared, with their standard deviation (of 255); framed in red those of least contrast, in blue those of most. "
    "Look at them before training."
)
ENCOUNTERS = ("1", "2", "3", "4", "5+")  # the paper's groups (Figure 3b)


def write_card(
    studies: pd.DataFrame, rejects: pd.DataFrame, out: Path, whole: Path, made_from: dict, about: dict
) -> dict[str, Any]:
    """Write card.md, plots/ and, last, card.json for the prepared `studies` and `rejects`, whose images lie in `whole`; return
    the card.

    Nothing in it depends on the clock or the machine's paths: the same input and options give the same bytes.
    """
    card = make_card(studies, rejects, made_from, about) | {"files": recorded_files(out)}
    sheet = ["sample"] if draw_contact_sheet(read_images(out), whole, out / "plots" / "sample.png") else []
    plots = [*sheet, *write_plots(studies, out / "plots")]
    write_text(out / "card.md", markdown(card, plots))
    write_text(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card


def make_card(studies: pd.DataFrame, rejects: pd.DataFrame, made_from: dict, about: dict) -> dict[str, Any]:
    """Counts and statistics of a prepared data set as plain values."""
    described = studies.drop(columns=["study_id", "image", "prior_image"])
    present = [*SPLITS, *([TEST_REST] if (described["split"] == TEST_REST).any() else [])]
    per_split = {split: describe(described[described["split"] == split]) for split in present}
    reasons = rejects["reason"].value_counts()
    return {
        **about,
        "made_from": made_from,
        "found": len(studies) + len(rejects),
        "kept": len(studies),
        "rejected": len(rejects),
        "reject_reasons": {reason: int(reasons[reason]) for reason in REASONS if reason in reasons},
        "evaluation_split": next((s for s in ("test", "validation") if per_split[s]["studies"]), None),
        "splits": per_split,
    }


def describe(studies: pd.DataFrame) -> dict[str, Any]:
    """One split: counts of studies, patients, sections, views, demographics, encounters; section lengths in words."""
    findings, impression = studies["findings_words"] > 0, studies["impression_words"] > 0
    encounter = studies["encounter"].astype("int64").clip(upper=5)
    prior = studies["prior_study_id"].notna()
    age = pd.to_numeric(studies["age"]).dropna()
    return {
        "studies": len(studies),
        "patients": int(studies["patient_id"].nunique()),
        "sections": {
            "findings and impression": int((findings & impression).sum()),
            "findings only": int((findings & ~impression).sum()),
            "impression only": int((~findings & impression).sum()),
            "indication": int((studies["indication_words"] > 0).sum()),
            "comparison": int((studies["comparison_words"] > 0).sum()),
        },
        "words": {name: words(studies[f"{name}_words"]) for name in ("indication", "findings", "impression")},
        "views": counts(studies["view"]),
        "sex": counts(studies["sex"]),
        "race": counts(studies["race"]),
        "age": {
            "known": len(age),
            **(
                {"mean": round(math.fsum(age) / len(age), 2), "min": float(age.min()), "max": float(age.max())}
                if len(age)
                else {}
            ),
        },
        "dated": int(studies["study_datetime"].notna().sum()),
        "encounters": {
            name: {"studies": int((encounter == n).sum()), "with prior": int(((encounter == n) & prior).sum())}
            for n, name in enumerate(ENCOUNTERS, start=1)
        },
    }


def counts(column: pd.Series) -> dict[str, int]:
    """How often each value occurs, most frequent first; `unknown` for null."""
    values = {"unknown" if pd.isna(k) else str(k): int(v) for k, v in column.value_counts(dropna=False).items()}
    return dict(sorted(values.items(), key=lambda item: (-item[1], item[0])))


def words(column: pd.Series) -> dict[str, float]:
    """Length in words of the sections that are there, from a column that has 0 for those that are not."""
    lengths = column[column > 0].astype("int64")
    if not len(lengths):
        return {}
    quantiles = lengths.quantile([0.05, 0.5, 0.95])
    return {
        "mean": round(float(lengths.mean()), 1),
        **{name: round(float(quantiles[q]), 1) for name, q in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))},
    }


def markdown(card: dict[str, Any], plots: list[str]) -> str:
    """The card for people to read."""
    made_from = card["made_from"]
    lines = [
        f"# {_cell(card['title'])}",
        "",
        f"Licence: {_cell(card['licence'])}"
        + (" **Credentialed: its text may not be sent to third parties.**" if card["credentialed"] else ""),
        "",
        f"{card['found']:,} studies found = {card['kept']:,} kept + {card['rejected']:,} rejected.",
        "",
    ]
    if card["evaluation_split"] != "test":
        lines += [f"There is no test split; evaluation uses the {card['evaluation_split']} split.", ""]
    lines += [f"- {note}" for note in card["notes"]]
    if unknown := card["unknown_words"]:
        lines += [
            "",
            "## Words that are not known",
            "",
            "Their value is null. `values` in the mapping says what a word means.",
            "",
        ]
        lines += ["| column | word | rows |", "|---|---|---|"]
        lines += [f"| {name} | {_cell(w)} | {n:,} |" for name, words in unknown.items() for w, n in words.items()]
    lines += ["", "| | " + " | ".join(card["splits"]) + " |", "|---" * (len(card["splits"]) + 1) + "|"]

    def row(name: str, values: list) -> None:
        lines.append(f"| {name} | " + " | ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in values) + " |")

    splits = list(card["splits"].values())
    row("studies", [s["studies"] for s in splits])
    row("patients", [s["patients"] for s in splits])
    for name in splits[0]["sections"]:
        row(name, [s["sections"][name] for s in splits])
    for name in splits[0]["words"]:
        row(
            f"{name}, words: median (5–95%)",
            [f"{w['median']:g} ({w['p5']:g}–{w['p95']:g})" if (w := s["words"][name]) else "–" for s in splits],
        )
    for name in ("views", "sex"):
        for value in sorted({v for s in splits for v in s[name]}):
            row(f"{name} {value}".replace("views", "view"), [s[name].get(value, 0) for s in splits])
    row(
        "age, mean (range)",
        [f"{a['mean']:g} ({a['min']:g}–{a['max']:g})" if (a := s["age"])["known"] else "–" for s in splits],
    )
    for value in sorted({v for s in splits for v in s["race"]}):
        row(f"race {_cell(value)}", [s["race"].get(value, 0) for s in splits])
    for name in ENCOUNTERS:
        row(
            f"encounter {name} (with prior)",
            [f"{e['studies']:,} ({e['with prior']:,})" for s in splits for e in [s["encounters"][name]]],
        )
    lines += ["", "## Rejected", "", "| reason | studies | |", "|---|---|---|"]
    lines += [f"| {r} | {n:,} | {REASONS[r]} |" for r, n in card["reject_reasons"].items()] or ["| none | 0 | |"]
    lines += ["", "## Made from", "", f"Source `{made_from['dataset']}`, options:", ""]
    lines += [f"- {key}: {value}" for key, value in made_from["options"].items() if value not in (None, "", False)]
    lines += ["", "Index files (SHA-256):", ""]
    lines += [f"- {_cell(name)}: {digest}" for name, digest in made_from["inputs"].items()]
    if plots:
        lines += ["", "## Plots", ""]
        lines += [SAMPLE, ""] if "sample" in plots else []
        lines += [f"![{name}](plots/{name}.png)" for name in plots]
    return "\n".join(lines) + "\n"


def write_plots(studies: pd.DataFrame, folder: Path) -> list[str]:
    """Histograms of section lengths, encounters and (where known) ages, one PNG each; their names."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    drawn = []

    def save(figure: Figure, name: str) -> None:
        drawing = BytesIO()
        figure.savefig(drawing, format="png", dpi=80, metadata={"Software": None})
        write_bytes(folder / f"{name}.png", drawing.getvalue())
        drawn.append(name)

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name in ("findings", "impression"):
        lengths = studies.loc[studies[f"{name}_words"] > 0, f"{name}_words"]
        axes.hist(lengths.clip(upper=200), bins=range(0, 205, 5), histtype="step", label=name)
    axes.set(xlabel="words (200 = 200 or more)", ylabel="studies", title="Section lengths")
    axes.legend()
    save(figure, "section_lengths")

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    encounter = studies["encounter"].astype("int64").clip(upper=5).value_counts()
    axes.bar(ENCOUNTERS, [int(encounter.get(n, 0)) for n in range(1, 6)])
    axes.set(xlabel="encounter", ylabel="studies", title="Encounters")
    save(figure, "encounters")

    age = pd.to_numeric(studies["age"]).dropna()
    if len(age):
        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.subplots()
        axes.hist(age.clip(upper=100), bins=range(0, 105, 5))
        axes.set(xlabel="age in years", ylabel="studies", title="Age")
        save(figure, "age")
    return drawn


def _cell(text: object) -> str:
    """Untrusted text for a Markdown table cell or list."""
    escaped = str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return escaped.replace("<", "&lt;").replace("`", "'")[:120]
