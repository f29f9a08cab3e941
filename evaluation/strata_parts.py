"""Where a model is better or worse: conditions, encounters, temporal categories, groups of patients, institutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation import figures
from evaluation.breakdowns import SUBGROUPS
from evaluation.material import Material
from evaluation.names import sentence, shown_name, shown_number
from evaluation.part import Part, part
from evaluation.principal_part import readable, studied
from evaluation.statistics import MIN_PATIENTS, holm
from evaluation.tables import Table, cell, listed, says_something, with_p
from rewards.conditions import CONDITIONS


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
    return part("conditions", "Findings", text, figures.condition_f1(m.conditions), absent, [table])


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
    return part("encounters", "Encounters", text, figure, absent, [strata_table(m, "encounter")])


def temporal(m: Material) -> Part:
    by = listed(sorted({d["temporal"]["backend"] for d in m.described.values()}))
    text = (
        f"{sentence(shown_number(m.headline))} by what the reference says of change, labelled by {by}; unknown where neither dates "
        f"nor the text say whether there was an earlier study. {of_each(m)}"
    )
    figure = figures.temporal_categories(drawn(m), m.headline)
    absent = "No reference says whether there was an earlier study."
    return part(
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
    return part("subgroups", "Subgroups", text, figure, absent, tables)


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
    return part("institutions", "Data sets", text, figure, "", tables)


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
