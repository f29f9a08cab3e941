"""The sections of the report in their order, one function each: numbers in, words, figure and tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation import counterfactual_part, figures
from evaluation.breakdowns import SUBGROUPS
from evaluation.compare import read_result, studies_in_words
from evaluation.counterfactual_results import read_results
from evaluation.material import Material
from evaluation.names import sentence, shown_name, shown_number, split_number
from evaluation.published import METRICS as PUBLISHED_METRICS
from evaluation.published import caution, comparable
from evaluation.run_folder import Common, evaluations, read_run
from evaluation.statistics import MIN_PATIENTS, holm
from evaluation.summary import PAPERS_NUMBERS
from evaluation.tables import Table, cell, listed, p_value, says_something, with_p
from rewards.chexprompt.judgement import ERROR_TYPES
from rewards.conditions import CONDITIONS

# The paper's primary number and its parts first (Results: "RadCliQ-v1 serves as our primary evaluation metric").
PRINCIPAL = ("inverse_radcliq_v1", "bertscore", "sembscore", "radgraph", "micro_f1", "composite", "judge_errors")
DRAWN = ("inverse_radcliq_v1", "micro_f1", "composite", "judge_errors")


@dataclass
class Part:
    """One section: words, a figure with its tables, or the reason why the figure is absent."""

    id: str
    title: str
    text: str = ""
    figure: Figure | None = None
    tables: list[Table] = field(default_factory=list)
    absent: str = ""
    points: list[str] = field(default_factory=list)  # what the numbers say, one sentence each
    note: str = ""  # how to read the figure
    svg: str = ""  # made from the figure when it is saved


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


def summary(m: Material) -> Part:
    seen = {**m.summary["stages"], **m.summary["baselines"]}
    zero = m.summary["zero_shot"]
    never = {**zero["stages"], **zero["baselines"]}
    titles = principal_names(m)
    tables = [_principal_table(m, seen, f"Trained on: {listed(m.run.shown(m.run.seen))}")]
    if never:
        tables.append(_principal_table(m, never, f"Zero-shot: {listed(m.run.shown(m.run.pooled_zero_shot))}"))
    for dataset, split in m.run.apart.items():
        caption = f"By itself: {dataset}, {split} studies (in no number above)"
        tables.append(_principal_table(m, m.summary["by_dataset"][dataset], caption))
    if own := m.summary["own_studies"]:
        caption = "All studies that a model has, more than the others: not to be compared with each other"
        tables.append(_principal_table(m, own, caption))
    for paired, caption in (
        (m.summary["paired"], "Paired differences on the same studies"),
        (zero["paired"], "Paired differences, zero-shot"),
    ):
        if paired:
            rows = [
                [_pair_name(pair), *(with_p(numbers.get(key)) for key in PRINCIPAL)] for pair, numbers in paired.items()
            ]
            tables.append(Table(["", *titles.values()], rows, caption=caption))
    if unusual := _unusual(m):
        caption = "Unusual predictions"
        tables.append(Table(["model", "data set", "what", "how many", "studies"], unusual, caption=caption))
    if m.summary["seconds"]:
        memory = m.summary["peak_memory_mib"] or {}
        rows = [
            [shown_name(s), f"{v:,.0f} s" if v is not None else "–", f"{memory[s]:,} MiB" if s in memory else "–"]
            for s, v in m.summary["seconds"].items()
        ]
        tables.append(Table(["stage", "time", "peak memory"], rows, folded="Time and memory of each stage"))
    points = [*_in_short(m), *_most_frequent(m)]
    text = f"On {studied(m, m.pooled)} 95% intervals over patients."
    note = f"Filled points: {listed(m.run.shown(m.run.seen))}" + (
        f"; hollow: {listed(m.run.shown(m.run.pooled_zero_shot))}, never trained on." if m.run.zero_shot else "."
    )
    if m.summary["paired"]:
        note = f"A change is called clear where p < 0.05 after Holm's correction. {note}"
    drawn = {
        key: title
        for key, title in titles.items()
        if key in DRAWN and all(says_something(title, n[key]) for n in (*seen.values(), *never.values()) if key in n)
    }
    figure = figures.principal_numbers(seen, never, drawn)
    return Part("summary", "Summary", text, figure, tables, points=points, note=note)


def studied(m: Material, common: Common) -> str:
    """Which studies a table or figure is over, in words, and what is left out of it and why; ends with a full stop."""
    where = f" ({listed(m.run.shown(common.datasets))})"
    text = studies_in_words(common.scores, common.beyond, shown_name, where)
    if common.without:
        text += f" Without any of these studies: {listed([shown_name(model) for model in common.without])}."
    if m.run.apart:
        text += (
            f" Not among them: {listed(m.run.shown(list(m.run.apart)))}, which has no test studies; by its validation studies "
            "the checkpoint was chosen."
        )
    return text


def _most_frequent(m: Material) -> list[str]:
    """How many reports of a baseline are really the most frequent one."""
    points = []
    for model in m.models:
        for dataset, count in m.run.most_frequent_reports(model).items():
            studies = read_result(m.run.folders[model][dataset])["studies"]
            why = "an indication to search by" if model == "retrieval" else "a prior report"
            points.append(
                f"{sentence(shown_name(model))}, {dataset}: {count:,} of {studies:,} reports are the most frequent report of the "
                f"training studies, for want of {why}."
            )
    return points


def principal_names(m: Material) -> dict[str, str]:
    """The numbers of the summary, each with the mark of its backend and ↓ where lower is better."""
    scorers = m.summary["scorers"]
    labels = scorers["labels"]["backend"]
    mark = "" if labels in ("real", "exact") else f" [{labels}]"
    there = {split_number(name)[0]: name for name in next(iter(m.means.values()))}
    names = {key: shown_number(there[number]) for key, number in PAPERS_NUMBERS.items() if number in there}
    names["micro_f1"] = f"micro-F1, {_micro_of(m)}{mark}"
    if scorers["composite"]["name"]:
        names["composite"] = shown_number(scorers["composite"]["name"])
    if scorers["judge"]:
        names["judge_errors"] = shown_number(f"errors {scorers['judge']['name']}")
    return {key: names.get(key, key.replace("_", " ")) for key in PRINCIPAL}


def _principal_table(m: Material, numbers: Mapping[str, Mapping[str, Any]], caption: str) -> Table:
    rows = [
        [shown_name(name), f"{n['n']:,} of {n['patients']:,}", *(_principal_cell(key, n.get(key)) for key in PRINCIPAL)]
        for name, n in numbers.items()
    ]
    return Table(["", "studies of patients", *principal_names(m).values()], rows, caption=caption)


def _principal_cell(key: str, value: Mapping[str, Any] | None) -> str:
    return readable("1/radcliq_v1", value) if key == "inverse_radcliq_v1" else cell(value)


def _in_short(m: Material) -> list[str]:
    """What the summary's numbers say, by rule: a change counts as clear where p after Holm's correction is below 0.05."""
    words = {
        "inverse_radcliq_v1": "1/RadCliQ-v1",
        "micro_f1": "micro-F1",
        "composite": "composite reward",
        "judge_errors": "judge errors a report",
    }
    unreadable = {
        model
        for model, numbers in m.summary["stages"].items()
        if (value := numbers.get("inverse_radcliq_v1")) and not says_something("1/radcliq_v1", value)
    }
    points = []
    for pair, numbers in m.summary["paired"].items():
        told = []
        for key, value in numbers.items():
            if value["difference"] is None or key not in words:
                continue
            if key == "inverse_radcliq_v1" and unreadable & set(pair.split(" - ")):
                continue
            clear = value["p_holm"] is not None and value["p_holm"] < 0.05
            kind = ("a clear rise" if value["difference"] > 0 else "a clear fall") if clear else "no clear change"
            told.append(f"{words[key]} {cell(value, 'difference', signed=True)}, {kind}")
        if told:
            after, _, before = pair.partition(" - ")
            points.append(f"{shown_name(after)} against {shown_name(before)}: {'; '.join(told)}.")
    stages, baselines = m.summary["stages"], m.summary["baselines"]
    last = next(reversed(stages), None)
    if last and baselines:
        told = []
        for key in words:
            if key == "inverse_radcliq_v1" and (last in unreadable or not _all_readable(baselines)):
                continue
            known = {n: v[key]["mean"] for n, v in baselines.items() if v.get(key) and v[key]["mean"] is not None}
            if known and stages[last].get(key):
                best = (min if key == "judge_errors" else max)(known, key=known.get)
                mine = cell({**stages[last][key], "low": None})
                told.append(
                    f"{words[key]} {mine} against {known[best]:.3f} ({shown_name(best).removeprefix('baseline: ')})"
                )
        points.append(f"{shown_name(last)} beside the better baseline that sees no image: {'; '.join(told)}.")
    return points


def _all_readable(numbers: Mapping[str, Mapping[str, Any]]) -> bool:
    found = [n["inverse_radcliq_v1"] for n in numbers.values() if n.get("inverse_radcliq_v1")]
    return all(says_something("1/radcliq_v1", value) for value in found)


def _pair_name(pair: str) -> str:
    after, _, before = pair.partition(" - ")
    return f"{shown_name(after)} − {shown_name(before)}"


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


# ---- metrics -------------------------------------------------------------------------------------------------------


def drawn_numbers(m: Material) -> list[str]:
    """The numbers that figures show; F1 has figures of its own."""
    return [n for n in next(iter(m.means.values())) if "_f1_" not in n and not n.startswith(("radcliq", "significant"))]


def metrics(m: Material) -> Part:
    text = f"Mean with 95% interval over {studied(m, m.pooled)} ↓: lower is better."
    hidden = [n for means in m.means.values() for n in means if not says_something(n, means[n])]
    if hidden:
        text += " 1/RadCliQ-v1 is left out where the interval of mean RadCliQ reaches zero, as its inverse jumps there."
    figure = figures.metrics_against_published(m.means, drawn_numbers(m), [])
    return Part("metrics", "Metrics", text, figure, [_means_table(m.means)])


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


def _means_table(means: figures.Means, folded: str = "") -> Table:
    numbers = list(dict.fromkeys(n for model in means.values() for n in model))
    rows = [[shown_number(n), *(readable(n, means[m].get(n)) for m in means)] for n in numbers]
    return Table(["", *map(shown_name, means)], rows, folded=folded)


def readable(number: str, value: Mapping[str, float | None] | None) -> str:
    """The cell of a number; a dash for a reciprocal that says nothing."""
    return cell(value) if says_something(number, value) else "–"


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
                    rows.append([_asked(result), shown, shown_name(model), f"{result['studies']:,}", *cells])
    header = ["asked and shown", "data set", "", "studies", *map(shown_number, PUBLISHED_METRICS)]
    text = (
        "The same models, asked for findings and impression or for findings alone (ReXrank's two boards), with and without "
        "the prior study. ReXrank's own setup shows none; with priors is the paper's Figure 3."
    )
    return [Part("evaluations", "Both boards, with and without priors", text, None, [Table(header, rows)])]


def _asked(result: Mapping[str, Any]) -> str:
    """The evaluation of a scores.json for people."""
    shown = {True: "with priors", False: "without priors"}.get(result["made_by"].get("longitudinal"))
    sections = {"findings_impression": "findings + impression", "available": "the reference's sections"}
    return ", ".join(filter(None, (sections.get(result["made_by"]["sections"], result["made_by"]["sections"]), shown)))


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
                reasons.setdefault(reason, []).append(f"{dataset} ({_asked(first)})")
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
    sections = _asked({"made_by": {"sections": rows[0]["sections"]}})
    return Part(
        id,
        f"Beside published numbers: {dataset}, {sections}",
        f"{warning and warning + ' '}ReXrank's test set, {sections}, without priors as on its board. Published numbers come "
        "without intervals; the figure shows the eight highest by 1/RadCliQ-v1, the table all.",
        figures.metrics_against_published(means, PUBLISHED_METRICS, ranked[:8]),
        [Table(["", *map(shown_number, PUBLISHED_METRICS), "source", "date"], table, caption=warning)],
    )


def rewards(m: Material) -> Part:
    c = m.comparisons
    ablations = [name for name in c.means if name in m.run.ablations]
    text = f"Change of each run against the SFT model, over {studied(m, c.common)}"
    if ablations:
        text += f" Comparisons beside the run's own stages: {listed([shown_name(a) for a in ablations])}."
    if c.left_out:
        text += " Left out: " + "; ".join(f"{shown_name(n)} ({why})" for n, why in c.left_out.items()) + "."
    numbers = [n for n in drawn_numbers(m) if any(n in means for means in c.means.values())]
    tables = [_means_table(c.means, folded="Means of the run and its comparisons")] if ablations else []
    if m.comparison:
        tables.append(pairs_table(m.comparison))
    figure = figures.single_against_combined(c.means, numbers)
    absent = "This needs an SFT model and at least one RL run; comparisons are made with: make ablation NAME=…"
    return _part("rewards", "What RL changed, metric by metric", text, figure, absent, tables)


def pairs_table(comparison: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"{shown_name(r['first'])} − {shown_name(r['second'])}",
            shown_number(r["number"]),
            r["family"],
            cell(r, "difference", signed=True),
            p_value(r["p"], r["p_at_floor"]),
            p_value(r["p_holm"], r["p_at_floor"]),
        ]
        for r in comparison["pairs"]
        if not r["number"].startswith("1/") or _both_readable(comparison, r)
    ]
    folded = (
        f"All pairs of models on the {comparison['studies']:,} studies that all have: permutation test of swapped reports, "
        "Holm-corrected over the principal numbers and, apart, over all others"
    )
    return Table(["", "number", "family", "difference", "p", "p (Holm)"], rows, folded=folded)


def _both_readable(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    number = row["number"]
    means = comparison["means"]
    return all(says_something(number, means[row[side]].get(number)) for side in ("first", "second"))


# ---- training ------------------------------------------------------------------------------------------------------


def rl_histories(m: Material) -> dict[str, Sequence[Mapping[str, Any]]]:
    return {s: h for s, h in m.histories.items() if figures.logged_parts(h)}


def training(m: Material) -> Part:
    compared = {s: h for s, h in m.ablation_histories.items() if figures.logged_parts(h)}
    text = (
        "Lines: rollouts sampled in training (temperature 1), averaged over what is logged together. Points with intervals: "
        "greedy reports of the validation studies at saved checkpoints, by which the best one is chosen."
    )
    figure = figures.training_curves({**rl_histories(m), **compared}, m.selections)
    tables = [_selection_table(m.selections)] if m.selections else []
    absent = "No RL stage of this run has logged its reward parts."
    return _part("training", "Training: quality and errors over the steps", text, figure, absent, tables)


def _selection_table(selections: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{shown_name(stage)}, {c['checkpoint']}",
            f"{c['studies']:,}",
            cell(c["radcliq_v1"]),
            readable("1/radcliq_v1", c["inverse_radcliq_v1"]),
            "best" if c["checkpoint"] == selection["best"] else "",
        ]
        for stage, selection in selections.items()
        for c in selection["checkpoints"]
    ]
    header = ["checkpoint", "studies", "RadCliQ-v1 ↓", "1/RadCliQ-v1", ""]
    backends = " and ".join(sorted({s["backend"] for s in selections.values()}))
    return Table(header, rows, caption=f"Validation, backend {backends}")


def reward_parts(m: Material) -> Part:
    rl = rl_histories(m)
    text = "Each part as the reward saw it, averaged over the rollouts of a step."
    absent = "No RL stage of this run has logged its reward parts."
    tables = [_parts_table(rl)] if rl else []
    return _part("reward-parts", "Reward parts over the steps", text, figures.reward_parts(rl), absent, tables)


def _parts_table(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for stage, history in histories.items():
        for part, (_, values) in figures.logged_parts(history).items():
            third = max(1, len(values) // 3)
            first, last = np.mean(values[:third]), np.mean(values[-third:])
            rows.append([shown_name(stage), shown_number(part), f"{first:.3f}", f"{last:.3f}"])
    return Table(["stage", "part", "mean of the first third", "mean of the last third"], rows, folded="Table")


def length(m: Material) -> Part:
    text = f"A reward that can be raised by writing more, or less, shows here. Words a report: {studied(m, m.pooled)}"
    rows = [[shown_name(name), cell(value)] for name, value in m.words.items()]
    figure = figures.length_drift(rl_histories(m), m.words)
    return _part(
        "length", "Length of the reports", text, figure, "", [Table(["", "words a report"], rows, folded="Table")]
    )


# ---- errors and findings -------------------------------------------------------------------------------------------


def error_counts(m: Material) -> Part:
    names = {d["judge"]["name"] for d in m.described.values() if d["judge"]}
    text = f"Counted by {listed(sorted(names))}; all six types, clinically significant or not. " if names else ""
    text += f"Over {studied(m, m.pooled)}" if names else ""
    absent = "No judge has counted errors; score with --judge."
    tables = _error_tables(m) if m.judge else []
    return _part("error-counts", "Errors a report", text, figures.error_histogram(m.judge), absent, tables)


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


def conditions(m: Material) -> Part:
    labelled = (
        "the true labels" if any("truth" in s.labels for s in m.pooled.scores.values()) else "the references' labels"
    )
    text = (
        f"F1 of each condition in the written reports against {labelled}; n is how often the condition is present. "
        f"The labeler is {listed(sorted({d['labels']['backend'] for d in m.described.values()}))}. Over "
        f"{studied(m, m.pooled)} A condition that none of them has is a dash."
    )
    first = next(iter(m.conditions.values()))
    rows = [
        [c, str(first[c]["positives"]), *(cell(m.conditions[model][c]) for model in m.conditions)] for c in CONDITIONS
    ]
    table = Table(["", "n", *map(shown_name, m.conditions)], rows, folded="Table")
    absent = "No condition is present in the references."
    return _part("conditions", "Findings", text, figures.condition_f1(m.conditions), absent, [table])


# ---- breakdowns ----------------------------------------------------------------------------------------------------


def of_each(m: Material) -> str:
    """The studies of each data set, where a section shows them one by one."""
    told = []
    for dataset in m.run.datasets:
        common = m.run.common(m.run.models, [dataset])
        told.append(f"{m.run.shown([dataset])[0]} ({common.studies:,} {m.run.split(dataset)} studies)")
    return f"Each data set by itself, over the studies that all models have: {listed(told)}."


def encounters(m: Material) -> Part:
    text = (
        f"{sentence(shown_number(m.headline))} by the patient's encounter: 1 is the first, unknown where a data set has no dates. "
        f"{of_each(m)}"
    )
    figure = figures.encounters(drawn(m), m.headline)
    absent = "No data set has patients with several dated encounters."
    return _part("encounters", "Encounters", text, figure, absent, [strata_table(m, "encounter")])


def temporal(m: Material) -> Part:
    by = listed(sorted({d["temporal"]["backend"] for d in m.described.values()}))
    text = (
        f"{sentence(shown_number(m.headline))} by what the reference says of change, labelled by {by}; unknown where neither dates "
        f"nor the text say whether there was an earlier study. {of_each(m)}"
    )
    figure = figures.temporal_categories(drawn(m), m.headline)
    absent = "No reference says whether there was an earlier study."
    return _part(
        "temporal", "Change over time", text, figure, absent, [strata_table(m, "temporal", "temporal category")]
    )


def subgroups(m: Material) -> Part:
    text = (
        f"{sentence(shown_number(m.headline))} by sex, age and race; unknown is a stratum of its own. Groups of fewer than "
        f"{MIN_PATIENTS} patients have no interval and are in no test. {of_each(m)}"
    )
    tables = [_gaps_table(m), *(strata_table(m, name) for name in SUBGROUPS)]
    absent = "No data set says anything of its patients."
    figure = figures.subgroups(drawn(m), m.headline, _shown_datasets(m))
    return _part("subgroups", "Subgroups", text, figure, absent, tables)


def institutions(m: Material) -> Part:
    text = f"{sentence(shown_number(m.headline))} by data set. {of_each(m)}"
    if m.run.zero_shot:
        text += f" Never trained on: {listed(m.run.zero_shot)}."
    if m.run.apart:
        text += f" No test set, and in no pooled number: {listed(m.run.shown(list(m.run.apart)))}."
    tables = [strata_table(m, "dataset", "data set")]
    if m.run.zero_shot:
        tables.append(strata_table(m, "institution", "institution, seen or zero-shot"))
    figure = figures.zero_shot(_shown_datasets(m), m.headline, m.run.shown(m.run.zero_shot))
    return _part("institutions", "Data sets", text, figure, "", tables)


def others(m: Material) -> Part:
    tables = [strata_table(m, "sections", "sections available"), strata_table(m, "length", "length of the reference")]
    return Part("other", "By sections and length", of_each(m), None, tables)


def drawn(m: Material) -> figures.Breakdowns:
    """The breakdowns under the data sets' shown names."""
    return {m.run.shown([dataset])[0]: found for dataset, found in m.breakdowns.items()}


