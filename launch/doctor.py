"""Is this machine ready? What each stage of a recipe needs, what is there, and the command that mends what is missing.

    python -m launch.doctor [--recipe unirg_cxr] [--stage sft] [--gpus 8] [--json]

Exit status: 0 the stage (without --stage: every stage, earlier stages' models ignored) can run here, 1 it cannot,
2 the question was wrong. Nothing is changed and no report is sent anywhere. Standard library at the top: it also runs
where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundation import machine
from foundation.errors import RecipeError
from foundation.machine import MachineError
from foundation.provenance import REPOSITORY
from foundation.recipe_files import read_yaml
from launch.checks.gpus import check_data_disk, check_gpu_packages, check_gpus, check_memory, check_plan
from launch.checks.packages import check_packages, check_python
from launch.checks.question import STAGES, TRAINING, Check, Question, yaml_name
from launch.checks.servers import check_generation_server, check_hub, check_judge
from launch.checks.stages import check_data, check_earlier_stage
from launch.checks.weights import check_base_model, check_judge_weights, check_metric_weights, check_ratescore
from launch.processes import PARALLEL


def check_recipe(question: Question) -> Iterator[Check]:
    """Each stage has its YAML."""
    for stage in question.asked(STAGES[1:]) if question.recipes else ():
        if stage not in question.recipes:
            name = yaml_name(stage, question.variant)
            found = f"recipes/{question.recipe} has no {name}, so no {stage}"
            yield Check(
                f"recipe of {stage}", "missing", found, "write it, or choose another RECIPE or VARIANT", (stage,)
            )


# ---- this machine -----------------------------------------------------------------------------------------------------


# ---- what the recipe reads --------------------------------------------------------------------------------------------


CHECKS: tuple[Callable[[Question], Iterator[Check]], ...] = (
    check_python,
    check_packages,
    check_recipe,
    check_gpus,
    check_gpu_packages,
    check_memory,
    check_plan,
    check_base_model,
    check_metric_weights,
    check_ratescore,
    check_data_disk,
    check_data,
    check_earlier_stage,
    check_judge,
    check_judge_weights,
    check_generation_server,
    check_hub,
)


def examine(question: Question) -> list[Check]:
    """All checks of one question, in order."""
    checks = []
    for function in CHECKS:
        try:
            checks.extend(function(question))
        except ModuleNotFoundError as error:  # nothing, or not all, is installed yet
            name = function.__name__.removeprefix("check_").replace("_", " ")
            checks.append(Check(name, "missing", f"not looked at: {error}", "make setup"))
    return checks


def can_run(checks: list[Check], stage: str) -> bool:
    """Whether nothing that `stage` needs is missing."""
    return not any(check.status == "missing" and stage in check.stages for check in checks)


def read_recipe(recipe: str, variant: str = "") -> dict[str, dict[str, Any]]:
    """Stage → YAML keys of a recipe; without PyYAML (nothing installed yet) no stage.

    Raises:
        MachineError: no such recipe or variant, or a file that is no YAML mapping.
    """
    folder = REPOSITORY / "recipes" / recipe
    known = sorted(path.parent.name for path in (REPOSITORY / "recipes").glob("*/*.yaml"))
    if recipe not in known:
        raise MachineError(f"no recipe {recipe!r}; one of {', '.join(sorted(set(known)))}")
    if variant and not any((folder / yaml_name(stage, variant)).is_file() for stage in TRAINING):
        stages = [path.stem for stage in TRAINING for path in sorted(folder.glob(f"{stage}_*.yaml"))]
        raise MachineError(f"recipe {recipe} has no variant {variant!r}; it has {', '.join(stages) or 'none'}")
    if find_spec("yaml") is None:
        return {}
    recipes = {}
    for stage in STAGES:
        path = folder / yaml_name(stage, variant)
        if path.is_file():
            try:
                recipes[stage] = read_yaml(path)
            except RecipeError as error:
                raise MachineError(str(error)) from error
    return recipes


def table(checks: list[Check]) -> str:
    """The checks for a screen: status, name, what was found, and below it what mends it."""
    marks = {"ok": "ok     ", "missing": "MISSING", "warning": "warning"}
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{marks[check.status]}  {check.name:<{width}}  {check.found}")
        if check.mend and check.status != "ok":
            lines.append(f"{'':7}  {'':<{width}}  → {check.mend}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.doctor"
    )
    parser.add_argument("--recipe", default="unirg_cxr", help="folder under recipes/")
    parser.add_argument("--stage", choices=STAGES, help="the stage that is to run; default: all")
    parser.add_argument("--variant", default="", help="of the recipe: <stage>_<variant>.yaml, e.g. lora")
    parser.add_argument("--gpus", type=int, help="GPUs that are to train; default: all")
    parser.add_argument(
        "--parallel", choices=PARALLEL, help="how the model is spread over them; default: zero3 or fsdp2"
    )
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--weights_dir", type=Path, default=Path(os.environ.get("WEIGHTS_DIR", "weights")))
    parser.add_argument("--run", type=Path, help="the run's folder; default: outputs/<recipe>")
    parser.add_argument("--judge_base_url", help="a judge other than the YAML's")
    parser.add_argument("--no-network", action="store_true", help="do not ask the hub")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        if given.gpus is not None and given.gpus < 0:
            raise MachineError(f"--gpus {given.gpus}: it must be at least 0")
        recipes = read_recipe(given.recipe, given.variant)
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.judge_base_url:
        for stage in ("rl_step2", "eval"):
            if stage in recipes:
                recipes[stage]["judge_base_url"] = given.judge_base_url
    run = given.run or Path("outputs") / "_".join(filter(None, (given.recipe, given.variant)))
    question = Question(
        given.recipe,
        recipes,
        given.stage,
        given.gpus,
        given.data_dir,
        given.weights_dir,
        run,
        not given.no_network,
        given.variant,
        given.parallel,
    )
    checks = examine(question)
    ready = {stage: can_run(checks, stage) for stage in question.asked(STAGES)}
    if given.json:
        print(json.dumps({"recipe": given.recipe, "checks": [asdict(c) for c in checks], "can_run": ready}, indent=1))
    else:
        print(table(checks))
        print()
        print(" · ".join(f"{stage}: {'ready' if good else 'not ready'}" for stage, good in ready.items()))
    return 0 if all(ready.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
