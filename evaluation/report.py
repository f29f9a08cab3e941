"""One HTML file for a run: summary, figures with their tables, how each number was made, and a study browser.

    python -m evaluation report --outputs outputs/demo

The file opens offline and loads nothing. Report texts are untrusted: Jinja escapes what it prints, the studies are JSON
with every `<`, `>` and `&` escaped, the page's script writes them as text, and a content policy allows that one script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from evaluation import figures, statistics
from evaluation.baselines import BASELINES
from evaluation.breakdowns import breakdown
from evaluation.browser import BROWSER_STUDIES, browser_content
from evaluation.compare import compare, read_result
from evaluation.published import METRICS as PUBLISHED_METRICS
from evaluation.published import comparable
from evaluation.run_folder import Run, read_run
from evaluation.score import Scores, condition_statistics, judge_statistics, principal_statistics
from evaluation.statistics import Statistic
from evaluation.summary import summarise_run
from evaluation.tables import Table, cell, p_value, shown_name
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS, binary_labels

_PAGE = Path(__file__).with_name("page")


@dataclass
class Part:
    """One section of the report: a figure with its tables, or the reason why it is absent."""

    id: str
    title: str
    text: str = ""
    figure: Figure | None = None
    tables: list[Table] = field(default_factory=list)
    absent: str = ""
    svg: str = ""  # made from the figure when it is saved


@dataclass
class Material:
    """All numbers of a run that the report shows, made once."""

    run: Run
    summary: Mapping[str, Any]
    scores: dict[str, Scores]  # by model, pooled over data sets
    described: dict[str, dict[str, Any]]
    means: dict[str, dict[str, dict[str, float | None]]]  # by model, over the data sets trained on
    breakdowns: dict[str, dict[str, Any]]
    conditions: dict[str, dict[str, dict[str, Any]]]
    judge: dict[str, dict[str, dict[str, float | None]]]
    words: dict[str, dict[str, float | None]]
    histories: dict[str, list[dict[str, Any]]]
    selections: dict[str, dict[str, Any]]
    comparison: dict[str, Any] | None
    headline: str  # the number that breakdowns are drawn by


def write_report(
    outputs: Path,
    data_dir: Path | None = None,
    browser_studies: int = BROWSER_STUDIES,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Path:
    """Write `report.html`, and each figure as PNG and SVG in `figures/`; returns the report's path.

    Raises:
        EvaluationError: nothing has been scored, or scores that cannot be pooled.
    """
    run = read_run(outputs)
    material = collect(run, summarise_run(outputs, resamples, seed), resamples, seed)
    parts = report_parts(material)
    for part in parts:
        if part.figure is not None:
            part.svg = figures.save(part.figure, outputs / "figures", part.id)
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
    html = environment.get_template("report.html.jinja").render(
        title=f"Report of {outputs.name}",
        lead=_lead(material),
        notices=_notices(material),
        parts=parts,
        made=_how_it_was_made(material, data_dir, resamples, seed),
        browser=browser_content(run, material.headline, data_dir, browser_studies, seed),
        style=(_PAGE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = outputs / "report.html"
    temporary = path.with_name(f".report.{os.getpid()}.tmp")
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)
    return path


def collect(run: Run, summary: Mapping[str, Any], resamples: int, seed: int) -> Material:
    """All numbers of a run. Figures and breakdowns are over all data sets; the summary is over those trained on."""
    scores, described, means, breakdowns, conditions, judge = {}, {}, {}, {}, {}, {}
    words: dict[str, dict[str, float | None]] = {}

    def intervals(found: Mapping[str, Statistic], patients: Sequence[str]) -> dict[str, dict[str, float | None]]:
        made = statistics.bootstrap(found, patients, resamples=resamples, seed=seed)
        return {name: interval.as_dict() for name, interval in made.items()}

    for model in tqdm(run.models, desc="breakdowns", unit="model"):
        pooled = run.scores(model, run.datasets)
        scores[model], described[model] = pooled, run.described(model)
        seen = run.scores(model, run.seen) or pooled
        means[model] = intervals(principal_statistics(seen, described[model]), seen.patient_id)
        breakdowns[model] = breakdown(pooled, described[model], run.zero_shot, resamples, seed)
        source = "truth" if "truth" in pooled.labels else "reference"
        positives = binary_labels(pooled.labels[source]).sum(axis=0)
        conditions[model] = {
            name: {**interval, "positives": int(positives[i])}
            for i, (name, interval) in enumerate(
                intervals(condition_statistics(pooled, source), pooled.patient_id).items()
            )
        }
        if pooled.errors is not None:
            judge[model] = intervals(judge_statistics(pooled), pooled.patient_id)
        lengths = {"words": statistics.mean(np.array(pooled.fields["candidate_words"]))}
        words[model] = intervals(lengths, pooled.patient_id)["words"]
    longest = max(scores.values(), key=lambda s: len(s.study_id))
    words["references"] = {"mean": float(np.mean(longest.fields["words"])), "low": None, "high": None}
    trained = {model: scores[model] for model in run.models if model not in BASELINES}
    real = all(d["backend"] == "real" for d in described.values())
    names = list(next(iter(means.values())))
    wanted = ("1/radcliq_v1", "composite") if real else ("composite", "label_micro_f1_14")
    return Material(
        run=run,
        summary=summary,
        scores=scores,
        described=described,
        means=means,
        breakdowns=breakdowns,
        conditions=conditions,
        judge=judge,
        words=words,
        histories=run.stage_files("log_history.json"),
        selections=run.stage_files("selection.json"),
        comparison=compare(trained, described, resamples, seed) if len(trained) > 1 else None,
        headline=next((n for start in wanted for n in names if n.startswith(start)), names[0]),
    )


def report_parts(material: Material) -> list[Part]:
    """The report's sections in order."""
    m = material
    rl = {s: h for s, h in m.histories.items() if figures.logged_parts(h)}
    parts = [_summary_part(m)]
    metrics = [
        n for n in next(iter(m.means.values())) if "_f1_" not in n and not n.startswith(("radcliq", "significant"))
    ]
    parts.append(
        Part(
            "metrics",
            "Metrics",
            f"Mean with 95% interval over the studies of {_listed(m.run.seen)}. Lower is better for errors.",
            figures.metrics_against_published(m.means, metrics, []),
            [_means_table(m.means)],
        )
    )
    parts += _published_parts(m)
    parts.append(
        _figure_part(
            "rewards",
            "What RL changed, metric by metric",
            "Change of each RL run against the SFT model that it started from.",
            figures.single_against_combined(m.means, metrics),
            "This needs an SFT model and at least one RL run in the same eval folder.",
            [_pairs_table(m.comparison)] if m.comparison else [],
        )
    )
    parts.append(
        _figure_part(
            "training",
            "Training: quality and errors over the steps",
            "Lines: rollouts sampled in training (temperature 1). Points with intervals: greedy reports of the validation "
            "studies at saved checkpoints, by which the best one is chosen.",
            figures.training_curves(rl, m.selections),
            "No RL stage of this run has logged its reward parts.",
            [_selection_table(m.selections)] if m.selections else [],
        )
    )
    parts.append(
        _figure_part(
            "reward-parts",
            "Reward parts over the steps",
            "Each part as the reward saw it, averaged over the rollouts of a step.",
            figures.reward_parts(rl),
            "No RL stage of this run has logged its reward parts.",
            [_parts_table(rl)] if rl else [],
        )
    )
    parts.append(
        _figure_part(
            "length",
            "Length of the reports",
            "A reward that can be raised by writing more, or less, shows here.",
            figures.length_drift(rl, m.words),
            "",
            [Table(["", "words a report"], [[name, cell(value)] for name, value in m.words.items()], folded="Table")],
        )
    )
    parts.append(
        _figure_part(
            "error-counts",
            "Errors a report",
            f"Counted by {_judge_name(m)}; all six types, significant or not.",
            figures.error_histogram(m.judge),
            "No judge has counted errors; score with --judge.",
            _error_tables(m) if m.judge else [],
        )
    )
    labelled = "the true labels" if any("truth" in s.labels for s in m.scores.values()) else "the references' labels"
    parts.append(
        _figure_part(
            "conditions",
            "Findings",
            f"F1 of each condition in the written reports against {labelled}; n is how often the condition is present.",
            figures.condition_f1(m.conditions),
            "No condition is present in the references.",
            [_conditions_table(m)],
        )
    )
    for identity, title, attribute, text, figure, absent in (
        ("encounters", "Encounters", "encounter", "By the patient's encounter: 1 is the first.", figures.encounters, "All studies are of one encounter."),
        ("temporal", "Change over time", "temporal", f"By what the reference says of change, labelled by {_temporal_name(m)}.", figures.temporal_categories, ""),
        ("subgroups", "Subgroups", "sex", "By sex, age and race; unknown is its own stratum.", figures.subgroups, ""),
        ("institutions", "Data sets", "dataset", _zero_shot_text(m), figures.zero_shot, ""),
    ):  # fmt: skip
        attributes = ("sex", "age", "race") if attribute == "sex" else (attribute,)
        if identity == "institutions" and m.run.zero_shot:
            attributes = ("dataset", "institution")
        tables = [_strata_table(m, name) for name in attributes]
        if attribute == "sex":
            tables.insert(0, _gaps_table(m))
        part = _figure_part(
            identity, title, f"{text} Figure: {m.headline}.", figure(m.breakdowns, m.headline), absent, tables
        )
        parts.append(part)
    parts.append(
        Part("other", "By sections and length", "", None, [_strata_table(m, name) for name in ("sections", "length")])
    )
    return parts


