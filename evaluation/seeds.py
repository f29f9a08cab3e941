"""A run on several seeds, in Markdown tables: what held on each, and on average.

python -m evaluation seeds outputs/demo outputs/demo-seed2 outputs/demo-seed3
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from evaluation.compare import same_studies
from evaluation.run_folder import Run, read_run
from evaluation.scores import Scores
from evaluation.statistics import LEVEL, Contrast, bootstrap
from evaluation.summary import compared_models, principal
from foundation.errors import EvaluationError, read_record

NAMES = {
    "base": "base (random weights)",
    "sft": "SFT",
    "rl_step1": "RL step 1",
    "rl_step2": "RL step 2",
    "most_frequent": "most frequent report",
    "copy_prior": "copy the prior report",
    "retrieval": "nearest indication",
}
COLUMNS = {"micro_f1": ("micro-F1", 3), "composite": ("composite", 3), "judge_errors": ("judge errors a report", 2)}


def seeds_table(runs: Sequence[Path]) -> str:
    """Markdown for each run: its models, their paired differences, micro-F1 by data set, seconds and memory.

    Raises:
        EvaluationError: a run has no summary, or runs were scored by different backends.
    """
    summaries = {run.name: _summary(run) for run in runs}
    scorers = {json.dumps(summary["scorers"], sort_keys=True) for summary in summaries.values()}
    if len(scorers) > 1:
        raise EvaluationError(f"{', '.join(summaries)} were scored by different backends; evaluate them alike first")
    tables = [_of_run(name, summary) for name, summary in summaries.items()]
    if len(summaries) > 1:
        tables.append(_over_seeds(runs, list(summaries.values())))
    return "\n\n".join(tables)


def _over_seeds(runs: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> str:
    """The paired differences that all runs have, averaged, with an interval for another training on other studies.

    Two things make the mean uncertain: one training differs from the next (Student's t over the seeds), and the studies are
    a sample. Where the seeds share their studies, these move all seeds together and are resampled jointly; the two errors
    add in squares. Where each seed has its own studies, the spread over the seeds holds both.
    """
    differences = [_differences(summary) for summary in summaries]
    pairs = [pair for pair in differences[0] if all(pair in other for other in differences)]
    keys = [key for key in COLUMNS if any(key in differences[0][pair] for pair in pairs)]
    opened = [read_run(run) for run in runs] if all((run / "eval").is_dir() for run in runs) else []
    shared = _share_studies(opened, summaries)
    joint = _jointly(opened, pairs) if shared else {}
    rows = []
    for pair in pairs:
        cells = [
            _mean_difference(
                [other[pair].get(key) for other in differences], COLUMNS[key][1], shared, joint.get((pair, key))
            )
            for key in keys
        ]
        rows.append([_pair(pair), *cells])
    heading = f"paired difference, mean of {len(summaries)} seeds [95% interval]; each seed"
    of_studies = "the test studies, which the seeds share" if shared else "each seed's own test studies"
    note = f"Intervals over the seeds (Student's t, {len(summaries) - 1} degrees of freedom) and {of_studies}."
    return "\n\n".join(("**all seeds**", note, _table([heading, *(COLUMNS[key][0] for key in keys)], rows)))


def _share_studies(opened: Sequence[Run], summaries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the seeds were scored on the same studies: by their ids; by data sets and counts where scores aren't at hand."""
    if len({json.dumps([s["datasets"], next(iter(s["stages"].values()))["n"]]) for s in summaries}) > 1:
        return False
    studies = set()
    for run in opened:
        common = run.common(run.models, run.pooled)
        scores = next(iter(common.scores.values()))
        studies.add(frozenset(zip(scores.fields["dataset"], scores.study_id, strict=True)))
    return len(studies) <= 1


def _mean_difference(
    numbers: Sequence[Mapping[str, Any] | None], digits: int, shared: bool, joint: float | None
) -> str:
    """`mean [low, high]; each seed`; `joint` is the half width by the shared studies, if they could be resampled together."""
    if any(number is None or number["difference"] is None or number["low"] is None for number in numbers):
        return "–"
    values = [number["difference"] for number in numbers]
    halves = [(number["high"] - number["low"]) / 2 for number in numbers]
    n, mean = len(values), sum(values) / len(values)
    seeds = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    if shared:
        # Without the scores at hand: as if the studies moved all seeds alike, the most that they can do.
        half = math.hypot(seeds, sum(halves) / n if joint is None else joint)
    else:
        half = max(seeds, math.hypot(*halves) / n)
    form = f"+.{digits}f"
    each = ", ".join(f"{value:{form}}" for value in values)
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]; {each}"


