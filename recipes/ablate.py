"""Comparisons: a recipe with a few keys changed, trained, evaluated, and put into one table.

    python -m recipes.ablate run reward_bleu2 --recipe unirg_cxr --run outputs/unirg_cxr [-- --max_steps 100 [-- --batch_size 8]]
    python -m recipes.ablate grid --recipe unirg_cxr --run outputs/unirg_cxr
    python -m recipes.ablate table --run outputs/unirg_cxr

A file of recipes/ablations/ names the stages it trains, where the first starts, and the keys that differ from the
recipe's YAML of each stage. `run` writes the resulting YAML to `<run>/ablations/<name>/<stage>.yaml`, trains from it,
selects checkpoints, and evaluates the last stage, on the data sets that it trained on. Each part resumes or is skipped
when it is done. What follows a first `--` is for training, what follows a second one for selection and evaluation.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, SFTConfig

from evaluation.ablation_table import inverse_of, table
from foundation import signals
from foundation.errors import RecipeError, read_json, run_command
from foundation.files import write_json, write_text
from foundation.recipe_files import read_yaml
from foundation.stage_command import process_flags
from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
from rewards.chexprompt.judge import OFFLINE, Judge
from rewards.chexprompt.settings import JudgeSettings
from settings.ablations import RECIPES, STAGES, Ablation, read_ablation, recipe_file
from settings.arguments import DataArguments, EvaluationArguments, StageArguments
from settings.parser import parse_recipe
from training.progress import announce

STAGE_ARGUMENTS = {
    "sft": (DataArguments, StageArguments, ModelConfig, SFTConfig),
    "rl_step1": GRPO_ARGUMENTS,
    "rl_step2": GRPO_ARGUMENTS,
}
# Keys that change what a prompt shows: evaluation follows them.
SHOWN = ("longitudinal", "context")
# Keys of evaluation alone.
EVALUATED = ("zero_shot_datasets",)


def stage_recipe(
    ablation: Ablation, stage: str, recipe: str, start: str, output_dir: Path, variant: str = ""
) -> dict[str, Any]:
    """The recipe's YAML of `stage` with the ablation's changes: those keys of them that the stage knows.

    Data sets that the recipe does not have are not taken over (an ablation on MIMIC, of the demo); this is announced.

    Raises:
        RecipeError: a key that none of the ablation's stages knows.
    """
    base = read_yaml(recipe_file(recipe, stage, variant))
    changes = {key: value for key, value in ablation.changes.items() if key in _keys(stage)}
    everywhere = {key for other in ablation.stages for key in _keys(other)} | set(EVALUATED)
    if unknown := sorted(set(ablation.changes) - everywhere):
        raise RecipeError(f"recipes/ablations/{ablation.name}.yaml: unknown key(s) {', '.join(unknown)}")
    if not set(changes.get("datasets", [])) <= set(base["datasets"]):
        announce(
            f"{ablation.name}: the recipe {recipe} has no {', '.join(changes.pop('datasets'))}; "
            f"it trains on {', '.join(base['datasets'])}"
        )
    if "num_train_epochs" in changes and base.get("max_steps", -1) > 0:
        announce(f"{ablation.name}: max_steps {base['max_steps']} of the recipe {recipe} holds, not num_train_epochs")
    return {**base, **changes, "model_name_or_path": start, "output_dir": str(output_dir)}


def _keys(stage: str) -> set[str]:
    return {key for kind in STAGE_ARGUMENTS[stage] for key in kind.__dataclass_fields__}


def start_of(ablation: Ablation, run: Path, recipe: str, variant: str = "", weights_dir: str = "") -> str:
    """The model that the ablation's first stage starts from.

    A variant without the stage that comes before (completions has no SFT of its own) starts from the recipe's own run.

    Raises:
        RecipeError: it has not been trained; the message has the command that trains it.
    """
    start = ablation.starts_from
    if start == "base" and (run / "base" / "config.json").is_file():  # the demo's own, of this run's seed
        return str(run / "base")
    if start == "base":
        base = read_yaml(RECIPES / recipe / "sft.yaml")["model_name_or_path"]
        return base.replace("weights/", f"{weights_dir}/", 1) if weights_dir and base.startswith("weights/") else base
    stage = start if start in STAGES else read_ablation(start).stages[-1]
    if start in STAGES and variant and not (RECIPES / recipe / f"{start}_{variant}.yaml").is_file():
        run, variant = run.with_name(recipe), ""
    folder = run if start in STAGES else run / "ablations" / start
    path = folder / stage / ("best" if stage == "rl_step1" else "final")
    if not path.is_dir():
        command = f"make {stage.replace('_', '-')}" if start in STAGES else f"make ablation NAME={start}"
        command += f" VARIANT={variant}" if variant else ""
        raise RecipeError(f"{ablation.name} starts from {path}, which is not there; make it with: {command}")
    return str(path)


def run(ablation: Ablation, arguments: argparse.Namespace, folder: Path) -> None:
    """Train, select and evaluate one ablation in `folder`; what is done already is not done again."""
    if "data_dir" in ablation.changes:  # the same studies prepared otherwise
        arguments = argparse.Namespace(**{**vars(arguments), "data_dir": ablation.changes["data_dir"]})
    recipes = {
        stage: stage_recipe(ablation, stage, arguments.recipe, "", folder / stage, arguments.variant)
        for stage in ablation.stages
    }
    start = start_of(ablation, arguments.run, arguments.recipe, arguments.variant, arguments.weights_dir)
    evaluation = [*evaluation_options(arguments, folder), *evaluated(ablation, arguments)]
    judge = judge_options(arguments)
    if ablation.count_errors and not judge:  # the judge that the recipe trains with
        trained = {key: recipes["rl_step2"].get(key) for key in ("judge_base_url", "judge_model")}
        judge = [part for key, value in trained.items() if value for part in (f"--{key}", value)]
    evaluation += [*judge, *arguments.evaluation_options]
    check_evaluation(evaluation, ablation.count_errors)
    for stage, content in recipes.items():
        train(ablation, stage, {**content, "model_name_or_path": start}, arguments, folder)
        start = str(folder / stage / "final")
        select = [sys.executable, "-m", "recipes.select_checkpoint", *evaluation, "--stage", stage]
        if stage == "rl_step1":
            call(select)
            start = str(folder / stage / "best")
        if stage == "rl_step2" and ablation.count_errors:
            call([*select, "--count_errors", "true"])
    model = f"{ablation.name}={start}"
    # One evaluation, the recipe's own: what an ablation is compared by.
    call([sys.executable, "-m", "recipes.evaluate", "--also", "none", *evaluation, "--models", model])


def check_evaluation(options: Sequence[str], needs_judge: bool = False) -> None:
    """Raise what evaluation would raise for its settings or its judge, before hours of training and not after them."""
    evaluation, settings = parse_recipe((EvaluationArguments, JudgeSettings), list(options))
    if needs_judge and not settings.judge_base_url:
        raise RecipeError("no judge to count errors with; give JUDGE_URL=…, or judge_base_url in eval.yaml")
    if settings.judge_base_url and settings.judge_base_url != OFFLINE:
        with Judge.from_settings(settings) as judge:
            judge.check_sources([*evaluation.datasets, *evaluation.zero_shot_datasets])
            asyncio.run(judge.check())


def train(
    ablation: Ablation, stage: str, content: Mapping[str, Any], arguments: argparse.Namespace, folder: Path
) -> None:
    """Write the stage's YAML into `folder` and train from it, on the machines that the recipe itself trains on."""
    path = folder / f"{stage}.yaml"
    source = recipe_file(arguments.recipe, stage, arguments.variant).name
    write_text(path, f"# {ablation.name}, made from recipes/{arguments.recipe}/{source}.\n" + dump(content))
    options = ["--config", str(path), *common_options(arguments)]
    if arguments.only_dataset:
        options += ["--datasets", arguments.only_dataset, "--dataset_weights", "1"]
        options += ["--validation_datasets", arguments.only_dataset]
    if stage != "sft":
        options += [*weights_options(arguments), *judge_options(arguments)]
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    stage_command = ["-m", module, *options, *arguments.options]
    call([sys.executable, "-m", "launch.stage", *process_flags(arguments), "--", *stage_command])


