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
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, SFTConfig

from common import signals
from common.errors import RecipeError, read_json, run_command
from common.files import write_json, write_text
from common.governance import JudgeError
from evaluation import statistics
from evaluation.compare import correct, read_result, same_studies, studies_in_words
from evaluation.score import Scores, principal_statistics
from evaluation.tables import p_value, says_something
from recipes.grpo import ARGUMENTS as GRPO_ARGUMENTS
from rewards.chexprompt.judge import OFFLINE, Judge, JudgeSettings
from settings.arguments import DataArguments, EvaluationArguments, StageArguments, parse_recipe
from training.progress import announce

RECIPES = Path(__file__).parent
STAGES = ("sft", "rl_step1", "rl_step2")
STAGE_ARGUMENTS = {
    "sft": (DataArguments, StageArguments, ModelConfig, SFTConfig),
    "rl_step1": GRPO_ARGUMENTS,
    "rl_step2": GRPO_ARGUMENTS,
}
# Keys that change what a prompt shows: evaluation follows them.
SHOWN = ("longitudinal", "context")
# Keys of evaluation alone.
EVALUATED = ("zero_shot_datasets",)
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
        compared_with: the ablation, or stage of the recipe's own run, that it is compared with.
        count_errors: the judge counts the errors of step 2's checkpoints on validation (paper, Figure 2d).
    """

    name: str
    stages: tuple[str, ...]
    starts_from: str
    changes: Mapping[str, Any]
    compared_with: str | None = None
    count_errors: bool = False


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
    compared_with, count_errors = content.pop("compared_with", None), content.pop("count_errors", False)
    if compared_with not in (None, *STAGES, *names()):
        raise RecipeError(f"{path}: compared_with is {compared_with!r}, neither a stage nor an ablation")
    return Ablation(name, stages, starts_from, content, compared_with, count_errors)


def recipe_file(recipe: str, stage: str, variant: str = "") -> Path:
    """The recipe's YAML of a stage, in this variant; evaluation has the recipe's own where the variant has none.

    Raises:
        RecipeError: the variant has no such stage.
    """
    folder = RECIPES / recipe
    path = folder / (f"{stage}_{variant}.yaml" if variant else f"{stage}.yaml")
    if variant and not path.is_file():
        if stage == "eval":
            return folder / "eval.yaml"
        there = sorted(other.stem for other in folder.glob(f"*_{variant}.yaml"))
        raise RecipeError(
            f"VARIANT={variant} of the recipe {recipe} has no {stage}; it has {', '.join(there) or 'no file at all'}"
        )
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping.

    Raises:
        RecipeError: no such file, or not a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe file {path}; recipes are in recipes/<name>/") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping of keys to values")
    return content


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
    call([sys.executable, "-m", "launch.start", *launch_options(arguments), "--", *stage_command])


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


def launch_options(arguments: argparse.Namespace) -> list[str]:
    """Flags of launch.start: those that were given."""
    names = ("processes", "gpus", "nodes", "parallel")
    return [part for name in names if getattr(arguments, name) for part in (f"--{name}", str(getattr(arguments, name)))]


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
        f"| {row['learning_rate']:g} | {row['global_batch_size']} | {row['checkpoint']} | {_inverse(row)} |"
        for row in rows
    ]
    write_text(arguments.run / "sft_grid" / "grid.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def _inverse(row: Mapping[str, Any]) -> str:
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
    trained.add_argument("--processes", type=int, help="of a CPU recipe, as launch.start's; so are the next three")
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
    run_command(main, JudgeError)