# ---- tables ----------------------------------------------------------------------------------------------------------


def _summary_part(m: Material) -> Part:
    rows = []
    for name, numbers in {**m.summary["stages"], **m.summary["baselines"]}.items():
        cells = [cell(numbers.get(key)) for key in ("micro_f1", "composite", "judge_errors")]
        rows.append([shown_name(name), f"{numbers['n']:,}", *cells])
    header = ["", "studies", f"micro-F1 of {_micro_of(m)}", "composite reward", "judge errors a report"]
    tables = [Table(header, rows)]
    if m.summary["paired"]:
        tables.append(_differences_table(m.summary["paired"], "Paired differences on the same studies"))
    zero = m.summary["zero_shot"]
    if zero["stages"]:
        rows = [
            [
                shown_name(name),
                f"{n['n']:,}",
                *(cell(n.get(key)) for key in ("micro_f1", "composite", "judge_errors")),
            ]
            for name, n in {**zero["stages"], **zero["baselines"]}.items()
        ]
        tables.append(Table(header, rows, caption=f"Zero-shot: {_listed(m.run.zero_shot)}"))
        tables.append(_differences_table(zero["paired"], "Paired differences, zero-shot"))
    if unusual := _unusual(m):
        caption = "Unusual predictions"
        tables.append(Table(["model", "data set", "what", "how many", "studies"], unusual, caption=caption))
    if m.summary["seconds"]:
        seconds = m.summary["seconds"]
        memory = m.summary["peak_memory_mib"] or {}
        rows = [
            [s, f"{v:,.0f} s" if v is not None else "–", f"{memory[s]:,} MiB" if s in memory else "–"]
            for s, v in seconds.items()
        ]
        tables.append(Table(["stage", "time", "peak memory"], rows, folded="Time and memory of each stage"))
    text = f"Over the studies of {_listed(m.run.seen)}; mean with 95% interval over patients."
    return Part("summary", "Summary", text, None, tables)


