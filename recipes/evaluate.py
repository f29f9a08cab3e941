"""Evaluate models of a run on prepared data sets: generate greedily, score, beside the text-only baselines.

    python -m recipes.evaluate --config recipes/demo/eval.yaml --run outputs/demo --models sft rl_step1

Writes `<run>/eval/<dataset>/<model>/{predictions.json,scores.jsonl,scores.json}`, and the same in `<run>/eval_<name>/` for each
further evaluation that `also` names (ReXrank's other board, without priors, …). Each model is loaded once; finished studies
are not redone.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.baselines import write_baseline
from evaluation.generate import Task, generate_all
from evaluation.predictions import ReferenceForm
from evaluation.run_folder import MAIN, beside
from evaluation.scorers import OPTIONAL_METRICS, Scorers, open_scorers
from evaluation.scoring import score_file
from foundation.errors import RecipeError, run_command
from foundation.provenance import write_run
from model.card import training_stages, write_model_card
from model.engines import GenerationSettings
from model.fingerprint import model_fingerprint
from rewards.chexprompt.judge import OFFLINE
from rewards.chexprompt.settings import JudgeSettings
from rewards.llm_metrics import settings_by_metric
from settings.arguments import EvaluationArguments
from settings.evaluations import evaluation_name, evaluation_named
from settings.parser import parse_recipe
from training.progress import announce, quiet_logs

# Where each stage of a run leaves its model, last first.
STAGE_MODELS = {"rl_step2": "rl_step2/final", "rl_step1": "rl_step1/best", "sft": "sft/final", "base": "base"}


def main() -> None:
    evaluation, judge = parse_recipe((EvaluationArguments, JudgeSettings))
    quiet_logs()
    run = Path(evaluation.run)
    models = resolve_models(run, evaluation.models)
    datasets = evaluated_datasets(evaluation)
    data_dir = Path(evaluation.data_dir)
    splits = {
        name: available_split(data_dir / name, evaluation.split, evaluation.validation_split) for name in datasets
    }
    evaluations = evaluation_settings(evaluation)
    form = reference_form(evaluation)
    # A baseline may learn from the training studies of what the run trains on, never of a zero-shot data set.
    seen = [data_dir / name for name in evaluation.datasets]
    with scorers_of(evaluation, judge) as scorers:
        for folder in evaluations:
            for dataset in datasets:
                write_run(run / folder / dataset, "eval", seed=None)

        # ---- reports: each model is loaded once, for all evaluations and data sets ----
        for name, path in models.items():
            announce(f"{name}: {', '.join(datasets)}; {', '.join(described(s) for s in evaluations.values())}")
            tasks = [
                Task(
                    path,
                    data_dir / dataset,
                    splits[dataset],
                    run / folder / dataset / name,
                    settings,
                    evaluation.batch_size,
                )
                for folder, settings in evaluations.items()
                for dataset in datasets
            ]
            generate_all(tasks, evaluation.force)

        # ---- scores ----
        for folder, settings in evaluations.items():
            for dataset in datasets:
                out, data, split = run / folder / dataset, data_dir / dataset, splits[dataset]
                names = [*models]
                for name in evaluation.baselines:
                    if name == "copy_prior" and not settings.longitudinal:
                        continue  # it would show what no model of this evaluation sees
                    if (
                        write_baseline(name, data, split, seen, out / name, settings.sections, evaluation.force)
                        is not None
                    ):
                        names.append(name)
                announce(f"{dataset}, {described(settings)}: scores")
                for name in names:
                    score_file(
                        out / name / "predictions.json",
                        scorers,
                        out / name,
                        data=data,
                        split=split,
                        sections=settings.sections,
                        form=form,
                        force=evaluation.force,
                    )
    for path in map(Path, models.values()):
        if path.resolve().is_relative_to(run.resolve()) and any(training_stages(str(path))):
            write_model_card(path, model_fingerprint(str(path)))  # with its scores


def evaluation_settings(evaluation: EvaluationArguments) -> dict[str, GenerationSettings]:
    """Folder of the run → how reports are generated there: the recipe's own evaluation, then those that `also` names."""
    settings = generation_settings(evaluation)
    found = {MAIN: settings}
    for name in evaluation.also:
        sections, longitudinal = evaluation_named(name)
        other = replace(settings, sections=sections, longitudinal=longitudinal)
        if other not in found.values():
            found[beside(name)] = other
    return found


