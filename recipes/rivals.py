"""Rivals of a run: other vision–language models, asked over an API for the reports of the same studies, scored alike.

    python -m recipes.rivals --config recipes/demo/eval.yaml --run outputs/demo --rivals recipes/rivals/rivals.yaml

Paper, Results: UniRG-CXR beside GPT-5, GPT-4o, MedGemma, MAIRA-2 and MedVersa. Reports and scores go to
`<run>/eval/<dataset>/<name>/`, beside the run's own; `make summary report` then shows them with copy-prior and paired tests
(Figures 2f and 3a to c).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evaluation.rival import Rival, generate_by_server
from evaluation.run_folder import MAIN
from evaluation.scoring import score_file
from foundation.errors import RecipeError, run_command
from model.report_server import OURS
from recipes.evaluate import (
    STAGE_MODELS,
    available_split,
    evaluated_datasets,
    generation_settings,
    reference_form,
    scorers_of,
)
from rewards.chexprompt.settings import JudgeSettings
from settings.arguments import EvaluationArguments
from settings.evaluations import BASELINES
from settings.parser import parse_recipe
from training.progress import announce, quiet_logs


@dataclass
class RivalArguments:
    """Which rivals are asked."""

    rivals: str | None = field(default=None, metadata={"help": "YAML file with the list of rivals."})
    rival_studies: int | None = field(
        default=None, metadata={"help": "Ask for so many studies of each data set at most."}
    )


def main() -> None:
    evaluation, judge, asked = parse_recipe((EvaluationArguments, JudgeSettings, RivalArguments))
    quiet_logs()
    if not asked.rivals:
        raise RecipeError("no rivals; name their YAML file with --rivals, e.g. recipes/rivals/rivals.yaml")
    rivals = read_rivals(Path(asked.rivals))
    datasets = evaluated_datasets(evaluation)
    data_dir, settings, form = Path(evaluation.data_dir), generation_settings(evaluation), reference_form(evaluation)
    with scorers_of(evaluation, judge) as scorers:
        for dataset in datasets:
            data = data_dir / dataset
            split = available_split(data, evaluation.split, evaluation.validation_split)
            for name, rival in rivals.items():
                out = Path(evaluation.run) / MAIN / dataset / name
                announce(f"{name}: {dataset}")
                made = generate_by_server(rival, data, split, out, settings, asked.rival_studies, evaluation.force)
                if made["failed_studies"] == made["made_by"]["studies"]:
                    raise RecipeError(
                        f"{name} gave no report of {dataset}; see {out / 'generation.json'} for the causes"
                    )
                score_file(
                    out / "predictions.json",
                    scorers,
                    out,
                    data=data,
                    split=split,
                    sections=settings.sections,
                    form=form,
                    force=evaluation.force,
                )


def read_rivals(path: Path) -> dict[str, Rival]:
    """Name → rival of a YAML file: a list of mappings with name, base_url, model and, optionally, prompt and any setting of the
    judge's client without `judge_` (concurrency, budget_dollars, trusted_hosts, …). A prompt's file is beside the list.

    Raises:
        RecipeError: no such file, or a rival that cannot be asked as it is described.
    """
    try:
        listed: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    listed = listed.get("rivals") if isinstance(listed, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise RecipeError(f"{path} must hold `rivals:`, a list of mappings with name, base_url and model")
    rivals: dict[str, Rival] = {}
    for one in listed:
        one = dict(one)
        missing = [key for key in ("name", "base_url", "model") if not isinstance(one.get(key), str)]
        if missing:
            raise RecipeError(f"{path}: rival {one.get('name')!r} needs {', '.join(missing)} as text")
        name, base_url, model = one.pop("name"), one.pop("base_url"), one.pop("model")
        if (
            name in rivals
            or name in {*STAGE_MODELS, *BASELINES}
            or not name.replace("-", "").replace(".", "").isalnum()
        ):
            raise RecipeError(
                f"{path}: {name!r} is no name for a rival: letters, digits, - and ., once, and no stage's"
            )
        prompt = one.pop("prompt", OURS)
        known = {f.removeprefix("judge_") for f in JudgeSettings.__dataclass_fields__}
        if unknown := sorted(set(map(str, one)) - known):
            raise RecipeError(
                f"{path}: {name} has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        rivals[name] = Rival(base_url, model, OURS if prompt == OURS else str(path.parent / prompt), one)
    return rivals


if __name__ == "__main__":
    run_command(main)