def _differences_table(paired: Mapping[str, Any], caption: str) -> Table:
    names = {"micro_f1": "micro-F1", "composite": "composite reward", "judge_errors": "judge errors a report"}
    rows = [
        [
            pair.replace(" - ", " − "),
            names[key],
            cell(value, "difference", signed=True),
            p_value(value["p"]),
            p_value(value["p_holm"]),
        ]
        for pair, numbers in paired.items()
        for key, value in numbers.items()
    ]
    return Table(["", "number", "difference", "p", "p (Holm)"], rows, caption=caption)


def _means_table(means: figures.Means) -> Table:
    numbers = list(dict.fromkeys(n for model in means.values() for n in model))
    rows = [[n, *(cell(means[m].get(n)) for m in means)] for n in numbers]
    return Table(["", *map(shown_name, means)], rows)


def _published_parts(m: Material) -> list[Part]:
    """A section for each data set where published numbers may stand beside these; one that says why for the others."""
    parts, reasons = [], []
    for dataset in m.run.datasets:
        models = [model for model in m.run.models if dataset in m.run.folders[model]]
        results = {model: read_result(m.run.folders[model][dataset]) for model in models}
        rows, reason = comparable(results[models[0]], dataset)
        if reason:
            reasons.append([dataset, reason])
            continue
        means = {model: results[model]["metrics"] for model in models if not comparable(results[model], dataset)[1]}
        table = [[model, *(cell(means[model].get(n)) for n in PUBLISHED_METRICS), "this run", ""] for model in means]
        table += [
            [r["model"], *("–" if r[n] is None else f"{r[n]:.3f}" for n in PUBLISHED_METRICS), r["source"], r["date"]]
            for r in sorted(rows, key=lambda r: -(r["1/radcliq_v1"] or 0))
        ]
        shown = sorted(rows, key=lambda r: -(r["1/radcliq_v1"] or 0))[:8]
        parts.append(
            Part(
                f"published-{len(parts)}",
                f"Beside published numbers: {dataset}",
                f"ReXrank's test split, sections {rows[0]['sections']}. Published numbers come without intervals; the figure "
                "shows the eight highest by 1/RadCliQ-v1, the table all.",
                figures.metrics_against_published(means, PUBLISHED_METRICS, shown),
                [Table(["", *PUBLISHED_METRICS, "source", "date"], table)],
            )
        )
    if reasons:
        table = Table(["data set", "why no published numbers stand beside these"], reasons)
        parts.append(Part("published", "Published numbers", "", None, [table]))
    return parts


