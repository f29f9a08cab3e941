"""Ablations beside the run that they change: paired differences, Holm's correction, counts of errors over checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation import statistics
from evaluation.compare import correct, read_result, same_studies, studies_in_words
from evaluation.scores import Scores, principal_statistics
from evaluation.tables import p_value, says_something
from foundation.errors import RecipeError, read_json
from settings.ablations import STAGES, names, read_ablation

# Columns of the table: the start of a metric's full name → heading.
COLUMNS = {
    "bleu2": "BLEU-2",
    "bertscore": "BERTScore",
    "sembscore": "SembScore",
    "radgraph": "RadGraph-F1",
    "1/radcliq_v1": "1/RadCliQ-v1",
    "errors": "errors a report",
}


def inverse_of(row: Mapping[str, Any]) -> str:
    """The cell of a checkpoint's 1/RadCliQ-v1."""
    value = row["inverse_radcliq_v1"]
    return interval(value) if says_something("1/radcliq_v1", value) else "–"


def table(run_folder: Path) -> str:
    """Markdown: the run's own stages and all ablations that have been evaluated, by data set, and their differences.

    Each ablation's paired difference is from what its file compares it with. Models that were scored on other sections of
    the references stand in a table of their own.

    Raises:
        RecipeError: nothing has been evaluated, or numbers of different backends would stand in one column.
    """
    groups: dict[tuple[str, str], dict[str, Path]] = {}
    for folder in (run_folder, *sorted((run_folder / "ablations").glob("*"))):
        for path in sorted((folder / "eval").glob("*/*/scores.json")):
            model = path.parent.name
            if model not in (("base", *STAGES) if folder == run_folder else (folder.name,)):  # baselines
                continue
            sections = read_result(path.parent)["made_by"]["sections"]
            groups.setdefault((path.parent.parent.name, sections), {})[model] = path.parent
    if not groups:
        raise RecipeError(f"nothing is evaluated in {run_folder}; run: make ablation NAME=… (or make eval)")
    text = []
    for (dataset, sections), folders in groups.items():
        results = {model: read_result(folder) for model, folder in folders.items()}
        check_alike(dataset, [result["made_by"]["scorers"] for result in results.values()])
        there = dict.fromkeys(name for result in results.values() for name in result["metrics"])
        columns = [name for start in COLUMNS for name in there if is_of(name, start)]
        text += [f"## {dataset}" + ("" if sections == "available" else f", {sections}"), ""]
        scores, beyond = same_studies(
            {model: Scores.read(folder / "scores.jsonl") for model, folder in folders.items()}
        )
        numbers = {
            model: {
                n: s for n, s in principal_statistics(one, results[model]["made_by"]["scorers"]).items() if n in columns
            }
            for model, one in scores.items()
        }
        text += [studies_in_words(scores, beyond), ""]
        patients = next(iter(scores.values())).patient_id
        cells = {model: statistics.bootstrap(found, patients) for model, found in numbers.items()}
        means = {model: [shown(name, found.get(name)) for name in columns] for model, found in cells.items()}
        text += markdown("model", columns, means)
        text += differences(dataset, columns, numbers, patients, run_folder, folders)
        if any("[offline" in name for name in columns):
            text += ["Columns marked [offline…] are numbers of stand-ins: not to be put beside a published one.", ""]
    return "\n".join([*text, *error_trajectories(run_folder)])


def check_alike(dataset: str, scorers: Sequence[Mapping[str, Any]]) -> None:
    """Raise `RecipeError` unless all models were scored by the same metrics, and by the same judge where by any."""
    metrics = {json.dumps(one["metrics"], sort_keys=True) for one in scorers}
    judges = {json.dumps(one["judge"], sort_keys=True) for one in scorers if one.get("judge")}
    if len(metrics) > 1 or len(judges) > 1:
        raise RecipeError(f"{dataset}: models were scored by different backends; evaluate them alike first")


def reference_of(model: str, folders: Mapping[str, Path], run_folder: Path) -> str | None:
    """What an ablation is compared with; where that has not run, the run's own stage if it trained on the same data sets.

    (A recipe without MIMIC keeps its data sets in all ablations, so that its own step 2 is their "RL full".)
    """
    named = read_ablation(model).compared_with
    if named in folders or named not in names():
        return named
    stage = read_ablation(named).stages[-1]
    trained = [folder / stage / "result.json" for folder in (run_folder, run_folder / "ablations" / model)]
    if stage in folders and all(path.is_file() for path in trained):
        own, other = (read_json(path, "settings")["settings"]["datasets"] for path in trained)
        return stage if own == other else named
    return named


