"""The best checkpoint of a stage: greedy reports of the validation studies, 1/RadCliQ-v1 with its interval.

    python -m recipes.select_checkpoint --config recipes/demo/eval.yaml --run outputs/demo --stage rl_step1

Paper, Optimization: step 2 starts "from the best checkpoint from Step 1's RadCliQ optimization". Writes
`<run>/<stage>/selection.json` and the link `<run>/<stage>/best`. Reports that are there already are not made again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.files import write_json
from data_prep.study import read_studies
from evaluation import statistics
from evaluation.generate import Task, generate
from evaluation.predictions import read_predictions
from launch.provenance import write_run
from recipes.arguments import EvaluationArguments, parse_recipe
from recipes.errors import RecipeError, run_command
from recipes.evaluate import generation_settings
from recipes.models import model_fingerprint
from recipes.prompts import study_report
from recipes.stage import announce, quiet_logs, saved_checkpoints
from rewards.chexprompt.judge import JudgeError, JudgeSettings
from rewards.metric import Metric
from rewards.registry import MetricError, load_metrics


@dataclass
class SelectionArguments:
    """Which stage's checkpoints are compared."""

    stage: str = field(default="rl_step1", metadata={"help": "Stage of the run whose checkpoints are compared."})


def main() -> None:
    evaluation, _, selection = parse_recipe((EvaluationArguments, JudgeSettings, SelectionArguments))
    quiet_logs()
    folder = Path(evaluation.run) / selection.stage
    checkpoints = find_checkpoints(folder)
    metric = load_metrics(["radcliq_v1"], evaluation.reward_backend, Path(evaluation.weights_dir))["radcliq_v1"]
    write_run(folder / "selection", "selection", seed=None)
    results: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        results.append(rate(checkpoint, evaluation, metric, folder / "selection"))
        interval = "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**results[-1]["radcliq_v1"])
        announce(f"{checkpoint.name}: {metric.name} {interval} (lower is better), {results[-1]['studies']} studies")
    # The lowest mean is the highest 1/mean wherever both are positive; near or below zero only the mean orders rightly.
    best = min(results, key=lambda result: result["radcliq_v1"]["mean"])
    write_json(
        folder / "selection.json",
        {
            "criterion": f"1/mean({metric.name})",
            "backend": metric.backend,
            "fingerprint": metric.fingerprint,
            "best": best["checkpoint"],
            "checkpoints": results,
        },
    )
    link(folder / "best", best["checkpoint"])
    announce(f"{selection.stage}: best is {best['checkpoint']}")


def find_checkpoints(folder: Path) -> list[Path]:
    """The saved checkpoints of a stage, by step.

    Raises:
        RecipeError: there is none.
    """
    found = saved_checkpoints(folder)
    if not found:
        raise RecipeError(f"no checkpoint in {folder}; train the stage first, with save_strategy: steps")
    return found


def rate(checkpoint: Path, evaluation: EvaluationArguments, metric: Metric, out: Path) -> dict[str, Any]:
    """Mean and 1/mean of RadCliQ-v1 over all validation studies, with bootstrap intervals over patients."""
    candidates, references, patients = [], [], []
    for dataset in evaluation.validation_datasets or evaluation.datasets:
        data, split = Path(evaluation.data_dir) / dataset, evaluation.validation_split
        folder = out / checkpoint.name / dataset
        settings = generation_settings(evaluation)
        studies = evaluation.validation_studies
        generate(Task(str(checkpoint), data, split, folder, settings, evaluation.batch_size, studies), evaluation.force)
        entries = read_predictions(folder / "predictions.json").entries
        for study in read_studies(data, split).to_pylist()[: evaluation.validation_studies]:
            candidates.append(entries[study["study_id"]]["model_prediction"])
            references.append(study_report(study))
            patients.append((dataset, study["patient_id"]))
    scores = metric(candidates, references).astype(np.float64)
    wanted = {"radcliq_v1": statistics.mean(scores), "inverse_radcliq_v1": statistics.inverse_mean(scores)}
    intervals = statistics.bootstrap(wanted, patients)
    return {
        "checkpoint": checkpoint.name,
        "model_sha256": model_fingerprint(str(checkpoint)),
        "studies": len(candidates),
        **{name: interval.as_dict() for name, interval in intervals.items()},
    }


def link(path: Path, target: str) -> None:
    """Make `path` a relative symbolic link to `target`, replacing an earlier link atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    os.replace(temporary, path)


if __name__ == "__main__":
    run_command(main, JudgeError, MetricError)
