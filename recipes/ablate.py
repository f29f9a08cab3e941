"""Comparisons: a recipe with a few keys changed, trained, evaluated, and put into one table.

    python -m recipes.ablate run reward_bleu2 --recipe unirg_cxr --run outputs/unirg_cxr [-- --max_steps 100]
    python -m recipes.ablate grid --recipe unirg_cxr --run outputs/unirg_cxr
    python -m recipes.ablate table --run outputs/unirg_cxr

A file of recipes/ablations/ names the stages it trains, where the first starts, and the keys that differ from the
recipe's YAML of each stage. `run` writes the resulting YAML to `<run>/ablations/<name>/<stage>.yaml`, trains from it,
selects checkpoints, and evaluates the last stage. Each part resumes or is skipped when it is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, SFTConfig

from data_prep.files import write_json, write_text
from recipes.arguments import DataArguments, StageArguments
from recipes.errors import RecipeError, run_command
from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
from recipes.stage import announce

RECIPES = Path(__file__).parent
STAGES = ("sft", "rl_step1", "rl_step2")
STAGE_ARGUMENTS = {
    "sft": (DataArguments, StageArguments, ModelConfig, SFTConfig),
    "rl_step1": GRPO_ARGUMENTS,
    "rl_step2": GRPO_ARGUMENTS,
}
# Keys that change what a prompt shows: evaluation follows them.
SHOWN = ("longitudinal", "context")
# Columns of the table: the start of a metric's full name → heading.
COLUMNS = {
    "bleu2": "BLEU-2",
    "bertscore": "BERTScore",
    "sembscore": "SembScore",
    "radgraph": "RadGraph-F1",
    "1/radcliq_v1": "1/RadCliQ-v1",
    "errors": "errors a report",
}


@dataclass(frozen=True)
class Ablation:
    """One file of recipes/ablations/.

    Attributes:
        starts_from: `base`, a stage of the recipe's own run, or another ablation.
        changes: the keys that differ from the recipe.
    """

    name: str
    stages: tuple[str, ...]
    starts_from: str
    changes: Mapping[str, Any]


def names() -> list[str]:
    """All ablations that there are."""
    return sorted(path.stem for path in (RECIPES / "ablations").glob("*.yaml"))


def read_ablation(name: str) -> Ablation:
    """The ablation of this name.

    Raises:
        RecipeError: there is none, or its file lacks stages or starts_from, or says something unknown.
    """
    path = RECIPES / "ablations" / f"{name}.yaml"
    if name not in names():
        raise RecipeError(f"no ablation {name!r}; there are {', '.join(names())}")
    content = read_yaml(path)
    stages = tuple(content.pop("stages", ()))
    starts_from = content.pop("starts_from", None)
    if not stages or set(stages) - set(STAGES) or starts_from is None:
        raise RecipeError(f"{path} needs stages, a list from {', '.join(STAGES)}, and starts_from")
    return Ablation(name, stages, starts_from, content)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        RecipeError: no such file, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}; recipes are in recipes/<name>/") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of keys to values")
    return content


def stage_recipe(ablation: Ablation, stage: str, recipe: str, start: str, output_dir: Path) -> dict[str, Any]:
    """The recipe's YAML of `stage` with the ablation's changes: those keys of them that the stage knows.

    Data sets that the recipe does not have are not taken over (an ablation on MIMIC, of the demo); this is announced.

    Raises:
        RecipeError: a key that none of the ablation's stages knows.
    """
    base = read_yaml(RECIPES / recipe / f"{stage}.yaml")
    changes = {key: value for key, value in ablation.changes.items() if key in _keys(stage)}
    everywhere = {key for other in ablation.stages for key in _keys(other)}
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


def start_of(ablation: Ablation, run: Path, recipe: str) -> str:
    """The model that the ablation's first stage starts from.

    Raises:
        RecipeError: it has not been trained; the message has the command that trains it.
    """
    start = ablation.starts_from
    if start == "base" and (run / "base" / "config.json").is_file():  # the demo's own, of this run's seed
        return str(run / "base")
    if start == "base":
        return read_yaml(RECIPES / recipe / "sft.yaml")["model_name_or_path"]
    folder = run if start in STAGES else run / "ablations" / start
    stage = start if start in STAGES else read_ablation(start).stages[-1]
    path = folder / stage / ("best" if stage == "rl_step1" else "final")
    if not path.is_dir():
        command = f"make {stage.replace('_', '-')}" if start in STAGES else f"make ablation NAME={start}"
        raise RecipeError(f"{ablation.name} starts from {path}, which is not there; make it with: {command}")
    return str(path)


def run(ablation: Ablation, arguments: argparse.Namespace, folder: Path) -> None:
    """Train, select and evaluate one ablation in `folder`; what is done already is not done again."""
    start = start_of(ablation, arguments.run, arguments.recipe)
    shown = [
        part for key in SHOWN if key in ablation.changes for part in (f"--{key}", str(ablation.changes[key]).lower())
    ]
    evaluation = [*evaluation_options(arguments, folder), *shown]
    for stage in ablation.stages:
        train(ablation, stage, start, arguments, folder)
        start = str(folder / stage / "final")
        if stage == "rl_step1":
            call([sys.executable, "-m", "recipes.select_checkpoint", *evaluation, "--stage", stage])
            start = str(folder / stage / "best")
    judge = ["--judge_base_url", arguments.judge_base_url] if arguments.judge_base_url else []
    call([sys.executable, "-m", "recipes.evaluate", *evaluation, *judge, "--models", f"{ablation.name}={start}"])


def train(ablation: Ablation, stage: str, start: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Write the stage's YAML into `folder` and train from it, on the machines that the recipe itself trains on."""
    content = stage_recipe(ablation, stage, arguments.recipe, start, folder / stage)
    path = folder / f"{stage}.yaml"
    write_text(path, f"# {ablation.name}, made from recipes/{arguments.recipe}/{stage}.yaml.\n" + dump(content))
    module = "recipes.sft" if stage == "sft" else "recipes.grpo"
    trained_on = ["--datasets", arguments.only_dataset, "--dataset_weights", "1"] if arguments.only_dataset else []
    stage_command = ["-m", module, "--config", str(path), *common_options(arguments), *trained_on, *arguments.options]
    call([sys.executable, "-m", "launch.start", *launch_options(arguments), "--", *stage_command])


