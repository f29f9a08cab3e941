"""The principal numbers of a run in one small file: outputs/<run>/summary.json.

python -m evaluation summary --outputs outputs/demo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import statistics
from evaluation.compare import correct
from evaluation.counterfactual_results import read_results
from evaluation.names import split_number
from evaluation.run_folder import MAIN, STAGES, Common, Run, evaluations, read_run
from evaluation.scores import Scores, principal_statistics
from evaluation.tables import says_something
from foundation.files import write_json
from settings.evaluations import BASELINES

# Short key → number: the paper's primary metric and what it is made of.
PAPERS_NUMBERS = {
    "inverse_radcliq_v1": "1/radcliq_v1",
    "bertscore": "bertscore",
    "sembscore": "sembscore",
    "radgraph": "radgraph",
    "bleu2": "bleu2",
}
# Short key → number, for its family of tests.
_NUMBERS = {**PAPERS_NUMBERS, "micro_f1": "label_micro_f1_14", "judge_errors": "errors"}
PACKAGES = ("torch", "trl", "transformers", "accelerate", "datasets", "numpy", "scipy")


def summarise_run(outputs: Path, resamples: int = statistics.RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Write and return `summary.json`.

    It holds, for each stage, n, 1/RadCliQ-v1 and its parts, micro-F1 of the labels (the true ones where the data has them),
    composite reward and judge errors a report, each {mean, low, high}, over the test studies of the data sets that were
    trained on; the same for zero-shot data sets, for each data set, for the baselines, for comparisons (`make ablation`)
    and for the evaluations beside the recipe's own (`beside`: the other board, without priors); what shows that the models
    look at the film (`counterfactual`, where it was measured); paired differences of
    consecutive stages, and of comparisons from the RL stages; seconds a stage; versions; backends.

    Each group of models is over the studies that all of them have (`studies` says how many that leaves out, and why); the
    numbers of a model's own larger set are under `own_studies`. A validation split, by which the checkpoint was chosen, is
    in no pooled number where other data sets have test studies (`apart`).
    """
    run = read_run(outputs)
    stages = [model for model in run.models if model not in BASELINES]
    baselines = [model for model in run.models if model in BASELINES]
    alike = comparisons(run)

    def numbers(models: Sequence[str], common: Common) -> dict[str, Any]:
        return {
            model: {
                **_numbers(common.scores[model], run.described(model), resamples, seed),
                **({"most_frequent_reports": run.most_frequent_reports(model)} if model in baselines else {}),
            }
            for model in models
            if model in common.scores
        }

    seen, never = run.common(run.models, run.seen), run.common(run.models, run.pooled_zero_shot)
    compared = run.common(compared_models(run, alike), run.seen) if alike else seen
    by_dataset = {name: run.common(run.models, [name]) for name in run.datasets}
    larger = [m for m in run.models if seen.beyond.get(m) or m in seen.without]
    own = {model: run.common([model], run.seen) for model in larger}

    result = {
        "run": outputs.name,
        "evaluation": run.evaluation,
        "datasets": {"seen": run.seen, "zero_shot": run.zero_shot},
        "not_rexranks_test": [name for name in run.datasets if run.not_rexranks_test(name)],
        "apart": run.apart,
        "studies": seen.described(),
        "stages": numbers(stages, seen),
        "baselines": numbers(baselines, seen),
        "own_studies": {
            m: {**numbers([m], common)[m], "datasets": common.datasets} for m, common in own.items() if common.studies
        },
        "paired": _paired(run, seen, resamples, seed),
        "comparisons": {
            "studies": compared.described(),
            "models": numbers(alike, compared),
            "paired": _comparisons(run, alike, compared, resamples, seed),
            "scored_by_other_backends": sorted(set(run.ablations) - set(alike)),
        },
        "zero_shot": {
            "studies": never.described(),
            "stages": numbers(stages, never),
            "baselines": numbers(baselines, never),
            "paired": _paired(run, never, resamples, seed),
        },
        "by_dataset": {name: numbers(run.models, common) for name, common in by_dataset.items()},
        "beside": {name: _beside(outputs, name, resamples, seed) for name in evaluations(outputs) if name != MAIN},
        "counterfactual": {
            model: {key: found[key] for key in ("looks_at_film", "uses_prior", "copies_prior")}
            for model, found in read_results(run).items()
        },
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


def comparisons(run: Run) -> list[str]:
    """The run's comparisons (`make ablation`) that were scored as its own models were."""
    return [name for name in sorted(run.ablations) if run.described(name) == run.described(run.models[0])]


def compared_models(run: Run, models: Sequence[str]) -> list[str]:
    """The models whose common studies a difference of two is over: all of the run's own, or its stages and comparisons."""
    if all(model in run.folders for model in models):
        return run.models
    return [*(model for model in run.models if model not in BASELINES), *comparisons(run)]


def principal(scores: Scores, described: Mapping[str, Any]) -> dict[str, statistics.Statistic]:
    """The numbers of the summary, under short keys; a number that was not scored is left out.

    1/RadCliQ-v1 and its parts first: the paper's "primary evaluation metric" (Results).
    """
    found = {split_number(name)[0]: value for name, value in principal_statistics(scores, described).items()}
    kind = "truth" if "truth" in scores.labels else "label"
    wanted = {**PAPERS_NUMBERS, "micro_f1": f"{kind}_micro_f1_14", "composite": "composite"}
    if judge := next((name for name in found if name.startswith("errors ")), None):
        wanted["judge_errors"] = judge
    return {key: found[name] for key, name in wanted.items() if name in found}


def text(result: Mapping[str, Any]) -> str:
    """The summary for a terminal: means with intervals, of 1/RadCliQ-v1's parts the means alone."""
    parts, whole = ("bertscore", "sembscore", "radgraph"), ("micro_f1", "composite", "judge_errors")
    header = f"{'':<14}{'n':>6}  {'1/RadCliQ-v1':<24}{'BERTScore':<11}{'SembScore':<11}{'RadGraph-F1':<13}"
    lines = [header + f"{'micro-F1':<24}{'composite':<24}{'judge errors a report':<24}".rstrip()]
    if result["not_rexranks_test"]:
        lines.insert(0, f"not ReXrank's test: {', '.join(result['not_rexranks_test'])}")

    def row(name: str, numbers: Mapping[str, Any]) -> str:
        means = [_cell({**numbers[key], "low": None}) if key in numbers else "–" for key in parts]
        return (
            f"{name:<14}{numbers['n']:>6}  {_cell(_readable(numbers.get('inverse_radcliq_v1'))):<24}"
            + f"{means[0]:<11}{means[1]:<11}{means[2]:<13}"
            + "".join(f"{_cell(numbers.get(key)):<24}" for key in whole).rstrip()
        )

    lines += [row(name, numbers) for name, numbers in {**result["stages"], **result["baselines"]}.items()]
    for evaluation, found in result["beside"].items():
        lines.append(f"{evaluation}:")
        lines += [row(name, numbers) for name, numbers in {**found["stages"], **found["baselines"]}.items()]
    for pair, numbers in result["paired"].items():
        for key, value in numbers.items():
            lines.append(f"{pair}: {key} {_cell(value, 'difference')}")
    return "\n".join(lines)


def _readable(value: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """1/RadCliQ-v1, or None where RadCliQ's interval reaches zero: its inverse says nothing there."""
    return value if value is not None and says_something("1/radcliq_v1", value) else None


def _beside(outputs: Path, evaluation: str, resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of an evaluation beside the recipe's own, over the data sets trained on and for each data set."""
    run = read_run(outputs, evaluation)
    seen = run.common(run.models, run.seen)

    def numbers(models: Sequence[str], common: Common) -> dict[str, Any]:
        return {
            model: _numbers(common.scores[model], run.described(model), resamples, seed)
            for model in models
            if model in common.scores
        }

    return {
        "evaluation": run.evaluation,
        "studies": seen.described(),
        "stages": numbers([model for model in run.models if model not in BASELINES], seen),
        "baselines": numbers([model for model in run.models if model in BASELINES], seen),
        "by_dataset": {name: numbers(run.models, run.common(run.models, [name])) for name in run.datasets},
    }


def _numbers(scores: Scores, described: Mapping[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    intervals = statistics.bootstrap(principal(scores, described), scores.patient_id, resamples=resamples, seed=seed)
    return {
        "n": len(scores.study_id),
        "patients": len(set(scores.patient_id)),
        "micro_f1_of": "true labels" if "truth" in scores.labels else "the references' labels",
        **{name: interval.as_dict() for name, interval in intervals.items()},
        **({"judged": int((~np.isnan(scores.errors)).sum())} if scores.errors is not None else {}),
        **({"judge_failures": sum(scores.judge_failures().values())} if scores.failures else {}),
    }


def _paired(run: Run, common: Common, resamples: int, seed: int) -> dict[str, Any]:
    """Differences of consecutive stages."""
    present = [stage for stage in STAGES if stage in common.scores]
    return _differences(run, [(after, before) for before, after in pairwise(present)], common, resamples, seed)


def _comparisons(run: Run, names: Sequence[str], common: Common, resamples: int, seed: int) -> dict[str, Any]:
    """Differences of each comparison (`make ablation`) from the RL stages that were evaluated."""
    stages = [stage for stage in ("rl_step1", "rl_step2") if stage in common.scores]
    pairs = [(name, stage) for name in names if name in common.scores for stage in stages]
    return _differences(run, pairs, common, resamples, seed)


def _differences(
    run: Run, pairs: Sequence[tuple[str, str]], common: Common, resamples: int, seed: int
) -> dict[str, Any]:
    """`after - before` for each pair; p-values corrected by Holm over all of them (`compare.correct`)."""
    result: dict[str, Any] = {}
    rows = []
    for after, before in pairs:
        found = [principal(common.scores[name], run.described(name)) for name in (after, before)]
        patients = common.scores[after].patient_id
        differences = statistics.paired(*found, patients, resamples=resamples, seed=seed)
        result[f"{after} - {before}"] = {}
        for key, difference in differences.items():
            number = _NUMBERS.get(key, key)
            rows.append({"first": after, "second": before, "number": number, **difference.as_dict()})
            result[f"{after} - {before}"][key] = rows[-1]
    correct(rows)
    for row in rows:
        for name in ("first", "second", "number"):
            del row[name]
    return result


def _cell(value: Mapping[str, Any] | None, key: str = "mean") -> str:
    if value is None or value[key] is None:
        return "–"
    interval = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value[key]:.3f}{interval}"
