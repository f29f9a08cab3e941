"""The report's first part: principal numbers of each model, what stands out, what is unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation import figures
from evaluation.compare import read_result, studies_in_words
from evaluation.material import Material
from evaluation.names import sentence, shown_name, shown_number, split_number
from evaluation.part import Part
from evaluation.run_folder import Common
from evaluation.summary import PAPERS_NUMBERS
from evaluation.tables import Table, cell, listed, says_something, with_p

# The paper's primary number and its parts first (Results: "RadCliQ-v1 serves as our primary evaluation metric").
PRINCIPAL = ("inverse_radcliq_v1", "bertscore", "sembscore", "radgraph", "micro_f1", "composite", "judge_errors")
DRAWN = ("inverse_radcliq_v1", "micro_f1", "composite", "judge_errors")


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
    points = [*_in_short(m), *most_frequent_given(m)]
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


def most_frequent_given(m: Material) -> list[str]:
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
    names["micro_f1"] = f"micro-F1, {micro_of(m)}{mark}"
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


def drawn_numbers(m: Material) -> list[str]:
    """The numbers that figures show; F1 has figures of its own."""
    return [n for n in next(iter(m.means.values())) if "_f1_" not in n and not n.startswith(("radcliq", "significant"))]


def readable(number: str, value: Mapping[str, float | None] | None) -> str:
    """The cell of a number; a dash for a reciprocal that says nothing."""
    return cell(value) if says_something(number, value) else "–"


def micro_of(m: Material) -> str:
    numbers = [*m.summary["stages"].values(), *m.summary["baselines"].values()]
    return numbers[0]["micro_f1_of"] if numbers else "the labels"


def means_table(means: figures.Means, folded: str = "") -> Table:
    numbers = list(dict.fromkeys(n for model in means.values() for n in model))
    rows = [[shown_number(n), *(readable(n, means[m].get(n)) for m in means)] for n in numbers]
    return Table(["", *map(shown_name, means)], rows, folded=folded)