def shown(name: str, value: statistics.Interval | None) -> str:
    """The cell of a number; a dash where it does not exist or, one over a mean, cannot be read."""
    made = value.as_dict() if value else {}
    return interval(made) if made and says_something(name, made) else "–"


def differences(
    dataset: str,
    columns: Sequence[str],
    numbers: Mapping[str, Mapping[str, statistics.Statistic]],
    patients: Sequence[str],
    run_folder: Path,
    folders: Mapping[str, Path],
) -> list[str]:
    """Paired differences of the ablations from what each is compared with; p by Holm over the whole table (`correct`)."""
    rows: list[dict[str, Any]] = []
    missing = []
    for model in (name for name in folders if name in names()):
        other = reference_of(model, folders, run_folder)
        if other is None:
            continue
        if other not in folders:
            missing.append(f"{model} is not compared: {other} is not evaluated so on {dataset}.")
            continue
        for name, pair in statistics.paired(numbers[model], numbers[other], patients).items():
            rows.append({"first": model, "second": other, "number": name, **pair.as_dict()})
    correct(rows)
    cells: dict[str, list[str]] = {}
    for pair in dict.fromkeys((row["first"], row["second"]) for row in rows):
        found = {row["number"]: row for row in rows if (row["first"], row["second"]) == pair}
        cells[" − ".join(pair)] = [difference(found.get(name)) for name in columns]
    heading = "paired difference, p by Holm (1/RadCliQ-v1 and errors one family, the other numbers another)"
    text = markdown(heading, columns, cells) if cells else []
    return [*text, *(part for line in missing for part in (line, ""))]


def error_trajectories(run_folder: Path) -> list[str]:
    """Errors a report on validation, at the start and the checkpoints of step 2, where they were counted (Figure 2d)."""
    found: dict[str, dict[int, str]] = {}
    judges = set()
    for folder in (run_folder, *sorted((run_folder / "ablations").glob("*"))):
        path = folder / "rl_step2" / "selection.json"
        selection = read_json(path) if path.is_file() else {}
        if not selection.get("start"):
            continue
        judges.add(json.dumps(selection["judge"], sort_keys=True))
        rated = {0: selection["start"]} | {
            int(entry["checkpoint"].rpartition("-")[2]): entry for entry in selection["checkpoints"]
        }
        model = "rl_step2" if folder == run_folder else folder.name
        found[model] = {step: interval(entry["errors"]) for step, entry in rated.items()}
    if not found:
        return []
    if len(judges) > 1:
        raise RecipeError(f"{run_folder}: step 2 was judged by different judges; count the errors by one of them first")
    steps = sorted({step for by_step in found.values() for step in by_step})
    rows = {str(step): [by_step.get(step, "–") for by_step in found.values()] for step in steps}
    name = json.loads(judges.pop())["name"]
    return [f"## errors a report on validation, by step of rl_step2 ({name})", "", *markdown("step", list(found), rows)]


def markdown(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a Markdown table with an empty one after it."""
    head = [corner, *(heading_of(name) for name in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join([name, *cells]) + " |" for name, cells in rows.items()), ""]


def is_of(name: str, start: str) -> bool:
    """Whether a number's full name, e.g. `bertscore[offline-hash]`, is that of the metric `start`."""
    return name == start or name.startswith((f"{start}[", f"{start} "))


def heading_of(name: str) -> str:
    """A metric's heading with the mark of a stand-in, e.g. `BERTScore [offline-hash]`; any other name as it is."""
    start = next((start for start in COLUMNS if is_of(name, start)), None)
    if start is None:
        return name
    return COLUMNS[start] + name.removeprefix(start).replace("[", " [", 1).replace("  ", " ")


def difference(value: Mapping[str, Any] | None) -> str:
    """`+mean [low, high], p …`, or a dash where there is none."""
    if value is None or value["difference"] is None:
        return "–"
    bounds = "no interval" if value["low"] is None else "{low:+.3f}, {high:+.3f}".format(**value)
    p = "" if value["p_holm"] is None else f", p {p_value(value['p_holm'], value['p_at_floor'])}"
    return f"{value['difference']:+.3f} [{bounds}]{p}"


def interval(value: Mapping[str, Any]) -> str:
    """`mean [low, high]`, or a dash where there is no number.

    1/mean has no interval where the mean's own includes 0.
    """
    if value.get("mean") is None:
        return "–"
    if value["low"] is None:
        return "{mean:.3f} [no interval]".format(**value)
    return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**value)
