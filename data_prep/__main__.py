"""Data preparation from the command line.

    python -m data_prep mimic --source DIR --out data/mimic [--rexrank FILE …] [--mimic-iv DIR] [--shard 1/8]
    python -m data_prep chexpert_plus | rexgradient | iu_xray | rexrank | custom --source … --out …
    python -m data_prep try --source DIR           # your own data: 200 studies, in seconds, and a mapping proposed
    python -m data_prep phantom --institution harbor --seed 7 --out data/phantom_harbor
    python -m data_prep merge data/mimic           # after every --shard i/n has run
    python -m data_prep check data/mimic           # validate a prepared folder
    python -m data_prep sections --source DIR --mapping mapping.yaml --show 20   # how a custom source's reports are cut

Each data set has its own page: the docstring of data_prep/sources/<source>.py, printed by `--help` of that data set.
Exit status: 0 done (or already done), 2 a mistake that the one line on stderr names, 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

from data_prep.sources import SOURCES
from foundation.locks import LockError, folder_lock


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    # Imported here: image workers import this module too and need none of it.
    from data_prep.splits import LeakageError
    from data_prep.study import StudyError
    from data_prep.tables import SourceError

    options = parser().parse_args(arguments)
    before = None
    try:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, _end)
        options.run(options)
    except (SourceError, StudyError, LockError, LeakageError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("\nstopped; run the same command again to resume", file=sys.stderr)
        return 143 if isinstance(error, Ended) else 130
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return 0


class Ended(KeyboardInterrupt):
    """SIGTERM: what Ctrl-C does, with its own exit status."""


def _end(*_: object) -> None:
    raise Ended


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m data_prep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(
        title="commands", dest="dataset", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    for name in SOURCES:
        command = commands.add_parser(name, help="prepare it")
        add_source_arguments(command, name)
        command.set_defaults(run=run_source)
    phantom = commands.add_parser("phantom", help="draw synthetic studies")
    phantom.add_argument(
        "--institution", required=True, help="harbor, summit, prairie, coast; all: each, into OUT/phantom_<name>"
    )
    phantom.add_argument("--seed", type=int, default=0, help="another seed gives other patients (default: 0)")
    phantom.add_argument("--out", type=Path, required=True, help="folder to make")
    phantom.add_argument("--image-size", type=int, help="pixels of a side (default: the phantom's own)")
    for split in ("train", "validation", "test"):
        phantom.add_argument(f"--{split}", type=int, metavar="N", help=f"studies in {split}")
    phantom.add_argument("--source", help=argparse.SUPPRESS)  # phantoms have none; `make data` always passes one
    phantom.add_argument("--force", action="store_true", help="draw again what is already there")
    phantom.set_defaults(run=run_phantom)
    cut = commands.add_parser("sections", help="show how a custom source's reports are cut into sections")
    cut.add_argument("--source", type=Path, required=True, help="the folder that holds the table")
    cut.add_argument("--mapping", type=Path, required=True, help="YAML: which column is what, and how reports are cut")
    cut.add_argument(
        "--show", type=int, default=20, metavar="N", help="reports to print, drawn at random (default: 20)"
    )
    cut.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    cut.set_defaults(run=run_sections)
    trial = commands.add_parser("try", help="a first look at your own data: some studies, in seconds")
    trial.add_argument("--source", type=Path, required=True, help="the folder with the table")
    trial.add_argument("--mapping", type=Path, help="YAML: which column is what (default: one is proposed)")
    trial.add_argument("--images", type=Path, help="image folder, where it is not below --source")
    trial.add_argument("--studies", type=int, default=200, help="about so many (default: 200)")
    trial.add_argument("--workers", type=int, default=available_cores(), help="image processes (default: all cores)")
    trial.set_defaults(run=run_try)
    check = commands.add_parser("check", help="validate a prepared folder")
    check.add_argument("folder", type=Path)
    check.add_argument(
        "--images", type=Path, help="image folder that it was made from: compare each film with its source"
    )
    check.set_defaults(run=run_check)
    merge = commands.add_parser("merge", help="join the parts that --shard made")
    merge.add_argument("folder", type=Path, help="the --out that the shards shared (holds shards/<i>-of-<n>)")
    merge.add_argument("--force", action="store_true", help="replace an earlier merge")
    merge.set_defaults(run=run_merge)
    return top


class CommandParser(argparse.ArgumentParser):
    """A source's page, its module's docstring, below its options; the module is imported only when that is printed."""

    def format_help(self) -> str:
        name = self.prog.split()[-1]
        return super().format_help() + (
            "\n" + importlib.import_module(SOURCES[name]).__doc__ if name in SOURCES else ""
        )


def add_source_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """The options that every source takes, and those of its own."""
    add = command.add_argument
    add("--source", type=Path, required=True, help="the data set as it lies on disk")
    add("--out", type=Path, help=f"prepared folder to make (default: data/{name})")
    add("--images", type=Path, help="image folder, where it is not below --source")
    add("--image-size", type=int, default=512, help="pixels (default: 512, the paper's)")
    add(
        "--image-mode",
        default="stretch",
        help="stretch: square, aspect lost (default, the paper's 512×512); letterbox: black bars to a square; "
        "longest: longest side at most --image-size, aspect kept, never enlarged",
    )
    add("--image-format", default="jpg", help="jpg (quality 95, default) or png")
    add("--seed", type=int, default=0, help="of the validation choice and of any split made here (default: 0)")
    add(
        "--validation-studies",
        type=int,
        help="training studies set aside for validation by patient (default: 1024 for mimic, 0 for the others)",
    )
    add(
        "--rexrank",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="ReXrank test files: what they list is the test split, with their key images and texts",
    )
    priors = command.add_mutually_exclusive_group()
    priors.add_argument(
        "--priors", action="store_true", default=None, help="link prior studies (default: as the source allows)"
    )
    priors.add_argument("--no-priors", dest="priors", action="store_false", help="link none")
    add("--workers", type=int, default=available_cores(), help="image processes (default: all cores)")
    add("--shard", type=shard, metavar="I/N", help="prepare part I of N, by patient; then `merge`")
    add("--dry-run", action="store_true", help="read a sample, say what would be done, write nothing")
    add("--force", action="store_true", help="redo what is done, replace what other options made")
    if name == "mimic":
        add("--reports", type=Path, help="folder or zip of the reports, where it is not below --source")
        add("--mimic-iv", type=Path, help="MIMIC-IV's hosp folder (patients.csv.gz, admissions.csv.gz): sex, age, race")
    if name == "custom":
        add("--mapping", type=Path, required=True, help="YAML: which column is what")
        add("--name", default="", help="the table's dataset column (default: custom)")
    if name == "iu_xray":
        add(
            "--assume-first-frontal",
            action="store_true",
            help="without a file of views: each study's first image is frontal",
        )
        add(
            "--own-validation",
            action="store_true",
            help="keep R2Gen's 296 validation studies for validation (default: train on them, as the paper does)",
        )


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shard(text: str):
    """`I/N` as a Shard."""
    from data_prep.parts import Shard

    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 1 ≤ I ≤ N, such as 3/8")
    return Shard(int(match[1]), int(match[2]))


def run_source(arguments: argparse.Namespace) -> None:
    """Prepare one source."""
    from data_prep.dry_run import dry_run
    from data_prep.prepare import prepare
    from data_prep.source import Options
    from data_prep.tables import SourceError

    given = vars(arguments)
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__ if given.get(name) is not None})
    out = arguments.out or Path("data") / arguments.dataset
    if arguments.workers < 1:
        raise SourceError("--workers must be 1 or more")
    if arguments.dry_run:
        from dataclasses import replace

        dry_run(arguments.source, out, replace(options, sample=200), arguments.workers)
    else:
        # Parts of one folder are prepared at once on purpose.
        with nullcontext() if arguments.shard else folder_lock(out):
            prepare(arguments.source, out, options, arguments.workers, arguments.shard, arguments.force)


def run_phantom(arguments: argparse.Namespace) -> None:
    """Draw one institution, or all of them."""
    from data_prep.phantoms import prepare_phantoms

    numbers = {s: n for s in ("train", "validation", "test") if (n := getattr(arguments, s)) is not None}
    prepare_phantoms(
        arguments.out, arguments.institution, arguments.seed, numbers, arguments.image_size, arguments.force
    )


def run_check(arguments: argparse.Namespace) -> None:
    """Validate a prepared folder."""
    from data_prep.check import check_folder

    print(check_folder(arguments.folder, arguments.images))


def run_sections(arguments: argparse.Namespace) -> None:
    """Show how reports are cut."""
    from data_prep.cutting import show_sections

    print(show_sections(arguments.source, arguments.mapping, arguments.show, arguments.seed))


def run_try(arguments: argparse.Namespace) -> None:
    """A first look."""
    from data_prep.source import Options
    from data_prep.tables import SourceError
    from data_prep.trial import try_source

    if arguments.studies < 1 or arguments.workers < 1:
        raise SourceError("--studies and --workers must be 1 or more")
    options = Options("custom", images=arguments.images, mapping=arguments.mapping)
    try_source(arguments.source, options, arguments.studies, arguments.workers)


def run_merge(arguments: argparse.Namespace) -> None:
    """Join shards."""
    from data_prep.merge import merge_shards

    if not arguments.folder.is_dir():
        merge_shards(arguments.folder, arguments.force)  # says so
        return
    with folder_lock(arguments.folder):
        merge_shards(arguments.folder, arguments.force)


if __name__ == "__main__":
    sys.exit(main())
