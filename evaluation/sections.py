"""The sections of the report in their order, one function each: numbers in, words, figure and tables out."""

from __future__ import annotations

from evaluation import counterfactual_part, figures
from evaluation.compare import read_result
from evaluation.counterfactual_results import read_results
from evaluation.material import Material
from evaluation.names import shown_name, shown_number, split_number
from evaluation.part import Part, part
from evaluation.principal_part import drawn_numbers, means_table, readable, studied, summary
from evaluation.published import METRICS as PUBLISHED_METRICS
from evaluation.published_part import published, what_was_asked
from evaluation.run_folder import evaluations, read_run
from evaluation.strata_parts import conditions, encounters, institutions, others, subgroups, temporal
from evaluation.tables import Table, cell, listed, says_something
from evaluation.training_parts import length, reward_parts, rewards, training
from rewards.chexprompt.judgement import ERROR_TYPES


def report_parts(m: Material) -> list[Part]:
    """The report's sections in order."""
    return [
        summary(m),
        *evaluated(m),
        metrics(m),
        counterfactuals(m),
        *published(m),
        rewards(m),
        training(m),
        reward_parts(m),
        length(m),
        error_counts(m),
        conditions(m),
        encounters(m),
        temporal(m),
        subgroups(m),
        institutions(m),
        others(m),
    ]


# ---- summary -------------------------------------------------------------------------------------------------------


# ---- metrics -------------------------------------------------------------------------------------------------------


def metrics(m: Material) -> Part:
    text = f"Mean with 95% interval over {studied(m, m.pooled)} ↓: lower is better."
    hidden = [n for means in m.means.values() for n in means if not says_something(n, means[n])]
    if hidden:
        text += " 1/RadCliQ-v1 is left out where the interval of mean RadCliQ reaches zero, as its inverse jumps there."
    figure = figures.metrics_against_published(m.means, drawn_numbers(m), [])
    return Part("metrics", "Metrics", text, figure, [means_table(m.means)])


def evaluated(m: Material) -> list[Part]:
    """All evaluations of the run beside each other, where there is more than one: both boards, with and without priors."""
    names = evaluations(m.run.root)
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        run = read_run(m.run.root, name)
        for dataset in run.datasets:
            for model in run.models:
                if dataset in run.folders[model]:
                    result = read_result(run.folders[model][dataset])
                    found = {split_number(key)[0]: value for key, value in result["metrics"].items()}
                    cells = [readable(number, found.get(number)) for number in PUBLISHED_METRICS]
                    shown = run.shown([dataset])[0]
                    rows.append([what_was_asked(result), shown, shown_name(model), f"{result['studies']:,}", *cells])
    header = ["asked and shown", "data set", "", "studies", *map(shown_number, PUBLISHED_METRICS)]
    text = (
        "The same models, asked for findings and impression or for findings alone (ReXrank's two boards), with and without "
        "the prior study. ReXrank's own setup shows none; with priors is the paper's Figure 3."
    )
    return [Part("evaluations", "Both boards, with and without priors", text, None, [Table(header, rows)])]


# ---- training ------------------------------------------------------------------------------------------------------


# ---- errors and findings -------------------------------------------------------------------------------------------


def error_counts(m: Material) -> Part:
    names = {d["judge"]["name"] for d in m.described.values() if d["judge"]}
    text = f"Counted by {listed(sorted(names))}; all six types, clinically significant or not. " if names else ""
    text += f"Over {studied(m, m.pooled)}" if names else ""
    absent = "No judge has counted errors; score with --judge."
    tables = _error_tables(m) if m.judge else []
    return part("error-counts", "Errors a report", text, figures.error_histogram(m.judge), absent, tables)


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


# ---- breakdowns ----------------------------------------------------------------------------------------------------


def counterfactuals(m: Material) -> Part:
    """What of a study the models' reports depend on (counterfactual.py)."""
    models = read_results(m.run)
    title = "Does it look at the film?"
    if not models:
        absent = f"Not measured: python -m evaluation counterfactual --outputs {m.run.root}, or make counterfactual."
        return Part("counterfactual", title, absent=absent)
    tables = [counterfactual_part.shares(models)]
    tables += [counterfactual_part.changes(found, name) for name, found in models.items()]
    points = counterfactual_part.sentences(models)
    return Part("counterfactual", title, counterfactual_part.INTRODUCTION, None, tables, points=points)