def _shown_datasets(m: Material) -> dict[str, dict[str, Any]]:
    """Each model's numbers by data set, under the data sets' shown names."""
    return {
        model: {
            **found,
            "dataset": {"strata": {m.run.shown([name])[0]: s for name, s in found["dataset"]["strata"].items()}},
        }
        for model, found in m.institutions.items()
    }


def strata_table(m: Material, attribute: str, title: str = "") -> Table:
    """All numbers of all models in each stratum of each data set; macro-F1 and parts of other numbers are in scores.json."""
    numbers = [
        n
        for n in next(iter(m.means.values()))
        if "_macro_" not in n and "_f1_5" not in n and not n.startswith("radcliq")
    ]
    shown = [n for n in numbers if all(says_something(n, means.get(n)) for means in m.means.values())]
    title, several = title or attribute, attribute not in ("dataset", "institution")
    rows = []
    for dataset, breakdowns in drawn(m).items() if several else [("", _shown_datasets(m))]:
        found = {model: by[attribute]["strata"] for model, by in breakdowns.items() if attribute in by}
        for name in dict.fromkeys(name for strata in found.values() for name in strata):
            for model, strata in found.items():
                if name in strata:
                    cells = [readable(number, strata[name]["metrics"].get(number)) for number in shown]
                    group = [dataset, name] if several else [name]
                    rows.append([*group, shown_name(model), _studies(strata[name]), *cells])
    header = [*(["data set"] if several else []), title, "model", "n", *map(shown_number, shown)]
    return Table(header, rows, folded=f"Table by {title}")


