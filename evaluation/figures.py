"""The figures, one function each: numbers in, a matplotlib figure out, or None where the numbers are not there.

Intervals are 95%. Colours are Okabe and Ito's, which colour-blind readers can tell apart; baselines are grey.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from evaluation.breakdowns import UNKNOWN
from evaluation.figure_style import (
    INK,
    PUBLISHED_COLOUR,
    Means,
    change_of,
    colour_of,
    draw_dots,
    draw_legend,
    draw_points,
    drawn_figure,
    error_bar,
    hide_rest,
    inverted,
    mean_of,
)
from evaluation.names import lower_is_better, short_name, shown_number
from evaluation.tables import says_something
from rewards.radcliq import PARTS, radcliq_v1
from settings.evaluations import BASELINES

_PART = re.compile(r"^reward_parts/(?!judge_)(.+)$")  # judge_errors and judge_failed are counts beside the parts
_NEAR_ZERO = 0.2

Breakdowns = Mapping[str, Mapping[str, Mapping[str, Any]]]  # data set → model → attribute → strata


def principal_numbers(seen: Means, zero_shot: Means, titles: Mapping[str, str]) -> Figure | None:
    """The summary's numbers (`titles`: key → panel title): filled on data sets trained on, hollow on zero-shot ones."""
    keys = [key for key in titles if any(mean_of(seen, m, key) is not None for m in seen)]
    if not keys:
        return None
    models = list(seen)
    with drawn_figure(3.5 * len(keys), 1.2 + 0.3 * len(models), 1, len(keys)) as (figure, axes):
        for axis, key in zip(axes, keys, strict=True):
            for i, model in enumerate(models[::-1]):
                draw_points(axis, [i + 0.12], [seen[model].get(key)], model, models, line=False, horizontal=True)
                if zero_shot.get(model, {}).get(key):
                    draw_points(axis, [i - 0.16], [zero_shot[model][key]], model, models, line=False, horizontal=True)
                    axis.containers[-1].lines[0].set_markerfacecolor("none")
            axis.set_title(_two_lines(titles[key]))
            shown = axis is axes[0]
            axis.set_yticks(range(len(models)), [short_name(m) if shown else "" for m in models[::-1]])
            axis.set_ylim(-0.6, len(models) - 0.4)
            axis.margins(x=0.08)
    return figure