def _jointly(opened: Sequence[Run], pairs: Sequence[str]) -> dict[tuple[str, str], float]:
    """Half widths of the seeds' mean differences by resampling the studies that all seeds share, by pair and number.

    Empty where no run's scores are at hand, or a pair's studies are others.
    """
    if not opened:
        return {}
    halves: dict[tuple[str, str], float] = {}
    for pair in pairs:
        models = pair.split(" - ")
        scores: dict[str, Scores] = {}
        for i, run in enumerate(opened):
            common = run.common(compared_models(run, models), run.seen)
            scores |= {f"{i} {model}": common.scores[model] for model in models}
        studies = {tuple(sorted(zip(s.fields["dataset"], s.study_id, strict=True))) for s in scores.values()}
        if len(studies) > 1:
            return {}
        aligned, _ = same_studies(scores)
        found = [[principal(aligned[f"{i} {m}"], run.described(m)) for m in models] for i, run in enumerate(opened)]
        contrasts = {
            key: Contrast(
                [(sign / len(opened), one[key]) for both in found for sign, one in zip((1, -1), both, strict=True)]
            )
            for key in found[0][0]
            if all(key in one for both in found for one in both)
        }
        patients = next(iter(aligned.values())).patient_id
        for key, interval in bootstrap(contrasts, patients).items():
            if interval.low is not None:
                halves[pair, key] = (interval.high - interval.low) / 2
    return halves


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.is_file():
        raise EvaluationError(f"{path} is not there; make it with: python -m evaluation summary --outputs {run}")
    return read_record(path, "stages", "comparisons", "baselines", "datasets")


def _of_run(name: str, summary: Mapping[str, Any]) -> str:
    models = {**summary["stages"], **summary["comparisons"]["models"], **summary["baselines"]}
    studies = next(iter(models.values()))["n"]
    seen = summary["datasets"]["seen"]
    keys = [key for key in COLUMNS if any(key in numbers for numbers in models.values())]
    headings = [COLUMNS[key][0] for key in keys]
    differences = _differences(summary)
    stages = [stage for stage in summary["stages"] if stage != "base"]
    return "\n\n".join(
        (
            f"**{name}** ({studies} test studies of {', '.join(seen)})",
            _table(
                ["", *headings],
                [[_label(model), *(_value(numbers, key, "mean") for key in keys)] for model, numbers in models.items()],
            ),
            _table(
                ["paired difference", *headings],
                [
                    [
                        _pair(pair),
                        *(_value(numbers, key, "difference") for key in keys),
                    ]
                    for pair, numbers in differences.items()
                ],
            ),
            _table(
                ["micro-F1 by data set", *seen],
                [
                    [
                        _label(stage),
                        *(f"{summary['by_dataset'][data][stage]['micro_f1']['mean']:.3f}" for data in seen),
                    ]
                    for stage in stages
                ],
            ),
            _cost(summary),
        )
    )


def _cost(summary: Mapping[str, Any]) -> str:
    seconds = summary["seconds"] or {}
    memory = summary["peak_memory_mib"] or {}
    parts = ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items() if value)
    total = sum(value for value in seconds.values() if value)
    peak = f"; peak memory of a process {max(memory.values()):,.0f} MiB" if memory else ""
    return f"{total:.0f} s of stages ({parts}){peak}."


def _differences(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The paired differences of the stages, and those of the comparisons."""
    return {**summary["paired"], **summary["comparisons"]["paired"]}


def _pair(pair: str) -> str:
    return " − ".join(_label(model) for model in pair.split(" - "))


def _label(model: str) -> str:
    return NAMES.get(model, model.replace("_", " "))


def _value(numbers: Mapping[str, Any], key: str, what: str) -> str:
    """`number [low, high]`, with a sign where it is a difference; a dash where it was not scored."""
    number = numbers.get(key)
    if number is None or number[what] is None:
        return "–"
    form = f"{'+' if what == 'difference' else ''}.{COLUMNS[key][1]}f"
    if number["low"] is None:
        return f"{number[what]:{form}}"
    return f"{number[what]:{form}} [{number['low']:{form}}, {number['high']:{form}}]"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