def _studies(stratum: Mapping[str, Any]) -> str:
    """The studies of a stratum, and what a reader must know of them."""
    marks = ["few patients"] if stratum["small"] else []
    if stratum["most_frequent_reports"]:
        marks.append(f"{stratum['most_frequent_reports']:,} are the most frequent report")
    return f"{stratum['n']:,}" + (f" ({', '.join(marks)})" if marks else "")


def _gaps_table(m: Material) -> Table:
    shown = {
        (dataset, model, attribute): gap
        for dataset, breakdowns in drawn(m).items()
        for model, found in breakdowns.items()
        for attribute in SUBGROUPS
        if (gap := found[attribute]["gaps"].get(m.headline))
    }
    adjusted = dict(zip(shown, holm([gap["p"] for gap in shown.values()]), strict=True))

    def told(*key: str) -> str:
        gap = shown.get(key)
        if gap is None:
            return "–"
        return f"{gap['highest']} − {gap['lowest']}: " + with_p({**gap, "p_holm": adjusted[key]}, signed=False)

    rows = [
        [dataset, shown_name(model), *(told(dataset, model, attribute) for attribute in SUBGROUPS)]
        for dataset, breakdowns in drawn(m).items()
        for model in breakdowns
    ]
    caption = (
        f"The difference in {shown_number(m.headline)} that stands out most from its error, between two known groups, or one and "
        f"all others, of at least {MIN_PATIENTS} patients. The interval holds for all these at once. p: largest difference over its "
        "error (studies grouped by patient) among permutations of the groups over patients, after Holm's correction over this "
        "table."
    )
    return Table(["data set", "model", *SUBGROUPS], rows, caption=caption)


def _part(
    identity: str, title: str, text: str, figure: Figure | None, absent: str, tables: list[Table] | None = None
) -> Part:
    return Part(identity, title, text, figure, tables or [], absent if figure is None else "")


def _micro_of(m: Material) -> str:
    numbers = [*m.summary["stages"].values(), *m.summary["baselines"].values()]
    return numbers[0]["micro_f1_of"] if numbers else "the labels"
