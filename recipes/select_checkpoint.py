"""The best checkpoint of a stage: greedy reports of the validation studies, 1/RadCliQ-v1 with its interval.

    python -m recipes.select_checkpoint --config recipes/demo/eval.yaml --run outputs/demo --stage rl_step1

Paper, Optimization: step 2 starts "from the best checkpoint from Step 1's RadCliQ optimization". Writes
`<run>/<stage>/selection.json` and the link `<run>/<stage>/best`. Reports that are there already are not made again.
With `--count_errors true` the judge counts the errors of the same reports: their trajectory over training (Figure 2d).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.checkpoint_rating import rate_reports
from evaluation.generate import Task, generate
from foundation.errors import RecipeError, read_json, run_command
from foundation.files import write_json
from foundation.governance import JudgeError
from foundation.locks import hold_folder
from foundation.provenance import write_run
from model.checkpoint_files import model_damage, saved_checkpoints
from model.fingerprint import model_fingerprint
from recipes.evaluate import generation_settings, reference_form
from rewards.chexprompt.judge import Judge
from rewards.chexprompt.settings import JudgeSettings
from rewards.metric import Metric
from rewards.registry import load_metrics
from settings.arguments import EvaluationArguments
from settings.parser import parse_recipe
from training.progress import announce, quiet_logs


@dataclass
class SelectionArguments:
    """Which stage's checkpoints are compared."""

    stage: str = field(default="rl_step1", metadata={"help": "Stage of the run whose checkpoints are compared."})
    count_errors: bool = field(
        default=False,
        metadata={
            "help": "Count the judge's errors too, of each checkpoint and of the model that the stage started from."
        },
    )


def main() -> None:
    evaluation, judge_settings, selection = parse_recipe((EvaluationArguments, JudgeSettings, SelectionArguments))
    quiet_logs()
    folder = Path(evaluation.run) / selection.stage
    there = find_checkpoints(folder)
    removed = removed_checkpoints(folder, evaluation.validation_datasets or evaluation.datasets)
    by_step = sorted([*there, *removed], key=lambda path: int(path.name.rpartition("-")[2]))
    models = {checkpoint.name: checkpoint for checkpoint in by_step}
    hold_folder(folder / "selection")
    with contextlib.ExitStack() as resources:
        judge = None
        if selection.count_errors:
            models = {"start": start_of(folder), **models}
            judge = resources.enter_context(open_judge(judge_settings, evaluation))
        metric = load_metrics(["radcliq_v1"], evaluation.reward_backend, Path(evaluation.weights_dir))["radcliq_v1"]
        write_run(folder / "selection", "selection", seed=None)
        results: list[dict[str, Any]] = []
        for name, model in models.items():
            results.append(rate(model, name, evaluation, metric, folder / "selection", judge))
            announce(described(results[-1], metric))
    start = next((result for result in results if result["checkpoint"] == "start"), None)
    checkpoints = [result for result in results if result is not start]
    # The lowest mean is the highest 1/mean wherever both are positive; near or below zero only the mean orders rightly.
    kept = {checkpoint.name for checkpoint in there}
    best = min((r for r in checkpoints if r["checkpoint"] in kept), key=lambda result: result["radcliq_v1"]["mean"])
    if better := [r for r in checkpoints if r["radcliq_v1"]["mean"] < best["radcliq_v1"]["mean"]]:
        announce(f"warning: {better[0]['checkpoint']} was better and is no longer there")
    write_json(
        folder / "selection.json",
        {
            "criterion": f"1/mean({metric.name})",
            "backend": metric.backend,
            "fingerprint": metric.fingerprint,
            "judge": judge and {"name": judge.name, "model": judge.model, "fingerprint": judge.fingerprint},
            "best": best["checkpoint"],
            "start": start,
            "checkpoints": checkpoints,
        },
    )
    link(folder / "best", best["checkpoint"])
    announce(f"{selection.stage}: best is {best['checkpoint']}")


def find_checkpoints(folder: Path) -> list[Path]:
    """The saved checkpoints of a stage, by step.

    Raises:
        RecipeError: there is none, or the model of one is damaged.
    """
    found = saved_checkpoints(folder)
    if not found:
        raise RecipeError(f"no checkpoint in {folder}; train the stage first, with save_strategy: steps")
    for checkpoint in found:
        if damage := model_damage(checkpoint):
            raise RecipeError(f"{damage}; put that file back, or move {checkpoint} away to select among the others")
    return found


