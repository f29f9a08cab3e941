"""`make verify`: is everything right on this machine, with these weights? One report, verify.html and verify.json.

    python -m launch.verify --recipe unirg_cxr --out outputs/unirg_cxr/verify [--only metrics judge]

Each line says what was expected, what was found and whether that is well. Exit status 0: no line differs (what was
skipped says why); 1: one does; 2: it could not begin.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation import machine
from foundation.errors import OneLineError, RecipeError, run_command
from foundation.stage_command import settings_of
from launch.verifying.gpu_memory import free_gpu
from launch.verifying.line import Line, Subject
from launch.verifying.report import counts, write_report
from launch.verifying.stage_runs import recipe_file

Check = Callable[[Subject], Iterator[Line]]
KINDS = ("fingerprints", "metrics", "judge", "base_model", "training")
_WORDS = {True: "ok", False: "DIFFERS", None: "skipped"}


def verify(subject: Subject, checks: Mapping[str, Check], about: Mapping[str, Any]) -> bool:
    """Run the checks in turn, print each line as it is there, and write the report after each check.

    A check that cannot continue is a line that differs. Returns whether no line does.
    """
    lines: list[Line] = []
    for name, check in checks.items():
        start = time.monotonic()
        print(f"── {name}", flush=True)
        try:
            for line in check(subject):
                lines.append(line)
                print(f"   {_WORDS[line.ok]:8} {line.check}: {line.found} (expected: {line.expected})", flush=True)
        except (
            OneLineError,
            OSError,
            RuntimeError,
        ) as error:  # RuntimeError: PyTorch's, as where a GPU's memory is full
            lines.append(Line(name, "can be checked", " ".join(str(error).split()), False))
            print(f"   {_WORDS[False]:8} {name}: {lines[-1].found}", flush=True)
        free_gpu()
        print(f"   {time.monotonic() - start:.0f} s", flush=True)
        write_report(subject.out, lines, about)
    print(f"{counts(lines)}: {subject.out / 'verify.html'}")
    return not any(line.ok is False for line in lines)


def main() -> None:
    given = _parser().parse_args()
    for name, least in (("most_reports", 2), ("pairs", 1), ("studies", 2), ("rollouts", 2), ("gpus", 0)):
        if getattr(given, name) is not None and getattr(given, name) < least:
            raise RecipeError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    subject = subject_of(given)
    subject.out.mkdir(parents=True, exist_ok=True)
    there = machine.gpus()
    about = {
        "recipe": subject.recipe + (f", variant {subject.variant}" if subject.variant else ""),
        "reports": f"up to {subject.most_reports} of {subject.reports}",
        "machine": f"{', '.join(gpu.name for gpu in there) or 'no GPU'}; {os.cpu_count()} cores; {platform.platform()}",
        "made": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    checks = {name: getattr(import_module(f"launch.verifying.{name}"), f"check_{name}") for name in given.only}
    if not verify(subject, checks, about):
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = machine.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.verify"
    )
    parser.add_argument("--recipe", default="unirg_cxr", help="folder under recipes/")
    parser.add_argument("--variant", help="of its stages, where they have it: lora")
    parser.add_argument("--out", type=Path, required=True, help="folder of verify.html and verify.json")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="some kinds of check only")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--weights_dir", type=Path, default=Path("weights"))
    parser.add_argument("--model", help="the base model; default: the recipe's")
    parser.add_argument("--datasets", nargs="+", default=[], help="prepared data sets; default: the recipe's")
    parser.add_argument("--reports", type=Path, help="test.parquet of a prepared data set; default: the first's")
    parser.add_argument("--most_reports", type=int, default=200, help="reports that metrics and packages score")
    parser.add_argument("--pairs", type=int, default=50, help="pairs that the judge is asked about")
    parser.add_argument("--studies", type=int, default=32, help="studies of the two updates")
    parser.add_argument("--rollouts", type=int, default=4, help="of each study")
    parser.add_argument("--judge_base_url", help="default: the recipe's")
    parser.add_argument("--judge_model", help="default: the recipe's")
    parser.add_argument("--gpus", type=int, help="GPUs that train; default: one where there is one")
    return parser


def subject_of(given: argparse.Namespace) -> Subject:
    """What is verified, with the recipe's own model and data where none are named.

    Raises:
        RecipeError: a recipe without SFT, or no prepared data.
    """
    source = recipe_file(Subject(given.recipe, given.variant, *[Path()] * 3, "", Path()), "sft")
    if source is None:
        raise RecipeError(f"recipes/{given.recipe} has no sft.yaml; name a recipe with RECIPE=…")
    settings = settings_of(["--config", str(source)])
    names = given.datasets or settings["datasets"]
    tables = [given.reports] if given.reports else [given.data_dir / name / "test.parquet" for name in names]
    reports = next((path for path in tables if path.is_file()), None)
    if reports is None:
        raise RecipeError(f"{tables[0]} is not there; prepare a data set first (make data DATASET=…; make demo-data)")
    gpus = given.gpus if given.gpus is not None else min(1, len(machine.gpus()) if given.recipe != "demo" else 0)
    return Subject(
        given.recipe,
        given.variant,
        given.data_dir.resolve(),
        given.weights_dir.resolve(),
        given.out.resolve(),
        str(given.model or settings["model_name_or_path"]),
        reports.resolve(),
        given.most_reports,
        given.pairs,
        given.studies,
        given.rollouts,
        given.judge_base_url,
        given.judge_model,
        gpus,
        tuple(given.datasets),
    )


if __name__ == "__main__":
    run_command(main)