def described(settings: GenerationSettings) -> str:
    """The evaluation for people: `findings impression with priors`."""
    return evaluation_name(settings.sections, settings.longitudinal).replace("_", " ")


def available_split(data: Path, split: str, validation: str) -> str:
    """`split`, or, for a data set that has no study in it (announced, and recorded with the scores), `validation`."""
    path = data / f"{split}.parquet"
    try:
        empty = path.is_file() and pq.read_metadata(path).num_rows == 0
    except (OSError, pa.ArrowInvalid) as error:
        raise RecipeError(f"{path} is not a Parquet table ({error}); prepare the data again") from error
    if empty:
        announce(f"{data.name}: no {split} studies in {path}; evaluating on its {validation} split")
        return validation
    return split


def evaluated_datasets(evaluation: EvaluationArguments) -> list[str]:
    """Those of training and those that no model has seen.

    Raises:
        RecipeError: there is none.
    """
    datasets = [*evaluation.datasets, *evaluation.zero_shot_datasets]
    if not datasets:
        raise RecipeError("no data set to evaluate on; set datasets, or DATASET=… on the make command line")
    return datasets


def scorers_of(evaluation: EvaluationArguments, judge: JudgeSettings) -> contextlib.AbstractContextManager[Scorers]:
    """What a recipe's reports are scored with; a judge only where one is named, whose language model then labels change."""
    by_judge = judge.judge_base_url not in ("", OFFLINE)
    return open_scorers(
        evaluation.reward_backend,
        Path(evaluation.weights_dir),
        evaluation.metrics,
        asdict(judge) if judge.judge_base_url else None,
        temporal_by_judge=by_judge if evaluation.change_labels == "auto" else evaluation.change_labels == "judge",
        optional=OPTIONAL_METRICS,
        llm_metrics=settings_by_metric(evaluation.llm_metrics, evaluation.llm_metric_settings, judge),
    )


def reference_form(evaluation: EvaluationArguments) -> ReferenceForm:
    """How references are written, from a recipe's evaluation settings."""
    return ReferenceForm(evaluation.reference_form, evaluation.missing_section)


def generation_settings(evaluation: EvaluationArguments) -> GenerationSettings:
    """How reports are generated, from a recipe's evaluation settings."""
    return GenerationSettings(
        sections=evaluation.sections,
        longitudinal=evaluation.longitudinal,
        context=evaluation.context,
        max_new_tokens=evaluation.max_new_tokens,
        engine=evaluation.engine,
    )


def resolve_models(run: Path, models: list[str]) -> dict[str, str]:
    """Name → checkpoint for stage names, `name=path` pairs, or (none given) the run's last stage.

    Raises:
        RecipeError: a stage that has not been trained, or a run without any.
    """
    if not models:
        models = [next((name for name, path in STAGE_MODELS.items() if (run / path).exists()), "")]
        if not models[0]:
            raise RecipeError(f"no trained model in {run}; run make sft first, or give MODELS=name=path")
    resolved = {}
    for model in models:
        name, _, path = model.partition("=")
        if not path:
            if name not in STAGE_MODELS:
                raise RecipeError(f"model {name!r} is none of {', '.join(STAGE_MODELS)}; give any other as name=path")
            path = str(run / STAGE_MODELS[name])
            if not Path(path).exists():
                raise RecipeError(f"{path} is not there; train that stage first")
        if not re.fullmatch(r"[\w.+@ $-]+", name) or name.strip(".") == "":
            raise RecipeError(f"model {name!r}: a model's name is a name, of letters, digits and - _ . +, and no path")
        resolved[name] = path
    return resolved


if __name__ == "__main__":
    run_command(main)