def metrics_against_published(
    means: Means, numbers: Sequence[str], published: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Paper, figure 2a: every metric, the user's models with intervals and published systems where they may stand there.

    A reciprocal whose denominator comes near zero or below it (RadCliQ of stand-ins) says nothing and is left out.
    """
    numbers = [n for n in numbers if any(mean_of(means, m, n) is not None for m in means)]
    numbers = [n for n in numbers if all(says_something(n, means[m].get(n)) for m in means)]
    if not numbers:
        return None
    columns = min(3, len(numbers))
    rows = -(-len(numbers) // columns)
    entries = len(means) + len(published)
    with drawn_figure(columns * 3.4, rows * (0.9 + 0.2 * entries), rows, columns) as (figure, axes):
        for axis, number in zip(axes, numbers, strict=False):
            bars = [
                (short_name(m), mean_of(means, m, number), error_bar(means[m].get(number)), colour_of(m, list(means)))
                for m in means
            ]
            bars += [
                (p["model"], p.get(number), None, PUBLISHED_COLOUR) for p in published if p.get(number) is not None
            ]
            bars = [bar for bar in bars if bar[1] is not None]
            # Baselines and models stay in the order of training where nothing published is shown.
            if published:
                bars.sort(key=lambda bar: bar[1])
            else:
                bars.reverse()
            axis.barh([b[0] for b in bars], [b[1] for b in bars], color=[b[3] for b in bars], height=0.72)
            for i, (_, value, error, _) in enumerate(bars):
                if error is not None:
                    axis.errorbar(value, i, xerr=error, color=INK, linewidth=1, capsize=2)
            axis.set_title(_two_lines(shown_number(number)))
            axis.grid(axis="y", visible=False)
        hide_rest(axes, len(numbers))
    return figure


def _two_lines(name: str) -> str:
    return name.replace(" [", "\n[") if len(name) > 24 else name


def single_against_combined(means: Means, numbers: Sequence[str], start: str = "sft") -> Figure | None:
    """Paper, figure 2b: what each RL run changed against its start, metric by metric, in percent of the start's value."""
    runs = [m for m in means if m not in (start, "base", *BASELINES)]
    numbers = [n for n in numbers if start in means and mean_of(means, start, n) is not None]
    numbers = [n for n in numbers if all(says_something(n, means[m].get(n)) for m in (start, *runs))]
    if not runs or not numbers:
        return None
    with drawn_figure(2.2 + max(1.1, 0.2 * len(runs)) * len(numbers), 3.4) as (figure, axes):
        axis, width = axes[0], 0.8 / len(runs)
        for i, run in enumerate(runs):
            change = [change_of(mean_of(means, run, n), mean_of(means, start, n)) for n in numbers]
            at = np.arange(len(numbers)) + (i - (len(runs) - 1) / 2) * width
            axis.bar(at, change, width * 0.92, label=short_name(run), color=colour_of(run, list(means)))
        axis.axhline(0, color=INK, linewidth=0.8)
        names = [shown_number(n).replace(" [", "\n[").replace(" a report", "") for n in numbers]
        axis.set_xticks(range(len(numbers)), names, rotation=20, ha="right")
        axis.set_ylabel(f"change against {short_name(start)} (%)")
        axis.grid(axis="x", visible=False)
        draw_legend(axis, outside=True)
    return figure


def training_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], selections: Mapping[str, Mapping[str, Any]]
) -> Figure | None:
    """Paper, figures 2c and 2d: 1/RadCliQ-v1 and the judge's errors a report over the steps of each RL stage.

    Lines are of the rollouts: RadCliQ of a step follows from its mean parts, because it is linear in them. Points with
    intervals are greedy reports of the validation studies at saved checkpoints (`selections`: selection.json by stage).
    Where RadCliQ comes near zero, 1/RadCliQ jumps, and RadCliQ itself is drawn instead.
    """
    quality = {stage: curve for stage, history in histories.items() if (curve := _radcliq_curve(history))[0]}
    points = {stage: rated for stage, selection in selections.items() if (rated := _rated_checkpoints(selection))}
    errors = {stage: curve for stage, h in histories.items() if (curve := logged(h, "reward_parts/judge_errors"))[0]}
    means = [v for _, values in quality.values() for v in values]
    means += [value["mean"] for rated in points.values() for _, value in rated]
    inverse = bool(means) and min(means) > _NEAR_ZERO
    panels = (1 if means else 0) + (1 if errors else 0)
    if not panels:
        return None
    with drawn_figure(4.6 * panels, 3.1, 1, panels) as (figure, axes):
        if means:
            for stage, (steps, values) in quality.items():
                drawn = [1 / v if inverse else v for v in values]
                axes[0].plot(
                    steps, drawn, label=f"{short_name(stage)}, rollouts", color=colour_of(stage, list(histories))
                )
            for stage, rated in points.items():
                values = [inverted(value) if inverse else value for _, value in rated]
                draw_points(axes[0], [step for step, _ in rated], values, stage, list(histories), line=False)
                axes[0].containers[-1].set_label(f"{short_name(stage)}, validation")
            axes[0].set_title(("1/RadCliQ-v1" if inverse else "RadCliQ-v1 (lower is better)") + _marks(histories))
        if errors:
            for stage, (steps, values) in errors.items():
                axes[-1].plot(steps, values, label=short_name(stage), color=colour_of(stage, list(histories)))
            axes[-1].set_title("judge's errors a report, rollouts (lower is better)")
        for axis in axes:
            axis.set_xlabel("step")
            draw_legend(axis)
    return figure