def start_of(folder: Path) -> Path:
    """The model that a stage's training started from, as the stage noted it.

    Raises:
        RecipeError: its folder does not say.
    """
    path = folder / "settings.json"
    try:
        return Path(str(read_json(path, "model_name_or_path")["model_name_or_path"]))
    except FileNotFoundError:
        raise RecipeError(
            f"{path} does not name the model that {folder.name} started from; train the stage first"
        ) from None


def open_judge(settings: JudgeSettings, evaluation: EvaluationArguments) -> Judge:
    """The judge, asked before any report is generated whether it serves its model and may see the data sets' reports.

    Raises:
        RecipeError: there is none.
        JudgeError: it cannot be used.
    """
    if not settings.judge_base_url:
        raise RecipeError("no judge to count errors with; set judge_base_url, or JUDGE_URL=… on the make command line")
    judge = Judge.from_settings(settings)
    judge.check_sources(evaluation.validation_datasets or evaluation.datasets)
    asyncio.run(judge.check())
    return judge


def rate(
    model: Path, name: str, evaluation: EvaluationArguments, metric: Metric, out: Path, judge: Judge | None = None
) -> dict[str, Any]:
    """Mean and 1/mean of RadCliQ-v1 over all validation studies, with bootstrap intervals over patients.

    With a judge also `errors`, the mean of its errors a report, and how many reports it failed for. Reports that the stage
    wrote while it trained are taken; where it removed the checkpoint since, they are all there is.
    """
    folders = [Path(evaluation.data_dir) / name for name in evaluation.validation_datasets or evaluation.datasets]
    split, limit = evaluation.validation_split, evaluation.validation_studies
    made_by = [generation_record(out / name / data.name) for data in folders]
    if model.is_dir():
        for data, record in zip(folders, made_by, strict=True):
            settings = generation_settings(evaluation)
            if record.get("finished"):  # whichever engine the stage had
                settings = replace(settings, engine=record["made_by"]["engine"])
            task = Task(str(model), data, split, out / name / data.name, settings, evaluation.batch_size, limit)
            generate(task, evaluation.force)
    more = {} if judge is None else {"errors": partial(count_errors, judge)}
    rated = rate_reports(out / name, folders, split, evaluation.sections, metric, reference_form(evaluation), more)
    there = model_fingerprint(str(model)) if model.is_dir() else made_by[0]["made_by"]["model_sha256"]
    return {"checkpoint": name, "model_sha256": there, **rated}


def generation_record(folder: Path) -> dict[str, Any]:
    """`generation.json` of a folder of reports; empty where there is none."""
    path = folder / "generation.json"
    return read_json(path) if path.is_file() else {}


def removed_checkpoints(folder: Path, datasets: Sequence[str]) -> list[Path]:
    """Checkpoints of a stage that it rated while it trained and then removed (keep_best), by step; all reports are there."""
    wrote = [path for path in (folder / "selection").glob("checkpoint-*") if not (folder / path.name).is_dir()]
    whole = [path for path in wrote if all(generation_record(path / name).get("finished") for name in datasets)]
    return [folder / path.name for path in sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))]


def count_errors(
    judge: Judge, candidates: Sequence[str], references: Sequence[str], sources: Sequence[str]
) -> np.ndarray:
    """The judge's errors of each report: float64 [n], NaN where it failed.

    Raises:
        JudgeError: it has stopped, or no answer came; those that did are kept in its cache.
    """
    results = asyncio.run(judge.judge(candidates, references, sources))
    errors = np.array([np.nan if result.judgement is None else result.judgement.errors for result in results])
    if judge.stopped or np.isnan(errors).all():
        causes = ", ".join(f"{cause} × {count}" for cause, count in judge.failures.items())
        raise JudgeError(
            f"{judge.stopped or f'the judge failed for every report ({causes})'}; run the same command again"
        )
    return errors


def described(result: dict[str, Any], metric: Metric) -> str:
    """One line of a rated checkpoint."""
    line = f"{result['checkpoint']}: {metric.name} {_with_interval(result['radcliq_v1'], 4)}"
    if "errors" in result:
        line += f", {_with_interval(result['errors'], 2)} errors a report"
    return f"{line} (lower is better), {result['studies']} studies"


def _with_interval(value: dict[str, Any], digits: int) -> str:
    """`mean [low, high]`, or the mean alone where there are too few patients for an interval."""
    interval = "" if value["low"] is None else f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
    return f"{value['mean']:.{digits}f}{interval}"


def link(path: Path, target: str) -> None:
    """Make `path` a relative symbolic link to `target`, replacing an earlier link atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target, target_is_directory=True)
    try:
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink()
        raise RecipeError(
            f"{path} is not the link that selection makes ({error.strerror}), as after a copy without links; move it away "
            "and run the same command again"
        ) from error


if __name__ == "__main__":
    run_command(main)
