"""How the reward was learned: its parts, training curves, length of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation import figures
from evaluation.material import Material
from evaluation.names import shown_name, shown_number
from evaluation.part import Part, part
from evaluation.principal_part import drawn_numbers, means_table, readable, studied
from evaluation.tables import Table, cell, listed, p_value, says_something


def rewards(m: Material) -> Part:
    c = m.comparisons
    ablations = [name for name in c.means if name in m.run.ablations]
    text = f"Change of each run against the SFT model, over {studied(m, c.common)}"
    if ablations:
        text += f" Comparisons beside the run's own stages: {listed([shown_name(a) for a in ablations])}."
    if c.left_out:
        text += " Left out: " + "; ".join(f"{shown_name(n)} ({why})" for n, why in c.left_out.items()) + "."
    numbers = [n for n in drawn_numbers(m) if any(n in means for means in c.means.values())]
    tables = [means_table(c.means, folded="Means of the run and its comparisons")] if ablations else []
    if m.comparison:
        tables.append(pairs_table(m.comparison))
    figure = figures.single_against_combined(c.means, numbers)
    absent = "This needs an SFT model and at least one RL run; comparisons are made with: make ablation NAME=…"
    return part("rewards", "What RL changed, metric by metric", text, figure, absent, tables)


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
        if not r["number"].startswith("1/") or both_readable(comparison, r)
    ]
    folded = (
        f"All pairs of models on the {comparison['studies']:,} studies that all have: permutation test of swapped reports, "
        "Holm-corrected over the principal numbers and, apart, over all others"
    )
    return Table(["", "number", "family", "difference", "p", "p (Holm)"], rows, folded=folded)


def both_readable(comparison: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    number = row["number"]
    means = comparison["means"]
    return all(says_something(number, means[row[side]].get(number)) for side in ("first", "second"))


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
    return part("training", "Training: quality and errors over the steps", text, figure, absent, tables)


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
    return part("reward-parts", "Reward parts over the steps", text, figures.reward_parts(rl), absent, tables)


def _parts_table(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for stage, history in histories.items():
        for name, (_, values) in figures.logged_parts(history).items():
            third = max(1, len(values) // 3)
            first, last = np.mean(values[:third]), np.mean(values[-third:])
            rows.append([shown_name(stage), shown_number(name), f"{first:.3f}", f"{last:.3f}"])
    return Table(["stage", "part", "mean of the first third", "mean of the last third"], rows, folded="Table")


def length(m: Material) -> Part:
    text = f"A reward that can be raised by writing more, or less, shows here. Words a report: {studied(m, m.pooled)}"
    rows = [[shown_name(name), cell(value)] for name, value in m.words.items()]
    figure = figures.length_drift(rl_histories(m), m.words)
    return part(
        "length", "Length of the reports", text, figure, "", [Table(["", "words a report"], rows, folded="Table")]
    )