def common_options(arguments: argparse.Namespace) -> list[str]:
    """Flags of training, selection and evaluation alike."""
    return ["--data_dir", arguments.data_dir, *(["--force", "true"] if arguments.force else [])]


def weights_options(arguments: argparse.Namespace) -> list[str]:
    """Where the metrics' weights lie, for RL, selection and evaluation."""
    return ["--weights_dir", arguments.weights_dir] if arguments.weights_dir else []


def judge_options(arguments: argparse.Namespace) -> list[str]:
    """The judge that was named, for RL and evaluation; none: what their YAML says."""
    given = [(f"--{key}", getattr(arguments, key)) for key in ("judge_base_url", "judge_model")]
    return [part for flag, value in given if value for part in (flag, value)]


def evaluation_options(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Flags of selection and evaluation in `folder`."""
    only = ["--only_dataset", arguments.only_dataset] if arguments.only_dataset else []
    config = ["--config", str(recipe_file(arguments.recipe, "eval", arguments.variant)), "--run", str(folder)]
    return [*config, *common_options(arguments), *weights_options(arguments), *only]


def evaluated(ablation: Ablation, arguments: argparse.Namespace) -> list[str]:
    """Flags by which evaluation follows what an ablation changes: what a prompt shows, and the data sets.

    It is evaluated on those that it trains on ("trained and tested on MIMIC", paper, Figure 2), and its baselines learn
    from no other; `zero_shot_datasets` are added. A recipe without these data sets keeps its own.
    """
    changes = ablation.changes
    flags = [part for key in SHOWN if key in changes for part in (f"--{key}", str(changes[key]).lower())]
    there = set(read_yaml(recipe_file(arguments.recipe, "eval", arguments.variant))["datasets"])
    for key in ("datasets", "zero_shot_datasets"):
        if changes.get(key) and set(changes.get("datasets", [])) <= there:
            flags += [f"--{key}", *changes[key]]
    return flags


def call(command: Sequence[str]) -> None:
    """Run a command; its failure ends this one with the same status, as its own message says why."""
    if status := signals.run(command):
        raise SystemExit(status)


def dump(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def grid(arguments: argparse.Namespace) -> None:
    """SFT for each learning rate and batch size (paper, Optimization), rated by 1/RadCliQ-v1 on validation."""
    rows = []
    for rate in arguments.learning_rates:
        for batch in arguments.batch_sizes:
            name = f"lr{rate:g}-batch{batch}"
            folder = arguments.run / "sft_grid" / name
            ablation = Ablation(name, ("sft",), "base", {"learning_rate": rate, "global_batch_size": batch})
            start = start_of(ablation, arguments.run, arguments.recipe, weights_dir=arguments.weights_dir)
            content = stage_recipe(ablation, "sft", arguments.recipe, start, folder / "sft", arguments.variant)
            train(ablation, "sft", content, arguments, folder)
            evaluation = [*evaluation_options(arguments, folder), *arguments.evaluation_options]
            call([sys.executable, "-m", "recipes.select_checkpoint", *evaluation, "--stage", "sft"])
            selection = read_json(folder / "sft" / "selection.json", "best", "checkpoints")
            best = next(entry for entry in selection["checkpoints"] if entry["checkpoint"] == selection["best"])
            rows.append(
                {"learning_rate": rate, "global_batch_size": batch, "criterion": selection["criterion"], **best}
            )
    rows.sort(key=lambda row: row["radcliq_v1"]["mean"])
    write_json(arguments.run / "sft_grid" / "grid.json", rows)
    criterion = rows[0]["criterion"]
    lines = [f"| learning rate | global batch | checkpoint | {criterion}, validation |", "|---|---|---|---|"]
    lines += [
        f"| {row['learning_rate']:g} | {row['global_batch_size']} | {row['checkpoint']} | {inverse_of(row)} |"
        for row in rows
    ]
    write_text(arguments.run / "sft_grid" / "grid.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def split_options(words: Sequence[str]) -> list[list[str]]:
    """Our own words, those after a first `--` (for training), and those after a second (for selection and evaluation)."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--" and len(parts) < 3:
            parts.append([])
        else:
            parts[-1].append(word)
    return [*parts, [], []][:3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--run", type=Path, required=True, help="the recipe's run folder, e.g. outputs/unirg_cxr")
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("--recipe", default="unirg_cxr", help="folder in recipes/ whose YAML is changed")
    trained.add_argument("--variant", default="", help="its files <stage>_<variant>.yaml, e.g. lora")
    trained.add_argument("--data_dir", default="data")
    trained.add_argument("--weights_dir", default="", help="folder of the metrics' weights; default: the recipe's")
    trained.add_argument("--only_dataset", default="", help="train and evaluate on this data set alone")
    trained.add_argument("--processes", type=int, help="of a CPU recipe, as launch.stage's; so are the next three")
    trained.add_argument("--gpus", type=int)
    trained.add_argument("--nodes", type=int)
    trained.add_argument("--parallel")
    trained.add_argument("--force", action="store_true", help="do finished work again")
    one = commands.add_parser("run", parents=[shared, trained], help="train and evaluate one ablation")
    one.add_argument("name")
    one.add_argument("--judge_base_url", default="", help="judge of RL and evaluation; default: what their YAML says")
    one.add_argument("--judge_model", default="", help="its model; default: what their YAML says")
    several = commands.add_parser("grid", parents=[shared, trained], help="SFT over learning rates and batch sizes")
    several.add_argument("--learning_rates", type=float, nargs="+", default=[1e-5, 5e-5], help="paper: 1e-5, 5e-5")
    several.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[128, 256, 512], help='paper: 128, 256, 512 (printed "521")'
    )
    several.set_defaults(judge_base_url="", judge_model="")
    commands.add_parser("table", parents=[shared], help="one table over all that have run")
    given, for_training, for_evaluation = split_options(sys.argv[1:])
    arguments = parser.parse_args(given)
    arguments.options, arguments.evaluation_options = for_training, for_evaluation
    if arguments.command == "run":
        run(read_ablation(arguments.name), arguments, arguments.run / "ablations" / arguments.name)
        arguments.command = "table"
    if arguments.command == "grid":
        grid(arguments)
        return
    text = table(arguments.run)
    write_text(arguments.run / "ablations" / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    run_command(main)