def common_options(arguments: argparse.Namespace) -> list[str]:
    """Flags of training, selection and evaluation alike."""
    return ["--data_dir", arguments.data_dir, *(["--force", "true"] if arguments.force else [])]


def evaluation_options(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Flags of selection and evaluation in `folder`."""
    only = ["--only_dataset", arguments.only_dataset] if arguments.only_dataset else []
    config = ["--config", str(RECIPES / arguments.recipe / "eval.yaml"), "--run", str(folder)]
    return [*config, *common_options(arguments), *only]


def launch_options(arguments: argparse.Namespace) -> list[str]:
    """Flags of launch.start: those that were given."""
    names = ("processes", "gpus", "nodes", "parallel")
    return [part for name in names if getattr(arguments, name) for part in (f"--{name}", str(getattr(arguments, name)))]


def call(command: Sequence[str]) -> None:
    """Run a command; its failure ends this one with the same status, as its own message says why."""
    if status := subprocess.call(command):
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
            start = start_of(ablation, arguments.run, arguments.recipe)
            train(ablation, "sft", start, arguments, folder)
            evaluation = evaluation_options(arguments, folder)
            call([sys.executable, "-m", "recipes.select_checkpoint", *evaluation, "--stage", "sft"])
            selection = json.loads((folder / "sft" / "selection.json").read_text(encoding="utf-8"))
            best = next(entry for entry in selection["checkpoints"] if entry["checkpoint"] == selection["best"])
            rows.append(
                {"learning_rate": rate, "global_batch_size": batch, "criterion": selection["criterion"], **best}
            )
    rows.sort(key=lambda row: row["radcliq_v1"]["mean"])
    write_json(arguments.run / "sft_grid" / "grid.json", rows)
    criterion = rows[0]["criterion"]
    lines = [f"| learning rate | global batch | checkpoint | {criterion}, validation |", "|---|---|---|---|"]
    lines += [
        f"| {row['learning_rate']:g} | {row['global_batch_size']} | {row['checkpoint']} | {interval(row['inverse_radcliq_v1'])} |"
        for row in rows
    ]
    write_text(arguments.run / "sft_grid" / "grid.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def table(run_folder: Path) -> str:
    """Markdown: each data set's models, the recipe's own stages first, then all ablations that have been evaluated.

    Raises:
        RecipeError: nothing has been evaluated, or numbers of different backends would stand in one column.
    """
    rows: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for folder in (run_folder, *sorted((run_folder / "ablations").glob("*"))):
        for path in sorted((folder / "eval").glob("*/*/scores.json")):
            model = path.parent.name
            if model not in (("base", *STAGES) if folder == run_folder else (folder.name,)):  # baselines
                continue
            rows.setdefault(path.parent.parent.name, []).append((model, json.loads(path.read_text(encoding="utf-8"))))
    if not rows:
        raise RecipeError(f"nothing is evaluated in {run_folder}; run: make ablation NAME=… (or make eval)")
    text = []
    for dataset, models in rows.items():
        backends = {json.dumps(result["made_by"]["scorers"]["metrics"], sort_keys=True) for _, result in models}
        if len(backends) > 1:
            raise RecipeError(f"{dataset}: models were scored by different backends; evaluate them alike first")
        full = [
            name
            for start in COLUMNS
            for name in models[0][1]["metrics"]
            if name == start or name.startswith((f"{start}[", f"{start} "))
        ]
        headings = [f"{heading_of(name)}" for name in full]
        text += [f"## {dataset}", "", "| model | " + " | ".join(headings) + " |", "|---" * (len(full) + 1) + "|"]
        for model, result in models:
            cells = [interval(result["metrics"][name]) if name in result["metrics"] else "–" for name in full]
            text.append(f"| {model} | " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


def heading_of(name: str) -> str:
    """A metric's heading with the mark of a stand-in, e.g. `BERTScore [offline-hash]`."""
    start = next(start for start in COLUMNS if name == start or name.startswith((f"{start}[", f"{start} ")))
    return COLUMNS[start] + name.removeprefix(start).replace("[", " [", 1).replace("  ", " ")


def interval(value: Mapping[str, Any]) -> str:
    """`mean [low, high]`, or a dash where there is no number.

    1/mean has no interval where the mean's own includes 0.
    """
    if value.get("mean") is None:
        return "–"
    if value["low"] is None:
        return "{mean:.3f} [no interval]".format(**value)
    return "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--run", type=Path, required=True, help="the recipe's run folder, e.g. outputs/unirg_cxr")
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument("--recipe", default="unirg_cxr", help="folder in recipes/ whose YAML is changed")
    trained.add_argument("--data_dir", default="data")
    trained.add_argument("--only_dataset", default="", help="train and evaluate on this data set alone")
    trained.add_argument("--processes", type=int, help="of a CPU recipe, as launch.start's; so are the next three")
    trained.add_argument("--gpus", type=int)
    trained.add_argument("--nodes", type=int)
    trained.add_argument("--parallel")
    trained.add_argument("--force", action="store_true", help="do finished work again")
    one = commands.add_parser("run", parents=[shared, trained], help="train and evaluate one ablation")
    one.add_argument("name")
    one.add_argument("--judge_base_url", default="", help="judge of the evaluation; default: the recipe's eval.yaml")
    several = commands.add_parser("grid", parents=[shared, trained], help="SFT over learning rates and batch sizes")
    several.add_argument("--learning_rates", type=float, nargs="+", default=[1e-5, 5e-5], help="paper: 1e-5, 5e-5")
    several.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[128, 256, 512], help='paper: 128, 256, 512 (printed "521")'
    )
    commands.add_parser("table", parents=[shared], help="one table over all that have run")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:cut])
    arguments.options = given[cut + 1 :]  # for the trainers
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
