"""Run one stage of a run: say what it is, check that it can work here, run it, write its seconds and peak memory down.

    python -m launch.stage --run outputs/demo --stage sft --processes 2 -- -m recipes.sft --config recipes/demo/sft.yaml …
    python -m launch.stage --gpus 8 [--nodes 2] [--parallel zero3] -- -m recipes.grpo --config … : without --run, no record

What trains (`-m recipes.sft` or `-m recipes.grpo`) is checked and spread over processes (launch/processes.py), with `--judge LOG`
beside its judge (launch/judged.py); another module or command runs as it is. Where a run finds the file that the stage leaves
last unchanged, it did nothing, and the time of the run that made it is kept. What cannot work ends in one line (exit status 2).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from foundation import signals
from foundation.machine import MachineError, OneLineParser
from foundation.masking import mask, mask_words
from foundation.stage_command import process_flags
from launch.processes import PARALLEL, training_command

TRAINING = ("recipes.sft", "recipes.grpo")
# What a user reads at a stage's start, and the file in the run's folder that it leaves last.
STAGES = {
    "base": ("base model: a tiny Qwen3-VL with random weights", "base/config.json"),
    "sft": ("SFT", "sft/result.json"),
    "rl_step1": ("RL step 1: GRPO on the RadCliQ-weighted reward", "rl_step1/result.json"),
    "rl_step2": ("RL step 2: + CheXprompt judge, KL to the step-1 policy", "rl_step2/result.json"),
    "eval": ("evaluation", ""),
    "counterfactual": ("does it look at the film?", ""),
}


def known(stage: str) -> tuple[str, str]:
    """A stage's title and its last file, as in `STAGES`; "" where it has none."""
    if stage.startswith("select_"):
        chosen = stage.removeprefix("select_")
        return f"best checkpoint of {chosen} on validation", f"{chosen}/selection.json"
    return STAGES.get(stage, (stage, ""))


def modified(path: Path | None) -> int | None:
    """Modification time in ns, or None where there is no such file."""
    return path.stat().st_mtime_ns if path and path.exists() else None


def _earlier(path: Path) -> dict:
    """What earlier stages noted; a damaged file is kept aside and started over: it says how long they took and no more."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    kept = path.with_name(f"damaged-{path.name}")
    os.replace(path, kept)
    print(f"   {path} was damaged; kept as {kept.name} and started over", file=sys.stderr)
    return {}


def record(run: Path, stage: str, seconds: float, peak_memory_mib: int) -> None:
    """Add one stage to `<run>/timings.json` and `<run>/peak_memory.json` (both atomically)."""
    for name, value in (("timings.json", round(seconds, 1)), ("peak_memory.json", peak_memory_mib)):
        path = run / name
        content = _earlier(path)
        content[stage] = value
        run.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)


def command_of(given: argparse.Namespace) -> list[str]:
    """The command that runs what stands after `--`.

    Raises:
        MachineError: it cannot run on this machine, or a number of processes is none.
    """
    words = given.command[1:] if given.command[:1] == ["--"] else given.command
    for name in ("gpus", "nodes", "processes"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise MachineError(f"--{name} {getattr(given, name)}: it must be at least 1")
    if words[:1] != ["-m"]:
        return words
    if words[1] not in TRAINING:
        return [sys.executable, *words]
    if given.judge is None:
        return training_command(given.gpus, given.nodes or 1, given.parallel, given.processes or 1, words)
    judged = ["--log", str(given.judge), *(["--gpus", str(given.gpus)] if given.gpus else [])]
    beside = [sys.executable, "-m", "launch.stage", *process_flags(given), "--", *words]  # once the judge answers
    return [sys.executable, "-m", "launch.judged", *judged, "--", *beside]


def run_and_record(command: Sequence[str], run: Path, stage: str, done: Path | None) -> int:
    """Run a stage's command in its run's folder; its exit status."""
    before = modified(done)
    started = time.monotonic()
    signals.end_with_parent()  # make's shell, which a signal to make ends without a word to what it runs
    try:
        status = signals.run(command)
    except OSError as error:
        raise MachineError(f"{command[0]} cannot be run: {error.strerror}") from error
    seconds = time.monotonic() - started
    if not status and (before is None or modified(done) != before):
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        try:
            record(run, stage, seconds, peak)
        except OSError as error:  # the stage's own work is done and kept
            print(f"   {error.filename or run}: {error.strerror}; its time was not noted", file=sys.stderr)
        print(f"   {seconds:.0f} s, peak memory {peak} MiB", flush=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m launch.stage"
    )
    parser.add_argument("--run", type=Path, help="the run's folder, e.g. outputs/demo; none: nothing is recorded")
    parser.add_argument("--stage", help="its name in the records; needed with --run")
    parser.add_argument("--title", help="what a user reads at its start; default: its name, or what is known of it")
    parser.add_argument("--done", type=Path, help="the file that it writes last; default: what is known of it")
    parser.add_argument("--processes", type=int, help="that train a CPU recipe; default: 1")
    parser.add_argument("--gpus", type=int, help="of this node, that train; default: all")
    parser.add_argument("--nodes", type=int, help="default: 1")
    parser.add_argument("--parallel", choices=PARALLEL, help="default: zero3 where DeepSpeed is, else fsdp2")
    parser.add_argument("--judge", type=Path, metavar="LOG", help="run the judge beside training, its output in LOG")
    parser.add_argument("--dry-run", action="store_true", help="print the command only")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- -m MODULE … or -- COMMAND …")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command in ([], ["--"], ["--", "-m"]):
        parser.error("give the stage after --, e.g. -- -m recipes.sft --config recipes/demo/sft.yaml")
    if (given.run is None) != (given.stage is None):
        parser.error("--run and --stage go together")
    done = given.done
    if given.run:
        title, last = known(given.stage)
        done = done or (given.run / last if last else None)
        if not given.dry_run:
            print(f"── {given.title or title}", flush=True)
    try:
        command = command_of(given)
        if given.dry_run:
            print(" ".join(mask_words(command)))
            return 0
        if given.run is None:
            os.execvp(command[0], command)  # signals reach the launcher itself
        status = run_and_record(command, given.run, given.stage, done)
    except MachineError as error:
        print(f"error: {mask(str(error))}", file=sys.stderr)
        status = 2
    if status and given.run:
        print(f"── {given.stage} stopped (exit status {status})", file=sys.stderr)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