def _pairs_table(comparison: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{shown_name(r['first'])} − {shown_name(r['second'])}",
            r["number"],
            cell(r, "difference", signed=True),
            p_value(r["p"]),
            p_value(r["p_holm"]),
        ]
        for r in comparison["pairs"]
    ]
    folded = f"All pairs of models on their {comparison['studies']:,} common studies, Holm-corrected over the table"
    return Table(["", "number", "difference", "p", "p (Holm)"], rows, folded=folded)


def _selection_table(selections: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{shown_name(stage)}, {c['checkpoint']}",
            f"{c['studies']:,}",
            cell(c["radcliq_v1"]),
            cell(c["inverse_radcliq_v1"]),
            "best" if c["checkpoint"] == selection["best"] else "",
        ]
        for stage, selection in selections.items()
        for c in selection["checkpoints"]
    ]
    header = ["checkpoint", "studies", "RadCliQ-v1", "1/RadCliQ-v1", ""]
    backends = " and ".join(sorted({s["backend"] for s in selections.values()}))
    return Table(header, rows, caption=f"Validation, backend {backends}")


def _parts_table(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for stage, history in histories.items():
        for part, (_, values) in figures.logged_parts(history).items():
            third = max(1, len(values) // 3)
            rows.append([stage, part, f"{np.mean(values[:third]):.3f}", f"{np.mean(values[-third:]):.3f}"])
    return Table(["stage", "part", "mean of the first third", "mean of the last third"], rows, folded="Table")


def _error_tables(m: Material) -> list[Table]:
    shares = [
        [shown_name(model), *(cell(t[b], percent=True) for b in ("≤1", "2", "3", "≥4"))] for model, t in m.judge.items()
    ]
    types = [
        [shown_name(model), name.replace("_", " "), cell(t[f"{name} significant"]), cell(t[f"{name} insignificant"])]
        for model, t in m.judge.items()
        for name in ERROR_TYPES
    ]
    return [
        Table(["", "≤ 1 error", "2", "3", "≥ 4"], shares, caption="Share of reports (%)"),
        Table(["", "type", "significant", "insignificant"], types, folded="Mean errors a report by type"),
    ]


def _conditions_table(m: Material) -> Table:
    first = next(iter(m.conditions.values()))
    rows = [
        [c, str(first[c]["positives"]), *(cell(m.conditions[model][c]) for model in m.conditions)] for c in CONDITIONS
    ]
    return Table(["", "n", *map(shown_name, m.conditions)], rows, folded="Table")


def _strata_table(m: Material, attribute: str) -> Table:
    numbers = [
        n
        for n in next(iter(m.means.values()))
        if "_macro_" not in n and "_f1_5" not in n and not n.startswith("radcliq")
    ]
    rows = []
    for model, found in m.breakdowns.items():
        for name, stratum in found.get(attribute, {"strata": {}})["strata"].items():
            n = f"{stratum['n']:,}" + (" (few patients)" if stratum["small"] else "")
            rows.append([f"{name} · {shown_name(model)}", n, *(cell(stratum["metrics"].get(x)) for x in numbers)])
    order = {s: i for i, s in enumerate(next(iter(m.breakdowns.values())).get(attribute, {"strata": {}})["strata"])}
    rows.sort(key=lambda row: order.get(row[0].split(" · ")[0], len(order)))
    return Table([attribute, "n", *numbers], rows, folded=f"Table by {attribute}")


def _gaps_table(m: Material) -> Table:
    rows = []
    for model, found in m.breakdowns.items():
        for attribute in ("sex", "age", "race"):
            gap = found[attribute].get("gaps", {}).get(m.headline)
            if gap:
                between = f"{gap['highest']} − {gap['lowest']}"
                rows.append(
                    [
                        f"{shown_name(model)}, {attribute}",
                        between,
                        cell(gap, "difference"),
                        p_value(gap["p"]),
                        p_value(gap["p_holm"]),
                    ]
                )
    caption = f"Largest gap between known strata of at least ten patients: {m.headline}. Permutation test; Holm over all metrics and attributes of a model."
    return Table(["", "between", "gap", "p", "p (Holm)"], rows, caption=caption)


def _figure_part(
    identity: str, title: str, text: str, figure: Figure | None, absent: str, tables: list[Table] | None = None
) -> Part:
    return Part(identity, title, text, figure, tables or [], absent if figure is None else "")


# ---- how it was made -------------------------------------------------------------------------------------------------


def _lead(m: Material) -> str:
    total = max(len(s.study_id) for s in m.scores.values())
    trained = [model for model in m.run.models if model not in BASELINES]
    return f"{_listed(list(map(shown_name, trained or m.run.models)))}; {total:,} studies of {_listed(m.run.datasets)}."


def _notices(m: Material) -> list[str]:
    notices = []
    if any(d["backend"] == "offline" for d in m.described.values()):
        notices.append(
            "Scores marked [offline…] come from rule-based stand-ins for machines without the metrics' weights. They are not "
            "the published metrics and must not be compared with published numbers."
        )
    rows = _unusual(m)
    if rows:
        notices.append(
            f"{len(rows)} unusual things about the prediction files (missing, extra, empty or null predictions, failed judge "
            "calls): see the table in the summary. Missing, null and empty predictions count as empty reports."
        )
    return notices


def _unusual(m: Material) -> list[list[str]]:
    """Rows: model, data set, what, how many, which."""
    rows = []
    for model in m.run.models:
        for dataset, folder in m.run.folders[model].items():
            result = read_result(folder)
            for name, ids in result["listed"].items():
                more = ", …" if result["counts"][name] > 3 else ""
                count = f"{result['counts'][name]:,}"
                rows.append([shown_name(model), dataset, name.replace("_", " "), count, ", ".join(ids[:3]) + more])
            for cause, count in result["judge_failures"].items():
                rows.append([shown_name(model), dataset, f"judge failed: {cause}", f"{count:,}", ""])
    return rows


def _how_it_was_made(m: Material, data_dir: Path | None, resamples: int, seed: int) -> dict[str, Any]:
    scored, generated, backends = [], [], {}
    for model in m.run.models:
        for dataset, folder in m.run.folders[model].items():
            result = read_result(folder)
            scored.append(
                [shown_name(model), dataset, result.get("command", ""), result["made_by"]["predictions_sha256"][:16]]
            )
            path = folder / "generation.json"
            if path.is_file():
                made_by = json.loads(path.read_text(encoding="utf-8"))["made_by"]
                told = ", ".join(f"{k} {str(v)[:16] if k.endswith('sha256') else v}" for k, v in made_by.items())
                generated.append([shown_name(model), dataset, told])
            scorers = result["made_by"]["scorers"]
            for name, metric in scorers["metrics"].items():
                backends[name] = [name, metric["backend"], metric["fingerprint"][:64]]
            backends["labels"] = ["labels", scorers["labels"]["backend"], scorers["labels"]["fingerprint"][:64]]
            if scorers["judge"]:
                backends["judge"] = [
                    scorers["judge"]["name"],
                    scorers["judge"]["model"],
                    scorers["judge"]["fingerprint"],
                ]
    cards = []
    for dataset in m.run.datasets:
        folder = m.run.data_folder(dataset, data_dir)
        card = folder / "card.md" if folder else None
        if card and card.is_file():
            cards.append((dataset, card.read_text(encoding="utf-8")))
    weights = m.described[m.run.models[0]]["composite"]["weights"]
    composite = " + ".join(f"{w:g} × {name}" for name, w in weights.items())
    return {
        "intervals": f"95% percentile bootstrap over patients ({resamples:,} resamples, seed {seed}), widened for few patients; "
        f"the composite reward is {composite}",
        "tables": [
            Table(["number", "backend", "fingerprint"], list(backends.values())),
            Table(["model", "data set", "command", "predictions (sha256)"], scored, folded="Scoring commands"),
            Table(["model", "data set", "settings"], generated, folded="Generation settings"),
            Table(["package", "version"], [[k, v] for k, v in m.summary["versions"].items()], folded="Versions"),
        ],
        "cards": cards,
    }


# ---- words -----------------------------------------------------------------------------------------------------------


def _micro_of(m: Material) -> str:
    numbers = [*m.summary["stages"].values(), *m.summary["baselines"].values()]
    return numbers[0]["micro_f1_of"] if numbers else "the labels"


def _judge_name(m: Material) -> str:
    names = {d["judge"]["name"] for d in m.described.values() if d["judge"]}
    return " and ".join(sorted(names)) or "no judge"


def _temporal_name(m: Material) -> str:
    return " and ".join(sorted({d["temporal"]["backend"] for d in m.described.values()}))


def _zero_shot_text(m: Material) -> str:
    if not m.run.zero_shot:
        return "By data set."
    return f"By data set. Never trained on: {_listed(m.run.zero_shot)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
