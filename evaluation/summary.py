"""The principal numbers of a run in one small file: outputs/<run>/summary.json.

python -m evaluation summary --outputs outputs/demo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_prep.files import write_json
from evaluation import statistics
from evaluation.baselines import BASELINES
from evaluation.compare import same_studies
from evaluation.run_folder import STAGES, Run, read_run
from evaluation.score import Scores, principal_statistics

PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "numpy", "scipy")


def summarise_run(outputs: Path, resamples: int = statistics.RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Write and return `summary.json`.

    It holds, for each stage, n and micro-F1 of the labels (the true ones where the data has them), composite reward and
    judge errors a report, each {mean, low, high}, over the test studies of the data sets that were trained on; the same
    for zero-shot data sets, for each data set, for the baselines and for comparisons (`make ablation`); paired
    differences of consecutive stages, and of comparisons from the RL stages; seconds a stage; versions; backends.
    """
    run = read_run(outputs)
    stages = [model for model in run.models if model not in BASELINES]
    baselines = [model for model in run.models if model in BASELINES]
    alike = [name for name in sorted(run.ablations) if run.described(name) == run.described(run.models[0])]

    def numbers(models: Sequence[str], datasets: Sequence[str]) -> dict[str, Any]:
        return {
            model: _numbers(scores, run.described(model), resamples, seed)
            for model in models
            if (scores := run.scores(model, datasets)) is not None
        }

    result = {
        "run": outputs.name,
        "datasets": {"seen": run.seen, "zero_shot": run.zero_shot},
        "stages": numbers(stages, run.seen),
        "baselines": numbers(baselines, run.seen),
        "paired": _paired(run, run.seen, resamples, seed),
        "comparisons": {
            "models": numbers(alike, run.seen),
            "paired": _comparisons(run, alike, run.seen, resamples, seed),
            "scored_by_other_backends": sorted(set(run.ablations) - set(alike)),
        },
        "zero_shot": {
            "stages": numbers(stages, run.zero_shot),
            "baselines": numbers(baselines, run.zero_shot),
            "paired": _paired(run, run.zero_shot, resamples, seed),
        },
        "by_dataset": {name: numbers(run.models, [name]) for name in run.datasets},
        "not_evaluated": [stage for stage in STAGES if stage not in run.folders],
        "seconds": run.root_file("timings.json")
        or {stage: file.get("seconds") for stage, file in run.stage_files("result.json").items()},
        "peak_memory_mib": run.root_file("peak_memory.json"),
        "scorers": run.described(run.models[0]),
        "intervals": {"level": statistics.LEVEL, "resamples": resamples, "seed": seed, "over": "patients"},
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_json(outputs / "summary.json", result)
    return result


def principal(scores: Scores, described: Mapping[str, Any]) -> dict[str, statistics.Statistic]:
    """The three numbers of the summary, under short keys; a number that was not scored is left out."""
    found = principal_statistics(scores, described)
    kind = "truth" if "truth" in scores.labels else "label"
    wanted = {
        "micro_f1": f"{kind}_micro_f1_14",
        "composite": "composite",
        "judge_errors": "errors ",
    }
    return {key: found[name] for key, start in wanted.items() for name in found if name.startswith(start)}


def text(result: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [f"{'':<14}{'n':>6}  {'micro-F1':<24}{'composite':<24}{'judge errors a report':<24}"]
    for name, numbers in {**result["stages"], **result["baselines"]}.items():
        cells = [_cell(numbers.get(key)) for key in ("micro_f1", "composite", "judge_errors")]
        lines.append(f"{name:<14}{numbers['n']:>6}  " + "".join(f"{cell:<24}" for cell in cells))
    for pair, numbers in result["paired"].items():
        for key, value in numbers.items():
            lines.append(f"{pair}: {key} {_cell(value, 'difference')}")
    return "\n".join(lines)


def _numbers(scores: Scores, described: Mapping[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    intervals = statistics.bootstrap(principal(scores, described), scores.patient_id, resamples=resamples, seed=seed)
    return {
        "n": len(scores.study_id),
        "patients": len(set(scores.patient_id)),
        "micro_f1_of": "true labels" if "truth" in scores.labels else "the references' labels",
        **{name: interval.as_dict() for name, interval in intervals.items()},
        **({"judge_failures": sum(scores.judge_failures().values())} if scores.failures else {}),
    }


def _paired(run: Run, datasets: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Differences of consecutive stages on the studies that both have."""
    present = [stage for stage in STAGES if stage in run.folders]
    pairs = [(after, before) for before, after in pairwise(present)]
    return _differences(run, pairs, datasets, resamples, seed)


def _comparisons(run: Run, names: Sequence[str], datasets: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """Differences of each comparison (`make ablation`) from the RL stages that were evaluated."""
    pairs = [(name, stage) for name in names for stage in ("rl_step1", "rl_step2") if stage in run.folders]
    return _differences(run, pairs, datasets, resamples, seed)


def _differences(
    run: Run, pairs: Sequence[tuple[str, str]], datasets: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """`after - before` for each pair; p-values corrected by Holm over all of them."""
    result: dict[str, Any] = {}
    for after, before in pairs:
        loaded = {name: run.scores(name, datasets) for name in (after, before)}
        if any(scores is None for scores in loaded.values()):
            continue
        aligned, _ = same_studies(loaded)
        found = {name: principal(scores, run.described(name)) for name, scores in aligned.items()}
        differences = statistics.paired(
            found[after], found[before], aligned[after].patient_id, resamples=resamples, seed=seed
        )
        result[f"{after} - {before}"] = {name: d.as_dict() for name, d in differences.items()}
    tests = [number for numbers in result.values() for number in numbers.values()]
    for number, p in zip(tests, statistics.holm([number["p"] for number in tests]), strict=True):
        number["p_holm"] = p
    return result


def _cell(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    if value is None or value[key] is None:
        return "–"
    interval = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value[key]:.3f}{interval}"