def _marks(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The marks of stand-ins among RadCliQ's parts, on a line of their own."""
    names = {name for history in histories.values() for name in logged_parts(history) if name.split("[")[0] in PARTS}
    marks = sorted({name.partition("[")[2].rstrip("]") for name in names} - {""})
    return f"\n[{'+'.join(marks)}]" if marks else ""


def error_histogram(tables: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Figure | None:
    """Paper, figure 2f: shares of reports with ≤ 1, 2, 3 and ≥ 4 errors."""
    if not tables:
        return None
    shades = ("#009E73", "#E6C84A", "#E69F00", "#D55E00")
    with drawn_figure(6.4, 0.9 + 0.42 * len(tables)) as (figure, axes):
        axis, models = axes[0], list(tables)[::-1]
        left = np.zeros(len(models))
        for shade, bin_name in zip(shades, ("≤1", "2", "3", "≥4"), strict=True):
            share = np.array([100 * (tables[m][bin_name]["mean"] or 0) for m in models])
            label = f"{bin_name} error{'' if bin_name == '≤1' else 's'}"
            axis.barh([short_name(m) for m in models], share, left=left, color=shade, height=0.7, label=label)
            for i, (start, value) in enumerate(zip(left, share, strict=True)):
                if value >= 7:
                    axis.text(
                        start + value / 2, i, f"{value:.0f}", ha="center", va="center", color="#111111", fontsize=8
                    )
            left += share
        axis.set_xlabel("share of reports (%)")
        axis.set_xlim(0, 100)
        axis.grid(axis="y", visible=False)
        axis.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return figure


def encounters(breakdowns: Breakdowns, number: str) -> Figure | None:
    """Paper, figure 3b: by the patient's encounter, in each data set whose encounters are known."""
    return _by_stratum(breakdowns, "encounter", number, "encounter of the patient", least=2)


def temporal_categories(breakdowns: Breakdowns, number: str) -> Figure | None:
    """Paper, figure 3c: by what the reference says of change, in each data set."""
    return _by_stratum(breakdowns, "temporal", number, "")


def condition_f1(conditions: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure | None:
    """Paper, figures 4b and 4c: F1 of each condition that the labels hold at all."""
    if not conditions:
        return None
    first = next(iter(conditions.values()))
    shown = sorted((c for c in first if first[c]["positives"]), key=lambda c: first[c]["positives"])
    if not shown:
        return None
    models = list(conditions)
    with drawn_figure(7.2, 1.0 + 0.5 * len(shown)) as (figure, axes):
        axis, step = axes[0], 0.8 / len(models)
        for i, model in enumerate(models):
            at = np.arange(len(shown)) - (i - (len(models) - 1) / 2) * step
            draw_dots(axis, at, [conditions[model][c] for c in shown], model, models)
        axis.set_yticks(range(len(shown)), [f"{c} (n={first[c]['positives']})" for c in shown])
        axis.set_xlabel("F1")
        axis.set_xlim(-0.02, 1.02)
        draw_legend(axis, outside=True)
    return figure


def subgroups(breakdowns: Breakdowns, number: str, overall: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Paper, figure 4d: by sex, age and race in each data set; dashed, its second-best model over all its studies.

    Args:
        overall: each model's breakdown by data set (`institutions`).
    """
    rows: dict[str, list[tuple[str, str, int]]] = {}
    for dataset, found in breakdowns.items():
        first = next(iter(found.values()), {})
        rows[dataset] = [
            (attribute, name, stratum["n"])
            for attribute in ("sex", "age", "race")
            for name, stratum in first.get(attribute, {"strata": {}})["strata"].items()
        ][::-1]
        if all(name == UNKNOWN for _, name, _ in rows[dataset]):
            del rows[dataset]  # a data set that says nothing of its patients
    if not rows:
        return None
    height = sum(0.9 + 0.42 * len(strata) for strata in rows.values())
    ratios = [2 + len(strata) for strata in rows.values()]
    with drawn_figure(7.2, height, len(rows), 1, heights=ratios) as (figure, axes):
        for axis, (dataset, strata) in zip(axes, rows.items(), strict=True):
            models = list(breakdowns[dataset])
            step = 0.8 / len(models)
            for i, model in enumerate(models):
                found = breakdowns[dataset][model]
                values = [found[a]["strata"].get(s, {}).get("metrics", {}).get(number) for a, s, _ in strata]
                draw_dots(axis, np.arange(len(strata)) - (i - (len(models) - 1) / 2) * step, values, model, models)
            if (second := _second_best(overall, dataset, number)) is not None:
                model, value = second
                colour = colour_of(model, models)
                axis.axvline(
                    value, color=colour, linestyle="--", linewidth=1, label=f"second best: {short_name(model)}"
                )
            axis.set_yticks(range(len(strata)), [f"{attribute}: {name} (n={n})" for attribute, name, n in strata])
            axis.set_title(dataset)
            draw_legend(axis, outside=True)
        axes[-1].set_xlabel(shown_number(number))
    return figure


def _second_best(overall: Mapping[str, Mapping[str, Any]], dataset: str, number: str) -> tuple[str, float] | None:
    """The second-best model of a data set and its value; None of fewer than two models."""
    values = {}
    for model, found in overall.items():
        value = found["dataset"]["strata"].get(dataset, {}).get("metrics", {}).get(number)
        if value and value["mean"] is not None:
            values[model] = value["mean"]
    ranked = sorted(values, key=values.get, reverse=not lower_is_better(number))
    return (ranked[1], values[ranked[1]]) if len(ranked) > 1 else None


def zero_shot(
    breakdowns: Mapping[str, Mapping[str, Any]], number: str, never_trained_on: Sequence[str] = ()
) -> Figure | None:
    """Paper, figure 4a: by data set, those never trained on among them and marked."""
    return _bars_by_stratum(breakdowns, "dataset", number, never_trained_on)


def reward_parts(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Each part of the reward over the steps: what RL gains and what it pays with."""
    curves: dict[str, list[tuple[str, list[float], list[float]]]] = {}
    for stage, history in histories.items():
        for part, (steps, values) in logged_parts(history).items():
            curves.setdefault(part, []).append((stage, steps, values))
    if not curves:
        return None
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with drawn_figure(3.3 * columns, 2.5 * rows, rows, columns) as (figure, axes):
        for axis, (part, lines) in zip(axes, curves.items(), strict=False):
            for stage, steps, values in lines:
                axis.plot(steps, values, label=short_name(stage), color=colour_of(stage, list(histories)))
            axis.set_title(_two_lines(shown_number(part)), fontsize=9)
            axis.set_xlabel("step")
        draw_legend(axes[0])
        hide_rest(axes, len(curves))
    return figure


def length_drift(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], words: Mapping[str, Mapping[str, float | None]]
) -> Figure | None:
    """Length of rollouts over the steps (tokens), and of the test reports (words) against the references' mean."""
    curves = {s: logged(history, "completions/mean_length") for s, history in histories.items()}
    curves = {stage: curve for stage, curve in curves.items() if len(curve[0])}
    models = [m for m in words if m != "references"]
    if not curves and not models:
        return None
    panels = (1 if curves else 0) + (1 if models else 0)
    with drawn_figure(4.8 * panels, max(2.9, 1 + 0.3 * len(models)), 1, panels) as (figure, axes):
        if curves:
            for stage, (steps, values) in curves.items():
                axes[0].plot(steps, values, label=short_name(stage), color=colour_of(stage, list(histories)))
            axes[0].set_title("mean length of rollouts (tokens)")
            axes[0].set_xlabel("step")
            draw_legend(axes[0])
        if models:
            axis = axes[panels - 1]
            for i, model in enumerate(models[::-1]):
                draw_dots(axis, [i], [words[model]], model, models)
            axis.set_yticks(range(len(models)), [short_name(m) for m in models[::-1]])
            if words.get("references"):
                axis.axvline(words["references"]["mean"], color=INK, linestyle="--", linewidth=1)
                axis.set_title("words a test report (dashed: references)")
            axis.grid(axis="y", visible=False)
    return figure


def logged(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged number."""
    rows = [(row["step"], row[key]) for row in history if row.get(key) is not None and "step" in row]
    return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def logged_parts(history: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Steps and values of each logged reward part, by the part's full name."""
    keys = dict.fromkeys(key for row in history for key in row if _PART.match(key))
    return {_PART.match(key).group(1): logged(history, key) for key in keys}


def _by_stratum(breakdowns: Breakdowns, attribute: str, number: str, label: str, least: int = 1) -> Figure | None:
    """A panel for each data set that has at least `least` known strata: points with intervals, joined in their order."""
    panels = {}
    for dataset, found in breakdowns.items():
        known = [name for name in _strata(found, attribute) if name != UNKNOWN]
        if len(known) >= least:
            panels[dataset] = known
    if not panels:
        return None
    with drawn_figure(6.4, 0.6 + 2.7 * len(panels), len(panels), 1) as (figure, axes):
        for axis, (dataset, strata) in zip(axes, panels.items(), strict=True):
            models = list(breakdowns[dataset])
            for i, model in enumerate(models):
                values = _values(breakdowns[dataset][model], attribute, strata, number)
                at = np.arange(len(strata)) + (i - (len(models) - 1) / 2) * 0.06
                draw_points(axis, at, values, model, models, line=bool(label))
            first = breakdowns[dataset][models[0]][attribute]["strata"]
            names = [s.replace(" ", "\n") for s in strata]
            counts = [first[s]["n"] if s in first else 0 for s in strata]
            axis.set_xticks(range(len(strata)), [f"{s}\nn={n:,}" for s, n in zip(names, counts, strict=True)])
            axis.set_title(dataset)
            axis.set_ylabel(_two_lines(shown_number(number)))
            draw_legend(axis, outside=True)
        axes[-1].set_xlabel(label)
    return figure


def _bars_by_stratum(
    breakdowns: Mapping[str, Mapping[str, Any]], attribute: str, number: str, zero_shot: Sequence[str] = ()
) -> Figure | None:
    strata = _strata(breakdowns, attribute)
    if not strata:
        return None
    models = list(breakdowns)
    with drawn_figure(max(5.4, 1.9 + 1.35 * len(strata)), 3.4) as (figure, axes):
        axis, width = axes[0], 0.8 / len(models)
        for i, model in enumerate(models):
            values = _values(breakdowns[model], attribute, strata, number)
            at = np.arange(len(strata)) + (i - (len(models) - 1) / 2) * width
            heights = [v["mean"] if v and v["mean"] is not None else np.nan for v in values]
            axis.bar(at, heights, width * 0.92, color=colour_of(model, models), label=short_name(model))
            for x, value in zip(at, values, strict=True):
                if (error := error_bar(value)) is not None:
                    axis.errorbar(x, value["mean"], yerr=error, color=INK, linewidth=0.8, capsize=1.5)
        names = [f"{s}\n(zero-shot)" if s in zero_shot else s.replace(" ", "\n") for s in strata]
        axis.set_xticks(range(len(strata)), names)
        axis.set_ylabel(_two_lines(shown_number(number)))
        axis.grid(axis="x", visible=False)
        draw_legend(axis, outside=True)
    return figure


def _strata(breakdowns: Mapping[str, Mapping[str, Any]], attribute: str) -> list[str]:
    return list(dict.fromkeys(s for b in breakdowns.values() for s in b.get(attribute, {"strata": {}})["strata"]))


def _values(breakdown: Mapping[str, Any], attribute: str, strata: Sequence[str], number: str) -> list[Any]:
    found = breakdown[attribute]["strata"]
    return [found.get(name, {}).get("metrics", {}).get(number) for name in strata]


def _radcliq_curve(history: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Steps and RadCliQ-v1 of a stage's rollouts, from the logged means of its parts."""
    parts = {name.split("[")[0]: curve for name, curve in logged_parts(history).items()}
    if not set(PARTS) <= set(parts):
        return [], []
    by_step = [dict(zip(*parts[name], strict=True)) for name in PARTS]
    steps = [step for step in by_step[0] if all(step in part for part in by_step)]
    return steps, [float(radcliq_v1(*(part[step] for part in by_step))) for step in steps]


def _rated_checkpoints(selection: Mapping[str, Any]) -> list[tuple[int, Mapping[str, float | None]]]:
    """Step and RadCliQ-v1 (mean, low, high) of each checkpoint that was rated on validation."""
    rated = [(int(c["checkpoint"].rpartition("-")[2]), c["radcliq_v1"]) for c in selection.get("checkpoints", [])]
    return [(step, value) for step, value in rated if value["mean"] is not None]
