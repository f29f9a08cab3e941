"""Beside published numbers: a board's rows and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation import figures
from evaluation.compare import read_result
from evaluation.material import Material
from evaluation.names import shown_name, shown_number
from evaluation.part import Part
from evaluation.principal_part import readable
from evaluation.published import METRICS as PUBLISHED_METRICS
from evaluation.published import caution, comparable
from evaluation.run_folder import evaluations, read_run
from evaluation.tables import Table, listed


def published(m: Material) -> list[Part]:
    """A section for each board that published numbers may stand on beside these; one that says why for the others."""
    parts: list[Part] = []
    reasons: dict[str, list[str]] = {}
    for name in evaluations(m.run.root):
        run = read_run(m.run.root, name)
        for dataset in run.datasets:
            results = {
                model: read_result(run.folders[model][dataset]) for model in run.models if dataset in run.folders[model]
            }
            # A baseline's file does not say what a model saw; the models' own results decide.
            first = next((r for r in results.values() if r["made_by"].get("longitudinal") is not None), None)
            first = first or next(iter(results.values()))
            rows, reason = comparable(first)
            if reason:
                reasons.setdefault(reason, []).append(f"{dataset} ({what_was_asked(first)})")
                continue
            parts.append(_board(f"published-{len(parts)}", dataset, results, rows))
    if reasons:
        points = [f"{listed(datasets)}: {reason}." for reason, datasets in reasons.items()]
        parts.append(Part("published", "Published numbers", "None stand beside these:", points=points))
    return parts


def _board(id: str, dataset: str, results: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Part:
    """This run's models beside the rows of one board."""
    means = {model: result["metrics"] for model, result in results.items() if not comparable(result)[1]}
    ranked = sorted(rows, key=lambda r: -(r["1/radcliq_v1"] or 0))
    table = [
        [shown_name(model), *(readable(n, means[model].get(n)) for n in PUBLISHED_METRICS), "this run", ""]
        for model in means
    ]
    table += [
        [r["model"], *("–" if r[n] is None else f"{r[n]:.3f}" for n in PUBLISHED_METRICS), r["source"], r["date"]]
        for r in ranked
    ]
    warning = caution(next(iter(results.values())), rows)
    sections = what_was_asked({"made_by": {"sections": rows[0]["sections"]}})
    return Part(
        id,
        f"Beside published numbers: {dataset}, {sections}",
        f"{warning and warning + ' '}ReXrank's test set, {sections}, without priors as on its board. Published numbers come "
        "without intervals; the figure shows the eight highest by 1/RadCliQ-v1, the table all.",
        figures.metrics_against_published(means, PUBLISHED_METRICS, ranked[:8]),
        [Table(["", *map(shown_number, PUBLISHED_METRICS), "source", "date"], table, caption=warning)],
    )


def what_was_asked(result: Mapping[str, Any]) -> str:
    """The evaluation of a scores.json for people."""
    shown = {True: "with priors", False: "without priors"}.get(result["made_by"].get("longitudinal"))
    sections = {"findings_impression": "findings + impression", "available": "the reference's sections"}
    return ", ".join(filter(None, (sections.get(result["made_by"]["sections"], result["made_by"]["sections"]), shown)))
