"""What a recipe will cost, before anything is downloaded: memory a GPU, steps, tokens, hours, judge calls, disk.

    python -m launch.plan --recipe unirg_cxr --gpus 8 --gpu h100 [--parallel zero3] [--json]

Every YAML of the recipe is parsed as its stage parses it, so a wrong key, reward weights that do not sum, or a batch
that does not divide by the GPUs ends here with one line (exit status 2). Exit status 1: a stage does not fit. Figures
that are not known before a run are assumptions, and printed with the result.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from foundation import machine
from foundation.errors import RecipeError, run_command
from launch.planning.assumed import GPUS, Target, read_assumptions
from launch.planning.budget import budget_table
from launch.planning.stage import plan_recipe, plan_training
from launch.planning.text import table
from launch.planning.whole import best_change, longest_part, whole_recipe
from model.memory import PARALLEL


def main() -> None:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.plan"
    )
    parser.add_argument("--recipe", default="unirg_cxr", help="folder under recipes/")
    parser.add_argument("--stage", nargs="+", default=[], help="some of its YAML files only, e.g. sft rl_step1")
    parser.add_argument("--gpus", type=int, help="GPUs of each node that train; 0 is a CPU. Default: those here, or 8")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--judge_gpus", type=int, help="GPUs of the judge alone; default: 1 for a judge on this machine"
    )
    parser.add_argument("--judge_model", help="a judge other than the YAML's")
    parser.add_argument("--server_gpus", type=int, help="GPUs of the vLLM server, with vllm_mode: server; default: 1")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="which GPU")
    parser.add_argument("--parallel", choices=PARALLEL, help="default: zero3 for several GPUs")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--assume", nargs="+", default=[], metavar="NAME=VALUE", help="change assumptions")
    parser.add_argument("--target_hours", type=float, help="say which model and share of the data fit so many hours")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given, overrides = parser.parse_known_args()
    for name, least in (("gpus", 0), ("nodes", 1), ("judge_gpus", 0), ("server_gpus", 1)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise RecipeError(f"--{name} {getattr(given, name)}: it must be at least {least}")
    gpus = given.nodes * (given.gpus if given.gpus is not None else default_gpus(given.recipe))
    parallel = given.parallel or ("zero3" if gpus > 1 else "single")
    target = Target(
        gpus,
        given.gpu,
        parallel,
        given.data_dir,
        read_assumptions(given.assume),
        tuple(overrides),
        given.judge_gpus,
        given.server_gpus,
        judge_model=given.judge_model,
    )
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of keys' coming names
    if given.target_hours is not None:
        if not 0 < given.target_hours < math.inf or not gpus:
            raise RecipeError(f"--target_hours {given.target_hours:g} on {gpus} GPUs: both must be above 0")
        print(budget_table(given.recipe, target, given.target_hours))
        return
    plans = plan_recipe(given.recipe, target, given.stage)
    if given.json:
        content = {"gpus": gpus, "gpu": given.gpu, "parallel": parallel, "assumptions": asdict(target.assume)}
        print(json.dumps(content | {"stages": [asdict(plan) for plan in plans]}, indent=1))
    else:
        print(table(plans, target))
        if target.gpus:
            print(f"\n{longest_part(plans)}")
            saved, change = best_change(plans, target, plan_training)
            print(
                f"saves most: {change}"
                if saved
                else "saves most: more GPUs; no setting that leaves the results saves any"
            )
            print(whole_recipe(plans))
    if not all(plan.fits for plan in plans):
        sys.exit(1)


def default_gpus(recipe: str) -> int:
    """0 for the demo; else those of this machine, or eight where it has none."""
    return 0 if recipe == "demo" else len(machine.gpus()) or 8


if __name__ == "__main__":
    run_command(main)
